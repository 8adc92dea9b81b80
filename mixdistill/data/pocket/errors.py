"""What goes wrong first in an answer of the pocket world, read step by step: the mechanism behind an accuracy."""

import re

from mixdistill import arguments
from mixdistill.data.pocket import world

# In the order of the text; `right`, `wrong guess`, `gave up` and `endless` hold no false step.
ERRORS = {
    "right": "the answer is right",
    "wrong guess": "no step is false, but the machine is not the hidden one (a short trace can only guess)",
    "gave up": "no step is false, and it stops without an answer, as the pre-training text does at a wrong colour",
    "wrong colour": "a colour is recalled wrongly",
    "wrong mark": "a mark is recalled wrongly, as another than the needed one: its machine is refused, rightly or not",
    "false proof": "the needed mark is written down as found, which is false: the check confirms a wrong machine",
    "moved target": "the found mark is written down as needed, in the place of the problem's, so that they agree",
    "missed mismatch": "what it found differs from what is needed, and it says ok",
    "false alarm": "what it found is what is needed, and it says no",
    "lost operand": "a kind, number, colour, mark or item is not the problem's, or a check not of the tried machine",
    "wrong step": "a step of the solution is false, missing, or not by the machine that was found",
    "endless": "no step is false, but it is cut, or stops, before an answer",
}
STEP = re.compile(
    r"(?P<what>try|check) (?P<x>\S+) (?P<tested>\w+) = (?P<found>\S+) need (?P<needed>\S+) (?P<says>ok|no)"
    r"|(?P<item>\S+) (?P<machine>\w+) = (?P<product>\S+)"
)
UNFINISHED = re.compile(r"(?:try|check) \S+ \w+ =(?: \S+(?: need(?: \S+)?)?)?$")  # a step that the limit has cut
QUESTION = re.compile(r"k\d+ \? \w+ \. \d+ \? m\d+ \. find \w+ \? i\d+ :")


def first_error(question: str, response: str, correct: bool) -> str:
    """The first false step of an answer, a key of `ERRORS`. Raises ValueError for a question of another world."""
    if not QUESTION.fullmatch(arguments.text("question", question)):
        raise ValueError(f"question is {arguments.shown(question)}: it is a problem of the pocket world")
    response = UNFINISHED.sub("", arguments.text("response", response, empty=True))
    if correct:
        return "right"
    kind, _, colour, _, number, _, mark, _, _, count, _, item, _ = question.split()
    clue = {"try": (kind, colour, "wrong colour"), "check": (number, mark, "wrong mark")}
    machine, accepted, n_steps = "", False, 0
    for step in STEP.finditer(response):
        if step["what"]:
            x, needed, wrong = clue[step["what"]]
            if (step["x"], step["needed"]) != (x, needed):
                confirmed = step["what"] == "check" and step["x"] == x and step["found"] == step["needed"]
                return "moved target" if confirmed else "lost operand"
            if step["what"] == "check" and step["tested"] != machine:
                return "lost operand"
            if step["found"] != world.TABLES.facts.get((step["tested"], x)):
                return "false proof" if step["what"] == "check" and step["found"] == needed else wrong
            machine, accepted = step["tested"], step["found"] == needed
            if accepted != (step["says"] == "ok"):
                return "false alarm" if accepted else "missed mismatch"
        elif step["item"] != item:
            return "wrong step" if n_steps else "lost operand"
        elif not accepted or step["machine"] != machine or step["product"] != world.TABLES.facts.get((machine, item)):
            return "wrong step"
        else:
            item, n_steps = step["product"], n_steps + 1
    if not n_steps:
        ended = "gave up" if response.endswith(" no .") else "endless"
        return "wrong step" if " answer " in response else ended
    answer, n_needed = response.partition(" answer ")[2].split(" ")[0], world.COUNTS.index(count) + 1
    if not answer and n_steps <= n_needed and not response.endswith(" ."):
        return "endless"
    return "wrong guess" if n_steps == n_needed and answer == item else "wrong step"
