"""Replace what is committed by the study as it is defined: figures, stored answers, notebooks, tables of results."""

import shutil
from pathlib import Path

import findings
import nbformat
import pandas as pd

from mixdistill.results import stats
from mixdistill.results.redraw import redraw
from mixdistill.runs import REPO
from mixdistill.study.collect import trained_teachers
from mixdistill.study.plan import all_arms
from mixdistill.study.reproduce import FURTHER, NOTEBOOKS, execute, reproduce
from mixdistill.study.scales import Scale, alpha_arms, get_scale
from mixdistill.study.stored import FILE, N_SWEPT, key
from mixdistill.study.sweep import run_arm, same_work, sweep


def publish() -> None:
    """Run the study, and put its figures and answers in the place of the committed ones; then the notebooks, executed
    once more as a reader of a fresh clone does it.
    """
    folder = reproduce("pocket", notebooks="all")
    shutil.copytree(get_scale("pocket").figures_dir(), REPO / "figures", dirs_exist_ok=True)
    store_items(get_scale("pocket"))
    for name in NOTEBOOKS + FURTHER:
        source = REPO / "notebooks" / f"{name}.ipynb"
        execute(source, folder / f"{name}.ipynb", {})
        publish_notebook(folder / f"{name}.ipynb", source)
    # Of every swept student, where a run that trains has swept one.
    shutil.copytree(get_scale("pocket").figures_dir(RESULTS="stored"), REPO / "figures", dirs_exist_ok=True)
    redraw(REPO / "figures")  # with those for a narrow window
    for page in (REPO / "README.md", REPO / "docs" / "pocket-world.md"):
        page.write_text(with_results(page.read_text()))
    findings.write()


def store_items(scale: Scale, file: Path = FILE) -> None:
    """Write what the notebooks show of a pocket scale, trained where the run store lacks it, to one file."""
    scale, _ = trained_teachers(scale)
    swept = [arm for student in scale.students[:N_SWEPT] for arm in alpha_arms(scale, student, scale.alphas)]
    works = {same_work(arm): arm for arm in (*all_arms(scale), *swept)}.values()
    sweep(works, scale)
    rows = pd.concat([run_arm(arm, scale).items.assign(work=key(arm)) for arm in works])
    # Answers to one problem lie together: a third smaller. An arm's rows keep their order.
    rows.sort_index(kind="stable").to_parquet(file, index=False, compression="zstd", compression_level=19)


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


if __name__ == "__main__":
    publish()
