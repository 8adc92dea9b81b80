import warnings

import pytest
from datasets import Dataset

from mixdistill import load_traces, mix

N = 37


@pytest.fixture(scope="module")
def traces():
    return load_traces("pocket/long", n=N), load_traces("pocket/short", n=N)


@pytest.mark.parametrize("alpha", [0, 0.1, 0.2, 1 / 3, 0.5, 0.8, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_exactly_the_asked_share_of_problems_is_hard_and_each_occurs_once(traces, alpha, seed):
    hard, easy = traces
    mixed = mix(hard, easy, alpha, seed)
    assert mixed["problem_id"] == hard["problem_id"]
    assert mixed["role"].count("hard") == round(alpha * N)
    for row, long_text, short_text in zip(mixed, hard["response"], easy["response"], strict=True):
        assert row["response"] == (long_text if row["role"] == "hard" else short_text)


def test_the_mix_depends_on_its_seed_and_on_nothing_else(traces):
    assert mix(*traces, 0.4, 5).to_list() == mix(*traces, 0.4, 5).to_list()
    assert mix(*traces, 0.4, 5)["role"] != mix(*traces, 0.4, 6)["role"]


def test_the_hard_problems_of_a_small_alpha_are_among_those_of_a_larger(traces):
    def chosen(alpha):
        mixed = mix(*traces, alpha)
        return {row["problem_id"] for row in mixed if row["role"] == "hard"}

    assert chosen(0.1) < chosen(0.2) < chosen(0.8)


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_alpha_outside_0_to_1_is_refused(traces, alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha}: .* from 0 .* to 1"):
        mix(*traces, alpha)


def test_sets_without_common_problems_are_refused(traces):
    with pytest.raises(ValueError, match="no problem in common"):
        mix(traces[0], load_traces("pocket/short", n=5, seed=99), 0.2)


def test_problems_of_one_set_only_are_left_out_and_counted(traces):
    hard, easy = traces
    with pytest.warns(UserWarning, match=r"30 problems in both sets; left out: 7 only in hard, 0 only in easy"):
        assert len(mix(hard, easy.select(range(30)), 0.2)) == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix(hard, easy, 0.2)


def test_kept_unmatched_problems_carry_the_one_trace_they_have(traces):
    hard, easy = (part.select(rows) for part, rows in zip(traces, (range(30), range(10, N)), strict=True))
    with pytest.warns(UserWarning, match=r"20 problems in both .* kept .*: 10 only in hard, 7 only in easy"):
        mixed = mix(hard, easy, 0.5, unmatched="keep")
    assert mixed["problem_id"] == traces[0]["problem_id"]
    assert mixed["role"][:10] == ["hard"] * 10
    assert mixed["role"][10:30].count("hard") == 10
    assert mixed["role"][30:] == ["easy"] * 7
    matched = {"hard": hard, "easy": easy}
    with pytest.warns(UserWarning, match="left out"):
        intersected = mix(**matched, alpha=0.5).to_list()
    assert mixed.select(range(10, 30)).to_list() == intersected


def test_an_unknown_policy_for_unmatched_problems_is_refused(traces):
    with pytest.raises(ValueError, match="unmatched is 'union': use one of intersect, keep"):
        mix(*traces, 0.2, unmatched="union")


def test_two_traces_of_one_problem_are_refused(traces):
    doubled = Dataset.from_list(traces[0].to_list() + traces[0].select([0]).to_list())
    with pytest.raises(ValueError, match=f"{N + 1} traces of {N} problems"):
        mix(doubled, traces[1], 0.2)


def test_a_set_without_the_columns_is_refused(traces):
    with pytest.raises(ValueError, match="no column 'response'"):
        mix(traces[0].remove_columns("response"), traces[1], 0.2)
