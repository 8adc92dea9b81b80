from pathlib import Path

import pytest

from mixdistill.data.sets import ProblemSet, TraceSet, source_of


def test_a_path_and_a_list_are_as_their_texts(tmp_path):
    made = TraceSet(Path("traces.jsonl"), question=["Body", "Question"], answer_format="gsm8k")
    assert made == TraceSet("traces.jsonl", question=("Body", "Question"), answer_format="gsm8k")
    assert ProblemSet(Path("own.csv"), question=["Body"]) == ProblemSet("own.csv", question="Body")
    assert source_of(ProblemSet("own.csv")) == "own.csv"
    assert source_of("svamp") == "svamp"


def test_a_set_is_of_the_pocket_world_by_its_name_or_its_answers():
    assert TraceSet("pocket/long").pocket
    assert TraceSet("own.jsonl", answer_format="pocket").pocket
    assert not TraceSet("own.jsonl").pocket


@pytest.mark.parametrize("made", [TraceSet, ProblemSet])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": " "}, "source is ' ': it is a text"),
        ({"question": 5}, "question is 5: it is a list of texts"),
        ({"question": ()}, "the number of columns of question is 0"),
        ({"question": ("Body", None)}, "one of question is None"),
        ({"unusable": "skip"}, "unusable is 'skip': use one of error, drop"),
    ],
)
def test_what_is_no_set_is_refused(made, given, message):
    with pytest.raises(ValueError, match=message):
        made(**{"source": "own.jsonl"} | given)


def test_a_benchmark_of_a_name_has_columns_of_its_own():
    for name in ("svamp", "pocket/easy"):
        with pytest.raises(ValueError, match=f"'{name}', a benchmark with columns of its own: give its name alone"):
            ProblemSet(name)
