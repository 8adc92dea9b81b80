"""Whatever ends a run, the last good checkpoint is whole, and the run that goes on from it ends with the same bits."""

import resource
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import REPO
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mixdistill import LoRA, Placement, files, finetune, load_student, load_traces, runs
from mixdistill.finetuning import finetune as training
from mixdistill.finetuning.checkpoints import load_trained, merged

SETTINGS = {"lora": LoRA(r=4), "epochs": 2, "batch_size": 4, "lr": 5e-3, "progress": False}
ADAPTER = "adapter/adapter_model.safetensors"


def train():
    return load_traces("pocket/short", n=32)


def math_train(path):
    return load_traces(str(path), columns={"question": "problem", "response": "solution"})


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXDISTILL_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        return finetune("pocket/xs", train(), **SETTINGS)


def assert_same(run, other) -> None:
    assert (run.folder / ADAPTER).read_bytes() == (other.folder / ADAPTER).read_bytes()
    assert (run.folder / "metrics.jsonl").read_bytes() == (other.folder / "metrics.jsonl").read_bytes()


KILLED_WHILE_SAVING = """
import os, signal, sys, torch
from mixdistill import LoRA, finetune, load_traces
from mixdistill.finetuning import finetune as training
training.CHECKPOINT_EVERY = 3
save, saved = torch.save, 0
def die_in_the_second(state, path):
    global saved
    saved += 1
    save(state, path)
    if saved == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = die_in_the_second
finetune("pocket/xs", load_traces("pocket/short", n=32), lora=LoRA(r=4), epochs=2, batch_size=4, lr=5e-3)
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
        with pytest.raises(OSError, match=r"cannot write .*checkpoint.pt.*: make room"):
            finetune("pocket/xs", train(), **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    assert torch.load(path, weights_only=True)["progress"]["step"] == 3
    assert not list(runs.runs_dir().rglob("*.tmp"))
    assert_same(finetune("pocket/xs", train(), **SETTINGS), undisturbed)


def stop_at(monkeypatch, step: int) -> None:
    """The next training ends in this step as by Ctrl-C."""
    schedule = training.schedule

    def stop(at, n_steps):
        if at == step:
            monkeypatch.setattr(training, "schedule", schedule)
            raise KeyboardInterrupt
        return schedule(at, n_steps)

    monkeypatch.setattr(training, "schedule", stop)


def test_a_run_goes_on_elsewhere_after_it_was_stopped(undisturbed, monkeypatch):
    stop_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", train(), **SETTINGS)
    resumed = finetune("pocket/xs", train(), **SETTINGS, on=Placement(tokens=100, checkpointing=True))
    assert resumed.manifest["placement"] == asdict(Placement(tokens=100, checkpointing=True))
    assert resumed.metrics()["loss"].to_list() == pytest.approx(undisturbed.metrics()["loss"].to_list(), rel=1e-5)


@pytest.mark.parametrize("lora", [LoRA(r=4), None], ids=["lora", "full"])
@pytest.mark.parametrize(("at", "often"), [(1, {"CHECKPOINT_EVERY": 1}), (13, {"CHECKPOINT_SECONDS": -1.0})])
def test_resuming_from_any_step_ends_with_the_same_bits(monkeypatch, tmp_path, lora, at, often):
    for name, value in often.items():  # by steps, or by time where steps are long
        monkeypatch.setattr(training, name, value)
    settings = SETTINGS | {"lora": lora}
    whole = finetune("pocket/xs", train(), **settings)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "stopped"))
    stop_at(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", train(), **settings)
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    assert torch.load(path, weights_only=True)["progress"]["step"] == at
    resumed = finetune("pocket/xs", train(), **settings)
    file = ADAPTER if lora else "model/model.safetensors"
    assert (resumed.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert (resumed.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


def of_another_run(state):
    state["run"] = "0123456789abcdef"


def of_another_structure(state):
    name = next(iter(state["parameters"]))
    state["parameters"][name] = torch.tensor(1.0)


def without_a_tensor(state):
    state["parameters"].popitem()


def without_moments(state):
    state["optimizer"]["state"].popitem()


def far_ahead(state):
    state["progress"]["step"] = 10**9


def before_the_start(state):
    state["progress"]["step"] = -5


def without_a_loss(state):
    state["progress"]["log"][0]["loss"] = float("nan")


def in_half_precision(state):
    state["parameters"] = {name: value.half() for name, value in state["parameters"].items()}


def of_another_rate(state):
    state["optimizer"]["param_groups"][0]["betas"] = (0.1, 0.1)


CHANGES = (of_another_run, of_another_structure, without_a_tensor, without_moments, far_ahead, before_the_start)
CHANGES += (without_a_loss, in_half_precision, of_another_rate)


def test_a_checkpoint_that_does_not_fit_is_refused_and_says_how_to_heal_it(undisturbed, monkeypatch):
    stop_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", train(), **SETTINGS)
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    whole = path.read_bytes()
    for change in CHANGES:
        path.write_bytes(whole)
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"checkpoint.pt .*: delete this file and call finetune again"):
            finetune("pocket/xs", train(), **SETTINGS)
    path.unlink()
    assert_same(finetune("pocket/xs", train(), **SETTINGS), undisturbed)


def test_a_checkpoint_with_a_flipped_bit_or_cut_in_half_is_damaged(monkeypatch):
    stop_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", train(), **SETTINGS)
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    content = path.read_bytes()
    state = torch.load(path, weights_only=True)
    name, weights = next(iter(state["parameters"].items()))
    for tensor in (weights, state["optimizer"]["state"][name]["exp_avg"]):
        at = content.index(tensor.numpy().tobytes())
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*: delete this file"):
            finetune("pocket/xs", train(), **SETTINGS)
    weights.copy_(weights.flip(0))  # no bit is changed, only places
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*: delete this file"):
        finetune("pocket/xs", train(), **SETTINGS)
    for length in (0, 9000, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*: delete this file"):
            finetune("pocket/xs", train(), **SETTINGS)


def test_a_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(monkeypatch):
    stop_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", train(), **SETTINGS)

    def too_large(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", too_large)
    said = r"out of memory with .*: call again, which goes on from the last checkpoint"
    with pytest.raises(RuntimeError, match=said):
        finetune("pocket/xs", train(), **SETTINGS)


def test_weights_that_are_not_finite_reach_no_checkpoint(monkeypatch):
    """The loss is read before a checkpoint is written, not only with the next line of the log."""
    stop_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", train(), **SETTINGS)
    schedule = training.schedule
    monkeypatch.setattr(training, "schedule", lambda *_: float("nan") if _[0] == 6 else schedule(*_))
    with pytest.raises(RuntimeError, match="is nan"):
        finetune("pocket/xs", train(), **SETTINGS)
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    state = torch.load(path, weights_only=True)
    assert state["progress"]["step"] == 6
    assert all(tensor.isfinite().all() for tensor in state["parameters"].values())


def test_plain_peft_and_transformers_load_the_adapter(qwen, llama, math_traces):
    ids = torch.arange(3, 40)[None]
    for name in (qwen, llama):
        run = finetune(name, math_train(math_traces), **SETTINGS)
        expected = load_trained(run).model(ids).logits
        by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), run.folder / "adapter")
        torch.testing.assert_close(by_peft(ids).logits, expected)
        by_transformers = AutoModelForCausalLM.from_pretrained(name)
        by_transformers.load_adapter(str(run.folder / "adapter"))
        torch.testing.assert_close(by_transformers(ids).logits, expected)


def test_trained_embeddings_stay_tied(qwen, llama, math_traces):
    for name, tied in ((qwen, True), (llama, False)):
        run = finetune(name, math_train(math_traces), **SETTINGS | {"lora": None})
        model = load_student(str(run.folder / "model")).model
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        assert ("lm_head.weight" in load_file(run.folder / "model" / "model.safetensors")) is not tied
        assert not torch.equal(model.lm_head.weight, load_student(name).model.lm_head.weight)


@pytest.mark.parametrize("lora", [LoRA(r=4), None], ids=["adapters", "all weights"])
def test_a_merged_student_says_what_the_run_says_and_is_written_once(lora, qwen, math_traces, capfd):
    run = finetune(qwen, math_train(math_traces), lora=lora, lr=1e-2, epochs=1, progress=False)
    folder = merged(run)
    ids = torch.arange(3, 40)[None]
    expected = load_trained(run).model(ids).logits
    torch.testing.assert_close(load_student(folder).model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    (weights,) = folder.glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    assert merged(run) == folder
    assert weights.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""  # no bars of transformers


def test_a_run_opened_by_another_name_is_merged_to_its_own_place(qwen, math_traces, monkeypatch, tmp_path, store):
    run = finetune(qwen, math_train(math_traces), lora=LoRA(r=4), lr=1e-2, epochs=1, progress=False)
    folder = merged(run)
    monkeypatch.chdir(run.folder / "adapter")
    (tmp_path / "latest").symlink_to(run.folder)
    for name in ("..", str(tmp_path / "latest")):
        assert merged(runs.open_run(name, student=qwen)) == folder
    assert merged(replace(run, folder=Path(".."))) == folder
    assert run.folder.is_dir()
    with pytest.raises(ValueError, match="can not be replaced"):
        files.replace(store / "merged" / "..", lambda path: path.mkdir())
