import importlib
import shutil

import pytest
from conftest import write_jsonl

from mixdistill import LoRA, evaluate, finetune, load_problems, load_traces
from mixdistill.results.judge import PROMPT, judge, judge_table, verdict_of
from mixdistill.runs import open_run

module = importlib.import_module("mixdistill.results.judge")
evaluation = importlib.import_module("mixdistill.results.evaluate")
QUIET = {"progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:not one of .* is a verdict")  # random weights are no judge


@pytest.fixture(scope="module")
def boxing(qwen, tmp_path_factory):
    """A student that has learnt to box an answer, often a wrong one."""
    rows = [{"problem": f"What is {n} plus 30?", "solution": f"It is \\boxed{{{n + 30}}}."} for n in range(12)]
    folder = tmp_path_factory.mktemp("boxing")
    file = write_jsonl(folder / "traces.jsonl", rows)
    train = load_traces(str(file), columns={"question": "problem", "response": "solution"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXDISTILL_RUNS", str(folder))
        return finetune(qwen, train, lora=LoRA(r=16), lr=1e-2, epochs=60, batch_size=4, **QUIET)


@pytest.fixture
def scores(boxing, qwen, store, math_problems):
    run = open_run(shutil.copytree(boxing.folder, store / boxing.folder.name), student=qwen)
    problems = load_problems(str(math_problems), columns={"question": "problem"})
    return evaluate(run, [problems], max_new_tokens=24, **QUIET)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("CORRECT", "correct"),
        (" **Correct**.\n", "correct"),
        ("INCORRECT", "incorrect"),
        ("not correct", "unreadable"),
        ("The answer is CORRECT", "unreadable"),
        ("", "unreadable"),
    ],
)
def test_a_reply_is_one_of_two_words_or_unreadable(reply, verdict):
    assert verdict_of(reply) == verdict


def test_the_judge_is_asked_about_wrong_answers_only_and_the_rules_grades_stay(scores, llama, monkeypatch):
    stored = (scores.folder / "generations.jsonl").read_bytes()
    judged = judge(scores, llama, **QUIET)
    wrong = ~scores.items["correct"] & scores.items["answer"].notna()
    assert wrong.any()
    assert judged.loc[wrong, "verdict"].eq("unreadable").all()  # its weights are random
    assert all(verdict is None for verdict in judged.loc[~wrong, "verdict"])
    assert judged["correct_judged"].tolist() == scores.items["correct"].tolist()
    assert (scores.folder / "generations.jsonl").read_bytes() == stored
    (row,) = judge_table(judged).to_dict("records")
    assert row["n_asked"] == row["n_unreadable"] == wrong.sum()

    monkeypatch.setattr(evaluation, "load_trained", None)  # a second time nobody is asked
    assert judge(scores, llama, **QUIET).equals(judged)


def test_a_killed_judge_goes_on_where_it_was_and_another_prompt_is_another_judgement(scores, llama, store, monkeypatch):
    judged = judge(scores, llama, batch_size=1, **QUIET)
    (file,) = store.glob("toy-llama-*/evaluations/*/generations.jsonl")
    whole, asked, complete = file.read_bytes(), [], evaluation.complete
    file.with_name("scores.json").unlink()
    file.write_bytes(whole[: whole.index(b"\n") + 21])  # as a kill in the second row leaves it
    monkeypatch.setattr(evaluation, "complete", lambda *a, **more: asked.append(1) or complete(*a, **more))
    assert judge(scores, llama, batch_size=1, **QUIET).equals(judged)
    assert file.read_bytes() == whole
    assert len(asked) == whole.count(b"\n") - 1

    monkeypatch.setattr(module, "PROMPT", PROMPT + " ")
    judge(scores, llama, **QUIET)
    assert len(list(store.glob("toy-llama-*/evaluations/*"))) == 2


def test_a_switch_that_is_none_is_refused_also_where_nothing_is_asked(scores, llama):
    with pytest.raises(ValueError, match="thinking is 'no'"):
        judge(scores, llama, thinking="no")


def test_a_judge_without_a_single_verdict_is_said_and_may_be_told_not_to_think(scores, llama, monkeypatch):
    with pytest.warns(UserWarning, match="not one of .* replies of .* is a verdict, such as .*thinking=False"):
        judge(scores, llama, **QUIET)
    asked, evaluate_ = [], module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a, **how: asked.append(how) or evaluate_(*a, **how))
    with pytest.raises(ValueError, match="thinking"):  # its template has no such switch
        judge(scores, llama, thinking=False, **QUIET)
    assert asked[0]["thinking"] is False


def test_a_stored_reply_that_was_changed_is_refused(scores, llama, store):
    judge(scores, llama, **QUIET)
    (file,) = store.glob("toy-llama-*/evaluations/*/generations.jsonl")
    file.write_text(file.read_text().replace('"response": "', '"response": "CORRECT'))
    with pytest.raises(ValueError, match=r"generations.jsonl' is damaged .*: delete the folder"):
        judge(scores, llama, **QUIET)


def test_bad_requests_are_refused(scores, llama, store):
    for batch_size in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"batch_size is .*: it is a whole number, at least 1"):
            judge(scores, llama, batch_size=batch_size)
    assert not list(store.glob("toy-llama-*"))


def test_a_question_longer_than_the_judges_context_is_refused(scores, llama, monkeypatch):
    monkeypatch.setattr(module, "PROMPT", PROMPT * 5)
    with pytest.raises(ValueError, match=r"prompts .* and 16 new tokens exceed the student's context of 512"):
        judge(scores, llama, **QUIET)
