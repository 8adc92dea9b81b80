import re
from dataclasses import replace
from random import Random

import pytest
from conftest import SHARED_BENCHMARKS, SHARED_TRACES, write_jsonl
from datasets import ClassLabel, Dataset, Features, List, Value

from mixdistill import Problem, load_problems, load_student, load_traces
from mixdistill.data.chat import render_prompts
from mixdistill.data.pocket import world
from mixdistill.data.problems import BENCHMARKS, HUB, POCKET_TIERS

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


def test_no_test_problem_is_one_that_students_of_an_earlier_study_answered():
    rng, earlier = Random("problems/test/[1]/0"), set()
    while len(earlier) < 340:
        earlier.add(world.random_mystery(rng, 1, "test").text)
    assert not earlier & {problem.question for problem in load_problems("pocket/easy", n=1000)}


def test_a_pocket_name_in_another_case_is_no_hub_name_but_may_be_a_file(tmp_path, monkeypatch, math_problems):
    for read in (load_problems, load_traces, load_student):
        with pytest.raises(ValueError, match=r"Pocket/Easy.*pocket/"):
            read("Pocket/Easy")
    (tmp_path / "Pocket").mkdir()
    math_problems.rename(tmp_path / "Pocket" / "own.jsonl")
    monkeypatch.chdir(tmp_path)
    assert len(load_problems("Pocket/own.jsonl", columns={"question": "problem"})) == 6


def test_a_local_file_with_other_column_names(math_problems):
    problems = load_problems(str(math_problems), n=4, columns={"question": "problem"})
    assert [problem.answer for problem in problems] == ["20", "21", "22", "23"]


# One row of each published schema, as the Hub has it.
PUBLISHED = {
    "math": (
        {"problem": "1+1?", "level": "Level 5", "type": "Algebra", "solution": "So $1+1=\\boxed{\\frac{4}{2}}$."},
        ("\\frac{4}{2}", "5", "Algebra"),
    ),
    "math500": (
        {
            "problem": "1+1?",
            "solution": "",
            "answer": "2",
            "subject": "Algebra",
            "level": 3,
            "unique_id": "test/algebra/1.json",
        },
        ("2", "3", "Algebra"),
    ),
    "gsm8k": ({"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 1,002"}, ("1,002", "", "")),
    "svamp": ({"question": "1+1?", "answer": "7"}, ("7", "", "")),
    "amc23": ({"id": 0, "answer": 27.0, "url": "https://example.org", "question": "1+1?"}, ("27", "", "")),
    "aime24": (
        {"id": 60, "problem": "1+1?", "solution": "", "answer": "033", "url": "https://example.org", "year": "2024"},
        ("033", "", ""),
    ),
    "olympiadbench": (
        {
            "id": 1606,
            "subfield": "Algebra",
            "context": None,
            "question": "1+1?",
            "solution": ["two"],
            "final_answer": ["$1$,$2$"],
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
        },
        ("$1$,$2$", "", "Algebra"),
    ),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_read_from_a_file_with_its_published_columns(name, tmp_path, monkeypatch):
    row, (answer, level, subject) = PUBLISHED[name]
    file = write_jsonl(tmp_path / BENCHMARKS[name].file.format(split="test"), [row])
    (problem,) = load_problems(name, file=file)
    assert (problem.question, problem.answer, problem.level, problem.subject) == ("1+1?", answer, level, subject)
    assert (problem.source, problem.answer_format) == (name, "gsm8k" if name in ("gsm8k", "svamp") else "math")
    monkeypatch.setenv("MIXDISTILL_DATA", str(tmp_path))
    assert load_problems(name) == [problem]


@needs_benchmarks
@pytest.mark.parametrize(
    ("name", "split", "n"),
    [
        ("math500", "test", 500),
        ("gsm8k", "test", 1319),
        ("gsm8k", "train", 7473),
        ("aime24", "test", 30),
        ("amc23", "test", 40),
        ("olympiadbench", "test", 675),
    ],
)
def test_real_benchmark_files_load_whole(name, split, n, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_DATA", str(SHARED_BENCHMARKS))
    problems = load_problems(name, split=split)
    assert len({problem.id for problem in problems}) == n
    assert all(problem.question and problem.answer for problem in problems)


@pytest.mark.skipif(
    not SHARED_TRACES.is_dir(), reason="real traces are not part of the repo; put them in ../shared/traces"
)
def test_the_svamp_problems_load():
    problems = load_problems(SHARED_TRACES / "svamp_test.jsonl", answer_format="gsm8k")
    assert len({problem.question for problem in problems}) == 300
    assert problems[1].answer == "587"


def test_every_benchmark_is_pinned_to_a_commit():
    assert BENCHMARKS.keys() - HUB.keys() == {"svamp"}
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for _, revision in HUB.values())


def test_a_benchmark_without_a_hub_data_set_says_where_its_file_goes(monkeypatch):
    monkeypatch.delenv("MIXDISTILL_DATA", raising=False)
    with pytest.raises(
        ValueError, match=r"'svamp' is read from a file: put 'svamp_test.jsonl' into the folder .MIXDISTILL_DATA"
    ):
        load_problems("svamp")


def test_problems_without_a_gold_answer_are_left_out_and_counted(tmp_path):
    right = {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": "\\boxed{2}"}
    file = write_jsonl(tmp_path / "math.jsonl", [right, right | {"solution": "There are \\boxed{} primes."}])
    with pytest.warns(
        UserWarning, match=r"1 of 2 problems of 'math' have no gold answer and are left out \(rows \[1\]\)"
    ):
        assert len(load_problems("math", file=file)) == 1


def test_a_file_with_other_columns_than_published_is_refused(tmp_path):
    file = write_jsonl(tmp_path / "amc.jsonl", [{"question": "1+1?", "result": 2.0}])
    with pytest.raises(ValueError, match=r"no column 'answer', only question, result: .* under a benchmark's name"):
        load_problems("amc23", file=file)


def test_gsm8k_can_ask_for_a_box(tmp_path, qwen):
    file = write_jsonl(tmp_path / "gsm8k.jsonl", [PUBLISHED["gsm8k"][0]])
    student = load_student(qwen)
    asked = [
        student.tokenizer.decode(
            render_prompts(student.tokenizer, load_problems("gsm8k", file=file, prompt=prompt), 512, 9)[0][0]
        )
        for prompt in ("", "gsm8k_boxed")
    ]
    assert "1+1?" in asked[0]
    assert "boxed" not in asked[0]
    assert "within \\boxed{}" in asked[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "pocket/huge"}, "pocket/easy, pocket/medium, pocket/hard"),
        ({"source": "pocket/easy", "split": "exam"}, "train, dev, test"),
        ({"source": "pocket/easy", "n": 0}, "n is 0: it is a whole number, at least 1"),
        ({"source": "pocket/easy", "n": 1.5}, "n is 1.5: it is a whole number"),
        ({"source": "pocket/easy", "n": 6060}, "n is 6060: the split 'test' has 6059 such problems"),
        ({"source": "gsm8k", "split": "dev"}, "split is 'dev': use one of train, test"),
        ({"source": "aime24", "split": "train"}, "use one of test"),
        ({"source": "gsmk8"}, "there is no file 'gsmk8'"),
        ({"source": ""}, "source is ''"),
        ({"source": 7}, "source is 7"),
        ({"source": "missing.jsonl"}, "there is no file 'missing.jsonl'"),
        ({"source": "nobody/no-such-benchmark"}, "cannot load 'nobody/no-such-benchmark'"),
        ({"source": "pocket.jsonl", "answer_format": "essay"}, "answer_format is 'essay': use one of"),
        ({"source": "gsm8k", "prompt": "nicely"}, "prompt is 'nicely': use one of math, gsm8k, gsm8k_boxed"),
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


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("pocket/easy", {"file": "t.jsonl"}),
        ("pocket/easy", {"columns": {"question": "q"}}),
        ("pocket/easy", {"answer_format": "math"}),
        ("pocket/easy", {"prompt": "gsm8k_boxed"}),
        ("gsm8k", {"columns": {"question": "q"}}),
        ("gsm8k", {"answer_format": "gsm8k"}),
        ("t.jsonl", {"file": "u.jsonl"}),
        ("t.jsonl", {"split": "test"}),
    ],
)
def test_an_option_that_the_source_does_not_use_is_refused(source, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": "1"}])
    with pytest.raises(ValueError, match=rf"takes no {next(iter(options))}"):
        load_problems(source, **options)


@pytest.mark.parametrize(
    "columns",
    ["", {"answer": "question"}, {"questoin": "q"}, {"question": 5}, {"question": ""}, "question", [("question", "q")]],
)
def test_columns_is_a_dictionary_of_known_names(columns, math_problems):
    with pytest.raises(ValueError, match=r"columns"):
        load_problems(math_problems, columns=columns)


def test_answers_of_gsm8k_are_numbers_in_digits(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"question": "q", "answer": 1e3}\n{"question": "r", "answer": 1e-5}\n')
    answers = [problem.answer for problem in load_problems(tmp_path / "t.jsonl", answer_format="gsm8k")]
    assert answers == ["1000", "0.00001"]
    far = write_jsonl(tmp_path / "far.jsonl", [{"question": "q", "answer": "1e999999999"}])
    with pytest.raises(ValueError, match=r"no answer is read in 1 of 1 rows .*'1e999999999'"):
        load_problems(far, answer_format="gsm8k")
    rows = [{"question": "q", "answer": "5"}, {"question": "r", "answer": "10:45 (clock)"}]
    file = write_jsonl(tmp_path / "clock.jsonl", rows)
    with pytest.raises(ValueError, match=r"no answer is read in 1 of 2 rows \(the first: \[1\]\), .*'10:45"):
        load_problems(file, answer_format="gsm8k")
    with pytest.raises(ValueError, match="a problem's answer is '10:45'"):
        Problem("p/0", "1+1?", "10:45", "", "p", "gsm8k")


def test_a_worked_solution_is_a_math_gold_by_its_box_and_refused_where_it_marks_a_number(tmp_path):
    golds = ("#### Step 1\n$x=2$ and \\boxed{\\frac12}.", "\\boxed{5}", "7", "$3$")
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": f"q{gold}", "answer": gold} for gold in golds])
    assert [problem.answer for problem in load_problems(file)] == ["\\frac12", "5", "7", "$3$"]
    for gold in ("2 + 3 = 5\n#### 5", "so \\boxed{5"):
        file = write_jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": "7"}, {"question": "r", "answer": gold}])
        with pytest.raises(ValueError, match=r"no answer is read in 1 of 2 rows \(the first: \[1\]\).*a math answer"):
            load_problems(file)
        with pytest.raises(ValueError, match=r"a problem's answer is .*a math answer stands alone"):
            Problem("p/0", "1+1?", gold, "", "p", "math")


@pytest.mark.parametrize("odd", ["yes", "2 + 2 = 4, so \\boxed{yes}", "N/A", "-", "?", "nan", "None", "twelve", "1/0"])
def test_a_gsm8k_gold_without_a_number_is_refused_or_left_out(odd, tmp_path):
    rows = [{"question": f"q{gold}", "answer": gold} for gold in ("5", odd)]
    file = write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=r"no answer is read in 1 of 2 rows .*unusable='drop' leaves such rows out"):
        load_problems(file, answer_format="gsm8k")
    with pytest.warns(UserWarning, match="1 of 2 problems of .* have no question or gold answer and are left out"):
        assert [one.answer for one in load_problems(file, answer_format="gsm8k", unusable="drop")] == ["5"]


def test_a_number_in_a_list_is_read_from_parquet_as_from_json(tmp_path):
    rows = [{"question": f"q{n}", "answer": [float(n)]} for n in range(3)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "t.parquet"))
    files = (str(tmp_path / "t.parquet"), write_jsonl(tmp_path / "t.jsonl", rows))
    parquet, lines = ([one.answer for one in load_problems(file, answer_format="gsm8k")] for file in files)
    assert parquet == lines == ["0.0", "1.0", "2.0"]


def test_every_reason_of_a_refusal_has_its_rows_and_a_question_with_two_golds_is_said(tmp_path):
    rows = [{"question": f"q{n}", "answer": gold} for n, gold in enumerate((None, True, "", "5"))]
    file = write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=r"is empty in 2 of 4 rows \(.*\[0, 2\]\), is a bool in 1 of 4 rows .*\[1\]"):
        load_problems(file)
    file = write_jsonl(tmp_path / "two.jsonl", [{"question": "q", "answer": gold} for gold in ("1", "2")])
    with pytest.warns(UserWarning, match="1 questions of .* have more than one gold answer"):
        load_problems(file)


def test_ids_may_be_integers_and_0_and_no_two_are_equal(tmp_path):
    rows = [{"question": "q", "answer": 5, "id": 0}, {"question": "r", "answer": 6, "id": 1}]
    file = write_jsonl(tmp_path / "t.jsonl", rows)
    assert [problem.id for problem in load_problems(file, columns={"id": "id"})] == ["0", "1"]
    with pytest.raises(ValueError, match="2 problems of 1 different ids"):
        load_problems(write_jsonl(tmp_path / "twice.jsonl", [rows[0], rows[0]]), columns={"id": "id"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, value) for name in ("id", "question", "answer") for value in (None, 0, "", " ", "\ud800", ["q"])],
        *[(name, value) for name in ("level", "source", "subject") for value in (None, 5)],
        *[(name, value) for name in ("answer_format", "prompt") for value in (None, "x", ["math"])],
    ],
)
def test_a_problem_checks_its_fields(field, value):
    good = Problem("p/0", "1+1?", "2", "", "p", "math")
    with pytest.raises(ValueError, match=rf"{field} is "):
        replace(good, **{field: value})


def test_published_word_problem_files_drop_in_by_columns(tmp_path):
    """ASDiv's and SVAMP's question in two columns, an answer with what is counted, MAWPS's answers in lists."""
    rows = [{"Body": "Ann has 3 apples.", "Question": "And 4 more?", "Answer": "7 (apples)", "lSolutions": [7.0]}]
    file = write_jsonl(tmp_path / "words.jsonl", [*rows, rows[0] | {"Body": "Bo has 1.", "Answer": "5; 6"}])
    columns = {"question": ["Body", "Question"], "answer": "lSolutions"}
    problems = load_problems(file, columns=columns, answer_format="gsm8k")
    assert [(one.question, one.answer) for one in problems] == [
        ("Ann has 3 apples. And 4 more?", "7.0"),
        ("Bo has 1. And 4 more?", "7.0"),
    ]
    columns["answer"] = "Answer"
    with pytest.raises(ValueError, match=r"no answer is read in 1 of 2 rows \(the first: \[1\]\), such as '5; 6'"):
        load_problems(file, columns=columns, answer_format="gsm8k")
    with pytest.warns(UserWarning, match=r"1 of 2 problems of .* have no question or gold answer .*rows \[1\]"):
        problems = load_problems(file, columns=columns, answer_format="gsm8k", unusable="drop")
    assert [(one.id, one.answer) for one in problems] == [("words.jsonl/0", "7 (apples)")]
    traces = load_traces(file, columns={"question": columns["question"], "response": "Answer"}, answer_format="gsm8k")
    assert traces["question"][0] == problems[0].question


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["7 (apples)", "1 apple"], "all are numbers, such as '7 \\(apples\\)': answer_format='gsm8k'"),
        (["She has 5+3=8 apples.\nThe answer is: 8"], "1 are sentences, such as 'She has 5"),
        (["2", "2"], "1 of 2 problems of .* are there more than once"),
    ],
)
def test_golds_that_no_answer_may_equal_and_problems_that_repeat_are_said(answers, said, tmp_path):
    rows = [{"question": f"Q, not {answer}?", "answer": answer} for answer in answers]
    with pytest.warns(UserWarning, match=said):
        load_problems(write_jsonl(tmp_path / "t.jsonl", rows))


def test_rounded_golds_of_word_problems_are_said(tmp_path):
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": "Q?", "answer": 16 / 3}])
    with pytest.warns(UserWarning, match=r"gold answers .* 1 have ten or more decimals, such as .5\.33"):
        load_problems(file, answer_format="gsm8k")


@pytest.mark.parametrize("answer", ["\\frac12", "x=3", "\\text{Evelyn}", "5", "$3$", "(1, 2)", "A", "3 \\text{ cm}"])
def test_golds_of_mathematics_are_not_odd(answer, tmp_path):
    assert load_problems(write_jsonl(tmp_path / "t.jsonl", [{"question": "Q?", "answer": answer}]))


def test_rows_that_are_left_out_need_no_id(tmp_path):
    (tmp_path / "t.csv").write_text("id,question,answer\n1,q?,left out\n,,\n1,r?,\n")
    with pytest.warns(UserWarning, match=r"2 of 3 problems .* left out \(rows \[1, 2\]\)"):
        (problem,) = load_problems(tmp_path / "t.csv", columns={"id": "id"}, unusable="drop")
    assert (problem.id, problem.answer) == ("1", "left out")


def test_a_file_without_any_gold_is_refused(tmp_path):
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": "Q?", "answer": "", "id": 1}])
    with pytest.raises(ValueError, match=r"1 of 1 problems of .* have no gold answer: name the right columns"):
        load_problems("svamp", file=file)
    with pytest.raises(ValueError, match=r"1 of 1 problems of .* have no question or gold answer: name the right"):
        load_problems(file, unusable="drop")


def test_a_link_is_called_by_its_own_name(tmp_path):
    write_jsonl(tmp_path / "9f3e00", [{"question": "Q?", "answer": "1"}])
    (tmp_path / "own.jsonl").symlink_to(tmp_path / "9f3e00")
    assert load_problems(tmp_path / "own.jsonl")[0].source == "own.jsonl"


@pytest.mark.parametrize("gold", ["0,125", "-0,250", "00,125", "01,200", "3/0 hundred", "3/0"])
def test_a_gold_that_no_answer_is_equal_to_is_refused(tmp_path, gold):
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": gold}])
    with pytest.raises(ValueError, match="no answer is read in 1 of 1 rows"):
        load_problems(file, answer_format="gsm8k")
    held = [{"question": f"is {gold}?", "answer": gold} for gold in ("1,000,500", "1/20", "0.5")]
    file = write_jsonl(tmp_path / "u.jsonl", held)
    assert len(load_problems(file, answer_format="gsm8k")) == 3


def test_one_number_in_two_spellings_is_one_gold(tmp_path, recwarn):
    rows = [{"question": question, "answer": gold} for question, gold in (("q", "5"), ("q ", "5.0"), ("q", "1,200"))]
    load_problems(write_jsonl(tmp_path / "t.jsonl", rows[:2]), answer_format="gsm8k")
    assert ["more than once" in str(one.message) for one in recwarn] == [True]
    with pytest.warns(UserWarning, match="1 questions of .* have more than one gold answer"):
        load_problems(write_jsonl(tmp_path / "u.jsonl", rows[1:]), answer_format="gsm8k")


@pytest.mark.parametrize("hole", ["number0", "NUMBER_1", "num2", "N_00", "NUM", "[NUM0]", "<num>", "temp_a"])
def test_a_question_whose_numbers_are_left_out_is_refused(tmp_path, hole):
    rows = [{"question": question, "answer": "3"} for question in (f"{hole} apples and 2 pears?", "A number?")]
    with pytest.raises(ValueError, match=rf"1 of 2 questions of .* a number left out, such as {re.escape(hole)}: fill"):
        load_problems(write_jsonl(tmp_path / "t.jsonl", rows), answer_format="gsm8k")
    with pytest.warns(UserWarning, match="1 of 2 problems of .* have no question or gold answer and are left out"):
        kept = load_problems(tmp_path / "t.jsonl", answer_format="gsm8k", unusable="drop")
    assert [problem.question for problem in kept] == ["A number?"]
    assert len(load_problems(tmp_path / "t.jsonl")) == 2  # as mathematics it may be a name


def test_words_that_look_like_numbers_left_out_are_read(tmp_path):
    questions = ("N95 masks of #1, number 5 and a <number> of N?", "What is num?", "A temp_file, temp a and N1?")
    rows = [{"question": question, "answer": "3"} for question in questions]
    with pytest.raises(ValueError, match="1 of 3 questions"):
        load_problems(write_jsonl(tmp_path / "t.jsonl", rows), answer_format="gsm8k")
    rows[0]["question"] = questions[0].replace("<number>", "number")
    assert len(load_problems(write_jsonl(tmp_path / "t.jsonl", rows), answer_format="gsm8k")) == 3


def test_the_name_of_a_class_and_not_its_number_is_read(tmp_path):
    label = ClassLabel(names=["10", "20"])
    columns = Features({"question": Value("string"), "answer": label, "extra": List(Value("float32"))})
    rows = [{"question": f"q{n}", "answer": n % 2, "extra": [12.6]} for n in range(3)]
    made = Dataset.from_list(rows, features=columns)
    made.to_parquet(str(tmp_path / "t.parquet"))
    made.save_to_disk(str(tmp_path / "t"))
    for source in ("t.parquet", "t"):
        found = load_problems(str(tmp_path / source), answer_format="gsm8k")
        assert [one.answer for one in found] == ["10", "20", "10"]
        found = load_problems(str(tmp_path / source), answer_format="gsm8k", columns={"answer": "extra"})
        assert found[0].answer == "12.6"  # of float32
