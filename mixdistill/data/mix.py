"""Mix Distillation (section 4 of the paper): for every problem, which trace trains the student."""

import warnings
from dataclasses import dataclass
from random import Random

from datasets import Dataset

from mixdistill.data.traces import check_traces


@dataclass(frozen=True)
class Recipe:
    """How an SFT set is made: the share of problems with the hard trace, and which trace sets are the hard and the easy one.

    `hard` and `easy` are parts (`long`, `short`, `large`, `small`, `unverified`, `direct`); a scale says which trace set plays each.
    """

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
# Of the pocket world: long traces without their verification, and short ones without their steps.
CONTROLS = {"unverified": Recipe(1.0, "unverified"), "direct": Recipe(1.0, "direct")}
UNMATCHED = ("intersect", "keep")


def mix(hard: Dataset, easy: Dataset, alpha: float, seed: int = 0, unmatched: str = "intersect") -> Dataset:
    """One SFT set in which a share `alpha` of the problems carries the hard trace, the others the easy one.

    Each problem comes once. Of the problems in both sets exactly round(alpha * n) get the hard trace, and those of a smaller
    alpha are among those of a larger. Problems that only one teacher has solved are counted in a warning.

    Arguments:
        hard, easy: trace sets (`load_traces`), at most one trace a problem.
        alpha: share of problems with the hard trace, 0..1.
        seed: which problems.
        unmatched: what becomes of problems in one set only. `intersect` leaves them out, so that all alphas train on the same
            problems (the published sets are such intersections). `keep` gives each the trace that it has, whatever alpha is:
            more data, but the sets of alpha 0 and 1 then hold traces of both teachers.

    Returns: the traces, with a column `role`, `hard` or `easy`; in the order of `hard`, what only `easy` has at the end.

    Raises:
        ValueError: alpha outside 0..1, an unknown policy, no common problem, or several traces of one problem.
    """
    if unmatched not in UNMATCHED:
        raise ValueError(f"unmatched is {unmatched!r}: use one of {', '.join(UNMATCHED)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: it is a share of the problems, from 0 (all easy) to 1 (all hard)")
    row_of = {"hard": _rows_by_problem(hard, "hard"), "easy": _rows_by_problem(easy, "easy")}
    common = [problem for problem in row_of["hard"] if problem in row_of["easy"]]
    if not common:
        raise ValueError(
            f"hard ({len(hard)} traces) and easy ({len(easy)} traces) have no problem in common: "
            "give two sets about the same problems, with the same problem_id"
        )
    alone = {role: len(rows) - len(common) for role, rows in row_of.items()}
    if any(alone.values()):
        counts = f"{alone['hard']} only in hard, {alone['easy']} only in easy"
        warnings.warn(
            f"mix uses the {len(common)} problems in both sets; left out: {counts}"
            if unmatched == "intersect"
            else f"mix draws from the {len(common)} problems in both sets; kept with the one trace they have: {counts}",
            stacklevel=2,
        )
    order = list(range(len(common)))
    Random(f"mix/{seed}").shuffle(order)
    chosen = {common[i] for i in order[: round(alpha * len(common))]}
    role_of = {problem: "hard" if problem in chosen else "easy" for problem in common}
    if unmatched == "keep":
        problems = list(dict.fromkeys([*row_of["hard"], *row_of["easy"]]))
        role_of = {p: role_of.get(p, "hard" if p in row_of["hard"] else "easy") for p in problems}
    sets = {"hard": hard.to_list(), "easy": easy.to_list()}
    return Dataset.from_list([sets[role][row_of[role][problem]] | {"role": role} for problem, role in role_of.items()])


def _rows_by_problem(traces: Dataset, name: str) -> dict[str, int]:
    ids = check_traces(traces)["problem_id"][:]
    rows = {problem: i for i, problem in enumerate(ids)}
    if len(rows) < len(ids):
        raise ValueError(f"{name} holds {len(ids)} traces of {len(rows)} problems: keep one trace a problem")
    return rows
