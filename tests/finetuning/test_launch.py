"""Several processes train what one trains: the same losses, and a whole adapter. Real processes, gloo, on the CPU."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import REPO
from safetensors.torch import load_file

from mixdistill import LoRA, finetune, load_student, load_traces
from mixdistill.finetuning.finetune import load_trained
from mixdistill.finetuning.launch import load_arm, save_arm, torchrun
from mixdistill.runs import Run, runs_dir

# 13 examples of unequal length in steps of 4: the last step of an epoch has one, and one process has nothing to do.
SETTINGS = {"epochs": 2, "batch_size": 4, "lr": 5e-3, "micro_batch_tokens": 60, "checkpoint_every": 3}
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
    run = finetune(student, train, lora=lora, **SETTINGS)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "several"))
    return run


def arm(folder: Path, student, train, lora=LORA, **settings) -> Path:
    return save_arm(folder, train, {"student": student, "lora": asdict(lora) if lora else None, **SETTINGS, **settings})


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


@pytest.mark.parametrize(("student", "shard"), [("qwen", False), ("llama", True)], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one_and_save_a_whole_adapter(monkeypatch, tmp_path, request, train, student, shard, capfd):
    student = request.getfixturevalue(student)
    one = single(monkeypatch, tmp_path, student, train)
    capfd.readouterr()
    torchrun(arm(tmp_path / "arm", student, train, shard=shard), processes=2)
    several = trained_run(one)
    assert several.manifest["memory_plan"]["shard"] is shard
    assert_equal(several, one, "adapter/adapter_model.safetensors")
    shown = capfd.readouterr().out  # what the processes print comes back, once
    assert shown.count("13 examples, 8 steps") == 1


def test_all_weights_are_trained_sharded_and_saved_whole(monkeypatch, tmp_path, qwen, train):
    one = single(monkeypatch, tmp_path, qwen, train, lora=None)
    torchrun(arm(tmp_path / "arm", qwen, train, lora=None, shard=True), processes=2)
    assert_equal(trained_run(one), one, "model/model.safetensors")
    model = load_student(str(trained_run(one).folder / "model")).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_sharded_run_goes_on_in_one_process(monkeypatch, tmp_path, qwen, train):
    """Checkpoints hold whole tensors, so that the number of processes may change."""
    one = single(monkeypatch, tmp_path, qwen, train)
    path = arm(tmp_path / "arm", qwen, train, shard=True)
    script = "import mixdistill, sys; m = sys.modules['mixdistill.finetuning.finetune']; s = m.schedule\n"
    script += "m.schedule = lambda at, *rest: s(at, *rest) if at < 5 else sys.exit(1)\n"
    (tmp_path / "stopped.py").write_text(script + f"sys.argv = ['', {str(path)!r}]; m.main()")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.run(
        [*command, str(tmp_path / "stopped.py")],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
    )
    assert process.returncode != 0
    (checkpoint,) = runs_dir().rglob("checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == 3
    resumed = finetune(qwen, train, lora=LORA, **SETTINGS)
    assert resumed.manifest["processes"] == 1
    assert resumed.metrics()["loss"].to_list() == pytest.approx(one.metrics()["loss"].to_list(), rel=1e-4)


def test_the_same_arm_runs_under_accelerate_launch(monkeypatch, tmp_path, qwen, train):
    one = single(monkeypatch, tmp_path, qwen, train)
    path = arm(tmp_path / "arm", qwen, train)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    process = subprocess.run(
        [
            *command,
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "-m",
            "mixdistill.finetuning.finetune",
            path,
        ],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert_equal(trained_run(one), one, "adapter/adapter_model.safetensors")


def test_a_process_that_fails_says_why(tmp_path, qwen, train):
    with pytest.raises(RuntimeError, match=r"training in 2 processes failed: Error: .* more than 10 tokens"):
        torchrun(arm(tmp_path / "arm", qwen, train, max_tokens=10), processes=2)


def test_more_gpus_than_there_are_are_refused(qwen, train):
    with pytest.raises(ValueError, match=r"gpus is 64, this machine has \d: ask for at most that many"):
        finetune(qwen, train, gpus=64)


def test_an_arm_gives_back_what_it_was_made_of(tmp_path, train):
    data, arguments = load_arm(arm(tmp_path / "arm", "pocket/xs", train))
    assert data.to_list() == train.to_list()
    assert arguments == {"student": "pocket/xs", "lora": asdict(LORA), **SETTINGS}


def test_what_is_no_arm_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is no arm"):
        load_arm(tmp_path / "other.json")
