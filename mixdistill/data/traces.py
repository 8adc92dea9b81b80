"""Traces: worked solutions by teachers, as a `datasets.Dataset` with one row a trace.

Columns: `problem_id`, `question`, `response`, `teacher`, `style`, `answer_format`. Two trace sets are about the same problem where
their `problem_id` is the same.
"""

import hashlib
import warnings
from collections.abc import Mapping
from random import Random

import pandas as pd
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mixdistill.data.final_answers import ANSWER_FORMATS, final_answer
from mixdistill.data.pocket import world
from mixdistill.data.problems import load_table, pocket_mysteries, require_columns

COLUMNS = ("problem_id", "question", "response", "teacher", "style", "answer_format")


POCKET_N = 1600


def load_traces(
    source: str,
    *,
    n: int | None = None,
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    answer_format: str = "math",
    style: str = "",
    unusable: str = "error",
    revision: str | None = None,
) -> Dataset:
    """Load a trace set.

    Arguments:
        source: `pocket/long`, `pocket/short` or a control (`world.TEACHERS`); or a local .json/.jsonl/.parquet/.csv file; or a Hub data set id, such as
            `UWNSL/MATH_training_split_long_cot` (columns `problem` and `solution`).
        n: how many; None means all (1,600 in the pocket world).
        seed: pocket world only: which problems are drawn, and where the long teacher begins. The pocket
            trace sets of one seed are about the same problems.
        split, revision: of a Hub data set.
        columns: names of the columns that hold `question`, `response` and, if there is one, `problem_id`. Without a
            `problem_id` the question's text is the identity.
        answer_format: how the answer is written and asked for: `math` or `gsm8k`.
        style: a label for the set, such as `long`.
        unusable: what becomes of traces that are empty, hold no final answer, or are not the first of their problem: `error`
            refuses what `mix` could not use, `drop` leaves them out with a warning that counts them.

    Raises:
        ValueError: unknown source, style or column; no rows; a trace that is empty or holds no final answer.
    """
    if n is not None and n < 1:
        raise ValueError(f"n is {n}: ask for at least 1 trace, or None for all")
    if source.startswith("pocket/"):
        style = source.removeprefix("pocket/")
        if style not in world.STYLES:
            raise ValueError(
                f"unknown traces {source!r}: the pocket world has {', '.join(f'pocket/{s}' for s in world.STYLES)}"
            )
        return pocket_traces(style, n or POCKET_N, seed)
    if answer_format not in ANSWER_FORMATS:
        raise ValueError(f"unknown answer_format {answer_format!r}: use one of {', '.join(ANSWER_FORMATS)}")
    if unusable not in ("error", "drop"):
        raise ValueError(f"unusable is {unusable!r}: use 'error', or 'drop' to leave such traces out")
    names = {"question": "question", "response": "response", **(columns or {})}
    table = load_table(source, split, revision)
    if unusable == "drop":
        table = _usable(table, names, answer_format, source)
    require_columns(table, list(names.values()), source)
    rows = [
        {
            "problem_id": str(row[names["problem_id"]]) if "problem_id" in names else _text_id(row[names["question"]]),
            "question": row[names["question"]],
            "response": row[names["response"]],
            "teacher": source,
            "style": style,
            "answer_format": answer_format,
        }
        for row in table.select(range(min(n or len(table), len(table))))
    ]
    return check_traces(Dataset.from_list(rows))


def pocket_traces(style: str, n: int, seed: int) -> Dataset:
    """`n` traces of a teacher of the pocket world, a third of the problems from each tier."""
    rng = Random(f"{style}/{seed}")
    rows = []
    for mystery in pocket_mysteries(n, "train", list(world.LEVELS), seed):
        rows.append(
            {
                "problem_id": f"train/{mystery.text}",
                "question": mystery.text,
                "response": world.TEACHERS[style](mystery, rng),
                "teacher": f"pocket/{style}",
                "style": style,
                "answer_format": "pocket",
            }
        )
    return Dataset.from_list(rows)


def _usable(table: Dataset, names: Mapping[str, str], answer_format: str, source: str) -> Dataset:
    """The rows that `mix` can use, one a problem; a warning counts the others."""
    if not set(names.values()) <= set(table.column_names):
        return table  # `require_columns` says so
    kept, seen, counts = [], set(), {"empty": 0, "without final answer": 0, "further traces of a problem": 0}
    problems = table[names.get("problem_id", names["question"])][:]
    for i, (problem, response) in enumerate(zip(problems, table[names["response"]][:], strict=True)):
        if not problem or not response:
            counts["empty"] += 1
        elif final_answer(response, answer_format) is None:
            counts["without final answer"] += 1
        elif str(problem).strip() in seen:
            counts["further traces of a problem"] += 1
        else:
            seen.add(str(problem).strip())
            kept.append(i)
    if not kept:
        raise ValueError(
            f"no trace of {source!r} can be used ({counts}): name the right columns or answer_format, or give another set"
        )
    if len(kept) < len(table):
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
        warnings.warn(
            f"{len(table) - len(kept)} of {len(table)} traces of {source!r} are left out: {reasons}", stacklevel=3
        )
    return table.select(kept)


def check_traces(traces: Dataset) -> Dataset:
    """Return `traces` as they are; raise ValueError if a column is missing or a trace has no final answer."""
    missing = [name for name in COLUMNS if name not in traces.column_names]
    if missing:
        raise ValueError(
            f"the traces have no column {', '.join(map(repr, missing))}, only {', '.join(traces.column_names)}: "
            "read them with load_traces(..., columns={'question': ..., 'response': ...})"
        )
    if len(traces) == 0:
        raise ValueError("the traces hold no rows: give at least one")
    bad = [
        i
        for i, (response, answer_format) in enumerate(
            zip(traces["response"][:], traces["answer_format"][:], strict=True)
        )
        if not response or final_answer(response, answer_format) is None
    ]
    if bad:
        answer_format = traces["answer_format"][bad[0]]
        raise ValueError(
            f"{len(bad)} of {len(traces)} traces hold no final answer of answer_format {answer_format!r} (the first: rows {bad[:5]}): drop them "
            "with traces.filter(...), or name the right column or answer_format"
        )
    return traces


def token_lengths(traces: Dataset, tokenizer: PreTrainedTokenizerBase) -> pd.Series:
    """Tokens of every response by a student's tokenizer (`load_student(name).tokenizer`), without the stop token.

    `token_lengths(...).describe()` gives mean and quartiles; long over short, compare the means.
    """
    ids = tokenizer(traces["response"][:], add_special_tokens=False)["input_ids"]
    return pd.Series([len(tokens) for tokens in ids], index=traces["problem_id"][:], name="tokens")


def _text_id(question: str) -> str:
    return hashlib.sha256(question.strip().encode()).hexdigest()[:16]
