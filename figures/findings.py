"""Write the table of `FINDINGS.md`, the paper's claims beside what was measured here, from the tables in `figures/`.

python figures/findings.py        # part of make publish
"""

import pandas as pd

from mixdistill.runs import REPO

DATA = REPO / "figures" / "data"
SMALL, LARGE = ("pocket/xs", "pocket/s"), ("pocket/l", "pocket/xl")


def table() -> str:
    gaps, slope = pd.read_csv(DATA / "gaps.csv"), pd.read_csv(DATA / "slope.csv")
    long, teachers, methods = (
        pd.read_csv(DATA / "paper" / f"{name}.csv")
        for name in ("table1_long_cot_gap", "table2_large_teacher_gap", "table3_mix_distillation")
    )
    average = methods.pivot(index="student", columns="method", values="average").sort_index(ascending=False)
    mix_long = average["mix_long"] - average[["long_cot", "short_cot"]].max(axis=1)
    mix_large = average["mix_large"] - average[["large_teacher_cot", "small_teacher_cot"]].max(axis=1)
    claims = [  # the paper's numbers, students, contrast, sign
        (
            "short over long for small students (Table 1, to 3B)",
            long[long["params_b"] <= 3]["delta_long"],
            SMALL,
            "long-short",
            -1,
        ),
        (
            "long over short for larger ones (Table 1, from 7B)",
            long[long["params_b"] > 3]["delta_long"],
            LARGE,
            "long-short",
            1,
        ),
        ("the gap grows with size (for ten times the parameters)", [], ["all"], "long-short", 1),
        ("Mix-Long over both its parts (Table 3, 3B)", mix_long, SMALL, "mix_long-best", 1),
    ]
    lines = ["| claim | the paper: Qwen2.5, then Llama 3 | measured on | here | verdict |", "|---|---|---|---|---|"]
    for claim, theirs, students, contrast, sign in claims:
        for student in students:
            rows = slope if student == "all" else gaps[gaps["student"] == student]
            found, verdict = measured(rows[rows["contrast"] == contrast].iloc[0], sign)
            lines.append(f"| {claim} | {points(theirs)} | {student} | {found} | {verdict} |")
    small = teachers[teachers["params_b"] <= 3]["delta_large"]
    lines.append(f"| small over large teachers for small students (Table 2, to 3B) | {points(small)} | not yet | | |")
    lines.append(f"| Mix-Large over both its parts (Table 3, 3B) | {points(mix_large)} | not yet | | |")
    return "\n".join(lines) + "\n"


def points(values) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


def measured(row: pd.Series, sign: int) -> tuple[str, str]:
    """A difference with its interval, and what it says of the claim that it has this sign."""
    value, low, high = (100 * row[name] for name in ("slope" if "slope" in row else "delta", "ci_low", "ci_high"))
    verdict = "cannot tell" if low <= 0 <= high else "agrees" if low * sign > 0 else "differs"
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", verdict


def write() -> None:
    page = REPO / "FINDINGS.md"
    before, rest = page.read_text().split("<!-- findings -->\n")
    page.write_text(f"{before}<!-- findings -->\n{table()}<!-- /findings -->{rest.partition('<!-- /findings -->')[2]}")


if __name__ == "__main__":
    write()
