"""Problems: what students are trained on and tested with. One list of `Problem` whatever the world."""

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from random import Random

from mixdistill.arguments import choice, shown, text, whole
from mixdistill.data.final_answers import ANSWER_FORMATS, NUMBER, final_answer, gold_number, math_gold, number_value
from mixdistill.data.pocket import world
from mixdistill.data.tables import Number, column_names, file_name, flaw, join, of_pocket, only_used, read_table, texts

# The pocket world's three benchmarks: the levels of `world`.
POCKET_TIERS = {"pocket/easy": 1, "pocket/medium": 2, "pocket/hard": 3}
N_POCKET = 200
N_ANSWERED = 340  # test problems of a tier that students of earlier studies were asked: a test begins behind them

# How a question is asked, by answer_format or by a problem's own choice. `math` is the paper's prompt; GSM8K and the
# pocket world get the bare question. `gsm8k_boxed` asks for the box too: a student that was never tuned to it loses
# points on the bare one.
PROMPTS = {
    "math": "Solve the following math problem. Present the final answer in the format: Final Answer: "
    "\\boxed{{your_answer}}.\nProblem: {question}\nAnswer:",
    "gsm8k": "{question}",
    "gsm8k_boxed": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "pocket": "{question}",
}


def number_gold(text: str) -> str | None:
    """`gold_number`, and None for a text without a number, such as `N/A`, or that is none, 1/0, or that no answer is
    equal to: 0,125 has no thousands."""
    found = gold_number(text)
    none = found and re.search(r"/ ?0+(?![\d.])|(?<![\d,])0\d*,", found)
    return found if found and re.search(NUMBER, found) and not none else None


# How a gold answer is read, by answer_format, and what one has to be.
GSM8K_RULE = "a gsm8k answer is one number, or a solution that marks it by ####; others have answer_format='math'"
MATH_RULE = "a math answer stands alone, or in the box of a solution; one behind #### has answer_format='gsm8k'"
GOLDS: dict[str, tuple[Callable[[str], str | None], str]] = {
    "gsm8k": (gold_number, GSM8K_RULE),
    "math": (math_gold, MATH_RULE),
    "pocket": (str, ""),
}
FIELDS = ("question", "answer", "id", "level", "subject")  # of a problem, that are columns of a data set
# What stands in a word problem in the place of a number that is left out: number0, N_00, NUM, <num>, [NUM1], temp_a.
OPEN = re.compile(r"\b(?:(?i:number|num)_?\d+|N_\d\d|temp_[a-z])\b|\bNUM\b|[\[<](?i:number|num)_?\d*[\]>]")
LEAVE_OUT = "unusable='drop' leaves such rows out (in BENCHMARKS: own.csv:question:answer:drop)"


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    `answer_format` says how the answer is graded (`grade`), `prompt` how the question is asked (a name in `PROMPTS`;
    empty: as its answer_format is). Raises ValueError if a field is no text, one of the first three is blank, a name is
    unknown, or no answer can be read from the gold one (`gold_number`, `math_gold`).
    """

    id: str
    question: str
    answer: str
    level: str
    source: str
    answer_format: str
    subject: str = ""
    prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "question", "answer", "level", "source", "subject"):
            value = text(f"a problem's {name}", getattr(self, name), empty=name in ("level", "source", "subject"))
            object.__setattr__(self, name, value)  # a Path as its text
        read, rule = GOLDS[choice("answer_format", self.answer_format, ANSWER_FORMATS)]
        if read(self.answer) is None:
            raise ValueError(f"a problem's answer is {shown(self.answer)}: {rule}")
        choice("prompt", self.prompt, (*PROMPTS, ""))


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark, and its file in $MIXDISTILL_DATA (`{split}` filled in)."""

    file: str
    columns: Mapping[str, str]  # those that are not called as the field of a `Problem`
    answer_format: str = "math"
    solved: bool = False  # `answer` holds a worked solution, whose final answer is the gold
    splits: tuple[str, ...] = ("test",)
    config: str | None = None  # of the Hub data set, as the next
    hub_split: str | None = None  # where the Hub calls its only split otherwise

    def gold(self, value: object) -> str:
        """The gold answer in a value of the column `answer`; empty if it holds none."""
        if isinstance(value, list):  # OlympiadBench: as published, with its `$`, without its unit
            known = not any(flaw(answer, numbers=True) for answer in value)
            return ", ".join(str(answer).strip() for answer in value) if known else ""
        if flaw(value, numbers=True):
            return ""
        if self.solved and self.answer_format == "gsm8k":
            found = gold_number(str(value))
            if found is None:
                return str(value).strip()  # refused with its row, later
            return found if re.search(NUMBER, found) else ""
        if self.solved:
            return final_answer(str(value), self.answer_format, strict=True) or ""
        # AMC's number 27.0 is 27; AIME's text `033` stays as it is, the grader knows.
        value = _plain(value) if self.answer_format == "gsm8k" else value
        return value.removesuffix(".0") if isinstance(value, Number) else str(value).strip()


MATH = {"question": "problem", "answer": "solution", "subject": "type"}
OLYMPIAD = {"answer": "final_answer", "subject": "subfield"}
BOTH = ("train", "test")
BENCHMARKS = {
    "math": Benchmark("math_{split}.jsonl", MATH, solved=True, splits=BOTH),
    "math500": Benchmark("MATH-500.jsonl", {"question": "problem", "id": "unique_id"}),
    "gsm8k": Benchmark("gsm8k_{split}.jsonl", {}, "gsm8k", solved=True, splits=BOTH, config="main"),
    "svamp": Benchmark("svamp_test.jsonl", {}, "gsm8k"),
    "amc23": Benchmark("amc23.jsonl", {}),
    "aime24": Benchmark("aime24.jsonl", {"question": "problem"}, hub_split="train"),
    "olympiadbench": Benchmark("olympiadbench.jsonl", OLYMPIAD, config="OE_TO_maths_en_COMP", hub_split="train"),
}
# Where the Hub has them, at a pinned commit.
HUB = {
    "math": ("DigitalLearningGmbH/MATH-lighteval", "0530c78699ea5e8eb5530600900e1f328b48acad"),
    "math500": ("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    "gsm8k": ("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866"),
    "amc23": ("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057"),
    "aime24": ("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
    "olympiadbench": ("Hothan/OlympiadBench", "91184b52131e7fc9455fef848035173aea8cc01a"),
}


def same_gold(gold: str) -> str:
    """A gold answer without what may differ in the writing of one number: 5.0 and 5, 1,200 and 1200."""
    value = number_value(gold.replace(",", ""))
    return gold if value is None else str(value)


def load_problems(
    source: str | Path,
    *,
    n: int | None = None,
    split: str | None = None,
    file: str | Path | None = None,
    prompt: str = "",
    columns: Mapping[str, str | Sequence[str]] | None = None,
    answer_format: str | None = None,
    unusable: str = "error",
) -> list[Problem]:
    """Load problems. An option that the source does not use is refused.

    Arguments:
        source: a name in `POCKET_TIERS` or `BENCHMARKS`; a file (`tables.FILES`), here or in `$MIXDISTILL_DATA`; a
            folder written by `Dataset.save_to_disk`; or a Hub data set as owner/name.
        n: the first so many; None means all (200 in the pocket world).
        split: `test` (None), `train` or, in the pocket world, `dev`; of a folder of several or another Hub data set its
            own.
        file: a file with the published columns of the benchmark `source`. Without it, the benchmark's file in
            `$MIXDISTILL_DATA` is read if there is one, else the Hub at a pinned commit.
        prompt: how to ask, a name in `PROMPTS`; empty means as the answer_format is asked.
        columns: of sources that are no benchmark, names of the columns that hold `question` (several: a list of names,
            whose texts are joined), `answer` and, read only where they are named here, `id`, `level` and `subject`.
            Without an `id`, name and row of the source are the identity.
        answer_format: how to ask and grade problems of such sources: `math` (None), `gsm8k`, or `pocket`, for texts
            in the pocket world's language.
        unusable: rows of such sources without a question, or without an answer that can be read, are refused (`error`)
            or left out, counted in a warning (`drop`).

    Raises ValueError: unknown source or option; a question or answer that is empty (a benchmark's row without a gold is
    left out instead, with a warning); two problems of one id; more pocket problems than there are.
    """
    source, n = text("source", source), whole("n", n, optional=True)
    split, file = text("split", split, optional=True), text("file", file, optional=True)
    choice("prompt", prompt, (*PROMPTS, ""))
    choice("answer_format", answer_format, ANSWER_FORMATS, optional=True)
    names = column_names(columns, FIELDS[:2], FIELDS[2:])
    drop = choice("unusable", unusable, ("error", "drop")) == "drop"
    own = {"columns": columns, "answer_format": answer_format, "unusable": "drop" if drop else None}
    advice = f"mend them; {LEAVE_OUT}"
    if of_pocket(source):
        level, split = POCKET_TIERS[choice("source", source, POCKET_TIERS)], split or "test"
        only_used(source, "its problems are made here", file=file, prompt=prompt, **own)
        drawn = pocket_mysteries(n or N_POCKET, split, [level])
        # The text is the identity: two sets that hold the same question hold the same problem.
        return [Problem(f"{split}/{one.text}", one.text, one.answer, str(level), source, "pocket") for one in drawn]
    if benchmark := BENCHMARKS.get(source):
        only_used(source, "a benchmark has columns and a form of its own", **own)
        split, answer_format = choice("split", split or "test", benchmark.splits), benchmark.answer_format
        names = {field: [benchmark.columns.get(field, field)] for field in FIELDS}
        table = _benchmark_table(source, names, split, file)
        answers = [benchmark.gold(value) for value in join(table, names["answer"])]
        asked = join(table, names["question"])
        name, of_row, what = source, f"{source}/{split}/", f"the answers of {source!r}"
    else:
        only_used(source, f"that is for a benchmark by name: {', '.join(BENCHMARKS)}", file=file)
        table = read_table(source, [*chain.from_iterable(names.values())], split=split, hub_split="test")
        what = f"column {names['answer'][0]!r} of {source!r}"
        name, answer_format = file_name(source), answer_format or "math"
        asked, values = [*join(table, names["question"])], [*join(table, names["answer"])]
        values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
        values = [_plain(value) if answer_format == "gsm8k" else value for value in values]
        rows = range(len(values)) if drop else ()
        for row in (bad := {row for row in rows if not _usable(asked[row], values[row], answer_format)}):
            asked[row], values[row] = "left out", "left out"
        answers = ["" if row in bad else answer for row, answer in enumerate(texts(values, what, advice, True))]
        of_row = "" if "id" in names else f"{name}/"
    read, rule = number_gold if answer_format == "gsm8k" else GOLDS[answer_format][0], GOLDS[answer_format][1]
    golds = [read(one) if one else "" for one in answers]
    unread = [row for row, gold in enumerate(golds) if gold is None]
    if unread:
        where = f"{len(unread)} of {len(answers)} rows (the first: {unread[:5]}), such as {shown(answers[unread[0]])}"
        raise ValueError(f"{what}: no answer is read in {where}: {rule}; {LEAVE_OUT}")
    if answer_format == "math":
        answers = [gold or "" for gold in golds]  # of worked solutions what they box
    questions = texts(asked, f"column {' or '.join(map(repr, names['question']))} of {source!r}", advice)
    own_words = questions if answer_format == "gsm8k" and not benchmark else []
    if holes := [found[0] for question in own_words if (found := OPEN.search(question))]:
        what = f"{len(holes)} of {len(questions)} questions of {source!r} have a number left out, such as {holes[0]}"
        raise ValueError(f"{what}: fill them in, or give a file that has them; {LEAVE_OUT}")
    given = {field: table[column] for field, (column, *_) in names.items() if column in table}
    named = given.get("id", [str(row) for row in range(len(questions))])
    named = [id if answer else f"left out {row}" for row, (id, answer) in enumerate(zip(named, answers, strict=True))]
    ids = texts(named, f"the ids of {source!r}", "mend them, or name no column for id", True)
    if len(set(ids)) < len(ids):
        (most, _), *_ = Counter(ids).most_common(1)
        said = f"{source!r} has {len(ids)} problems of {len(set(ids))} different ids, such as {most!r} more than once"
        raise ValueError(f"{said}: give each its own, or name no column for id")
    asked_with = [(one.strip(), same_gold(gold)) for one, gold in zip(questions, golds, strict=True) if gold]
    if n_again := len(asked_with) - len(set(asked_with)):
        what = f"{n_again} of {len(ids)} problems of {source!r}"
        warnings.warn(f"{what} are there more than once, and count as often", stacklevel=2)
    golds_of = Counter(question for question, _ in set(asked_with))
    if n_unsure := sum(n > 1 for n in golds_of.values()):
        warnings.warn(f"{n_unsure} questions of {source!r} have more than one gold answer", stacklevel=2)
    odd = [*_odd_numbers(answers)] if answer_format == "gsm8k" else [] if benchmark else [*_odd_mathematics(answers)]
    for said in odd:
        warnings.warn(f"of the gold answers of {source!r} {said}", stacklevel=2)
    without = [row for row, answer in enumerate(answers) if not answer]
    if without:
        what = f"{len(without)} of {len(answers)} problems of {source!r} have no {'question or ' * drop}gold answer"
        if len(without) == len(answers):
            raise ValueError(f"{what}: name the right columns or answer_format, or give another source")
        warnings.warn(f"{what} and are left out (rows {without[:5]})", stacklevel=2)
    labels = [given.get(label, [None] * len(ids)) for label in ("level", "subject")]
    levels, subjects = [["" if value is None else str(value) for value in label] for label in labels]
    return [  # MATH writes `Level 5`, MATH-500 `5`
        Problem(of_row + id, question, answer, level.removeprefix("Level "), name, answer_format, subject, prompt)
        for id, question, answer, level, subject in zip(ids, questions, answers, levels, subjects, strict=True)
        if answer
    ][:n]


def _benchmark_table(
    name: str, names: Mapping[str, list[str]], split: str, file: str | None
) -> dict[str, list[object]]:
    benchmark, folder = BENCHMARKS[name], os.environ.get("MIXDISTILL_DATA")
    needed, labels = ([names[field][0] for field in fields] for fields in (FIELDS[:2], FIELDS[2:]))
    kept = Path(folder or "", benchmark.file.format(split=split)).expanduser()
    if file or (folder and kept.is_file()):
        return read_table(file or str(kept), needed, labels)
    if name not in HUB:
        what = f"{name!r} is read from a file: put {kept.name!r} into the folder $MIXDISTILL_DATA"
        raise ValueError(f"{what}, or give it as file (docs/real-models.md says where it comes from)")
    hub, commit = HUB[name]
    return read_table(hub, needed, labels, split=benchmark.hub_split or split, revision=commit, config=benchmark.config)


def _usable(question: object, answer: object, answer_format: str) -> bool:
    read = number_gold if answer_format == "gsm8k" else GOLDS[answer_format][0]
    if answer_format == "gsm8k" and OPEN.search(str(question)):
        return False
    return not flaw(question) and not flaw(answer, numbers=True) and read(str(answer)) is not None


def _odd_numbers(golds: list[str]) -> Iterator[str]:
    """What is odd about gold answers that are compared as numbers."""
    long = [gold for gold in golds if re.search(r"\.\d{10}", gold_number(gold) or "")]
    if long:
        yield f"{len(long)} have ten or more decimals, such as {shown(long[0])}: an answer that is rounded is wrong"


def _odd_mathematics(golds: list[str]) -> Iterator[str]:
    """What is odd about gold answers that are compared as mathematics."""
    golds = [gold for gold in golds if gold and "\\begin" not in gold]
    words = [re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", gold) for gold in golds]
    if said := [gold for gold, of in zip(golds, words, strict=True) if "\n" in gold.strip() or len(of) > 5]:
        rule = "only the same text equals them; a worked solution boxes its answer, or marks it by #### (gsm8k)"
        yield f"{len(said)} are sentences, such as {shown(said[0])}: {rule}"
    wordy = [gold for gold in golds if re.search(r"[A-Za-z]{3}|[(\[;]", gold) and "\\" not in gold]
    if wordy and all((number := gold_number(gold)) and re.search(NUMBER, number) for gold in golds):
        yield f"all are numbers, such as {shown(wordy[0])}: answer_format='gsm8k' reads what stands around them"


def _plain(value: object) -> object:
    """A number in digits: 1e3 as 1000. One of more than a hundred stays as it is."""
    short = isinstance(value, Number) and re.fullmatch(r"[^e]+e[-+]?\d{1,2}", value, re.I)
    return Number(format(Decimal(str(value)), "f")) if short else value


def pocket_mysteries(n: int, split: str, levels: list[int], seed: int = 0) -> list[world.Mystery]:
    """`n` different mysteries of a split, the levels in turn. Raises ValueError if a level runs out before."""
    whole("n", n)
    choice("split", split, world.SPLITS)
    for level in levels:
        whole("one of levels", level, high=len(world.LEVELS))
    skipped = N_ANSWERED * len(levels) if split == "test" else 0
    most = min(world.N_PROBLEMS[split][level] * len(levels) + i for i, level in enumerate(levels)) - skipped
    if n > most:
        raise ValueError(f"n is {n}: the split {split!r} has {most} such problems, ask for at most as many")
    rng = Random(f"problems/{split}/{levels}/{seed}")
    found: dict[str, world.Mystery] = {}
    while len(found) < skipped + n:
        mystery = world.random_mystery(rng, levels[len(found) % len(levels)], split)
        found.setdefault(mystery.text, mystery)
    return list(found.values())[skipped:]


def plain_question(question: str) -> str:
    """A question without what copies of it differ in: case, white space, points, invisible characters, bold type and
    signs of formulas, how quotes, dashes, powers, fractions and thousands are written, a heading such as `Question 3:`,
    a number before it, `Answer:` behind it."""
    plain = "".join(char for char in question if unicodedata.category(char) != "Cf")
    plain = re.sub(r"(?<![\w)])\*\*|\*\*(?![\w(])|\\?\$|\\[()\[\]]", "", plain)
    plain = re.sub("([\u00b2\u00b3\u00b9\u2070-\u2079]+)", r"^\1", plain)  # 2^5 is not 25
    plain = re.sub("(?<=\\d)(?=[\xbc-\xbe\u2150-\u215e])", " ", plain)  # nor 1 1/2 11/2
    plain = unicodedata.normalize("NFKC", plain).casefold().replace("\u2044", "/")
    for written, one_way in (("[\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"'), ("[\u2010-\u2015\u2212]", "-")):
        plain = re.sub(written, one_way, plain)
    plain = re.sub(r"^[\W_]*(?:(?:question|problem|example|q)\s*\d*[\s*_]*[:.)]|\d+[.)]\s)[\s*_]*", "", plain)
    plain = re.sub(r"\s*\b(?:answer|a)\s*:\s*$", "", plain)
    # Thousands, where they can be no list: (1,200) may be a pair.
    numbers = r"[(\[{][\d, ]*[)\]}]|(?<![\d,])\d{1,3}(?:,\d{3})+(?!,? ?\d)"
    plain = re.sub(numbers, lambda one: one[0].replace(",", "") if one[0][0].isdigit() else one[0], plain)
    plain = re.sub(r'[.,;:?"](?!\d)', "", plain)
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(plain.split()))  # what separates two numbers stays
