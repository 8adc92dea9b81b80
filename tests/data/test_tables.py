"""What a stranger's file says is what is read: values as written, the named columns only, errors with their place."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from datasets import Dataset, DatasetDict, Features, Image, Value

from mixdistill import load_problems, load_traces

DIGITS = ["1180591620717411303424", "0.1234567890123456789", "1e400", "-0", "27.0", "2023", "1.10"]
TEXTS = ["007", "2023-01-01T00:00:00", "1/2", "nan", "None", " 5", "\\frac{1}{2}\u2028"]


def write(path, answers: list[str], numbers: bool = False):
    """A file of problems with these golds, JSON's as numbers where asked to."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("question", "answer"), *((f"q{i}", a) for i, a in enumerate(answers))])
    else:
        written = [answer if numbers else json.dumps(answer, ensure_ascii=False) for answer in answers]
        lines = [f'{{"question": "q{i}", "answer": {answer}}}' for i, answer in enumerate(written)]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]", encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_golds_keep_their_digits_and_texts_their_form(tmp_path, suffix):
    for answers, numbers in ((DIGITS, True), (DIGITS, False), (TEXTS, False)):
        problems = load_problems(write(tmp_path / f"golds{suffix}", answers, numbers))
        assert [problem.answer for problem in problems] == answers


def test_parquet_golds_keep_their_digits(tmp_path):
    columns = {
        "u64": pa.array([2**64 - 1, 3], pa.uint64()),
        "decimal": pa.array(["0.10", "1180591620717411303424.50"]).cast(pa.decimal128(30, 2)),
        "f64": pa.array([0.1, 27.0]),
        "f32": pa.array([0.1, 27.0], pa.float32()),
        "word": pa.array(["007", "1e400"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns | {"question": ["q", "r"]}), tmp_path / "t.parquet")
    read = {
        name: [p.answer for p in load_problems(tmp_path / "t.parquet", columns={"answer": name})] for name in columns
    }
    assert read == {
        "u64": ["18446744073709551615", "3"],
        "decimal": ["0.10", "1180591620717411303424.50"],
        "f64": ["0.1", "27.0"],
        "f32": ["0.1", "27.0"],
        "word": ["007", "1e400"],
    }


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("null", "is empty"),
        ('"  "', "is empty"),
        ("NaN", "is NaN"),
        ("-Infinity", "is -Infinity"),
        ('["1", "2"]', "is a list"),
        ("true", "is a bool"),
        ('"\\ud800"', "holds NUL or a lone surrogate"),
        ('"1\\u0000"', "holds NUL or a lone surrogate"),
    ],
)
def test_a_gold_that_is_no_text_or_number_is_refused_with_its_row(tmp_path, gold, reason):
    with pytest.raises(ValueError, match=rf"column 'answer' of .* {reason} in 1 of 3 rows \(the first: \[1\]\)"):
        load_problems(write(tmp_path / "t.jsonl", ["1", gold, "3"], numbers=True))


@pytest.mark.parametrize("question", ["null", '""', '"\\t"', '"nan"', '"None"', "5", "[1]"])
def test_a_question_that_is_no_text_is_refused_with_its_row(tmp_path, question):
    file = tmp_path / "t.jsonl"
    file.write_text(
        f'{{"question": "q", "response": "5", "answer": 5}}\n{{"question": {question}, "response": "5", "answer": 5}}'
    )
    for load in (load_problems, load_traces):
        with pytest.raises(ValueError, match=r"question.* is .* in 1 of 2 rows \(the first: \[1\]\)"):
            load(file, answer_format="gsm8k")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"question": "q"}\n{"question": "caf\xe9"}', "can't decode byte 0xe9 in position 35"),
        ("t.jsonl", b'{"question": "q"}\n\n{"question": x', "Expecting value: line 3 column 14"),
        ("t.jsonl", b"this is no JSON", "Expecting value: line 1 column 1"),
        ("t.jsonl", b"[" * 100_000, "maximum recursion depth"),
        ("t.json", b'[{"question": "q"}, 5]', "row 1 is no object"),
        ("t.csv", b"question,answer\nq,1\nr\n", "row 1 has more or fewer fields than the header"),
        ("t.csv", b"question,answer\nq,1,2\n", "row 0 has more or fewer fields than the header"),
        ("t.csv", b'question,answer\nq,"1\n', "unexpected end of data"),
        ("t.csv", b"question,question\nq,1\n", "names the column 'question' twice"),
        ("t.csv", b"question;answer\nq;1;2\n", "row 0 has more or fewer fields than the header"),
        ("t.csv", b"question,answer\nq\xe9,1\n", "save it as UTF-8"),
        (
            "t.json",
            b'{"data": [{"question": "q"}], "more": [{"question": "r"}]}',
            "one object, with 'data' in it: write",
        ),
        ("t.json", b'{"a": {"question": "q"}, "b": 1}', "one object, with 'a' in it: write a list"),
        ("t.json", b'{"problem": "x", "steps": [{"question": "q", "answer": "1"}]}', "one object, with 'steps' in it"),
        ("t.json", b'{"train": [{"question": "q", "answer": "1"}], "test": []}', "one object, with 'train' in it"),
        ("t.json", b'{"question": ["q", "r"], "answer": ["1", "2"]}', "one object, with 'question' in it"),
        ("t.csv", b"", "holds no rows"),
        ("t.jsonl", b"", "holds no rows"),
        ("t.json", b"[]", "holds no rows"),
        ("t.parquet", b"PAR1", "cannot load"),
        ("t.txt", b"q", r"ends in '.txt', save it as one of .json, .jsonl, .ndjson, .csv, .tsv, .parquet"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        load_problems(tmp_path / name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'question;answer\nHow many, of 2?;2\n"a;b";3\n'),
        ("t.csv", "question\tanswer\nHow many, of 2?\t2\na;b\t3\n"),
        ("t.tsv", "question\tanswer\nHow many, of 2?\t2\na;b\t3\n"),
        ("t.tsv", "answer\tquestion\n2\tHow many, of 2?\n3\ta;b"),
        ("t.csv", "\ufeffquestion|answer\nHow many, of 2?|2\na;b|3\n"),
        ("t.ndjson", '{"question": "How many, of 2?", "answer": 2}\n{"question": "a;b", "answer": 3}\n'),
        (
            "t.json",
            '{"n": 2, "data": [{"question": "How many, of 2?", "answer": 2}, {"question": "a;b", "answer": 3}]}',
        ),
        ("t.json", '{"7": {"question": "How many, of 2?", "answer": 2}, "9": {"question": "a;b", "answer": 3}}'),
    ],
)
def test_tables_are_read_in_the_forms_that_they_are_published_in(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    problems = load_problems(tmp_path / name, answer_format="gsm8k")
    assert [(problem.question, problem.answer) for problem in problems] == [("How many, of 2?", "2"), ("a;b", "3")]


def test_quotes_in_a_tsv_are_letters(tmp_path):
    (tmp_path / "t.tsv").write_text('question\tanswer\n"Tom has 3\t3\nAnn has 2"\t2\n"Five" of 5?\t5\n')
    read = [problem.question for problem in load_problems(tmp_path / "t.tsv", answer_format="gsm8k")]
    assert read == ['"Tom has 3', 'Ann has 2"', '"Five" of 5?']


def test_of_a_saved_folder_of_several_splits_tests_read_test_and_traces_train(tmp_path):
    rows = {split: [{"question": f"{split}?", "response": "It is 2.", "answer": "2"}] for split in ("train", "test")}
    DatasetDict({split: Dataset.from_list(of) for split, of in rows.items()}).save_to_disk(tmp_path / "saved")
    assert [problem.question for problem in load_problems(tmp_path / "saved", answer_format="gsm8k")] == ["test?"]
    assert load_problems(tmp_path / "saved", answer_format="gsm8k", split="train")[0].question == "train?"
    assert load_traces(tmp_path / "saved", answer_format="gsm8k")["question"][:] == ["train?"]


def test_a_long_field_of_a_csv_is_read(tmp_path):
    assert load_problems(write(tmp_path / "t.csv", ["1" * 200_000]))[0].answer == "1" * 200_000


def test_the_folder_of_files_stays_where_it_was_named(tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "t.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXDISTILL_DATA", "kept")
    assert len(load_problems("t.jsonl")) == 1
    monkeypatch.chdir("/")  # as the kernels of notebooks do
    assert len(load_problems("t.jsonl")) == 1


def test_only_the_named_columns_are_read(tmp_path):
    """An image column that points to a local file is never opened; `datasets` would decode it with the rows."""
    images = pa.array([{"bytes": None, "path": "/etc/passwd"}])
    data = Dataset(pa.table({"question": ["q"], "answer": ["1"], "image": images})).cast(
        Features({"question": Value("string"), "answer": Value("string"), "image": Image()})
    )
    data.save_to_disk(tmp_path / "folder")
    data.with_format("arrow").to_parquet(tmp_path / "t.parquet")
    for source in (tmp_path / "folder", tmp_path / "t.parquet"):
        assert load_problems(source)[0].answer == "1"


def test_a_folder_of_other_splits_needs_the_name_of_one(tmp_path):
    DatasetDict({"dev": Dataset.from_dict({"question": ["dev"], "answer": ["1"]})}).save_to_disk(tmp_path / "dev")
    with pytest.raises(ValueError, match="split is 'test', it holds dev"):
        load_problems(tmp_path / "dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="give a folder written by"):
        load_problems(tmp_path / "empty")


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.csv", "b=1.JSON", "q ü.jsonl"])
def test_a_name_is_a_name_and_no_pattern(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = (
        write(tmp_path / name, ["1"])
        if "JSON" not in name
        else write(tmp_path / "x.json", ["1"]).rename(tmp_path / name)
    )
    write(tmp_path / "a1.jsonl", ["2"])
    problems = load_problems(source)
    assert problems == load_problems(str(source)) == load_problems(f"~/{name}")
    assert [(problem.id, problem.source) for problem in problems] == [(f"{name}/0", name)]
    (tmp_path / "elsewhere").mkdir()
    assert problems == load_problems(source.rename(tmp_path / "elsewhere" / name))


def test_an_object_that_names_a_key_twice_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"question": "a", "answer": "1", "answer": "2"}\n')
    with pytest.raises(ValueError, match="an object names a key twice, of question, answer"):
        load_problems(tmp_path / "t.jsonl")


def test_one_row_may_hold_lists_and_a_spreadsheet_may_end_in_blank_columns(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"question": "q", "answer": "1", "steps": [{"a": 1}]}')
    (tmp_path / "t.csv").write_text("question,answer,,\nq,1,,\n")
    for name in ("t.jsonl", "t.csv"):
        assert load_problems(tmp_path / name)[0].answer == "1"


@pytest.mark.parametrize(("body", "said"), [(None, "is empty"), (["a"], "is a list")])
def test_of_a_question_in_two_columns_none_may_be_missing(body, said, tmp_path):
    write_jsonl(tmp_path / "t.jsonl", [{"Body": body, "question": "q", "answer": "1"}])
    with pytest.raises(ValueError, match=f"column 'Body' or 'question' of .* {said} in 1 of 1 rows"):
        load_problems(tmp_path / "t.jsonl", columns={"question": ["Body", "question"]})
