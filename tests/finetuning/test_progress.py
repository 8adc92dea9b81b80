"""What a run says while it trains, and that saying it costs nothing between two lines of the log."""

import re
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixdistill import LoRA, finetune, load_traces
from mixdistill.finetuning import progress
from mixdistill.finetuning.progress import Progress, peak_memory

CPU = torch.device("cpu")
LINE = (
    r"step 10\.0/20, loss 1\.500, [\d,]+ supervised of [\d,]+ tokens/s, \d+\.\d min left, peak \d\.\d+ GB"  # of one run
)


def test_a_run_begins_with_a_line_that_names_the_student_and_where_it_is_trained(capsys):
    finetune("pocket/xs", load_traces("pocket/short", n=40), lora=LoRA(r=4), epochs=1, batch_size=8)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("pocket/xs, seed 0: 40 examples, 5 steps, attention ")
    assert "Placement(gpus=1, tokens=2048" in first


def test_a_line_says_where_the_run_is_how_fast_and_what_it_takes():
    shown = Progress("pocket/xs, seed 0", CPU)
    assert re.fullmatch(r"getting ready, \d+ s", shown.line())
    shown.begin(4, 20)
    shown.at = 4.5  # in the middle of the first step, of which no loss is known yet
    assert re.fullmatch(r"step 4\.5/20, peak \d\.\d+ GB", shown.line())
    shown.at, shown.loss, shown.tokens, shown.supervised = 10, 1.5, 3000, 2000
    assert re.fullmatch(LINE, shown.line())
    shown.at = 21  # a step that was done twice
    assert ", 0.0 min left" in shown.line()


def test_a_clock_that_stands_still_ends_no_line(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    shown = Progress("pocket/xs, seed 0", CPU)
    shown.begin(0, 20)
    shown.at, shown.loss, shown.tokens, shown.supervised = 10, 1.5, 3000, 2000
    assert re.fullmatch(LINE, shown.line())


def test_lines_come_without_the_loop_until_the_run_ends(monkeypatch, capsys):
    """A single pass of a large student can take minutes."""
    monkeypatch.setattr(progress, "EVERY", 0.001)
    said = ""
    with Progress("pocket/xs, seed 0", CPU) as shown:
        while said.count("\n") < 3:
            said += capsys.readouterr().out
    assert all(line.startswith("pocket/xs, seed 0: getting ready, ") for line in said.splitlines())
    assert not shown._thread.is_alive()


def test_without_progress_nothing_is_said(capsys):
    finetune("pocket/xs", load_traces("pocket/short", n=8), lora=LoRA(r=4), epochs=1, progress=False)
    assert capsys.readouterr().out == ""


def test_nothing_is_read_back_between_two_lines_of_the_log():
    """On a GPU every such read waits for all that was started before. One a pass is of transformers' mask for rows with
    padding, which packed rows on a GPU have not."""

    class Count(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.reads += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    def reads(epochs: int) -> int:
        with Count() as count:
            finetune("pocket/xs", load_traces("pocket/short", n=10), epochs=epochs, batch_size=1, progress=False)
        return count.reads

    assert reads(4) - reads(1) == 3 * 10  # passes


def test_peak_memory_of_a_cpu_is_that_of_the_process():
    before = peak_memory(CPU)
    block = torch.ones(max(64, before // 4) * 1)
    assert peak_memory(CPU) >= before > 10**6
    assert block.sum() > 0
