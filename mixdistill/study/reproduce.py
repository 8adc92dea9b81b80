"""Run every notebook headless, redraw the figures, print the gaps: `python -m mixdistill reproduce --scale pocket`."""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
from traitlets.config import Config

from mixdistill.results import stats
from mixdistill.runs import REPO, runs_dir, shown
from mixdistill.study.plan import check_machine
from mixdistill.study.scales import SCALES, Scale, get_scale

LONGEST = 50  # characters of the folder of a kernel's sockets, whose whole paths may have 107
# The tour shows the results of the others, so it comes last.
NOTEBOOKS = ("01_traces", "02_learnability_gap", "03_mix_distillation", "04_mechanism", "00_tour")


def reproduce(scale: str, n_seeds: int = 0, publish: bool = False) -> None:
    """Execute the notebooks in order; what the run store holds is not computed again.

    The executed notebooks go to `notebooks/SCALE/` in the run store; with `publish` they also replace those in
    `notebooks/`.

    Raises ValueError, before anything runs, for an unknown scale, a bad number of seeds, a machine that can not run the
    scale, or `publish` of a scale that is not as it is defined.
    """
    made = get_scale(scale, n_seeds)
    if publish and made != SCALES["pocket"]:
        raise ValueError("only the scale pocket as it is defined is published: leave out --scale and --seeds")
    check_machine(made)
    started = time.time()
    folder = runs_dir() / "notebooks" / (scale if made == SCALES[scale] else made.figures_dir().name)
    for number, name in enumerate(NOTEBOOKS, start=1):
        print(f"\n[{number}/{len(NOTEBOOKS)}] notebooks/{name}.ipynb, {scale} with {made.n_seeds} seeds", flush=True)
        execute(REPO / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb", {"SCALE": scale, "SEEDS": n_seeds})
    if publish:
        for name in NOTEBOOKS:
            publish_notebook(folder / f"{name}.ipynb", REPO / "notebooks" / f"{name}.ipynb")
        for page in (REPO / "README.md", REPO / "docs" / "pocket-world.md"):
            page.write_text(with_results(page.read_text()))
    report(made, folder, time.time() - started)


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Run one notebook with those of the parameters that it declares and that differ from what it says itself."""
    declared = papermill.inspect_notebook(source)
    given = {name: value for name, value in parameters.items() if name in declared}
    given = {name: value for name, value in given.items() if repr(value) != declared[name]["default"].replace('"', "'")}
    target.parent.mkdir(parents=True, exist_ok=True)
    # The kernel of this environment, not one of the same name in the home folder.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # Over TCP, ipykernel 7 warns of eavesdropping, and kernels of parallel runs could meet at one port; so over sockets
    # of the file system, in a folder of their own, as a killed kernel leaves them behind.
    with tempfile.TemporaryDirectory(prefix=f"mixdistill-{os.getpid()}-", dir=sockets_folder()) as sockets:
        local = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        papermill.execute_notebook(
            source,
            target,
            given,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            cwd=REPO,
            config=Config({"KernelManager": local} if os.name == "posix" else {}),
        )


def sockets_folder() -> str:
    """Where the kernels' sockets lie: the temporary folder, or /tmp where its path is too long for a socket's.

    Folders that a killed process has left here are removed.
    """
    folder = tempfile.gettempdir()
    if len(folder) > LONGEST and os.path.isdir("/tmp"):
        folder = "/tmp"
    for left in Path(folder).glob("mixdistill-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return folder


def publish_notebook(executed: Path, target: Path) -> None:
    """Put an executed notebook in the place of the committed one, without times and paths of this machine.

    The cell that papermill has put in goes too: whoever runs the notebook next gets the parameters that it shows.
    """
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
    text = nbformat.writes(notebook)
    for path in (REPO, Path.home()):
        if str(path) in text:
            raise RuntimeError(
                f"{executed.name} shows the path {path}: print paths relative to the repo, then publish again"
            )
    target.write_text(text + "\n")


def with_results(page: str) -> str:
    """README or another page with its table of results, between two marks, as `figures/data/` has it."""
    before, mark, rest = page.partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- /results -->")
    if not (mark and end):
        raise ValueError("the page lacks the marks <!-- results --> and <!-- /results -->: put them around its table")
    data = REPO / "figures" / "data"
    accuracy = pd.read_csv(data / "learnability_gap.csv")
    gaps = stats.readable_gaps(pd.read_csv(data / "gaps.csv")).set_index(["student", "contrast"])
    wide = accuracy.pivot(index=["params", "student"], columns="recipe", values="accuracy")
    columns = ["untouched", "short", "long", "mix_long"]
    lines = [
        "| student | " + " | ".join(columns) + " | long - short | mix_long - better of the two |",
        "|---|" + "---|" * 6,
    ]
    for (params, student), row in wide.iterrows():
        cells = [f"{student}, {params / 1000:.0f}k", *(f"{row[column]:.1%}" for column in columns)]
        for contrast in ("long-short", "mix_long-best"):
            cells.append(" ".join(gaps.loc[(student, contrast), ["points", "95% interval"]]))
        lines.append("| " + " | ".join(cells) + " |")
    return before + mark + "\n".join(lines) + "\n" + end + after


def report(scale: Scale, notebooks: Path, seconds: float) -> None:
    """Print the table of gaps and where everything lies."""
    figures = scale.figures_dir()
    gaps = stats.readable_gaps(pd.read_csv(figures / "data" / "gaps.csv"))
    print(f"\nGaps, scale {scale.name}: accuracy of one recipe minus another, in points\n")
    print(gaps.to_string(index=False))
    print("\nFigures:")
    for path in sorted(figures.glob("*.png")):
        print(f"  {shown(path)}")
    print(f"Data:      {shown(figures / 'data')}/*.csv")
    print(f"Notebooks: {shown(notebooks)}/*.ipynb, as executed")
    print(f"Done in {seconds / 60:.1f} minutes")
