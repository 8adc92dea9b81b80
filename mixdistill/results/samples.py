"""Several samples a problem: pass@k, is one of k right, and maj@k, is the answer right that most of k give."""

from collections.abc import Sequence
from math import comb

import numpy as np
import pandas as pd

from mixdistill.grading.grade import equal
from mixdistill.results.stats import counts, problem_table, require, share


def sampled_table(items: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """pass@k and maj@k for every k up to the number n of samples, with intervals by problem as accuracies have them.

    One row a metric (`pass`, `maj`) and k for each value of the columns `by` (none: one group); without `benchmark` in
    `by` it is the mean over the benchmarks. pass@1 is the accuracy, avg@n. pass@k uses all n samples, maj@k the first
    k.

    Arguments:
        items: one row a seed, problem and sample, with columns benchmark, problem_id, sample, correct, answer, and seed
            where there are several: `scores.items`, or what `sweep` returned.

    Raises ValueError where `stats.accuracy` does, and for a missing column.
    """
    items = items if "seed" in items else items.assign(seed=0)
    require(items, *by, "answer")
    rows = []
    for name, group in items.groupby(by, sort=False) if by else [((), items)]:
        correct = problem_table(group)
        n = len(group) // correct.size
        n_right, votes = (correct * n).round().astype(int), _votes(group)
        for k in range(1, n + 1):
            at_k = np.array([pass_at_k(n, c, k) for c in range(n + 1)])
            passed = pd.DataFrame(at_k[n_right], correct.index, correct.columns)
            for metric, estimate in (("pass", share(passed)), ("maj", share(problem_table(votes, k)))):
                facts = dict(zip(by, name, strict=True)) | {"metric": metric, "k": k}
                rows.append(facts | estimate.columns("value") | counts(group) | {"n_samples": n})
    return pd.DataFrame(rows)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k from `c` right ones of `n` samples, 1 - C(n - c, k) / C(n, k) (Chen et al., 2021,
    eq. 1).

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right ones among {n} samples: take k from 1 to the number of samples")
    return 1 - comb(n - c, k) / comb(n, k)


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> list[float]:
    """maj@k for k = 1 .. the number of answers: of the first k, is the most frequent answer right?

    Answers that `grade.equal` calls equal are one answer, with the grade of the first of them; gold is not asked, so
    right answers are not merged more readily than wrong ones. No answer (None) has no vote; where nobody votes, maj@k
    is 0. A tie is the share of right answers among the tied ones: what drawing one of them would give on average.
    """
    votes: list[int] = []
    known: list[tuple[str, bool]] = []  # the first answer of each class, with its grade
    class_of: dict[str, int] = {}
    scores = []
    for answer, right in zip(answers, correct, strict=True):
        if isinstance(answer, str):
            if answer not in class_of:
                same = (i for i, (first, _) in enumerate(known) if equal(first, answer))
                class_of[answer] = next(same, len(known))
                if class_of[answer] == len(known):
                    known.append((answer, bool(right)))
                    votes.append(0)
            votes[class_of[answer]] += 1
        tied = [right for (_, right), count in zip(known, votes, strict=True) if count == max(votes)]
        scores.append(sum(tied) / len(tied) if tied else 0.0)
    return scores


def _votes(items: pd.DataFrame) -> pd.DataFrame:
    """One row a seed and problem; column k holds maj@k."""
    keys = ["seed", "benchmark", "problem_id"]
    groups = items.sort_values("sample", kind="stable").groupby(keys, sort=False)
    scores = {key: majority(group["answer"].tolist(), group["correct"].tolist()) for key, group in groups}
    table = pd.DataFrame.from_dict(scores, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=keys)
    return table.rename(columns=lambda i: i + 1).reset_index().assign(sample=0)
