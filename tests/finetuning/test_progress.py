"""What a run says while it trains."""

import re
import time

import torch

from mixdistill import LoRA, finetune, load_traces
from mixdistill.finetuning import progress
from mixdistill.finetuning.progress import Progress, peak_memory

SPEED = r"[\d,]+ supervised of [\d,]+ tokens/s"
LINE = rf"pocket/xs, seed 0: 50% of 20 steps, 00:\d\d<00:\d\d, loss 1\.500, {SPEED}, peak \d\.\d+ GB"
ROW = {"loss": 1.5, "tokens": 3000, "supervised_tokens": 2000}


def test_a_run_begins_with_a_line_that_names_the_student_and_where_it_is_trained(capsys):
    finetune("pocket/xs", load_traces("pocket/short", n=40), lora=LoRA(r=4), epochs=1, batch_size=8)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("pocket/xs, seed 0: 40 examples, 5 steps, sdpa attention, ")
    assert "passes of up to 2,048 tokens" in first


def begun(at: int) -> Progress:
    shown = Progress("pocket/xs, seed 0")
    shown.begin([ROW] * at, 20)
    return shown


def test_a_line_says_where_the_run_is_how_fast_and_what_it_takes():
    assert re.fullmatch(r"pocket/xs, seed 0: getting ready, \d+ s", Progress("pocket/xs, seed 0").line())
    shown = begun(4)
    shown.share = 0.5  # in the middle of the first step
    assert shown.line().startswith("pocket/xs, seed 0: 22% of 20 steps, ")
    shown = begun(9)
    shown.log.append(ROW)
    assert re.fullmatch(LINE, shown.line())


def test_a_clock_that_stands_still_ends_no_line(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    shown = begun(9)
    shown.log.append(ROW)
    assert re.fullmatch(LINE, shown.line())


def test_lines_come_without_the_loop_until_the_run_ends(monkeypatch, capsys):
    """A single pass of a large student can take minutes."""
    monkeypatch.setattr(progress, "EVERY", 0.001)
    said = ""
    with Progress("pocket/xs, seed 0") as shown:
        while said.count("\n") < 3:
            said += capsys.readouterr().out
    assert all(line.startswith("pocket/xs, seed 0: getting ready, ") for line in said.splitlines())
    assert not shown._thread.is_alive()


def test_without_progress_nothing_is_said(capsys):
    finetune("pocket/xs", load_traces("pocket/short", n=8), lora=LoRA(r=4), epochs=1, progress=False)
    assert capsys.readouterr().out == ""


def test_peak_memory_of_a_cpu_is_that_of_the_process():
    before = peak_memory()
    block = torch.ones(max(64, before // 4) * 1)
    assert peak_memory() >= before > 10**6
    assert block.sum() > 0
