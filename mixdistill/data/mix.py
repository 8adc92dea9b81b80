"""Mix Distillation (section 4 of the paper): for every problem, which trace trains the student."""

import warnings
from dataclasses import dataclass
from random import Random

from datasets import Dataset

from mixdistill.arguments import number, whole
from mixdistill.data.problems import plain_question
from mixdistill.data.traces import COLUMNS, check_traces, trace_set


@dataclass(frozen=True)
class Recipe:
    """The share of problems with the hard trace, and the fields of a `Scale` that name the hard and easy trace set."""

    alpha: float
    hard: str = "long"
    easy: str = "short"


# The paper's best mix is 0.2 (Fig. 6).
RECIPES = {
    "short": Recipe(0.0),
    "long": Recipe(1.0),
    "mix_long": Recipe(0.2),
    "small_teacher": Recipe(0.0, "large", "small"),
    "large_teacher": Recipe(1.0, "large", "small"),
    "mix_large": Recipe(0.2, "large", "small"),
}
# Of the pocket world (`world.TEACHERS` says what they are).
CONTROLS = {name: Recipe(1.0, name) for name in ("unverified", "confirmed", "shuffled", "direct")}


def mix(hard: Dataset, easy: Dataset, alpha: float, seed: int = 0, n: int | None = None) -> Dataset:
    """One SFT set in which a share `alpha` of the problems carries the hard trace, the others the easy one.

    Each problem comes once. Of the problems in both sets exactly round(alpha * n) get the hard trace, and those of a
    smaller alpha are among those of a larger. Problems in one set only are left out, so that all alphas train on the
    same problems (the published sets are such intersections), and counted in a warning.

    Arguments:
        hard, easy: trace sets (`load_traces`), at most one trace a problem.
        seed: which problems are hard.
        n: at most the first so many of the common problems; None means all.

    Returns: the traces in the order of `hard`, with the columns of a trace set and `role`, `hard` or `easy`.

    Raises ValueError: alpha outside 0..1, no trace sets, no common problem, several traces of one problem, one
    `problem_id` for two questions, or another `answer_format` in hard than in easy.
    """
    alpha, seed = number("alpha", alpha, low=0, high=1), whole("seed", seed, low=0)
    n = whole("n", n, optional=True)
    rows = {"hard": _rows_by_problem(hard, "hard"), "easy": _rows_by_problem(easy, "easy")}
    common = [problem for problem in rows["hard"] if problem in rows["easy"]]
    if not common:
        what = f"hard ({len(hard)} traces) and easy ({len(easy)} traces) have no problem in common"
        advice = "with the same question's text, or a problem_id that `columns` names"
        raise ValueError(f"{what}: give two sets about the same problems, {advice}")
    asked = {problem: [plain_question(rows[role][problem]["question"]) for role in rows] for problem in common}
    apart = [problem for problem, (by_hard, by_easy) in asked.items() if by_hard != by_easy]
    if apart:
        where = f"under {len(apart)} of {len(common)} common problem_id (the first: {apart[:3]})"
        advice = "give two sets about the same problems, or leave problem_id out of columns"
        raise ValueError(f"hard and easy ask different questions {where}: {advice}")
    formats = {problem: [rows[role][problem]["answer_format"] for role in rows] for problem in common}
    unlike = [problem for problem, (of_hard, of_easy) in formats.items() if of_hard != of_easy]
    if unlike:
        of_hard, of_easy = formats[unlike[0]]
        where = f"for {len(unlike)} of {len(common)} problems"
        what = f"answer_format is {of_hard!r} in hard and {of_easy!r} in easy {where}"
        raise ValueError(f"{what}: their prompts would tell which trace follows, load both with the same one")
    if len(hard) + len(easy) > 2 * len(common):
        left_out = f"{len(hard) - len(common)} only in hard, {len(easy) - len(common)} only in easy"
        warnings.warn(f"mix uses the {len(common)} problems in both sets; left out: {left_out}", stacklevel=2)
    common = common[:n]
    shuffled = common.copy()
    Random(f"mix/{seed}").shuffle(shuffled)
    roles = dict.fromkeys(common, "easy") | dict.fromkeys(shuffled[: round(alpha * len(common))], "hard")
    return trace_set({**rows[role][problem], "role": role} for problem, role in roles.items())


def _rows_by_problem(traces: Dataset, name: str) -> dict[str, dict[str, str]]:
    table = check_traces(traces, name).select_columns(list(COLUMNS)).to_list()
    rows = {str(row["problem_id"]): row for row in table}
    if len(rows) < len(table):
        raise ValueError(f"{name} holds {len(table)} traces of {len(rows)} problems: keep one trace a problem")
    return rows
