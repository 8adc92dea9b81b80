import pytest
from conftest import SHARED_BENCHMARKS, write_jsonl

from mixdistill import load_problems
from mixdistill.problems import POCKET_TIERS

needs_benchmarks = pytest.mark.skipif(
    not SHARED_BENCHMARKS.is_dir(),
    reason="the benchmark files are not part of the repo; put them in ../shared/benchmarks",
)


def test_pocket_problems_are_the_same_on_every_call_and_all_different():
    for tier, level in POCKET_TIERS.items():
        problems = load_problems(tier, n=50)
        assert problems == load_problems(tier, n=50)
        assert len({problem.question for problem in problems}) == 50
        assert {(problem.level, problem.source) for problem in problems} == {(str(level), tier)}


def test_a_local_file_with_other_column_names(math_problems):
    problems = load_problems(str(math_problems), n=4, columns={"question": "problem"})
    assert [problem.answer for problem in problems] == ["20", "21", "22", "23"]


@needs_benchmarks
@pytest.mark.parametrize(
    ("file", "columns", "kind", "n"),
    [
        ("MATH-500.jsonl", {"question": "problem", "id": "unique_id", "level": "level"}, "math", 500),
        ("gsm8k_test.jsonl", {}, "gsm8k", 1319),
        ("aime24.jsonl", {"question": "problem", "id": "id"}, "math", 30),
        ("amc23.jsonl", {"question": "problem", "id": "id"}, "math", 40),
    ],
)
def test_real_benchmark_files_load_whole(file, columns, kind, n):
    problems = load_problems(str(SHARED_BENCHMARKS / file), columns=columns, kind=kind)
    assert len(problems) == n
    assert all(problem.question and problem.answer for problem in problems)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "pocket/huge"}, "pocket/easy, pocket/medium, pocket/hard"),
        ({"source": "pocket/easy", "split": "exam"}, "train, dev, test"),
        ({"source": "pocket/easy", "n": 0}, "at least 1"),
        ({"source": "missing.jsonl"}, "there is no file 'missing.jsonl'"),
        ({"source": "nobody/no-such-benchmark"}, "cannot load 'nobody/no-such-benchmark'"),
        ({"source": "pocket.jsonl", "kind": "essay"}, "unknown kind 'essay'"),
    ],
)
def test_bad_requests_are_refused_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_problems(**arguments)


def test_a_missing_column_is_named_with_those_that_exist(math_problems):
    with pytest.raises(ValueError, match=r"no column 'question', only problem, answer"):
        load_problems(str(math_problems))


def test_a_row_without_the_column_is_refused_with_its_number(tmp_path):
    rows = [{"question": "q", "answer": "1"}, {"question": "r"}]
    with pytest.raises(ValueError, match=r"column 'answer' of .* is empty in 1 of 2 rows \(the first: \[1\]\)"):
        load_problems(str(write_jsonl(tmp_path / "gap.jsonl", rows)))


@pytest.mark.parametrize("text", ["", "this is no JSON"])
def test_an_empty_or_malformed_file_is_refused(tmp_path, text):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read .*bad\.jsonl"):
        load_problems(str(tmp_path / "bad.jsonl"))
