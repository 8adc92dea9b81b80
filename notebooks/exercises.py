"""Checks and solutions of the exercises: `%run -i` runs this file among a notebook's own variables, which it uses.

What is right is computed from the results at hand. The functions that do it are shown as part of the solution.
It is no module of the package: only the notebooks mean anything to it.
"""

import html
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
from IPython.display import HTML

from mixdistill.arguments import choice
from mixdistill.data.pocket.bases import base_facts
from mixdistill.results import stats
from mixdistill.study.scales import recipe_arm
from mixdistill.study.sweep import training_set

TOO_FEW = "this run has too few answers of the kind to tell what is right"
ELSEWHERE = "{}: an exercise of notebook {}, whose cells have to run first"
OTHER_WORLD = "(checks and solutions are of the pocket world only)"


class Exercise(NamedTuple):
    right: Callable[[], Any]  # computes the right answer, a word or a number, or a series whose largest is at it
    within: float  # how far a number may be off
    hint: str
    solution: str  # in words, with {} for what is right, and another for the largest number of a series

    def answer(self) -> tuple:
        """What is right, and the largest number of a series; None where this run has too few answers to tell."""
        found = self.right()
        if isinstance(found, pd.Series):
            return (found.idxmax(), found.max()) if found.max() > 0 else (None,)
        return (None if pd.isna(found) else found,)


def check(name: str, answer: object) -> None:
    """Say whether an answer is right. Raises ValueError for an unknown exercise."""
    exercise = EXERCISES[choice("exercise", name, EXERCISES)]
    if not scale.pocket:
        return print(f"{name}: {OTHER_WORLD}")
    try:
        right = exercise.answer()[0]
    except NameError:  # of another notebook's variables
        return print(ELSEWHERE.format(name, name[:2]))
    if right is None:
        said = TOO_FEW
    elif answer is None:
        said = "no answer yet"
    elif (given := read(answer, right)) is None:
        said = f"give {'a word' if isinstance(right, str) else 'a number'}"
    else:
        good = given == right.casefold() if isinstance(right, str) else abs(given - right) <= exercise.within
        said = "right" if good else f"not yet. Hint: {exercise.hint}"
    print(f"{name}: {said}")


def read(answer: object, right: object) -> str | float | None:
    """An answer as what is right is, a word or a number; None if it is neither."""
    if isinstance(right, str):
        return answer.strip().casefold().removeprefix("pocket/") if isinstance(answer, str) else None
    try:
        number = float(answer)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if pd.isna(number) else number


def solution(name: str) -> HTML:
    """The solution, folded: words, numbers and code. Raises ValueError for an unknown exercise."""
    exercise = EXERCISES[choice("exercise", name, EXERCISES)]
    if not scale.pocket:
        return HTML(OTHER_WORLD)
    try:
        found, code = exercise.answer(), inspect.getsource(exercise.right)
    except NameError:
        return HTML(ELSEWHERE.format(name, name[:2]))
    words = TOO_FEW if found == (None,) else exercise.solution.format(*found)
    folded = f"<p>{html.escape(words)}</p><pre>{html.escape(code)}</pre>"
    return HTML(f"<details><summary>Solution of {name}</summary>{folded}</details>")


def long_answers(student: str) -> pd.DataFrame:
    return graded[(graded["student"] == student) & (graded["recipe"] == "long")]


def share_of_long_tokens():
    n_tokens = pd.Series([len(text.split()) for text in train["response"]])
    is_long = pd.Series(train["role"]) == "hard"
    return n_tokens[is_long].sum() / n_tokens.sum()


def machines_tried():
    return pd.Series(long_traces["response"]).str.count("try ").mean()


def answer_of_the_first_problem():
    return long_traces[0]["response"].split()[-2]


def cost_of_length():
    first_tier = small[small["benchmark"] == scale.benchmarks[0]]
    many = first_tier["response"].str.count("try ") > 2
    return 100 * (first_tier[many]["correct"].mean() - first_tier[~many]["correct"].mean())


def times_as_wide():
    of_student = items[items["student"] == scale.students[:2][-1]]
    widths = []
    for part in (of_student, of_student[of_student["seed"] == 0]):
        gap = stats.gap(part[part["recipe"] == "long"], part[part["recipe"] == "short"])
        widths.append(gap.high - gap.low)
    return widths[0] / widths[1]


def matched_problems():
    short, mixed = (training_set(recipe_arm(student, name, 0), scale)["response"] for name in ("short", "mix_long"))
    n_short, n_mixed = (sum(len(text.split()) + 1 for text in texts) for texts in (short, mixed))  # with <eos>
    return len(short) * n_mixed / n_short


def best_share():
    of = curves[curves["student"] == scale.students[:2][-1]].set_index("alpha")["accuracy"]
    # In a live run this student may have the ends and one share only, which show no best one.
    return of if set(scale.alphas) <= set(of.index) else of * float("nan")


def tier_of_false_checks():
    answers = long_answers(scale.students[0])
    shares = pd.crosstab(answers["benchmark"], answers["error"], normalize="index")
    at_checks = shares.filter(["wrong mark", "false proof", "moved target"]).sum(axis=1)
    return at_checks.rename(lambda name: name.removeprefix("pocket/"))


def marks_and_accuracy():
    accuracy = long_answers(scale.students[0]).groupby("base")["correct"].mean()
    both = pd.DataFrame({"accuracy": accuracy, "rare": [base_facts(base)["rare"] for base in accuracy.index]})
    return both.corr(method="spearman").loc["accuracy", "rare"]


def other_error():
    errors = long_answers(scale.students[-1])["error"].value_counts(normalize=True)
    return errors.reindex(["missed mismatch", "false alarm", "lost operand", "endless"], fill_value=0)


EXERCISES = {
    "01.1": Exercise(
        share_of_long_tokens,
        0.03,
        "alpha * mean_long / (alpha * mean_long + (1 - alpha) * mean_short)",
        "{:.2f} of the tokens are long, more than the share of the problems. The paper's mixes have this too: they "
        "are balanced by problems, not by tokens.",
    ),
    "01.2": Exercise(
        machines_tried,
        0.1,
        'count "try " in long_traces["response"] and take the mean',
        "A long trace tries {:.2f} machines and refuses about one of them only for its mark. To follow that, a "
        "student must know marks, and it has seen some of them only a few times.",
    ),
    "01.3": Exercise(
        answer_of_the_first_problem,
        0,
        "the machine that has both the colour and the mark is a column of the table below the problem",
        "It is {}. The teachers' ways to it are short_traces[0] and long_traces[0].",
    ),
    "02.1": Exercise(
        cost_of_length,
        1,
        'of the first benchmark\'s rows of small, group "correct" by small["response"].str.count("try ") > 2',
        "{:+.0f} points: longer answers fail more often among problems of one tier too. That does not make length the "
        "cause: an answer becomes long where a machine is refused, and every check more is a mark more to recall.",
    ),
    "02.2": Exercise(
        times_as_wide,
        0.1,
        'stats.gap(long_items, short_items) has .low and .high; once with all seeds, once with items["seed"] == 0',
        "{:.1f} times. With one seed the interval covers the problems only: it says how sure we are about these two "
        "trained models, not about the recipes, and not about another base of the same size.",
    ),
    "03.1": Exercise(
        matched_problems,
        60,
        'how many times the tokens of training_set(recipe_arm(student, "short", 0), scale) has that of "mix_long"?',
        "About {:.0f} short problems. Only what the mix is above a student of so many can come from the long traces; "
        "notebook 07 has trained such students, and at pocket/xs they are not told from the mix.",
    ),
    "03.2": Exercise(
        best_share,
        0,
        "choose that student with the slider, or look at its rows in curves",
        "The highest point is at alpha {:g}, {:.1%}. Where its neighbours' intervals overlap with its own, the "
        "place of the top is not sure; but all shares have the same seeds and problems, so differences "
        "are surer than bars look.",
    ),
    "04.1": Exercise(
        tier_of_false_checks,
        0,
        'of = graded[(graded["student"] == scale.students[0]) & (graded["recipe"] == "long")]; pd.crosstab('
        'of["benchmark"], of["error"], normalize="index"); "wrong mark", "false proof", "moved target" are at a check',
        "The {} tier, {:.0%} of its long answers. The harder a tier, the more machines pass the colour test, and the "
        "more marks an answer recalls.",
    ),
    "04.2": Exercise(
        marks_and_accuracy,
        0.05,
        'group the long answers of the smallest student by "base"; a table of both: table.corr(method="spearman")',
        "{:+.2f}. Above 0 would agree with the explanation, below 0 these bases do not bear it out; but a handful of "
        "them decides neither, and this probe asks for marks outside of long traces: notebook 10 asks inside them, of "
        "more bases. Across sizes it says less still: everything else differs too.",
    ),
    "04.3": Exercise(
        other_error,
        0,
        "a check is recall, and a comparison, and the right thing to do afterwards: which of ERRORS are no recall?",
        "{}, in {:.1%} of its long answers. Comparing (missed mismatch, false alarm), carrying a word over a distance "
        "(lost operand) and searching (endless) are no matter of marks. Were one of them frequent where marks "
        "are known, the explanation would be too narrow; the table of shares says whether it is.",
    ),
}
