"""What goes wrong first in an answer of the pocket world, read step by step: the mechanism behind an accuracy."""

import re

from mixdistill.pocket import world

# In the order of the text; `right` and `wrong guess` hold no false step.
ERRORS = {
    "right": "the answer is right",
    "wrong guess": "no step is false, but the machine is not the hidden one (all that short traces can do)",
    "wrong colour": "a colour is recalled wrongly",
    "wrong mark": "a mark is recalled wrongly: knowledge that only verification needs",
    "missed mismatch": "what it found differs from what is needed, and it says ok",
    "false alarm": "what it found is what is needed, and it says no",
    "lost operand": "the clue's input, colour or mark, or the question's item, is not the problem's",
    "wrong step": "a step of the solution is false",
    "endless": "no step is false, but it never comes to an answer",
}
STEP = re.compile(
    r"try (?P<machine>\w+) (?P<clue>\S+) is (?P<colour>\S+) need (?P<colour_needed>\S+) (?P<colour_says>ok|no)"
    r"|check (?P<checked>\w+) (?P<input>\S+) has (?P<mark>\S+) need (?P<mark_needed>\S+) (?P<mark_says>ok|no)"
    r"|(?P<with>\w+) (?P<item>\S+) = (?P<product>\S+)"
)


def first_error(question: str, response: str, correct: bool) -> str:
    """The first false step of an answer, a key of `ERRORS`."""
    if correct:
        return "right"
    clue, _, _, colour, _, mark, *_, item, _ = question.split()
    solving = False
    for step in STEP.finditer(response):
        if step["machine"]:
            if (step["clue"], step["colour_needed"]) != (clue, colour):
                return "lost operand"
            if step["colour"] != world.TABLES.colour.get((step["machine"], clue)):
                return "wrong colour"
            found = step["colour"] == step["colour_needed"], step["colour_says"] == "ok"
        elif step["checked"]:
            if (step["input"], step["mark_needed"]) != (clue, mark):
                return "lost operand"
            if step["mark"] != world.TABLES.mark.get((step["checked"], clue)):
                return "wrong mark"
            found = step["mark"] == step["mark_needed"], step["mark_says"] == "ok"
        else:
            if not solving and step["item"] != item:
                return "lost operand"
            if step["product"] != world.TABLES.product.get((step["with"], step["item"])):
                return "wrong step"
            solving, found = True, (True, True)
        if found != (True, True) and found != (False, False):
            return "missed mismatch" if found[1] else "false alarm"
    return "wrong guess" if solving else "endless"
