"""Does a completion end in the right answer? Extraction first, then equality, both by fixed rules (`docs/grading.md`).

| answer_format     | final answer of a completion                                                                   |
|----------|------------------------------------------------------------------------------------------------|
| `pocket` | the token after the last `answer`                                                              |
| `math`   | the content of the last `\\boxed{}` or `\\fbox{}`; also `\\boxed 5`; none if that box never closes |
| `gsm8k`  | the last box; else the number or else the line behind the last `####`; else the last number      |

No answer is wrong, and counted as `no_answer`. Answers of `math` and `gsm8k` are compared by `mixdistill.grading.equality`; what needs
computer algebra goes to a process of its own (`mixdistill.grading.worker`), which is started at the first such pair.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic

from mixdistill.data.final_answers import final_answer
from mixdistill.grading.equality import compare

SECONDS = (
    8.0  # for the computer algebra of one answer; half of them of processor time, so that a busy machine grades alike
)
N_WORKERS = 2


@dataclass(frozen=True)
class Grade:
    """`answer` is what was extracted, None without one. `reason` is one of

    - `equal`, `different`;
    - `no_answer`: the completion holds none;
    - `unparsable`: not the same text, and gold or answer could not be read as mathematics;
    - `limit`: the comparison ran out of its 3.5 seconds of processor time, 7 seconds or 2 GB.
    """

    correct: bool
    answer: str | None
    reason: str


def grade(response: str, gold: str, answer_format: str = "math") -> Grade:
    """Grade a whole completion against the gold answer. Usable from any thread.

    Raises ValueError for an unknown `answer_format`.
    """
    answer = final_answer(response, answer_format)
    if answer_format == "gsm8k" and "####" in gold:  # the data set's worked solution
        gold = final_answer(gold, answer_format) or ""
    if answer is None:
        return Grade(False, None, "no_answer")
    reason = ("equal" if gold == answer else "different") if answer_format == "pocket" else _verdict(str(gold), answer)
    return Grade(reason == "equal", answer, reason)


def grade_all(responses: Sequence[str], golds: Sequence[str], answer_format: str = "math") -> list[Grade]:
    """`grade` for many completions, two at a time."""
    if len(responses) != len(golds):
        raise ValueError(f"{len(responses)} responses for {len(golds)} gold answers: give one gold answer a response")
    with ThreadPoolExecutor(N_WORKERS) as pool:
        return list(pool.map(lambda pair: grade(*pair, answer_format), zip(responses, golds, strict=True)))


def equal(gold: str, answer: str) -> bool:
    """Whether two final answers are the same by the policy in `docs/grading.md`."""
    return _verdict(str(gold), str(answer)) == "equal"


@lru_cache(maxsize=10_000)
def _verdict(gold: str, answer: str) -> str:
    """The `reason` of a grade."""
    left = SECONDS
    doubts = []

    def ask(question: str, one: str, other: str) -> bool:
        nonlocal left
        verdict, seconds = _ask_worker({"question": question, "gold": one, "answer": other, "seconds": left})
        left -= seconds
        if verdict == "limit" or left <= 0:
            raise TimeoutError
        if verdict == "unparsable":
            doubts.append((one, other))
        return verdict == "equal"

    try:
        if compare(gold, answer, ask):
            return "equal"
    except TimeoutError:
        return "limit"
    return "unparsable" if doubts else "different"


@dataclass(frozen=True)
class _Pool:
    """The workers of this process: those that wait, and a place for each that may run."""

    free: list[subprocess.Popen]
    places: threading.Semaphore


_pools: dict[int, _Pool] = {}  # by process id: a fork must not talk into its parent's pipes


def _ask_worker(task: dict) -> tuple[str, float]:
    """A worker's verdict and the seconds it took; a new worker where none waits.

    One that ran out of time or memory is gone; the next question starts another.
    """
    pool = _pools.setdefault(os.getpid(), _Pool([], threading.Semaphore(N_WORKERS)))
    with pool.places:
        worker = _free_worker(pool)
        started = monotonic()
        try:
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # such as an interrupt: its answer must not become that of the next question
            _end_worker(worker)
            raise
        if not line:
            _end_worker(worker)
            return "limit", SECONDS
        pool.free.append(worker)
        return json.loads(line), monotonic() - started


def _free_worker(pool: _Pool) -> subprocess.Popen:
    with suppress(IndexError):  # none is left
        while True:
            worker = pool.free.pop()
            if worker.poll() is None:
                return worker
            _end_worker(worker)  # killed while it waited
    return _start_worker()


def _start_worker() -> subprocess.Popen:
    # -P and the path instead of -m: `import mixdistill` would load torch.
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    worker = subprocess.Popen(command, **pipe, env=os.environ | {"PYTHONHASHSEED": "0"})
    if worker.stdout.readline() != "ready\n":
        _end_worker(worker)
        raise RuntimeError(
            f"the process that compares mathematical expressions did not start: `python -m pip install -r requirements.txt`, or "
            f"run `python {Path(__file__).parent.name}/worker.py` to see why"
        )
    return worker


def _end_worker(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.wait()
    worker.stdout.close()
    with suppress(BrokenPipeError):
        worker.stdin.close()


@atexit.register
def _end_workers() -> None:
    for worker in _pools.get(os.getpid(), _Pool([], threading.Semaphore())).free:
        _end_worker(worker)
