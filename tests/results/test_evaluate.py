import importlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import write_jsonl
from datasets import Dataset
from families import save

from mixdistill import LoRA, Sampling, evaluate, files, finetune, load_problems, load_traces, open_run
from mixdistill.data.problems import Problem
from mixdistill.files import read_json
from mixdistill.grading.grade import Grade

answers = importlib.import_module("mixdistill.results.answers")
evaluation = importlib.import_module("mixdistill.results.evaluate")
QUIET = {"progress": False}
PROBLEM = Problem("a", "find k1 :", "7", "", "mine", "pocket")


def test_scores_are_the_mean_of_the_items_with_an_interval_around():
    scores = evaluate("pocket/s", ["pocket/easy", "pocket/hard"], n=20, **QUIET)
    table = scores.table().set_index("benchmark")
    assert list(table.index) == ["pocket/easy", "pocket/hard", "mean"]
    assert list(table["n_problems"]) == [20, 20, 40]
    assert table.loc["mean", "accuracy"] == pytest.approx(scores.items["correct"].mean())
    assert table["accuracy"].between(table["ci_low"], table["ci_high"]).all()
    assert (table["ci_low"] < table["ci_high"]).all()
    assert "<table" in scores._repr_html_()
    for item in scores.items.itertuples():
        assert item.correct == (item.answer == item.gold)


def test_a_second_evaluation_only_reads(monkeypatch):
    first = evaluate("pocket/xs", ["pocket/easy"], n=8, **QUIET)
    monkeypatch.setattr(evaluation, "load_trained", None)
    assert evaluate("pocket/xs", ["pocket/easy"], n=8, **QUIET).items.equals(first.items)
    assert evaluate("pocket/xs", ["pocket/easy"], n=9, stored_only=True) is None


def test_a_killed_evaluation_goes_on_and_ends_as_if_undisturbed(monkeypatch, tmp_path):
    arguments = {"benchmarks": ["pocket/easy", "pocket/hard"], "n": 20, "batch_size": 7, "progress": False}
    undisturbed = evaluate("pocket/xs", **arguments)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "killed"))
    complete, calls = evaluation.complete, []

    def die_in_batch_4(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return complete(*arguments, **options)

    monkeypatch.setattr(evaluation, "complete", die_in_batch_4)
    with pytest.raises(KeyboardInterrupt):
        evaluate("pocket/xs", **arguments)
    (file,) = (tmp_path / "killed").rglob("generations.jsonl")
    file.write_text(file.read_text()[:-40])  # as a kill in the middle of a write leaves it
    # It goes on in the batches that it began with, whatever the second call says.
    resumed = evaluate("pocket/xs", **arguments | {"batch_size": 20})
    assert len(calls) == 4 + 4  # of 6 batches two were whole
    assert resumed.items.equals(undisturbed.items)
    assert (resumed.folder / "scores.json").read_text() == (undisturbed.folder / "scores.json").read_text()


def test_answers_of_other_evaluations_are_taken_and_only_the_rest_is_decoded(monkeypatch, tmp_path, capsys):
    arguments = {"n": 20, "batch_size": 7}
    together = evaluate("pocket/xs", ["pocket/hard", "pocket/easy"], **arguments)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "one_by_one"))
    alone = evaluate("pocket/xs", ["pocket/easy"], **arguments)
    evaluate("pocket/xs", ["pocket/hard"], **arguments, max_new_tokens=9)  # ends its answers elsewhere
    evaluate("pocket/xs", ["pocket/hard"], **arguments, sampling=Sampling(temperature=1.0))
    other = load_problems("pocket/hard", n=20)
    evaluate("pocket/xs", [replace(problem, answer="i0") for problem in other], batch_size=7)  # another gold answer
    complete, asked = evaluation.complete, []

    def die_in_batch_3(student, prompts, *given, **options):
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return complete(student, prompts, *given, **options)

    monkeypatch.setattr(evaluation, "complete", die_in_batch_3)
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        evaluate("pocket/xs", ["pocket/hard", "pocket/easy"], **arguments)
    assert "20 answers are taken from its other evaluations" in capsys.readouterr().out
    scores = evaluate("pocket/xs", ["pocket/hard", "pocket/easy"], **arguments)
    assert asked == [7, 7, 6, 6]  # of the hard problems alone
    assert scores.items.drop(columns="batch").equals(together.items.drop(columns="batch"))
    assert scores.items[20:]["batch"].tolist() == alone.items["batch"].tolist()
    assert (scores.folder / "scores.json").read_text() == (together.folder / "scores.json").read_text()
    monkeypatch.setattr(evaluation, "load_trained", None)  # a student that is asked nothing is not loaded
    evaluate("pocket/xs", ["pocket/easy", "pocket/hard"], **arguments)  # in another order


def test_a_mixed_evaluation_that_an_older_clone_went_on_with_begins_again(monkeypatch, tmp_path):
    arguments = {"benchmarks": ["pocket/hard", "pocket/easy"], "n": 8, "batch_size": 4, "progress": False}
    right = evaluate("pocket/xs", **arguments)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "other"))
    evaluate("pocket/xs", ["pocket/easy"], n=8, batch_size=4, **QUIET)
    first = [evaluation.complete, None]
    monkeypatch.setattr(evaluation, "complete", lambda *given, **how: first.pop(0)(*given, **how))
    with pytest.raises(TypeError):
        evaluate("pocket/xs", **arguments)
    monkeypatch.undo()
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "other"))
    folder = tmp_path / "other" / right.folder.relative_to(right.folder.parents[2])
    config = read_json(folder / "config.json")
    assert config.pop("n_known") == 8
    files.write_json(folder / "config.json", config)  # as one that knows nothing of taken answers writes it
    assert evaluate("pocket/xs", **arguments).items.equals(right.items)


def test_answers_of_an_evaluation_that_is_not_what_its_folder_says_are_not_taken(monkeypatch):
    sampled = evaluate("pocket/xs", ["pocket/easy"], n=8, sampling=Sampling(temperature=1.0), **QUIET)
    config = read_json(sampled.folder / "config.json")
    files.write_json(sampled.folder / "config.json", config | {"sampling": {**config["sampling"], "temperature": 0.0}})
    decoded = []
    complete = evaluation.complete
    monkeypatch.setattr(evaluation, "complete", lambda *given, **how: decoded.append(1) or complete(*given, **how))
    evaluate("pocket/xs", ["pocket/easy"], n=9, batch_size=9, **QUIET)
    assert decoded == [1]
    assert evaluate("pocket/xs", ["pocket/easy"], n=9, stored_only=True).items["batch"].str.startswith("9x").all()


def test_answers_that_are_taken_are_graded_by_newer_rules(monkeypatch, capsys):
    evaluate("pocket/xs", ["pocket/easy"], n=8, **QUIET)
    monkeypatch.setattr(evaluation, "GRADING_VERSION", 1000)
    monkeypatch.setattr(answers, "GRADING_VERSION", 1000)
    monkeypatch.setattr(answers, "grade_all", all_right)
    assert evaluate("pocket/xs", ["pocket/easy"], n=9, **QUIET).accuracy == 1


def all_right(responses, golds, answer_format):
    """Newer rules, by which every answer is right."""
    return [Grade(True, gold, "equal") for gold in golds]


def test_newer_rules_grade_stored_answers_anew_and_say_so(monkeypatch, capsys):
    ask = partial(evaluate, "pocket/xs", ["pocket/easy"], n=6, sampling=Sampling(temperature=1.0, n=2), **QUIET)
    before = ask()
    monkeypatch.setattr(evaluation, "load_trained", None)  # nothing is decoded again
    monkeypatch.setattr(answers, "grade_all", all_right)
    assert ask(stored_only=True).items.equals(before.items)
    monkeypatch.setattr(evaluation, "GRADING_VERSION", 1000)
    after = ask(stored_only=True)
    n_wrong = sum(~before.items["correct"])
    assert n_wrong
    assert after.accuracy == 1
    assert f"12 answers graded by newer rules, {n_wrong} otherwise than before, stored" in capsys.readouterr().out
    graded = ["correct", "answer", "reason"]
    assert after.items.drop(columns=graded).equals(before.items.drop(columns=graded))
    assert list(after.items["answer"]) == list(after.items["gold"])
    assert files.read_json(after.folder / "scores.json")["accuracy"] == 1
    assert ask(stored_only=True).items.equals(after.items)
    assert not capsys.readouterr().out


def test_a_store_that_can_not_be_written_is_still_graded_by_newer_rules(monkeypatch, capsys):
    before = evaluate("pocket/xs", ["pocket/easy"], n=4, **QUIET)
    stored = {path: path.read_bytes() for path in before.folder.iterdir()}

    def refuse(path, write):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "replace", refuse)
    monkeypatch.setattr(answers, "grade_all", all_right)
    monkeypatch.setattr(evaluation, "GRADING_VERSION", 1000)
    assert evaluate("pocket/xs", ["pocket/easy"], n=4, **QUIET).accuracy == 1
    assert "otherwise than before, not stored (Read-only file system)" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before.folder.iterdir()} == stored


def test_an_evaluation_that_goes_on_under_newer_rules_is_graded_by_them(monkeypatch):
    complete = evaluation.complete
    first = [complete, None]
    monkeypatch.setattr(evaluation, "complete", lambda *given, **how: first.pop(0)(*given, **how))
    with pytest.raises(TypeError):  # in the second of two batches
        evaluate("pocket/xs", ["pocket/easy"], n=8, batch_size=4, **QUIET)
    monkeypatch.setattr(evaluation, "complete", complete)
    monkeypatch.setattr(answers, "grade_all", all_right)
    monkeypatch.setattr(evaluation, "GRADING_VERSION", 1000)
    assert evaluate("pocket/xs", ["pocket/easy"], n=8, **QUIET).accuracy == 1


def test_several_samples_of_a_problem_are_rows_of_their_own():
    arguments = {"benchmarks": ["pocket/easy"], "n": 6, "sampling": Sampling(temperature=1.0, n=3, seed=1)} | QUIET
    items = evaluate("pocket/xs", **arguments).items
    assert list(items["sample"]) == [0, 1, 2] * 6
    assert items["problem_id"].nunique() == 6
    assert items.groupby("problem_id")["response"].nunique().max() > 1
    assert evaluate("pocket/xs", **arguments, stored_only=True).items.equals(items)


def test_every_row_says_how_it_was_decoded():
    (row, *_) = evaluate("pocket/xs", ["pocket/easy"], n=4, batch_size=2, **QUIET).items.itertuples()
    assert (row.engine, row.dtype, row.finish_reason, row.loop) == ("static", "float32", "stop", False)
    assert row.batch == f"2x{row.n_prompt_tokens}"


def test_the_same_lines_serve_a_real_architecture_and_files(qwen, math_traces, math_problems):
    train = load_traces(str(math_traces), columns={"question": "problem", "response": "solution"})
    run = finetune(qwen, train, lora=LoRA(r=16), lr=1e-2, epochs=60, batch_size=4, **QUIET)
    problems = load_problems(str(math_problems), columns={"question": "problem"})
    scores = evaluate(run, [problems], max_new_tokens=24, **QUIET)
    assert scores.items["finish_reason"].eq("stop").any()
    assert scores.items["answer"].notna().any()  # it has learnt to box an answer
    untouched = evaluate(qwen, [problems], max_new_tokens=24, **QUIET)
    assert untouched.items["reason"].eq("no_answer").all()


def test_every_natural_call_is_the_same_evaluation(tmp_path, store):
    run = finetune("pocket/xs", load_traces("pocket/short", n=4), epochs=1, **QUIET)
    problems = load_problems("pocket/easy", n=3)
    folder = evaluate(run, ["pocket/easy"], n=3, **QUIET).folder
    calls = [(run, "pocket/easy", 3), (run, "pocket/easy", np.int64(3)), (run.folder, problems, None)]
    calls += [(str(run.folder), [problems], None), (run, tuple(problems), None)]
    for who, benchmarks, n in calls:
        assert evaluate(who, benchmarks, n=n, stored_only=True).folder == folder
    shutil.copytree(store, tmp_path / "copy")
    assert evaluate(str(tmp_path / "copy" / run.folder.name), problems, stored_only=True).folder.name == folder.name
    assert len(evaluate(run, ["pocket/easy", load_problems("pocket/hard", n=2)], n=3, **QUIET).items) == 5


def test_sampled_answers_do_not_depend_on_the_batch_or_on_the_other_problems(monkeypatch, tmp_path):
    def answers(n: int, batch_size: int, n_samples: int = 2) -> list[str]:
        monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / str(batch_size)))
        sampling, problems = Sampling(temperature=1.0, n=n_samples), load_problems("pocket/easy", n=8)[8 - n :]
        items = evaluate("pocket/xs", problems, sampling=sampling, batch_size=batch_size, **QUIET).items
        return list(items.loc[items["sample"] < 2, "response"])

    assert answers(8, 16) == answers(8, 3)
    assert answers(8, 16)[6:] == answers(5, 16) == answers(5, 16, n_samples=3)


def test_greedily_a_seed_makes_no_other_evaluation():
    first = evaluate("pocket/xs", "pocket/easy", n=2, **QUIET)
    assert evaluate("pocket/xs", "pocket/easy", n=2, sampling=Sampling(seed=7), stored_only=True).folder == first.folder


def test_threads_evaluate_one_after_the_other():
    with ThreadPoolExecutor(3) as pool:
        scores = list(pool.map(lambda n: evaluate("pocket/xs", "pocket/easy", n=n, **QUIET), (2, 3, 2)))
    assert [len(each.items) for each in scores] == [2, 3, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": "pocket/huge", "benchmarks": ["pocket/easy"]}, "unknown student 'pocket/huge'"),
        ({"run": "pocket/xs", "benchmarks": ["pocket/easy"], "engine": "warp"}, "engine is 'warp': use one of"),
        ({"run": "pocket/xs", "benchmarks": ["pocket/easy"], "engine": "vllm"}, "needs the package vllm"),
        ({"run": "pocket/xs", "benchmarks": ["pocket/easy"], "batch_size": 0}, "batch_size is 0"),
        ({"run": "pocket/xs", "benchmarks": "pocket/easy", "max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"run": "pocket/xs", "benchmarks": "pocket/easy", "n": 1.5}, "n is 1.5"),
        ({"run": "pocket/xs", "benchmarks": "pocket/easy", "sampling": {"temperature": 1}}, "it is a Sampling"),
        ({"run": "pocket/xs", "benchmarks": "pocket/easy", "thinking": True}, "has no such switch"),
        (
            {"run": "pocket/xs", "benchmarks": PROBLEM, "n": 3},
            "n is 3 and split None: they are for benchmarks by name",
        ),
        ({"run": "pocket/xs", "benchmarks": [5]}, "benchmarks holds 5: give a benchmark's name"),
        ({"run": None, "benchmarks": "pocket/easy"}, "run is None"),
        ({"run": "pocket/xs", "benchmarks": []}, "nothing to evaluate"),
        ({"run": "pocket/xs", "benchmarks": ["pocket/none"]}, "source is 'pocket/none': use one of"),
        ({"run": "pocket/xs", "benchmarks": ["pocket/easy", "pocket/easy"]}, "give each once"),
        (
            {"run": "pocket/xs", "benchmarks": ["pocket/easy"], "max_new_tokens": 250},
            "exceed the student's context of 256",
        ),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(arguments, message, store):
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)
    assert not store.exists()


def test_a_prompt_longer_than_the_context_is_refused(qwen, tmp_path):
    file = write_jsonl(tmp_path / "long.jsonl", [{"question": "12 plus 30? " * 400, "answer": "42"}])
    with pytest.raises(ValueError, match=r"1 of 1 prompts .* exceed the student's context of 512"):
        evaluate(qwen, [load_problems(str(file))])


def test_damaged_run_folders_are_refused_with_what_to_do(store, tmp_path):
    run = finetune("pocket/xs", load_traces("pocket/short", n=4), epochs=1, **QUIET)
    scores = evaluate(run, ["pocket/easy"], n=4, **QUIET)

    empty = store / "empty"
    empty.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"empty' is no run's folder .*: give one, or call finetune"):
        evaluate(str(empty), ["pocket/easy"])
    with pytest.raises(ValueError, match="nothing' is no run's folder"):
        open_run(store / "nothing")

    (scores.folder / "generations.jsonl").write_text('{"index": 0}\n')
    with pytest.raises(ValueError, match=r"generations.jsonl' is damaged .*: delete the folder"):
        evaluate(run, ["pocket/easy"], n=4)

    (run.folder / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model.safetensors' is damaged .*: delete the folder"):
        evaluate(run, ["pocket/hard"], n=4)

    (run.folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has not finished \(no manifest.json\): call finetune"):
        open_run(run.folder)
    (run.folder / "config.json").write_text('{"student": ')
    with pytest.raises(ValueError, match=r"config.json' is damaged .*: delete the folder"):
        open_run(run.folder)


def test_a_line_comes_every_30_seconds_until_the_work_ends(monkeypatch, capsys):
    assert files.SPEAK_EVERY == 30
    monkeypatch.setattr(files, "SPEAK_EVERY", 0.001)
    said = ""
    with files.speaking("evaluate"):
        while "evaluate: getting ready, " not in said:
            said += capsys.readouterr().out
        files.tell("20 tokens")
        while "evaluate: 20 tokens, " not in said:
            said += capsys.readouterr().out
    assert files.heard.get() == ()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(speak)")]


def test_a_run_is_asked_as_it_was_trained(tmp_path):
    student = save("qwen3.5", tmp_path)
    rows = [{"question": "1 + 1?", "response": "It is 2.", "problem_id": "a", "teacher": "t", "style": ""}]
    traces = Dataset.from_list([row | {"answer_format": "gsm8k"} for row in rows])
    run = finetune(student, traces, thinking=False, epochs=1, progress=False)
    problem = Problem("a", "1 + 1?", "2", "", "own", "gsm8k")
    scores = evaluate(run, [problem], max_new_tokens=2, progress=False)
    assert "opens_thinking" not in read_json(scores.folder / "config.json")
    assert evaluate(run, [problem], max_new_tokens=2, thinking=False, stored_only=True).folder == scores.folder
    assert evaluate(run, [problem], max_new_tokens=2, thinking=True, stored_only=True) is None
