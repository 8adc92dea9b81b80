"""A job of a sweep, and how many of them go: what local processes and a Ray cluster have in common."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from mixdistill import files

QUIET = 30  # seconds without an end until a log gets a line of what is at work


@dataclass(frozen=True, eq=False)
class Job:
    """A piece of work: `work(*given)` returns what to say of it. Both must survive a pickle."""

    name: str  # for people
    work: Callable[..., str]
    given: tuple
    cost: float = 1.0  # time, relative to the other jobs
    memory: int = 2 * 10**9  # bytes, at most
    wide: bool = False  # takes a whole machine: all its GPUs, or all its cores where there are none


End = tuple[Job, str, BaseException | None]  # what was said, and the error or None


class Progress:
    """How jobs go: one bar in a terminal or in JupyterLab; elsewhere, as in a log, a line a job."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.n_done, self.done = [*jobs], 0, 0.0
        scratch = ExitStack()
        self.folder, self.close = scratch.enter_context(files.scratch("sweep")), scratch.close
        self.started = self.spoke = time.monotonic()
        terminal = sys.stdout.isatty() and sys.stderr.isatty()
        # Where no Jupyter server has started the kernel, as under papermill, nobody could see a widget.
        self.bar = tqdm(
            total=sum(job.cost for job in jobs),
            disable=not jobs or not (terminal or "JPY_SESSION_NAME" in os.environ),
            bar_format="{desc} |{bar}| {elapsed}, {remaining} left{postfix}",
            leave=False,
            smoothing=0,
        )
        scratch.callback(self.bar.close)

    def status(self, job: Job) -> Path:
        """The file that says how far a job is, if it can be written where the job is done."""
        return self.folder / str(self.jobs.index(job))

    def at_work(self, jobs: Sequence[Job]) -> None:
        """Called about once a second with the jobs at work."""
        now, said = time.monotonic(), "; ".join(map(self._how_far, jobs))
        self.bar.set_description_str(f"{self.n_done}/{len(self.jobs)} done; at work: {said}")
        if self.bar.disable and now - self.spoke >= QUIET:
            self.say(f"    {now - self.started:.0f} s, at work: {said}")

    def _how_far(self, job: Job) -> str:
        told = ""
        with suppress(OSError):  # it has not begun, or another machine does it
            told = self.status(job).read_text()  # empty while it is written
        return f"{job.name}, {told}" if told else job.name

    def ended(self, job: Job, said: str) -> None:
        self.n_done, self.done = self.n_done + 1, self.done + job.cost
        self.bar.update(job.cost)
        self.bar.set_postfix_str(f"; last {job.name}: {said}")
        minutes = (time.monotonic() - self.started) / 60 * (self.bar.total / self.done - 1)
        left = f"; about {minutes:.1f} min left" if self.n_done < len(self.jobs) else ""
        if self.bar.disable or said.startswith("FAILED"):
            self.say(f"[{self.n_done}/{len(self.jobs)}] {job.name}: {said}{left}")

    def say(self, line: str) -> None:
        self.spoke = time.monotonic()
        self.bar.write(line)
        sys.stdout.flush()


def attempt(job: Job, patient: bool, status: Path | None = None) -> str:
    """Do a job in this process; with `patient` False, raises Held in the place of waiting for another process. How far
    it is stands in the file `status`."""
    started, before = time.monotonic(), files.waits.set(patient)
    told = files.heard.set((status.write_text,) if status else ())
    try:
        return f"{job.work(*job.given)}, {time.monotonic() - started:.0f} s"
    except files.Held:
        raise
    except Exception as error:  # as text: the errors of some libraries do not survive the way to another process
        ours = isinstance(error, ValueError | OSError | RuntimeError)
        raise RuntimeError(str(error) if ours else f"{type(error).__name__}: {error}") from error
    finally:
        files.waits.reset(before)
        files.heard.reset(told)
