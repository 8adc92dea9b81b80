"""What goes wrong first in an answer of the pocket world."""

from random import Random

import pytest

from mixdistill.data.pocket import world
from mixdistill.data.pocket.errors import ERRORS, first_error

FACTS = world.TABLES.facts
DRAWN = Random(0)
PROBLEM = next(  # three suspects, and three different items from the question to the answer
    problem
    for problem in (world.random_mystery(DRAWN, 2) for _ in range(100))
    if len({x for _, *step in world.chain(problem.machine, problem.item, 2) for x in step}) == 3
)
HIDDEN, KIND, NUMBER = PROBLEM.machine, PROBLEM.kind, PROBLEM.number
REJECTED = next(machine for machine in world.MACHINES if machine not in PROBLEM.suspects)
OTHER = next(machine for machine in PROBLEM.suspects if machine != HIDDEN)
CIRCLE = world.circle(world.MACHINES.index(OTHER))
ANSWER = world.search(PROBLEM, CIRCLE, verify=True)  # refuses OTHER by its mark, comes to HIDDEN
REFUSED, CHECKED = (world.test(machine, NUMBER, PROBLEM.mark) for machine in (OTHER, HIDDEN))
OTHERS_MARK = FACTS[OTHER, NUMBER]
WRONG_MARK = next(mark for mark in world.MARKS if mark not in (PROBLEM.mark, OTHERS_MARK))
WRONG_COLOUR = next(colour for colour in world.COLOURS if colour != PROBLEM.colour)
FIRST, SECOND = (f"{item} {HIDDEN} = {product}" for _, item, product in world.chain(HIDDEN, PROBLEM.item, 2))
WRONG_ITEM = next(item for item in world.ITEMS if item not in f"{FIRST} {SECOND}".split())


def said(old: str, new: str) -> str:
    """The long answer with one phrase said otherwise."""
    assert ANSWER.count(old) == 1
    return ANSWER.replace(old, new)


GUESS = f"try {world.test(OTHER, KIND, PROBLEM.colour)} . {world.solution(PROBLEM, OTHER)}"

ANSWERS = [
    *(("endless", ANSWER[: ANSWER.index(end) + len(end)]) for end in (f"{CHECKED.split(' need')[0]}", f"so {FIRST}")),
    *(
        ("endless", f"{ANSWER[: ANSWER.index(CHECKED)]}{part}")
        for part in (CHECKED.partition(" need")[0], CHECKED.rsplit(" ", 2)[0])
    ),
    ("wrong guess", GUESS),
    ("gave up", f"try {world.test(REJECTED, KIND, PROBLEM.colour)} ."),
    ("wrong colour", said(f"{KIND} {OTHER} = {PROBLEM.colour}", f"{KIND} {OTHER} = {WRONG_COLOUR}")),
    ("wrong mark", said(CHECKED, f"{NUMBER} {HIDDEN} = {WRONG_MARK} need {PROBLEM.mark} no")),
    ("false proof", said(REFUSED, f"{NUMBER} {OTHER} = {PROBLEM.mark} need {PROBLEM.mark} ok")),
    ("moved target", said(REFUSED, f"{NUMBER} {OTHER} = {OTHERS_MARK} need {OTHERS_MARK} ok")),
    ("missed mismatch", said(REFUSED, REFUSED.removesuffix("no") + "ok")),
    ("false alarm", said(CHECKED, CHECKED.removesuffix("ok") + "no")),
    ("lost operand", said(REFUSED, REFUSED.replace(PROBLEM.mark, WRONG_MARK))),
    ("lost operand", said(REFUSED, world.test(REJECTED, NUMBER, PROBLEM.mark))),  # not the machine that was tried
    ("lost operand", said(f"so {PROBLEM.item}", f"so {WRONG_ITEM}")),
    ("wrong step", said(FIRST, f"{PROBLEM.item} {HIDDEN} = {WRONG_ITEM}")),
    ("wrong step", said(SECOND, f"{SECOND.split()[0]} {HIDDEN} = {WRONG_ITEM}")),
    ("wrong step", said(f" once {SECOND} . answer {PROBLEM.answer}", f" . answer {FIRST.split()[-1]}")),  # too few
    ("wrong step", said(f"answer {PROBLEM.answer}", f"answer {WRONG_ITEM}")),
    ("wrong step", ANSWER.partition("so ")[0] + world.solution(PROBLEM, OTHER)),  # by a machine that was refused
    ("endless", ANSWER.partition(" . so ")[0]),
    ("endless", ANSWER.partition(" check ")[0]),
]


@pytest.mark.parametrize(("error", "response"), ANSWERS)
def test_the_first_false_step_is_named(error, response):
    assert first_error(PROBLEM.text, response, correct=False) == error


def test_every_error_is_reachable():
    assert {error for error, _ in ANSWERS} | {"right"} == set(ERRORS)


def test_of_two_errors_the_first_counts():
    both = said(FIRST, f"{PROBLEM.item} {HIDDEN} = {WRONG_ITEM}").replace(CHECKED, CHECKED.removesuffix("ok") + "no")
    assert first_error(PROBLEM.text, both, correct=False) == "false alarm"


@pytest.mark.parametrize("style", ["short", "long", "unverified"])
def test_a_teachers_trace_holds_no_false_step(style):
    rng = Random(1)
    for level in world.LEVELS * 20:
        problem = world.random_mystery(rng, level)
        trace = world.TEACHERS[style](problem, rng)
        assert first_error(problem.text, trace, correct=True) == "right"
        assert first_error(problem.text, trace, correct=False) == "wrong guess"  # all that is left without a false step
