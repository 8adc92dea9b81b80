"""What a training run says while it trains: where it is, how fast, and what it takes."""

import threading
import time

import psutil
import torch

EVERY = 20  # seconds between two lines


class Progress:
    """Prints a line now and then, from a thread of its own: loading, or one pass of a large student, can take minutes.

    The loop only sets numbers, and a line reads nothing from the GPU.
    """

    def __init__(self, label: str, device: torch.device, shown: bool = True) -> None:
        self.label, self.device, self.shown = label, device, shown
        self.at, self.n_steps = 0.0, 0  # steps, with the finished share of the one at work; 0 of 0 while loading
        self.loss: float | None = None  # of the last line of the loss curve
        self.tokens, self.supervised = 0, 0  # trained since `begin`
        self.began, self.first = time.monotonic(), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def begin(self, step: int, n_steps: int) -> None:
        """The loop begins, at a step."""
        self.at, self.first, self.n_steps, self.began = step, step, n_steps, time.monotonic()

    def line(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)  # a virtual machine's clock may stand still
        if not self.n_steps:
            return f"getting ready, {seconds:.0f} s"
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        speed = f"{self.supervised / seconds:,.0f} supervised of {self.tokens / seconds:,.0f} tokens/s"
        left = (self.n_steps - self.at) / max(self.at - self.first, 1e-9) * seconds / 60
        rest = f", {speed}, {max(left, 0.0):.1f} min left" if self.tokens else ""
        memory = f"peak {peak_memory(self.device) / 1e9:.2f} GB"
        return f"step {self.at:.1f}/{self.n_steps}{loss}{rest}, {memory}"

    def say(self, text: str) -> None:
        if self.shown:
            print(f"{self.label}: {text}", flush=True)

    def _speak(self) -> None:
        while not self._ended.wait(EVERY):
            self.say(self.line())

    def __enter__(self) -> "Progress":
        if self.shown:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.shown:
            self._thread.join()


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at most: allocated on the GPU, or resident of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if psutil.WINDOWS:
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if psutil.MACOS else 1024)
