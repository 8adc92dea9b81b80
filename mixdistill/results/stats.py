"""Accuracies and gaps with 95% intervals that cover problems, the samples drawn of them, training seeds and bases.

Items are one row a seed, problem and sample, with the columns of `evaluate.Scores` and `sweep`. The samples of a
problem are averaged first, so standard errors are clustered by problem (Miller, Adding Error Bars to Evals, 2024,
section 2.2), and so are the seeds of one pre-trained model (column `base`), where there are several: of a student that
is one model, seeds and problems are drawn. Each benchmark counts the same, as in the paper's tables, and is fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # quantiles of Student's t; `scipy.stats`, which has them too, is slow to import

from mixdistill.arguments import choice, flag, instance, number, texts

# The two sides of every gap. Of two recipes on the right, the more accurate one is taken.
CONTRASTS = {
    "long-short": ("long", ["short"]),
    "mix_long-short": ("mix_long", ["short"]),
    "mix_long-long": ("mix_long", ["long"]),
    "mix_long-best": ("mix_long", ["short", "long"]),
    "large_teacher-small_teacher": ("large_teacher", ["small_teacher"]),
    "mix_large-small_teacher": ("mix_large", ["small_teacher"]),
    "mix_large-large_teacher": ("mix_large", ["large_teacher"]),
    "mix_large-best": ("mix_large", ["small_teacher", "large_teacher"]),
    "unverified-short": ("unverified", ["short"]),
    "long-unverified": ("long", ["unverified"]),
    "confirmed-unverified": ("confirmed", ["unverified"]),
    "long-confirmed": ("long", ["confirmed"]),
    "short-direct": ("short", ["direct"]),
}


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, standard error and degrees of freedom."""

    mean: float
    low: float
    high: float
    se: float
    df: float

    def columns(self, name: str) -> dict[str, float]:
        """What a table shows of it, the mean as `name`."""
        return {name: self.mean, "se": self.se, "ci_low": self.low, "ci_high": self.high}


def accuracy(items: pd.DataFrame) -> Estimate:
    """Accuracy of one student under one recipe. Raises ValueError where `problem_table` does."""
    return share(replicates(items))


def share(table: pd.DataFrame) -> Estimate:
    """Mean and interval of scores in 0..1 [seeds, problems], with columns as `problem_table` has them.

    Wilson's interval for the effective number of problems, p (1 - p) / se^2, with a t quantile (Dean and Pagano, J.
    Survey Statistics and Methodology 3(4), 2015), so it stays within 0..1. The standard error counts two further
    problems a benchmark, one right and one wrong: thirty right ones of thirty are not certain.
    """
    mean, padded = _by_base(table).mean(), two_way_mean(_by_benchmark(table, 0, 1))
    n, t = padded.mean * (1 - padded.mean) / padded.se**2, stdtrit(padded.df, 0.975)
    centre = (mean + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * sqrt(mean * (1 - mean) / n + t**2 / (4 * n**2))
    # Rounding must not lose the mean where all are right or all wrong.
    return replace(padded, mean=mean, low=max(0.0, min(mean, centre - half)), high=min(1.0, max(mean, centre + half)))


def gap(items: pd.DataFrame, baseline: pd.DataFrame) -> Estimate:
    """Accuracy of `items` minus that of `baseline`, paired by seed and problem.

    The standard error counts two further problems a benchmark, one better and one worse, so that no difference in 30
    problems is not a certain zero (Bonett and Price, J. Educational and Behavioral Statistics 37(4), 2012).

    Raises ValueError where `problem_table` does, or if the two are not about the same seeds and problems.
    """
    return _gap(replicates(items), replicates(baseline))


def two_way_mean(benchmarks: Sequence[np.ndarray]) -> Estimate:
    """Mean over benchmarks [problems, seeds] of at least two problems each; problems and seeds are drawn at random.

    The crossed random-effects variance (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4): that of
    the seeds' means plus that of the problems' means less that of the rest, which is in both. Benchmarks may share a
    seed's effect. With one seed the interval covers the problems only.
    """
    n, n_seeds = np.array([len(values) for values in benchmarks]), benchmarks[0].shape[1]
    df_seeds, scale = max(1, n_seeds - 1), n * len(n) ** 2
    by_seed = np.mean([values.mean(0) for values in benchmarks], axis=0)
    residuals = [values - values.mean(0) - values.mean(1, keepdims=True) + values.mean() for values in benchmarks]
    rest = np.array([(residual**2).sum() for residual in residuals]) / (df_seeds * (n - 1) * n_seeds * scale)
    problems = np.maximum(rest, np.array([values.mean(1).var(ddof=1) for values in benchmarks]) / scale)
    seeds = max(rest.sum(), ((by_seed - by_seed.mean()) ** 2).sum() / (df_seeds * n_seeds))
    return _t_interval(by_seed.mean(), [seeds, *problems, *-rest], [df_seeds, *(n - 1), *(df_seeds * (n - 1))])


def accuracy_table(items: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row for each value of the columns `by` (none: one row): accuracy, standard error, interval, counts, rates.

    Rates, means over the benchmarks like the accuracy: of completions cut at the limit (`truncated`), without an answer
    and ending in a loop; and mean tokens. With `benchmark` in `by` a row is a benchmark.

    Raises ValueError where `problem_table` does, and for a missing column.
    """
    require(items, *(by := list(texts("by", by))))
    rows = []
    for name, group in items.groupby(by, sort=False, dropna=False) if by else [((), items)]:
        facts = dict(zip(by, name, strict=True)) | accuracy(group).columns("accuracy") | counts(group)
        rows.append(facts | {"n_samples": group["sample"].nunique()} | _rates(group).to_dict())
    return pd.DataFrame(rows)


def gap_table(items: pd.DataFrame, by_benchmark: bool = False) -> pd.DataFrame:
    """The gaps of every student, those of `CONTRASTS` whose recipes are there: of each benchmark, or of their mean.

    The better part of a mix is chosen by its mean over all seeds, which can only make the mix look worse.

    Returns: student, params, contrast, `baseline` (its right side), delta, interval, counts, `diff_...` of the rates.

    Raises ValueError if no student has the recipes of a gap, or the two sides of one differ in seeds or problems.
    """
    keys, rows = ["student", "params", *["benchmark"] * flag("by_benchmark", by_benchmark)], []
    require(items, *keys, "recipe")
    for name, group in items.groupby(keys, sort=False, dropna=False):
        of = {str(recipe): part for recipe, part in group.groupby("recipe", sort=False)}
        tables = {recipe: replicates(part) for recipe, part in of.items()}
        rates = {recipe: _rates(part) for recipe, part in of.items()}
        means = pd.Series({recipe: _by_base(table).mean() for recipe, table in tables.items()})
        for contrast, (left, rights) in CONTRASTS.items():
            if {left, *rights} <= of.keys():
                right = str(means[rights].idxmax())
                more = (rates[left] - rates[right]).rename({"mean_tokens": "tokens"}).add_prefix("diff_")
                facts = dict(zip(keys, name, strict=True)) | {"contrast": contrast, "baseline": right}
                delta = _gap(tables[left], tables[right]).columns("delta")
                rows.append(facts | delta | counts(of[left]) | more.to_dict())
    if not rows:
        pairs = "; ".join(f"{left} and {rights[0]}" for left, rights in CONTRASTS.values() if len(rights) == 1)
        found = ", ".join(items["recipe"].unique())
        raise ValueError(f"there is no gap between the recipes {found}: a student needs both of {pairs}")
    return pd.DataFrame(rows)


def slope_table(items: pd.DataFrame) -> pd.DataFrame:
    """How each gap changes with the student's size: least squares over log10 of the parameters.

    The interval covers bases (each student's own) and problems (shared by all students, and two more a benchmark as in
    `gap`): their two variances are added, each of which holds the rest, so it is somewhat wide. Of a student with one
    base it covers that one's seeds. That the gaps of these sizes lie on no line is no part of it.

    Returns: one row a gap that every student has: contrast, slope (difference for ten times the parameters) with its
        interval, n_students, n_seeds (the fewest of a student), n_bases (of all students together), n_problems. Empty
        where all have one size.
    """
    require(items, "student", "params", "recipe")
    sizes = items.groupby("student")["params"].first()
    x = np.log10(sizes.map(lambda size: number("params", size, above=0)))
    of, rows = dict(tuple(items.groupby(["student", "recipe"]))), []
    tables = {key: replicates(part) for key, part in of.items()} if x.nunique() > 1 else {}
    for contrast, (left, rights) in CONTRASTS.items() if x.nunique() > 1 else ():
        if len(rights) > 1 or not all((student, recipe) in of for student in x.index for recipe in (left, *rights)):
            continue
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        pairs = [(tables[student, left], tables[student, rights[0]]) for student in x.index]
        weighted = [_differences(*pair) * weight for pair, weight in zip(pairs, weights, strict=True)]
        problems = sum(table.mean() for table in weighted).to_frame().T
        most = weights.abs().sum()  # the slope of a problem on which every student's difference is as large as can be
        padded = two_way_mean(_by_benchmark(problems, -most, most))
        bases = [_by_base(table) for table in weighted if len(table) > 1]
        variances = [padded.se**2, *(means.var(ddof=1) / len(means) for means in bases)]
        slope = _t_interval(_by_base(problems).mean(), variances, [padded.df, *(len(means) - 1 for means in bases)])
        counted = pd.DataFrame([counts(of[student, left]) for student in x.index])
        n = {"n_students": len(x), "n_seeds": counted["n_seeds"].min(), "n_bases": counted["n_bases"].sum()}
        n |= {"n_problems": problems.shape[1]}
        rows.append({"contrast": contrast} | slope.columns("slope") | n)
    columns = ["contrast", "slope", "se", "ci_low", "ci_high", "n_students", "n_seeds", "n_bases", "n_problems"]
    return pd.DataFrame(rows, columns=columns)


def readable_gaps(gaps: pd.DataFrame, contrasts: Sequence[str] = ()) -> pd.DataFrame:
    """A gap table for people: points, intervals as text, and what they say; only `contrasts`, if any are given. An
    interval of one seed, or of one base (which covers its seeds), says nothing of others: its verdict names it."""
    require(gaps, "student", "contrast", "delta", "ci_low", "ci_high", "n_seeds", "n_bases")
    wanted = [choice("contrasts", name, CONTRASTS) for name in texts("contrasts", contrasts)] or list(CONTRASTS)
    rows = gaps[gaps["contrast"].isin(wanted)].reset_index(drop=True)
    points, intervals = in_points(rows)
    verdicts = np.select([rows["ci_low"] > 0, rows["ci_high"] < 0], ["above 0", "below 0"], "undecided")
    limits = np.select([rows["n_seeds"] == 1, rows["n_bases"] == 1], [" (one seed)", " (one base)"], "")
    said = {"points": points, "95% interval": intervals, "verdict": pd.Series(verdicts) + pd.Series(limits)}
    # Counts come last, so that a narrow window shows the verdict.
    order = ["student", "benchmark", "contrast", *said, "params", "n_problems", "n_seeds", "n_bases"]
    return rows.assign(**said).filter(order)


def limit(table: pd.DataFrame) -> str:
    """What a sentence about these rows has to add: that one seed, or one base, stands behind them, and so no others."""
    require(table, "n_seeds", "n_bases")
    one = [unit for unit in ("seed", "base") if table[f"n_{unit}s"].max() == 1]
    return f" (one {one[0]})" if one else ""


def gaps_by_student(gaps: pd.DataFrame, said: Mapping[str, Sequence[float | None]] = {}) -> pd.DataFrame:
    """`readable_gaps` in fewer rows: one a student, smallest first, a column a contrast with points, interval, verdict.

    Arguments:
        gaps: as `readable_gaps` returns it, of the mean over the benchmarks.
        said: a reader's guesses in points by contrast, one a student, smallest first, or None: where there is one they
            get a column, before what was measured.

    Raises ValueError for a missing column, an unknown contrast, several rows of one student and contrast, or a bad
    guess.
    """
    require(gaps, "student", "params", "contrast", "points", "95% interval", "verdict")
    if gaps.duplicated(["student", "contrast"]).any():
        raise ValueError("a student has several rows of one contrast: give one size, the mean over the benchmarks")
    sizes = gaps.drop_duplicates("student").set_index("student")["params"].sort_values(kind="stable")  # unknown: last
    found = {choice("a contrast", name, CONTRASTS) for name in gaps["contrast"]}
    contrasts = sorted(found, key=[*CONTRASTS].index)
    cells = gaps.assign(cell=gaps["points"] + " " + gaps["95% interval"] + " " + gaps["verdict"])
    wide = cells.pivot(index="student", columns="contrast", values="cell").fillna("")
    wide = wide.loc[sizes.index, contrasts].assign(params=sizes).rename_axis(columns=None)
    for contrast, guesses in instance("said", said, Mapping).items():
        place = list(wide).index(choice("a contrast that was guessed", contrast, contrasts))
        if isinstance(guesses, str) or len(instance(f"the guess of {contrast}", guesses, Sequence)) != len(wide):
            raise ValueError(f"the guess of {contrast} is {guesses!r}: give {len(wide)} numbers or None, one a student")
        points = ["" if guess is None else f"{number('a guess', guess):+g}" for guess in guesses]
        if any(points):
            wide.insert(place, f"you said, {contrast}", points)
    counts = gaps.groupby("student")[[name for name in ("n_problems", "n_seeds", "n_bases") if name in gaps]]
    low, high = counts.min().astype(object), counts.max()
    ranges = low.where(low == high, low.astype(str) + " to " + high.astype(str)).infer_objects()
    return wide.join(ranges).rename(columns=lambda name: name.replace("-", " - "))  # can be broken


def paper_table(items: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in % with their intervals as the paper's Table 3 has them: a row a student and recipe, a column a
    benchmark, their mean, and the rates of `accuracy_table` as means over the benchmarks."""
    by = ["student", "recipe"]
    each, means = accuracy_table(items, [*by, "benchmark"]), accuracy_table(items, by)
    for table in (each, means):
        points, intervals = in_points(table, "accuracy", "")
        table["mean"] = points + " " + intervals
    cells = each.set_index([*by, "benchmark"])["mean"].unstack(sort=False)
    rates = means.set_index(by)[["mean", "truncated", "no_answer", "loop", "mean_tokens"]]
    return cells.join(rates).reset_index().rename_axis(columns=None)


def replicates(items: pd.DataFrame) -> pd.DataFrame:
    """`problem_table` with the seeds of one base averaged [bases, ...]; without several bases as it is [seeds, ...]."""
    table = base_means(problem_table(items), items)
    table.attrs["seeds"] = sorted(items["seed"].unique())
    return table


def base_means(table: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table, a seed each, as the mean of each base's; `items` say which base a seed had."""
    if "base" in items and items["base"].isna().any():
        raise ValueError("the column 'base' lacks values: give every item its base, or leave the column out")
    base_of = items.groupby("seed")["base" if _n_bases(items) > 1 else "seed"].first()
    return table.groupby(base_of).mean()


def problem_table(items: pd.DataFrame, column: str | int = "correct") -> pd.DataFrame:
    """Mean of `column`, scores from 0 to 1, over the samples of each problem [seeds, (benchmark, problem_id)]. Raises
    ValueError if a seed lacks a problem, a sample is there twice, problems differ in their number of samples, or a
    score is none."""
    keys = ["seed", "benchmark", "problem_id"]
    require(items, *keys, "sample", column)
    scores = pd.to_numeric(items[column], errors="coerce")
    if wrong := list(items[column][~scores.between(0, 1) & items[column].notna()].head(3)):
        raise ValueError(f"the column {column!r} holds {wrong}: every score is True, False, or a number from 0 to 1")
    if twice := int(items.duplicated([*keys, "sample"]).sum()):
        raise ValueError(f"{twice} of {len(items)} items repeat seed, problem and sample of another: give each once")
    groups = items.groupby(keys)[column]
    sizes, table = groups.count(), groups.mean().unstack(["benchmark", "problem_id"])
    if table.isna().any(axis=None) or sizes.nunique() > 1:
        found = f"{table.shape[0]} seeds, {table.shape[1]} problems, {sorted(sizes.unique().tolist())} samples"
        raise ValueError(f"every seed needs a grade for every problem and the same number of samples of each: {found}")
    return table.sort_index(axis=1)


def counts(items: pd.DataFrame) -> dict[str, int]:
    """Problems, seeds, and pre-trained models of the student in these items."""
    n_problems = items.groupby(["benchmark", "problem_id"], dropna=False).ngroups
    return {"n_problems": n_problems, "n_seeds": items["seed"].nunique(), "n_bases": _n_bases(items)}


def require(items: pd.DataFrame, *columns: str | int) -> None:
    """Raise ValueError if a table has no rows, or lacks one of these columns."""
    instance("the table", items, pd.DataFrame)
    if items.empty:
        raise ValueError("the table is empty: give at least one row")
    if missing := [str(name) for name in columns if name not in items]:
        raise ValueError(f"the table lacks {', '.join(missing)}, it has {', '.join(map(str, items))}: add them")


def _gap(left: pd.DataFrame, right: pd.DataFrame) -> Estimate:
    table = _differences(left, right)
    padded = two_way_mean(_by_benchmark(table, -1, 1))
    return _t_interval(_by_base(table).mean(), [padded.se**2], [padded.df])


def _differences(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    same_seeds = left.attrs["seeds"] == right.attrs["seeds"]
    if not (same_seeds and left.index.equals(right.index) and left.columns.equals(right.columns)):
        sizes = " against ".join(f"{table.shape[0]} x {table.shape[1]}" for table in (left, right))
        raise ValueError(f"a gap needs the same seeds, bases and problems on both sides: here bases x problems {sizes}")
    return left - right


def _by_benchmark(table: pd.DataFrame, *further: float) -> list[np.ndarray]:
    """Each benchmark [problems, seeds], with a further problem for each score in `further`."""
    labels, values = table.columns.get_level_values("benchmark"), table.to_numpy(float).T
    scores = [np.full(len(table), score) for score in further]
    return [np.vstack([values[labels == name], *scores]) for name in labels.unique()]


def _by_base(table: pd.DataFrame) -> np.ndarray:
    return np.mean([values.mean(0) for values in _by_benchmark(table)], axis=0)


def _t_interval(mean: float, variances: list[float], dfs: list[float]) -> Estimate:
    """The interval of a mean whose variance is the sum of these, with Satterthwaite's degrees of freedom."""
    variance, spread = sum(variances), sum(v**2 / df for v, df in zip(variances, dfs, strict=True))
    df = variance**2 / spread if spread > 0 else 1.0
    half = stdtrit(df, 0.975) * sqrt(variance)
    return Estimate(*map(float, (mean, mean - half, mean + half, sqrt(variance), df)))


def _n_bases(items: pd.DataFrame) -> int:
    return items["base"].nunique() if "base" in items else 1


def _rates(items: pd.DataFrame) -> pd.Series:
    require(items, "finish_reason", "reason", "loop", "n_tokens")
    ends = {"truncated": items["finish_reason"] == "length", "no_answer": items["reason"] == "no_answer"}
    rates = pd.DataFrame(ends | {"loop": items["loop"], "mean_tokens": items["n_tokens"]})
    drawn = items["base" if _n_bases(items) > 1 else "seed"]
    return rates.groupby([items["benchmark"], drawn]).mean().groupby("benchmark").mean().mean()


def in_points(table: pd.DataFrame, mean: str = "delta", sign: str = "+") -> tuple[pd.Series, pd.Series]:
    """Means in points, and their 95% intervals, as texts."""
    points, low, high = ((100 * table[name]).map(f"{{:{sign}.1f}}".format) for name in (mean, "ci_low", "ci_high"))
    return points, "[" + low + ", " + high + "]"
