"""Several samples a problem: pass@k, is one of k right, and maj@k, is the answer right that most of k give."""

from collections.abc import Sequence
from math import comb

import numpy as np
import pandas as pd

from mixdistill.arguments import texts
from mixdistill.grading.grade import equal
from mixdistill.results.stats import base_means, counts, problem_table, require, share


def sampled_table(items: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """pass@k and maj@k for every k up to the number n of samples, with intervals by problem as accuracies have them.

    One row a metric (`pass`, `maj`) and k for each value of the columns `by` (none: one group); without `benchmark` in
    `by` it is the mean over the benchmarks. pass@1 is the accuracy, avg@n. pass@k uses all n samples, maj@k the first
    k. `items` has one row a seed, problem and sample: `scores.items`, or what `sweep` returned.

    Raises ValueError where `stats.accuracy` does, and for a missing column.
    """
    require(items, *(by := texts("by", by)), "answer")
    items = items if "seed" in items else items.assign(seed=0)
    rows = []
    for name, group in items.groupby(list(by), sort=False, dropna=False) if by else [((), items)]:
        correct = problem_table(group)
        n = len(group) // correct.size
        n_right, votes = (correct * n).round().astype(int), _votes(group)
        for k in range(1, n + 1):
            at_k = np.array([pass_at_k(n, c, k) for c in range(n + 1)])
            passed = pd.DataFrame(at_k[n_right], correct.index, correct.columns)
            for metric, scores in (("pass", passed), ("maj", problem_table(votes, k))):
                estimate = share(base_means(scores, group))
                facts = dict(zip(by, name, strict=True)) | {"metric": metric, "k": k}
                rows.append(facts | estimate.columns("value") | counts(group) | {"n_samples": n})
    return pd.DataFrame(rows)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k, 1 <= k <= n, from c right ones of n samples (Chen et al., 2021, eq. 1)."""
    return 1 - comb(n - c, k) / comb(n, k)


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> list[float]:
    """maj@k for k = 1 .. the number of answers: of the first k, is the most frequent answer right?

    Answers that `grade.equal` calls equal are one answer, with the grade of the first of them; gold is not asked, so
    right answers are not merged more readily than wrong ones. No answer (None) has no vote; where nobody votes, maj@k
    is 0. A tie is the share of right answers among the tied ones: what drawing one of them would give on average.
    """
    votes: dict[str, int] = {}  # of the first answer of each class
    is_right: dict[str, bool] = {}
    scores = []
    for answer, right in zip(answers, correct, strict=True):
        if isinstance(answer, str):
            first = answer if answer in votes else next((known for known in votes if equal(known, answer)), answer)
            votes[first] = votes.get(first, 0) + 1
            is_right.setdefault(first, bool(right))
        tied = [is_right[first] for first, count in votes.items() if count == max(votes.values())]
        scores.append(sum(tied) / len(tied) if tied else 0.0)
    return scores


def _votes(items: pd.DataFrame) -> pd.DataFrame:
    """One row a seed and problem; column k holds maj@k."""
    keys = ["seed", "benchmark", "problem_id"]
    items = items.assign(answer=items["answer"].map(str, na_action="ignore"))  # numbers, where they come from a CSV
    rows = []
    for key, group in items.sort_values("sample", kind="stable").groupby(keys, sort=False):
        scores = majority(group["answer"].tolist(), group["correct"].tolist())
        rows.append(dict(zip(keys, key, strict=True)) | {"sample": 0} | dict(enumerate(scores, start=1)))
    return pd.DataFrame(rows)
