import warnings

import pytest
from datasets import Dataset

from mixdistill import load_traces, mix
from mixdistill.data.traces import COLUMNS

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


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan"), None, "0.2", True, [0.2]])
def test_alpha_is_a_number_from_0_to_1(traces, alpha):
    with pytest.raises(ValueError, match=r"alpha is .*: it is a finite number, at least 0, at most 1"):
        mix(*traces, alpha)


@pytest.mark.parametrize("seed", [None, "0", 1.5, float("nan"), -1, True])
def test_a_seed_is_a_whole_number(traces, seed):
    with pytest.raises(ValueError, match=r"seed is .*: it is a whole number, at least 0"):
        mix(*traces, 0.2, seed)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("wrong", [None, "pocket/long", [], {"train": 1}])
def test_what_is_no_trace_set_is_refused(traces, place, wrong):
    given = [wrong if i == place else part for i, part in enumerate(traces)]
    with pytest.raises(ValueError, match=f"{('hard', 'easy')[place]} are a .*: give one datasets.Dataset"):
        mix(*given, 0.2)


def test_one_id_for_two_questions_is_refused(traces):
    hard, easy = traces
    asked = [f"{question} really" if i == 3 else f"  {question}" for i, question in enumerate(easy["question"])]
    with pytest.raises(ValueError, match=rf"different questions under 1 of {N} common problem_id"):
        mix(hard, easy.remove_columns("question").add_column("question", asked), 0.2)


def test_integer_ids_become_text_and_only_the_columns_of_traces_are_kept(traces):
    numbered = [part.remove_columns("problem_id").add_column("problem_id", list(range(N))) for part in traces]
    mixed = mix(numbered[0].add_column("tokens", [1] * N), numbered[1], 0.2)
    assert mixed["problem_id"] == [str(i) for i in range(N)]
    assert mixed.column_names == [*COLUMNS, "role"]


def test_two_answer_formats_are_refused(traces):
    hard, easy = traces
    others = easy.map(lambda row: row | {"answer_format": "gsm8k", "response": "#### 5"})
    with pytest.raises(ValueError, match="is 'pocket' in hard and 'gsm8k' in easy for 37 of 37 problems"):
        mix(hard, others, 0.2)


def test_n_takes_the_first_of_the_common_problems(traces):
    hard, easy = traces
    backwards = easy.select(range(len(easy) - 1, -1, -1))
    made = mix(hard, backwards, 0.5, n=4)
    assert list(made["problem_id"]) == list(hard["problem_id"][:4])
    assert sorted(made["role"]) == ["easy", "easy", "hard", "hard"]
    assert len(mix(hard, easy, 0.5, n=10_000)) == len(hard)


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


def test_two_traces_of_one_problem_are_refused(traces):
    doubled = Dataset.from_list(traces[0].to_list() + traces[0].select([0]).to_list())
    with pytest.raises(ValueError, match=f"{N + 1} traces of {N} problems"):
        mix(doubled, traces[1], 0.2)


def test_a_set_without_the_columns_is_refused(traces):
    with pytest.raises(ValueError, match="no column 'response'"):
        mix(traces[0].remove_columns("response"), traces[1], 0.2)
