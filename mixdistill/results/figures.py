"""One function a figure, each from data frames; `python -m mixdistill figures` redraws all from their CSV files."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

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
    "unverified": ("#CC79A7", "v", "long CoT without its checks"),
    "direct": ("#E69F00", "s", "short CoT without its steps"),
}
# Recipes and contrasts of the paper's two gaps, each of which has a figure.
FAMILY = {
    "long": ("untouched", "short", "long", "mix_long"),
    "large": ("untouched", "small_teacher", "large_teacher", "mix_large"),
}
CONTRAST = {
    "long-short": ("#D55E00", "^", "long - short (the gap)"),
    "mix_long-best": ("#009E73", "D", "Mix-Long - better of the two"),
    "large_teacher-small_teacher": ("#D55E00", "^", "large - small teacher (the gap)"),
    "mix_large-best": ("#009E73", "D", "Mix-Large - better of the two"),
}


def save_table(table: pd.DataFrame, folder: Path, name: str) -> str:
    """Write the data of a figure to `FOLDER/data/NAME.csv`; returns its path. For `folder` see `Scale.figures_dir`."""
    path = folder / "data" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.round(6).to_csv(path, index=False)
    return shown(path)


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure to `FOLDER/NAME.png`; returns its path."""
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version in its metadata, an unchanged figure stays an unchanged file.
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    return shown(path)


def learnability_gap(
    accuracy: pd.DataFrame, gaps: pd.DataFrame, guess: list[float | None] | None = None, family: str = "long"
) -> Figure:
    """Accuracy of every student by recipe, and the gaps by student size.

    Arguments:
        accuracy, gaps: the tables of learnability_gap.csv and gaps.csv.
        guess: the reader's own `long - short` in points, a student each; drawn beside the measurement where not None.
        family: `long` for long and short traces, `large` for large and small teachers.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    sizes = accuracy.drop_duplicates("student").sort_values("params")
    if guess is not None and len(guess) != len(sizes):
        raise ValueError(f"guess has {len(guess)} numbers: give {len(sizes)}, one a student, smallest first, or None")
    for i, recipe in enumerate(FAMILY[family]):
        color, marker, label = STYLE[recipe]
        rows = accuracy[accuracy["recipe"] == recipe].sort_values("params")
        x = rows["params"] * 1.035 ** (i - 1.5)  # side by side, so that no bar hides another
        _points(left, x, rows, "accuracy", color, marker, label, dashed=recipe == "untouched")
    contrasts = [name for name in CONTRAST if name.startswith((family, f"mix_{family}"))]
    for i, contrast in enumerate(contrasts):
        color, marker, label = CONTRAST[contrast]
        rows = gaps[gaps["contrast"] == contrast].sort_values("params")
        _points(right, rows["params"] * 1.035 ** (i - 0.5), rows, "delta", color, marker, label)
    if guess and any(value is not None for value in guess):
        points = [np.nan if value is None else value / 100 for value in guess]
        right.plot(sizes["params"], points, "*", ms=13, mfc="none", mec="black", label="your guess of long - short")
    right.axhline(0, color="black", lw=0.8)
    left.set_ylim(0, 1.02)
    left.set_ylabel("accuracy on test problems")
    right.set_ylabel("difference in accuracy")
    left.set_title("What each student learns from each kind of trace")
    right.set_title("The gap, and what the mix adds")
    for axes in (left, right):
        _size_axis(axes, sizes)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    _caption(figure, gaps)
    return figure


def mix_distillation(alphas: pd.DataFrame, recipes: pd.DataFrame) -> Figure:
    """Accuracy of one student against the share of long traces, and beside it the named recipes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.3), width_ratios=[1.6, 1], sharey=True)
    student = alphas["student"].iloc[0]
    _points(left, alphas["alpha"], alphas, "accuracy", "#009E73", "D", "mix of long and short CoT")
    untouched = recipes[recipes["recipe"] == "untouched"]["accuracy"].iloc[0]
    left.axhline(untouched, color="#7f7f7f", ls="--", lw=1, label="untouched student")
    left.axvline(0.2, color="black", ls=":", lw=1, label="best share in the paper (Fig. 6)")
    left.set_xlabel("share of the problems with the long trace, alpha")
    left.set_ylabel("accuracy on test problems")
    left.set_title(f"{student}: from all short (0) to all long (1)")
    left.legend(fontsize=9)
    for i, row in enumerate(recipes.itertuples()):
        color, _, label = STYLE[row.recipe]
        right.bar(i, row.accuracy, color=color, width=0.7, label=label)
        low, high = row.accuracy - row.ci_low, row.ci_high - row.accuracy
        right.errorbar(i, row.accuracy, [[max(0, low)], [max(0, high)]], color="black", capsize=4)
        right.text(i, 0.015, f"{row.accuracy:.1%}", ha="center", color="white", fontsize=9, fontweight="bold")
    right.set_xticks(range(len(recipes)), [STYLE[recipe][2] for recipe in recipes["recipe"]])
    right.set_title(f"{student}: Mix-Long against its parts")
    left.set_ylim(0, max(0.1, min(1.02, 1.25 * max(alphas["ci_high"].max(), recipes["ci_high"].max()))))
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _caption(figure, alphas)
    return figure


# Errors in answers, from honest ones to false proofs; right answers stay white.
ERROR_COLORS = {
    "right": "#ffffff",
    "wrong guess": "#56B4E9",
    "gave up": "#b7dff5",
    "wrong mark": "#D55E00",
    "false proof": "#E69F00",
    "wrong colour": "#CC79A7",
    "missed mismatch": "#F0E442",
    "false alarm": "#009E73",
    "lost operand": "#0072B2",
    "wrong step": "#000000",
    "endless": "#999999",
}


def error_shares(table: pd.DataFrame) -> Figure:
    """Share of all answers by their first false step: a panel a recipe, a bar a student, the right ones on top.

    Arguments:
        table: errors.csv: student, params, recipe, and a share for each key of `pocket.errors.ERRORS`.
    """
    recipes = list(dict.fromkeys(table["recipe"]))
    figure, panels = plt.subplots(1, len(recipes), figsize=(11, 4.6), sharey=True, squeeze=False)
    kinds = [name for name in ERROR_COLORS if name != "right" and table[name].max() >= 0.005] + ["right"]
    for axes, recipe in zip(panels[0], recipes, strict=True):
        rows = table[table["recipe"] == recipe].sort_values("params")
        bottom = np.zeros(len(rows))
        for name in kinds:
            style = {"color": ERROR_COLORS[name], "edgecolor": "#555555", "lw": 0.5}
            axes.bar(range(len(rows)), rows[name], 0.8, bottom, label=name, **style)
            bottom += rows[name].to_numpy()
        for i, right in enumerate(rows["right"]):
            axes.text(i, 1 - right / 2, f"{right:.0%}", ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(rows)), _student_labels(rows), fontsize=7.5)
        axes.set_title(STYLE[recipe][2])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0, 0].set_ylabel("share of all answers")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="first false step", loc="center right", fontsize=9)
    figure.tight_layout(rect=(0, 0, 0.84, 1))
    return figure


def controls(gaps: pd.DataFrame) -> Figure:
    """By student size: the gap of long traces, that of long ones without their checks, and that of finer steps."""
    figure, axes = plt.subplots(figsize=(7.5, 4.3))
    contrasts = {
        "long-short": ("#D55E00", "^", "long - short (the gap)"),
        "unverified-short": ("#CC79A7", "v", "long without its checks - short (ablation)"),
        "short-direct": ("#E69F00", "s", "short - short without its steps (finer steps, control)"),
    }
    sizes = gaps.drop_duplicates("student").sort_values("params")
    for i, (contrast, (color, marker, label)) in enumerate(contrasts.items()):
        rows = gaps[gaps["contrast"] == contrast].sort_values("params")
        _points(axes, rows["params"] * 1.035 ** (i - 1), rows, "delta", color, marker, label)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_ylabel("difference in accuracy")
    axes.set_title("The gap, without its checks, and of finer steps only")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _size_axis(axes, sizes)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.3 * (high - low), high)  # room for the legend below the bars
    axes.legend(fontsize=9, loc="lower left")
    _caption(figure, gaps)
    return figure


def trace_lengths(lengths: pd.DataFrame) -> Figure:
    """Histogram of tokens a trace, by style."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    bins = np.arange(0, lengths["tokens"].max() + 6, 4)
    for style, group in lengths.groupby("style"):
        color, _, label = STYLE[style]
        text = f"{label}: mean {group['tokens'].mean():.0f} tokens"
        axes.hist(group["tokens"], bins=bins, color=color, alpha=0.65, label=text)
    axes.set_xlabel("tokens a trace, stop token included")
    axes.set_ylabel("traces")
    axes.set_title("Long traces hold search and checks")
    axes.legend()
    axes.text(
        0, -0.2, f"n = {len(lengths)} traces of {len(lengths) // 2} problems", transform=axes.transAxes, fontsize=8
    )
    figure.tight_layout()
    return figure


def paper_gap(table: pd.DataFrame) -> Figure:
    """The paper's Table 1: long minus short by student size. The paper gives no error bars."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for family, marker, color in (("qwen2.5", "o", "#0072B2"), ("llama3", "s", "#CC79A7")):
        rows = table[table["family"] == family]
        axes.plot(rows["params_b"], rows["delta_long"], marker=marker, color=color, label=family)
    axes.axhline(0, color="black", lw=0.8)
    axes.axvspan(axes.get_xlim()[0], 3.3, color="black", alpha=0.06, lw=0)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 3, 7, 14, 32, 70], ["0.5B", "1B", "3B", "7B", "14B", "32B", "70B"])
    axes.minorticks_off()
    axes.set_xlabel("parameters of the student")
    axes.set_ylabel("long - short, points")
    axes.set_title("The paper's Table 1 (mean of five benchmarks, no error bars given)")
    axes.legend(loc="lower right")
    figure.tight_layout()
    return figure


def redraw(folder: Path) -> list[str]:
    """Draw every figure of a folder again from the CSV files in its `data/`; returns the paths of the figures.

    Raises ValueError if a CSV file is missing.
    """
    tables = {path.stem: pd.read_csv(path) for path in (folder / "data").glob("*.csv")}
    missing = {"trace_lengths", "learnability_gap", "gaps", "alpha_sweep", "mix_recipes"} - set(tables)
    if missing:
        raise ValueError(f"{shown(folder)}/data lacks {', '.join(sorted(missing))}: run make reproduce first")
    figures = {
        "01_trace_lengths": trace_lengths(tables["trace_lengths"]),
        "02_learnability_gap": learnability_gap(tables["learnability_gap"], tables["gaps"]),
        "02_paper_table1": paper_gap(pd.read_csv(PAPER / "table1_long_cot_gap.csv")),
        "03_mix_distillation": mix_distillation(tables["alpha_sweep"], tables["mix_recipes"]),
    }
    if "errors" in tables:
        figures["04_errors"] = error_shares(tables["errors"])
    if "controls" in tables:
        figures["04_controls"] = controls(tables["controls"])
    if "large_teacher" in set(tables["learnability_gap"]["recipe"]):
        figures["02_teacher_gap"] = learnability_gap(tables["learnability_gap"], tables["gaps"], family="large")
    return [save_figure(figure, folder, name) for name, figure in figures.items()]


def _points(
    axes, x, rows: pd.DataFrame, column: str, color: str, marker: str, label: str, dashed: bool = False
) -> None:
    bars = [rows[column] - rows["ci_low"], rows["ci_high"] - rows[column]]
    style = {"color": color, "marker": marker, "ls": "--" if dashed else "-", "capsize": 3, "lw": 1.5, "ms": 6}
    axes.errorbar(x, rows[column], np.clip(bars, 0, None), label=label, **style)


def _size_axis(axes, sizes: pd.DataFrame) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sizes["params"], _student_labels(sizes), fontsize=7.5)
    axes.minorticks_off()
    axes.set_xlabel("student, parameters")


def _student_labels(rows: pd.DataFrame) -> list[str]:
    return [
        f"{student.split('/')[-1].removesuffix('-Instruct')}\n{size_text(params)}"
        for student, params in zip(rows["student"], rows["params"], strict=True)
    ]


def size_text(params: int) -> str:
    """29k, 487k, 1.5B."""
    if params < 1e6:
        return f"{params / 1e3:.0f}k"
    return f"{params / 1e6:.1f}M" if params < 1e8 else f"{params / 1e9:.1f}B"


def _caption(figure: Figure, table: pd.DataFrame) -> None:
    """Say n, seeds, bases, and what the intervals cover: with one seed, or one base, nothing but the problems."""
    n_seeds, n_bases = table["n_seeds"].max(), table.get("n_bases", table["n_seeds"])
    fewest, most = n_bases.min(), n_bases.max()
    if n_seeds == 1 or most == 1:
        cover = f"over problems only, of {'one seed' if n_seeds == 1 else 'one base a size'}"
    else:
        cover = "over seeds, bases and problems" + (", problems only at sizes with one base" if fewest == 1 else "")
    bases = "" if most == 1 else f" on {fewest if fewest == most else f'{fewest} to {most}'} bases a size"
    text = (
        f"n = {table['n_problems'].max()} test problems, {n_seeds} {'seed' if n_seeds == 1 else 'seeds'} of data and "
        f"training{bases}; bars: 95% intervals {cover}"
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.text(0.01, 0.01, text, fontsize=8)
