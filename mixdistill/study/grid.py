"""A grid of arms, or of runs of a notebook, and one table of them all: `mixdistill sweep`, docs/cluster.md."""

import ast
import itertools
import re
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill

from mixdistill import files, runs
from mixdistill.arguments import choice, number
from mixdistill.data.student_files import fingerprint
from mixdistill.data.tables import local_path, of_pocket
from mixdistill.finetuning.finetune import TRAINING_VERSION
from mixdistill.grading.grade import GRADING_VERSION
from mixdistill.results import stats
from mixdistill.results.evaluate import EVALUATION_VERSION, Scores
from mixdistill.study import cluster
from mixdistill.study.jobs import Job
from mixdistill.study.plan import all_arms, check_machine
from mixdistill.study.reproduce import execute
from mixdistill.study.scales import CONTROLS, RECIPES, Arm, Scale, get_scale, recipe_arm, scale_files
from mixdistill.study.sweep import LACKING, run_all, run_arms, same_work

FOUND = re.compile(r"^#+ What was found\s*$", re.MULTILINE)  # the heading above the cell that says a notebook's result
# Of a grid of arms.
KEYS = {"STUDENT": "str", "RECIPE": "str", "ALPHA": "float", "SEED": "int"}
OWN = {"LR": "float", "EPOCHS": "int", "N_TRAIN": "int"}  # which take the place of the scale's
FLAGS = {"true": True, "false": False}
READ: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": lambda x: FLAGS[x.lower()]}
RESULTS = ["accuracy", "ci_low", "ci_high", "n_problems", "truncated", "no_answer", "mean_tokens"]


def sweep_grid(
    scale: str,
    n_seeds: int = 0,
    students: str = "",
    benchmarks: str = "",
    grid: Sequence[str] = (),
    notebook: str | None = None,
    on: str = "local",
) -> pd.DataFrame:
    """Run a grid of arms, or of a notebook, and write one table of its runs to the run store; what it holds is read.

    Arguments:
        scale, n_seeds, students, benchmarks: as in `get_scale`; a notebook gets them as SCALE, SEEDS, STUDENTS and
            BENCHMARKS.
        grid: texts `NAME=value,value`; every combination is a run. NAME is one of `KEYS` and `OWN` (no grid: the
            scale's own arms), or a parameter of the notebook.
        notebook: a path, or a name in `notebooks/`.
        on: as in `sweep`.

    Returns: one row a run: parameters, results, seconds, folder, and `cause`, why it failed (None if it did not). An
        arm's seconds are those of its training; a notebook's result is what the code cell has printed that follows
        the heading `What was found`; where there is none, the last code cell.

    Raises ValueError for an unknown name, or a value of another type, before anything runs.
    """
    made, on = get_scale(scale, n_seeds, students, benchmarks), cluster.check_place(on)
    if notebook is None:
        what, values = "arms", _parsed(grid, KEYS | OWN, "a grid of arms")
        arms = grid_arms(values, made)
        if on == "local" and not made.pocket:
            check_machine(made, arms)
        results = run_arms(arms, made, on=on)
        table = pd.DataFrame([_row(arm, result) for arm, result in zip(arms, results, strict=True)])
    else:
        source = _notebook(notebook)
        what, types = source.stem, _parameters(source)
        # Published answers in some rows and trained here in others would be no table.
        given = {"SCALE": scale, "SEEDS": n_seeds, "STUDENTS": students, "BENCHMARKS": benchmarks, "RESULTS": "live"}
        chosen = given | {"SCALE": scale != "pocket", "RESULTS": ""}
        if lacking := [name for name in given if chosen[name] and name not in types]:
            raise ValueError(f"the notebook {source.name} has no parameter {' and '.join(lacking)}: leave it out")
        values = {name: [value] for name, value in given.items() if name in types}
        known = {name: facts["inferred_type_name"] for name, facts in types.items()}
        values |= _parsed(grid, known, f"the notebook {source.name}")
        combinations = [dict(zip(values, picked, strict=True)) for picked in itertools.product(*values.values())]
        table = _notebook_table(source, combinations, on)
    named = files.label(what, scale, f"seeds={made.n_seeds}", students, benchmarks, *grid)
    path = runs.runs_dir() / "sweeps" / f"{named}.csv"
    _print(table)  # first, as the store may be one that can only be read
    files.replace(path, lambda temporary: table.to_csv(temporary, index=False))
    print(f"Table: {runs.shown(path)}")
    return table


def _parameters(source: Path) -> Mapping[str, Any]:
    """A notebook's parameters, as papermill sees them. Raises ValueError for a file that is no notebook."""
    try:
        nbformat.validate(nbformat.read(source, as_version=4))
        return papermill.inspect_notebook(source)
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise ValueError(f"{runs.shown(source)} is no notebook ({str(error).splitlines()[0]}): give another") from None


def _print(table: pd.DataFrame) -> None:
    """The table without what no run has, and what takes lines of its own below it: results of notebooks, and causes."""
    below = ["cause", *(["result", "folder"] if "result" in table else [])]
    told = table.drop(columns=below).dropna(axis="columns", how="all").set_axis(range(1, len(table) + 1))
    print(f"\n{told.to_string(na_rep='')}\n")
    for n, row in enumerate(table.to_dict("records"), start=1):
        if isinstance(row["cause"], str):
            print(f"FAILED: row {n}: {row['cause']}")
        elif "result" in row:
            print(f"row {n}: {row['folder']}\n{textwrap.indent(row['result'], '    ')}")


def grid_arms(values: Mapping[str, Sequence[Any]], scale: Scale) -> list[Arm]:
    """The arms of a grid, with keys of `KEYS` and `OWN`; what is not given is the scale's: students, seeds, and recipes
    with the untouched student. Raises ValueError for a value that no arm can have."""
    if not values:
        return all_arms(scale)
    if "ALPHA" in values and "RECIPE" in values:
        raise ValueError("the grid has ALPHA and RECIPE: a recipe is a share of its own, give one of the two")
    recipes = values.get("ALPHA") or values.get("RECIPE", ("untouched", *scale.recipes))
    seeds = values.get("SEED", range(scale.n_seeds))
    found: dict[tuple, Arm] = {}
    for student, seed, recipe in itertools.product(values.get("STUDENT", scale.students), seeds, recipes):
        if recipe == "untouched":  # the same for all seeds that begin with one base, whatever is trained later
            arm = Arm(student, recipe, None, seed)
            found.setdefault((student, scale.base(arm)), arm)
            continue
        if "ALPHA" in values:
            arm = Arm(student, f"alpha={recipe:g}", recipe, seed)
        else:
            arm = recipe_arm(student, choice("RECIPE", recipe, ["untouched", *RECIPES, *CONTROLS]), seed)
        for lr, epochs, n_train in itertools.product(*(values.get(name, [None]) for name in OWN)):
            made = replace(arm, lr=lr, epochs=epochs, n_train=n_train)
            found[same_work(made)] = made
    return list(found.values())


def _parsed(grid: Sequence[str], types: Mapping[str, str], of: str) -> dict[str, list[Any]]:
    """The values by name, each of the type that its name has."""
    values: dict[str, list[Any]] = {}
    for text in grid:
        name, _, listed = text.partition("=")
        if name not in types or name in values or not listed:
            raise ValueError(f"--grid has {text!r}: give NAME=value,value, each NAME once; {of} has {', '.join(types)}")
        values[name] = listed.split(",")
        if types[name] not in READ:  # as Python writes such values, and if it does not, texts
            with suppress(ValueError, SyntaxError):
                values[name] = ast.literal_eval(f"[{listed}]")
            continue
        try:
            values[name] = [READ[types[name]](value) for value in values[name]]
        except (ValueError, KeyError):
            raise ValueError(f"--grid has {name}={listed!r}: {name} is of the type {types[name]}") from None
        for value in values[name]:
            if isinstance(value, float):
                number(f"--grid's {name}", value)
    return values


def _row(arm: Arm, result: Scores | BaseException) -> files.Record:
    row: files.Record = {name.lower(): getattr(arm, name.lower()) for name in KEYS | OWN}
    if isinstance(result, BaseException):
        return row | {"cause": str(result)}
    folder, seconds = result.folder.parents[1], None
    found = stats.accuracy_table(result.items.assign(seed=arm.seed), []).to_dict("records")[0]
    if arm.alpha is not None:
        with suppress(files.Damaged):  # the scores are whole, and say so themselves
            seconds = files.read_json(folder / "manifest.json").get("seconds")
    row |= {name: found[name] for name in RESULTS}
    return row | {"seconds": seconds, "folder": runs.shown(folder), "cause": None}


def _notebook(name: str) -> Path:
    known = {path.stem: path for path in sorted((runs.REPO / "notebooks").glob("*.ipynb"))}
    path = Path(name).expanduser().absolute()
    if path.is_file():
        return path
    if name.removesuffix(".ipynb") in known:
        return known[name.removesuffix(".ipynb")]
    raise ValueError(f"there is no notebook {name!r}: give the path of one, or one of {', '.join(known)}")


def _notebook_table(source: Path, combinations: Sequence[dict[str, Any]], on: str) -> pd.DataFrame:
    cells = [cell.source for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "code"]
    jobs, rows, versions = {}, [], [TRAINING_VERSION, EVALUATION_VERSION, GRADING_VERSION]
    for given in combinations:
        named = [f"{name}={value}" for name, value in given.items()]
        read = _read(given)
        hashed = files.key({"cells": cells, "given": given, "versions": versions} | ({"read": read} if read else {}))
        folder = runs.runs_dir() / "notebooks" / f"{files.label(source.stem, *named)}-{hashed}"
        jobs[folder] = Job(" ".join([source.stem, *named]), _run, (source, folder, given), wide=True)
    todo = [job for folder, job in jobs.items() if not (folder / "run.json").is_file()]
    n_stored = len(jobs) - len(todo)
    print(f"{len(jobs)} runs of {source.name}, {n_stored} in the run store, {len(todo)} to run", flush=True)
    failed = run_all(todo, on=on)
    for folder, job in jobs.items():
        row = job.given[2] | {"result": None, "seconds": None, "folder": runs.shown(folder), "cause": None}
        result = {"cause": str(failed.get(job, LACKING))}
        if job not in failed and (folder / "run.json").is_file():
            try:
                result = files.read_json(folder / "run.json")
            except files.Damaged as error:
                result = {"cause": str(error)}
        rows.append(row | result)
    return pd.DataFrame(rows)


def _read(given: dict[str, Any]) -> dict[str, str]:
    """What identifies the files here that a notebook reads by its parameters, by name: those that one names, and the
    traces, tests and students of its scale."""
    parts = [part.strip() for value in given.values() for part in re.split("[,:]", str(value))]
    names = [part for part in parts if 0 < len(part) < 200]  # longer ones are no names of files
    read = {name: files.digest(path) for name in names if (path := local_path(name)).is_file()}
    with suppress(ValueError):  # the notebook itself says what is wrong with its scale
        of: dict[str, Any] = {"SCALE": "pocket", "SEEDS": 0, "STUDENTS": "", "BENCHMARKS": ""} | given
        scale = get_scale(of["SCALE"], of["SEEDS"], of["STUDENTS"], of["BENCHMARKS"])
        read |= scale_files(scale)
        own = [student for student in scale.students if not of_pocket(student) and local_path(student).exists()]
        read |= {student: fingerprint(student) for student in own}
    return read


def _run(source: Path, folder: Path, given: dict[str, Any]) -> str:
    """Execute a notebook in a folder of the run store, once, whoever asks for it; returns what to say."""

    def work() -> files.Record:
        started, executed = time.monotonic(), folder / source.name
        execute(source, executed, given, echo=False)
        return {"result": _printed(executed), "seconds": round(time.monotonic() - started, 1)}

    runs.once(folder, "run.json", work)
    return "executed"


def _printed(executed: Path) -> str:
    """A notebook's result, as `sweep_grid` says."""
    cells = nbformat.read(executed, as_version=4).cells
    heads = [n for n, cell in enumerate(cells) if cell.cell_type == "markdown" and FOUND.search(cell.source)]
    code = [cell for cell in cells[heads[0] if heads else 0 :] if cell.cell_type == "code"]
    told = code[:1] if heads else code[-1:]
    said = [output for cell in told for output in cell.outputs if output.get("name") != "stderr"]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in said]
    return "".join(texts).strip()
