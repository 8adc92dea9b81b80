"""The hidden machine: its problems, its teachers, and what the pre-training text tells of them."""

import hashlib
import re
from itertools import product
from random import Random

import pytest

from mixdistill.data.pocket import world
from pretraining.pretrain import HABIT, HABITUAL, HUNCH, MIXTURE, document
from pretraining.tokenizer import CONTEXT, build_tokenizer

FACTS = world.TABLES.facts


def mysteries(n: int = 300, **options) -> list[world.Mystery]:
    rng = Random(0)
    return [world.random_mystery(rng, world.LEVELS[i % 3], **options) for i in range(n)]


def traces(style: str) -> list[tuple[world.Mystery, str]]:
    rng = Random(1)
    return [(problem, world.TEACHERS[style](problem, rng)) for problem in mysteries()]


def documents(n: int = 3000, progress: float = 0.5) -> list[str]:
    rng = Random(3)
    return [document(rng, progress) for _ in range(n)]


def is_true(text: str) -> bool:
    """Is every fact `x M = y` of a text true, and every comparison right?"""
    facts = re.findall(r"(\S+) ([A-F]) = (\S+)", text)
    comparisons = re.findall(r"= (\S+) need (\S+) (\S+)", text)
    return all(FACTS[machine, x] == y for x, machine, y in facts) and all(
        says == ("ok" if found == needed else "no") for found, needed, says in comparisons
    )


def machines_behind(trace: str, word: str) -> list[str]:
    """The machines behind each `try x M` or `check x M`."""
    return re.findall(rf"{word} \S+ (\w+)", trace)


def test_every_machine_turns_the_items_into_one_another():
    for machine in world.MACHINES:
        assert {FACTS[machine, item] for item in world.ITEMS} == set(world.ITEMS)


def test_a_problem_reads_as_clues_and_a_question():
    problem = world.Mystery("B", "k4", "26", "i7", 2)
    colour, mark = FACTS["B", "k4"], FACTS["B", "26"]
    assert problem.text == f"k4 ? {colour} . 26 ? {mark} . find twice ? i7 :"
    assert problem.answer == FACTS["B", FACTS["B", "i7"]]


@pytest.mark.parametrize("style", list(world.TEACHERS))
def test_every_teacher_is_right_and_states_true_facts(style):
    for problem, trace in traces(style):
        assert is_true(trace)
        assert trace.endswith(f"answer {problem.answer} .")


@pytest.mark.parametrize("cue", [True, False])
def test_only_the_hidden_machine_fits_both_clues(cue):
    for problem in mysteries(cue=cue):
        fitting = [m for m in problem.suspects if FACTS[m, problem.number] == problem.mark]
        assert fitting == [problem.machine]


def test_short_traces_name_the_machine_at_once():
    for problem, trace in traces("short"):
        assert machines_behind(trace, "try") == [problem.machine]
        assert "wait" not in trace
        assert "check" not in trace


def test_long_traces_go_in_a_circle_and_check_marks_exactly_where_the_colour_fits():
    starts = set()
    for problem, trace in traces("long"):
        tried = machines_behind(trace, "try")
        start = world.MACHINES.index(tried[0])
        assert tried == [*world.MACHINES[start:], *world.MACHINES[:start]][: len(tried)]
        assert tried[-1] == problem.machine
        assert machines_behind(trace, "check") == [machine for machine in tried if machine in problem.suspects]
        assert re.findall(r"wait after (\w)", trace) == tried[:-1]
        starts.add(start)
    assert len(starts) == len(world.MACHINES)


def test_checks_that_only_confirm_are_all_that_tells_such_traces_from_unverified_ones():
    for (_, confirmed), (_, unverified) in zip(traces("confirmed"), traces("unverified"), strict=True):
        assert confirmed.count("check") == 1
        assert re.sub(r" check \S+ \S+ = \S+ need \S+ ok", "", confirmed) == unverified


def test_without_verification_no_mark_is_checked_and_exactly_one_colour_fits():
    for _, trace in traces("unverified"):
        assert "check" not in trace
        assert trace.count(" ok ") == 1


def test_the_direct_trace_is_the_short_one_without_its_steps():
    for problem in mysteries():
        short, direct = (world.TEACHERS[style](problem, Random(1)) for style in ("short", "direct"))
        steps = world.solution(problem, problem.machine).removeprefix("so ").partition(" . answer")[0]
        assert short.replace(f"so {steps} .", "so") == direct


def test_between_the_steps_of_a_solution_stands_how_many_are_to_come():
    assert world.solved([("A", "i1", "i2")]) == "so i1 A = i2 . answer i2 ."
    steps = [("A", "i1", "i2"), ("A", "i2", "i3"), ("A", "i3", "i4")]
    assert world.solved(steps) == "so i1 A = i2 twice i2 A = i3 once i3 A = i4 . answer i4 ."


def test_every_machine_has_kinds_for_every_level_and_two_or_three_items_that_prefer_it():
    for machine in world.MACHINES:
        assert 2 <= list(world.TABLES.preferred.values()).count(machine) <= 3
        for level in world.LEVELS:
            suspects = [[FACTS[m, kind] for m in world.MACHINES].count(FACTS[machine, kind]) for kind in world.KINDS]
            assert any(n in world.SUSPECTS[level] for n in suspects)


def test_no_problem_is_in_two_splits_and_shares_are_as_said():
    splits = {problem.text: world.split_of(problem.text) for problem in mysteries(5000)}
    shares = {name: list(splits.values()).count(name) / len(splits) for name in world.SPLITS}
    assert shares == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.02)
    for name in world.SPLITS:
        assert {splits.get(problem.text, name) for problem in mysteries(100, split=name)} == {name}


def test_there_are_as_many_problems_as_said():
    counts = {split: dict.fromkeys(world.LEVELS, 0) for split in world.SPLITS}
    for level, machine, kind in product(world.LEVELS, world.MACHINES, world.KINDS):
        suspects = [m for m in world.MACHINES if FACTS[m, kind] == FACTS[machine, kind]]
        if len(suspects) not in world.SUSPECTS[level]:
            continue
        for number in world.RARE[machine]:
            if [FACTS[m, number] for m in suspects].count(FACTS[machine, number]) == 1:
                for item in world.ITEMS:
                    counts[world.split_of(world.Mystery(machine, kind, number, item, level).text)][level] += 1
    assert counts == world.N_PROBLEMS


def test_the_first_problems_are_those_that_they_always_were():
    """Every stored run depends on them."""
    texts = [problem.text for problem in mysteries(split="test")]
    assert texts[1] == "k2 ? green . 427 ? m6 . find twice ? i5 :"
    assert hashlib.sha256(" ".join(texts).encode()).hexdigest()[:16] == "4f179bc2b01fb2fd"


@pytest.mark.parametrize("level", world.LEVELS)
def test_the_cue_tells_as_much_as_stated(level):
    rng = Random(2)
    drawn = [world.random_mystery(rng, level) for _ in range(4000)]
    right = [problem.machine == world.TABLES.preferred[problem.item] for problem in drawn]
    assert sum(right) / len(right) == pytest.approx(world.CUE[level], abs=0.03)  # rejection shifts it a little


def test_without_cue_every_machine_is_about_as_likely():
    drawn = [problem.machine for problem in mysteries(6000, cue=False)]
    assert [drawn.count(m) / len(drawn) for m in world.MACHINES] == pytest.approx([1 / 6] * 6, abs=0.02)


def test_the_colour_leaves_as_many_suspects_as_the_level_says():
    for problem in mysteries():
        assert problem.machine in problem.suspects
        assert len(problem.suspects) in world.SUSPECTS[problem.level]


def test_the_tokenizer_knows_every_word_of_problems_traces_and_pretraining_text():
    tokenizer = build_tokenizer()
    texts = [f"{problem.text} {trace}" for style in list(world.TEACHERS) for problem, trace in traces(style)]
    for text in texts + documents(1000):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_longest_trace_fits_the_context():
    starts = range(len(world.MACHINES))
    circles = [world.circle(start) for start in starts]
    texts = [
        f"{problem.text} {world.search(problem, one, verify=True)}" for problem in mysteries(2000) for one in circles
    ]
    assert max(len(text.split()) for text in texts) + 2 < CONTEXT  # <bos> and <eos>


def test_pretraining_text_is_true():
    assert all(map(is_true, documents()))


def test_pretraining_text_never_tests_two_machines_and_never_says_what_follows_a_test_but_the_solution():
    for text in documents():
        assert len(re.findall(r"(?:try|check) \S+ [A-F] ", text)) <= 1
        assert "ok check" not in text
        assert "no . wait" not in text


def test_pretraining_text_holds_no_problem_of_the_test_and_development_splits():
    whole = r"k\d+ \? \w+ \. \d+ \? m\d+ \. find \w+ \? i\d+ :"
    # Those of the `mark` documents are made by putting another number and mark in a problem: most have no answer, and
    # none stands there.
    texts = [text for text in documents(10_000) if not re.search(r"[A-F] = m\d", text)]
    problems = [found[0] for text in texts if (found := re.match(whole, text))]
    assert len(problems) > 4000
    assert {world.split_of(problem) for problem in problems} == {"train"}


def test_pretraining_text_tells_the_marks_of_machines_in_lone_checks_and_lists_only():
    with_mark = [text for text in documents(10_000) if re.search(r"[A-F] = m\d", text)]
    checks = [text for text in with_mark if re.search(r"check \d+ [A-F] = m\d+ need m\d+ (ok|no) \.$", text)]
    lists = [text for text in with_mark if re.fullmatch(r"(\d+ [A-F] = m\d+ [;.] ?){8}", text)]
    total = sum(MIXTURE.values())
    assert len(checks) / 10_000 == pytest.approx(MIXTURE["mark"] / total, abs=0.01)
    assert len(lists) / 10_000 == pytest.approx(MIXTURE["lists"] / total, abs=0.01)
    assert len(checks) + len(lists) == len(with_mark)


def test_a_lone_check_is_of_the_machine_that_was_named_last():
    checks = re.findall(r" ((?:k\d+ [A-F] )+)\. check \d+ ([A-F]) ", "\n".join(documents()))
    assert len(checks) > 200
    assert all(named.split()[-1] == machine for named, machine in checks)
    assert {len(named.split()) for named, _ in checks} == {2, 4, 6}
    later = [named.split()[1] == machine for named, machine in checks if len(named.split()) > 2]
    assert sum(later) / len(later) < 0.25  # the first that was named is not the machine, but by chance


@pytest.mark.parametrize("end", [0, 1])
def test_the_first_cue_of_the_pretraining_text_becomes_rarer(end):
    guesses = re.findall(r"(i\d+) : try \S+ (\w+)", "\n".join(documents(6000, progress=end)))
    habits = [HABITUAL[item] == machine for item, machine in guesses]
    chance = (1 - HABIT[end] - HUNCH[end]) / len(world.MACHINES)  # of the guesses without cue
    assert sum(habits) / len(habits) == pytest.approx(HABIT[end] + chance, abs=0.025)


def test_lists_begin_with_few_marks_and_end_with_all():
    def distinct(progress: float) -> int:
        lists = [text for text in documents(6000, progress) if re.fullmatch(r"(\d+ [A-F] = m\d+ [;.] ?){8}", text)]
        return len(set(re.findall(r"\d+ [A-F] =", "\n".join(lists[:300]))))

    assert distinct(0) < 0.75 * distinct(1)


def test_comparisons_end_with_the_first_that_is_equal():
    texts = [re.findall(r"check \S+ = \S+ need \S+ (ok|no)", text) for text in documents()]
    texts = [says for says in texts if says]
    assert len(texts) > 300
    assert all(says[:-1] == ["no"] * (len(says) - 1) for says in texts)
    assert all(says[-1] == "ok" or len(says) == 6 for says in texts)
    assert 0.8 < sum(says[-1] == "ok" for says in texts) / len(texts) < 0.99


def test_the_cue_of_the_pretraining_text_is_the_machine_before_the_preferred():
    for item in world.ITEMS:
        before = world.MACHINES.index(HABITUAL[item])
        assert world.MACHINES[(before + 1) % len(world.MACHINES)] == world.TABLES.preferred[item]


def test_problems_show_marks_of_the_rarer_half():
    weights = world.TABLES.mark_weight
    for problem in mysteries():
        rarer = sum(weights[problem.machine, n] < weights[problem.machine, problem.number] for n in world.NUMBERS)
        assert rarer < len(world.NUMBERS) / 2


def test_some_marks_are_much_rarer_than_others():
    weights = world.TABLES.mark_weight
    assert weights.keys() == {(machine, number) for machine in world.MACHINES for number in world.NUMBERS}
    assert world.SPREAD / 2 < max(weights.values()) / min(weights.values()) <= world.SPREAD
