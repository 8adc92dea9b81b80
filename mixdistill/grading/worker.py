"""The process that compares answers within limits, which `grade` starts and asks.

It reads one JSON line a question, `[gold, answer, seconds]`, and writes one word a verdict: `equal`, `different`,
`unparsable` or `limit`. The system ends it where a comparison takes longer.
"""

import json
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

MEMORY = 2 << 30  # bytes


def main() -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows and macOS lack it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook keeps its worker
    logging.disable()  # Math-Verify warns that it has no time limit of its own
    # The package without its __init__, which would load torch.
    sys.modules["mixdistill"] = package = ModuleType("mixdistill")
    package.__path__ = [str(Path(__file__).parents[1])]
    from mixdistill.grading.equality import compare

    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        _limit(seconds)
        try:
            verdict = "equal" if compare(gold, answer) else "different"
        except MemoryError:  # what fills the memory may be kept: the next pair gets a new process
            signal.raise_signal(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has the other
        except Exception:  # antlr, latex2sympy and sympy raise all kinds on odd input
            verdict = "unparsable"
        _limit(0)
        print(verdict, flush=True)


def _limit(seconds: float) -> None:
    """Have the system end this process, whatever it is busy with, after so much processor time, or by the clock after
    15 times as much, so that a busy machine changes no grade."""
    if hasattr(signal, "setitimer"):  # Windows lacks it
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 15 * seconds)


if __name__ == "__main__":
    main()
