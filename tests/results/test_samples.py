from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mixdistill import Sampling, evaluate
from mixdistill.results import stats
from mixdistill.results.samples import majority, pass_at_k, sampled_table


def samples(answers: list[list[str | None]], gold: str = "1", benchmark: str = "math", seed: int = 0) -> pd.DataFrame:
    """Graded items, a row of `answers` a problem."""
    rows = [
        {
            "seed": seed,
            "benchmark": benchmark,
            "problem_id": i,
            "sample": j,
            "answer": answer,
            "correct": answer == gold,
        }
        for i, row in enumerate(answers)
        for j, answer in enumerate(row)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("n_right", range(6))
def test_pass_at_k_is_the_share_of_draws_of_k_samples_with_a_right_one(n_right):
    right = [True] * n_right + [False] * (5 - n_right)
    for k in range(1, 6):
        draws = [any(draw) for draw in combinations(right, k)]
        assert pass_at_k(5, n_right, k) == pytest.approx(np.mean(draws))


def test_the_majority_wins_whoever_is_right():
    assert majority(["7", "1", "1"], [False, True, True]) == [0, 0.5, 1]
    assert majority(["1", "7", "7"], [True, False, False]) == [1, 0.5, 0]


def test_answers_that_the_grader_calls_equal_vote_together_right_or_wrong():
    assert majority(["1,000", "7", "1000"], [True, False, True])[-1] == 1
    assert majority(["0.5", "7", "0.50"], [False, True, False])[-1] == 0


def test_no_answer_does_not_vote():
    assert majority([None, None, "1"], [False, False, True]) == [0, 0, 1]
    assert majority([None], [False]) == [0]


def test_pass_at_1_is_the_accuracy_also_where_bases_have_different_numbers_of_seeds():
    items = pd.concat([samples([["1", "2"], ["2", str(seed)]], seed=seed) for seed in (0, 1, 2)])
    items["base"] = items["seed"].map({0: "a", 1: "b", 2: "b"})
    table = sampled_table(items, []).set_index(["metric", "k"])
    expected = stats.accuracy(items)
    assert table.loc[("pass", 1), ["value", "ci_low", "ci_high"]].tolist() == pytest.approx(
        [expected.mean, expected.low, expected.high]
    )


def test_a_tie_is_what_a_draw_among_the_tied_gives_on_average():
    assert majority(["1", "2", "3"], [True, False, False])[-1] == pytest.approx(1 / 3)


def test_the_table_has_both_metrics_for_every_k_up_to_the_number_of_samples():
    items = pd.concat([samples([["1", "2", "1"], ["2", "2", "1"], ["1", None, None]], seed=seed) for seed in (0, 1)])
    table = sampled_table(items, []).set_index(["metric", "k"])
    assert table.index.to_list() == [(metric, k) for k in (1, 2, 3) for metric in ("pass", "maj")]
    assert table.loc["pass", "value"].to_list() == pytest.approx([4 / 9, 7 / 9, 1])
    assert table.loc["maj", "value"].to_list() == pytest.approx([2 / 3, 1.5 / 3, 2 / 3])
    assert (table["ci_low"] < table["value"]).all()
    assert table[["n_problems", "n_seeds", "n_samples"]].to_numpy().tolist() == [[3, 2, 3]] * 6


def test_pass_at_1_is_the_accuracy():
    rng = np.random.default_rng(0)
    items = pd.concat(
        [samples(rng.integers(1, 4, (n, 8)).astype(str).tolist(), benchmark=name) for name, n in (("a", 20), ("b", 50))]
    )
    row, estimate = sampled_table(items, []).iloc[0], stats.accuracy(items)
    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx((estimate.mean, estimate.low, estimate.high))
    each = sampled_table(items, ["benchmark"])
    assert each.groupby(["metric", "k"])["value"].mean().loc["pass", 1] == pytest.approx(estimate.mean)


def test_intervals_of_pass_at_k_cover_the_truth():
    rng, covered, runs, k = np.random.default_rng(1), 0, 600, 4
    ability = rng.beta(0.5, 1.5, 10**6)
    truth = (1 - (1 - ability) ** k).mean()
    columns = pd.MultiIndex.from_product([["math"], range(40)], names=["benchmark", "problem_id"])
    for _ in range(runs):
        n_right = rng.binomial(8, rng.choice(ability, 40))
        estimate = stats.share(pd.DataFrame([[pass_at_k(8, c, k) for c in n_right]], columns=columns))
        covered += estimate.low <= truth <= estimate.high
    assert covered / runs >= 0.93


def test_the_table_takes_what_evaluate_returns():
    scores = evaluate("pocket/xs", "pocket/easy", n=4, sampling=Sampling(temperature=1.0, n=3), progress=False)
    table = sampled_table(scores.items, by=["benchmark"]).set_index(["metric", "k"])
    assert table.loc[("pass", 1), "value"] == pytest.approx(scores.accuracy)
    assert table.loc[("pass", 3), "n_seeds"] == 1


def test_answers_that_a_csv_made_numbers_vote_as_before():
    items = samples([["1", "2", "1"], ["2", "1", None]])
    read = items.assign(answer=items["answer"].astype(float))
    pd.testing.assert_frame_equal(sampled_table(read, []), sampled_table(items, []))


def test_a_group_without_a_name_is_no_less_a_row():
    named = samples([["1", "2"]]).assign(alpha=0.2)
    table = sampled_table(pd.concat([named, named.assign(alpha=None)]), ["alpha"])
    assert table["alpha"].isna().tolist() == [False] * 4 + [True] * 4
