"""Several processes train what one trains: the same losses, and a whole adapter. Real processes, gloo, on the CPU."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from conftest import REPO
from safetensors.torch import load_file

from mixdistill import LoRA, Placement, finetune, load_student, load_traces
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.finetuning.gpus import MODULE, launch, load_arm, save_arm
from mixdistill.runs import Run, runs_dir

# 13 examples of unequal length in steps of 4: the last step of an epoch has one, and one process has nothing to do.
SETTINGS = {"epochs": 2, "batch_size": 4, "lr": 5e-3}
LORA = LoRA(r=4)


def math_train(path):
    return load_traces(str(path), columns={"question": "problem", "response": "solution"})


@pytest.fixture
def train(tmp_path):
    rows = [
        {"problem": f"What is {n} plus 30?" * (1 + n % 3), "solution": f"It is \\boxed{{{n + 30}}}."} for n in range(13)
    ]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return math_train(tmp_path / "traces.jsonl")


def single(monkeypatch, tmp_path, student, train, lora=LORA) -> Run:
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "single"))
    run = finetune(student, train, lora=lora, **SETTINGS, on=Placement(tokens=60))
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "several"))
    return run


def arguments(student, lora=LORA, **on) -> dict:
    return {"student": student, "lora": asdict(lora) if lora else None, **SETTINGS, "on": {"tokens": 60, **on}}


def under_torchrun(tmp_path, train, given: dict, patch: str) -> subprocess.CompletedProcess:
    """Two processes that run `main` after a few lines that change the module `m`."""
    arm = save_arm(tmp_path, train, given)
    script = (
        f"import sys, os, torch\nfrom mixdistill.finetuning import finetune as m\nm.CHECKPOINT_EVERY = 3\n{patch}\n"
    )
    (tmp_path / "patched.py").write_text(script + f"sys.argv = ['', {str(arm)!r}]\nm.main()")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run(
        [*command, tmp_path / "patched.py"], cwd=REPO, env=environment, capture_output=True, text=True
    )


def trained_run(single_run: Run) -> Run:
    return Run(runs_dir() / single_run.folder.name, single_run.config)


def assert_equal(several: Run, one: Run, tensors: str) -> None:
    assert several.manifest["processes"] == 2
    assert several.manifest["tokens"] == one.manifest["tokens"]
    assert several.manifest["supervised_tokens"] == one.manifest["supervised_tokens"]
    for column in ("loss", "grad_norm"):
        assert several.metrics()[column].to_list() == pytest.approx(one.metrics()[column].to_list(), rel=1e-4)
    left, right = load_file(several.folder / tensors), load_file(one.folder / tensors)
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].shape == tensor.shape
        torch.testing.assert_close(left[name], tensor, rtol=1e-3, atol=1e-4)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(
        load_trained(several).model(ids).logits, load_trained(one).model(ids).logits, rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize(("student", "shard"), [("qwen", False), ("llama", True)], ids=["copies", "fsdp2"])
def test_two_processes_equal_one_and_save_a_whole_adapter(monkeypatch, tmp_path, request, train, student, shard, capfd):
    student = request.getfixturevalue(student)
    one = single(monkeypatch, tmp_path, student, train)
    capfd.readouterr()
    launch(train, arguments(student, shard=shard), 2)
    several = trained_run(one)
    assert several.manifest["placement"]["shard"] is shard
    assert_equal(several, one, "adapter/adapter_model.safetensors")
    shown = capfd.readouterr().out  # what the processes print comes back, once
    assert shown.count("13 examples, 8 steps") == 1


def test_all_weights_are_trained_sharded_and_saved_whole(monkeypatch, tmp_path, qwen, train):
    one = single(monkeypatch, tmp_path, qwen, train, lora=None)
    launch(train, arguments(qwen, lora=None, shard=True), 2)
    assert_equal(trained_run(one), one, "model/model.safetensors")
    model = load_student(str(trained_run(one).folder / "model")).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


STOP_AT_5 = "s = m.schedule\nm.schedule = lambda at, n: s(at, n) if at < 5 else sys.exit(1)"


def test_a_sharded_run_goes_on_in_one_process(monkeypatch, tmp_path, qwen, train):
    """Checkpoints hold whole tensors, so that the number of processes may change."""
    one = single(monkeypatch, tmp_path, qwen, train)
    assert under_torchrun(tmp_path, train, arguments(qwen, shard=True), STOP_AT_5).returncode != 0
    (checkpoint,) = runs_dir().rglob("checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == 3
    resumed = finetune(qwen, train, lora=LORA, **SETTINGS, on=Placement(tokens=60))
    assert resumed.manifest["processes"] == 1
    assert resumed.metrics()["loss"].to_list() == pytest.approx(one.metrics()["loss"].to_list(), rel=1e-4)


def test_processes_stopped_between_two_lines_of_the_log_leave_the_undisturbed_one(monkeypatch, tmp_path, qwen, train):
    one = single(monkeypatch, tmp_path, qwen, train)
    launch(train, arguments(qwen), 2)
    undisturbed = trained_run(one)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "stopped"))
    assert under_torchrun(tmp_path, train, arguments(qwen), STOP_AT_5).returncode != 0
    process = under_torchrun(tmp_path, train, arguments(qwen), "")
    assert process.returncode == 0, process.stderr
    assert trained_run(one).metrics().equals(undisturbed.metrics())


OUT_OF_MEMORY_IN_ONE = """
left, share_of = [1], m.share_of
def fail(*_):
    if os.environ["RANK"] == "1" and left:
        left.pop()
        raise torch.OutOfMemoryError("CUDA out of memory")
def begin(*arguments):  # the loop has begun
    torch.nn.modules.module.register_module_forward_pre_hook(fail)
    return share_of(*arguments)
m.share_of = begin
"""


def test_memory_that_runs_out_in_one_process_gives_all_the_same_shorter_passes(monkeypatch, tmp_path, qwen, train):
    one = single(monkeypatch, tmp_path, qwen, train)
    process = under_torchrun(tmp_path, train, arguments(qwen, tokens=400), OUT_OF_MEMORY_IN_ONE)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("out of memory at step 1: goes on with Placement(gpus=2, tokens=") == 1
    assert trained_run(one).manifest["out_of_memory"] == 1
    assert_equal(trained_run(one), one, "adapter/adapter_model.safetensors")


def test_memory_that_runs_out_where_weights_are_shared_out_ends_all_processes_with_advice(tmp_path, qwen, train):
    process = under_torchrun(tmp_path, train, arguments(qwen, tokens=400, shard=True), OUT_OF_MEMORY_IN_ONE)
    assert process.returncode != 0
    assert "call again with on=Placement(gpus=2, tokens=" in process.stderr


def test_the_same_arm_runs_under_accelerate_launch(monkeypatch, tmp_path, qwen, train):
    one = single(monkeypatch, tmp_path, qwen, train)
    arm = save_arm(tmp_path / "arm", train, arguments(qwen))
    settings = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *settings.split(), "-m", MODULE, arm]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert_equal(trained_run(one), one, "adapter/adapter_model.safetensors")


def test_a_process_that_fails_says_why(qwen, train):
    with pytest.raises(RuntimeError, match=r"training in 2 processes failed: .*Error: .* more than 10 tokens"):
        launch(train, arguments(qwen) | {"max_tokens": 10}, 2)
    assert not runs_dir().exists() or not list(runs_dir().glob("toy-*"))


def test_an_arm_gives_back_what_it_was_made_of(tmp_path, train):
    data, given = load_arm(save_arm(tmp_path, train, arguments("pocket/xs")))
    assert data.to_list() == train.to_list()
    assert given == arguments("pocket/xs")


def test_what_is_no_arm_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is no arm"):
        load_arm(tmp_path / "other.json")
