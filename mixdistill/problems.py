"""Problems: what students are trained on and tested with. One list of `Problem` whatever the world."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from datasets import Dataset, load_dataset

from mixdistill.grade import KINDS
from mixdistill.pocket import world

# The pocket world's three benchmarks: 1, 2 or 3 operators in the question.
POCKET_TIERS = {"pocket/easy": 1, "pocket/medium": 2, "pocket/hard": 3}
POCKET_N = 200


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer. `kind` says how to ask it (`chat.PROMPTS`) and how to grade it (`grade`)."""

    id: str
    question: str
    answer: str
    level: str
    source: str
    kind: str


def load_problems(
    source: str,
    *,
    n: int | None = None,
    split: str = "test",
    columns: Mapping[str, str] | None = None,
    kind: str = "math",
    revision: str | None = None,
) -> list[Problem]:
    """Load the first `n` problems of a benchmark.

    Arguments:
        source: `pocket/easy`, `pocket/medium` or `pocket/hard`; or a local .json/.jsonl/.parquet/.csv file; or a Hub data set id.
        n: how many; None means all (200 in the pocket world).
        split: for the pocket world `train`, `dev` or `test`; for the Hub the data set's own.
        columns: names of the columns that hold `question`, `answer` and, if there are, `id` and `level`.
        kind: how to ask and grade problems that are not of the pocket world: `math` or `gsm8k`.
        revision: the Hub data set's commit.

    Raises:
        ValueError: unknown source, split, kind or column, or no problem at all.
    """
    if n is not None and n < 1:
        raise ValueError(f"n is {n}: ask for at least 1 problem, or None for all")
    if source.startswith("pocket/"):
        if source not in POCKET_TIERS:
            raise ValueError(f"unknown benchmark {source!r}: the pocket world has {', '.join(POCKET_TIERS)}")
        return pocket_problems(POCKET_N if n is None else n, split, [POCKET_TIERS[source]])
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: use one of {', '.join(KINDS)}")
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
            kind=kind,
        )
        for i, row in enumerate(rows)
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
        f"{split}/{mystery.text}", mystery.text, str(mystery.answer), str(mystery.level), tier, kind="pocket"
    )


def load_table(source: str, split: str, revision: str | None = None) -> Dataset:
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
            table = load_dataset(source, split=split, revision=revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot load {source!r}, split {split!r}, from the Hub ({type(error).__name__}): check its name and split, "
                "the network, and for a gated data set `hf auth login`; or give a local file"
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
