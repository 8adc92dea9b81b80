from random import Random

import pytest
import torch

from mixdistill.pocket import world
from mixdistill.pocket.pretrain import MAX_JUMP, MIXTURE, document, jumping_positions
from mixdistill.pocket.tokenizer import CONTEXT, build_tokenizer


def mysteries(n: int = 300) -> list[world.Mystery]:
    rng = Random(0)
    return [world.random_mystery(rng, 1 + i % 3) for i in range(n)]


def facts_hold(text: str) -> bool:
    """Is every fact `M a = b`, `M a is c`, `M a has d` of a text true, and every comparison right?"""
    tables = {"=": world.TABLES.product, "is": world.TABLES.colour, "has": world.TABLES.mark}
    words = text.split()
    for i, word in enumerate(words):
        if (
            word in tables
            and words[i - 2] in world.MACHINES
            and tables[word][words[i - 2], words[i - 1]] != words[i + 1]
        ):
            return False
        if word == "need" and (words[i - 1] == words[i + 1]) != (words[i + 2] == "ok"):
            return False
    return True


@pytest.mark.parametrize("style", world.STYLES)
def test_every_teacher_is_right_and_states_true_facts(style):
    rng = Random(1)
    for problem in mysteries():
        trace = world.TEACHERS[style](problem, rng)
        assert facts_hold(trace)
        assert trace.endswith(f"answer {problem.answer} .")


def test_only_the_hidden_machine_fits_the_clue():
    for problem in mysteries():
        assert [m for m in world.MACHINES if world.fits(problem, m)] == [problem.machine]


def test_short_traces_name_the_machine_at_once():
    for problem in mysteries():
        trace = world.short_trace(problem, Random(1))
        assert trace.split()[1] == problem.machine
        assert "wait" not in trace
        assert "check" not in trace


def test_long_traces_try_machines_in_a_circle_and_check_marks_exactly_where_the_colour_fits():
    rng = Random(1)
    for problem in mysteries():
        words = world.long_trace(problem, rng).split()
        tried = [words[i + 1] for i, word in enumerate(words) if word == "try"]
        start = world.MACHINES.index(tried[0])
        assert tried == [world.MACHINES[(start + i) % 8] for i in range(len(tried))]
        assert tried[-1] == problem.machine
        checked = [words[i + 1] for i, word in enumerate(words) if word == "check"]
        assert checked == [m for m in tried if world.TABLES.colour[m, problem.clue] == problem.colour]


def test_without_verification_the_first_machine_whose_colour_fits_is_taken():
    rng = Random(1)
    for problem in mysteries():
        trace = world.unverified_trace(problem, rng)
        assert "check" not in trace
        assert trace.count(" ok ") == 1


def test_the_control_differs_from_short_by_its_steps_only():
    for problem in mysteries():
        steps = world.forward(world.chain(problem.machine, problem.item, problem.level))
        assert world.short_trace(problem, Random(1)).replace(f"so {steps} .", "so") == world.direct_trace(
            problem, Random(1)
        )


def test_no_problem_is_in_two_splits_and_shares_are_as_said():
    splits = [world.split_of(problem.text) for problem in mysteries(3000)]
    assert splits.count("test") / 3000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("dev") / 3000 == pytest.approx(0.1, abs=0.02)


def test_the_cue_tells_as_much_as_stated():
    right = [problem.machine == world.TABLES.preferred[problem.item] for problem in mysteries(3000)]
    assert sum(right) / len(right) == pytest.approx(world.CUE, abs=0.03)


def test_the_tokenizer_knows_every_word_of_problems_traces_and_pretraining_text():
    tokenizer, rng = build_tokenizer(), Random(2)
    texts = [f"{p.text} {teacher(p, rng)}" for p in mysteries() for teacher in world.TEACHERS.values()]
    texts += [document(rng) for _ in range(500)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert max(len(text.split()) for text in texts) < CONTEXT


def test_pretraining_text_is_true_and_holds_no_search_no_test_problem_and_no_mark_in_a_problem():
    rng = Random(3)
    for text in (document(rng) for _ in range(3000)):
        assert text.count("try") + text.count("check") <= 1
        if "?" in text:
            assert world.split_of(text.partition(" : ")[0] + " :") == "train"
            assert "check" not in text
            assert "wait" not in text
        assert facts_hold(text)


def test_marks_are_rare_in_the_pretraining_text():
    rng = Random(4)
    checks = sum("check" in document(rng) for _ in range(3000))
    assert checks / 3000 == pytest.approx(MIXTURE["mark"], abs=0.015)


def test_positions_jump_only_behind_colons():
    rows = torch.tensor([[5, 9, 5, 5, 9, 5] * 10] * 4)
    steps = jumping_positions(rows, 9, torch.Generator().manual_seed(0)).diff(dim=1)
    at_colon = rows[:, 1:] == 9
    assert (steps[~at_colon] == 1).all()
    assert steps[at_colon].min() == 1
    assert 1 < steps[at_colon].max() <= 1 + MAX_JUMP
