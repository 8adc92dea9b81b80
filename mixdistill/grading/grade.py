"""Does a completion end in the right answer? Extraction, then equality, both by the rules of `docs/grading.md`.

What is identical or two plain numbers is decided here; the rest goes to processes of their own
(`mixdistill.grading.worker`), which start at the first such pair.
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
from functools import lru_cache
from pathlib import Path

from mixdistill.arguments import choice, flag, shown
from mixdistill.data.final_answers import ANSWER_FORMATS, final_answer, number_value

SECONDS = 4.0  # of processor time for the comparison of one answer; twice as much by the clock
MAX_CHARS = 2000  # no final answer is that long; longer ones are equal only if they are the same text
N_WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Grade:
    """`answer` is what was extracted, None without one. The answer is `correct` where the reason is one of

    - `equal`;
    - `no box`: equal too, but found without a box, as other harnesses read it. The paper counts it as wrong: see
      `strict`;

    and wrong where it is one of

    - `different`;
    - `no_answer`: the completion holds none;
    - `unparsable`: not the same text, and gold or answer could not be read as mathematics;
    - `limit`: gold or answer has more than 2,000 characters and they are not the same text, or their comparison ran out
      of its 4 seconds of processor time, 8 seconds by the clock, or 2 GB.
    """

    correct: bool
    answer: str | None
    reason: str


def grade(response: str, gold: str, answer_format: str = "math", strict: bool = False) -> Grade:
    """Grade a whole completion against the gold answer. Usable from any thread.

    Arguments:
        gold: the answer, or the data set's worked solution (`gsm8k`); a whole number stands for its digits.
        strict: count marked answers only, as the paper does: a box (`math`), a box or `####` (`gsm8k`).

    Raises ValueError for an unknown `answer_format`, a response that is no text, or a gold answer that is missing.
    """
    return grade_all([response], [gold], answer_format, strict)[0]


def grade_all(
    responses: Sequence[str], golds: Sequence[str], answer_format: str = "math", strict: bool = False
) -> list[Grade]:
    """`grade` for many completions, as many at a time as there are processors (at most 8).

    Raises ValueError where `grade` does, for a single text, and unless there is one gold answer for each response.
    """
    for name, given in (("responses", responses), ("golds", golds)):
        if isinstance(given, (str, bytes, Set, Mapping)) or not hasattr(given, "__len__"):
            raise ValueError(f"{name} is {shown(given)}: give a list of texts, or use grade for a single one")
    if len(responses) != len(golds):
        raise ValueError(f"{len(responses)} responses for {len(golds)} gold answers: give one gold answer a response")
    choice("answer_format", answer_format, ANSWER_FORMATS)
    flag("strict", strict)
    golds = [_gold_text("a gold answer", gold) for gold in golds]
    for response in responses:
        if not isinstance(response, str):
            raise ValueError(f"a response is {response!r}: it is the text of a completion")
    answers = [final_answer(response, answer_format, strict) for response in responses]
    if answer_format == "pocket":
        reasons = ["equal" if gold == answer else "different" for gold, answer in zip(golds, answers, strict=True)]
    else:
        if answer_format == "gsm8k":  # whose golds may be worked solutions
            golds = [final_answer(gold, "gsm8k") or gold for gold in golds]
        reasons = _verdicts(list(zip(golds, answers, strict=True)))
    grades = []
    for response, answer, reason in zip(responses, answers, reasons, strict=True):
        if answer is None:
            reason = "no_answer"
        elif answer_format == "math" and reason == "equal" and final_answer(response, "math", strict=True) is None:
            reason = "no box"
        grades.append(Grade(reason in ("equal", "no box"), answer, reason))
    return grades


def equal(gold: str, answer: str) -> bool:
    """Whether two final answers are the same by the policy in `docs/grading.md`. Raises ValueError for a missing
    one.
    """
    return _verdicts([(_gold_text("gold", gold), _gold_text("answer", answer))]) == ["equal"]


def _gold_text(name: str, value: object) -> str:
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}: it is a text that is not blank, or a finite number")
    return value.strip()


def _verdicts(pairs: list[tuple[str, str | None]]) -> list[str]:
    """`equal`, `different`, `unparsable` or `limit` for each pair of gold and answer; None gives `different`."""
    verdicts = {pair: "different" if pair[1] is None else _plain_verdict(*pair) for pair in set(pairs)}
    open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None]
    verdicts |= zip(open_pairs, _threads(os.getpid()).map(_ask_worker, open_pairs), strict=True)
    return [verdicts[pair] for pair in pairs]


def _plain_verdict(gold: str, answer: str) -> str | None:
    """What is decided without a worker: the same text, two plain numbers, answers that are too long."""
    gold, answer = _without_brackets(gold), _without_brackets(answer)
    if gold == answer:
        return "equal"
    if max(len(gold), len(answer)) > MAX_CHARS:
        return "limit"
    if re.fullmatch(r"[A-Za-z]\d+", gold) and re.fullmatch(r"[A-Za-z]\d+", answer):
        return "different"  # two names, such as those of the pocket world
    left, right = number_value(gold), number_value(answer)
    return None if left is None or right is None else "equal" if left == right else "different"


def _without_brackets(text: str) -> str:
    """`((5))` as `5`, however deep."""
    depth = len(text) - len(text.lstrip("("))
    core = text[depth : len(text) - depth]
    return core if text.endswith(")" * depth) and not set(core) & set("()[]{},;") else text


@lru_cache
def _threads(process_id: int) -> ThreadPoolExecutor:
    """The threads of this process, each with a worker of its own; a fork has none of its parent's."""
    return ThreadPoolExecutor(N_WORKERS)


def _ask_worker(pair: tuple[str, str]) -> str:
    """The verdict of this thread's worker. One that ran out of time or memory is gone, and the next question starts
    another.
    """
    worker = getattr(_thread, "worker", None)
    if worker is None or worker.poll() is not None:
        worker = _thread.worker = _start_worker()
    clock = threading.Timer(2 * SECONDS, worker.kill)
    clock.start()
    try:
        worker.stdin.write(json.dumps([*pair, SECONDS]) + "\n")
        worker.stdin.flush()
        verdict = json.loads(worker.stdout.readline() or '"limit"')
    except BrokenPipeError:
        verdict = "limit"
    clock.cancel()
    if verdict == "limit":
        _thread.worker = None
        _end_worker(worker)
    return verdict


_thread = threading.local()
_workers: set[subprocess.Popen] = set()


def _start_worker() -> subprocess.Popen:
    # -P and the path instead of -m: `import mixdistill` would load torch.
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    worker = subprocess.Popen(command, **pipe, env=os.environ | {"PYTHONHASHSEED": "0"})
    if worker.stdout.readline() != "ready\n":
        _end_worker(worker)
        raise RuntimeError(
            "the process that compares answers did not start: `python -m pip install -r requirements.txt`, or run "
            f"`python {command[-1]}` to see why"
        )
    _workers.add(worker)
    return worker


def _end_worker(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.communicate()  # closes its pipes
    _workers.discard(worker)


@atexit.register
def _end_workers() -> None:
    for worker in list(_workers):
        _end_worker(worker)
