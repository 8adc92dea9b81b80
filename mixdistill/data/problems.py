"""Problems: what students are trained on and tested with. One list of `Problem` whatever the world.

| benchmark       | problems           | Hub data set                         | local file in `$MIXDISTILL_DATA` |
|-----------------|--------------------|--------------------------------------|----------------------------------|
| `math`          | 5,000 (train 7,500)| DigitalLearningGmbH/MATH-lighteval   | `math_test.jsonl`                |
| `math500`       | 500                | HuggingFaceH4/MATH-500               | `MATH-500.jsonl`                 |
| `gsm8k`         | 1,319 (train 7,473)| openai/gsm8k                         | `gsm8k_test.jsonl`               |
| `amc23`         | 40                 | math-ai/amc23                        | `amc23.jsonl`                    |
| `aime24`        | 30                 | HuggingFaceH4/aime_2024              | `aime24.jsonl`                   |
| `olympiadbench` | 674 (file: 675)    | Hothan/OlympiadBench                 | `olympiadbench.jsonl`            |
| `pocket/easy`, `pocket/medium`, `pocket/hard` | 200 each | made here        |                                  |
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from datasets import Dataset, load_dataset

from mixdistill.data.final_answers import ANSWER_FORMATS, final_answer
from mixdistill.data.pocket import world

# The pocket world's three benchmarks: the levels of `world`.
POCKET_TIERS = {"pocket/easy": 1, "pocket/medium": 2, "pocket/hard": 3}
POCKET_N = 200


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    `answer_format` says how the answer is graded (`grade`), `prompt` how the question is asked (`chat.PROMPTS`; empty: as its answer_format is).
    """

    id: str
    question: str
    answer: str
    level: str
    source: str
    answer_format: str
    subject: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Where a published benchmark lies, and how one of its rows becomes a problem; `gold` returns None where it has none."""

    hub: str
    revision: str  # commit of the Hub data set
    gold: Callable[[dict], str | None]
    answer_format: str = "math"
    question: str = "problem"
    config: str | None = None
    splits: tuple[str, ...] = ("test",)
    hub_split: str | None = None  # where the Hub calls its only split otherwise
    file: str = ""  # its name in $MIXDISTILL_DATA, `{split}` filled in
    id: str = "id"
    level: str = "level"
    subject: str = "subject"


def _gsm8k_gold(row: dict) -> str | None:
    return final_answer(row["answer"], "gsm8k")


def _math_gold(row: dict) -> str | None:
    return final_answer(row["solution"], "math")


def _plain_gold(row: dict) -> str | None:
    """AMC's 27.0 is 27; AIME's `033` stays as it is, the grader knows."""
    answer = row["answer"]
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip() or None


def _olympiad_gold(row: dict) -> str | None:
    """The list of final answers as one text, as published: with its `$`, without its unit."""
    return ", ".join(answer.strip() for answer in row["final_answer"] or []) or None


BENCHMARKS = {
    "math": Benchmark(
        hub="DigitalLearningGmbH/MATH-lighteval",
        revision="0530c78699ea5e8eb5530600900e1f328b48acad",
        gold=_math_gold,
        splits=("train", "test"),
        file="math_{split}.jsonl",
        subject="type",
    ),
    "math500": Benchmark(
        hub="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        gold=_plain_gold,
        file="MATH-500.jsonl",
        id="unique_id",
    ),
    "gsm8k": Benchmark(
        hub="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        gold=_gsm8k_gold,
        answer_format="gsm8k",
        question="question",
        config="main",
        splits=("train", "test"),
        file="gsm8k_{split}.jsonl",
    ),
    "amc23": Benchmark(
        hub="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        gold=_plain_gold,
        question="question",
        file="amc23.jsonl",
    ),
    "aime24": Benchmark(
        hub="HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        gold=_plain_gold,
        hub_split="train",
        file="aime24.jsonl",
    ),
    "olympiadbench": Benchmark(
        hub="Hothan/OlympiadBench",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        gold=_olympiad_gold,
        question="question",
        config="OE_TO_maths_en_COMP",
        hub_split="train",
        file="olympiadbench.jsonl",
        subject="subfield",
    ),
}


def load_problems(
    source: str,
    *,
    n: int | None = None,
    split: str = "test",
    file: str | Path | None = None,
    prompt: str = "",
    columns: Mapping[str, str] | None = None,
    answer_format: str = "math",
    revision: str | None = None,
) -> list[Problem]:
    """Load the first `n` problems of a benchmark.

    Arguments:
        source: a benchmark of the table above; or a local .json/.jsonl/.parquet/.csv file; or a Hub data set id.
        n: how many; None means all (200 in the pocket world).
        split: of a benchmark, `test`, or `train` where there is one (the pocket world has `dev` too); for another Hub data
            set its own.
        file: a local file with the published columns of the benchmark `source`, to be read in the place of the Hub. Without it,
            the benchmark's file in the folder `$MIXDISTILL_DATA` is read if there is one, else the Hub at a pinned commit.
        prompt: how to ask, a name in `chat.PROMPTS`, such as `gsm8k_boxed`; empty means as its answer_format is asked.
        columns: names of the columns that hold `question`, `answer` and, if there are, `id`, `level` and `subject`; for sources
            that are no benchmark.
        answer_format: how to ask and grade problems of such sources: `math` or `gsm8k`.
        revision: commit of a Hub data set, for a benchmark in the place of the pinned one.

    A benchmark's row without a gold answer is left out, with a warning that counts it.

    Raises:
        ValueError: unknown source, split, answer_format or column, or no problem at all.
    """
    if n is not None and n < 1:
        raise ValueError(f"n is {n}: ask for at least 1 problem, or None for all")
    if source.startswith("pocket/"):
        if source not in POCKET_TIERS:
            raise ValueError(f"unknown benchmark {source!r}: the pocket world has {', '.join(POCKET_TIERS)}")
        return pocket_problems(POCKET_N if n is None else n, split, [POCKET_TIERS[source]])
    if answer_format not in ANSWER_FORMATS:
        raise ValueError(f"unknown answer_format {answer_format!r}: use one of {', '.join(ANSWER_FORMATS)}")
    if source in BENCHMARKS:
        return _benchmark_problems(source, split, file, revision, prompt)[:n]
    if file is not None:
        raise ValueError(
            f"file is for a benchmark by name ({', '.join(BENCHMARKS)}), and {source!r} is none: give the file as source, with columns"
        )
    names = {"question": "question", "answer": "answer", **(columns or {})}
    table = load_table(source, split, revision)
    require_columns(table, list(names.values()), source)
    rows = table.select(range(min(n or len(table), len(table))))
    return [
        Problem(
            id=str(row[names["id"]]) if "id" in names else f"{source}/{i}",
            question=row[names["question"]],
            answer=str(row[names["answer"]]),
            level=str(row[names["level"]]) if "level" in names else "",
            source=source,
            answer_format=answer_format,
            subject=str(row[names["subject"]]) if "subject" in names else "",
            prompt=prompt,
        )
        for i, row in enumerate(rows)
    ]


def _benchmark_problems(
    name: str, split: str, file: str | Path | None, revision: str | None, prompt: str
) -> list[Problem]:
    benchmark = BENCHMARKS[name]
    if split not in benchmark.splits:
        raise ValueError(f"{name!r} has no split {split!r}: use {' or '.join(benchmark.splits)}")
    folder = os.environ.get("MIXDISTILL_DATA")
    kept = Path(folder or ".") / benchmark.file.format(split=split)
    if file is None and folder and kept.is_file():
        file = kept
    if file is None:
        table = load_table(
            benchmark.hub, benchmark.hub_split or split, revision or benchmark.revision, benchmark.config
        )
    else:
        table = load_table(str(file), split)
    # AMC's rows carry the text twice, under both names.
    question = next((c for c in (benchmark.question, "problem", "question") if c in table.column_names), "question")
    require_columns(table, [question], str(file or benchmark.hub))
    rows = table.to_list()
    try:
        golds = [benchmark.gold(row) for row in rows]
    except KeyError as error:
        raise ValueError(
            f"{str(file or benchmark.hub)!r} has no column {error}, only {', '.join(table.column_names)}: "
            f"it lacks the published columns of {name!r}; read it as a source of your own, with columns"
        ) from error
    without = [i for i, gold in enumerate(golds) if not gold]
    if without:
        warnings.warn(
            f"{len(without)} of {len(rows)} problems of {name!r} have no gold answer and are left out (rows {without[:5]})",
            stacklevel=3,
        )
    return [
        Problem(
            id=f"{name}/{split}/{row.get(benchmark.id, i)}".replace(f"/{split}/{split}/", f"/{split}/"),
            question="\n\n".join(text for text in (row.get("context"), row[question]) if text),
            answer=gold,
            level=str(row.get(benchmark.level, "")).removeprefix("Level "),
            source=name,
            answer_format=benchmark.answer_format,
            subject=str(row.get(benchmark.subject, "")),
            prompt=prompt,
        )
        for i, (row, gold) in enumerate(zip(rows, golds, strict=True))
        if gold
    ]


def pocket_problems(n: int, split: str, levels: list[int], seed: int = 0) -> list[Problem]:
    """`n` different pocket problems of one split, the levels in turn; the same for the same arguments."""
    return [as_problem(mystery, split) for mystery in pocket_mysteries(n, split, levels, seed)]


def pocket_mysteries(n: int, split: str, levels: list[int], seed: int = 0) -> list[world.Mystery]:
    if split not in world.SPLITS:
        raise ValueError(f"unknown split {split!r}: the pocket world has {', '.join(world.SPLITS)}")
    rng = Random(f"problems/{split}/{levels}/{seed}")
    found: dict[str, world.Mystery] = {}
    while len(found) < n:
        mystery = world.random_mystery(rng, levels[len(found) % len(levels)], split)
        found.setdefault(mystery.text, mystery)
    return list(found.values())


def as_problem(mystery: world.Mystery, split: str) -> Problem:
    tier = {level: name for name, level in POCKET_TIERS.items()}[mystery.level]
    # The text is the identity: two sets that hold the same question hold the same problem.
    return Problem(
        f"{split}/{mystery.text}", mystery.text, str(mystery.answer), str(mystery.level), tier, answer_format="pocket"
    )


def load_table(source: str, split: str, revision: str | None = None, config: str | None = None) -> Dataset:
    """A local file, a folder written by `Dataset.save_to_disk`, or a Hub data set."""
    path = Path(source)
    if path.is_dir():
        return Dataset.load_from_disk(source)
    reader = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}.get(path.suffix)
    if path.is_file():
        if reader is None:
            raise ValueError(f"{source!r} ends in {path.suffix!r}: use a .json, .jsonl, .parquet or .csv file")
        try:
            table = load_dataset(reader, data_files=source, split="train")
        except Exception as error:  # each reader has its own; an empty file even ends in StopIteration
            raise ValueError(
                f"cannot read {source!r} as {reader} ({error!r}): mend the file or give another"
            ) from error
    elif reader is not None or source.count("/") > 1:
        raise ValueError(f"there is no file {source!r}: give an existing file, or a Hub data set as owner/name")
    else:
        try:
            table = load_dataset(source, config, split=split, revision=revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot load {source!r}, split {split!r}, from the Hub ({type(error).__name__}): check its name and split, "
                "the network, and for a gated data set `hf auth login`; or give a local file (a benchmark's also in $MIXDISTILL_DATA)"
            ) from error
    if len(table) == 0:
        raise ValueError(f"{source!r} holds no rows: give a data set with at least one")
    return table


def require_columns(table: Dataset, needed: list[str], source: str) -> None:
    """Raise ValueError if a column is missing, or empty in some row."""
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{source!r} has no column {', '.join(map(repr, missing))}, only {', '.join(table.column_names)}: "
            "name the right ones with columns={'question': ..., ...}"
        )
    for name in needed:
        empty = [i for i, value in enumerate(table[name][:]) if value is None or value == ""]
        if empty:
            raise ValueError(
                f"column {name!r} of {source!r} is empty in {len(empty)} of {len(table)} rows (the first: {empty[:5]}): "
                "fill or drop them"
            )
