"""Mix Distillation (section 4 of the paper): for every problem, which trace trains the student."""

import warnings
from random import Random

from datasets import Dataset

from mixdistill.traces import check_traces

# The share of problems with the long trace, by recipe. The paper's best mix is 0.2 (Fig. 6).
RECIPES = {"short": 0.0, "long": 1.0, "mix_long": 0.2}


def mix(hard: Dataset, easy: Dataset, alpha: float, seed: int = 0) -> Dataset:
    """One SFT set in which a share `alpha` of the problems carries the hard trace, the others the easy one.

    Only problems with a trace in both sets are used, each once, in the order of `hard`; how many were left out is said in
    a warning. Exactly round(alpha * n) problems get the hard trace, and those of a smaller alpha are among those of a larger.

    Arguments:
        hard, easy: trace sets (`load_traces`), at most one trace a problem.
        alpha: share of problems with the hard trace, 0..1.
        seed: which problems.

    Returns: the traces, with a column `role`, `hard` or `easy`.

    Raises:
        ValueError: alpha outside 0..1, no common problem, or several traces of one problem.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: it is a share of the problems, from 0 (all easy) to 1 (all hard)")
    row_of = {"hard": _rows_by_problem(hard, "hard"), "easy": _rows_by_problem(easy, "easy")}
    common = [problem for problem in row_of["hard"] if problem in row_of["easy"]]
    if not common:
        raise ValueError(
            f"hard ({len(hard)} traces) and easy ({len(easy)} traces) have no problem in common: "
            "give two sets about the same problems, with the same problem_id"
        )
    left_out = {role: len(rows) - len(common) for role, rows in row_of.items()}
    if any(left_out.values()):
        warnings.warn(
            f"mix uses the {len(common)} problems in both sets; left out: {left_out['hard']} only in hard, "
            f"{left_out['easy']} only in easy",
            stacklevel=2,
        )
    order = list(range(len(common)))
    Random(f"mix/{seed}").shuffle(order)
    chosen = set(order[: round(alpha * len(common))])
    sets = {"hard": hard.to_list(), "easy": easy.to_list()}
    rows = []
    for i, problem in enumerate(common):
        role = "hard" if i in chosen else "easy"
        rows.append(sets[role][row_of[role][problem]] | {"role": role})
    return Dataset.from_list(rows)


def _rows_by_problem(traces: Dataset, name: str) -> dict[str, int]:
    ids = check_traces(traces)["problem_id"][:]
    rows = {problem: i for i, problem in enumerate(ids)}
    if len(rows) < len(ids):
        raise ValueError(f"{name} holds {len(ids)} traces of {len(rows)} problems: keep one trace a problem")
    return rows
