"""Traces: worked solutions by teachers, as a `datasets.Dataset` with one row a trace.

Columns: `problem_id`, `question`, `response`, `teacher`, `style`, `answer_format`. Two trace sets are about the same
problem where their `problem_id` is the same.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from weakref import WeakSet

from datasets import Dataset

from mixdistill.arguments import choice, text, whole
from mixdistill.data.final_answers import ANSWER_FORMATS, final_answer
from mixdistill.data.pocket import world
from mixdistill.data.problems import Problem, plain_question, pocket_mysteries
from mixdistill.data.tables import column, column_names, file_name, flaw, only_used, read_table, texts

COLUMNS = ("problem_id", "question", "response", "teacher", "style", "answer_format")
N_POCKET = 1600
CHECKED = WeakSet()  # sets that `check_traces` has seen: a Dataset does not change, and a large one takes a while


def load_traces(
    source: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    answer_format: str | None = None,
    style: str = "",
    unusable: str = "error",
    revision: str | None = None,
) -> Dataset:
    """Load a trace set. An option that the source does not use is refused.

    Arguments:
        source: `pocket/long`, `pocket/short` or a control (`world.TEACHERS`); a .json, .jsonl, .csv or .parquet file; a
            folder written by `Dataset.save_to_disk`; or a Hub data set as owner/name, such as
            `UWNSL/MATH_training_split_long_cot` (columns `problem` and `solution`).
        n: at most how many; None means all (1,600 in the pocket world, which makes as many as are asked for).
        seed: pocket world only: which problems are drawn, and where the long teacher begins. The pocket trace sets of
            one seed are about the same problems.
        split: of a Hub data set (None: `train`), or of a folder that holds several.
        revision: commit of a Hub data set.
        columns: names of the columns that hold `question`, `response` and, if there is one, `problem_id`, a text or a
            number. Without a `problem_id` the question's text is the identity.
        answer_format: how the answer is written and asked for: `math` (None) or `gsm8k`.
        style: a label for the set, such as `long`; that of pocket traces is their teacher.
        unusable: what becomes of traces that are empty, hold no final answer, or are not the first of their problem:
            `error` refuses what `mix` could not use, `drop` leaves them out with a warning that counts them.

    Raises ValueError: unknown source, option or column; no rows; a trace that is empty or holds no final answer; an
    option that the source does not use; more pocket traces than there are.
    """
    source, n, seed = text("source", source), whole("n", n, optional=True), whole("seed", seed, low=0)
    split, revision = text("split", split, optional=True), text("revision", revision, optional=True)
    style = text("style", style, empty=True)
    choice("answer_format", answer_format, ANSWER_FORMATS, optional=True)
    choice("unusable", unusable, ("error", "drop"))
    drop = unusable == "drop"
    if source.startswith("pocket/"):
        given = {
            "split": split,
            "columns": columns,
            "answer_format": answer_format,
            "style": style,
            "revision": revision,
        }
        only_used(source, "its traces are made here", unusable="drop" if drop else None, **given)
        teacher = choice("source", source, [f"pocket/{name}" for name in world.STYLES]).removeprefix("pocket/")
        return _pocket_traces(teacher, N_POCKET if n is None else n, seed)
    only_used(source, "a seed draws pocket traces", seed=seed or None)
    names = column_names(columns, ("question", "response", "problem_id"))
    rows = read_table(source, list(names.values()), split=split, revision=revision)
    if drop:
        rows = _usable(rows, names, answer_format or "math", source)
    questions, responses = (column(rows, names[field], source) for field in ("question", "response"))
    ids = column(rows, names["problem_id"], source, numbers=True) if "problem_id" in names else map(_text_id, questions)
    table = {
        "problem_id": list(ids)[:n],
        "question": questions[:n],
        "response": responses[:n],
        "teacher": [file_name(source)] * len(rows[:n]),
        "style": [style] * len(rows[:n]),
        "answer_format": [answer_format or "math"] * len(rows[:n]),
    }
    return check_traces(Dataset.from_dict(table))


def _pocket_traces(style: str, n: int, seed: int) -> Dataset:
    """`n` traces of a teacher of the pocket world, a third of the problems from each tier."""
    rng = Random(f"{style}/{seed}")
    rows = [
        {
            "problem_id": f"train/{mystery.text}",
            "question": mystery.text,
            "response": world.TEACHERS[style](mystery, rng),
            "teacher": f"pocket/{style}",
            "style": style,
            "answer_format": "pocket",
        }
        for mystery in pocket_mysteries(n, "train", list(world.LEVELS), seed)
    ]
    return check_traces(Dataset.from_list(rows))


def _usable(rows: list[dict], names: Mapping[str, str], answer_format: str, source: str) -> list[dict]:
    """The rows that `mix` can use, one a problem; a warning counts the others."""
    kept, counts = {}, {"empty or no text": 0, "without final answer": 0, "further traces of a problem": 0}
    for row in rows:
        question, response = row.get(names["question"]), row.get(names["response"])
        problem = row.get(names["problem_id"]) if "problem_id" in names else question
        if flaw(question) or flaw(response) or flaw(problem, numbers=True):
            counts["empty or no text"] += 1
        elif final_answer(response, answer_format) is None:
            counts["without final answer"] += 1
        elif str(problem).strip() in kept:
            counts["further traces of a problem"] += 1
        else:
            kept[str(problem).strip()] = row
    if not kept:
        raise ValueError(
            f"no trace of {source!r} can be used ({counts}): name the right columns or answer_format, or give another "
            "set"
        )
    if len(kept) < len(rows):
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        warnings.warn(
            f"{len(rows) - len(kept)} of {len(rows)} traces of {source!r} are left out: {reasons}", stacklevel=3
        )
    return list(kept.values())


def check_traces(traces: Dataset, name: str = "the traces") -> Dataset:
    """Return `traces` as they are; a set that was seen before is not read again.

    Raises ValueError: no Dataset, no rows, a column is missing, a value is empty or no text (a `problem_id` may be a
    whole number), or a trace has no final answer.
    """
    if not isinstance(traces, Dataset):
        raise ValueError(f"{name} are a {type(traces).__name__}: give one datasets.Dataset, as from load_traces or mix")
    if traces in CHECKED:
        return traces
    missing = [key for key in COLUMNS if key not in traces.column_names]
    if missing:
        raise ValueError(
            f"{name} have no column {', '.join(map(repr, missing))}, only {', '.join(traces.column_names)}: "
            "read them with load_traces(..., columns={'question': ..., 'response': ...})"
        )
    if len(traces) == 0:
        raise ValueError(f"{name} hold no rows: give at least one")
    for key in ("problem_id", "question", "response", "answer_format"):
        texts(traces[key][:], f"column {key!r} of {name}", numbers=key == "problem_id")
    answers = list(map(final_answer, traces["response"][:], traces["answer_format"][:]))
    bad = [i for i, answer in enumerate(answers) if answer is None]
    if bad:
        answer_format = traces["answer_format"][bad[0]]
        raise ValueError(
            f"{len(bad)} of {len(traces)} traces hold no final answer of answer_format {answer_format!r} (the first: "
            f"rows {bad[:5]}): drop them with traces.filter(...), or name the right column or answer_format"
        )
    CHECKED.add(traces)
    return traces


def drop_overlap(traces: Dataset, problems: Sequence[Problem]) -> Dataset:
    """The traces whose question is none of the (test) problems', whatever its case and white space; a warning counts
    the others.
    """
    tested = {plain_question(problem.question) for problem in problems}
    rows = [i for i, asked in enumerate(check_traces(traces)["question"][:]) if plain_question(asked) not in tested]
    if not rows:
        raise ValueError(f"all {len(traces)} traces are about problems of the test: give traces of other problems")
    if len(rows) == len(traces):
        return traces
    warnings.warn(
        f"{len(traces) - len(rows)} of {len(traces)} traces are about problems of the test: left out", stacklevel=2
    )
    return check_traces(traces.select(rows))


def _text_id(question: str) -> str:
    return hashlib.sha256(question.strip().encode()).hexdigest()[:16]
