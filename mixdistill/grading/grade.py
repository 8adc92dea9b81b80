"""Does a completion end in the right answer? Extraction, then equality, both by the rules of `docs/grading.md`.

The same text and plain numbers are compared here; the rest goes to processes of their own (`worker`), which start at
the first such pair.
"""

import atexit
import json
import math
import numbers
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import cast

from mixdistill.arguments import choice, flag, shown
from mixdistill.data.final_answers import ANSWER_FORMATS, final_answer, number_value
from mixdistill.data.problems import GOLDS

# Raised whenever the same completion may get another grade than before: stored ones are graded anew.
GRADING_VERSION = 5
SECONDS = 4.0  # of processor time for the comparison of one answer; 15 times as much by the clock
MAX_CHARS = 2000  # no final answer is that long; longer ones are equal only if they are the same text
N_WORKERS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Grade:
    """`answer` is what was extracted, None without one. The answer is `correct` for the first two of these reasons:

    - `equal`;
    - `no box`: equal too, but found without a box. The paper counts it as wrong: see `strict`;
    - `different`;
    - `no_answer`: the completion holds none;
    - `unparsable`: not the same text, and gold or answer could not be read as mathematics;
    - `limit`: gold or answer has more than 2,000 characters and they are not the same text, or their comparison ran out
      of its 4 seconds of processor time, a minute by the clock, or 2 GB.
    """

    correct: bool
    answer: str | None
    reason: str


def grade(response: str, gold: str, answer_format: str = "math", strict: bool = False) -> Grade:
    """Grade a whole completion against the gold answer. Usable from any thread.

    Arguments:
        gold: the answer, or the data set's worked solution; a whole number stands for its digits.
        strict: count marked answers only, as the paper does: a box (`math`), a box or `####` (`gsm8k`).

    Raises ValueError for an unknown `answer_format`, a response that is no text, a gold answer that is missing, or one
    from which no answer can be read (`gold_number`, `math_gold`).
    """
    return grade_all([response], [gold], answer_format, strict)[0]


def grade_all(
    responses: Sequence[str], golds: Sequence[str], answer_format: str = "math", strict: bool = False
) -> list[Grade]:
    """`grade` for many completions, as many at a time as there are processors (at most 8). Raises ValueError where
    `grade` does, for a single text, and unless there is one gold answer for each response."""
    for name, given in (("responses", responses), ("golds", golds)):
        one_row = hasattr(given, "__len__") and getattr(given, "ndim", 1) == 1  # and no table
        if isinstance(given, str | bytes | Set | Mapping) or not one_row:
            raise ValueError(f"{name} is {shown(given)}: give a list of texts, or use grade for a single one")
    if len(responses) != len(golds):
        raise ValueError(f"{len(responses)} responses for {len(golds)} gold answers: give one gold answer a response")
    choice("answer_format", answer_format, ANSWER_FORMATS)
    flag("strict", strict)
    texts = [_gold_text("a gold answer", gold, answer_format) for gold in golds]
    answers = [final_answer(response, answer_format, strict) for response in responses]
    reasons = _verdicts(list(zip(texts, answers, strict=True)), as_texts=answer_format == "pocket")
    grades = []
    for response, answer, reason in zip(responses, answers, reasons, strict=True):
        if answer_format == "math" and reason == "equal" and final_answer(response, "math", strict=True) is None:
            reason = "no box"
        grades.append(Grade(reason in ("equal", "no box"), answer, reason))
    return grades


def equal(gold: str, answer: str) -> bool:
    """Whether two final answers are the same by `docs/grading.md`. Raises ValueError for a missing one."""
    return _verdicts([(_gold_text("gold", gold), _gold_text("answer", answer))]) == ["equal"]


def _gold_text(name: str, value: object, answer_format: str = "pocket") -> str:
    if isinstance(value, numbers.Rational) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return format(Decimal(str(value)), "f")  # 1e16 in digits
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}: it is a text that is not blank, or a finite number")
    read, rule = GOLDS[answer_format]
    found = read(value.strip())  # it may be a worked solution
    if found is None:
        raise ValueError(f"{name} is {shown(value)}: {rule}")
    return found


def _verdicts(pairs: list[tuple[str, str | None]], as_texts: bool = False) -> list[str]:
    """The reason for each pair of gold and answer."""
    verdicts = {pair: _plain_verdict(*pair, as_texts) for pair in set(pairs)}
    open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None]
    verdicts |= zip(open_pairs, _threads(os.getpid()).map(_ask_worker, open_pairs), strict=True)
    return [cast(str, verdicts[pair]) for pair in pairs]


def _plain_verdict(gold: str, answer: str | None, as_texts: bool) -> str | None:
    """What is decided without a worker: the same text, two plain numbers, answers that are too long."""
    if answer is None:
        return "no_answer"
    gold, answer = _without_brackets(gold), _without_brackets(answer)
    if gold == answer or as_texts:
        return "equal" if gold == answer else "different"
    if max(len(gold), len(answer)) > MAX_CHARS:
        return "limit"
    left, right = number_value(gold), number_value(answer)
    return None if left is None or right is None else "equal" if left == right else "different"


def _without_brackets(text: str) -> str:
    """`((5))` as `5`, however deep."""
    found = re.fullmatch(r"(\(*)([^()\[\]{},;]+)(\)*)", text)
    return found[2] if found and len(found[1]) == len(found[3]) else text


@lru_cache
def _threads(process_id: int) -> ThreadPoolExecutor:
    """The threads of this process, each with a worker of its own; a fork has none of its parent's."""
    return ThreadPoolExecutor(N_WORKERS)


_thread = threading.local()
_workers: set[subprocess.Popen[str]] = set()


def _ask_worker(pair: tuple[str, str]) -> str:
    """The verdict of this thread's worker, which the system ends at a limit; the next question starts another."""
    worker = getattr(_thread, "worker", None)
    if worker is None or worker.poll() is not None:
        worker = _thread.worker = _start_worker()
    assert worker.stdout is not None  # `_start_worker` makes a pipe of it
    try:
        print(json.dumps([*pair, SECONDS]), file=worker.stdin, flush=True)
        verdict = worker.stdout.readline().strip()
    except BrokenPipeError:
        verdict = ""
    if not verdict and _end_worker(worker) > 0:
        raise RuntimeError(f"the process that compares answers failed: `python {WORKER}` shows why")
    return verdict or "limit"


def _start_worker() -> subprocess.Popen[str]:
    # -P and the path instead of -m: `import mixdistill` would load torch. Sympy's results depend on the hash seed.
    worker = subprocess.Popen(
        [sys.executable, "-P", str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    _workers.add(worker)
    return worker


def _end_worker(worker: subprocess.Popen[str]) -> int:
    """Its exit status, after the end of its input; negative if the system ended it."""
    worker.communicate()
    _workers.discard(worker)
    return worker.returncode


@atexit.register
def _end_workers() -> None:
    for worker in list(_workers):
        worker.kill()
        if worker.poll() != 0:  # 0 is that of the parent's workers in a fork, which it leaves alone
            _end_worker(worker)
