import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hub import environment, serve

from mixdistill import get_scale, open_run
from mixdistill.__main__ import main
from mixdistill.finetuning import memory_model as memory
from mixdistill.study.hardware import ARCHITECTURES, GPUS, gpu_named, model_config
from mixdistill.study.plan import check_machine, plan
from mixdistill.study.scales import SCALES, alpha_arms, control_arms, gap_arms
from mixdistill.study.sweep import run_arm, same_work

PARAMETERS = {  # of the model cards, in millions
    "Qwen2.5-0.5B": 494.03,
    "Qwen2.5-1.5B": 1_543.7,
    "Qwen2.5-3B": 3_085.9,
    "Qwen2.5-7B": 7_615.6,
    "Qwen2.5-14B": 14_770,
    "Qwen2.5-32B": 32_764,
    "Llama-3.2-1B": 1_235.8,
    "Llama-3.2-3B": 3_212.7,
    "Llama-3.1-8B": 8_030.3,
    "Llama-3.3-70B": 70_554,
}
SEVEN_B = "Qwen/Qwen2.5-7B-Instruct"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """What a plan says must not depend on where the tests run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def only(scale, *students):
    return replace(scale, students=students, alpha_student=students[0])


@pytest.mark.parametrize("student", ARCHITECTURES)
def test_architectures_have_the_published_parameter_counts(student):
    published = PARAMETERS[student.split("/")[1].removesuffix("-Instruct")]
    assert memory.model_size(model_config(student)).total / 1e6 == pytest.approx(published, rel=1e-4)


def test_a_plan_of_real_models_needs_no_network_and_shows_every_student_and_what_is_not_pinned():
    made = plan(get_scale("paper"))
    text = str(made)
    assert list(made.students["student"]) == list(get_scale("paper").students)
    assert all(student in text for student in made.students["student"])
    assert "8 x H100, 80 GB (assumed)" in text
    assert "4 Llama students are gated" in text
    assert text.count("not pinned") == 3  # two trace sets, and what it means
    assert "not all arms share their method" in text
    assert "not all arms share" not in str(plan(get_scale("gpu")))


def test_a_plan_counts_the_arms_of_all_notebooks_once():
    students = plan(get_scale("gpu")).students.set_index("student")
    assert students.loc[SEVEN_B, "trainings"] == 3 * 6
    assert students.loc["Qwen/Qwen2.5-3B-Instruct", "trainings"] == 3 * (6 + 4)  # alpha 0, 0.2 and 1 are recipes
    assert (students["evaluations"] == students["trainings"] + 1).all()  # the untouched student


def test_the_training_tokens_of_the_pocket_world_are_those_that_its_runs_count(store):
    smoke = get_scale("smoke", 1)
    arms = [*gap_arms(smoke), *alpha_arms(smoke, "pocket/xs", smoke.alphas), *control_arms(smoke)]
    for arm in {same_work(arm): arm for arm in arms}.values():
        run_arm(arm, smoke)
    runs = [open_run(path.parent) for path in store.glob("*/manifest.json")]
    students = plan(smoke).students.set_index("student")
    for student in smoke.students:
        tokens = [run.manifest["tokens"] for run in runs if run.student == student]
        assert students.loc[student, "trainings"] == len(tokens)
        assert students.loc[student, "training tokens"] == pytest.approx(sum(tokens))


def test_local_trace_sets_and_students_are_counted_where_they_lie(real_scale):
    made = plan(real_scale)
    assert made.gpu is None  # such small students need none
    assert set(made.traces["examples"]) == {12}
    assert made.traces.loc["long", "answer tokens"] > 2 * made.traces.loc["short", "answer tokens"]
    assert made.n_problems == 5
    assert made.students["download GB"].sum() == 0


def test_costs_grow_with_seeds_and_not_with_gpus():
    few, many = (plan(only(get_scale("gpu", seeds), SEVEN_B), 1).students.iloc[0] for seeds in (1, 3))
    assert few["training tokens"] < many["training tokens"] == pytest.approx(3 * few["training tokens"])
    assert 2 < many["GPU hours"] / few["GPU hours"] <= 3  # the untouched student is evaluated once
    spread = plan(only(get_scale("gpu", 1), SEVEN_B), 4).students.iloc[0]
    assert spread["GPU hours"] == pytest.approx(few["GPU hours"])


def test_what_does_not_fit_is_named_with_what_to_do():
    paper = only(get_scale("paper"), SEVEN_B)
    one, four = (plan(paper, n).obstacles for n in (1, 4))
    assert any("training takes" in o and "use 2 GPUs" in o and "train it with LoRA" in o for o in one)
    assert not any("training takes" in o for o in four)
    large = only(get_scale("gpu"), "Qwen/Qwen2.5-32B-Instruct")
    assert any("lower max_tokens to 6144" in obstacle for obstacle in plan(large, 1).obstacles)
    assert not any("training takes" in obstacle for obstacle in plan(replace(large, max_tokens=6144), 1).obstacles)


def test_too_little_disk_is_an_obstacle():
    assert any("disk: " in o and "fewer seeds" in o for o in plan(only(get_scale("paper", 100), SEVEN_B)).obstacles)


def test_a_machine_that_can_not_run_a_scale_is_refused_with_all_reasons(capsys):
    with pytest.raises(ValueError, match="'gpu' can not run on this machine") as refusal:
        check_machine(get_scale("gpu"))
    assert "GPU hours" in capsys.readouterr().out  # the plan comes first
    assert "no CUDA GPU" in str(refusal.value)
    for student in get_scale("gpu").students:
        assert f"{student} is not in the cache and the Hub can not be reached" in str(refusal.value)


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
    config = model_config(SEVEN_B).to_json_string()
    code = (
        "from dataclasses import replace\nfrom mixdistill import get_scale\nfrom mixdistill.study.plan import check_machine\n"
        f"names = ('open/model', 'gated/model', 'nobody/nothing')\n"
        "import mixdistill.study.hardware as hardware\n"
        f"hardware.ARCHITECTURES |= dict.fromkeys(names, hardware.ARCHITECTURES[{SEVEN_B!r}])\n"
        "check_machine(replace(get_scale('gpu'), students=names, alpha_student=names[0]))"
    )
    with serve({"open/model": {"config.json": config.encode()}}) as address:
        variables = environment(tmp_path, HF_ENDPOINT=address)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=300)
    assert "gated/model is gated: accept its licence at https://huggingface.co/gated/model" in done.stderr
    assert "nobody/nothing: the Hub has no such model, or hides it" in done.stderr
    assert "- open/model" not in done.stderr


@pytest.mark.parametrize("name", ["smoke", "pocket"])
def test_the_pocket_world_runs_everywhere(name, capsys):
    check_machine(get_scale(name))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "answer_format"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Some GPU of tomorrow", "RTX 3090"),  # the slowest
    ],
)
def test_a_gpu_has_the_memory_found_and_the_speed_of_its_kind(name, answer_format):
    gpu = gpu_named(name, 40 * 10**9)
    assert (gpu.name, gpu.memory) == (name, 40 * 10**9)
    assert gpu.flops == next(known.flops for known in GPUS if known.name == answer_format)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(get_scale("gpu"), 0), "number of GPUs is 0"),
        (
            lambda: plan(only(get_scale("gpu"), "someone/unknown-model")),
            "'someone/unknown-model' is not in the cache of the Hub: get it with `hf download",
        ),
    ],
)
def test_what_can_not_be_planned_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_command_prints_a_plan(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mixdistill", "plan", "gpu", "--seeds", "1", "--gpus", "2"])
    main()
    assert "Scale gpu on 2 x H100, 80 GB (assumed); seeds: 1" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["mixdistill", "plan", "galaxy"])
    with pytest.raises(SystemExit, match=f"unknown scale 'galaxy': use one of {', '.join(SCALES)}"):
        main()
