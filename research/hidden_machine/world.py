"""The hidden machine: problems, and the two teachers that solve them with short and with long chains of thought.

Eight machines A to H. Every machine turns 32 items into one another (`B i7 = i3`), gives each of 64 inputs one of three colours
(`B 26 is red`) and one of 64 marks (`B 26 has m17`): tables of facts that a student can only know by heart. A problem hides one machine:

    26 ? is red has m17 . find twice ? i7 :

Which one it is can be *guessed* from the item (every item has a machine that is likelier than the others), or *found out*: the colour is a
quick test that many machines pass, the mark a sharp one. The short teacher names the machine and shows that the colour fits, so its students
learn to guess. The long teacher goes through the machines in a circle, compares colours, verifies what fits by its mark, and goes on where it does
not. Facts about marks are rare in the pre-training text: verification needs knowledge that answering does not.

Inputs, marks and items are different kinds of tokens, so that finding the right one in a long trace needs no exact distance.
"""

import hashlib
import math
from dataclasses import dataclass
from random import Random

SPLITS = ("train", "dev", "test")
LEVELS = (1, 2, 3)  # how often the hidden machine is used in the question

MACHINES = tuple("ABCDEFGH")
COLOURS = ("red", "green", "blue")
COUNTS = ("once", "twice", "thrice")
INPUTS = tuple(str(n) for n in range(64))
MARKS = tuple(f"m{n}" for n in range(64))
ITEMS = tuple(f"i{n}" for n in range(32))

CUE = 0.55  # P(the hidden machine is the one that the item prefers); the others share the rest evenly
SPREAD = 50  # the most frequent fact about a mark is up to this many times as frequent in the pre-training text as the rarest


@dataclass(frozen=True)
class Tables:
    """What there is to know. The first three are by (machine, item or input)."""

    product: dict[tuple[str, str], str]
    colour: dict[tuple[str, str], str]
    mark: dict[tuple[str, str], str]
    mark_weight: dict[tuple[str, str], float]  # frequency of a mark fact in the pre-training text
    preferred: dict[str, str]  # item -> machine: the cue of the problems
    habitual: dict[str, str]  # item -> machine: another cue, which the pre-training text follows


def build_tables() -> Tables:
    rng = Random("hidden machine")
    product, colour, mark, weight = {}, {}, {}, {}
    for machine in MACHINES:
        product |= {(machine, a): b for a, b in zip(ITEMS, rng.sample(ITEMS, len(ITEMS)), strict=True)}
        mark |= {(machine, a): b for a, b in zip(INPUTS, rng.sample(MARKS, len(MARKS)), strict=True)}
        colour |= {(machine, a): rng.choice(COLOURS) for a in INPUTS}
        weight |= {(machine, a): math.exp(rng.uniform(0, math.log(SPREAD))) for a in INPUTS}
    preferred, habitual = ({item: rng.choice(MACHINES) for item in ITEMS} for _ in range(2))
    return Tables(product, colour, mark, weight, preferred, habitual)


TABLES = build_tables()


@dataclass(frozen=True)
class Mystery:
    """One problem: the hidden machine, the clue's input, the question's item, and how often the machine is used on it."""

    machine: str
    clue: str
    item: str
    level: int

    @property
    def colour(self) -> str:
        return TABLES.colour[self.machine, self.clue]

    @property
    def mark(self) -> str:
        return TABLES.mark[self.machine, self.clue]

    @property
    def answer(self) -> str:
        return chain(self.machine, self.item, self.level)[-1][2]

    @property
    def text(self) -> str:
        return f"{self.clue} ? is {self.colour} has {self.mark} . find {COUNTS[self.level - 1]} ? {self.item} :"


def random_mystery(rng: Random, level: int, split: str | None = None, cue: float | None = CUE) -> Mystery:
    """Draw one problem of a level. With `split`, only problems that belong to that split.

    `cue` is the share of problems that hide the item's preferred machine; None hides any machine with the same probability.
    Rejected: clues that a second machine fits as well.
    """
    while True:
        item = rng.choice(ITEMS)
        likely = TABLES.preferred[item]
        if cue is None:
            machine = rng.choice(MACHINES)
        else:
            machine = likely if rng.random() < cue else rng.choice([m for m in MACHINES if m != likely])
        problem = Mystery(machine, rng.choice(INPUTS), item, level)
        if sum(fits(problem, m) for m in MACHINES) == 1 and split in (None, split_of(problem.text)):
            return problem


def fits(problem: Mystery, machine: str) -> bool:
    """Has the clue's input the colour and the mark of the clue under this machine?"""
    at = (machine, problem.clue)
    return (TABLES.colour[at], TABLES.mark[at]) == (problem.colour, problem.mark)


def split_of(text: str) -> str:
    """The split that a problem belongs to, by a hash of its text: 10% dev, 10% test, and no problem in two splits."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 10
    return {0: "test", 1: "dev"}.get(bucket, "train")


def short_trace(problem: Mystery, rng: Random) -> str:
    """The short teacher: the right machine at once, its colour, the steps, the answer."""
    return f"{colour_test(problem.machine, problem.clue, problem.colour)} . {solution(problem, problem.machine)}"


def long_trace(problem: Mystery, rng: Random) -> str:
    """The long teacher: from a random machine on, in a circle, tests colours and, where they fit, marks, until both fit."""
    return search(problem, rng.randrange(len(MACHINES)), verify=True)


def unverified_trace(problem: Mystery, rng: Random) -> str:
    """Ablation: search and backtracking by colours only. Kept are starts from which the first machine that fits is the right one."""
    starts = [i for i in range(len(MACHINES)) if f"try {problem.machine} " in search(problem, i, verify=False)]
    return search(problem, rng.choice(starts), verify=False)


def direct_trace(problem: Mystery, rng: Random) -> str:
    """Negative control: the short trace in one coarse step, so that `short` against it differs by finer steps only."""
    return f"{colour_test(problem.machine, problem.clue, problem.colour)} . so answer {problem.answer} ."


TEACHERS = {"short": short_trace, "long": long_trace, "unverified": unverified_trace, "direct": direct_trace}
STYLES = tuple(TEACHERS)


def search(problem: Mystery, start: int, verify: bool) -> str:
    """Machines in a circle from number `start` on: colour, then (with `verify`) mark, until one fits; then the solution by it."""
    text = ""
    for i in range(len(MACHINES)):
        machine = MACHINES[(start + i) % len(MACHINES)]
        text += colour_test(machine, problem.clue, problem.colour)
        accepted = TABLES.colour[machine, problem.clue] == problem.colour
        if accepted and verify:
            text += " " + mark_test(machine, problem.clue, problem.mark)
            accepted = machine == problem.machine
        if accepted:
            break
        text += f" . wait after {machine} "
    return f"{text} . {solution(problem, machine)}"


def solution(problem: Mystery, machine: str) -> str:
    steps = chain(machine, problem.item, problem.level)
    return f"so {forward(steps)} . answer {steps[-1][2]} ."


def chain(machine: str, item: str, times: int) -> list[tuple[str, str, str]]:
    """The steps (machine, item, product) of a machine used `times` times, each time on what came out."""
    steps = []
    for _ in range(times):
        steps.append((machine, item, TABLES.product[machine, item]))
        item = steps[-1][2]
    return steps


def forward(steps: list[tuple[str, str, str]]) -> str:
    return " ; ".join(f"{machine} {item} = {product}" for machine, item, product in steps)


def colour_test(machine: str, clue: str, needed: str) -> str:
    found = TABLES.colour[machine, clue]
    return f"try {machine} {clue} is {found} need {needed} {'ok' if found == needed else 'no'}"


def mark_test(machine: str, clue: str, needed: str) -> str:
    found = TABLES.mark[machine, clue]
    return f"check {machine} {clue} has {found} need {needed} {'ok' if found == needed else 'no'}"
