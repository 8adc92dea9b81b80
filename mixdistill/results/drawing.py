"""How all figures look: colours, markers, lines with intervals, notes; and how figures and their data are saved."""

import html
import textwrap
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mixdistill.arguments import instance, text
from mixdistill.results.stats import require
from mixdistill.runs import shown

# Okabe and Ito's colours, told apart by colour-blind readers too; markers differ for print.
STYLE = {
    "untouched": ("#7f7f7f", "s", "untouched"),
    "short": ("#0072B2", "o", "short CoT"),
    "long": ("#D55E00", "^", "long CoT"),
    "mix_long": ("#009E73", "D", "Mix-Long"),
    "small_teacher": ("#0072B2", "o", "small teacher"),
    "large_teacher": ("#D55E00", "^", "large teacher"),
    "mix_large": ("#009E73", "D", "Mix-Large"),
    "alpha": ("#009E73", "D", "mix of long and short CoT"),
    "long-short": ("#D55E00", "^", "long - short (the gap)"),
    "mix_long-short": ("#0072B2", "o", "Mix-Long - short CoT"),
    "mix_long-long": ("#D55E00", "^", "Mix-Long - long CoT"),
    "mix_long-best": ("#009E73", "D", "Mix-Long - better of the two"),
    "large_teacher-small_teacher": ("#D55E00", "^", "large - small teacher (the gap)"),
    "mix_large-best": ("#009E73", "D", "Mix-Large - better of the two"),
    "unverified-short": ("#CC79A7", "v", "long without its checks, from other starts - short"),
    "confirmed-unverified": ("#56B4E9", "o", "checks that only confirm, against none"),
    "long-confirmed": ("#D55E00", "^", "random starts and checks that must refuse, against confirming"),
    "long-unverified": ("#7f7f7f", "s", "both together: long - unverified"),
    "mark": ("#D55E00", "^", "marks"),
    "colour": ("#E69F00", "o", "colours"),
    "product": ("#56B4E9", "v", "products of items"),
    "machine": ("#009E73", "D", "machines"),
    "form": ("#7f7f7f", "s", "words of the form"),
    "short-direct": ("#E69F00", "s", "short - short without its steps (finer steps, control)"),
}
# Errors in answers, from honest ones to false proofs; right answers stay white.
ERROR_COLORS = {
    "wrong guess": "#56B4E9",
    "gave up": "#b7dff5",
    "wrong mark": "#D55E00",
    "false proof": "#E69F00",
    "moved target": "#ffd899",
    "wrong colour": "#CC79A7",
    "missed mismatch": "#F0E442",
    "false alarm": "#009E73",
    "lost operand": "#0072B2",
    "wrong step": "#000000",
    "endless": "#999999",
    "right": "#ffffff",
}
# What goes wrong at a check, for print without colours.
ERROR_HATCHES = {"wrong mark": "///", "false proof": "...", "moved target": "xxx"}
MARKS = {"o": "\u25cf", "^": "\u25b2", "v": "\u25bc", "s": "\u25a0", "D": "\u25c6"}  # markers in a text
SIZE_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#000000")
SIZES = list(zip(SIZE_COLORS, "ovsD^PX", strict=True))  # small to large
narrow = ContextVar("narrow", default=False)
INTERVAL, COUNTS = ("ci_low", "ci_high"), ("n_problems", "n_seeds", "n_bases")  # columns


def save_table(table: pd.DataFrame, folder: Path, name: str) -> str:
    """Write the data of a figure to `FOLDER/data/NAME.csv`; returns its path. For `folder` see `Scale.figures_dir`."""
    instance("the table", table, pd.DataFrame)  # it may be empty: students of one size have no slope
    path = folder / "data" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.round(6).to_csv(path, index=False)  # figures round too, and so are the same when drawn from the file
    return shown(path)


def load_table(path: Path) -> pd.DataFrame:
    """The data of a figure or table. Raises ValueError for a file that is missing, no table, or was cut."""
    try:
        table, whole = pd.read_csv(path), path.read_text().endswith("\n")
        if not whole or table.empty or table.shape[1] < 2:
            raise ValueError("it was cut, has no row, or has one column only")
    except (OSError, ValueError) as error:
        what = f"{shown(path)} is no whole table ({error})"
        raise ValueError(f"{what}: git checkout it, or make it with RESULTS = 'live'") from None
    return table


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure to `FOLDER/NAME.png`, and beside it as `NAME.svg`; returns the path of the first."""
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Fine enough for any screen; without version, date and random names, so an unchanged figure is an unchanged file.
    figure.savefig(path, dpi=200, bbox_inches="tight", metadata={"Software": None})
    with plt.rc_context({"svg.hashsalt": "mixdistill"}):
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return shown(path)


def panels(n: int, height: float, **how: Any) -> tuple[Figure, list[Axes]]:
    """Axes side by side; within `narrow` under each other, so that their text can be read on a phone."""
    size, shape = ((5, 0.9 * n * height), (n, 1)) if narrow.get() else ((10, height), (1, n))
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, **how)
    return figure, [*axes.flat]


def size_text(params: int) -> str:
    """29k, 2.9M, 135M, 0.5B."""
    if params < 1e6:
        return f"{params / 1e3:.0f}k"
    if params < 1e8:
        return f"{params / 1e6:.1f}M"
    return f"{params / 1e6:.0f}M" if params < 4.5e8 else f"{params / 1e9:.1f}B"


def bars(rows: pd.DataFrame, y: str) -> np.ndarray:
    return np.clip([rows[y] - rows["ci_low"], rows["ci_high"] - rows[y]], 0, None)


def show_percent(axis: Axis) -> None:
    """An axis of shares."""
    axis.set_major_formatter(lambda share, _: f"{round(100 * share, 1):g}%")


def show_points(axis: Axis) -> None:
    """An axis of differences between shares, which are percentage points."""
    axis.set_major_formatter(lambda share, _: f"{points:+g}" if (points := round(100 * share, 1)) else "0")


def lines(axes: Axes, table: pd.DataFrame, by: str, names: list[str], y: str, x: str = "params") -> None:
    """A line of points with their intervals for each name in column `by`, side by side so that no bar hides another."""
    for i, name in enumerate(names):
        (color, marker, label), rows = STYLE[name], table[table[by] == name].round(6).sort_values(x)
        shifted = rows[x] * 1.035 ** (i - (len(names) - 1) / 2)
        ls = "--" if name == "untouched" else "-"
        axes.errorbar(shifted, rows[y], bars(rows, y), c=color, marker=marker, ls=ls, ms=6, capsize=3, label=label)
    (show_points if y == "delta" else show_percent)(axes.yaxis)
    if x == "params":
        size_axis(axes, table)


def label_lines(axes: Axes) -> None:
    """The name of every line of `lines` beside its last point, in its colour, clear of the others; after `set_ylim`."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    drawn = [one for one in axes.containers if isinstance(one, ErrorbarContainer) and len(one.lines[0].get_ydata())]
    drawn.sort(key=lambda line: line.lines[0].get_ydata()[-1])
    names = [textwrap.fill(str(line.get_label()), 22) for line in drawn]
    places = [line.lines[0].get_ydata()[-1] for line in drawn]
    heights = [(high - low) * 0.06 * (1 + name.count("\n")) for name in names]
    for _ in range(100):  # names that overlap move apart, by the same length
        for i in range(1, len(places)):
            overlap = max(0, (heights[i - 1] + heights[i]) / 2 - (places[i] - places[i - 1]))
            places[i - 1 : i + 1] = places[i - 1] - overlap / 2, places[i] + overlap / 2
        places = [min(max(y, low + h / 2), high - h / 2) for y, h in zip(places, heights, strict=True)]
    for line, name, y in zip(drawn, names, places, strict=True):
        point, color = line.lines[0], line.lines[0].get_color()
        last = point.get_xdata()[-1], point.get_ydata()[-1]
        look = {"color": color, "fontsize": 9, "va": "center", "textcoords": axes.get_yaxis_transform()}
        lead = {"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkB": 4}
        axes.annotate(f"{MARKS[point.get_marker()]} {name}", last, (1.04, y), arrowprops=lead, **look)


def size_axis(axes: Axes, table: pd.DataFrame) -> None:
    sizes = table.drop_duplicates("student")
    axes.set(xscale="log", xlabel="student, parameters")
    axes.set_xticks(sizes["params"], student_labels(sizes), fontsize=tick_size(sizes))
    axes.minorticks_off()


def tick_size(students: pd.DataFrame) -> float:
    """The size of the students' names, a row each, in points: many need room."""
    return 8.5 if len(students) <= 5 else 7


def student_labels(rows: pd.DataFrame) -> list[str]:
    names = rows["student"].str.split("/").str[-1].str.removesuffix("-Instruct")
    if narrow.get() and len(rows) > 5:
        return list(names)
    labels = list(names + "\n" + rows["params"].map(size_text))
    # Many stand in two rows, as neighbours of nearly one size would overlap.
    return [f"{chr(10) * 2}{text}" if len(rows) > 5 and n % 2 else text for n, text in enumerate(labels)]


def noted(figure: Figure, table: pd.DataFrame, say: str = "") -> Figure:
    """Say n, seeds, bases, and what the intervals cover: with one seed nothing but the problems."""
    few_seeds, n_seeds = table["n_seeds"].min(), table["n_seeds"].max()
    fewest, most = table["n_bases"].min(), table["n_bases"].max()
    if n_seeds == 1:
        cover = "over problems only, of one seed"
    elif most == 1:
        cover = "over seeds and problems, of one base a size"
    else:
        cover = "over seeds, bases and problems" + (", of sizes with one base over its seeds" if fewest == 1 else "")
    seeds = "one seed" if n_seeds == 1 else f"{n_seeds if few_seeds == n_seeds else f'{few_seeds} to {n_seeds}'} seeds"
    bases = "" if most == 1 else f" on {fewest if fewest == most else f'{fewest} to {most}'} bases a size"
    note = f"n = {table['n_problems'].max()} test problems, {seeds}{bases}; {say or f'bars: 95% intervals {cover}'}"
    width = int(15 * figure.get_figwidth())  # letters
    figure.supxlabel(textwrap.fill(note, width), fontsize=9, x=0.01, ha="left")
    return figure


def text_table(table: pd.DataFrame) -> HTML:
    """A table of running text. Its styles stand in the cells: an untrusted notebook loses every `<style>` element."""
    require(table)
    # With <br>, as pandas would write the end of a line as a backslash and n.
    texts = table.map(lambda text: html.escape(str(text)).replace("\n", "<br>"))
    cells = texts.map('<div style="text-align:left;white-space:pre-wrap">{}</div>'.format)
    return HTML(cells.to_html(escape=False, justify="left"))


def folded(summary: str, table: pd.DataFrame) -> HTML:
    """A table to look things up in, behind a line that a click opens: long tables hide what a notebook has to say."""
    require(table)
    summary = html.escape(text("summary", summary))
    return HTML(f"<details><summary>{summary}</summary>{table.to_html(index=False)}</details>")
