"""What passes the door, as which value, and the sentence that others get."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mixdistill import (
    LoRA,
    Placement,
    Problem,
    Sampling,
    arguments,
    check_parameters,
    collect_traces,
    equal,
    evaluate,
    finetune,
    get_scale,
    grade,
    grade_all,
    judge,
    load_problems,
    load_student,
    load_traces,
    mix,
    open_run,
    sweep,
)
from mixdistill.data.final_answers import final_answer
from mixdistill.data.pocket.errors import first_error
from mixdistill.data.problems import pocket_mysteries
from mixdistill.data.traces import drop_overlap
from mixdistill.results import figures, stats
from mixdistill.results.judge import judge_table
from mixdistill.results.redraw import redraw
from mixdistill.results.samples import sampled_table
from mixdistill.study.plan import plan
from mixdistill.study.scales import Arm, TraceSet, alpha_arms, control_arms, gap_arms, untouched_arms
from mixdistill.study.sweep import trace_set


@pytest.mark.parametrize("value", [True, 2.0, "2", None, float("nan"), 0, [1]])
def test_a_whole_number_is_neither_a_flag_nor_a_float_nor_too_small(value):
    with pytest.raises(ValueError, match=r"epochs is .*: it is a whole number, at least 1$"):
        arguments.whole("epochs", value)


@pytest.mark.parametrize(
    "value", [True, "1e-3", None, float("nan"), float("inf"), np.float32("inf"), 10**400, 0, -1, 1j]
)
def test_a_number_is_finite_and_within_its_bounds(value):
    with pytest.raises(ValueError, match=r"lr is .*: it is a finite number, above 0$"):
        arguments.number("lr", value, above=0)


def test_numpy_numbers_and_paths_become_plain_values():
    assert type(arguments.whole("n", np.int64(3))) is int
    assert type(arguments.number("lr", np.float32(0.5), above=0)) is float
    assert arguments.text("student", Path("a/b")) == "a/b"


def test_none_passes_where_it_is_allowed():
    assert arguments.whole("n", None, optional=True) is None
    with pytest.raises(ValueError, match="or None"):
        arguments.whole("n", 0, optional=True)


@pytest.mark.parametrize("value", ["", " \n", 3, None, b"x", "\ud800"])
def test_a_text_is_not_blank_and_can_be_written(value):
    with pytest.raises(ValueError, match="student is "):
        arguments.text("student", value)


def test_a_choice_names_what_is_allowed():
    with pytest.raises(ValueError, match=r"too_long is \['drop'\]: use one of error, drop"):
        arguments.choice("too_long", ["drop"], ("error", "drop"))


def test_a_list_of_texts_is_no_single_text():
    assert arguments.texts("students", ["a", Path("b")]) == ("a", "b")
    for value in ("pocket/xs", None, {"a": 1}, 5):
        with pytest.raises(ValueError, match=r"students is .*: it is a list of texts$"):
            arguments.texts("students", value)
    with pytest.raises(ValueError, match="one of students is 5: it is a text"):
        arguments.texts("students", ["a", 5])


TRACES = load_traces("pocket/short", n=2)
PROBLEMS = load_problems("pocket/easy", n=2)
SMOKE = get_scale("smoke")
NAN, TABLE = float("nan"), pd.DataFrame({"a": [1]})
ITEM = {"seed": 0, "benchmark": "b", "problem_id": "1", "sample": 0, "correct": True, "answer": "1"}
ITEM |= {"student": "s", "params": 5, "recipe": "short"}
ITEMS = pd.DataFrame([ITEM])
DOORS = {
    "finetune": lambda: finetune("pocket/xs", TRACES, lr=NAN),
    "finetune: the student": lambda: finetune(5, TRACES),
    "finetune: the traces": lambda: finetune("pocket/xs", TABLE),
    "evaluate": lambda: evaluate("pocket/xs", PROBLEMS, batch_size="8"),
    "evaluate: the run": lambda: evaluate(["pocket/xs"], PROBLEMS),
    "open_run": lambda: open_run(None),
    "mix": lambda: mix(TRACES, TRACES, "0.2"),
    "load_traces": lambda: load_traces("pocket/long", n=2.0),
    "load_problems": lambda: load_problems("pocket/easy", split=5),
    "load_student": lambda: load_student("pocket/xs", device="gpu"),
    "collect_traces": lambda: collect_traces("pocket/xs", PROBLEMS, sampling=Sampling()),
    "collect_traces: the problems": lambda: collect_traces("pocket/xs", ["pocket/easy"]),
    "drop_overlap": lambda: drop_overlap(TRACES, ["pocket/easy"]),
    "drop_overlap: of nothing": lambda: drop_overlap(TRACES, []),
    "pocket_mysteries": lambda: pocket_mysteries(5, "test", [9]),
    "first_error": lambda: first_error("What is 2?", "4", False),
    "grade": lambda: grade("4", NAN),
    "grade_all": lambda: grade_all(TABLE, ["1"]),
    "equal": lambda: equal("4", None),
    "final_answer": lambda: final_answer(None, "math"),
    "judge": lambda: judge(TABLE, "pocket/xs"),
    "judge_table": lambda: judge_table(TABLE),
    "Sampling": lambda: Sampling(top_p=0),
    "LoRA": lambda: LoRA(alpha=0),
    "Placement": lambda: Placement(gpus=True),
    "Problem": lambda: Problem("1", "q\0", "a", "", "", "math"),
    "TraceSet": lambda: TraceSet("pocket/long", answer_format="latex"),
    "Scale": lambda: replace(SMOKE, students="pocket/xs"),
    "Scale: a part": lambda: replace(SMOKE, long="pocket/long"),
    "Scale: a number": lambda: replace(SMOKE, n_seeds=1.5),
    "Arm": lambda: Arm("pocket/xs", "short", 0.0, None),
    "Arm: a part": lambda: Arm("pocket/xs", "short", 0.0, 0, "longg"),
    "gap_arms": lambda: gap_arms("smoke"),
    "control_arms": lambda: control_arms(None),
    "alpha_arms": lambda: alpha_arms(SMOKE, "pocket/xs", 0.2),
    "untouched_arms": lambda: untouched_arms(SMOKE, "pocket/xs"),
    "sweep": lambda: sweep(SMOKE, gap_arms(SMOKE)),
    "plan": lambda: plan("smoke"),
    "trace_set": lambda: trace_set("pocket/long", 5, 0),
    "get_scale": lambda: get_scale("smoke", NAN),
    "check_parameters": lambda: check_parameters({}, SCALE=str),
    "accuracy": lambda: stats.accuracy(ITEMS.assign(correct=5)),
    "accuracy_table": lambda: stats.accuracy_table(ITEMS, "student"),
    "gap_table": lambda: stats.gap_table(ITEMS, by_benchmark="yes"),
    "slope_table": lambda: stats.slope_table(ITEMS.assign(params=0)),
    "readable_gaps": lambda: stats.readable_gaps(TABLE),
    "gaps_by_student": lambda: stats.gaps_by_student(TABLE),
    "paper_table": lambda: stats.paper_table(None),
    "sampled_table": lambda: sampled_table(ITEMS, "student"),
    "save_table": lambda: figures.save_table(None, Path("."), "x"),
    "learnability_gap": lambda: figures.learnability_gap(TABLE, TABLE),
    "learnability_gap: the family": lambda: figures.learnability_gap(TABLE, TABLE, family="huge"),
    "mix_distillation": lambda: figures.mix_distillation(TABLE, TABLE),
    "error_shares": lambda: figures.error_shares(TABLE, TABLE),
    "by_size": lambda: figures.by_size(TABLE, "controls"),
    "trace_lengths": lambda: figures.trace_lengths(pd.DataFrame({"tokens": [5], "style": ["other"]})),
    "paper_gap": lambda: figures.paper_gap(None),
    "text_table": lambda: figures.text_table("x"),
    "folded": lambda: figures.folded("x", None),
    "folded's summary": lambda: figures.folded(None, TABLE),
    "redraw": lambda: redraw(None),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_bad_call_ends_at_the_door_in_one_sentence_of_ours(door, store):
    with pytest.raises(ValueError, match=r"^[^\n]{10,400}$") as caught:
        DOORS[door]()
    assert Path(caught.traceback[-1].path).is_relative_to(Path(arguments.__file__).parent)
    assert not store.exists()
