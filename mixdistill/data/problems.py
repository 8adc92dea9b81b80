"""Problems: what students are trained on and tested with. One list of `Problem` whatever the world.

| benchmark       | problems           | Hub data set                         | local file in `$MIXDISTILL_DATA` |
|-----------------|--------------------|--------------------------------------|----------------------------------|
| `math`          | 5,000 (train 7,500)| DigitalLearningGmbH/MATH-lighteval   | `math_test.jsonl`                |
| `math500`       | 500                | HuggingFaceH4/MATH-500               | `MATH-500.jsonl`                 |
| `gsm8k`         | 1,319 (train 7,473)| openai/gsm8k                         | `gsm8k_test.jsonl`               |
| `svamp`         | 300                | (a file only)                        | `svamp_test.jsonl`               |
| `amc23`         | 40                 | math-ai/amc23                        | `amc23.jsonl`                    |
| `aime24`        | 30                 | HuggingFaceH4/aime_2024              | `aime24.jsonl`                   |
| `olympiadbench` | 674 (file: 675)    | Hothan/OlympiadBench                 | `olympiadbench.jsonl`            |
| `pocket/easy`, `pocket/medium`, `pocket/hard` | 200 each | made here        |                                  |
"""

import os
import re
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mixdistill.arguments import choice, text, whole
from mixdistill.data.final_answers import ANSWER_FORMATS, final_answer
from mixdistill.data.pocket import world
from mixdistill.data.tables import Number, column, column_names, file_name, flaw, only_used, read_table

# The pocket world's three benchmarks: the levels of `world`.
POCKET_TIERS = {"pocket/easy": 1, "pocket/medium": 2, "pocket/hard": 3}
N_POCKET = 200

# How a question is asked, by answer_format or by a problem's own choice. `math` is the paper's prompt; GSM8K and the
# pocket world get the bare question. `gsm8k_boxed` asks for the box too: a student that was never tuned to it loses
# points on the bare one.
PROMPTS = {
    "math": (
        "Solve the following math problem. Present the final answer in the format: Final Answer: "
        "\\boxed{{your_answer}}.\n"
        "Problem: {question}\nAnswer:"
    ),
    "gsm8k": "{question}",
    "gsm8k_boxed": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "pocket": "{question}",
}


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    `answer_format` says how the answer is graded (`grade`), `prompt` how the question is asked (a name in `PROMPTS`;
    empty: as its answer_format is). Raises ValueError if a field is no text, one of the first three is blank, or a name
    is unknown.
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
        choice("answer_format", self.answer_format, ANSWER_FORMATS)
        choice("prompt", self.prompt, (*PROMPTS, ""))


@dataclass(frozen=True)
class Benchmark:
    """Where a published benchmark lies, and what its columns are called."""

    hub: str | None  # None: there is only the file
    revision: str | None  # commit of the Hub data set
    file: str  # its name in $MIXDISTILL_DATA, `{split}` filled in
    answer_format: str = "math"
    question: str = "problem"
    answer: str = "answer"
    solved: bool = False  # `answer` holds a worked solution, whose final answer is the gold
    config: str | None = None
    splits: tuple[str, ...] = ("test",)
    hub_split: str | None = None  # where the Hub calls its only split otherwise
    id: str = "id"
    level: str = "level"
    subject: str = "subject"

    def gold(self, row: dict) -> str:
        """The gold answer; empty where the row has none."""
        value = row.get(self.answer)
        if isinstance(value, list):  # OlympiadBench: as published, with its `$`, without its unit
            return ", ".join(str(answer).strip() for answer in value)
        if flaw(value, numbers=True):
            return ""
        if self.solved:
            return final_answer(value, self.answer_format, strict=True) or ""
        # AMC's number 27.0 is 27; AIME's text `033` stays as it is, the grader knows.
        return value.removesuffix(".0") if isinstance(value, Number) else value.strip()


BENCHMARKS = {
    "math": Benchmark(
        "DigitalLearningGmbH/MATH-lighteval",
        "0530c78699ea5e8eb5530600900e1f328b48acad",
        "math_{split}.jsonl",
        answer="solution",
        solved=True,
        splits=("train", "test"),
        subject="type",
    ),
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "MATH-500.jsonl", id="unique_id"
    ),
    "gsm8k": Benchmark(
        "openai/gsm8k",
        "740312add88f781978c0658806c59bc2815b9866",
        "gsm8k_{split}.jsonl",
        "gsm8k",
        "question",
        solved=True,
        config="main",
        splits=("train", "test"),
    ),
    "svamp": Benchmark(None, None, "svamp_test.jsonl", "gsm8k", "question"),
    "amc23": Benchmark("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "amc23.jsonl", question="question"),
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "aime24.jsonl", hub_split="train"
    ),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench",
        "91184b52131e7fc9455fef848035173aea8cc01a",
        "olympiadbench.jsonl",
        question="question",
        answer="final_answer",
        config="OE_TO_maths_en_COMP",
        hub_split="train",
        subject="subfield",
    ),
}


def load_problems(
    source: str | Path,
    *,
    n: int | None = None,
    split: str | None = None,
    file: str | Path | None = None,
    prompt: str = "",
    columns: Mapping[str, str] | None = None,
    answer_format: str | None = None,
    revision: str | None = None,
) -> list[Problem]:
    """Load the first `n` problems of a benchmark. An option that the source does not use is refused.

    Arguments:
        source: a benchmark of the table above; a .json, .jsonl, .csv or .parquet file; a folder written by
            `Dataset.save_to_disk`; or a Hub data set as owner/name.
        n: at most how many; None means all (200 in the pocket world, which makes as many as are asked for).
        split: of a benchmark, `test` (None) or, where there is one, `train` (the pocket world has `dev` too); of a
            folder or another Hub data set its own.
        file: a file with the published columns of the benchmark `source`, to be read in the place of the Hub. Without
            it, the benchmark's file in the folder `$MIXDISTILL_DATA` is read if there is one, else the Hub at a pinned
            commit.
        prompt: how to ask, a name in `PROMPTS`, such as `gsm8k_boxed`; empty means as its answer_format is asked.
        columns: names of the columns that hold `question`, `answer` and, if there are, `id`, `level` and `subject`; for
            sources that are no benchmark. Without an `id`, name and row of the source are the identity.
        answer_format: how to ask and grade problems of such sources: `math` (None) or `gsm8k`.
        revision: commit of a Hub data set, for a benchmark in the place of the pinned one.

    A benchmark's row without a gold answer is left out, with a warning that counts it.

    Raises ValueError: unknown source, split, answer_format or column; a question or answer that is empty; an option
    that the source does not use; more pocket problems than there are.
    """
    source, n = text("source", source), whole("n", n, optional=True)
    split, revision = text("split", split, optional=True), text("revision", revision, optional=True)
    file = text("file", file, optional=True)
    choice("prompt", prompt, (*PROMPTS, ""))
    choice("answer_format", answer_format, ANSWER_FORMATS, optional=True)
    own = {"columns": columns, "answer_format": answer_format}
    if source.startswith("pocket/"):
        if source not in POCKET_TIERS:
            raise ValueError(f"unknown benchmark {source!r}: the pocket world has {', '.join(POCKET_TIERS)}")
        only_used(source, "its problems are made here", file=file, prompt=prompt, revision=revision, **own)
        return _pocket_problems(N_POCKET if n is None else n, split or "test", source)
    if source in BENCHMARKS:
        only_used(source, "a benchmark has columns and a form of its own", **own)
        return _benchmark_problems(source, split or "test", file, revision, prompt)[:n]
    only_used(source, f"that is for a benchmark by name: {', '.join(BENCHMARKS)}", file=file)
    names = column_names(columns, ("question", "answer", "id", "level", "subject"))
    rows = read_table(source, list(names.values()), split=split, default_split="test", revision=revision)
    questions = column(rows, names["question"], source)
    answers = column(rows, names["answer"], source, numbers=True)
    name = file_name(source)
    ids = [f"{name}/{i}" for i in range(len(rows))]
    if "id" in names:
        ids = column(rows, names["id"], source, numbers=True)
    if len(set(ids)) < len(ids):
        raise ValueError(f"{source!r} has {len(ids)} problems of {len(set(ids))} different ids: give each its own")
    return [
        Problem(
            id=ids[i],
            question=questions[i],
            answer=answers[i],
            level=_label(row.get(names.get("level"))),
            source=name,
            answer_format=answer_format or "math",
            subject=_label(row.get(names.get("subject"))),
            prompt=prompt,
        )
        for i, row in enumerate(rows[:n])
    ]


def _benchmark_problems(name: str, split: str, file: str | None, revision: str | None, prompt: str) -> list[Problem]:
    benchmark = BENCHMARKS[name]
    choice("split", split, benchmark.splits)
    folder = os.environ.get("MIXDISTILL_DATA")
    kept = Path(folder or ".").expanduser() / benchmark.file.format(split=split)
    if file is None and revision is None and folder and kept.is_file():
        file = str(kept)
    where = {"revision": revision}
    if file is None and benchmark.hub is None:
        raise ValueError(
            f"{name!r} is read from a file: put {benchmark.file!r} into the folder $MIXDISTILL_DATA, or give it as "
            "file (docs/real-models.md says where it comes from)"
        )
    if file is None:
        revision, hub_split = revision or benchmark.revision, benchmark.hub_split or split
        where = {"split": hub_split, "revision": revision, "config": benchmark.config}
    optional = ["problem", "question", "context", benchmark.id, benchmark.level, benchmark.subject]
    rows = read_table(file or benchmark.hub, [benchmark.answer], optional, **where)
    # AMC's file carries the text twice, under both names.
    asked = next((c for c in (benchmark.question, "problem", "question") if c in rows[0]), benchmark.question)
    questions = column(rows, asked, file or benchmark.hub)
    golds = [benchmark.gold(row) for row in rows]
    without = [i for i, gold in enumerate(golds) if not gold]
    if without:
        warnings.warn(
            f"{len(without)} of {len(rows)} problems of {name!r} have no gold answer and are left out (rows "
            f"{without[:5]})",
            stacklevel=3,
        )
    return [
        Problem(
            id=f"{name}/{split}/{row.get(benchmark.id, i)}".replace(f"/{split}/{split}/", f"/{split}/"),
            question="\n\n".join(part for part in (row.get("context"), question) if part),
            answer=gold,
            level=_label(row.get(benchmark.level)).removeprefix("Level "),
            source=name,
            answer_format=benchmark.answer_format,
            subject=_label(row.get(benchmark.subject)),
            prompt=prompt,
        )
        for i, (row, question, gold) in enumerate(zip(rows, questions, golds, strict=True))
        if gold
    ]


def _label(value: object) -> str:
    return "" if value is None else str(value)


def _pocket_problems(n: int, split: str, tier: str) -> list[Problem]:
    """The first `n` of a tier and split; the same for the same arguments."""
    level = POCKET_TIERS[tier]
    # The text is the identity: two sets that hold the same question hold the same problem.
    return [
        Problem(f"{split}/{mystery.text}", mystery.text, mystery.answer, str(level), tier, "pocket")
        for mystery in pocket_mysteries(n, split, [level])
    ]


def pocket_mysteries(n: int, split: str, levels: list[int], seed: int = 0) -> list[world.Mystery]:
    """`n` different mysteries of a split, the levels in turn. Raises ValueError if a level runs out before."""
    choice("split", split, world.SPLITS)
    most = min(world.N_PROBLEMS[split][level] * len(levels) + i for i, level in enumerate(levels))
    if n > most:
        raise ValueError(f"n is {n}: the split {split!r} has {most} such problems, ask for at most as many")
    rng = Random(f"problems/{split}/{levels}/{seed}")
    found: dict[str, world.Mystery] = {}
    while len(found) < n:
        mystery = world.random_mystery(rng, levels[len(found) % len(levels)], split)
        found.setdefault(mystery.text, mystery)
    return list(found.values())


def plain_question(question: str) -> str:
    """A question without what copies of it differ in: case, white space and punctuation outside numbers."""
    plain = unicodedata.normalize("NFKC", question).casefold()
    return "".join(re.sub(r'[.,;:?"](?!\d)', "", plain).split())
