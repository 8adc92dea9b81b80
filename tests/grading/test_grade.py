import importlib
import json
import os
import re
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from random import Random
from threading import Thread
from time import monotonic

import psutil
import pytest
from conftest import REPO, SHARED_BENCHMARKS

from mixdistill.data.final_answers import final_answer
from mixdistill.grading.grade import Grade, equal, grade, grade_all

grade_module = importlib.import_module("mixdistill.grading.grade")
DOCUMENT = (REPO / "docs" / "grading.md").read_text()
ROWS = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in DOCUMENT.splitlines() if "|" in line]
COMPLETIONS = [row for row in ROWS if len(row) == 3 and row[1].startswith("`")]
PAIRS = [row for row in ROWS if len(row) == 4 and row[2] in ("yes", "no")]
SUITES = [json.loads(line) for line in (Path(__file__).parent / "grader_suites.jsonl").read_text().splitlines()]
FILES = {
    "math500": "MATH-500",
    "aime24": "aime24",
    "amc23": "amc23",
    "gsm8k": "gsm8k_test",
    "olympiadbench": "olympiadbench",
}
TOO_HARD = "2^{{10^{{10}}+{}}}"  # two of these differ, and sympy would compute them

needs_benchmarks = pytest.mark.skipif(
    not SHARED_BENCHMARKS.is_dir(),
    reason="the benchmark files are not part of the repo; put them in ../shared/benchmarks",
)


@pytest.fixture(scope="module")
def golds() -> dict[str, list[str]]:
    """The gold answers of all benchmarks, as their files hold them; OlympiadBench as `docs/grading.md` says."""
    rows = {
        name: [json.loads(line) for line in (SHARED_BENCHMARKS / f"{file}.jsonl").read_text().splitlines()]
        for name, file in FILES.items()
    }
    answers = {name: [str(row["answer"]) for row in rows[name]] for name in FILES if name != "olympiadbench"}
    return answers | {"olympiadbench": [row["final_answer"][0] for row in rows["olympiadbench"]]}


def test_the_tables_of_the_document_are_read_whole():
    assert len(COMPLETIONS) == len(re.findall(r"^\| (?:math|gsm8k) \|", DOCUMENT, re.M)) > 20
    assert len(PAIRS) == len(re.findall(r"\| (?:yes|no) \|", DOCUMENT)) > 250


@pytest.mark.parametrize(("answer_format", "completion", "answer"), COMPLETIONS)
def test_final_answers_are_those_of_the_document(answer_format, completion, answer):
    assert final_answer(completion.strip("`"), answer_format) == (None if answer == "none" else answer.strip("`"))


@pytest.mark.parametrize(("gold", "answer", "same"), [row[:3] for row in PAIRS])
def test_answers_are_equal_where_the_document_says_so(gold, answer, same):
    assert equal(gold.strip("`"), answer.strip("`")) is (same == "yes")


@pytest.mark.parametrize(
    ("response", "answer"),
    [("so i7 B = i3 . answer i3 .", "i3"), ("answer i3 . wait after B answer i4 .", "i4"), ("answer", None)],
)
def test_a_pocket_answer_is_the_token_behind_the_last_answer_and_compared_as_text(response, answer):
    assert final_answer(response, "pocket") == answer
    assert grade(response, "i4", "pocket").correct is (answer == "i4")


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("I do not know", "4", Grade(False, None, "no_answer")),
        ("\\boxed{4}", "4.0", Grade(True, "4", "equal")),
        ("\\boxed{5}", "4", Grade(False, "5", "different")),
        ("\\boxed{x' + 1}", "x", Grade(False, "x' + 1", "different")),
        ("\\boxed{\\frac{1}{0}}", "\\sqrt{2}", Grade(False, "\\frac{1}{0}", "unparsable")),
    ],
)
def test_every_grade_has_its_reason(response, gold, expected):
    assert grade(response, gold) == expected


def test_a_gsm8k_gold_may_be_the_worked_solution():
    assert grade("so 1,018 eggs.", "9 * 2 = <<9*2=18>>18, so #### 1018", "gsm8k").correct


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="pocket, math, gsm8k"):
        grade("4", "4", answer_format="essay")
    with pytest.raises(ValueError, match="1 responses for 2 gold answers"):
        grade_all(["4"], ["4", "5"])


def test_undisputed_pairs_of_public_suites_agree_and_nothing_wrong_is_accepted():
    undisputed = [pair for pair in SUITES if pair["disputed"] is None]
    found = [equal(pair["gold"], pair["answer"]) for pair in undisputed]
    assert not [pair for pair, same in zip(undisputed, found, strict=True) if same and not pair["equal"]]
    agreement = sum(same == pair["equal"] for pair, same in zip(undisputed, found, strict=True)) / len(undisputed)
    assert agreement >= 0.97, agreement


def test_the_document_counts_the_disputed_pairs_of_the_suites():
    reasons = [pair["disputed"] for pair in SUITES if pair["disputed"]]
    for reason in set(reasons):
        assert f"| {reason} | {reasons.count(reason)} |" in DOCUMENT
    assert f"{len(SUITES) - len(reasons)} undisputed pairs" in DOCUMENT


@needs_benchmarks
@pytest.mark.parametrize("name", FILES)
def test_every_gold_answer_equals_itself_also_boxed_and_set_otherwise(golds, name):
    answer_format = "gsm8k" if name == "gsm8k" else "math"
    for gold in golds[name]:
        answer = final_answer(gold, answer_format) if name == "gsm8k" else gold
        assert equal(answer, answer), gold
        assert grade(f"So the answer is $\\boxed{{{answer}}}$.", gold, answer_format).correct, gold
        styled = (
            answer.replace("\\frac", "\\dfrac").replace("+", " + ").replace("(", "\\left(").replace(")", "\\right)")
        )
        assert grade(f"\\boxed{{ {styled} }}", gold, answer_format).correct, styled


@needs_benchmarks
def test_golds_of_different_problems_are_equal_only_where_they_are_the_same_number(golds):
    pool = sorted(
        {gold for name in ("math500", "olympiadbench") for gold in golds[name] if re.search(r"[\\a-zA-Z]", gold)}
    )
    pairs = Random(0).sample(list(combinations(pool, 2)), 1500)
    accepted = [pair for pair in pairs if equal(*pair)]
    assert all(same_decimal(*pair) for pair in accepted), accepted


def same_decimal(gold: str, other: str) -> bool:
    left, right = (re.sub(r"[\s$]|\\[dt]?frac|[{}]", "", text) for text in (gold, other))
    return left == right


def test_one_poisoned_answer_costs_its_seconds_and_no_other_item(monkeypatch):
    monkeypatch.setattr(grade_module, "SECONDS", 2.0)
    poisoned = TOO_HARD.format(1)
    responses = [f"\\boxed{{{answer}}}" for answer in ("\\sqrt{8}", poisoned, "2\\sqrt{3}", "\\sqrt{20}", "1")]
    golds = ["2\\sqrt{2}", TOO_HARD.format(2), "\\sqrt{12}", "2\\sqrt{5}", "2"]
    started = monotonic()
    grades = grade_all(responses, golds)
    assert [grade.reason for grade in grades] == ["equal", "limit", "equal", "equal", "different"]
    assert monotonic() - started < 10


def test_a_list_of_poisoned_answers_costs_no_more_than_one(monkeypatch):
    monkeypatch.setattr(grade_module, "SECONDS", 2.0)
    gold, answer = (",".join(TOO_HARD.format(n) for n in range(start, start + 30)) for start in (100, 200))
    started = monotonic()
    assert grade(f"\\boxed{{{answer}}}", gold).reason == "limit"
    assert monotonic() - started < 10


def test_a_worker_may_take_two_gigabytes():
    assert equal("\\sqrt{28}", "2\\sqrt{7}")
    for worker in grade_module._pools[os.getpid()].free:
        assert psutil.Process(worker.pid).rlimit(psutil.RLIMIT_AS) == (2 << 30, 2 << 30)


def test_a_worker_that_was_killed_is_replaced():
    assert equal("\\sqrt{44}", "2\\sqrt{11}")
    for worker in grade_module._pools[os.getpid()].free:
        worker.kill()
        worker.wait()
    assert equal("\\sqrt{52}", "2\\sqrt{13}")


def test_any_thread_may_grade():
    found = {}
    threads = [
        Thread(target=lambda n=n: found.update({n: equal(f"\\sqrt{{{4 * n}}}", f"2\\sqrt{{{n}}}")}))
        for n in range(60, 66)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(60, 66), True)


SCRIPT = """
import os, time
from mixdistill.grading.grade import equal, grade, _pools
assert grade("answer 4", "4", "pocket").correct and equal("\\\\frac{1}{2}", "0.5") and equal("x + 1", "x+1") and not equal("3", "4")
assert not _pools, "a worker was started where none is needed"
assert equal("x + 1", "1 + x")
print(_pools[os.getpid()].free[0].pid, flush=True)
time.sleep(60)
"""


def test_a_plain_script_starts_a_worker_only_when_needed_and_the_worker_ends_with_it():
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as script:
        worker = psutil.Process(int(script.stdout.readline()))
        script.send_signal(signal.SIGKILL)
    worker.wait(timeout=10)
    assert not worker.is_running()
