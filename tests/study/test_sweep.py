import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import REPO, write_jsonl

from mixdistill import LoRA, files, finetune, get_scale, load_problems, load_traces, mix, open_run, sweep
from mixdistill.data.pocket.bases import POCKET_BASES
from mixdistill.finetuning.finetune import default_lr
from mixdistill.study.scales import Arm, ProblemSet, TraceSet, alpha_arms, control_arms, gap_arms, recipe_arm
from mixdistill.study.sweep import evaluation_problems, run_arm, trace_set, trained, training_set

SMOKE = get_scale("smoke", 1)


def test_a_sweep_trains_what_is_missing_once_and_then_only_reads(store, capfd):
    arms = [*gap_arms(SMOKE)[-3:], *alpha_arms(SMOKE, "pocket/s", (0.0, 1.0))]
    items = sweep(arms, SMOKE)
    assert "3 arms: 0 in the run store, 3 to run" in capfd.readouterr().out  # alpha=0 is short, alpha=1 is long
    assert len(items) == len(arms) * 24
    assert set(items["recipe"]) == {"short", "long", "mix_long", "alpha=0", "alpha=1"}
    scores = {path: path.read_bytes() for path in store.rglob("scores.json")}
    assert sweep(arms, SMOKE).equals(items)
    assert "3 in the run store, 0 to run" in capfd.readouterr().out
    assert {path: path.read_bytes() for path in store.rglob("scores.json")} == scores


def test_bad_arms_are_refused_before_anything_is_trained(store):
    good = Arm("pocket/xs", "short", 0.0, 0)
    with pytest.raises(ValueError, match="unknown student 'pocket/huge'"):
        sweep([good, Arm("pocket/huge", "short", 0.0, 0)], SMOKE)
    with pytest.raises(ValueError, match=r"alpha is 1\.2"):
        Arm("pocket/xs", "mix_long", 1.2, 0)
    assert not list(store.rglob("manifest.json"))


def test_a_failing_arm_costs_no_other(store, capfd):
    arms = [Arm("pocket/xs", "short", 0.0, seed) for seed in range(2)]
    broken = run_arm(arms[0], SMOKE).folder.parents[1]
    (broken / "manifest.json").unlink()
    (broken / "config.json").write_text("{}")
    with pytest.raises(
        RuntimeError, match=r"1 of 2 arms failed; the first, pocket/xs short seed 0: .*was changed after"
    ):
        sweep(arms, SMOKE)
    assert run_arm(arms[1], SMOKE, stored_only=True) is not None


def test_a_damaged_evaluation_costs_no_other_arm(store):
    arms = [Arm("pocket/xs", "short", 0.0, seed) for seed in range(2)]
    (run_arm(arms[0], SMOKE).folder / "generations.jsonl").write_text("{}")
    with pytest.raises(RuntimeError, match=r"1 of 2 arms failed; the first, pocket/xs short seed 0: .* is damaged"):
        sweep(arms, SMOKE)
    assert run_arm(arms[1], SMOKE, stored_only=True) is not None
    with pytest.raises(RuntimeError, match=r"1 of 1 arms failed; .* is damaged"):
        sweep(arms[:1], SMOKE)


def test_what_the_test_would_say_is_said_before_any_training(real_scale, tmp_path, store):
    arms = [recipe_arm(real_scale.students[0], "short", 0)]
    with pytest.raises(ValueError, match=r"toy-qwen: 5 of 5 prompts .* exceed the student's context of 512"):
        sweep(arms, replace(real_scale, max_new_tokens=512))
    (tmp_path / "b").mkdir()
    twin = write_jsonl(tmp_path / "b" / "test.jsonl", [{"question": "What is 1?", "answer": "1", "id": "its own"}])
    with pytest.raises(ValueError, match=r"two of benchmarks are called 'test\.jsonl'"):
        sweep(arms, replace(real_scale, benchmarks=(*real_scale.benchmarks, str(twin))))
    assert not list(store.rglob("config.json"))


@pytest.mark.parametrize(
    ("part", "response", "message"),
    [
        ("long", "<|im_end|> It is \\boxed{31}.", "long.jsonl, .*: row 1 .* .'What is 1 plus 30.'.: .* control tokens"),
        ("short", "So 1 2. " * 400 + "\\boxed{31}.", r"short.jsonl, .*: 1 of 12 examples have more than 256 tokens"),
    ],
)
def test_a_trace_that_no_arm_could_learn_is_said_before_the_first_is_trained(
    part, response, message, real_scale, store
):
    file = Path(getattr(real_scale, part).source)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["solution"] = response
    write_jsonl(file, rows)
    scale, (qwen, llama) = replace(real_scale, too_long="error"), real_scale.students
    fine = recipe_arm(llama, "large_teacher", 0)
    with pytest.raises(ValueError, match=rf"{qwen}: .*{message}"):
        sweep([fine, recipe_arm(qwen, "mix_long", 0)], scale)  # seed 0 may not draw it
    assert not list(store.rglob("manifest.json"))
    other = {"long": "short", "short": "long"}[part]
    sweep([recipe_arm(qwen, other, 0)], scale)  # which reads no row of the bad set


def test_questions_of_training_in_the_test_are_counted(real_scale, tmp_path, capfd):
    known = write_jsonl(tmp_path / "known.jsonl", [{"question": "what is  3 plus 30", "answer": "33"}])
    sweep([recipe_arm(real_scale.students[0], "short", 0)], replace(real_scale, benchmarks=(str(known),)))
    assert re.search(r"1 of 12 questions of '.*short\.jsonl' are asked in the test, too", capfd.readouterr().out)


def test_questions_of_two_benchmarks_are_counted(real_scale, tmp_path, capfd):
    tests = Path(real_scale.benchmarks[0])
    copied = tmp_path / "copied.jsonl"
    copied.write_text("".join(tests.read_text().splitlines(keepends=True)[:2]))
    scale = replace(real_scale, benchmarks=(*real_scale.benchmarks, str(copied)))
    sweep([Arm(scale.students[0], "untouched", None, 0)], scale)
    assert "2 of 5 questions stand in several benchmarks: intervals take" in capfd.readouterr().out
    sweep([Arm(real_scale.students[0], "untouched", None, 0)], real_scale)
    assert "stand in several" not in capfd.readouterr().out


def test_a_test_file_is_asked_as_the_traces_are(tmp_path):
    traces = write_jsonl(
        tmp_path / "t.jsonl", [{"question": f"{n} + 1?", "response": f"#### {n + 1}"} for n in range(9)]
    )
    other = write_jsonl(
        tmp_path / "u.jsonl", [{"question": f"{8 - n} + 1?", "response": f"#### {9 - n}"} for n in range(9)]
    )
    tests = write_jsonl(tmp_path / "v.jsonl", [{"question": "1 + 2?", "answer": "1 + 2 = 3\n#### 3"}])
    sets = {part: TraceSet(str(file), answer_format="gsm8k") for part, file in (("long", traces), ("short", other))}
    scale = replace(get_scale("gpu"), large=None, small=None, benchmarks=(str(tests),), n_train=4, **sets)
    assert scale.answer_format == "gsm8k"
    asked = evaluation_problems(str(tests), None, None, scale.answer_format)
    assert [(problem.answer_format, problem.answer) for problem in asked] == [("gsm8k", "1 + 2 = 3\n#### 3")]
    made = training_set(recipe_arm("pocket/xs", "mix_long", 0), scale)
    assert made["question"][:] == ["0 + 1?", "1 + 1?", "2 + 1?", "3 + 1?"]
    with pytest.raises(ValueError, match="the answer_format of the trace sets is long 'math', short 'gsm8k'"):
        replace(scale, long=TraceSet(str(traces)))


def test_a_test_file_of_a_scale_may_have_columns_of_its_own(real_scale, tmp_path, store):
    rows = [{"Body": f"A box has {n} pens.", "Question": "How many?", "Answer": str(n)} for n in (2, 3)]
    file = write_jsonl(tmp_path / "pens.jsonl", [*rows, rows[0] | {"Answer": ""}])
    own = ProblemSet(file, question=["Body", "Question"], answer="Answer", unusable="drop")
    scale = replace(real_scale, benchmarks=[*real_scale.benchmarks, own])
    with pytest.warns(UserWarning, match="1 of 3 problems"):
        asked = evaluation_problems(own, None, None, scale.answer_format)
    assert [(one.question, one.answer) for one in asked] == [
        ("A box has 2 pens. How many?", "2"),
        ("A box has 3 pens. How many?", "3"),
    ]
    items = run_arm(Arm(scale.students[0], "untouched", None, 0), scale).items
    assert items.groupby("benchmark").size().to_dict() == {"pens.jsonl": 2, "test.jsonl": 5}
    with pytest.raises(ValueError, match="has no column 'answer'"):
        evaluation_problems(replace(own, answer="answer"), None, None, scale.answer_format)
    with pytest.raises(ValueError, match="it is a text"):
        load_problems(own)  # which would leave out its columns
    with pytest.raises(ValueError, match="it is a list of texts"):
        replace(scale, benchmarks="svamp")
    with pytest.raises(ValueError, match="give each once"):
        replace(scale, benchmarks=(own, str(file)))


def test_an_arm_that_another_holds_is_looked_at_again_at_the_end(store, capfd):
    arms = [Arm("pocket/xs", "short", 0.0, seed) for seed in range(2)]
    folder, holding = run_arm(arms[0], SMOKE).folder.parents[1], threading.Event()
    shutil.rmtree(folder)

    def hold() -> None:
        with files.lock(folder):
            holding.set()
            while not list(store.rglob("scores.json")):  # of the other arm
                time.sleep(0.05)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    assert len(sweep(arms, SMOKE, workers=1)) == 48
    holder.join()
    said = capfd.readouterr().out
    assert re.search(
        rf"pocket/xs short seed 0: another process works on .*{folder.name} \(process {os.getpid()} ", said
    )
    assert said.index("looked at again at the end") < said.index("[1/2] pocket/xs short seed 1")
    assert said.index("[1/2] pocket/xs short seed 1") < said.index("[2/2] pocket/xs short seed 0")


def test_an_arm_is_the_run_of_a_finetune_call_with_the_same_mix_and_the_base_of_its_seed(store):
    run_arm(recipe_arm("pocket/xs", "mix_long", 1), SMOKE)
    train = mix(load_traces("pocket/long", n=32, seed=1), load_traces("pocket/short", n=32, seed=1), 0.2, 1)
    lora = LoRA(r=16)
    rate = default_lr("pocket/xs", lora)  # all bases of a student share it
    base = POCKET_BASES["pocket/xs"][1]
    assert finetune(base, train, lora=lora, lr=rate, epochs=1, seed=1, stored_only=True) is not None


def test_items_say_which_base_each_seed_started_from(store):
    scale = get_scale("smoke", 2)
    arms = [arm for arm in gap_arms(scale) if arm.student == "pocket/xs" and arm.recipe in ("untouched", "short")]
    for arm in arms:
        run_arm(arm, scale)
    items = sweep(arms, scale)
    base_of = items.groupby(["recipe", "seed"])["base"].agg(set).to_dict()
    assert base_of == {
        (recipe, seed): {base}
        for recipe in ("untouched", "short")
        for seed, base in enumerate(POCKET_BASES["pocket/xs"][:2])
    }
    assert set(items["student"]) == {"pocket/xs"}


def test_controls_are_trained_on_their_own_traces(store):
    for arm in control_arms(SMOKE):
        assert set(training_set(arm, SMOKE)["style"]) == {arm.recipe}
    (arm, *_) = control_arms(SMOKE)
    assert run_arm(arm, SMOKE).items["correct"].notna().all()


def test_real_architectures_go_through_all_recipes_from_files(real_scale, store, capfd):
    arms = [*gap_arms(real_scale), *alpha_arms(real_scale, real_scale.alpha_student, (0.0, 0.5))]
    for arm in arms:
        run_arm(arm, real_scale)
    items = sweep(arms, real_scale)
    assert "15 arms: 15 in the run store, 0 to run" in capfd.readouterr().out  # alpha=0 is short
    recipes = {"untouched", *real_scale.recipes}
    assert set(items.groupby("student")["recipe"].agg(set)[real_scale.students[1]]) == recipes
    assert len(items) == len(arms) * 5
    configs = [open_run(path.parent).config for path in store.glob("*/manifest.json")]
    assert len(configs) == 13
    assert len({config["train"] for config in configs}) == 7  # six recipes and alpha=0.5
    assert {(c["lr"], c["batch_size"], c["epochs"], c["max_tokens"]) for c in configs} == {(1e-4, 8, 2, 256)}


def test_students_named_in_full_train_all_weights_at_their_own_rate(real_scale):
    scale = replace(real_scale, full=(real_scale.students[0],))
    full, lora = (run_arm(recipe_arm(student, "short", 0), scale).folder.parents[1] for student in scale.students)
    assert (open_run(full).config["lora"], open_run(full).config["lr"]) == (None, 1e-5)
    assert (open_run(lora).config["lora"]["r"], open_run(lora).config["lr"]) == (16, 1e-4)
    assert (full / "model").is_dir()


def test_with_one_trace_a_problem_a_seed_draws_the_mix_only(real_scale):
    def train(recipe, seed):
        return training_set(recipe_arm(real_scale.students[0], recipe, seed), real_scale)

    assert train("long", 0).to_list() == train("long", 1).to_list()
    assert train("mix_large", 0)["role"] != train("mix_large", 1)["role"]
    assert train("mix_large", 0)["problem_id"] == train("mix_large", 1)["problem_id"]


def test_a_recipe_without_its_trace_sets_is_refused(real_scale):
    with pytest.raises(ValueError, match=r"'smoke' has no trace set for large and small, which 'mix_large' needs"):
        sweep([recipe_arm("pocket/xs", "mix_large", 0)], SMOKE)


def test_a_table_holds_the_answers_themselves_and_the_arm_of_each(store):
    arm = recipe_arm("pocket/xs", "short", 0)
    run_arm(arm, SMOKE)
    items = sweep([arm], SMOKE)
    assert set(run_arm(arm, SMOKE).items) | {"student", "params", "recipe", "alpha", "base", "seed"} == set(items)
    assert items["question"].str.len().min() > 0
    assert items["response"].equals(run_arm(arm, SMOKE).items["response"])


def test_no_arms_are_refused(store):
    with pytest.raises(ValueError, match="there are no arms to run: give at least one"):
        sweep([], SMOKE)


def test_files_that_change_in_a_session_are_read_again(tmp_path, math_traces):
    tests = write_jsonl(tmp_path / "test.jsonl", [{"question": "What is 1 plus 2?", "answer": "3"}])
    traces = TraceSet(str(math_traces), question="problem", response="solution")
    assert len(trace_set(traces, None, 0)) == 12
    assert [problem.answer for problem in evaluation_problems(str(tests), None, None)] == ["3"]
    scale = replace(get_scale("gpu"), long=traces, short=traces, n_train=None)
    assert len(training_set(recipe_arm("pocket/xs", "long", 0), scale)) == 12
    write_jsonl(math_traces, [{"problem": "What is 1 plus 1?", "solution": "It is \\boxed{2}."}])
    write_jsonl(tests, [{"question": "What is 1 plus 1?", "answer": "2"}])
    assert trace_set(traces, None, 0)["question"][:] == ["What is 1 plus 1?"]
    assert [problem.answer for problem in evaluation_problems(str(tests), None, None)] == ["2"]
    assert len(training_set(recipe_arm("pocket/xs", "long", 0), scale)) == 1


def test_traces_may_have_their_question_in_two_columns(tmp_path):
    row = {"Body": "There are 87 oranges.", "Question": "How many are they?", "response": "It is 87.", "answer": "87"}
    file = write_jsonl(tmp_path / "traces.jsonl", [row])
    made = TraceSet(file, question=["Body", "Question"], answer_format="gsm8k")
    assert trace_set(made, None, 0)["question"][:] == ["There are 87 oranges. How many are they?"]


SCRIPT = """
from mixdistill import get_scale, sweep
from mixdistill.study.scales import recipe_arm
arms = [recipe_arm("pocket/xs", "short", seed) for seed in (0, 1)]
print(len(sweep(arms, get_scale("{scale}"))), "items")
"""


def test_a_plain_script_needs_no_guard(tmp_path, store):
    """The test below has one that is no file."""
    (tmp_path / "script.py").write_text(SCRIPT.format(scale="smoke"))
    command, environment = [sys.executable, str(tmp_path / "script.py")], os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "2 arms: 0 in the run store, 2 to run"
    assert done.stdout.splitlines()[-1] == "48 items"


def test_an_interrupt_stops_the_workers_and_says_what_is_stored(tmp_path, store):
    # A shell may have started these tests with Ctrl-C ignored.
    answer = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", answer + SCRIPT.format(scale="pocket")]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(store.rglob("config.json")):  # a worker trains
        assert process.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C and JupyterLab do: to the whole group
    output, error = process.communicate()
    assert output.splitlines()[-1] == "stopped: what was finished is stored, the same call goes on from there"
    assert error.strip().splitlines()[-1].startswith("KeyboardInterrupt: stopped")
    assert error.count("Traceback") == 1  # of this process only
    assert workers
    while any(works(worker) for worker in workers):
        time.sleep(0.05)


def works(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_test_file_that_is_not_here_is_said_before_anything_is_trained(store, real_scale):
    scale = replace(real_scale, benchmarks=("svamp",))
    with pytest.raises(ValueError, match=r"put 'svamp_test\.jsonl' into the folder \$MIXDISTILL_DATA"):
        sweep([recipe_arm(scale.students[0], "short", 0)], scale)
    assert not list(store.rglob("*"))


def test_traces_that_are_left_out_are_counted(store, capfd):
    scale = replace(SMOKE, max_tokens=70, too_long="drop", benchmarks=("pocket/easy",))
    arm = recipe_arm("pocket/xs", "long", 0)
    sweep([arm], scale)
    n = len(trained(arm, scale, stored_only=True).manifest["rows_too_long_dropped"])
    assert 0 < n < SMOKE.n_train
    assert f"right, {n} traces too long and left out" in "".join(capfd.readouterr())


@pytest.mark.parametrize("arms", [None, 3, "pocket/xs", [1]])
def test_what_is_no_list_of_arms_is_refused(arms):
    with pytest.raises(ValueError, match="arm"):
        sweep(arms, get_scale("smoke"))
    with pytest.raises(ValueError, match="scale is"):
        get_scale([arms])


def test_more_problems_than_a_file_holds_are_refused(real_scale):
    arm = recipe_arm(real_scale.students[0], "long", 0)
    assert len(training_set(replace(arm, n_train=12), real_scale)) == 12
    with pytest.raises(ValueError, match="n_train is 13: there are traces of 12 problems, ask for no more"):
        training_set(replace(arm, n_train=13), real_scale)
