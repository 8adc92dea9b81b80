"""Several processes train what one trains: the same losses, and a whole adapter. Real processes, gloo, on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPO
from safetensors.torch import load_file

from mixdistill import LoRA, Placement, finetune, load_student, load_traces
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.finetuning.gpus import _end_with_parent, launch, write_arguments
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


def arguments(student, train, lora=LORA, **on) -> dict:
    return {"student": student, "train": train, "lora": lora, **SETTINGS, "on": Placement(**{"tokens": 60, **on})}


def started(
    tmp_path, *calls: dict, patch: str = "", launcher: str = "torch.distributed.run --standalone --nproc-per-node=2"
):
    """Two processes of a script that calls `finetune`, after a few lines that change the module `m`."""
    folders = [str(tmp_path / f"call-{i}") for i in range(len(calls))]
    for folder, given in zip(folders, calls, strict=True):
        Path(folder).mkdir(exist_ok=True)
        write_arguments(Path(folder), given)
    script = f"""import os, sys, torch
from pathlib import Path
from mixdistill.finetuning import finetune as m
from mixdistill.finetuning.gpus import read_arguments
m.CHECKPOINT_EVERY = 3
{patch}
for folder in {folders}:
    m.finetune(**read_arguments(Path(folder)))
"""
    (tmp_path / "script.py").write_text(script)
    return subprocess.run(
        [sys.executable, "-m", *launcher.split(), tmp_path / "script.py"],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
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


STOP_AT_5 = "s = m.schedule\nm.schedule = lambda at, n: s(at, n) if at < 5 else sys.exit(1)"


def test_two_processes_equal_one_also_after_they_were_stopped(monkeypatch, tmp_path, qwen, train, capfd):
    one = single(monkeypatch, tmp_path, qwen, train)
    capfd.readouterr()
    before = signal.getsignal(signal.SIGINT)  # which is ignored where the tests run in a shell's background
    launch(arguments(qwen, train), 2)
    shown = capfd.readouterr().out  # what the processes print comes back, once
    assert shown.count("13 examples, 8 steps") == 1
    assert signal.getsignal(signal.SIGINT) is before
    undisturbed = trained_run(one)
    assert_equal(undisturbed, one, "adapter/adapter_model.safetensors")
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "stopped"))
    assert started(tmp_path, arguments(qwen, train), patch=STOP_AT_5).returncode != 0
    launch(arguments(qwen, train), 2)
    assert trained_run(one).metrics().equals(undisturbed.metrics())


def test_a_sharded_run_goes_on_in_one_process(monkeypatch, tmp_path, qwen, train):
    """Checkpoints hold whole tensors, so that the number of processes may change."""
    one = single(monkeypatch, tmp_path, qwen, train)
    assert started(tmp_path, arguments(qwen, train, shard=True), patch=STOP_AT_5).returncode != 0
    (checkpoint,) = runs_dir().rglob("checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == 3
    resumed = finetune(qwen, train, lora=LORA, **SETTINGS, on=Placement(tokens=60))
    assert resumed.manifest["processes"] == 1
    assert resumed.metrics()["loss"].to_list() == pytest.approx(one.metrics()["loss"].to_list(), rel=1e-4)


OUT_OF_MEMORY_IN_ONE = """
left, token_groups = [], m.token_groups
def fail(*_):
    if os.environ["RANK"] == "1" and left:
        left.pop()
        raise torch.OutOfMemoryError("CUDA out of memory")
def begin(lengths, budget, *more):  # the loop has begun
    if budget == 400:
        left.append(1)
        torch.nn.modules.module.register_module_forward_pre_hook(fail)
    return token_groups(lengths, budget, *more)
m.token_groups = begin
"""


def test_a_script_trains_with_shared_weights_and_after_memory_ran_out_in_one(monkeypatch, tmp_path, llama, qwen, train):
    """Under `accelerate launch`; the other scripts run under `torchrun`. Adapters and all weights, shared out over two
    processes; then a copy for each, until one has no memory left and all take the same shorter passes; then shared out
    without memory, which ends all with advice."""
    adapters = single(monkeypatch, tmp_path, llama, train)
    whole = single(monkeypatch, tmp_path, qwen, train, lora=None)
    copies = single(monkeypatch, tmp_path, qwen, train)
    calls = [
        arguments(llama, train, shard=True),
        arguments(qwen, train, lora=None, shard=True),
        arguments(qwen, train, tokens=400),
        arguments(qwen, train, LoRA(r=2), tokens=400, shard=True),
    ]
    settings = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    process = started(tmp_path, *calls, patch=OUT_OF_MEMORY_IN_ONE, launcher=f"accelerate.commands.launch {settings}")
    assert process.returncode != 0
    assert "out of memory with 2 processes, passes of up to 400 tokens, shared weights (shard)" in process.stderr
    assert trained_run(adapters).manifest["placement"]["shard"]
    assert_equal(trained_run(adapters), adapters, "adapter/adapter_model.safetensors")
    assert_equal(trained_run(whole), whole, "model/model.safetensors")
    model = load_student(str(trained_run(whole).folder / "model")).model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert process.stdout.count("out of memory at step 1: goes on with 2 processes, passes of up to ") == 1
    assert_equal(trained_run(copies), copies, "adapter/adapter_model.safetensors")


def test_a_process_ends_when_the_one_that_started_it_is_gone(monkeypatch):
    parents = iter([5, 5, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        _end_with_parent(5)
    assert list(parents) == []


def test_a_process_that_fails_says_why(qwen, train):
    with pytest.raises(RuntimeError, match=r"training in 2 processes failed: .*Error: .* more than 10 tokens"):
        launch(arguments(qwen, train) | {"max_tokens": 10}, 2)
    assert not runs_dir().exists() or not list(runs_dir().glob("toy-*"))
