"""Whatever ends a run, the last good checkpoint is whole, and the run that goes on from it ends with the same bits."""

import importlib
import resource
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPO
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM

from mixdistill import LoRA, finetune, load_student, load_traces, runs
from mixdistill.finetuning.finetune import load_trained, merge

training = importlib.import_module("mixdistill.finetuning.finetune")
SETTINGS = {"lora": LoRA(r=4), "epochs": 2, "batch_size": 4, "lr": 5e-3, "checkpoint_every": 3, "progress": False}
ADAPTER = "adapter/adapter_model.safetensors"


def train():
    return load_traces("pocket/short", n=32)


def math_train(path):
    return load_traces(str(path), columns={"question": "problem", "response": "solution"})


@pytest.fixture
def undisturbed(monkeypatch, tmp_path):
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "undisturbed"))
    run = finetune("pocket/xs", train(), **SETTINGS)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "runs"))
    return run


def assert_same(run, other) -> None:
    assert (run.folder / ADAPTER).read_bytes() == (other.folder / ADAPTER).read_bytes()
    assert (run.folder / "metrics.jsonl").read_bytes() == (other.folder / "metrics.jsonl").read_bytes()


KILLED_WHILE_SAVING = """
import os, signal, sys, torch
from mixdistill import LoRA, finetune, load_traces
save, saved = torch.save, 0
def die_in_the_second(state, path):
    global saved
    saved += 1
    save(state, path)
    if saved == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = die_in_the_second
finetune("pocket/xs", load_traces("pocket/short", n=32), lora=LoRA(r=4), epochs=2, batch_size=4, lr=5e-3, checkpoint_every=3)
"""


def test_kill_9_in_the_middle_of_a_save_leaves_the_checkpoint_before(undisturbed):
    process = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING], cwd=REPO, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    assert torch.load(path, weights_only=True)["progress"]["step"] == 3
    assert_same(finetune("pocket/xs", train(), **SETTINGS), undisturbed)
    assert not list(runs.runs_dir().rglob("*.tmp"))


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(undisturbed, monkeypatch):
    """The limit on a file's size makes a write fail in its middle, as a full disk does."""
    steps, before = 0, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk_at_step_5(*arguments):
        nonlocal steps
        steps += 1
        if steps == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        return schedule(*arguments)

    schedule = training.schedule
    monkeypatch.setattr(training, "schedule", fill_the_disk_at_step_5)
    try:
        with pytest.raises(OSError, match=r"cannot write a checkpoint of about .* MB .*: make room"):
            finetune("pocket/xs", train(), **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    assert torch.load(path, weights_only=True)["progress"]["step"] == 3
    assert not list(runs.runs_dir().rglob("*.tmp"))
    assert_same(finetune("pocket/xs", train(), **SETTINGS), undisturbed)


def test_out_of_memory_says_what_to_lower_and_the_run_goes_on_from_the_step_before(undisturbed, monkeypatch):
    """In the fifth step the allocator is asked for more than any machine has."""
    steps, schedule = 0, training.schedule

    def count(*arguments):
        nonlocal steps
        steps += 1
        return schedule(*arguments)

    monkeypatch.setattr(training, "schedule", count)
    hook = register_module_forward_pre_hook(lambda *_: torch.empty(2**50) if steps == 4 else None)
    try:
        with pytest.raises(
            RuntimeError, match=r"out of memory at step 5 of 16 .*: lower micro_batch_tokens from 2048 to 1024"
        ):
            finetune("pocket/xs", train(), **SETTINGS)
    finally:
        hook.remove()
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    assert torch.load(path, weights_only=True)["progress"]["step"] == 4
    assert_same(finetune("pocket/xs", train(), **SETTINGS), undisturbed)


def test_a_run_goes_on_with_shorter_passes_after_it_was_stopped(undisturbed, monkeypatch):
    schedule = training.schedule
    monkeypatch.setattr(training, "schedule", lambda step, *rest: None if step == 7 else schedule(step, *rest))
    with pytest.raises(TypeError):
        finetune("pocket/xs", train(), **SETTINGS)
    monkeypatch.setattr(training, "schedule", schedule)
    resumed = finetune("pocket/xs", train(), **SETTINGS, micro_batch_tokens=100)
    assert resumed.manifest["memory_plan"]["micro_batch_tokens"] == 100
    assert resumed.metrics()["loss"].to_list() == pytest.approx(undisturbed.metrics()["loss"].to_list(), rel=1e-5)


@pytest.mark.parametrize("lora", [LoRA(r=4), LoRA(r=4, dropout=0.2), None], ids=["lora", "dropout", "full"])
@pytest.mark.parametrize("at", [1, 13])
def test_resuming_from_any_step_ends_with_the_same_bits(monkeypatch, tmp_path, lora, at):
    settings = SETTINGS | {"lora": lora, "checkpoint_every": 1}
    whole = finetune("pocket/xs", train(), **settings)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "stopped"))
    schedule = training.schedule
    monkeypatch.setattr(training, "schedule", lambda step, *rest: stop() if step == at else schedule(step, *rest))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", train(), **settings)
    monkeypatch.setattr(training, "schedule", schedule)
    resumed = finetune("pocket/xs", train(), **settings)
    file = ADAPTER if lora else "model/model.safetensors"
    assert (resumed.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert (resumed.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


def test_plain_peft_and_transformers_load_the_adapter(qwen, llama, math_traces):
    ids = torch.arange(3, 40)[None]
    for name in (qwen, llama):
        run = finetune(name, math_train(math_traces), **SETTINGS)
        expected = load_trained(run).model(ids).logits
        by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), run.folder / "adapter")
        torch.testing.assert_close(by_peft(ids).logits, expected)
        by_auto = AutoPeftModelForCausalLM.from_pretrained(run.folder / "adapter")
        torch.testing.assert_close(by_auto(ids).logits, expected)
        by_transformers = AutoModelForCausalLM.from_pretrained(name)
        by_transformers.load_adapter(str(run.folder / "adapter"))
        torch.testing.assert_close(by_transformers(ids).logits, expected)


def test_a_merged_student_equals_its_adapter_and_keeps_its_embeddings_tied(qwen, llama, math_traces):
    ids = torch.arange(3, 40)[None]
    for name, tied in ((qwen, True), (llama, False)):
        run = finetune(name, math_train(math_traces), **SETTINGS)
        merged = load_student(str(merge(run))).model
        torch.testing.assert_close(merged(ids).logits, load_trained(run).model(ids).logits, rtol=1e-4, atol=1e-4)
        assert (merged.lm_head.weight is merged.get_input_embeddings().weight) is tied
        assert ("lm_head.weight" in load_file(run.folder / "merged" / "model.safetensors")) is not tied


def test_trained_embeddings_stay_tied(qwen, llama, math_traces):
    for name, tied in ((qwen, True), (llama, False)):
        run = finetune(name, math_train(math_traces), **SETTINGS | {"lora": None})
        model = load_student(str(run.folder / "model")).model
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        assert ("lm_head.weight" in load_file(run.folder / "model" / "model.safetensors")) is not tied
        assert not torch.equal(model.lm_head.weight, load_student(name).model.lm_head.weight)


def test_only_runs_with_an_adapter_are_merged():
    run = finetune("pocket/xs", train(), **SETTINGS | {"lora": None})
    with pytest.raises(ValueError, match="has no adapter"):
        merge(run)
