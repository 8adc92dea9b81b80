"""The mystery operator: problems, and the two teachers that solve them with short and with long chains of thought.

A clue hides an operator, `+` or `*`, and the question uses the same one. All arithmetic is modulo 31, evaluated from left
to right, and every number from 0 to 30 is one token:

    26 ? 7 * 3 = 6 . find 7 ? 8 + 3 :

Which operator hides there can be *guessed* from the operand behind the first `?` (`P_PLUS`), never with certainty, or *found
out* by trying. The short teacher names the right operator at once, so its students learn to guess. The long teacher tries,
compares, backtracks, checks its steps backwards, and repairs its slips.
"""

import hashlib
from dataclasses import dataclass
from random import Random

P = 31
STYLES = ("short", "long")
SPLITS = ("train", "dev", "test")
LEVELS = (1, 2, 3)  # operators in the question
SLIP_RATE = 0.3  # of the long traces that did not backtrack: one wrong step in the question's chain, noticed and redone

# P(hidden operator is +), by the operand that follows `?` in the clue. Whoever guesses the likelier one is right in 77.5%.
P_PLUS = {2: 0.9, 3: 0.9, 4: 0.75, 5: 0.75, 6: 0.35, 7: 0.35, 8: 0.2, 9: 0.2}

Step = tuple[int, str, int, int]  # (left, operator, right, value): 26 + 7 = 2


def apply(left: int, operator: str, right: int) -> int:
    """`left operator right` modulo 31; `/` multiplies by the inverse, which exists for every operand but 0."""
    if operator == "+":
        return (left + right) % P
    if operator == "-":
        return (left - right) % P
    if operator == "*":
        return left * right % P
    return left * pow(right, -1, P) % P


INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


@dataclass(frozen=True)
class Mystery:
    """One problem: the clue `start ? operands[0] ops[1] operands[1] ... = target`, and a question of the same form.

    `clue` and `question` are (start, ((operator, operand), ...)); the first operator is the hidden one, `?` in the text.
    """

    clue: tuple[int, tuple[tuple[str, int], ...]]
    question: tuple[int, tuple[tuple[str, int], ...]]

    @property
    def operator(self) -> str:
        return self.clue[1][0][0]

    @property
    def target(self) -> int:
        return chain(self.clue)[-1][3]

    @property
    def answer(self) -> int:
        return chain(self.question)[-1][3]

    @property
    def level(self) -> int:
        return len(self.question[1])

    @property
    def text(self) -> str:
        return f"{expression(self.clue, hide=True)} = {self.target} . find {expression(self.question, hide=True)} :"


def chain(expr) -> list[Step]:
    """The steps that evaluate an expression from left to right."""
    value, steps = expr[0], []
    for operator, operand in expr[1]:
        result = apply(value, operator, operand)
        steps.append((value, operator, operand, result))
        value = result
    return steps


def expression(expr, hide: bool = False) -> str:
    start, terms = expr
    shown = [("?" if hide and i == 0 else operator, operand) for i, (operator, operand) in enumerate(terms)]
    return f"{start} " + " ".join(f"{operator} {operand}" for operator, operand in shown)


def swap(expr, operator: str):
    """The same expression with another first operator."""
    start, terms = expr
    return start, ((operator, terms[0][1]), *terms[1:])


def random_expression(rng: Random, length: int, first: str | None = None):
    terms = [(rng.choice("+*"), rng.randint(2, 9)) for _ in range(length)]
    if first is not None:
        terms[0] = (first, terms[0][1])
    return rng.randint(1, 30), tuple(terms)


def random_mystery(rng: Random, level: int, split: str | None = None) -> Mystery:
    """Draw one problem whose question has `level` operators. With `split`, only problems that belong to that split.

    Rejected: problems with a value 0 anywhere, and those whose clue or answer is the same under both operators.
    """
    while True:
        operand = rng.randint(2, 9)
        operator = "+" if rng.random() < P_PLUS[operand] else "*"
        clue = (rng.randint(1, 30), ((operator, operand), (rng.choice("+*"), rng.randint(2, 9))))
        problem = Mystery(clue, random_expression(rng, level, operator))
        other = "*" if operator == "+" else "+"
        chains = [chain(expr) for e in (problem.clue, problem.question) for expr in (e, swap(e, other))]
        if any(step[3] == 0 for steps in chains for step in steps):
            continue
        if chains[0][-1][3] == chains[1][-1][3] or chains[2][-1][3] == chains[3][-1][3]:
            continue
        if split is None or split_of(problem.text) == split:
            return problem


def split_of(text: str) -> str:
    """The split that a problem belongs to, by a hash of its text: 10% dev, 10% test, and no problem in two splits."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 10
    return {0: "test", 1: "dev"}.get(bucket, "train")


def short_trace(problem: Mystery) -> str:
    """The short teacher: the right operator at once, one forward chain, the answer."""
    return (
        f"try {problem.operator} : {forward(chain(problem.clue))} ; need {problem.target} ok . "
        f"so {forward(chain(problem.question))} . answer {problem.answer} ."
    )


def long_trace(problem: Mystery, rng: Random) -> str:
    """The long teacher: tries `+` first, compares, backtracks; what fits at once it checks backwards, slips included."""
    clue, target = problem.clue, problem.target
    question = chain(problem.question)
    if problem.operator == "*":
        return (
            f"try + : {forward(chain(swap(clue, '+')))} ; need {target} no . "
            f"wait alternatively try * : {forward(chain(clue))} ; need {target} ok . "
            f"so {forward(question)} . answer {problem.answer} ."
        )
    text = f"try + : {forward(chain(clue))} ; need {target} ok . check {backward(chain(clue))} . so "
    if rng.random() < SLIP_RATE:
        wrong = slip(question, rng)
        text += f"{forward(wrong)} . hmm check {backward(wrong)} . wait redo : "
    return text + f"{forward(question)} . hmm check {backward(question)} . answer {problem.answer} ."


def forward(steps: list[Step]) -> str:
    return " ; ".join(f"{left} {operator} {right} = {value}" for left, operator, right, value in steps)


def backward(steps: list[Step]) -> str:
    """Undo the steps from the last to the first; stops at the first that does not lead back (`no`)."""
    checks = []
    for left, operator, right, value in reversed(steps):
        undone = apply(value, INVERSE[operator], right)
        checks.append(f"{value} {INVERSE[operator]} {right} = {undone} {'ok' if undone == left else 'no'}")
        if undone != left:
            break
    return " ; ".join(checks)


def slip(steps: list[Step], rng: Random) -> list[Step]:
    """The same chain with one wrong value, carried on from there."""
    at = rng.randrange(len(steps))
    wrong, value = [], steps[0][0]
    for i, (_, operator, right, _) in enumerate(steps):
        result = apply(value, operator, right)
        if i == at:
            result = rng.choice([v for v in range(1, P) if v != result])
        wrong.append((value, operator, right, result))
        value = result
    return wrong
