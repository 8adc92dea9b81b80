"""What a training run says while it trains: where it is, how fast, and what it takes."""

import math
import sys
import threading
import time

import psutil
import torch
from tqdm import tqdm

EVERY = 20  # seconds between two lines
FORMAT = "{desc}: {percentage:.0f}% of {total} steps, {elapsed}<{remaining}{postfix}"
CLEAR = "\r\x1b[K"  # back to the beginning of a terminal's line, and empties it


class Progress:
    """Says how a run goes, from a thread of its own: loading, or one pass of a large student, can take minutes.

    A line now and then in a log or a notebook, one line that changes every second in a terminal. The loop only sets
    numbers, and nothing is read from the GPU.
    """

    def __init__(self, label: str, shown: bool = True) -> None:
        self.label, self.shown, self.terminal = label, shown, sys.stdout.isatty()
        self.step, self.share, self.n_steps = 0, 0.0, 0  # steps done, and how much of the next; 0 of 0 while loading
        self.loss, self.tokens, self.supervised = math.nan, 0.0, 0.0  # of the last step; trained since `begin`
        self.first, self.began = 0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def begin(self, step: int, n_steps: int) -> None:
        """The loop begins, at a step."""
        self.step, self.first, self.n_steps, self.began = step, step, n_steps, time.monotonic()

    def did(self, row: dict[str, float]) -> None:
        """A step is done, with this row of the log."""
        self.step, self.share, self.loss = self.step + 1, 0.0, row["loss"]
        self.tokens, self.supervised = self.tokens + row["tokens"], self.supervised + row["supervised_tokens"]

    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)  # a virtual machine's clock may stand still

    def line(self) -> str:
        seconds = self.seconds()
        if not self.n_steps:
            return f"{self.label}: getting ready, {seconds:.0f} s"
        speed = f"{self.supervised / seconds:,.0f} supervised of {self.tokens / seconds:,.0f} tokens/s"
        facts = f"loss {self.loss:.3f}, {speed}, peak {peak_memory() / 1e9:.2f} GB"
        at = min(self.step + self.share, self.n_steps)
        return tqdm.format_meter(
            at, self.n_steps, seconds, prefix=self.label, postfix=facts, initial=self.first, bar_format=FORMAT
        )

    def say(self, text: str) -> None:
        if self.shown:
            print(f"{CLEAR if self.terminal else ''}{self.label}: {text}", flush=True)

    def _speak(self) -> None:
        while not self._ended.wait(1 if self.terminal else EVERY):
            print(CLEAR + self.line() if self.terminal else self.line(), end="" if self.terminal else "\n", flush=True)

    def __enter__(self) -> "Progress":
        if self.shown:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.shown:
            self._thread.join()
            print(CLEAR if self.terminal else "", end="", flush=True)


def peak_memory() -> int:
    """Bytes in use at most: allocated on this process's GPU, or without one resident of the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if psutil.WINDOWS:
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if psutil.MACOS else 1024)
