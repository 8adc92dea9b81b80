"""What a training run says while it trains: where it is, how fast, and what it takes."""

import math
import resource
import sys
import threading
import time

import torch
from tqdm import tqdm

EVERY = 20  # seconds between two lines
FORMAT = "{desc}: {percentage:.0f}% of {total} steps, {elapsed}<{remaining}{postfix}"
CLEAR = "\r\x1b[K"  # back to the beginning of a terminal's line, and empties it


class Progress:
    """Says how a run goes, from a thread of its own: loading, or one pass of a large student, can take minutes.

    A line now and then in a log or a notebook, one line that changes every second in a terminal. It reads the loop's
    log as it grows, and nothing from the GPU.
    """

    def __init__(self, label: str, shown: bool = True) -> None:
        self.label, self.shown = label, shown
        self.clear, self.end, self.every = (CLEAR, "", 1) if sys.stdout.isatty() else ("", "\n", EVERY)
        self.log: list[dict[str, float]] = []
        self.first, self.n_steps, self.share = 0, 0, 0.0  # steps before `begin`, of the run, and how much of the next
        self.began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def begin(self, log: list[dict[str, float]], n_steps: int) -> None:
        """The loop begins, behind the steps of a log, to which it adds a row each."""
        self.log, self.first, self.n_steps, self.began = log, len(log), n_steps, time.monotonic()

    def line(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)  # a virtual machine's clock may stand still
        if not self.n_steps:
            return f"{self.label}: getting ready, {seconds:.0f} s"
        at, loss = len(self.log) + self.share, self.log[-1]["loss"] if self.log else math.nan
        rows = self.log[self.first :]
        tokens, supervised = (sum(row[key] for row in rows) for key in ("tokens", "supervised_tokens"))
        speed = f"{supervised / seconds:,.0f} supervised of {tokens / seconds:,.0f} tokens/s"
        facts = f"loss {loss:.3f}, {speed}, peak {peak_memory() / 1e9:.2f} GB"
        named = {"prefix": self.label, "postfix": facts, "initial": self.first, "bar_format": FORMAT}
        return tqdm.format_meter(at, self.n_steps, seconds, **named)

    def say(self, text: str) -> None:
        if self.shown:
            print(f"{self.clear}{self.label}: {text}", flush=True)

    def _speak(self) -> None:
        while not self._ended.wait(self.every):
            print(self.clear + self.line(), end=self.end, flush=True)

    def __enter__(self) -> "Progress":
        if self.shown:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.shown:
            self._thread.join()
            print(self.clear, end="", flush=True)


def peak_memory() -> int:
    """Bytes in use at most: allocated on this process's GPU, or without one resident of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
