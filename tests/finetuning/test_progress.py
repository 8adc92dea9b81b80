"""What a run says while it trains, and that saying it costs nothing between two lines of the log."""

import importlib
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from mixdistill import LoRA, finetune, load_student, load_traces
from mixdistill.finetuning.lora import trainable_model
from mixdistill.finetuning.memory_model import model_size
from mixdistill.finetuning.progress import flops_per_token, peak_memory, utilisation

training = importlib.import_module("mixdistill.finetuning.finetune")
CPU = torch.device("cpu")


def test_a_line_says_where_the_run_is_how_fast_and_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(training, "PROGRESS_EVERY", 0)
    run = finetune("pocket/xs", load_traces("pocket/short", n=40), epochs=4, batch_size=8)
    first, *lines = capsys.readouterr().out.strip().splitlines()
    assert first.startswith(
        f"{run.folder.name}: 40 examples, 20 steps, attention mixdistill_causal, MemoryPlan(micro_batch_tokens=2048"
    )
    assert len(lines) == 2  # one a line of the log
    assert re.fullmatch(
        rf"{run.folder.name}: step 10/20, loss \d\.\d+, [\d,]+ supervised of [\d,]+ tokens/s, [\d.,]+ model GFLOP/s, "
        r"\d\.\d min left, peak \d\.\d+ GB",
        lines[0],
    )


def test_nothing_is_read_back_between_two_lines_of_the_log():
    """On a GPU every such read waits for all that was started before."""

    class Count(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.reads += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    def reads(epochs: int) -> int:
        with Count() as count:
            finetune("pocket/xs", load_traces("pocket/short", n=10), epochs=epochs, batch_size=1, progress=False)
        return count.reads

    assert reads(4) == reads(1)


def test_flops_are_4n_a_token_with_adapters_and_6n_without(qwen, llama):
    for name in (qwen, llama):
        n = model_size(AutoConfig.from_pretrained(name)).multiplied
        assert flops_per_token(trainable_model(load_student(name), LoRA(r=2), seed=0)) == 4 * n
        assert flops_per_token(trainable_model(load_student(name), None, seed=0)) == 6 * n


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "MFU 50.0%"),
        ("NVIDIA H200", "MFU 50.0%"),
        ("Something else", "494,500.0 model GFLOP/s"),
    ],
)
def test_utilisation_is_a_share_of_the_peak_where_that_is_known(monkeypatch, device, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)
    assert utilisation(989e12 / 2, torch.device("cuda")) == expected


def test_peak_memory_of_a_cpu_is_that_of_the_process():
    before = peak_memory(CPU)
    block = torch.ones(max(64, before // 4) * 1)
    assert peak_memory(CPU) >= before > 10**6
    assert block.sum() > 0
