"""One function a figure, each from data frames; `redraw` has the CSV files that each is drawn from."""

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mixdistill.arguments import choice, instance, number, texts, whole
from mixdistill.results import drawing
from mixdistill.results.drawing import COUNTS, INTERVAL, STYLE, bars, lines, noted, show_percent, show_points
from mixdistill.results.drawing import folded as folded
from mixdistill.results.drawing import load_table as load_table
from mixdistill.results.drawing import save_figure as save_figure
from mixdistill.results.drawing import save_table as save_table
from mixdistill.results.drawing import text_table as text_table
from mixdistill.results.stats import require
from mixdistill.runs import REPO

PAPER = REPO / "figures" / "data" / "paper"

# The recipes of the paper's two gaps, each of which has a figure: the parts, and their mix.
FAMILY = {"long": ("short", "long", "mix_long"), "large": ("small_teacher", "large_teacher", "mix_large")}
BY_SIZE = {  # title and contrasts of a figure
    "controls": ("The gap, the gap without checks, and finer steps", "long-short", "unverified-short", "short-direct"),
    "checks": ("What checks cost and are worth", "long-unverified", "long-confirmed", "confirmed-unverified"),
    "mix": ("The mix minus each of its parts", "mix_long-short", "mix_long-long"),
}


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
    figure, (left, right) = drawing.panels(2, 4.6)
    lines(left, accuracy, "recipe", ["untouched", small, large, mix], "accuracy")
    lines(right, gaps, "contrast", [f"{large}-{small}", f"{mix}-best"], "delta")
    if not np.isnan(points).all():
        right.plot(sizes, points, "*", ms=13, mfc="none", mec="black", label="your guess of the gap")
        right.legend(fontsize=9)
    left.set(ylim=(0, 1.02), ylabel="accuracy on test problems")
    left.set_title("What each student learns from each kind of trace")
    right.set(ylabel="difference in accuracy, points", title="The gap, and what the mix adds")
    right.axhline(0, color="black", lw=0.8)
    drawing.label_lines(left)
    drawing.label_lines(right)
    return noted(figure, gaps)


def mix_distillation(alphas: pd.DataFrame, recipes: pd.DataFrame) -> Figure:
    """Accuracy of one student against the share of long traces (alpha_sweep.csv), beside it the named recipes."""
    require(alphas, "student", "alpha", "accuracy", *INTERVAL, *COUNTS)
    require(recipes, "recipe", "accuracy", *INTERVAL)
    alphas, recipes = alphas.round(6), recipes.round(6)
    layout = {"figsize": (10, 4.3), "width_ratios": [1.5, 1], "layout": "constrained"}
    figure, (left, right) = plt.subplots(1, 2, sharey=True, **layout)
    student = alphas["student"].iloc[0]
    lines(left, alphas.assign(recipe="alpha"), "recipe", ["alpha"], "accuracy", "alpha")
    untouched = recipes.set_index("recipe").loc["untouched"]
    left.axhline(untouched["accuracy"], color=STYLE["untouched"][0], ls="--", lw=1)
    left.axhspan(untouched["ci_low"], untouched["ci_high"], color=STYLE["untouched"][0], alpha=0.2, lw=0)
    left.text(1, untouched["ci_high"], "untouched student, with its interval", fontsize=9, ha="right", va="bottom")
    left.axvline(0.2, color="black", ls=":", lw=1)
    left.set(xlabel="share of the problems with the long trace, alpha", ylabel="accuracy on test problems")
    left.set_title(f"{student}: from all short (0) to all long (1)")
    colors, _, names = zip(*(STYLE[choice("a recipe", recipe, STYLE)] for recipe in recipes["recipe"]), strict=True)
    labels = [f"{name}\n{accuracy:.1%}" for name, accuracy in zip(names, recipes["accuracy"], strict=True)]
    right.bar(labels, recipes["accuracy"], 0.7, color=colors, yerr=bars(recipes, "accuracy"), capsize=4)
    right.set_title(f"{student}: Mix-Long against its parts")
    top = max(alphas["ci_high"].max(), recipes["ci_high"].max())
    left.set_ylim(0, max(0.1, min(1.02, 1.25 * top)))
    left.text(0.21, 0.97 * left.get_ylim()[1], "best share in the paper (Fig. 6)", fontsize=9, va="top")
    return noted(figure, alphas)


def alpha_curve(curves: pd.DataFrame, student: str, alpha: float) -> Figure:
    """One student's accuracy against the share of long traces (of alpha_sweep.csv), with one of the shares marked."""
    rows = curves[curves["student"] == student]
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    lines(axes, rows.assign(recipe="alpha"), "recipe", ["alpha"], "accuracy", "alpha")
    axes.set(xlim=(-0.05, 1.05), ylim=(0, 1.02), ylabel="accuracy on test problems")
    axes.set(xlabel="share of the problems with the long trace, alpha", title=f"{student}: not trained at this share")
    for row in rows[rows["alpha"] == alpha].itertuples():
        axes.axvline(alpha, color="black", ls=":", lw=1)
        axes.set_title(f"{student}, alpha {alpha:g}: {row.accuracy:.1%} [{row.ci_low:.1%}, {row.ci_high:.1%}] right")
    return noted(figure, rows)


def error_shares(table: pd.DataFrame, accuracy: pd.DataFrame) -> Figure:
    """Share of all answers by first false step (errors.csv): a panel a recipe, a bar a student, right ones on top with
    the intervals of `accuracy` (such as learnability_gap.csv)."""
    require(table, "student", "params", "recipe", *drawing.ERROR_COLORS)
    require(accuracy, "student", "recipe", "accuracy", *INTERVAL, *COUNTS)
    right = accuracy.round(6).set_index(["recipe", "student"])
    table, recipes = table.round(6), table["recipe"].unique()
    figure, panels = plt.subplots(1, len(recipes), figsize=(10, 4.6), sharey=True, squeeze=False, layout="constrained")
    colors = drawing.ERROR_COLORS
    kinds = [name for name in colors if name == "right" or table[name].max() >= 0.005]
    for axes, recipe in zip(panels[0], recipes, strict=True):
        rows = table[table["recipe"] == recipe].sort_values("params").set_index("student")
        labels, size = drawing.student_labels(rows.reset_index()), drawing.tick_size(rows)
        rows[kinds].plot.bar(ax=axes, stacked=True, width=0.8, color=colors, ec="#555", lw=0.5, legend=False)
        for kind, drawn in zip(kinds, axes.containers, strict=True):
            plt.setp(drawn, hatch=drawing.ERROR_HATCHES.get(kind, ""))
        of = right.loc[recipe].loc[rows.index]
        lengths = bars(of, "accuracy")[::-1]  # the wrong ones end where the right ones begin
        axes.errorbar(range(len(of)), 1 - of["accuracy"], lengths, fmt="none", ecolor="black", capsize=3)
        for i, share in enumerate(of["accuracy"]):
            axes.text(i, 1.02, f"{share:.0%}", ha="center", fontsize=size)
        axes.set(ylim=(0, 1.08), yticks=np.arange(0, 1.1, 0.2))
        axes.set_xticks(range(len(rows)), labels, fontsize=size, rotation=0)
        axes.set(xlabel="", title=STYLE[choice("a recipe", recipe, STYLE)][2])
        show_percent(axes.yaxis)
    panels[0, 0].set_ylabel("share of all answers")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), title="first false step", loc="outside right center")
    return noted(figure, right.loc[list(recipes)], "above the bars: right answers; whiskers: their 95% intervals")


def by_size(gaps: pd.DataFrame, what: str) -> Figure:
    """Differences against the student's size: those of `BY_SIZE` by name (controls.csv, checks.csv, gaps.csv)."""
    title, *contrasts = BY_SIZE[choice("what", what, BY_SIZE)]
    require(gaps, "student", "params", "contrast", "delta", *INTERVAL, *COUNTS)
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    lines(axes, gaps, "contrast", contrasts, "delta")
    axes.axhline(0, color="black", lw=0.8)
    axes.set(ylabel="difference in accuracy, points", title=title)
    drawing.label_lines(axes)
    return noted(figure, gaps)


def forest(table: pd.DataFrame, minus: Sequence[str], problems: str = "") -> Figure:
    """What each control adds (further_controls.csv, rivals.csv): a line a control, a column a student, a row a recipe
    of `minus`, with which the table compares, such as `short`. `problems`: which ones, where not the study's."""
    require(table, "student", "control", "minus", "delta", *INTERVAL, *COUNTS)
    minus = texts("minus", minus)
    whole("the number of recipes in minus", len(minus))
    for other in minus:
        choice("one of minus", other, table["minus"].unique())
    table, students = table[table["minus"].isin(minus)].round(6), table["student"].unique()
    height = min(3.6, 1.2 + 0.3 * table["control"].nunique()) * len(minus)
    grid = {"figsize": (10, height), "sharex": "row", "sharey": "row", "squeeze": False}
    figure, panels = plt.subplots(len(minus), len(students), layout="constrained", **grid)
    for (i, other), (j, student) in itertools.product(enumerate(minus), enumerate(students)):
        axes, rows = panels[i, j], table[(table["student"] == student) & (table["minus"] == other)][::-1]
        names = [label(control) for control in rows["control"]]
        axes.errorbar(rows["delta"], names, xerr=bars(rows, "delta"), fmt="o", color="#0072B2", capsize=3)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_title(student, fontsize="large" if len(students) < 3 else "medium")
        axes.set_xlabel(f"difference to {label(other)}, points", fontsize="medium" if len(students) < 3 else "small")
        show_points(axes.xaxis)
    if problems:
        figure.suptitle(problems)
    return noted(figure, table)


def label(recipe: str) -> str:
    """What figures call a recipe; a control by its own name."""
    return STYLE[recipe][2] if recipe in STYLE else recipe


def costs(table: pd.DataFrame) -> Figure:
    """Accuracy against tokens of training and of an answer, a point a recipe, a row a student (rivals.csv)."""
    require(table, "student", "control", "accuracy", "accuracy_low", "accuracy_high")
    require(table, "tokens trained on", "tokens an answer", *COUNTS)
    table = table.round(6).drop_duplicates(["student", "control"])
    students = table["student"].unique()
    layout = {"figsize": (10, 3.6 * len(students)), "sharex": "col", "sharey": "row", "layout": "constrained"}
    figure, panels = plt.subplots(len(students), 2, squeeze=False, **layout)
    names = table["control"].unique()
    rivals = zip(plt.get_cmap("tab20b").colors[1::2], "vPXd<>*shp", strict=True)
    looks = {name: STYLE[name][:2] if name in STYLE else next(rivals) for name in names}
    for row, student in zip(panels, students, strict=True):
        own = table[table["student"] == student]
        for axes, x in zip(row, ("tokens trained on", "tokens an answer"), strict=True):
            for point in own.to_dict("records"):
                ends = [[point["accuracy"] - point["accuracy_low"]], [point["accuracy_high"] - point["accuracy"]]]
                color, marker = looks[point["control"]]
                look = {"color": color, "fmt": marker, "mec": "black", "ms": 8, "lw": 1}
                axes.errorbar(point[x], point["accuracy"], ends, label=label(point["control"]), **look)
            show_percent(axes.yaxis)
        row[0].set(title=student, ylabel="accuracy on test problems")
    panels[-1, 0].xaxis.set_major_formatter(lambda tokens, _: drawing.size_text(int(tokens)))
    panels[-1, 0].set_xlabel("response tokens trained on, all epochs")
    panels[-1, 1].set_xlabel("tokens an answer")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=9, loc="outside right center")
    return noted(figure, table)


def rank_shift(recipes: pd.DataFrame, kinds: pd.DataFrame) -> Figure:
    """Share of shifted tokens by student size: of each recipe's answers (rank_shift.csv), and of long answers by the
    kind of word (rank_shift_kinds.csv)."""
    require(recipes, "student", "params", "recipe", "shifted", *INTERVAL, *COUNTS)
    require(kinds, "params", "recipe", "kind", "shifted", *INTERVAL)
    figure, (left, right) = drawing.panels(2, 4.6, sharey=True)
    lines(left, recipes, "recipe", ["short", "long", "mix_long"], "shifted")
    lines(right, kinds[kinds["recipe"] == "long"], "kind", ["mark", "colour", "product", "machine", "form"], "shifted")
    left.set(ylabel="share of shifted tokens", title="All tokens of an answer")
    right.set_title("Long answers, by the kind of word")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        drawing.size_axis(axes, recipes)
        drawing.label_lines(axes)
    say = "bars: 95% intervals over bases" if recipes["n_bases"].max() > 1 else "one base a size: no intervals"
    return noted(figure, recipes, say)


def moves(table: pd.DataFrame) -> Figure:
    """The gap and what the mix adds (rows), against one changed setting (columns), a line a student (moves.csv)."""
    require(table, "student", "params", "contrast", "axis", "value", "delta", *INTERVAL, *COUNTS)
    table, axes_names = table.round(6), table["axis"].unique()
    grid = {"figsize": (10, 5.6), "sharex": "col", "sharey": "row", "squeeze": False, "layout": "constrained"}
    figure, panels = plt.subplots(2, len(axes_names), **grid)
    for (i, contrast), (j, axis) in itertools.product(enumerate(table["contrast"].unique()), enumerate(axes_names)):
        axes, rows = panels[i, j], table[(table["contrast"] == contrast) & (table["axis"] == axis)]
        for n, (student, own) in enumerate(rows.groupby("student", sort=False)):
            color, marker = drawing.SIZES[n]
            x = np.arange(len(own)) + 0.1 * n
            look = {"color": color, "marker": marker, "ms": 6, "capsize": 3, "label": student}
            look["ls"] = "none" if axis in ("marks", "before") else "-"  # kinds are in no order
            axes.errorbar(x, own["delta"], bars(own, "delta"), **look)
            names = [str(value).replace(" ", "\n") for value in own["value"]]
            axes.set_xticks(np.arange(len(own)) + 0.05 * (rows["student"].nunique() - 1), names, fontsize=8.5)
            axes.set_xlim(-0.5, len(own) - 0.4)
        axes.axhline(0, color="black", lw=0.8)
        show_points(axes.yaxis)
        if j == 0:
            axes.set_ylabel(STYLE[choice("a contrast", contrast, STYLE)][2] + ", points", fontsize=9)
        if i == 1:
            axes.set_xlabel(axis)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    return noted(figure, table)


def known_marks(table: pd.DataFrame) -> Figure:
    """The gap of every base against its size and against the marks that it knows (known_marks.csv)."""
    require(table, "params", "student", "marks known", "gap", *INTERVAL, "n_seeds", "n_problems")
    figure, panels = drawing.panels(2, 4, sharey=True)
    for n, (student, rows) in enumerate(table.round(6).groupby("student", sort=False)):
        for axes, x in zip(panels, ("params", "marks known"), strict=True):
            color, marker = drawing.SIZES[n]
            look: dict[str, Any] = {"fmt": marker, "color": color, "lw": 1, "capsize": 2, "label": student}
            beside = np.arange(len(rows)) - (len(rows) - 1) / 2  # bases of one size
            at = rows[x] * 1.02**beside if x == "params" else rows[x]
            axes.errorbar(at, rows["gap"], bars(rows, "gap"), **look)
    for axes in panels:
        axes.axhline(0, color="black", lw=0.8)
        show_points(axes.yaxis)
    drawing.size_axis(panels[0], table)
    panels[0].set(ylabel=STYLE["long-short"][2] + ", points", title="by size")
    panels[1].set(xlabel="marks in long traces that the base knows before fine-tuning", title="by what is known")
    show_percent(panels[1].xaxis)
    panels[1].legend(fontsize=9)
    fewest, most, n = table["n_seeds"].min(), table["n_seeds"].max(), table["n_problems"].max()
    seeds = f"the mean over its {fewest if fewest == most else f'{fewest} to {most}'} seeds"
    note = f"{len(table)} bases, a point each: {seeds}; bars: 95% intervals over {n} test problems"
    figure.supxlabel(note, fontsize=9, x=0.01, ha="left")
    return figure


def recipes(table: pd.DataFrame, gaps: pd.DataFrame) -> Figure:
    """One student by recipe, and the gaps between recipes, a row each; the markers of all learning rates but the first
    are hollow (svamp.csv, svamp_gaps.csv)."""
    require(table, "student", "benchmark", "recipe", "lr", "accuracy", *INTERVAL, *COUNTS)
    require(gaps, "contrast", "lr", "delta", *INTERVAL, *COUNTS)
    wanted = [contrast for small, large, mix in FAMILY.values() for contrast in (f"{large}-{small}", f"{mix}-best")]
    gaps = gaps[gaps["contrast"].isin(wanted)]
    rates = [*gaps["lr"].unique()]
    beside = {lr: 0.3 * (n - (len(rates) - 1) / 2) for n, lr in enumerate(rates)}
    figure, (left, right) = drawing.panels(2, 3.4 + 0.4 * len(rates))
    for axes, rows, name, x in ((left, table, "recipe", "accuracy"), (right, gaps, "contrast", "delta")):
        names = [one for one in STYLE if one in set(rows[name])]
        for _, row in rows.round(6).iterrows():
            color, marker, _ = STYLE[choice(f"a {name}", row[name], STYLE)]
            ends = [[row[x] - row["ci_low"]], [row["ci_high"] - row[x]]]
            y = names.index(row[name]) + beside.get(row["lr"], 0.0)  # the untouched student has no rate
            face = "white" if row["lr"] in rates[1:] else color
            axes.errorbar(row[x], y, xerr=ends, c=color, marker=marker, mfc=face, ms=7, capsize=4)
        axes.set_yticks(range(len(names)), [STYLE[of][2] for of in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
    if len(rates) > 1:
        for lr, face in zip(rates, ["0.3", *["white"] * len(rates)], strict=False):
            label = f"learning rate {lr:g}, seeds: {gaps.loc[gaps['lr'] == lr, 'n_seeds'].max()}"
            left.plot([], [], "o", c="0.3", mfc=face, label=label)
        figure.legend(*left.get_legend_handles_labels(), fontsize=9, ncols=len(rates), loc="outside upper center")
    left.set(xlim=(0, None), xlabel="accuracy")
    title = f"{table['student'].iloc[0].split('/')[-1]} on {table['benchmark'].iloc[0]}"
    left.set_title(title, fontsize="medium" if drawing.narrow.get() else "large")
    right.set(xlabel="difference in accuracy, points", title="Differences, paired by problem")
    right.axvline(0, color="black", lw=0.8)
    show_percent(left.xaxis)
    show_points(right.xaxis)
    once = ", ".join(STYLE[recipe][2] for recipe in table.loc[table["n_seeds"] == 1, "recipe"].unique())
    mixed = once and table["n_seeds"].max() > 1
    cover = f"bars: 95% intervals over seeds and problems, of one model ({once}: one seed)"
    return noted(figure, gaps, cover if mixed else "")


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
        axes.plot(rows["params_b"], rows["delta_long"], marker=marker, color=color)
        axes.text(1.1 * rows["params_b"].iloc[-1], rows["delta_long"].iloc[-1], family, color=color, va="center")
    axes.axhline(0, color="black", lw=0.8)
    axes.axvspan(0.4, 3.3, color="black", alpha=0.06, lw=0)
    axes.text(3.1, axes.get_ylim()[0], "to 3B", ha="right", va="bottom")
    axes.yaxis.set_major_formatter(lambda points, _: f"{points:+g}" if points else "0")
    axes.set(xscale="log", xlim=(0.4, 140), xlabel="parameters of the student", ylabel="long - short, points")
    axes.set_title("The paper's Table 1 (mean of five benchmarks, no error bars given)")
    axes.set_xticks([0.5, 1, 3, 7, 14, 32, 70], ["0.5B", "1B", "3B", "7B", "14B", "32B", "70B"])
    axes.minorticks_off()
    figure.supxlabel(f"{len(table)} students; the paper gives one value each", fontsize=9, x=0.01, ha="left")
    return figure
