"""Run every notebook headless, redraw the figures, print the gaps: `python -m mixdistill reproduce --scale pocket`."""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from traitlets.config import Config

from mixdistill import files
from mixdistill.arguments import choice
from mixdistill.data.problems import POCKET_TIERS
from mixdistill.results import stats
from mixdistill.runs import REPO, machine, runs_dir, shown
from mixdistill.study.plan import all_arms, check_machine
from mixdistill.study.scales import get_scale
from mixdistill.study.sweep import sweep

NOTEBOOKS = ("00_tour", "01_traces", "02_learnability_gap", "03_mix_distillation", "04_mechanism")
CONTROLS = ("unverified", "direct")  # of notebook 04
# Run by `--notebooks all`: in the pocket world they do not fit into the time of a first visit.
FURTHER = ("05_checks", "06_teacher_gap", "07_controls", "08_speaking_style", "09_beyond_mix", "10_what_moves_the_gap")


def reproduce(scale: str, n_seeds: int = 0, students: str = "", benchmarks: str = "", notebooks: str = "first") -> Path:
    """Train what notebooks 02 to 04 (all: to 05) show, in one sweep; then execute the notebooks in order, and print the
    gaps and where everything lies. What the run store holds is not computed again. Where neither code nor notebooks,
    figures or tables have changed since the last call, nothing is.

    Arguments:
        scale, n_seeds, students, benchmarks: as in `get_scale`.
        notebooks: `first` (`NOTEBOOKS`) or `all`, with those of `FURTHER`; of real models always all.

    Returns the folder of the executed notebooks, in the run store. Raises ValueError, before anything runs, for an
    unknown scale, a bad number of seeds, or a machine that can not run the scale.
    """
    made, started = get_scale(scale, n_seeds, students, benchmarks), time.monotonic()
    every = choice("notebooks", notebooks, ("first", "all")) == "all" or not made.pocket
    names = NOTEBOOKS + FURTHER if every else NOTEBOOKS
    check_machine(made)
    folder = runs_dir() / "notebooks" / made.figures_dir().name
    figures, note, code = made.figures_dir(), folder / f"done-{notebooks}.json", code_hash()
    known = made.pocket and set(made.benchmarks) <= POCKET_TIERS.keys()  # the note says nothing of what a file holds
    if known and _unchanged(note, code):
        print("Nothing has changed since the last call: notebooks, figures and tables are as it left them", flush=True)
    else:
        sweep(all_arms(made) if every else all_arms(made, CONTROLS), made)
        for number, name in enumerate(names, start=1):
            print(f"\n[{number}/{len(names)}] notebooks/{name}.ipynb, {scale} with {made.n_seeds} seeds", flush=True)
            given = {"SCALE": scale, "SEEDS": n_seeds, "STUDENTS": students, "BENCHMARKS": benchmarks}
            execute(REPO / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb", given | {"RESULTS": "live"})
        # Executed notebooks are never the same bytes twice, and a call with more of them writes these again.
        there = [*(folder / f"{name}.ipynb" for name in names), *runs_dir().glob("*/manifest.json")]
        same = [*figures.glob("*.*"), *figures.glob("data/*.*"), *runs_dir().glob("*/evaluations/*/scores.json")]
        left = dict.fromkeys(there) | {path: files.digest(path) for path in same if path.is_file()}
        files.write_json(note, {"code": code, "left": {os.path.relpath(path, folder): left[path] for path in left}})
    print(f"\nGaps, scale {scale}: accuracy of one recipe minus another, in points\n")
    print(stats.readable_gaps(pd.read_csv(figures / "data" / "gaps.csv")).to_string(index=False))
    print("\nFigures:", *(f"  {shown(path)}" for path in sorted(figures.glob("*.png"))), sep="\n")
    print(f"Data:      {shown(figures / 'data')}/*.csv")
    print(f"Notebooks: {shown(folder)}/*.ipynb, as executed")
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes")
    return folder


def code_hash() -> str:
    """What the notebooks are made of: package, notebooks, the paper's tables, versions of libraries."""
    folders = (REPO / "mixdistill", REPO / "notebooks", REPO / "figures" / "data" / "paper")
    found = sorted(path for folder in folders for path in folder.rglob("*.*") if path.is_file())
    hashes = {path.relative_to(REPO).as_posix(): files.digest(path) for path in found if path.suffix != ".pyc"}
    return files.key(hashes | machine()["versions"])


def _unchanged(note: Path, code: str) -> bool:
    """Whether a call ended with this code, its notebooks and runs are there, and figures and scores the same."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, OSError):  # no note, not of this place, unreadable
        last = files.read_json(note)
        left = [(note.parent / path, hashed) for path, hashed in last["left"].items()]
        same = all(path.is_file() and hashed in (None, files.digest(path)) for path, hashed in left)
        return same and last["code"] == code
    return False


def execute(source: Path, target: Path, parameters: Mapping[str, object], echo: bool = True) -> None:
    """Run one notebook with those of the parameters that it declares and that differ from its own; `echo`: print what
    its cells print. No path of this machine is written into it. Raises RuntimeError if a cell fails."""
    declared = {name: facts["default"].replace('"', "'") for name, facts in papermill.inspect_notebook(source).items()}
    given = {name: value for name, value in parameters.items() if repr(value) != declared.get(name, repr(value))}
    target.parent.mkdir(parents=True, exist_ok=True)
    # The kernel of this environment, not one of the same name in the home folder.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # Over TCP, ipykernel 7 warns of eavesdropping, and kernels of parallel runs could meet at one port; so over sockets
    # of the file system, whose paths may have 107 characters, in a folder of their own.
    with files.scratch("kernel") as sockets:
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        how = {"stdout_file": sys.stdout, "stderr_file": sys.stderr} if echo else {}
        try:
            papermill.execute_notebook(source, target, given, progress_bar=False, cwd=Path.cwd(), config=config, **how)
        except papermill.PapermillExecutionError as error:
            what = f"cell {error.exec_count} of {source.name} failed: {error.ename}: {error.evalue}"
            raise RuntimeError(f"{what} (what was finished is stored: mend the cause and run again)") from None
        finally:
            if target.is_file():  # papermill writes a failed notebook too
                notebook = nbformat.read(target, as_version=4)
                notebook.metadata["papermill"] |= {"input_path": source.name, "output_path": target.name}
                nbformat.write(notebook, target)
