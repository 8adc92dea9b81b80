"""Where a student is trained changes nothing but rounding; when the memory runs out, the loop gives up one thing after
the other.
"""

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoConfig

from mixdistill import LoRA, Placement, finetune, load_traces, runs
from mixdistill.finetuning import finetune as training
from mixdistill.finetuning.memory import is_out_of_memory, more_frugal, pass_tokens

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETTINGS = {"lora": LoRA(r=4), "epochs": 1, "batch_size": 8, "lr": 5e-3, "progress": False}


def train():
    return load_traces("pocket/short", n=24)


def test_tokens_are_given_up_then_layers_are_computed_again():
    steps = [Placement(tokens=16_384)]
    for _ in range(4):
        steps.append(more_frugal(steps[-1], 700))
    assert [on.tokens for on in steps] == [16_384, 4096, 1024, 700, 700]
    assert [on.checkpointing for on in steps] == [False] * 4 + [True]
    with pytest.raises(MemoryError, match="one example of 700 tokens does not fit"):
        more_frugal(steps[-1], 700)


def test_a_pass_has_what_was_asked_for_and_splits_no_example(qwen):
    config = AutoConfig.from_pretrained(qwen)
    assert pass_tokens(Placement(), config, GPU, 300) == 16_384
    assert pass_tokens(Placement(), config, CPU, 300) == 2048
    assert pass_tokens(Placement(tokens=400), config, CPU, 300) == 400
    assert pass_tokens(Placement(tokens=100), config, CPU, 300) == 300


@pytest.mark.parametrize("bad", [{"gpus": 0}, {"tokens": 0}, {"tokens": 1.5}, {"shard": 1}])
def test_placements_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is "):
        Placement(**bad)


class OutOfMemory:
    """From one step on, the allocator is asked for more than any machine has, so many times."""

    def __init__(self, monkeypatch, step: int, times: int) -> None:
        self.at, self.step, self.left, batch_of = -1, step, times, training.batch_of

        def follow(examples, step, *rest):
            self.at = step
            return batch_of(examples, step, *rest)

        monkeypatch.setattr(training, "batch_of", follow)

    def __enter__(self) -> None:
        self.hook = register_module_forward_pre_hook(self.fail)

    def __exit__(self, *_) -> None:
        self.hook.remove()

    def fail(self, *_) -> None:
        if self.at >= self.step and self.left:
            self.left -= 1
            torch.empty(2**50)


@pytest.mark.parametrize("step", [0, 1])
def test_the_step_is_done_again_with_less_at_a_time(monkeypatch, tmp_path, capsys, step):
    undisturbed = finetune("pocket/xs", train(), **SETTINGS)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "short"))
    with OutOfMemory(monkeypatch, step, times=1):
        run = finetune("pocket/xs", train(), **SETTINGS | {"progress": True})
    assert run.manifest["placement"] == asdict(Placement(tokens=2048 // 4))
    assert f"out of memory at step {step + 1}: goes on with {Placement(tokens=512)}" in capsys.readouterr().out
    assert run.manifest["tokens"] == undisturbed.manifest["tokens"]
    assert run.metrics()["loss"].to_list() == pytest.approx(undisturbed.metrics()["loss"].to_list(), rel=1e-5)


def test_where_nothing_is_left_to_give_up_the_error_says_what_to_change_and_nothing_is_lost(monkeypatch, tmp_path):
    undisturbed = finetune("pocket/xs", train(), **SETTINGS)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "short"))
    with (
        OutOfMemory(monkeypatch, step=2, times=99),
        pytest.raises(RuntimeError, match=r"one example of \d+ tokens does not fit.*: call again"),
    ):
        finetune("pocket/xs", train(), **SETTINGS)
    (path,) = runs.runs_dir().rglob("checkpoint.pt")
    assert torch.load(path, weights_only=True)["progress"]["step"] == 2
    resumed = finetune("pocket/xs", train(), **SETTINGS)
    assert resumed.metrics().equals(undisturbed.metrics())


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize("on", [Placement(checkpointing=True), Placement(tokens=90), Placement(tokens=5000)])
def test_every_placement_trains_the_same_student(monkeypatch, tmp_path, on):
    plain = finetune("pocket/xs", train(), **SETTINGS)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "elsewhere"))
    other = finetune("pocket/xs", train(), **SETTINGS, on=on)
    assert other.manifest["placement"] == asdict(replace(on, tokens=other.manifest["placement"]["tokens"]))
    assert other.metrics()["loss"].to_list() == pytest.approx(plain.metrics()["loss"].to_list(), rel=1e-5)
