"""Write the tables of `FINDINGS.md` and `docs/pocket-world.md`: claims beside what was measured here, from `figures/`.

python figures/findings.py        # part of make publish
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from mixdistill.data.pocket.bases import POCKET
from mixdistill.runs import REPO
from mixdistill.study.scales import get_scale

DATA = REPO / "figures" / "data"
SMALL, LARGE = ("pocket/xs", "pocket/s"), ("pocket/l", "pocket/xl")
REAL = "SmolLM2-135M, SVAMP"


def table() -> str:
    gaps, slope = (
        pd.concat([pd.read_csv(DATA / name), pd.read_csv(DATA / f"teacher_{name}")])
        for name in ("gaps.csv", "slope.csv")
    )
    real = pd.read_csv(REPO / "figures" / "laptop" / "data" / "svamp_gaps.csv").assign(student=REAL)
    gaps = pd.concat([gaps, real[real["lr"] == get_scale("laptop").lr]])
    long, teachers, methods = (
        pd.read_csv(DATA / "paper" / f"{name}.csv")
        for name in ("table1_long_cot_gap", "table2_large_teacher_gap", "table3_mix_distillation")
    )
    average = methods.pivot(index="student", columns="method", values="average").sort_index(ascending=False)
    average.index = [student.split("-")[-2] for student in average.index]  # 3B of Qwen2.5-3B-Instruct
    mix_long = average["mix_long"] - average[["long_cot", "short_cot"]].max(axis=1)
    mix_large = average["mix_large"] - average[["large_teacher_cot", "small_teacher_cot"]].max(axis=1)
    small, contrast_of = (*SMALL, REAL), {"Mix-Long": "mix_long", "Mix-Large": "mix_large"}
    claims = []  # the paper's numbers by size, students, contrast, sign
    for low, high, number, theirs, column, contrast, mix, best in (
        ("short", "long", 1, long, "delta_long", "long-short", "Mix-Long", mix_long),
        ("small", "large", 2, teachers, "delta_large", "large_teacher-small_teacher", "Mix-Large", mix_large),
    ):
        theirs = theirs.set_index(theirs["params_b"].map("{:g}B".format))
        of = {small: theirs.loc[(theirs["params_b"] <= 3) == small, column] for small in (True, False)}
        claims += [
            (f"{high} - {low} below 0 for small students (Table {number}, to 3B)", of[True], small, contrast, -1),
            (f"{high} - {low} above 0 for larger ones (Table {number}, from 7B)", of[False], LARGE, contrast, 1),
            (f"{high} - {low} grows with size (for ten times the parameters)", None, ["all"], contrast, 1),
            (f"{mix} - better of its parts above 0 (Table 3, 3B)", best, small, f"{contrast_of[mix]}-best", 1),
        ]
    lines = [
        "| claim | the paper, by size: Qwen2.5, then Llama 3 | measured on | here | verdict |",
        "|---|---|---|---|---|",
    ]
    for claim, theirs, students, contrast, sign in claims:
        for student in students:
            rows = slope if student == "all" else gaps[gaps["student"] == student]
            rows = rows[rows["contrast"] == contrast]
            if student == REAL and rows.empty:  # not every contrast was run on it
                continue
            found, verdict = measured(rows.iloc[0], sign)
            lines.append(f"| {claim} | {points(theirs)} | {student} | {found} | {verdict} |")
    return "\n".join([*lines, *of_figures()]) + "\n"


def of_figures() -> list[str]:
    """Rows of the paper's claims that it shows in figures, without a number."""
    moves, marks, shares, shifts = (
        pd.read_csv(DATA / f"{name}.csv") for name in ("moves", "marks", "alpha_gaps", "rank_shift")
    )
    rows = []
    for _, row in marks[marks["what"] == "gap"].iterrows():
        claim = "long - short is higher where the domain is known (Fig. 4)"
        rows.append((claim, f"{row['student']}, marks read most often - most seldom", *measured(row, 1)))
    before = moves[(moves["axis"] == "before") & (moves["contrast"] == "long-short")]
    for student, two in before.groupby("student"):
        short, nothing = (two[two["value"] == value].iloc[0] for value in ("short traces", "nothing"))
        delta, df = short["delta"] - nothing["delta"], min(short["n_bases"], nothing["n_bases"]) - 1
        half = student_t.ppf(0.975, df) * np.hypot(short["se"], nothing["se"])
        row = pd.Series({"delta": delta, "ci_low": delta - half, "ci_high": delta + half})
        claim = "long - short is higher for a student that was tuned before (Fig. 5)"
        rows.append((claim, f"{student}, after short traces - as pre-trained, as if not paired", *measured(row, 1)))
    for student, others in shares[shares["share"] != "best on the others"].groupby("student", sort=False):
        apart = [(others["ci_low"] > 0).any(), (others["ci_high"] < 0).all(), True]
        verdict = ("differs", "agrees", "cannot tell")[apart.index(True)]
        best = others.loc[others["delta"].idxmax()]
        found = f"{best['share']} - .2: {measured(best, -1)[0]}"
        claim = "a fifth of long traces is the best share (Fig. 6)"
        rows.append((claim, f"{student}, best other share", found, verdict))
    for student, two in shifts.groupby("student", sort=False):
        long, short = (two[two["recipe"] == recipe].iloc[0] for recipe in ("long", "short"))
        cells = [f"{row.shifted:.1%} [{row.ci_low:.1%}, {row.ci_high:.1%}]" for row in (long, short)]
        apart = [long["ci_low"] > short["ci_high"], long["ci_high"] < short["ci_low"], True]
        verdict = ("agrees", "differs", "cannot tell")[apart.index(True)]
        claim = "long traces shift more tokens than short ones (Fig. 8)"
        rows.append((claim, student, f"{cells[0]} against {cells[1]} of the tokens", verdict))
    return [f"| {claim} | a figure | {on} | {found} | {verdict} |" for claim, on, found, verdict in rows]


def asked_of_the_world() -> str:
    """What the pocket world was built to show, and whether it does."""
    names = ("gaps", "checks", "controls", "teacher_gaps")
    gaps = pd.concat([pd.read_csv(DATA / f"{name}.csv") for name in names]).drop_duplicates(["student", "contrast"])
    slope = pd.read_csv(DATA / "slope.csv")
    checks = pd.read_csv(DATA / "check_errors.csv", index_col="student").query("kind == 'at a check'")["share"]
    found = gaps.set_index(["student", "contrast"])

    def shown(contrast: str, students: Sequence[str] = POCKET) -> str:
        cells = [f"{student[7:]} {measured(found.loc[(student, contrast)], 1)[0]}" for student in students]
        return f"{contrast}: " + ", ".join(cells)

    def side(contrast: str, sign: int, students: Sequence[str] = POCKET) -> list[bool]:
        """Whether the whole interval is on that side of 0, a student each."""
        return [measured(found.loc[(student, contrast)], sign)[1] == "agrees" for student in students]

    failing = ", ".join(f"{student[7:]} {share:.0%}" for student, share in checks.items())
    (trend,) = (measured(row, 1) for _, row in slope[slope["contrast"] == "long-short"].iterrows())
    mix = [measured(found.loc[(student, "mix_long-best")], 1)[1] for student in SMALL]
    confirmed = gaps[gaps["contrast"] == "confirmed-unverified"]
    rows = [
        ("long below short at the two smallest", shown("long-short", SMALL), all(side("long-short", -1, SMALL))),
        ("long above short at the two largest", shown("long-short", LARGE), all(side("long-short", 1, LARGE))),
        ("a gap that grows with size", f"{trend[0]} for ten times the parameters", trend[1] == "agrees"),
        (
            "the mix above both its parts at one of the two smallest, below at none",
            shown("mix_long-best", SMALL),
            "agrees" in mix and "differs" not in mix,
        ),
        (
            "more of the long answers go wrong first at a check at each of the two smallest than at the two largest",
            failing,
            checks[list(SMALL)].min() > checks[list(LARGE)].max(),
        ),
        (
            "without checks, and from starts that need none: no whole interval below 0 at the two smallest",
            shown("unverified-short"),
            not any(side("unverified-short", -1, SMALL)),
        ),
        (
            "checks that only confirm: no whole interval outside -6 to +3 (met at m, l and xl by being wide)",
            shown("confirmed-unverified"),
            (confirmed["ci_high"].min() >= -0.06) & (confirmed["ci_low"].max() <= 0.03),
        ),
        (
            "starts at random, where checks must refuse, cost the two smallest and are worth it to the two largest",
            shown("long-confirmed"),
            all(side("long-confirmed", -1, SMALL) + side("long-confirmed", 1, LARGE)),
        ),
        ("finer steps help everybody", shown("short-direct"), all(side("short-direct", 1))),
        (
            "a large teacher below a small one at the two smallest, above it at the two largest",
            shown("large_teacher-small_teacher"),
            all(side("large_teacher-small_teacher", -1, SMALL) + side("large_teacher-small_teacher", 1, LARGE)),
        ),
    ]
    verdicts = ["not with all whole intervals", "yes"]
    lines = [f"| {claim} | {cells} | {verdicts[bool(holds)]} |" for claim, cells, holds in rows]
    return "\n".join(["| asked | measured, in points [95%] | holds |", "|---|---|---|", *lines]) + "\n"


def points(values: pd.Series | None) -> str:
    return "no slope given" if values is None else ", ".join(f"{size} {value:+.1f}" for size, value in values.items())


def measured(row: pd.Series, sign: int) -> tuple[str, str]:
    """A difference with its interval, and what it says of the claim that it has this sign."""
    value, low, high = (100 * row[name] for name in ("slope" if "slope" in row else "delta", "ci_low", "ci_high"))
    verdict = "cannot tell" if low <= 0 <= high else "agrees" if low * sign > 0 else "differs"
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", verdict


def write() -> None:
    for page, made in ((REPO / "FINDINGS.md", table()), (REPO / "docs" / "pocket-world.md", asked_of_the_world())):
        before, rest = page.read_text().split("<!-- findings -->\n")
        after = rest.partition("<!-- /findings -->")[2]
        page.write_text(f"{before}<!-- findings -->\n{made}<!-- /findings -->{after}")


if __name__ == "__main__":
    write()
