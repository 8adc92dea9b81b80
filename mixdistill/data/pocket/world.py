"""The hidden machine: problems, and the teachers that solve them with short and with long chains of thought.

Six machines turn 16 items into one another (`i7 B = i3`), give each of 16 kinds one of three colours (`k4 B = red`) and
each of 512 numbers one of 32 marks (`26 B = m17`): facts that a student can only know by heart. A problem hides one
machine, shows one of its colours and one of its marks, and asks what it makes of an item:

    k4 ? red . 26 ? m17 . find twice ? i7 :

The machine can be *guessed* from the item, for which one is likelier than the others, or *found out*: the colour is a
quick test that several machines pass, the mark a sharp one. Students of the short teacher learn to guess. The long
teacher goes through the machines in a circle, compares colours, verifies what fits by its mark, and goes on where it
does not: verification needs knowledge of marks that answering does not.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random

SPLITS = ("train", "dev", "test")
LEVELS = (1, 2, 3)  # how often the hidden machine is used in the question
MACHINES = tuple("ABCDEF")
COLOURS = ("red", "green", "blue")
COUNTS = ("once", "twice", "thrice")
KINDS = tuple(f"k{n}" for n in range(16))
NUMBERS = tuple(str(n) for n in range(512))
MARKS = tuple(f"m{n}" for n in range(32))
ITEMS = tuple(f"i{n}" for n in range(16))

# By level: P(the hidden machine is the one that the item prefers), the others share the rest evenly; and how many
# machines, the hidden one among them, pass the colour test.
CUE = {1: 0.75, 2: 0.6, 3: 0.4}
SUSPECTS = {1: (2,), 2: (3,), 3: (4, 5)}
SHADES = ((4, 2, 0), (3, 2, 1), (3, 3, 0), (5, 1, 0))  # how many machines give a kind each colour, kind after kind
SPREAD = 10  # the most frequent mark is up to this many times as frequent in the pre-training text as the rarest


@dataclass(frozen=True)
class Tables:
    """What there is to know: `facts[machine, x]` for x an item, a kind or a number."""

    facts: dict[tuple[str, str], str]
    mark_weight: dict[tuple[str, str], float]  # frequency of a mark in the pre-training text
    preferred: dict[str, str]  # item -> machine: the cue of the problems


def build_tables() -> Tables:
    rng = Random("hidden machine, fifth version")
    facts: dict[tuple[str, str], str] = {}
    weight: dict[tuple[str, str], float] = {}
    for machine in MACHINES:
        facts |= {(machine, a): b for a, b in zip(ITEMS, rng.sample(ITEMS, len(ITEMS)), strict=True)}
        facts |= {(machine, a): b for a, b in zip(NUMBERS, rng.choices(MARKS, k=len(NUMBERS)), strict=True)}
        weight |= {(machine, a): math.exp(rng.uniform(0, math.log(SPREAD))) for a in NUMBERS}
    for kind, shades in zip(KINDS, cycle(SHADES)):
        machines = iter(rng.sample(MACHINES, len(MACHINES)))
        for colour, n in zip(rng.sample(COLOURS, len(COLOURS)), shades, strict=True):
            facts |= {(machine, kind): colour for machine in islice(machines, n)}
    preferred = dict(zip(rng.sample(ITEMS, len(ITEMS)), cycle(MACHINES)))
    return Tables(facts, weight, preferred)


TABLES = build_tables()
# Problems show the half of a machine's numbers whose marks are the rarest in the pre-training text.
RARE = {m: sorted(NUMBERS, key=lambda number: TABLES.mark_weight[m, number])[: len(NUMBERS) // 2] for m in MACHINES}
# Machines by kind and machine: those that give the kind the same colour.
ALIKE = {(m, k): [x for x in MACHINES if TABLES.facts[x, k] == TABLES.facts[m, k]] for m in MACHINES for k in KINDS}
# How many different problems there are, by split and level; the tests count them.
N_PROBLEMS = {
    "train": {1: 50_863, 2: 110_626, 3: 106_847},
    "dev": {1: 6_594, 2: 14_206, 3: 13_719},
    "test": {1: 6_399, 2: 14_224, 3: 13_562},
}


@dataclass(frozen=True)
class Mystery:
    """One problem: the hidden machine, the kind and number of its clues, and the item it is used on `level` times."""

    machine: str
    kind: str
    number: str
    item: str
    level: int

    @property
    def colour(self) -> str:
        return TABLES.facts[self.machine, self.kind]

    @property
    def mark(self) -> str:
        return TABLES.facts[self.machine, self.number]

    @property
    def answer(self) -> str:
        return chain(self.machine, self.item, self.level)[-1][2]

    @property
    def suspects(self) -> list[str]:
        """The machines that pass the colour test."""
        return ALIKE[self.machine, self.kind]

    @property
    def text(self) -> str:
        clues = f"{self.kind} ? {self.colour} . {self.number} ? {self.mark} ."
        return f"{clues} find {COUNTS[self.level - 1]} ? {self.item} :"


def random_mystery(rng: Random, level: int, split: str | None = None, cue: bool = True) -> Mystery:
    """Draw one problem of a level, of a split if one is named. Without `cue` any machine is as likely as any other, its
    number may be any, and any number of machines may pass the colour test."""
    item = rng.choice(ITEMS)
    likely = TABLES.preferred[item]
    others = [machine for machine in MACHINES if not cue or machine != likely]
    machine = likely if cue and rng.random() < CUE[level] else rng.choice(others)
    numbers = RARE[machine] if cue else NUMBERS
    while True:
        problem = Mystery(machine, rng.choice(KINDS), rng.choice(numbers), item, level)
        if cue and len(problem.suspects) not in SUSPECTS[level]:
            continue
        fitting = [m for m in problem.suspects if TABLES.facts[m, problem.number] == problem.mark]
        if fitting == [machine] and split in (None, split_of(problem.text)):
            return problem


def split_of(text: str) -> str:
    """The split that a problem belongs to, by a hash of its text: 10% dev, 10% test, and no problem in two splits."""
    return {0: "test", 1: "dev"}.get(hashlib.sha256(text.encode()).digest()[0] % 10, "train")


def lucky_start(problem: Mystery, rng: Random) -> int:
    """A start from which the first machine that passes the colour test is the right one."""
    found = f"so {problem.item} {problem.machine} "
    return rng.choice([n for n in range(len(MACHINES)) if found in search(problem, circle(n), verify=False)])


def named(problem: Mystery) -> str:
    """The hidden machine at once, and its colour."""
    return f"try {test(problem.machine, problem.kind, problem.colour)} . "


TEACHERS: dict[str, Callable[[Mystery, Random], str]] = {
    # The short teacher: the right machine at once, its colour, the steps, the answer.
    "short": lambda problem, rng: named(problem) + solution(problem, problem.machine),
    # The long teacher: from a random machine on it tests colours and, where they fit, marks, until both fit.
    "long": lambda problem, rng: search(problem, circle(rng.randrange(len(MACHINES))), verify=True),
    # Ablation: search by colours only, from a start where the first machine that fits is the right one.
    "unverified": lambda problem, rng: search(problem, circle(lucky_start(problem, rng)), verify=False),
    # Ablation: the long trace from a start as that of the unverified one, so that its check only ever confirms.
    "confirmed": lambda problem, rng: search(problem, circle(lucky_start(problem, rng)), verify=True),
    # Control: the long trace with the machines in a random order, in the place of a circle.
    "shuffled": lambda problem, rng: search(problem, rng.sample(MACHINES, len(MACHINES)), verify=True),
    # Negative control: the short trace in one coarse step, so that `short` against it differs by finer steps only.
    "direct": lambda problem, rng: f"{named(problem)}so answer {problem.answer} .",
}


def circle(start: int) -> tuple[str, ...]:
    """All machines, in a circle from number `start` on."""
    return MACHINES[start:] + MACHINES[:start]


def search(problem: Mystery, machines: Sequence[str], verify: bool) -> str:
    """Machines in this order: colour, then (with `verify`) mark, until one fits; its solution."""
    text = ""
    for machine in machines:
        text += f"try {test(machine, problem.kind, problem.colour)}"
        accepted = machine in problem.suspects
        if accepted and verify:
            text += f" check {test(machine, problem.number, problem.mark)}"
            accepted = machine == problem.machine
        if accepted:
            break
        text += f" . wait after {machine} "
    return f"{text} . {solution(problem, machine)}"


def solution(problem: Mystery, machine: str) -> str:
    return solved(chain(machine, problem.item, problem.level))


def solved(steps: list[tuple[str, str, str]]) -> str:
    """Steps with the number of those to come between them: `so i7 B = i3 once i3 B = i9 . answer i9 .`"""
    text = f"so {fact(*steps[0])}"
    for to_come, step in zip(reversed(COUNTS[: len(steps) - 1]), steps[1:], strict=True):
        text += f" {to_come} {fact(*step)}"
    return f"{text} . answer {steps[-1][2]} ."


def chain(machine: str, item: str, times: int) -> list[tuple[str, str, str]]:
    """The steps (machine, item, product) of a machine used `times` times, each time on what came out."""
    steps = []
    for _ in range(times):
        product = TABLES.facts[machine, item]
        steps.append((machine, item, product))
        item = product
    return steps


def fact(machine: str, x: str, found: str) -> str:
    return f"{x} {machine} = {found}"


def test(machine: str, x: str, needed: str) -> str:
    """What the machine gives, compared with what is needed: `k4 B = red need red ok`."""
    found = TABLES.facts[machine, x]
    return f"{fact(machine, x, found)} need {needed} {'ok' if found == needed else 'no'}"
