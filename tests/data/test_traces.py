import json
import re

import pytest
from conftest import REPO, SHARED_TRACES, write_jsonl
from datasets import Dataset

from mixdistill import Problem, load_problems, load_traces, mix
from mixdistill.data.pocket import world
from mixdistill.data.problems import plain_question
from mixdistill.data.traces import COLUMNS, check_traces, drop_overlap


def test_all_pocket_traces_of_one_seed_are_about_the_same_problems():
    sets = [load_traces(f"pocket/{style}", n=60, seed=3) for style in list(world.TEACHERS)]
    long_traces = sets[list(world.TEACHERS).index("long")]
    assert all(traces["problem_id"] == long_traces["problem_id"] for traces in sets)
    assert len({tuple(traces["response"]) for traces in sets}) == len(list(world.TEACHERS))
    assert load_traces("pocket/long", n=60, seed=3)["response"] == long_traces["response"]
    assert load_traces("pocket/long", n=60, seed=4)["problem_id"] != long_traces["problem_id"]


def test_a_published_trace_set_keeps_its_text_and_is_matched_by_question(math_traces):
    traces = load_traces(str(math_traces), columns={"question": "problem", "response": "solution"}, style="long")
    assert tuple(traces.column_names) == COLUMNS
    assert traces["response"][2] == "It is \\boxed{32}."
    assert len(set(traces["problem_id"])) == 12
    with pytest.raises(ValueError, match=r"takes no revision \(it is a file\)"):
        load_traces(str(math_traces), revision="main")


def test_a_trace_without_answer_is_refused_with_its_row(tmp_path):
    rows = [{"question": "q", "response": "\\boxed{1}"}, {"question": "r", "response": "I do not know."}]
    with pytest.raises(ValueError, match=r"no final answer in 1 of 2 rows \(the first: \[1\]\): mend or drop"):
        load_traces(str(write_jsonl(tmp_path / "t.jsonl", rows)))


def test_a_math_trace_without_a_box_is_counted_and_with_drop_left_out(tmp_path):
    rows = [{"question": "q", "response": "\\boxed{1}"}, {"question": "r", "response": "The answer is 2."}]
    file = write_jsonl(tmp_path / "t.jsonl", rows)
    seen = r"final answer without a box in 1 of 2 rows \(the first: \[1\]\)"
    with pytest.warns(UserWarning, match=f"{seen}: used as they are"):
        assert len(load_traces(file)) == 2
    with pytest.warns(UserWarning, match=f"{seen}: left out"):
        assert len(load_traces(file, unusable="drop")) == 1
    assert len(load_traces(file, answer_format="gsm8k")) == 2  # the last number counts there


@pytest.mark.parametrize("source", ["pocket/long", "t.jsonl"])
@pytest.mark.parametrize(
    "columns", ["", "question", {"reponse": "r"}, {"response": ""}, {"question": "response"}, {"problem_id": 3}]
)
def test_columns_is_a_dictionary_of_known_names_to_two_columns_and_more(source, columns):
    with pytest.raises(ValueError, match="columns"):
        load_traces(source, columns=columns)


def test_unusable_traces_are_dropped_only_when_asked_to_and_counted(tmp_path):
    rows = [
        {"question": "q", "response": "It is \\boxed{1}."},
        {"question": "q ", "response": "Also \\boxed{1}."},
        {"question": "r", "response": "I do not know."},
        {"question": "s", "response": ""},
    ]
    file = str(write_jsonl(tmp_path / "t.jsonl", rows))
    with pytest.warns(UserWarning, match=r"further trace of a problem in 1 of 4 rows \(the first: \[1\]\).*: left out"):
        assert load_traces(file, unusable="drop")["response"][:] == ["It is \\boxed{1}."]
    with pytest.raises(ValueError, match=r"no final answer in 1 of 4 .*response is empty in 1 of 4 rows"):
        load_traces(file)
    with pytest.raises(ValueError, match=r"no final answer in 1 of 2 .*response is empty in 1 of 2"):
        load_traces(str(write_jsonl(tmp_path / "none.jsonl", rows[2:])), unusable="drop")
    with pytest.raises(ValueError, match="unusable is 'ignore': use one of error, drop"):
        load_traces(file, unusable="ignore")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": "pocket/medium"},
            "pocket/short, pocket/long, pocket/unverified, pocket/confirmed, pocket/shuffled, pocket/direct",
        ),
        ({"source": "pocket/long", "n": 0}, "at least 1"),
        ({"source": "pocket/long", "n": 152_590}, "n is 152590: the split 'train' has 152589 such problems"),
        ({"source": "pocket/long", "seed": None}, "seed is None: it is a whole number"),
        ({"source": "pocket/long", "seed": "0"}, "seed is '0': it is a whole number"),
        ({"source": "pocket/long", "unusable": "drop"}, "'pocket/long' takes no unusable"),
        ({"source": "pocket/long", "style": "short"}, "'pocket/long' takes no style"),
        ({"source": "t.jsonl", "seed": 1}, "'t.jsonl' takes no seed"),
        ({"source": "t.jsonl", "columns": {"reponse": "r"}}, "from some of question, response, problem_id"),
        ({"source": "no/such/file.jsonl"}, "there is no file"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_traces(**arguments)


def test_a_missing_column_is_refused(math_traces):
    with pytest.raises(ValueError, match=r"no column 'question', 'response', only problem, solution"):
        load_traces(str(math_traces))


def test_ids_may_be_integers_and_0_and_two_files_share_those_that_are_written_alike(tmp_path):
    def traces(name: str, ids: list, **options):
        rows = [{"id": i, "question": f"q{n}", "response": f"{name} \\boxed{{1}}"} for n, i in enumerate(ids)]
        return load_traces(write_jsonl(tmp_path / name, rows), columns={"problem_id": "id"}, **options)

    ints = traces("ints.jsonl", [0, 1], unusable="drop")
    assert ints["problem_id"] == ["0", "1"]
    assert len(mix(ints, traces("texts.jsonl", ["0", "1"]), 0.5)) == 2
    with pytest.raises(ValueError, match="no problem in common"):
        mix(ints, traces("floats.jsonl", [0.0, 1.0]), 0.5)


ROW = {"problem_id": 0, "question": "q", "response": "5", "teacher": "t", "style": "", "answer_format": "gsm8k"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[(column, value) for column in ("question", "response") for value in (None, "", " ", 5)],
        *[("problem_id", value) for value in (None, "", 1.0)],
        *[("answer_format", value) for value in (None, "x")],
    ],
)
def test_a_hand_made_set_is_checked(column, value):
    assert check_traces(Dataset.from_list([ROW]))["problem_id"] == [0]
    with pytest.raises(ValueError, match=rf"{column} is"):
        check_traces(Dataset.from_list([ROW | {column: value}]))


@pytest.mark.parametrize("traces", [[ROW], "pocket/long", None, {"train": Dataset.from_list([ROW])}])
def test_what_is_no_data_set_is_refused(traces):
    with pytest.raises(ValueError, match=r"the traces are a .*: give one datasets\.Dataset"):
        check_traces(traces)


def test_traces_of_test_problems_are_left_out_and_counted():
    questions = ["Add 1.5 and 2.", "add 1.5  and 2", "Add 15 and 2.", "Add 1.5 and 3."]
    traces = Dataset.from_list([ROW | {"problem_id": i, "question": text} for i, text in enumerate(questions)])
    problem = Problem("p", "Add 1.5 and 2?", "3.5", "", "p", "gsm8k")
    with pytest.warns(UserWarning, match="2 of 4 traces are about problems of the test"):
        assert drop_overlap(traces, [problem])["problem_id"] == [2, 3]
    assert drop_overlap(traces.select([2, 3]), [problem])["problem_id"] == [2, 3]
    with pytest.raises(ValueError, match="all 2 traces"):
        drop_overlap(traces.select([0, 1]), [problem])


@pytest.mark.parametrize("way", ["to_json", "to_parquet", "to_csv", "save_to_disk"])
def test_a_saved_trace_set_is_read_as_it_was(way, tmp_path):
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": f"{n} + 1?", "response": f"#### {n + 1}"} for n in range(3)])
    traces = load_traces(file, answer_format="gsm8k", style="long")
    place = tmp_path / ("saved" if way == "save_to_disk" else f"saved.{way[3:]}".replace("json", "jsonl"))
    getattr(traces, way)(place)
    assert load_traces(place).to_list() == traces.to_list()
    assert load_traces(place, answer_format="gsm8k").to_list() == traces.to_list()
    with pytest.raises(ValueError, match=r"answer_format is 'math', and .* is a saved trace set, .* such as 'gsm8k'"):
        load_traces(place, answer_format="math")
    pocket = load_traces("pocket/long", n=3)
    getattr(pocket, way)(place)
    assert load_traces(place).to_list() == pocket.to_list()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Tom\u2019s hat", "Tom's hat", True),
        ("She said “go”.", 'she said "go"', True),
        ("1,200 - 5?", "1200 \u2013 5", True),
        ("Twenty-one men", "twenty one men", False),
        ("1, 12 and 3", "1, 1 and 23", False),
        ("gcd(12,345)", "gcd(12345)", False),
        ("He had 5. 3 were lost", "He had 5.\n 3 were lost", True),
        ("Find 5  6", "Find 56", False),
        ("on (1,200)", "on (1200)", False),
        ("2\u2075", "25", False),
        ("2\u2075", "2^5", True),
        ("Question: How many?", "how many", True),
        ("x-y = 3", "xy = 3", False),
        ("f'(2)", "f(2)", False),
        ("5-3", "5+3", False),
        ("1,20 or 3", "120 or 3", False),
        ("has 1,200, and", "has 1200, and", True),
        ("(1,200 men) sit", "(1200 men) sit", True),
        ("\ufeffTom\u200b sits", "tom sits", True),
        ("**Question 3:** How many?", "how many", True),
        ("1. How many?\nAnswer:", "how many", True),
        ("What is $2+2$?", "What is 2+2?", True),
        ("1\u00bd cups", "1 1/2 cups", True),
        ("1\u00bd cups", "11/2 cups", False),
        ("2**3", "23", False),
        ("2**n", "2n", False),
        ("x**2", "x2", False),
    ],
)
def test_copies_of_a_question_are_told_from_other_questions(one, other, same):
    assert (plain_question(one) == plain_question(other)) == same


needs_traces = pytest.mark.skipif(
    not SHARED_TRACES.is_dir(), reason="real traces are not part of the repo; put them in ../shared/traces"
)


@needs_traces
def test_the_log_says_how_many_tests_share_a_story():
    """All of a problem but its last sentence, numbers aside (docs/real-log.md, entry 11)."""

    def stories(name: str) -> list[str]:
        rows = map(json.loads, (SHARED_TRACES / name).read_text().splitlines())
        questions = [re.split(r"(?<=[.?!])\s+", row["question"].strip()) for row in rows]
        bodies = [" ".join(sentences[:-1] or sentences) for sentences in questions]
        return [re.sub(r"\d[\d.,]*", "N", body).lower().strip() for body in bodies]

    tests, trained = stories("svamp_test.jsonl"), {*stories("svamp_llama_level1.jsonl")}
    again = sum(tests.count(story) > 1 for story in tests)
    log = (REPO / "docs" / "real-log.md").read_text()
    assert f"{sum(story in trained for story in tests)} have the story of one of these" in log
    assert f"{again} that of another test problem" in log


@needs_traces
@pytest.mark.parametrize(
    ("group", "n_problems", "n_sets"),
    [(r"svamp_\w+_level\d", 657, 16), (r"gsm8k_\w+", 6977, 4), (r"svamp_(gpt35|flant5large)", 425, 2)],
)
def test_real_traces_of_a_group_load_and_are_about_the_same_problems(group, n_problems, n_sets):
    files = [file for file in sorted(SHARED_TRACES.glob("*.jsonl")) if re.fullmatch(group, file.stem)]
    sets = [load_traces(file, answer_format="gsm8k") for file in files]
    assert len(sets) == n_sets
    test = load_problems(SHARED_TRACES / "svamp_test.jsonl", answer_format="gsm8k")
    for traces in sets:
        assert len(mix(traces, sets[0], 0.5)) == n_problems
        assert drop_overlap(traces, test) is traces


def test_what_drop_leaves_out_of_two_questions_with_one_id_is_said(tmp_path):
    rows = [{"question": f"{n} + 1?", "response": f"\\boxed{{{n + 1}}}", "id": n % 2} for n in range(4)]
    file = write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.warns(UserWarning, match=r"problem_id of another question before in 2 of 4 rows .*\[2, 3\]"):
        assert len(load_traces(file, columns={"problem_id": "id"}, unusable="drop")) == 2
    assert len(load_traces(file, columns={"problem_id": "id"})) == 4
