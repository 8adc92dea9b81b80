import numpy as np
import pandas as pd
import pytest

from mixdistill.results import stats


def items(values: np.ndarray, benchmarks: list[str] | None = None, **columns) -> pd.DataFrame:
    """Graded items of `values` [seeds, problems] or [seeds, problems, samples]."""
    values = np.asarray(values)
    values = values if values.ndim == 3 else values[:, :, None]
    seeds, problems, samples = (axis.ravel() for axis in np.indices(values.shape))
    names = np.array(benchmarks or ["math"] * values.shape[1])
    frame = {"seed": seeds, "benchmark": names[problems], "problem_id": problems, "sample": samples}
    rates = {"reason": "equal", "finish_reason": "stop", "loop": False, "n_tokens": 10}
    return pd.DataFrame(frame | {"correct": values.ravel()} | rates | columns)


def test_one_seed_gives_the_ordinary_interval_of_a_mean():
    values = np.array([[1, 0, 1, 1, 0, 1, 1, 1, 0, 1]])
    estimate = stats.two_way_mean([values.T])
    half = 2.262157 * values.std(ddof=1) / np.sqrt(10)
    assert estimate.mean == pytest.approx(0.7)
    assert estimate.se == pytest.approx(values.std(ddof=1) / np.sqrt(10))
    assert (estimate.low, estimate.high) == pytest.approx((0.7 - half, 0.7 + half))


@pytest.mark.parametrize(("seed_sd", "problem_sd"), [(0.0, 1.0), (1.0, 0.0), (0.3, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("sizes", [(40,), (25, 10, 5)])
def test_intervals_cover_the_truth_at_least_93_times_in_100(seed_sd, problem_sd, sizes):
    rng, covered, n = np.random.default_rng(0), 0, 600
    benchmarks = np.repeat(range(len(sizes)), sizes)
    for _ in range(n):
        values = rng.normal(0, seed_sd, (4, 1)) + rng.normal(0, problem_sd, (1, 40)) + rng.normal(0, 1, (4, 40))
        means = range(len(sizes))
        parts = [(values[:, benchmarks == name] + name).T for name in means]
        estimate = stats.two_way_mean(parts)
        covered += estimate.low <= np.mean(means) <= estimate.high
    # Where seeds add nothing the interval is wider than it would have to be: four seeds cannot show that they add
    # nothing.
    assert covered / n >= 0.93
    assert covered / n <= 0.99 or seed_sd == 0


def test_seeds_that_disagree_widen_the_interval():
    calm = np.tile([0, 1], (4, 50))
    wild = np.array([[1] * 100, [1] * 100, [0] * 100, [0] * 100])
    assert calm.mean() == wild.mean()
    calm, wild = (stats.two_way_mean([values.T]) for values in (calm, wild))
    assert wild.high - wild.low > 3 * (calm.high - calm.low)


def test_every_benchmark_counts_the_same_whatever_its_size():
    values = np.array([[1] * 30 + [0] * 70])
    names = ["aime24"] * 30 + ["math"] * 70
    assert stats.accuracy(items(values)).mean == pytest.approx(0.3)
    assert stats.accuracy(items(values, names)).mean == pytest.approx(0.5)
    rates = stats.accuracy_table(items(values, names, n_tokens=np.where(values.ravel(), 5, 15)), [])
    assert rates["mean_tokens"].item() == pytest.approx(10)


def test_the_standard_error_of_a_mean_over_benchmarks_adds_up_those_of_the_benchmarks():
    rng = np.random.default_rng(2)
    easy, hard = rng.normal(0, 1, (30, 1)), rng.normal(5, 3, (50, 1))
    both = stats.two_way_mean([easy, hard])
    parts = [stats.two_way_mean([values]).se for values in (easy, hard)]
    assert both.se == pytest.approx(np.hypot(*parts) / 2)


def test_samples_of_a_problem_are_not_counted_as_problems():
    answered_alike = np.repeat(np.random.default_rng(0).integers(0, 2, (1, 30, 1)), 8, axis=2)
    eight, one = stats.accuracy(items(answered_alike)), stats.accuracy(items(answered_alike[:, :, 0]))
    assert eight == one
    table = stats.accuracy_table(items(answered_alike), [])
    assert table[["n_problems", "n_samples"]].iloc[0].to_list() == [30, 8]


def test_samples_that_differ_narrow_the_interval():
    one = np.random.default_rng(0).integers(0, 2, (1, 200, 1))
    eight = np.random.default_rng(0).integers(0, 2, (1, 200, 8))
    assert stats.accuracy(items(eight)).se < stats.accuracy(items(one)).se / 2


@pytest.mark.parametrize(("n", "rate", "n_samples"), [(30, 0.03, 1), (30, 0.9, 4), (100, 0.5, 1), (100, 0.1, 4)])
def test_intervals_of_accuracies_near_0_and_1_cover_too(n, rate, n_samples):
    rng, covered, runs = np.random.default_rng(5), 0, 600
    index = pd.MultiIndex.from_product([["aime24"], range(n)], names=["benchmark", "problem_id"])
    for _ in range(runs):
        ability = rng.beta(2 * rate, 2 * (1 - rate), (1, n, 1)) if n_samples > 1 else rate
        values = (rng.random((1, n, n_samples)) < ability).mean(2)
        estimate = stats.share(pd.DataFrame(values, columns=index))
        assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
        covered += estimate.low <= rate <= estimate.high
    assert covered / runs >= 0.93


def test_all_right_is_not_certain():
    estimate = stats.accuracy(items(np.ones((3, 20))))
    assert estimate.mean == 1
    assert estimate.high == 1
    assert 0.8 < estimate.low < 0.9


def test_items_that_lack_a_sample_or_repeat_one_are_refused():
    whole = items(np.ones((2, 5, 3)))
    with pytest.raises(ValueError, match="same number of samples"):
        stats.accuracy(whole.iloc[:-1])
    with pytest.raises(ValueError, match="the table lacks sample, it has seed, benchmark"):
        stats.accuracy(whole.drop(columns="sample"))
    with pytest.raises(ValueError, match="1 of 31 items repeat"):
        stats.accuracy(pd.concat([whole, whole.iloc[:1]]))
    with pytest.raises(ValueError, match="a grade for every problem"):
        stats.accuracy(whole[(whole["seed"] == 0) | (whole["problem_id"] > 0)])
    with pytest.raises(ValueError, match="the table is empty"):
        stats.accuracy_table(whole.iloc[:0], ["benchmark"])
    ungraded = whole.astype({"correct": float})
    ungraded.loc[0, "correct"] = np.nan
    with pytest.raises(ValueError, match="a grade for every problem and the same number of samples"):
        stats.accuracy(ungraded)


def test_a_group_without_a_name_is_a_row_too():
    untouched = items(np.ones((1, 5)), alpha=np.nan)
    table = stats.accuracy_table(pd.concat([untouched, items(np.zeros((1, 5)), alpha=0.2)]), ["alpha"])
    assert table["accuracy"].to_list() == [1, 0]


def test_a_gap_is_paired_by_seed_and_problem():
    rng = np.random.default_rng(1)
    short = rng.integers(0, 2, (3, 50))
    long = short.copy()
    long[:, :5] = 0
    estimate = stats.gap(items(long), items(short))
    assert estimate.mean == pytest.approx(long.mean() - short.mean())
    shuffled = items(long).sample(frac=1, random_state=0)
    assert stats.gap(shuffled, items(short)) == estimate
    unpaired = stats.accuracy(items(long))
    assert estimate.high - estimate.low < unpaired.high - unpaired.low


def test_a_gap_of_other_problems_is_refused():
    with pytest.raises(ValueError, match="same seeds, bases and problems"):
        stats.gap(items(np.ones((2, 5))), items(np.ones((2, 6))))


def test_no_difference_in_thirty_problems_is_not_a_certain_zero():
    same = items(np.zeros((1, 30)))
    estimate = stats.gap(same, same)
    assert estimate.mean == 0
    assert 0.05 < estimate.high == -estimate.low < 0.15


def simulated_pair(rng, n_seeds: int, n: int, seed_sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Two recipes of one true accuracy: problems differ in difficulty, recipes in the problems they suit, seeds in
    all.
    """

    def outcomes() -> np.ndarray:
        logits = difficulty + rng.normal(0, 1, (1, n)) + rng.normal(0, seed_sd, (n_seeds, 1))
        return rng.random((n_seeds, n)) < 1 / (1 + np.exp(-logits))

    difficulty = rng.normal(0, 1.5, (1, n))
    return outcomes(), outcomes()


@pytest.mark.parametrize(("n_seeds", "seed_sd"), [(1, 0), (5, 0.5)])
def test_intervals_of_gaps_cover_the_truth(n_seeds, seed_sd):
    rng, covered, runs = np.random.default_rng(3), 0, 150
    for _ in range(runs):
        estimate = stats.gap(*(items(values) for values in simulated_pair(rng, n_seeds, 60, seed_sd)))
        covered += estimate.low <= 0 <= estimate.high
    assert covered / runs >= 0.93


def arms(benchmarks: list[str] | None = None, **recipes: np.ndarray) -> pd.DataFrame:
    frames = [items(v, benchmarks, recipe=name, student="pocket/xs", params=1) for name, v in recipes.items()]
    return pd.concat(frames, ignore_index=True)


def test_the_gap_table_has_every_contrast_and_the_better_part():
    parts = {"short": np.ones((2, 10)), "long": np.zeros((2, 10)), "mix_long": np.ones((2, 10))}
    table = stats.gap_table(arms(**parts)).set_index("contrast")["delta"]
    assert table.to_dict() == {"long-short": -1, "mix_long-short": 0, "mix_long-long": 1, "mix_long-best": 0}


def test_the_gap_table_takes_the_recipes_that_are_there():
    ones, zeros = np.ones((1, 10)), np.zeros((1, 10))
    teachers = stats.gap_table(arms(small_teacher=zeros, large_teacher=ones, mix_large=ones, untouched=ones))
    assert teachers.set_index("contrast")["delta"].to_dict() == {
        "large_teacher-small_teacher": 1,
        "mix_large-small_teacher": 1,
        "mix_large-large_teacher": 0,
        "mix_large-best": 0,
    }
    assert list(stats.gap_table(arms(short=ones, mix_long=zeros))["contrast"]) == ["mix_long-short"]
    with pytest.raises(ValueError, match="no gap between the recipes short, untouched: a student needs both of long"):
        stats.gap_table(arms(short=ones, untouched=zeros))


def test_the_gap_table_shows_each_benchmark_on_request():
    names = ["aime24"] * 10 + ["math"] * 30
    short, long = np.ones((1, 40)), np.array([[0] * 10 + [1] * 30])
    frame = arms(names, short=short, long=long)
    each = stats.gap_table(frame, by_benchmark=True)
    assert each.set_index("benchmark")["delta"].to_dict() == {"aime24": -1, "math": 0}
    mean = stats.gap_table(frame)
    assert mean["delta"].to_list() == [-0.5]
    assert mean["n_problems"].to_list() == [40]
    assert "benchmark" in stats.readable_gaps(each)
    assert list(stats.readable_gaps(mean)["verdict"]) == ["below 0 (one seed)"]


def test_the_verdict_is_seen_before_the_counts_and_only_known_gaps_are_asked_for():
    table = stats.gap_table(arms(short=np.ones((1, 10)), long=np.zeros((1, 10))))
    assert list(stats.readable_gaps(table))[:5] == ["student", "contrast", "points", "95% interval", "verdict"]
    assert len(stats.readable_gaps(table, ["long-short"])) == 1
    with pytest.raises(ValueError, match="contrasts is 'long-shrt': use one of long-short, "):
        stats.readable_gaps(table, ["long-shrt"])


@pytest.mark.parametrize(
    ("n_seeds", "n_bases", "verdict"), [(1, 1, "above 0 (one seed)"), (3, 1, "above 0 (one base)"), (6, 3, "above 0")]
)
def test_a_verdict_names_the_one_seed_or_base_that_it_rests_on(n_seeds, n_bases, verdict):
    values = np.tile([1] * 30 + [0] * 10, (n_seeds, 1))
    frames = [
        with_bases(v, n_seeds // n_bases, recipe=r, student="s", params=1)
        for r, v in (("short", 0 * values), ("long", values))
    ]
    table = stats.gap_table(pd.concat(frames))
    assert list(stats.readable_gaps(table)["verdict"]) == [verdict]


def test_gaps_by_student_have_a_row_a_student_with_a_readers_guesses_beside_them():
    ones, zeros = np.ones((2, 10)), np.zeros((2, 10))
    small, mixed = arms(short=ones, long=zeros), arms(short=ones[:1], mix_long=ones[:1])
    frame = pd.concat([arms(short=zeros, long=ones).assign(student="l", params=9), small.assign(student="s", params=1)])
    gaps = stats.gap_table(frame)
    gaps = pd.concat([gaps, stats.gap_table(mixed.assign(student="s", params=1)).head(1)])  # of one seed
    gaps = stats.readable_gaps(gaps)
    wide = stats.gaps_by_student(gaps, {"long-short": [-5, None], "mix_long-short": [None, None]})
    assert list(wide)[:3] == ["you said, long - short", "long - short", "mix_long - short"]
    assert list(wide)[3:] == ["params", "n_problems", "n_seeds", "n_bases"]
    assert wide.index.to_list() == ["s", "l"]
    assert wide["you said, long - short"].to_list() == ["-5", ""]
    assert wide["long - short"].iloc[0].startswith("-100.0 [")
    assert wide["long - short"].iloc[0].endswith("] below 0 (one base)")
    assert wide["mix_long - short"].to_list()[1] == ""  # which the large student has not
    assert wide["n_seeds"].to_list() == ["1 to 2", 2]
    unknown = stats.gaps_by_student(gaps.assign(params=gaps["params"].where(gaps["student"] == "l")))
    assert unknown.index.to_list() == ["l", "s"]  # a size that is not known comes last, and is not dropped
    assert list(unknown)[:2] == ["long - short", "mix_long - short"]  # also where the first student lacks one
    with pytest.raises(ValueError, match="a contrast is 'other': use one of long-short"):
        stats.gaps_by_student(gaps.assign(contrast="other").drop_duplicates("student"))
    for guesses in ([1], "12", ["+5", "3"], None, 5):
        with pytest.raises(ValueError, match="guess"):
            stats.gaps_by_student(gaps, {"long-short": guesses})
    with pytest.raises(ValueError, match="a contrast that was guessed is 'short_direct': use one of long-short"):
        stats.gaps_by_student(gaps, {"short_direct": [1, 2]})
    with pytest.raises(ValueError, match="give one size, the mean over the benchmarks"):
        stats.gaps_by_student(pd.concat([gaps, gaps]))


def test_tables_of_earlier_versions_with_further_columns_are_read():
    table = stats.gap_table(arms(short=np.zeros((2, 10)), long=np.ones((2, 10))))
    earlier = table.assign(boot_low=0.9, boot_high=1.1, mcnemar_p=np.nan, detectable=0.1)
    assert stats.readable_gaps(earlier).equals(stats.readable_gaps(table))


def test_tables_show_how_completions_end():
    ends = {"finish_reason": ["length", "stop", "stop", "stop"], "reason": ["no_answer", "no_answer", "equal", "equal"]}
    short = items(np.ones((1, 4)), recipe="short", student="s", params=1)
    long = items(np.ones((1, 4)), recipe="long", student="s", params=1, loop=[True, False, False, False]).assign(
        **ends, n_tokens=40
    )
    row = stats.accuracy_table(long, ["student", "recipe"]).iloc[0]
    assert row[["truncated", "no_answer", "loop", "mean_tokens"]].to_list() == [0.25, 0.5, 0.25, 40]
    gap = stats.gap_table(pd.concat([short, long])).iloc[0]
    assert gap[["diff_truncated", "diff_no_answer", "diff_loop", "diff_tokens"]].to_list() == [0.25, 0.5, 0.25, 30]


def test_the_papers_table_has_a_column_a_benchmark_and_their_mean():
    names = ["math"] * 10 + ["aime24"] * 10
    frame = arms(names, short=np.array([[1] * 10 + [0] * 10]), untouched=np.zeros((1, 20)))
    wide = stats.paper_table(frame).set_index("recipe")
    assert list(wide.columns) == ["student", "math", "aime24", "mean", "truncated", "no_answer", "loop", "mean_tokens"]
    assert [cell.split()[0] for cell in wide.loc["short", ["math", "aime24", "mean"]]] == ["100.0", "0.0", "50.0"]


def with_bases(values: np.ndarray, seeds_a_base: int, **columns) -> pd.DataFrame:
    """Items whose seeds are spread in turn over bases: seeds 0, n, 2n, ... start from base 0."""
    n_bases = len(values) // seeds_a_base
    return items(values, **columns).assign(base=lambda frame: "base-" + (frame["seed"] % n_bases).astype(str))


def test_the_seeds_of_one_base_are_averaged():
    values = np.random.default_rng(0).integers(0, 2, (6, 40))
    averaged = stats.replicates(with_bases(values, seeds_a_base=2))
    assert list(averaged.index) == ["base-0", "base-1", "base-2"]
    assert np.array_equal(averaged, (values[:3] + values[3:]) / 2)
    assert np.array_equal(stats.replicates(items(values)), values)  # without the column every seed stands for itself


def test_the_seeds_of_a_student_that_is_one_model_are_drawn():
    values = (np.random.default_rng(0).random((4, 40)) < 0.5).astype(int)
    one = with_bases(values, seeds_a_base=4)
    assert stats.accuracy(one) == stats.accuracy(items(values))
    assert stats.counts(one)["n_bases"] == 1


def test_several_seeds_a_base_give_the_interval_of_the_means_of_the_bases():
    left, right = np.random.default_rng(0).integers(0, 2, (2, 6, 40))
    bases = [with_bases(values, seeds_a_base=2) for values in (left, right)]
    # The same means: three seeds with two samples of each problem.
    means = [items(np.stack([values[:3], values[3:]], axis=2)) for values in (left, right)]
    assert stats.accuracy(bases[0]) == stats.accuracy(means[0])
    assert stats.gap(*bases) == stats.gap(*means)


def test_more_seeds_of_the_same_bases_do_not_pass_for_more_bases():
    """Where the bases differ and their seeds do not, ten seeds of two bases say as much as two seeds."""
    bases = np.array([[1] * 30 + [0] * 10, [1] * 20 + [0] * 20])
    many = stats.accuracy(with_bases(np.tile(bases, (5, 1)), seeds_a_base=5))
    few = stats.accuracy(with_bases(bases, seeds_a_base=1))
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_tables_count_seeds_and_bases():
    values = np.random.default_rng(0).integers(0, 2, (6, 40))
    arms = [
        with_bases(values ^ flip, 2, recipe=recipe, student="s", params=1)
        for flip, recipe in enumerate(("short", "long"))
    ]
    frame = pd.concat(arms, ignore_index=True)
    for table in (stats.accuracy_table(frame, ["recipe"]), stats.gap_table(frame)):
        assert set(table["n_seeds"]) == {6}
        assert set(table["n_bases"]) == {3}
        assert set(table["n_problems"]) == {40}
    assert (stats.accuracy_table(frame, ["recipe"])["n_samples"] == 1).all()
    assert list(stats.readable_gaps(stats.gap_table(frame))["n_bases"]) == [3]
    assert set(stats.accuracy_table(items(values), [])["n_bases"]) == {1}


def test_a_gap_of_other_bases_is_refused():
    values = np.ones((4, 5))
    with pytest.raises(ValueError, match=r"same seeds, bases and problems on both sides: .* 2 x 5 against 4 x 5"):
        stats.gap(with_bases(values, seeds_a_base=2), with_bases(values, seeds_a_base=1))


def test_items_of_which_some_have_no_base_are_refused():
    items_of = with_bases(np.ones((4, 5)), seeds_a_base=2)
    with pytest.raises(ValueError, match="the column 'base' lacks values"):
        stats.gap(items_of.assign(base=items_of["base"].where(items_of["seed"] > 0)), items_of)


def test_intervals_over_bases_cover_the_truth_and_those_over_their_seeds_would_not():
    """Five bases with two seeds each; the gap differs from base to base, and is 0 in the mean over all bases."""
    rng, runs, n = np.random.default_rng(8), 300, 100
    covered = {"bases": 0, "seeds": 0}
    for _ in range(runs):
        difficulty = rng.normal(0, 1.5, n)
        logits = difficulty + rng.normal(0, 0.6, (2, 5, 1)) + rng.normal(0, 0.5, (2, 5, n))  # of 2 recipes and 5 bases
        left, right = (rng.random((2, 2, 5, n)) < 1 / (1 + np.exp(-logits[:, None]))).reshape(2, 10, n)
        spread = [with_bases(values, seeds_a_base=2) for values in (left, right)]
        for unit, frames in (("bases", spread), ("seeds", [frame.drop(columns="base") for frame in spread])):
            estimate = stats.gap(*frames)
            covered[unit] += estimate.low <= 0 <= estimate.high
    assert 0.93 <= covered["bases"] / runs <= 0.99
    assert covered["seeds"] / runs < 0.9


def test_intervals_over_three_bases_are_too_narrow_where_one_in_six_fails():
    """As docs/pocket-world.md says: bases whose gap is +41 or +40 points, or -7 for one in six (2xl's)."""
    rng, covered, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        gaps = np.where(rng.random(3) < 1 / 6, -0.07, rng.normal(0.405, 0.007, 3))
        estimate = stats.two_way_mean([gaps[:, None]])
        covered += estimate.low <= 5 / 6 * 0.405 - 1 / 6 * 0.07 <= estimate.high
    assert covered / runs < 0.6


def test_two_bases_added_where_three_are_undecided_find_what_is_not_there_more_often():
    rng, found, runs = np.random.default_rng(0), 0, 4000
    for _ in range(runs):
        gaps = rng.normal(0, 1, 5)
        estimates = [stats.two_way_mean([gaps[:n, None]]) for n in (3, 5)]
        found += any(not estimate.low <= 0 <= estimate.high for estimate in estimates)
    assert 0.07 < found / runs < 0.1


def sized_students(gains: dict[int, list[float]], recipe: str = "long") -> pd.DataFrame:
    """Students by parameters, with the gain of `recipe` over short on each of their bases, of 100 problems."""
    frames = []
    for params, of_bases in gains.items():
        for name, right in (("short", [50] * len(of_bases)), (recipe, [50 + round(100 * gain) for gain in of_bases])):
            values = np.arange(100) < np.array(right)[:, None]
            frames.append(with_bases(values, 1, recipe=name, student=f"of {params}", params=params))
    return pd.concat(frames, ignore_index=True)


def test_the_slope_is_the_difference_in_the_gap_for_ten_times_the_parameters():
    row = stats.slope_table(sized_students({10**4: [-0.15, -0.25], 10**5: [0.0], 10**6: [0.25, 0.2, 0.15]})).iloc[0]
    assert row["contrast"] == "long-short"
    assert row["slope"] == pytest.approx(0.2)
    assert 0 < row["ci_low"] < 0.2 < row["ci_high"] < 0.4
    assert row["n_bases"] == 6


def test_a_slope_counts_bases_and_not_their_seeds():
    values = np.arange(100) < np.array([[40], [60]])
    students = [
        with_bases(values ^ flip, 2, recipe=recipe, student=f"of {params}", params=params)
        for params in (10**4, 10**5)
        for recipe, flip in (("short", False), ("long", True))
    ]
    assert list(stats.slope_table(pd.concat(students, ignore_index=True))["n_bases"]) == [2]


def test_a_slope_of_nothing_but_zeros_is_no_certain_zero():
    row = stats.slope_table(sized_students({10**4: [0.0], 10**5: [0.0]})).iloc[0]
    assert row["ci_low"] < row["slope"] == 0 < row["ci_high"]


def test_a_slope_needs_the_gap_of_every_student_and_more_than_one():
    short_of_mix = sized_students({10**4: [0.1], 10**5: [0.2]}, recipe="mix_long")
    assert list(stats.slope_table(short_of_mix)["contrast"]) == ["mix_long-short"]
    with_another = pd.concat([short_of_mix, sized_students({10**6: [0.3]}, recipe="long")])
    assert len(stats.slope_table(with_another)) == 0
    assert len(stats.slope_table(sized_students({10**4: [0.1, 0.2]}))) == 0


def test_intervals_of_slopes_cover_the_truth():
    """The gap differs from base to base and from problem to problem, the same at every size in the mean."""
    rng, runs, covered = np.random.default_rng(9), 80, 0
    for _ in range(runs):
        frames = []
        difficulty, suits = rng.normal(0, 1.5, 60), rng.normal(0, 0.5, (2, 1, 60))
        for params in (10**4, 10**5, 10**6):
            logits = difficulty + suits + rng.normal(0, 0.6, (2, 3, 1)) + rng.normal(0, 0.5, (2, 3, 60))
            right = rng.random((2, 3, 60)) < 1 / (1 + np.exp(-logits))
            for recipe, values in zip(("short", "long"), right, strict=True):
                frames.append(with_bases(values, 1, recipe=recipe, student=str(params), params=params))
        row = stats.slope_table(pd.concat(frames, ignore_index=True)).iloc[0]
        covered += row["ci_low"] <= 0 <= row["ci_high"]
    assert covered / runs >= 0.93
