import pytest
from conftest import write_jsonl

from mixdistill import load_student, load_traces
from mixdistill.data.pocket import world
from mixdistill.data.traces import COLUMNS, token_lengths


def test_all_pocket_traces_of_one_seed_are_about_the_same_problems():
    sets = [load_traces(f"pocket/{style}", n=60, seed=3) for style in world.STYLES]
    long_traces = sets[world.STYLES.index("long")]
    assert all(traces["problem_id"] == long_traces["problem_id"] for traces in sets)
    assert len({tuple(traces["response"]) for traces in sets}) == len(world.STYLES)
    assert load_traces("pocket/long", n=60, seed=3)["response"] == long_traces["response"]
    assert load_traces("pocket/long", n=60, seed=4)["problem_id"] != long_traces["problem_id"]


def test_a_published_trace_set_keeps_its_text_and_is_matched_by_question(math_traces):
    traces = load_traces(str(math_traces), columns={"question": "problem", "response": "solution"}, style="long")
    assert tuple(traces.column_names) == COLUMNS
    assert traces["response"][2] == "It is \\boxed{32}."
    assert len(set(traces["problem_id"])) == 12


def test_a_trace_without_answer_is_refused_with_its_row(tmp_path):
    rows = [{"question": "q", "response": "\\boxed{1}"}, {"question": "r", "response": "I do not know."}]
    with pytest.raises(ValueError, match=r"1 of 2 traces hold no final answer .* rows \[1\]"):
        load_traces(str(write_jsonl(tmp_path / "t.jsonl", rows)))


def test_unusable_traces_are_dropped_only_when_asked_to_and_counted(tmp_path):
    rows = [
        {"question": "q", "response": "It is \\boxed{1}."},
        {"question": "q ", "response": "Also \\boxed{1}."},
        {"question": "r", "response": "I do not know."},
        {"question": "s", "response": ""},
    ]
    file = str(write_jsonl(tmp_path / "t.jsonl", rows))
    reasons = "1 empty, 1 without final answer, 1 further traces of a problem"
    with pytest.warns(UserWarning, match=rf"3 of 4 traces of .* are left out: {reasons}"):
        assert load_traces(file, unusable="drop")["response"][:] == ["It is \\boxed{1}."]
    with pytest.raises(ValueError, match=r"column 'response' .* is empty in 1 of 4 rows"):
        load_traces(file)
    with pytest.raises(ValueError, match=r"no trace of .* can be used"):
        load_traces(str(write_jsonl(tmp_path / "none.jsonl", rows[2:])), unusable="drop")
    with pytest.raises(ValueError, match="unusable is 'ignore': use 'error', or 'drop'"):
        load_traces(file, unusable="ignore")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "pocket/medium"}, "pocket/short, pocket/long, pocket/unverified, pocket/direct"),
        ({"source": "pocket/long", "n": 0}, "at least 1"),
        ({"source": "no/such/file.jsonl"}, "there is no file"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_traces(**arguments)


def test_a_missing_column_is_refused(math_traces):
    with pytest.raises(ValueError, match=r"no column 'question', 'response', only problem, solution"):
        load_traces(str(math_traces))


def test_token_lengths_are_measured_with_the_students_tokenizer():
    tokenizer = load_student("pocket/xs").tokenizer
    short, long = (token_lengths(load_traces(f"pocket/{style}", n=6), tokenizer) for style in ("short", "long"))
    assert list(short) == [len(text.split()) for text in load_traces("pocket/short", n=6)["response"]]
    assert list(short.index) == list(long.index)
    assert long.mean() > 1.5 * short.mean()
