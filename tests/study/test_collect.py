import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from mixdistill import Sampling, collect_traces, evaluate, files, get_scale, load_problems, mix
from mixdistill.data.final_answers import final_answer
from mixdistill.data.problems import POCKET_TIERS
from mixdistill.data.traces import check_traces
from mixdistill.study.collect import _fates, trained_teachers
from mixdistill.study.scales import recipe_arm
from mixdistill.study.sweep import trace_set, training_set

collecting = importlib.import_module("mixdistill.study.collect")
evaluation = importlib.import_module("mixdistill.results.evaluate")
WARM = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 60, "progress": False}


@pytest.fixture(scope="module")
def problems():
    return load_problems("pocket/easy", n=12, split="train") + load_problems("pocket/hard", n=12, split="train")


@pytest.mark.filterwarnings("ignore:.*gave a right answer to")
def test_only_right_and_whole_answers_become_traces_and_everything_else_is_counted(problems):
    collected = collect_traces("pocket/s", problems, 12, **WARM)
    golds = {problem.question: problem.answer for problem in problems}
    for trace in check_traces(collected.traces):
        assert final_answer(trace["response"], "pocket") == golds[trace["question"]]
    counts = collected.counts.set_index("problem_id")
    assert list(counts.index) == [problem.id for problem in problems]
    assert (counts.sum(axis=1) == 12).all()
    assert counts["kept"].sum() == len(collected.traces)
    assert counts["wrong"].sum() > 0
    assert counts["duplicate"].sum() > 0
    assert collected.summary()["problems_with_trace"] == len(set(collected.traces["problem_id"]))


@pytest.mark.filterwarnings("ignore:.*gave a right answer to")
@pytest.mark.parametrize("keep", ["shortest", "longest", "random"])
def test_one_trace_a_problem_can_be_kept_and_mixed(problems, keep):
    every = collect_traces("pocket/s", problems, 4, **WARM).counts
    collected = collect_traces("pocket/s", problems, 4, keep=keep, **WARM)
    ids = collected.traces["problem_id"][:]
    assert len(set(ids)) == len(ids) == (every["kept"] > 0).sum()
    assert (collected.counts["not_chosen"] == (every["kept"] - 1).clip(lower=0)).all()
    assert len(mix(collected.traces, collected.traces, 0.5)) == len(ids)


def test_shortest_and_longest_go_by_tokens():
    items = evaluate("pocket/xs", ["pocket/easy"], n=2, sampling=Sampling(1.0, n=3), progress=False).items
    items = items.assign(correct=True, reason="equal", finish_reason="stop", n_tokens=[5, 4, 6, 3, 9, 3])
    items["response"] = list("abcdef")
    assert list(_fates(items, "shortest", 0)) == [
        "not_chosen",
        "kept",
        "not_chosen",
        "kept",
        "not_chosen",
        "not_chosen",
    ]
    assert list(_fates(items, "longest", 0)) == ["not_chosen", "not_chosen", "kept", "not_chosen", "kept", "not_chosen"]


def test_a_cut_completion_is_no_trace_even_with_the_right_answer_in_it():
    items = evaluate("pocket/xs", ["pocket/easy"], n=2, progress=False).items
    items = items.assign(correct=True, reason="equal", finish_reason=["length", "stop"])
    assert list(_fates(items, "all", 0)) == ["truncated", "kept"]


def test_a_trace_begins_with_the_think_tag_that_its_teachers_prompt_ends_with(monkeypatch):
    problems = load_problems("pocket/easy", n=2)
    scores = evaluate("pocket/xs", [problems], progress=False)
    files.write_json(scores.folder / "config.json", {"opens_thinking": True})
    right = scores.items.assign(correct=True, reason="equal", finish_reason="stop", response=["1 </think> 2", "3 4"])
    monkeypatch.setattr(collecting, "evaluate", lambda *_, **more: replace(scores, items=right))
    assert collect_traces("pocket/xs", problems).traces["response"][:] == ["<think>\n1 </think> 2", "<think>\n3 4"]


@pytest.mark.filterwarnings("ignore:.*gave a right answer to")
def test_a_killed_collection_asks_no_finished_problem_again(problems, monkeypatch, tmp_path):
    options = WARM | {"batch_size": 16}
    undisturbed = collect_traces("pocket/s", problems, 4, **options)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "killed"))
    complete, asked = evaluation.complete, []

    def die_in_batch_3(student, prompts, *rest, **named):
        if len(asked) == 2:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return complete(student, prompts, *rest, **named)

    monkeypatch.setattr(evaluation, "complete", die_in_batch_3)
    with pytest.raises(KeyboardInterrupt):
        collect_traces("pocket/s", problems, 4, **options)
    resumed = collect_traces("pocket/s", problems, 4, **options)
    assert sum(asked) == 4 * len(problems)
    assert resumed.traces.to_list() == undisturbed.traces.to_list()
    assert resumed.counts.equals(undisturbed.counts)


def test_a_teacher_that_solves_nothing_is_refused_with_the_reasons(qwen, math_problems):
    problems = load_problems(str(math_problems), columns={"question": "problem"})
    with pytest.raises(
        ValueError, match=r"none of the 6 completions by 'toy-qwen' is right \(6 (no answer|truncated)\)"
    ):
        collect_traces(qwen, problems, 1, max_new_tokens=8, temperature=0, top_p=1, progress=False)


def test_problems_without_trace_are_said(problems):
    with pytest.warns(UserWarning, match=r"gave a right answer to \d+ of 24 problems; completions: .* kept, .* wrong"):
        collect_traces("pocket/s", problems, 1, **WARM)


def test_bad_requests_are_refused(problems):
    with pytest.raises(ValueError, match="keep is 'best': use one of all, shortest, longest, random"):
        collect_traces("pocket/s", problems, keep="best")
    with pytest.raises(ValueError, match="greedy completions of one prompt are all the same"):
        collect_traces("pocket/s", problems, 2, temperature=0)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        collect_traces("pocket/s", [])
    with pytest.raises(ValueError, match=r"Sampling's n is 1\.5"):
        collect_traces("pocket/s", problems, 1.5)
    with pytest.raises(ValueError, match="an option is 'stored_only': use one of max_new_tokens, engine"):
        collect_traces("pocket/s", problems, seed=77, stored_only=True)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Their run store, the scale with their traces, and what they solved."""
    folder = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXDISTILL_RUNS", str(folder))
        return folder, *trained_teachers(get_scale("smoke"))


def test_two_trained_teachers_give_right_traces_of_the_problems_that_both_solve(teachers):
    _, taught, solved = teachers
    large, small = (check_traces(trace_set(part, taught.n_train, 0)) for part in (taught.large, taught.small))
    assert large["question"][:] == small["question"][:]
    assert large["response"][:] != small["response"][:]
    asked = [one for tier in POCKET_TIERS for one in load_problems(tier, n=22, split="train")]
    golds = {one.question: one.answer for one in asked}
    for traces in (large, small):
        assert all(final_answer(row["response"], "pocket") == golds[row["question"]] for row in traces)
    own = set(trace_set(taught.long, taught.n_train, 0)["problem_id"])
    assert set(solved["problem_id"]) == {one.id for one in asked} - own
    assert (solved["both"] == solved["large"] & solved["small"]).all()
    assert len(large) == solved["kept"].sum() == min(taught.n_train, solved["both"].sum())
    assert "mix_large" in taught.recipes


def test_a_second_call_writes_nothing(teachers, monkeypatch):
    folder, taught, _ = teachers
    monkeypatch.setenv("MIXDISTILL_RUNS", str(folder))
    before = Path(taught.large.source).stat().st_mtime_ns
    assert Path(trained_teachers(get_scale("smoke"))[0].large.source).stat().st_mtime_ns == before


def test_two_teachers_need_two_students():
    with pytest.raises(ValueError, match="has one student, pocket/xs: a large and a small teacher are two"):
        trained_teachers(replace(get_scale("smoke"), students=("pocket/xs",)))


def test_more_problems_than_a_file_holds_are_refused(teachers):
    _, taught, _ = teachers
    with pytest.raises(ValueError, match=r"n_train is 1000: there are traces of \d+ problems"):
        training_set(replace(recipe_arm("pocket/xs", "large_teacher", 0), n_train=1000), taught)


def test_real_models_have_published_teachers():
    with pytest.raises(ValueError, match="'gpu' has real models: give it trace sets of its teachers"):
        trained_teachers(get_scale("gpu"))
