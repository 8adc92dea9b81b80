"""How long 5,000 realistic answers take to grade: golds of MATH-500 and GSM8K, set otherwise or with a wrong digit.

MIXDISTILL_DATA=../shared/benchmarks python benchmarks/grading.py
"""

import os
from random import Random
from time import perf_counter

from mixdistill import grade_all, load_problems

N = 5000


def main() -> None:
    random = Random(0)
    for name, answer_format, n in (("math500", "math", N // 2), ("gsm8k", "gsm8k", N // 2)):
        golds = [problem.answer for problem in load_problems(name)]
        golds = random.choices(golds, k=n)
        responses = [f"We compute. The answer is $\\boxed{{{written(gold, random)}}}$." for gold in golds]
        started = perf_counter()
        grades = grade_all(responses, golds, answer_format)
        seconds = perf_counter() - started
        right = sum(grade.correct for grade in grades)
        print(f"{name}: {n} answers, {right} right, {seconds:.1f} s on {os.cpu_count()} processors")


def written(gold: str, random: Random) -> str:
    """The gold answer, half of the time set otherwise and half of the time with one digit changed."""
    digits = [i for i, char in enumerate(gold) if char.isdigit()]
    if digits and random.random() < 0.5:
        at = random.choice(digits)
        return gold[:at] + random.choice("0123456789") + gold[at + 1 :]
    return gold.replace("\\frac", "\\dfrac").replace("+", " + ").replace("(", "\\left(").replace(")", "\\right)")


if __name__ == "__main__":
    main()
