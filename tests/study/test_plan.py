import shutil
import subprocess
import sys
from dataclasses import replace
from shutil import copy, copytree
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, SHARED_TRACES, write_jsonl
from hub import environment, serve

from mixdistill import get_scale, open_run, runs
from mixdistill.__main__ import main
from mixdistill.study import plan as planning
from mixdistill.study.plan import all_arms, check_machine, plan
from mixdistill.study.scales import SCALES, ProblemSet, TraceSet, gap_arms, recipe_arm, untouched_arms
from mixdistill.study.sweep import run_arm, trained

TRACES = TraceSet("nobody/traces", answer_format="gsm8k")
SEVEN_B = "Qwen/Qwen2.5-7B-Instruct"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """What a plan says must not depend on where the tests run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def only(scale, *students):
    return replace(scale, students=students, alpha_student=students[0])


def test_a_plan_of_real_models_shows_every_student_with_what_it_takes_and_whether_it_is_gated():
    made = plan(get_scale("paper"))
    students = made.students.set_index("student")
    assert list(students.index) == list(get_scale("paper").students)
    assert students.loc[SEVEN_B, "parameters"] == 7e9  # as its name says
    assert set(students[students["gated"] == "yes"].index) == {s for s in students.index if s.startswith("meta-llama/")}
    assert students["download GB"].sum() == pytest.approx(2 * students["parameters"].sum() / 1e9)
    assert all(student in str(made) for student in students.index)


def test_a_size_is_read_from_a_name_in_either_case():
    students = plan(get_scale("laptop")).students
    assert students["parameters"].tolist() == [135e6, 270e6, 360e6, 500e6]
    assert students["gated"].tolist() == ["no", "yes", "no", "no"]


def test_hours_are_6nd_or_with_lora_4nd_at_the_rate_that_it_states():
    lora, full = (plan(only(get_scale(name, 1), SEVEN_B)).students.iloc[0] for name in ("gpu", "paper"))
    assert lora["training tokens"] == full["training tokens"]
    for row, flops in ((lora, 4), (full, 6)):
        total = row["parameters"] * (flops * row["training tokens"] + 2 * row["answer tokens"])
        assert row["hours"] * 3600 == pytest.approx(total / 4e14)
    assert "4e+14 FLOP/s a GPU" in str(plan(get_scale("gpu")))


def test_a_plan_of_arms_counts_their_own_epochs_and_problems():
    smoke, arm = get_scale("smoke", 1), recipe_arm("pocket/xs", "short", 0)
    once, more = (
        plan(smoke, [one]).students["training tokens"][0] for one in (arm, replace(arm, epochs=6, n_train=16))
    )
    assert more == pytest.approx(3 * once)
    assert plan(smoke, [recipe_arm("pocket/xs", "large_teacher", 0)]).students["trainings"].tolist() == [0]


def test_a_plan_counts_the_arms_of_all_notebooks_once():
    students = plan(get_scale("gpu")).students.set_index("student")
    assert students.loc[SEVEN_B, "trainings"] == 3 * 6
    assert students.loc["Qwen/Qwen2.5-3B-Instruct", "trainings"] == 3 * (6 + 4)  # alpha 0, 0.2 and 1 are recipes
    assert (students["evaluations"] == students["trainings"] + 1).all()  # the untouched student


def test_the_training_tokens_of_the_pocket_world_are_nearly_those_that_its_runs_count(store):
    smoke = get_scale("smoke", 1)
    for arm in all_arms(smoke):
        if arm.alpha is not None:
            trained(arm, smoke)
    runs = [open_run(path.parent) for path in store.glob("*/manifest.json")]
    students = plan(smoke).students.set_index("student")
    for student in smoke.students:
        tokens = [run.manifest["tokens"] for run in runs if run.student == student]
        assert students.loc[student, "trainings"] == len(tokens)
        assert students.loc[student, "training tokens"] == pytest.approx(sum(tokens), rel=0.1)


def test_what_the_store_has_measured_is_the_speed(store, monkeypatch):
    smoke = replace(get_scale("smoke", 1), epochs=60)
    assert plan(smoke).students["measured tokens/s"].isna().all()
    arm = recipe_arm("pocket/xs", "long", 0)
    manifest = trained(arm, smoke).manifest
    speed = manifest["tokens"] / max(1, manifest["seconds"])
    other = store / "another-run" / "manifest.json"  # which is damaged
    other.parent.mkdir()
    other.write_text('{"tokens": ')
    measured = plan(smoke).students.set_index("student")["measured tokens/s"]
    assert measured["pocket/xs"] == pytest.approx(speed)
    assert measured.isna()["pocket/s"]
    monkeypatch.setattr(planning, "n_cores", lambda: 4)
    on_cores = plan(smoke).students["hours"][0]
    monkeypatch.setattr(planning.torch.cuda, "device_count", lambda: 1)
    on_a_gpu = plan(smoke).students["hours"][0]  # one arm at a time, and answers in no time
    tokens = plan(smoke).students["training tokens"][0]
    assert on_a_gpu == pytest.approx(tokens / speed / 3600, rel=0.02)
    assert on_cores < on_a_gpu / 2


def test_hours_of_a_scale_that_needs_a_gpu_are_a_gpus_also_of_its_small_students(store, monkeypatch):
    small = "Qwen/Qwen2.5-0.5B-Instruct"
    both = plan(replace(get_scale("gpu", 1), students=(small, SEVEN_B), alpha_student=small))
    monkeypatch.setattr(planning.torch.cuda, "device_count", lambda: 1)
    there = plan(both.scale)
    assert both.students["hours"].tolist() == there.students["hours"].tolist()
    assert "hours on 1 GPU," in str(both)
    assert any("no CUDA GPU" in obstacle for obstacle in both.obstacles)


def test_local_trace_sets_and_students_are_counted_where_they_lie(real_scale):
    made = plan(real_scale)
    assert made.obstacles == ()  # such small students need no GPU
    assert (made.students["download GB"] == 0).all()
    assert (made.students["answer tokens"] > 0).all()
    assert "It can not run here" not in str(made)


def test_too_little_disk_is_an_obstacle():
    assert any(
        "disk: " in o and "MIXDISTILL_RUNS" in o for o in plan(only(get_scale("paper", 10_000), SEVEN_B)).obstacles
    )


def test_a_study_goes_on_though_its_own_results_fill_the_disk(store, monkeypatch):
    """The disk has room for what is lacking, and not for all once more."""
    scale = get_scale("smoke", 1)
    arms = [recipe_arm("pocket/xs", recipe, 0) for recipe in ("short", "long")]
    free = plan(scale, arms[1:]).students["runs GB"].sum() * 1e9
    assert free < plan(scale, arms).students["runs GB"].sum() * 1e9
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(ValueError, match="point MIXDISTILL_RUNS to a larger disk"):
        check_machine(scale, arms)
    run_arm(arms[0], scale)
    check_machine(scale, arms)


def test_a_machine_that_can_not_run_a_scale_is_refused_with_all_reasons(capsys):
    with pytest.raises(ValueError, match="'gpu' can not run on this machine") as refusal:
        check_machine(get_scale("gpu"))
    planned = capsys.readouterr().out
    assert "84 trainings" in planned  # the plan comes first
    assert "It can not run here" not in planned  # which the error says
    assert "no CUDA GPU" in str(refusal.value)
    for student in get_scale("gpu").students:
        assert f"- {student}: neither here nor in the cache, and the Hub does not give it" in str(refusal.value)


def test_what_the_run_store_holds_whole_is_read_on_any_machine(real_scale, monkeypatch, capsys):
    scale = only(replace(real_scale, alphas=(), large=None, small=None), real_scale.students[0])
    monkeypatch.setattr("mixdistill.study.plan.NEEDS_GPU", 1)
    with pytest.raises(ValueError, match="no CUDA GPU"):
        check_machine(scale)
    for arm in gap_arms(scale):
        run_arm(arm, scale)
    capsys.readouterr()
    check_machine(scale)
    assert capsys.readouterr().out == ""


def test_a_gated_student_and_one_that_does_not_exist_are_named_before_anything_runs(tmp_path):
    code = (
        "from dataclasses import replace\nfrom mixdistill import get_scale\n"
        "from mixdistill.study.plan import check_machine\n"
        "names = ('open/model-7B', 'gated/model-7B', 'nobody/nothing-7B')\n"
        "check_machine(replace(get_scale('gpu'), students=names, alpha_student=names[0]))"
    )
    with serve({"open/model-7B": {"config.json": b"{}"}}) as address:
        variables = environment(tmp_path, HF_ENDPOINT=address)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert "gated/model-7B is gated: accept its licence at https://huggingface.co/gated/model-7B" in done.stderr
    assert (
        "nobody/nothing-7B: neither here nor in the cache, and the Hub does not give it (RepositoryNotFoundError)"
        in done.stderr
    )
    assert "- open/model-7B" not in done.stderr


@pytest.mark.parametrize("name", ["smoke", "pocket"])
def test_the_pocket_world_runs_everywhere(name, capsys):
    check_machine(get_scale(name))
    assert capsys.readouterr().out == ""


def test_a_student_whose_size_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"no such folder here; of a student on the Hub, run `hf download someone/unk"):
        plan(only(get_scale("gpu"), "someone/unknown-model"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "--scale", "smoke", "--seeds", "1"], 0, "Scale smoke: seeds 1, recipes short, long, mix_long"),
        (["plan", "gpu"], 1, "It can not run here: there is no CUDA GPU"),
        (["plan", "galaxy"], f"error: scale is 'galaxy': use one of {', '.join(SCALES)}", ""),
        (["plan", "--seeds", "-2"], "error: n_seeds is -2: it is a whole number, at least 0", ""),
        (["sweep", "--seed", "5"], 2, ""),
        (["plan", "gpu", "--scale", "smoke"], "error: the scale is 'gpu' and --scale 'smoke': give one of the two", ""),
        (["figures", "--scale", "smoke", "--seeds", "1"], "the tables of no figure: mixdistill reproduce, with", ""),
    ],
)
def test_every_command_ends_with_an_exit_code_and_one_sentence(arguments, code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mixdistill", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code or code in str(end.value.code)
    assert said in capsys.readouterr().out


def test_figures_of_a_run_with_other_parameters_are_drawn_where_they_lie(monkeypatch, capsys, store):
    folder = get_scale("pocket", 1).figures_dir()
    (folder / "data").mkdir(parents=True)
    for name in ("trace_lengths", "checks"):
        copy(REPO / "figures" / "data" / f"{name}.csv", folder / "data")
    monkeypatch.setattr(sys, "argv", ["mixdistill", "figures", "--seeds", "1"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    drawn = capsys.readouterr().out.splitlines()
    assert drawn[0].startswith(
        f"{len(drawn) - 1} figures, of the tables in {folder}/data; the published ones, in figures/"
    )
    assert set(drawn[1:]) == {str(path) for path in folder.glob("*.png")}
    assert folder.is_relative_to(store)


def test_published_figures_are_drawn_where_the_run_store_has_none(monkeypatch, capsys, store, tmp_path):
    published, own = tmp_path / "repo" / "figures" / "smoke", get_scale("smoke").figures_dir()
    monkeypatch.setattr(runs, "REPO", tmp_path / "repo")
    monkeypatch.setattr(sys, "argv", ["mixdistill", "figures", "--scale", "smoke"])
    for folder in (published, own):
        (folder / "data").mkdir(parents=True)
        copy(REPO / "figures" / "data" / "trace_lengths.csv", folder / "data")
        with pytest.raises(SystemExit):
            main()
        assert capsys.readouterr().out.splitlines()[-1] == runs.shown(folder / "01_trace_lengths.png")


def test_a_student_without_weights_is_an_obstacle(qwen, tmp_path):
    made = tmp_path / "q"
    copytree(qwen, made)
    for weights in made.glob("*.safetensors"):
        weights.rename(made / "pytorch_model.bin")
    scale = get_scale("laptop", students=str(made))
    assert any(
        "it has no safetensors, and pickled weights are never read" in obstacle for obstacle in plan(scale).obstacles
    )


def test_a_test_of_ones_own_that_is_not_here_is_an_obstacle(real_scale):
    for source in ("x.tsv", "none", "x.csv"):
        scale = replace(real_scale, benchmarks=(ProblemSet(source),))
        assert [one for one in plan(scale).obstacles if one.startswith(f"there is no file {source!r}")]


def test_a_file_that_is_not_here_is_an_obstacle():
    made = plan(replace(get_scale("smoke"), benchmarks=("pocket/easy", "mine.jsonl")))
    assert "and so the hours, are guessed of what is no file here: mine.jsonl." in str(made)
    assert "guessed" not in str(plan(get_scale("smoke")))
    assert any(
        "there is no file 'mine.jsonl': put it into the folder $MIXDISTILL_DATA" in one for one in made.obstacles
    )


def test_the_files_of_the_laptop_scale_are_planned_alike_before_and_when_they_are_here(monkeypatch, qwen):
    if not SHARED_TRACES.is_dir():
        pytest.skip("no real traces beside the checkout")
    scale = replace(get_scale("laptop", students=str(qwen)), benchmarks=("svamp",))
    before = plan(scale)
    monkeypatch.setenv("MIXDISTILL_DATA", str(SHARED_TRACES))
    after = plan(scale)
    assert "guessed" not in str(before)
    wanted = before.students["training tokens"].tolist()
    assert after.students["training tokens"].tolist() == pytest.approx(wanted, rel=0.01)
    assert len(before.obstacles) == 5
    assert not after.obstacles


def test_questions_that_are_taught_and_asked_are_said(real_scale, tmp_path):
    rows = [{"question": question, "answer": "30"} for question in ("What is  0 plus 30?", "What is 1 plus 1?")]
    made = plan(replace(real_scale, benchmarks=(str(write_jsonl(tmp_path / "own.jsonl", rows)),)))
    said = [line for line in str(made).splitlines() if "are asked in the test, too" in line]
    assert len(said) == 4
    assert said[0].startswith("1 of 12 questions of ")
    assert not plan(real_scale).taught


def test_an_untouched_student_needs_no_traces(qwen, real_scale):
    scale = replace(real_scale, long=TRACES, short=TRACES, large=None, small=None)
    assert any("nobody/traces" in obstacle for obstacle in plan(scale).obstacles)
    made = plan(scale, untouched_arms(scale, scale.students))
    assert not any("nobody/traces" in obstacle for obstacle in made.obstacles)
    assert made.students["answer tokens"].gt(0).all()


def test_a_benchmark_that_is_a_file_only_and_a_template_that_lacks_are_obstacles(qwen, tmp_path, monkeypatch):
    student = copytree(qwen, tmp_path / "base")
    (student / "chat_template.jinja").unlink()
    made = plan(replace(get_scale("laptop", students=str(student)), long=TRACES, short=TRACES, large=None, small=None))
    file, template, of_hub, traces = made.obstacles
    assert file.startswith("there is no file 'svamp_test.jsonl': put it into the folder $MIXDISTILL_DATA")
    assert "its tokenizer has no chat template" in template
    assert "openai/gsm8k: neither here nor in the cache, and the Hub does not give it" in of_hub
    assert of_hub.endswith("or put 'gsm8k_test.jsonl' into the folder $MIXDISTILL_DATA")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "openai___gsm8k").mkdir()
    assert plan(made.scale).obstacles == (file, template, traces)
    assert traces.startswith("nobody/traces: neither here nor in the cache")
