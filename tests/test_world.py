from random import Random

import pytest

from mixdistill.pocket import world
from mixdistill.pocket.pretrain import document
from mixdistill.pocket.tokenizer import CONTEXT, build_tokenizer


def mysteries(n: int = 300) -> list[world.Mystery]:
    rng = Random(0)
    return [world.random_mystery(rng, 1 + i % 3) for i in range(n)]


def values_hold(trace: str) -> bool:
    """Are all steps `a o b = v` of a trace right?"""
    words = trace.split()
    steps = [words[i - 4 : i + 1] for i in range(4, len(words)) if words[i - 1] == "="]
    return all(world.apply(int(a), o, int(b)) == int(v) for a, o, b, _, v in steps)


def test_division_undoes_multiplication():
    assert all(world.apply(world.apply(a, "*", b), "/", b) == a for a in range(31) for b in range(1, 31))


def test_only_the_true_operator_fits_the_clue():
    for problem in mysteries():
        other = "*" if problem.operator == "+" else "+"
        assert world.chain(world.swap(problem.clue, other))[-1][3] != problem.target


def test_short_traces_are_right_and_name_the_operator_at_once():
    for problem in mysteries():
        trace = world.short_trace(problem)
        assert values_hold(trace)
        assert trace.split()[1] == problem.operator
        assert trace.endswith(f"answer {problem.answer} .")


def test_long_traces_backtrack_exactly_where_plus_does_not_fit():
    rng = Random(1)
    for problem in mysteries():
        trace = world.long_trace(problem, rng)
        assert trace.startswith("try + :")
        assert ("wait alternatively try *" in trace) == (problem.operator == "*")
        assert trace.endswith(f"answer {problem.answer} .")


def test_a_slip_is_the_only_wrong_step_and_is_noticed():
    rng = Random(1)
    traces = [world.long_trace(problem, rng) for problem in mysteries() if problem.operator == "+"]
    slipped = [trace for trace in traces if "wait redo" in trace]
    assert 0.2 < len(slipped) / len(traces) < 0.4
    for trace in traces:
        before, _, after = trace.partition(" . wait redo : ")
        assert values_hold(after or before)
        assert values_hold(before) == (not after)
        assert not after or before.endswith("no")


def test_no_problem_is_in_two_splits_and_shares_are_as_said():
    splits = [world.split_of(problem.text) for problem in mysteries(3000)]
    assert splits.count("test") / 3000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("dev") / 3000 == pytest.approx(0.1, abs=0.02)


def test_the_cue_tells_as_much_as_stated():
    for operand, share in world.P_PLUS.items():
        drawn = [p.operator == "+" for p in mysteries(6000) if p.clue[1][0][1] == operand]
        assert sum(drawn) / len(drawn) == pytest.approx(share, abs=0.07)  # rejection shifts it a little


def test_the_tokenizer_knows_every_word_of_problems_traces_and_pretraining_text():
    tokenizer, rng = build_tokenizer(), Random(2)
    texts = [f"{p.text} {world.long_trace(p, rng)} {world.short_trace(p)}" for p in mysteries()]
    texts += [document(rng) for _ in range(500)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert max(len(text.split()) for text in texts) < CONTEXT


def test_pretraining_text_holds_no_long_trace_and_no_test_problem():
    rng = Random(3)
    for text in (document(rng) for _ in range(3000)):
        assert not ("?" in text and ("wait" in text or "check" in text))
        problem = text.partition(" : ")[0] + " :"
        if "?" in problem and "find" in problem:
            assert world.split_of(problem) == "train"
