"""Means with confidence intervals that cover both the problems and the training seeds."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float
    n_problems: int
    n_seeds: int


def accuracy(items: pd.DataFrame) -> Estimate:
    """Accuracy of one student under one recipe. `items` has columns `seed`, `problem_id`, `correct`."""
    values = _matrix(items)
    estimate = two_way_mean(values)
    if values.min() == values.max():  # all right or all wrong: no spread, yet not certain
        low, high = _wilson(estimate.mean, estimate.n_problems)
    else:
        low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    return Estimate(estimate.mean, low, high, estimate.n_problems, estimate.n_seeds)


def gap(items: pd.DataFrame, baseline: pd.DataFrame) -> Estimate:
    """Accuracy of `items` minus that of `baseline`, paired by seed and problem.

    Raises ValueError if the two are not about the same seeds and problems.
    """
    left, right = _table(items), _table(baseline)
    if not (left.index.equals(right.index) and left.columns.equals(right.columns)):
        raise ValueError(
            f"a gap needs the same seeds and problems on both sides: {left.shape[0]} seeds x {left.shape[1]} problems "
            f"against {right.shape[0]} x {right.shape[1]}"
        )
    return two_way_mean(left.to_numpy(float) - right.to_numpy(float))


def two_way_mean(values: np.ndarray) -> Estimate:
    """Mean and 95% interval of `values` [seeds, problems], both drawn at random.

    The crossed random-effects variance, (MS_seeds + MS_problems - MS_rest) / (seeds * problems), with Satterthwaite's
    degrees of freedom (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4). With one seed the interval covers
    the problems only.
    """
    n_seeds, n_problems = values.shape
    mean = values.mean()
    if n_problems == 1:
        return Estimate(float(mean), float("nan"), float("nan"), 1, n_seeds)
    if n_seeds == 1:
        variance, df = values.var(ddof=1) / n_problems, n_problems - 1
    else:
        by_seed, by_problem = values.mean(1, keepdims=True) - mean, values.mean(0, keepdims=True) - mean
        df_rest = (n_seeds - 1) * (n_problems - 1)
        ms_rest = ((values - mean - by_seed - by_problem) ** 2).sum() / df_rest
        ms_seeds = max(n_problems * (by_seed**2).sum() / (n_seeds - 1), ms_rest)
        ms_problems = max(n_seeds * (by_problem**2).sum() / (n_problems - 1), ms_rest)
        total = ms_seeds + ms_problems - ms_rest
        variance = total / values.size
        spread = ms_seeds**2 / (n_seeds - 1) + ms_problems**2 / (n_problems - 1) + ms_rest**2 / df_rest
        df = total**2 / spread if spread > 0 else n_problems - 1
    half = stats.t.ppf(0.975, df) * np.sqrt(variance)
    return Estimate(float(mean), float(mean - half), float(mean + half), n_problems, n_seeds)


def accuracy_table(items: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row for each value of the columns `by`: accuracy, interval, counts, and rates of truncated and missing answers."""
    rows = []
    for name, group in items.groupby(by, sort=False):
        estimate = accuracy(group)
        rows.append(
            dict(zip(by, name, strict=True))
            | {
                "accuracy": estimate.mean,
                "ci_low": estimate.low,
                "ci_high": estimate.high,
                "n_problems": estimate.n_problems,
                "n_seeds": estimate.n_seeds,
                "truncated": (group["finish_reason"] == "length").mean(),
                "no_answer": (group["reason"] == "no_answer").mean(),
                "mean_tokens": group["n_tokens"].mean(),
            }
        )
    return pd.DataFrame(rows)


def gap_table(items: pd.DataFrame) -> pd.DataFrame:
    """The gaps of every student: long-short, mix_long-short, mix_long-long, and mix_long minus the better of the two.

    The better one is chosen by its mean over all seeds, which can only make `mix_long-best` look worse.
    """
    rows = []
    for (student, params), group in items.groupby(["student", "params"], sort=False):
        of = {recipe: group[group["recipe"] == recipe] for recipe in ("short", "long", "mix_long")}
        best = max(("short", "long"), key=lambda recipe: of[recipe]["correct"].mean())
        contrasts = {
            "long-short": ("long", "short"),
            "mix_long-short": ("mix_long", "short"),
            "mix_long-long": ("mix_long", "long"),
            "mix_long-best": ("mix_long", best),
        }
        for contrast, (left, right) in contrasts.items():
            estimate = gap(of[left], of[right])
            rows.append(
                {
                    "student": student,
                    "params": params,
                    "contrast": contrast,
                    "delta": estimate.mean,
                    "ci_low": estimate.low,
                    "ci_high": estimate.high,
                    "n_problems": estimate.n_problems,
                    "n_seeds": estimate.n_seeds,
                }
            )
    return pd.DataFrame(rows)


def readable_gaps(gaps: pd.DataFrame, contrasts: tuple[str, ...] = ()) -> pd.DataFrame:
    """A gap table for people: points, intervals as text, and what the interval says; only `contrasts`, if any are given."""
    rows = gaps[gaps["contrast"].isin(contrasts)] if contrasts else gaps
    verdicts = np.select([rows["ci_low"] > 0, rows["ci_high"] < 0], ["above 0", "below 0"], "undecided")
    return pd.DataFrame(
        {
            "student": rows["student"],
            "params": rows["params"],
            "contrast": rows["contrast"],
            "points": [f"{100 * value:+.1f}" for value in rows["delta"]],
            "95% interval": [
                f"[{100 * low:+.1f}, {100 * high:+.1f}]"
                for low, high in zip(rows["ci_low"], rows["ci_high"], strict=True)
            ],
            "verdict": verdicts,
            "n_problems": rows["n_problems"],
            "n_seeds": rows["n_seeds"],
        }
    ).reset_index(drop=True)


def _table(items: pd.DataFrame) -> pd.DataFrame:
    # Several samples of a problem count as one value, their mean: they are no independent problems.
    table = items.pivot_table(index="seed", columns="problem_id", values="correct", aggfunc="mean")
    if table.empty or table.isna().any(axis=None):
        raise ValueError("every seed needs a grade for every problem, and there must be at least one of each")
    return table


def _matrix(items: pd.DataFrame) -> np.ndarray:
    return _table(items).to_numpy(float)


def _wilson(share: float, n: int) -> tuple[float, float]:
    interval = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
