import numpy as np
import pandas as pd
import pytest

from mixdistill import stats


def items(values: np.ndarray, **columns) -> pd.DataFrame:
    seeds, problems = np.indices(values.shape)
    return pd.DataFrame({"seed": seeds.ravel(), "problem_id": problems.ravel(), "correct": values.ravel()} | columns)


def test_one_seed_gives_the_ordinary_interval_of_a_mean():
    values = np.array([[1, 0, 1, 1, 0, 1, 1, 1, 0, 1]])
    estimate = stats.two_way_mean(values)
    half = 2.262157 * values.std(ddof=1) / np.sqrt(10)
    assert estimate.mean == pytest.approx(0.7)
    assert (estimate.low, estimate.high) == pytest.approx((0.7 - half, 0.7 + half))


@pytest.mark.parametrize(("seed_sd", "problem_sd"), [(0.0, 1.0), (1.0, 0.0), (0.3, 1.0), (0.0, 0.0)])
def test_intervals_cover_the_truth_at_least_93_times_in_100(seed_sd, problem_sd):
    rng, covered, n = np.random.default_rng(0), 0, 600
    for _ in range(n):
        values = rng.normal(0, seed_sd, (4, 1)) + rng.normal(0, problem_sd, (1, 40)) + rng.normal(0, 1, (4, 40))
        estimate = stats.two_way_mean(values)
        covered += estimate.low <= 0 <= estimate.high
    # Where seeds add nothing the interval is wider than it would have to be: four seeds cannot show that they add nothing.
    assert covered / n >= 0.93
    assert covered / n <= 0.99 or seed_sd == 0


def test_seeds_that_disagree_widen_the_interval():
    calm = np.tile([0, 1], (4, 50))
    wild = np.array([[1] * 100, [1] * 100, [0] * 100, [0] * 100])
    assert calm.mean() == wild.mean()
    width = [stats.two_way_mean(v).high - stats.two_way_mean(v).low for v in (calm, wild)]
    assert width[1] > 3 * width[0]


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
    with pytest.raises(ValueError, match="same seeds and problems"):
        stats.gap(items(np.ones((2, 5))), items(np.ones((2, 6))))


def test_all_right_is_not_certain():
    estimate = stats.accuracy(items(np.ones((3, 20))))
    assert estimate.mean == 1
    assert 0.8 < estimate.low < 0.9


def test_the_gap_table_has_every_contrast_and_the_better_part():
    frames = [
        items(np.full((2, 10), value), recipe=recipe, student="pocket/xs", params=1)
        for recipe, value in (("short", 1), ("long", 0), ("mix_long", 1))
    ]
    table = stats.gap_table(pd.concat(frames)).set_index("contrast")["delta"]
    assert table.to_dict() == {"long-short": -1, "mix_long-short": 0, "mix_long-long": 1, "mix_long-best": 0}
