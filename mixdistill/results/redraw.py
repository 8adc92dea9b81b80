"""Every figure and the CSV files that it is drawn from: `python -m mixdistill figures`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from mixdistill.arguments import text
from mixdistill.results import drawing, figures, stats
from mixdistill.results.drawing import load_table, save_figure
from mixdistill.runs import shown

ALL_MARKS, ALL_MARKS_TITLE = ("short", "short, next machine"), "Problems with marks of all frequencies"
NARROW = ("02_learnability_gap", "svamp")  # figures of README, whose panels stand under each other on a phone


def levels(gaps: pd.DataFrame) -> Figure:
    """What other levels and shares add to level 1 of their teacher, at the rate that ran last (levels_gaps.csv)."""
    stats.require(gaps, "control", "minus", "lr", "n_seeds")
    gaps = gaps[gaps["lr"] == gaps["lr"].iloc[0]]
    lone = (gaps["n_seeds"] == 1) & (gaps["n_seeds"].max() > 1)
    named = gaps.assign(control=gaps["control"].where(~lone, gaps["control"] + " (one seed)"))
    figure = figures.forest(named, [*gaps["minus"].unique()])
    for axes in figure.axes:
        axes.margins(y=0.2)
    return figure


def redraw(folder: Path) -> list[str]:
    """Draw again every figure whose CSV files are in the folder's `data/`; returns their paths. ValueError if none."""
    drawn_from: dict[str, tuple[Callable[..., Figure], list[str]]] = {
        "01_trace_lengths": (figures.trace_lengths, ["trace_lengths"]),
        "02_learnability_gap": (figures.learnability_gap, ["learnability_gap", "gaps"]),
        "03_mix_distillation": (figures.mix_distillation, ["alpha_sweep", "mix_recipes"]),
        "03_every_student": (partial(figures.by_size, what="mix"), ["gaps"]),
        "04_errors": (figures.error_shares, ["errors", "learnability_gap"]),
        "04_controls": (partial(figures.by_size, what="controls"), ["controls"]),
        "05_checks": (partial(figures.by_size, what="checks"), ["checks"]),
        "07_controls": (partial(figures.forest, minus=("short", "mix_long")), ["further_controls"]),
        "07_all_marks": (partial(figures.forest, minus=ALL_MARKS, problems=ALL_MARKS_TITLE), ["all_marks"]),
        "08_speaking_style": (figures.rank_shift, ["rank_shift", "rank_shift_kinds"]),
        "10_what_moves_the_gap": (figures.moves, ["moves"]),
        "10_known_marks": (figures.known_marks, ["known_marks"]),
        "09_beyond_mix": (partial(figures.forest, minus=("mix_long",)), ["rivals"]),
        "09_costs": (figures.costs, ["rivals"]),
        "svamp": (figures.recipes, ["svamp", "svamp_gaps"]),
        "levels": (levels, ["levels_gaps"]),
        "06_teacher_gap": (partial(figures.learnability_gap, family="large"), ["teacher_accuracy", "teacher_gaps"]),
    }
    folder = Path(text("folder", folder))
    paths_of = {path.stem: path for path in (folder / "data").glob("*.csv")}
    there = {name: (draw, of) for name, (draw, of) in drawn_from.items() if set(of) <= paths_of.keys()}
    if not there:
        ways = "mixdistill reproduce, with the same --scale, --seeds, --students and --benchmarks, makes them"
        raise ValueError(f"{shown(folder)}/data has the tables of no figure: {ways}")
    tables = {name: load_table(paths_of[name]) for name in {name for _, of in there.values() for name in of}}
    if "learnability_gap" in tables:
        tables["paper"] = load_table(figures.PAPER / "table1_long_cot_gap.csv")
        there["02_paper_table1"] = figures.paper_gap, ["paper"]
    paths = []
    for name, (draw, of) in there.items():
        for narrow in (False, True) if name in NARROW else (False,):
            token = drawing.narrow.set(narrow)
            try:
                figure = draw(*map(tables.get, of))
            except (ValueError, TypeError, KeyError) as error:  # the last two of text among numbers, others' tables
                raise ValueError(f"{shown(folder)}/data: {' and '.join(of)}: {error}") from None
            finally:
                drawing.narrow.reset(token)
            paths.append(save_figure(figure, folder, f"{name}_narrow" if narrow else name))
            plt.close(figure)
    return paths
