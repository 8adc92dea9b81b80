"""One function a figure, each from data frames; `python -m mixdistill figures` redraws all from their CSV files."""

import html
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mixdistill.arguments import choice, instance, number, text
from mixdistill.results.stats import require
from mixdistill.runs import REPO, shown

PAPER = REPO / "figures" / "data" / "paper"

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
    "mix_long-best": ("#009E73", "D", "Mix-Long - better of the two"),
    "large_teacher-small_teacher": ("#D55E00", "^", "large - small teacher (the gap)"),
    "mix_large-best": ("#009E73", "D", "Mix-Large - better of the two"),
    "unverified-short": ("#CC79A7", "v", "long without its checks - short (ablation)"),
    "confirmed-unverified": ("#56B4E9", "o", "checks that only confirm, against none"),
    "long-confirmed": ("#D55E00", "^", "checks that must refuse, against those that only confirm"),
    "long-unverified": ("#7f7f7f", "s", "both together: long - unverified"),
    "short-direct": ("#E69F00", "s", "short - short without its steps (finer steps, control)"),
}
# The recipes of the paper's two gaps, each of which has a figure: the parts, and their mix.
FAMILY = {"long": ("short", "long", "mix_long"), "large": ("small_teacher", "large_teacher", "mix_large")}
# Errors in answers, from honest ones to false proofs; right answers stay white.
ERROR_COLORS = {
    **{"wrong guess": "#56B4E9", "gave up": "#b7dff5", "wrong mark": "#D55E00", "false proof": "#E69F00"},
    **{"wrong colour": "#CC79A7", "missed mismatch": "#F0E442", "false alarm": "#009E73"},
    **{"lost operand": "#0072B2", "wrong step": "#000000", "endless": "#999999", "right": "#ffffff"},
}
INTERVAL, COUNTS = ("ci_low", "ci_high"), ("n_problems", "n_seeds", "n_bases")  # columns


def save_table(table: pd.DataFrame, folder: Path, name: str) -> str:
    """Write the data of a figure to `FOLDER/data/NAME.csv`; returns its path. For `folder` see `Scale.figures_dir`."""
    instance("the table", table, pd.DataFrame)  # it may be empty: students of one size have no slope
    path = folder / "data" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.round(6).to_csv(path, index=False)  # figures round too, and so are the same when drawn from the file
    return shown(path)


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure to `FOLDER/NAME.png`, and beside it as `NAME.svg`; returns the path of the first."""
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Fine enough for any screen; without version, date and random names, so an unchanged figure is an unchanged file.
    figure.savefig(path, dpi=200, bbox_inches="tight", metadata={"Software": None})
    with plt.rc_context({"svg.hashsalt": "mixdistill"}):
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return shown(path)


def learnability_gap(
    accuracy: pd.DataFrame, gaps: pd.DataFrame, guess: Sequence[float | None] | None = None, family: str = "long"
) -> Figure:
    """Accuracy of every student by recipe, and the gaps by student size.

    Arguments:
        accuracy, gaps: learnability_gap.csv and gaps.csv, or teacher_accuracy.csv and teacher_gaps.csv.
        guess: the reader's own gap in points, a student each; drawn beside the measurement where not None.
        family: `long` for long and short traces, `large` for large and small teachers.

    Raises ValueError for a bad guess; every figure does for a table that is empty or lacks a column.
    """
    small, large, mix = FAMILY[choice("family", family, FAMILY)]
    require(accuracy, "student", "params", "recipe", "accuracy", *INTERVAL)
    require(gaps, "params", "contrast", "delta", *INTERVAL, *COUNTS)
    sizes = np.sort(accuracy.drop_duplicates("student")["params"])
    if guess is not None and len(instance("guess", guess, Sequence)) != len(sizes):
        raise ValueError(f"guess has {len(guess)} numbers: give {len(sizes)}, one a student, smallest first, or None")
    points = [np.nan if value is None else number("a guess", value) / 100 for value in guess or ()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    _lines(left, accuracy, "recipe", ["untouched", small, large, mix], "accuracy")
    _lines(right, gaps, "contrast", [f"{large}-{small}", f"{mix}-best"], "delta")
    if not np.isnan(points).all():
        right.plot(sizes, points, "*", ms=13, mfc="none", mec="black", label="your guess of the gap")
    left.set(ylim=(0, 1.02), ylabel="accuracy on test problems")
    left.set_title("What each student learns from each kind of trace")
    right.set(ylabel="difference in accuracy", title="The gap, and what the mix adds")
    right.axhline(0, color="black", lw=0.8)
    for axes in (left, right):
        axes.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return _noted(figure, gaps)


def mix_distillation(alphas: pd.DataFrame, recipes: pd.DataFrame) -> Figure:
    """Accuracy of one student against the share of long traces (alpha_sweep.csv), beside it the named recipes."""
    require(alphas, "student", "alpha", "accuracy", *INTERVAL, *COUNTS)
    require(recipes, "recipe", "accuracy", *INTERVAL)
    alphas, recipes = alphas.round(6), recipes.round(6)
    layout = {"figsize": (10, 4.3), "width_ratios": [1.5, 1], "layout": "constrained"}
    figure, (left, right) = plt.subplots(1, 2, sharey=True, **layout)
    student = alphas["student"].iloc[0]
    _lines(left, alphas.assign(recipe="alpha"), "recipe", ["alpha"], "accuracy", "alpha")
    untouched = recipes.set_index("recipe").loc["untouched", "accuracy"]
    left.axhline(untouched, color=STYLE["untouched"][0], ls="--", lw=1, label="untouched student")
    left.axvline(0.2, color="black", ls=":", lw=1, label="best share in the paper (Fig. 6)")
    left.set(xlabel="share of the problems with the long trace, alpha", ylabel="accuracy on test problems")
    left.set_title(f"{student}: from all short (0) to all long (1)")
    left.legend(fontsize=9)
    colors, _, names = zip(*(STYLE[choice("a recipe", recipe, STYLE)] for recipe in recipes["recipe"]), strict=True)
    labels = [f"{name}\n{accuracy:.1%}" for name, accuracy in zip(names, recipes["accuracy"], strict=True)]
    right.bar(labels, recipes["accuracy"], 0.7, color=colors, yerr=_bars(recipes, "accuracy"), capsize=4)
    right.set_title(f"{student}: Mix-Long against its parts")
    top = max(alphas["ci_high"].max(), recipes["ci_high"].max())
    left.set_ylim(0, max(0.1, min(1.02, 1.25 * top)))
    return _noted(figure, alphas)


def alpha_curve(curves: pd.DataFrame, student: str, alpha: float) -> Figure:
    """One student's accuracy against the share of long traces (of alpha_sweep.csv), with one of the shares marked."""
    rows = curves[curves["student"] == student]
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    _lines(axes, rows.assign(recipe="alpha"), "recipe", ["alpha"], "accuracy", "alpha")
    axes.set(xlim=(-0.05, 1.05), ylim=(0, 1.02), ylabel="accuracy on test problems")
    axes.set(xlabel="share of the problems with the long trace, alpha", title=f"{student}: not trained at this share")
    for row in rows[rows["alpha"] == alpha].itertuples():
        axes.axvline(alpha, color="black", ls=":", lw=1)
        axes.set_title(f"{student}, alpha {alpha:g}: {row.accuracy:.1%} [{row.ci_low:.1%}, {row.ci_high:.1%}] right")
    return _noted(figure, rows)


def error_shares(table: pd.DataFrame) -> Figure:
    """Share of all answers by first false step (errors.csv): a panel a recipe, a bar a student, right ones on top."""
    require(table, "student", "params", "recipe", *ERROR_COLORS)
    table, recipes = table.round(6), table["recipe"].unique()
    figure, panels = plt.subplots(1, len(recipes), figsize=(10, 4.6), sharey=True, squeeze=False, layout="constrained")
    kinds = [name for name in ERROR_COLORS if name == "right" or table[name].max() >= 0.005]
    for axes, recipe in zip(panels[0], recipes, strict=True):
        rows = table[table["recipe"] == recipe].sort_values("params").set_index("student")
        rows[kinds].plot.bar(ax=axes, stacked=True, width=0.8, color=ERROR_COLORS, ec="#555", lw=0.5, legend=False)
        for i, right in enumerate(rows["right"]):
            axes.text(i, 1 - right / 2, f"{right:.0%}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(rows)), _student_labels(rows.reset_index()), fontsize=8.5, rotation=0)
        axes.set(xlabel="", title=STYLE[choice("a recipe", recipe, STYLE)][2])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0, 0].set_ylabel("share of all answers")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), title="first false step", loc="outside right center")
    return figure


def controls(gaps: pd.DataFrame) -> Figure:
    """By student size: the gap of long traces, that of long ones without their checks, and that of finer steps."""
    contrasts = ["long-short", "unverified-short", "short-direct"]
    return _by_size(gaps, contrasts, "The gap, without its checks, and of finer steps only")


def checks(gaps: pd.DataFrame) -> Figure:
    """By student size: what checks that must refuse, and checks that only confirm, add to long traces without any."""
    contrasts = ["long-unverified", "long-confirmed", "confirmed-unverified"]
    return _by_size(gaps, contrasts, "What checks cost and are worth, by what they have to do")


def _by_size(gaps: pd.DataFrame, contrasts: list[str], title: str) -> Figure:
    require(gaps, "student", "params", "contrast", "delta", *INTERVAL, *COUNTS)
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    _lines(axes, gaps, "contrast", contrasts, "delta")
    axes.axhline(0, color="black", lw=0.8)
    axes.set(ylabel="difference in accuracy", title=title)
    figure.legend(fontsize=9, loc="outside upper center")
    return _noted(figure, gaps)


def forest(table: pd.DataFrame) -> Figure:
    """What each control adds to short traces: a line a control, a panel a student (further_controls.csv)."""
    require(table, "student", "control", "minus", "delta", *INTERVAL, *COUNTS)
    table, students = table[table["minus"] == "short"].round(6), table["student"].unique()
    figure, panels = plt.subplots(1, len(students), figsize=(10, 3.6), sharey=True, squeeze=False, layout="constrained")
    for axes, student in zip(panels[0], students, strict=True):
        rows = table[table["student"] == student][::-1]
        axes.errorbar(rows["delta"], rows["control"], xerr=_bars(rows, "delta"), fmt="o", color="#0072B2", capsize=3)
        axes.axvline(0, color="black", lw=0.8)
        axes.set(title=student, xlabel="difference to short, in accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _noted(figure, table)


def trace_lengths(lengths: pd.DataFrame) -> Figure:
    """Histogram of tokens a trace (columns `tokens`, `style`)."""
    require(lengths, "tokens", "style")
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    bins = np.arange(0, lengths["tokens"].max() + 6, 4)
    for style, tokens in lengths.groupby("style")["tokens"]:
        color, _, label = STYLE[choice("a style", str(style), STYLE)]
        axes.hist(tokens, bins, color=color, alpha=0.65, label=f"{label}: mean {tokens.mean():.0f} tokens")
    axes.set(xlabel="tokens a trace, stop token included", ylabel="traces", title="Long traces hold search and checks")
    axes.legend()
    figure.supxlabel(f"n = {len(lengths)} traces of {len(lengths) // 2} problems", fontsize=9, x=0.01, ha="left")
    return figure


def paper_gap(table: pd.DataFrame) -> Figure:
    """The paper's Table 1: long minus short by student size. The paper gives no error bars."""
    require(table, "family", "params_b", "delta_long")
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for family, marker, color in (("qwen2.5", "o", "#0072B2"), ("llama3", "s", "#CC79A7")):
        rows = table[table["family"] == family]
        axes.plot(rows["params_b"], rows["delta_long"], marker=marker, color=color, label=family)
    axes.axhline(0, color="black", lw=0.8)
    axes.axvspan(axes.get_xlim()[0], 3.3, color="black", alpha=0.06, lw=0)
    axes.set(xscale="log", xlabel="parameters of the student", ylabel="long - short, points")
    axes.set_title("The paper's Table 1 (mean of five benchmarks, no error bars given)")
    axes.set_xticks([0.5, 1, 3, 7, 14, 32, 70], ["0.5B", "1B", "3B", "7B", "14B", "32B", "70B"])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    return figure


def redraw(folder: Path) -> list[str]:
    """Draw again every figure whose CSV files are in the folder's `data/`; returns their paths. ValueError if none."""
    drawn_from: dict[str, tuple[Callable[..., Figure], list[str]]] = {
        "01_trace_lengths": (trace_lengths, ["trace_lengths"]),
        "02_learnability_gap": (learnability_gap, ["learnability_gap", "gaps"]),
        "03_mix_distillation": (mix_distillation, ["alpha_sweep", "mix_recipes"]),
        "04_errors": (error_shares, ["errors"]),
        "04_controls": (controls, ["controls"]),
        "05_checks": (checks, ["checks"]),
        "07_controls": (forest, ["further_controls"]),
        "06_teacher_gap": (partial(learnability_gap, family="large"), ["teacher_accuracy", "teacher_gaps"]),
    }
    folder = Path(text("folder", folder))
    tables = {path.stem: pd.read_csv(path) for path in (folder / "data").glob("*.csv")}
    drawn = {name: draw(*map(tables.get, of)) for name, (draw, of) in drawn_from.items() if set(of) <= tables.keys()}
    if not drawn:
        needed = sorted(name for _, of in drawn_from.values() for name in of)
        raise ValueError(f"{shown(folder)}/data lacks {', '.join(needed)}: run make reproduce first")
    drawn["02_paper_table1"] = paper_gap(pd.read_csv(PAPER / "table1_long_cot_gap.csv"))
    return [save_figure(figure, folder, name) for name, figure in drawn.items()]


def size_text(params: int) -> str:
    """29k, 487k, 1.5B."""
    if params < 1e6:
        return f"{params / 1e3:.0f}k"
    return f"{params / 1e6:.1f}M" if params < 1e8 else f"{params / 1e9:.1f}B"


def _bars(rows: pd.DataFrame, y: str) -> np.ndarray:
    return np.clip([rows[y] - rows["ci_low"], rows["ci_high"] - rows[y]], 0, None)


def _lines(axes: Axes, table: pd.DataFrame, by: str, names: list[str], y: str, x: str = "params") -> None:
    """A line of points with their intervals for each name in column `by`, side by side so that no bar hides another."""
    for i, name in enumerate(names):
        (color, marker, label), rows = STYLE[name], table[table[by] == name].round(6).sort_values(x)
        shifted = rows[x] * 1.035 ** (i - (len(names) - 1) / 2)
        ls = "--" if name == "untouched" else "-"
        axes.errorbar(shifted, rows[y], _bars(rows, y), c=color, marker=marker, ls=ls, ms=6, capsize=3, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if x == "params":
        sizes = table.drop_duplicates("student")
        axes.set(xscale="log", xlabel="student, parameters")
        axes.set_xticks(sizes["params"], _student_labels(sizes), fontsize=8.5)
        axes.minorticks_off()


def _student_labels(rows: pd.DataFrame) -> list[str]:
    names = rows["student"].str.split("/").str[-1].str.removesuffix("-Instruct")
    return list(names + "\n" + rows["params"].map(size_text))


def _noted(figure: Figure, table: pd.DataFrame) -> Figure:
    """Say n, seeds, bases, and what the intervals cover: with one seed, or one base, nothing but the problems."""
    n_seeds, fewest, most = table["n_seeds"].max(), table["n_bases"].min(), table["n_bases"].max()
    if n_seeds == 1 or most == 1:
        cover = f"over problems only, of {'one seed' if n_seeds == 1 else 'one base a size'}"
    else:
        cover = "over seeds, bases and problems" + (", problems only at sizes with one base" if fewest == 1 else "")
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
    bases = "" if most == 1 else f" on {fewest if fewest == most else f'{fewest} to {most}'} bases a size"
    note = f"n = {table['n_problems'].max()} test problems, {seeds} of data and training{bases}"
    figure.supxlabel(f"{note}; bars: 95% intervals {cover}", fontsize=9, x=0.01, ha="left")
    return figure


def text_table(table: pd.DataFrame) -> HTML:
    """A table of running text. Its styles stand in the cells: an untrusted notebook loses every `<style>` element."""
    require(table)
    cells = table.map(lambda text: f'<div style="text-align:left;white-space:pre-wrap">{html.escape(str(text))}</div>')
    return HTML(cells.to_html(escape=False))
