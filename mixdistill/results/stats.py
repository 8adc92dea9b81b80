"""Accuracies and gaps with 95% intervals that cover the problems, the samples drawn of them and the training seeds.

Items are one row a seed, problem and sample, with the columns of `evaluate.Scores` and `sweep`. Four rules hold:

- The problem is the unit. Its samples are averaged first, so standard errors are clustered by problem (Miller, Adding
  Error Bars to Evals, 2024, section 2.2): ten samples of 30 problems are 30 observations, not 300.
- So is the base: seeds of one pre-trained model (column `base`) are averaged first, so that an interval covers the draw
  of the bases.
- Each benchmark counts the same, as in the paper's tables: a mean is the mean over the items' benchmarks, whatever
  their sizes. Benchmarks are fixed; problems and seeds are drawn.
- Every interval is the t interval of `two_way_mean`. It holds with few seeds too; a bootstrap has too few of them to
  resample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan, sqrt

import numpy as np
import pandas as pd
from scipy import stats

# Hard source, easy source and their mix: the recipes whose gaps `gap_table` takes.
FAMILIES = (("long", "short", "mix_long"), ("large_teacher", "small_teacher", "mix_large"))
# What the controls of `mix.CONTROLS` are held against.
CONTROL_GAPS = (("unverified", "short"), ("long", "unverified"), ("short", "direct"))


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, standard error and the interval's degrees of freedom."""

    mean: float
    low: float
    high: float
    n_problems: int
    n_seeds: int
    se: float
    df: float

    def columns(self, name: str) -> dict[str, float]:
        """What a table shows of it, the mean as `name`."""
        bounds = {name: self.mean, "se": self.se, "ci_low": self.low, "ci_high": self.high}
        return bounds | {"n_problems": self.n_problems, "n_seeds": self.n_seeds}


def accuracy(items: pd.DataFrame) -> Estimate:
    """Accuracy of one student under one recipe (avg@k where k samples were drawn), as the mean over the benchmarks.

    Raises ValueError if a seed lacks a problem, a sample is there twice, or problems differ in their number of samples.
    """
    return replace(share(replicates(items)), n_seeds=items["seed"].nunique())


def share(table: pd.DataFrame) -> Estimate:
    """Mean and interval of scores in 0..1 [seeds, problems], with columns as `problem_table` has them.

    Wilson's interval for the effective number of problems, p (1 - p) / se^2, with a t quantile (Dean and Pagano, J.
    Survey Statistics and Methodology 3(4), 2015), so it stays within 0..1. The standard error counts two further
    problems a benchmark, one right and one wrong: thirty right ones of thirty are not certain.
    """
    mean, padded = _mean(table).mean, _mean(table, 0, 1)
    n, t = padded.mean * (1 - padded.mean) / padded.se**2, float(stats.t.ppf(0.975, padded.df))
    centre = (mean + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * sqrt(mean * (1 - mean) / n + t**2 / (4 * n**2))
    # Rounding must not lose the mean where all are right or all wrong.
    low, high = max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
    return Estimate(mean, low, high, table.shape[1], table.shape[0], padded.se, padded.df)


def gap(items: pd.DataFrame, baseline: pd.DataFrame) -> Estimate:
    """Accuracy of `items` minus that of `baseline`, paired by seed and problem, as the mean over the benchmarks.

    The standard error counts two further problems a benchmark, one better and one worse, so that no difference in 30
    problems is not a certain zero (Bonett and Price, J. Educational and Behavioral Statistics 37(4), 2012).

    Raises ValueError if the two are not about the same seeds and problems.
    """
    table = _differences(items, baseline)
    mean, padded = _mean(table).mean, _mean(table, -1, 1)
    half = float(stats.t.ppf(0.975, padded.df)) * padded.se
    n_seeds = items["seed"].nunique()
    return Estimate(mean, mean - half, mean + half, table.shape[1], n_seeds, padded.se, padded.df)


def two_way_mean(values: np.ndarray, benchmarks: Sequence[str] | None = None) -> Estimate:
    """Mean and 95% interval of `values` [seeds, problems], both drawn at random.

    With `benchmarks` [problems], the name of each problem's benchmark, the mean is that over the benchmarks.

    The crossed random-effects variance with Satterthwaite's degrees of freedom (Searle, Casella and McCulloch, Variance
    Components, 1992, chapter 4): the variance of the seeds' means plus that of the problems' means, within benchmarks,
    less that of the rest, which is in both. The benchmarks may share a seed's effect. With one seed the interval covers
    the problems only. A benchmark of one problem has no interval.
    """
    n_seeds, n_problems = values.shape
    labels = np.zeros(n_problems) if benchmarks is None else np.asarray(benchmarks)
    parts = [values[:, labels == name] for name in pd.unique(labels)]
    n = np.array([part.shape[1] for part in parts])
    by_seed = np.mean([part.mean(1) for part in parts], axis=0)
    mean = float(by_seed.mean())
    if n.min() == 1:
        return Estimate(mean, nan, nan, n_problems, n_seeds, nan, nan)
    problems = np.array([part.mean(0).var(ddof=1) for part in parts]) / n / len(n) ** 2
    seeds, rest, df_seeds = 0.0, np.zeros(len(n)), max(1, n_seeds - 1)
    if n_seeds > 1:
        ss_rest = [((part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()) ** 2).sum() for part in parts]
        rest = np.array(ss_rest) / (df_seeds * (n - 1)) / (n_seeds * n) / len(n) ** 2
        problems, seeds = np.maximum(problems, rest), max(by_seed.var(ddof=1) / n_seeds, rest.sum())
    variance = seeds + problems.sum() - rest.sum()
    spread = seeds**2 / df_seeds + ((problems**2 + rest**2 / df_seeds) / (n - 1)).sum()
    df = variance**2 / spread if spread > 0 else n_problems - 1
    half = float(stats.t.ppf(0.975, df)) * sqrt(variance)
    return Estimate(mean, mean - half, mean + half, n_problems, n_seeds, sqrt(variance), float(df))


def accuracy_table(items: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row for each value of the columns `by` (none: one row): accuracy, standard error, interval, counts, rates.

    With `benchmark` in `by` a row is a benchmark, without it the mean over the benchmarks. Rates, weighted like the
    accuracy: of completions cut at the limit (`truncated`), without an answer and ending in a loop; and mean tokens.
    """
    rows = []
    for name, group in items.groupby(by, sort=False) if by else [((), items)]:
        estimate = accuracy(group)
        n_samples = len(group) // (estimate.n_problems * estimate.n_seeds)
        counts = {"n_bases": n_bases(group), "n_samples": n_samples}
        rows.append(dict(zip(by, name, strict=True)) | estimate.columns("accuracy") | counts | _rates(group))
    return pd.DataFrame(rows)


def gap_table(items: pd.DataFrame, by_benchmark: bool = False) -> pd.DataFrame:
    """The gaps of every student, for the recipes that are there.

    long-short, mix_long-short, mix_long-long, and mix_long-best, the mix minus the better of its two parts; the same
    for large_teacher, small_teacher and mix_large; and the gaps of the controls. The better part of a row is chosen by
    its mean over all seeds, which can only make the mix look worse.

    Arguments:
        by_benchmark: a row for each benchmark instead of their mean.

    Returns: one row a gap, with delta, se, ci_low and ci_high as `gap` gives them, n_problems, n_seeds, n_bases, and
        diff_truncated, diff_no_answer, diff_loop, diff_tokens: the differences in these rates.

    Raises ValueError if no student has the recipes of a gap, or the two sides of one differ in seeds or problems.
    """
    rows = []
    keys = ["student", "params"] + ["benchmark"] * by_benchmark
    for name, group in items.groupby(keys, sort=False):
        of = dict(tuple(group.groupby("recipe", sort=False)))
        for contrast, left, right in _contrasts(of):
            facts = dict(zip(keys, name, strict=True)) | {"contrast": contrast}
            facts |= gap(of[left], of[right]).columns("delta") | {"n_bases": n_bases(of[left])}
            rates, others = _rates(of[left]), _rates(of[right])
            differences = {f"diff_{rate.removeprefix('mean_')}": rates[rate] - others[rate] for rate in rates}
            rows.append(facts | differences)
    if not rows:
        wanted = "; ".join(f"{hard} and {easy}" for hard, easy, _ in FAMILIES)
        raise ValueError(
            f"there is no gap between the recipes {', '.join(items['recipe'].unique())}: "
            f"a student needs both of {wanted}"
        )
    return pd.DataFrame(rows)


def slope_table(items: pd.DataFrame) -> pd.DataFrame:
    """How each gap changes with the student's size: least squares over log10 of the parameters.

    Every student counts the same. The interval covers bases (each student's own) and problems (shared by all students):
    their two variances are added, each of which holds the rest, so it is somewhat wide; t quantile with Satterthwaite's
    degrees of freedom. Of a student with one base (or one seed) it covers the problems only.

    Returns: one row a gap that every student has: contrast, slope (difference for ten times the parameters), se,
        ci_low, ci_high, n_students, n_bases (of all students together), n_problems. Empty where all have one size.
    """
    sizes = items.drop_duplicates("student").set_index("student")["params"].sort_values()
    recipes = {student: dict(tuple(group.groupby("recipe"))) for student, group in items.groupby("student")}
    x = np.log10(sizes.to_numpy(float))
    names = dict.fromkeys((left, right) for of in recipes.values() for _, left, right in _contrasts(of))
    rows = []
    for left, right in names if sizes.nunique() > 1 else ():
        if not all({left, right} <= recipes[student].keys() for student in sizes.index):
            continue
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        tables = [_differences(recipes[s][left], recipes[s][right]) for s in sizes.index]
        labels = tables[0].columns.get_level_values("benchmark")
        by_problem = sum(w * table.mean() for w, table in zip(weights, tables, strict=True)).groupby(labels)
        by_base = [table.T.groupby(labels).mean().mean() for table in tables]
        parts = [w**2 * b.var(ddof=1) / len(b) for w, b in zip(weights, by_base, strict=True) if len(b) > 1]
        dfs = [len(b) - 1 for b in by_base if len(b) > 1]
        n = by_problem.size()
        parts += list(by_problem.var(ddof=1) / n / len(n) ** 2)
        dfs += list(n - 1)
        slope, variance = by_problem.mean().mean(), sum(parts)
        df = variance**2 / sum(part**2 / d for part, d in zip(parts, dfs, strict=True)) if variance else n.sum() - 1
        half = float(stats.t.ppf(0.975, df)) * sqrt(variance)
        row = (f"{left}-{right}", slope, sqrt(variance), slope - half, slope + half)
        rows.append((*row, len(sizes), sum(map(len, tables)), int(n.sum())))
    columns = ["contrast", "slope", "se", "ci_low", "ci_high", "n_students", "n_bases", "n_problems"]
    return pd.DataFrame(rows, columns=columns)


def readable_gaps(gaps: pd.DataFrame, contrasts: tuple[str, ...] = ()) -> pd.DataFrame:
    """A gap table for people: points, intervals as text, and what they say; only `contrasts`, if any are given.

    An interval of one seed, or of one base, says nothing of others: its verdict names it.
    """
    rows = gaps[gaps["contrast"].isin(contrasts)] if contrasts else gaps
    verdicts = np.select([rows["ci_low"] > 0, rows["ci_high"] < 0], ["above 0", "below 0"], "undecided")
    n_seeds, n_bases = rows["n_seeds"], rows.get("n_bases", rows["n_seeds"])
    limits = np.select([n_seeds == 1, n_bases == 1], [" (one seed)", " (one base)"], "")
    columns = {
        "student": rows["student"],
        "params": rows["params"],
        "benchmark": rows.get("benchmark"),
        "contrast": rows["contrast"],
        "points": [f"{100 * value:+.1f}" for value in rows["delta"]],
        "95% interval": [f"[{100 * low:+.1f}, {100 * high:+.1f}]" for low, high in rows[["ci_low", "ci_high"]].values],
        "verdict": [f"{verdict}{limit}" for verdict, limit in zip(verdicts, limits, strict=True)],
        "n_problems": rows["n_problems"],
        "n_seeds": n_seeds,
        "n_bases": rows.get("n_bases"),
    }
    return pd.DataFrame(columns).dropna(axis=1, how="all").reset_index(drop=True)


def paper_table(items: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in % as the paper's Table 3 has them: one row a student and recipe, one column a benchmark.

    Then their mean; each with its 95% interval; last the rates of `accuracy_table`, as means over the benchmarks.
    """
    by = ["student", "recipe"]
    means, each = accuracy_table(items, by), accuracy_table(items, [*by, "benchmark"])
    cells = each.assign(cell=_cells(each)).set_index([*by, "benchmark"])["cell"].unstack(sort=False)
    rates = means.set_index(by)[["truncated", "no_answer", "loop", "mean_tokens"]]
    return cells.assign(mean=_cells(means)).join(rates).reset_index().rename_axis(columns=None)


def problem_table(items: pd.DataFrame, column: str = "correct") -> pd.DataFrame:
    """Mean of `column` over the samples of each problem [seeds, (benchmark, problem_id)].

    Raises ValueError if a seed lacks a problem, a sample is there twice, or problems differ in their number of samples.
    """
    keys = ["seed", "benchmark", "problem_id"]
    require(items, *keys, "sample", column)
    if twice := int(items.duplicated([*keys, "sample"]).sum()):
        raise ValueError(f"{twice} of {len(items)} items repeat seed, problem and sample of another: give each once")
    groups = items.groupby(keys)[column]
    sizes, table = groups.size(), groups.mean().unstack(["benchmark", "problem_id"])
    if table.empty or table.isna().any(axis=None) or sizes.nunique() > 1:
        found = f"{table.shape[0]} seeds, {table.shape[1]} problems, {sorted(sizes.unique().tolist())} samples"
        raise ValueError(
            "every seed needs a grade for every problem and the same number of samples of each, and there must be at "
            f"least one item: {found}"
        )
    return table.sort_index(axis=1)


def replicates(items: pd.DataFrame) -> pd.DataFrame:
    """`problem_table` with the seeds of one base averaged [bases, ...]; without a column `base` each seed is one."""
    table = problem_table(items)
    if "base" not in items:
        return table
    base_of = items.drop_duplicates("seed").set_index("seed")["base"]
    return table.groupby(base_of.reindex(table.index).to_numpy()).mean()


def n_bases(items: pd.DataFrame) -> int:
    """Pre-trained models of the student in these items."""
    return items["base"].nunique() if "base" in items else 1


def require(items: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError if the items lack one of these columns."""
    if missing := [name for name in columns if name not in items]:
        raise ValueError(f"the items lack {', '.join(missing)}, they have {', '.join(map(str, items))}: add them")


def _differences(items: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    left, right = replicates(items), replicates(baseline)
    seeds = [sorted(side["seed"].unique()) for side in (items, baseline)]
    if seeds[0] != seeds[1] or not (left.index.equals(right.index) and left.columns.equals(right.columns)):
        raise ValueError(
            f"a gap needs the same seeds, bases and problems on both sides: {left.shape[0]} seeds or bases "
            f"x {left.shape[1]} problems against {right.shape[0]} x {right.shape[1]}"
        )
    return left - right


def _mean(table: pd.DataFrame, *further: float) -> Estimate:
    """The mean over the benchmarks; each has a further problem for each score in `further`, the same for every seed."""
    labels = np.asarray(table.columns.get_level_values("benchmark"))
    names = pd.unique(labels)
    values = np.hstack([table.to_numpy(float), np.tile(further, (len(table), len(names)))])
    return two_way_mean(values, [*labels, *np.repeat(names, len(further))])


def _rates(items: pd.DataFrame) -> dict[str, float]:
    """Rates as means over the benchmarks, like the accuracy beside them."""
    ends = {"truncated": items["finish_reason"] == "length", "no_answer": items["reason"] == "no_answer"}
    rates = ends | {"loop": items["loop"], "mean_tokens": items["n_tokens"]}
    return pd.DataFrame(rates).groupby(items["benchmark"]).mean().mean().to_dict()


def _contrasts(recipes: dict[str, pd.DataFrame]) -> list[tuple[str, str, str]]:
    """Name, left and right recipe of every gap that can be taken."""
    found = []
    for hard, easy, mixed in FAMILIES:
        if hard in recipes and easy in recipes:
            found.append((f"{hard}-{easy}", hard, easy))
        found += [(f"{mixed}-{part}", mixed, part) for part in (easy, hard) if {mixed, part} <= recipes.keys()]
        if {hard, easy, mixed} <= recipes.keys():
            best = max((easy, hard), key=lambda recipe: _mean(replicates(recipes[recipe])).mean)
            found.append((f"{mixed}-best", mixed, best))
    return found + [(f"{left}-{right}", left, right) for left, right in CONTROL_GAPS if {left, right} <= recipes.keys()]


def _cells(rows: pd.DataFrame) -> list[str]:
    values = zip(rows["accuracy"], rows["ci_low"], rows["ci_high"], strict=True)
    return [f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in values]
