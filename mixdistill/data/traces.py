"""Traces: worked solutions by teachers, as a `datasets.Dataset` with one row a trace.

Columns: `problem_id`, `question`, `response`, `teacher`, `style`, `answer_format`. Two trace sets are about the same
problem where their `problem_id` is the same.
"""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from weakref import WeakSet

from datasets import Dataset

from mixdistill.arguments import choice, instance, text, whole
from mixdistill.data.final_answers import ANSWER_FORMATS, final_answer
from mixdistill.data.pocket import world
from mixdistill.data.problems import Problem, plain_question, pocket_mysteries
from mixdistill.data.tables import column_names, file_name, flaw, join, of_pocket, only_used, read_table

COLUMNS = ("problem_id", "question", "response", "teacher", "style", "answer_format")
N_POCKET = 1600
CHECKED: WeakSet[Dataset] = WeakSet()  # a Dataset does not change, and to read a large one again takes a while
NO_BOX = "final answer without a box"


def load_traces(
    source: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    split: str | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    answer_format: str | None = None,
    style: str = "",
    unusable: str = "error",
    revision: str | None = None,
) -> Dataset:
    """Load a trace set. An option that the source does not use is refused.

    Arguments:
        source: `pocket/long`, `pocket/short` or a control (`world.TEACHERS`); a file, folder or Hub data set as in
            `load_problems`, such as `UWNSL/MATH_training_split_long_cot` (columns `problem` and `solution`). One with
            all the columns of a trace set is one that was saved, and is read as it was.
        n: the first so many; None means all (1,600 in the pocket world).
        seed: of the pocket world, whose sets of one seed are about the same problems.
        split, revision: of a folder or a Hub data set (None: `train`), and the commit of the latter.
        columns: names of the columns, as in `load_problems`, that hold `question`, `response` and, read only where it
            is named here, `problem_id`, a text or a number. Without a `problem_id` the question's text is the identity.
        answer_format: how the answer is written and asked for, as in `load_problems`.
        style: a label for the set, such as `long`; that of pocket traces is their teacher.
        unusable: traces that are empty or hold no final answer are refused (`error`) or left out (`drop`). Of `math`
            traces without a box, `error` tells how many there are; `drop` leaves them out too, and all but the first
            trace of a problem. What is left out is counted in a warning.

    Raises ValueError: unknown source, option or column; no rows; a trace that cannot be used; more pocket traces than
    there are.
    """
    source, n, seed = text("source", source), whole("n", n, optional=True), whole("seed", seed, low=0)
    split, revision = text("split", split, optional=True), text("revision", revision, optional=True)
    style, drop = text("style", style, empty=True), choice("unusable", unusable, ("error", "drop")) == "drop"
    choice("answer_format", answer_format, ANSWER_FORMATS, optional=True)
    names = column_names(columns, ("question", "response"), ("problem_id",))
    if of_pocket(source):
        teacher = choice("source", source, [f"pocket/{name}" for name in world.TEACHERS]).removeprefix("pocket/")
        own = {"columns": columns, "answer_format": answer_format, "unusable": "drop" if drop else None}
        only_used(source, "its traces are made here", split=split, style=style, revision=revision, **own)
        rng, teach = Random(f"{teacher}/{seed}"), world.TEACHERS[teacher]
        same = {"teacher": source, "style": teacher, "answer_format": "pocket"}
        return trace_set(
            {"problem_id": f"train/{one.text}", "question": one.text, "response": teach(one, rng), **same}
            for one in pocket_mysteries(n or N_POCKET, "train", list(world.LEVELS), seed)
        )
    only_used(source, "a seed draws pocket traces", seed=seed or None)
    labels = () if columns else [name for name in COLUMNS if name not in names]
    table = read_table(source, [*chain.from_iterable(names.values())], labels, split=split, revision=revision)
    if set(COLUMNS) <= table.keys():
        made = {name: table[name] for name in COLUMNS}
        for name, given in (("answer_format", answer_format), ("style", style)):
            others = [value for value in made[name] if given and value != given]
            if others:
                what = f"{name} is {given!r}, and {source!r} is a saved trace set, with a column {name} of its own"
                raise ValueError(f"{what}, such as {others[0]!r}: leave it out, or say which columns to read")
    else:
        questions, responses = join(table, names["question"]), join(table, names["response"])
        stripped = (str(question).strip().encode(errors="replace") for question in questions)
        hashed = (hashlib.sha256(question).hexdigest()[:16] for question in stripped)
        ids = join(table, names["problem_id"]) if "problem_id" in names else hashed
        same = {"teacher": file_name(source), "style": style, "answer_format": answer_format or "math"}
        made = {"problem_id": list(ids), "question": questions, "response": responses}
        made |= {name: [value] * len(questions) for name, value in same.items()}
    rows = [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]
    return trace_set(_usable(rows, repr(source), drop)[:n] if drop else _usable(rows[:n], repr(source)))


def trace_set(rows: Iterable[Mapping[str, object]]) -> Dataset:
    """A trace set of rows that were checked; ids become text."""
    traces = Dataset.from_list([{**row, "problem_id": str(row["problem_id"])} for row in rows])
    CHECKED.add(traces)
    return traces


def check_traces(traces: Dataset, name: str = "the traces") -> Dataset:
    """Return `traces` as they are; a set that was seen before is not read again. Raises ValueError: no Dataset, no
    rows, a column is missing, a value is empty or no text (a `problem_id` may be a whole number), or a trace has no
    final answer."""
    if not isinstance(traces, Dataset):
        ways = "load_traces, mix or collect_traces(...).traces"
        raise ValueError(f"{name} are a {type(traces).__name__}: give one datasets.Dataset, as from {ways}")
    if traces in CHECKED:
        return traces
    missing = [key for key in COLUMNS if key not in traces.column_names]
    if missing:
        what = f"{name} have no column {', '.join(map(repr, missing))}, only {', '.join(traces.column_names)}"
        raise ValueError(f"{what}: read them with load_traces(..., columns={{'question': ..., 'response': ...}})")
    if len(traces) == 0:
        raise ValueError(f"{name} hold no rows: give at least one")
    _usable(traces.select_columns(list(COLUMNS)).to_list(), name)
    CHECKED.add(traces)
    return traces


def _usable(rows: list[dict[str, object]], name: str, drop: bool = False) -> list[dict[str, object]]:
    """The rows that hold a trace: all of them or, with `drop`, those with a marked answer, one a problem."""
    usable: list[dict[str, object]] = []
    faults: dict[str, list[int]] = {}
    seen: dict[str, str] = {}  # questions by problem
    for number, row in enumerate(rows):
        problem, fault, question = str(row["problem_id"]).strip(), _fault(row), str(row["question"])
        if drop and not fault and problem in seen:
            same = plain_question(seen[problem]) == plain_question(question)
            fault = "further trace of a problem" if same else "problem_id of another question before"
        if fault:
            faults.setdefault(fault, []).append(number)
        if not fault or (fault == NO_BOX and not drop):
            usable.append(row)
            seen.setdefault(problem, question)
    if faults:
        counts = [f"{fault} in {len(at)} of {len(rows)} rows (the first: {at[:5]})" for fault, at in faults.items()]
        found = f"{name}: {'; '.join(counts)}"
        if len(usable) < len(rows) and not (drop and usable):
            raise ValueError(f"{found}: mend or drop them, or name the right columns or answer_format")
        warnings.warn(f"{found}: {'left out' if drop else 'used as they are'}", stacklevel=3)
    return usable


def _fault(row: Mapping[str, object]) -> str:
    """Why a trace cannot be used, or only with a warning; empty if nothing is wrong."""
    for column in ("problem_id", "question", "response", "answer_format"):
        if found := flaw(row[column], numbers=column == "problem_id"):
            return f"{column} {found}"
    for column in ("teacher", "style"):
        if not isinstance(row[column], str):
            return f"{column} is no text"
    response, answer_format = str(row["response"]), str(row["answer_format"])
    if final_answer(response, answer_format, strict=answer_format == "math") is not None:
        return ""
    return "no final answer" if final_answer(response, answer_format) is None else NO_BOX


def drop_overlap(traces: Dataset, problems: Sequence[Problem]) -> Dataset:
    """The traces whose question is none of the (test) problems' (`plain_question`); a warning counts the others."""
    whole("the number of problems", len(instance("problems", problems, Sequence)))
    tested = {plain_question(instance("a problem", problem, Problem).question) for problem in problems}
    rows = [i for i, asked in enumerate(check_traces(traces)["question"][:]) if plain_question(asked) not in tested]
    if not rows:
        raise ValueError(f"all {len(traces)} traces are about problems of the test: give traces of other problems")
    n_left_out = len(traces) - len(rows)
    if n_left_out:
        warnings.warn(f"{n_left_out} of {len(traces)} traces are about problems of the test: left out", stacklevel=2)
    return traces.select(rows) if n_left_out else traces
