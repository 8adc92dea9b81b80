import os
import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from mixdistill import get_scale
from mixdistill.study import workers
from mixdistill.study.jobs import Job, Progress, attempt
from mixdistill.study.scales import recipe_arm
from mixdistill.study.sweep import _run, run_all
from mixdistill.study.workers import in_processes


def test_small_jobs_get_a_gpu_each_and_wide_ones_all_of_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")  # as a scheduler gives them
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seen = ("CUDA_VISIBLE_DEVICES",)
    jobs = [Job("small", os.getenv, seen), Job("other", os.getenv, seen), Job("wide", os.getenv, seen, wide=True)]
    said = {job.name: said.split(", ")[0] for job, said, error in in_processes(jobs, True, Progress(jobs))}
    assert {said["small"], said["other"]} == {"3", "5"}
    assert said["wide"] == "3,5"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_a_container_has_the_cores_of_its_quota(monkeypatch, tmp_path):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setattr(workers, "QUOTA", tmp_path / "cpu.max")
    for text, expected in (
        ("max 100000", cores),
        ("150000 100000", 1),
        ("50000 100000", 1),
        (f"{100_000 * (cores + 1)} 100000", cores),
    ):
        (tmp_path / "cpu.max").write_text(text)
        assert workers.n_cores() == expected


def test_no_more_arms_run_at_a_time_than_memory_has_room_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workers, "n_cores", lambda: 4)
    monkeypatch.setattr(workers, "gpu_names", list)
    monkeypatch.setattr(workers, "MEMORY", tmp_path / "memory.max")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    jobs = [Job(name, os.getpid, (), memory=6 * 10**8) for name in "abc"]
    with closing(Progress(jobs)) as shown:
        pids = {said.split(", ")[0] for _, said, _ in in_processes(jobs, True, shown)}
        assert len(pids) == 1
        (tmp_path / "memory.max").write_text("1200000000")
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**10))
        assert [error for *_, error in in_processes(jobs, True, shown)] == [None] * 3
    said = capsys.readouterr().out
    assert "1 in the place of 4 at a time: one may take 0.6 GB, and 1.0 GB are free" in said
    assert "2 in the place of 4 at a time: one may take 0.6 GB, and 1.2 GB are free" in said


def test_a_killed_process_fails_its_own_job_only(capsys):
    jobs = [Job("killed", os._exit, (1,), cost=2.0), Job("good", str, ("fine",))]
    failed = run_all(jobs, workers=1)
    assert [job.name for job in failed] == ["killed"]
    said = capsys.readouterr().out
    assert "[1/2] killed: FAILED: its process was killed, as systems do that run out of memory; about" in said
    assert said.endswith("[2/2] good: fine, 0 s\n")


def test_a_process_that_is_killed_while_it_waits_for_work_is_replaced():
    jobs = [Job("first", str, ("fine",)), Job("second", str, ("fine too",))]
    ends = in_processes(jobs, True, Progress(jobs), workers=1)
    assert next(ends)[1] == "fine, 0 s"
    (pool,) = ends.gi_frame.f_locals["idle"]
    for process in pool._processes.values():
        process.kill()
    while not pool._broken:  # seen by a thread of the pool, a moment later
        time.sleep(0.01)
    assert [(job.name, said, error) for job, said, error in ends] == [("second", "fine too, 0 s", None)]


def test_an_arm_at_work_says_its_step_and_then_its_answer(tmp_path, monkeypatch):
    told, write = [], Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: told.append(text) or write(path, text))
    scale = replace(get_scale("smoke", 1), n_problems=2)
    attempt(Job("arm", _run, (recipe_arm("pocket/xs", "short", 0), scale, None)), True, tmp_path / "status")
    assert [text for text in told if text in ("step 1 of 1", "answer 0 of 6")] == ["step 1 of 1", "answer 0 of 6"]
    assert re.fullmatch(r"\d+ tokens, [1-6] of 6 answers not finished", (tmp_path / "status").read_text())


def test_an_error_that_does_not_survive_the_way_arrives_as_its_text():
    class Odd(Exception):
        def __init__(self, *, reason):
            super().__init__(reason)

    def fail() -> str:
        raise Odd(reason="no room")

    with pytest.raises(RuntimeError, match="Odd: no room"):
        attempt(Job("odd", fail, ()), True)


def test_a_log_gets_a_line_a_job_and_every_30_seconds_one_of_what_is_at_work(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    jobs = [Job(name, str, (), cost) for name, cost in (("first", 3.0), ("second", 1.0))]
    shown = Progress(jobs)
    shown.status(jobs[0]).write_text("step 7 of 9")
    for second in range(600):
        clock[0] = float(second)
        shown.at_work(jobs)
    shown.ended(jobs[0], "56.1% right")
    shown.ended(jobs[1], "29.4% right")
    shown.close()
    said = capsys.readouterr().out.splitlines()
    assert said[:-2] == [f"    {second} s, at work: first, step 7 of 9; second" for second in range(30, 600, 30)]
    assert said[-2:] == ["[1/2] first: 56.1% right; about 3.3 min left", "[2/2] second: 29.4% right"]


def test_a_notebook_of_a_jupyter_server_gets_a_bar_and_only_failures_as_lines(capsys, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/03.ipynb")
    jobs = [Job(name, str, ()) for name in ("first", "second")]
    shown = Progress(jobs)
    shown.at_work(jobs)
    shown.ended(jobs[0], "56.1% right")
    shown.ended(jobs[1], "FAILED: no room")
    shown.close()
    seen = capsys.readouterr()
    assert seen.out == "[2/2] second: FAILED: no room\n"
    assert "0/2 done; at work: first; second" in seen.err
