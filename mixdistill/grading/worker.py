"""Do two LaTeX expressions mean the same? A process of its own, with limits, that `grade` starts and asks.

`python math_worker.py` reads one JSON line a question, `{"question": "value", "gold": ..., "answer": ..., "seconds": 7}`, and
writes one a verdict: `equal`, `different`, `unparsable` or `limit`. It imports nothing of the package: no torch.

Math-Verify's parser reads (`latex2sympy2_extended`); its `verify` does not decide, because it compares with an absolute tolerance
and calls 2^{-99} and 2^{-98} equal (huggingface/Math-Verify issue 14). Two expressions are the same here if their values agree
to 60 digits and more, relative to their size, at integer, fractional and negative values of their variables.
"""

import json
import re
import resource
import signal
import sys
from contextlib import suppress
from functools import lru_cache, reduce

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

MEMORY = 2 << 30  # bytes
MAX_DIGITS = 5000
# At integers alone (-1)^{2n} is 1, off the integers alone floor is ceiling less one, on positive numbers alone |x| is x.
POINTS = [
    [sympy.Integer(p) for p in (7, 11, 13, 17, 19, 23, 29)],
    [sympy.Integer(p) for p in (4, 3, 9, 8, 25, 6, 10)],
    [sympy.Rational(p, 7) for p in (17, 31, 5, 23, 40, 9, 11)],
    [sympy.Rational(p, 11) for p in (3, 2, 25, 8, 1, 49, 6)],
    [sympy.Rational(-p, 13) for p in (30, 7, 4, 22, 51, 10, 17)],
    [sympy.Integer(p) for p in (-5, -2, -7, -3, -4, -9, -6)],
]

STEPS = (sympy.floor, sympy.ceiling, sympy.Max, sympy.Min)
FAR = [
    [sympy.Integer(p) for p in (1009, 757, 2003, 499, 1511, 907, 331)],
    [sympy.Integer(10**6 * p + 1) for p in (7, 3, 9, 5, 8, 2, 4)],
]


class Parser(_Latex2Sympy):
    """The parser without its mixed numbers: to it 5(3) is 8, whatever its configuration says (1.11.0)."""

    def convert_postfix_list(self, arr, i=0):
        factors = [self.convert_postfix(factor) for factor in arr[i:]]
        if not all(isinstance(factor, sympy.Expr) for factor in factors):
            raise Unreadable("a derivative or a matrix")
        return reduce(self.mul_flat, factors)


class Unreadable(Exception):
    """An expression that is no number or function of its variables, or one too large to compare."""


def main() -> None:
    with suppress(ValueError, OSError):  # macOS has no such limit; the time limits hold there too
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the system ends the process, whatever sympy is busy with
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook keeps its worker
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, task["seconds"] / 2)
        signal.setitimer(signal.ITIMER_REAL, task["seconds"])
        verdict = decide(task["question"], task["gold"], task["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), flush=True)


def decide(question: str, gold: str, answer: str) -> str:
    try:
        left, right = read(gold), read(answer)
        same = (
            same_value(left, right) if question == "value" else same_up_to_factor(left, right, question == "inequality")
        )
        return "equal" if same else "different"
    except MemoryError:
        return "limit"
    except Exception:  # antlr, latex2sympy and sympy raise all kinds on odd input
        return "unparsable"


@lru_cache(maxsize=1000)
def read(latex: str) -> sympy.Expr:
    """The expression, exact: decimals become fractions, `i` the imaginary unit. Raises on anything else."""
    expr = Parser(config=ConversionConfig(lowercase_symbols=False)).parse(prepared(latex))  # by default A is a
    if not isinstance(expr, sympy.Expr):
        raise Unreadable(f"{latex!r} is a {type(expr).__name__}")
    if any(power.base.is_zero and power.exp.is_zero for power in expr.atoms(sympy.Pow)):
        raise Unreadable("0^0")
    if expr.has(sympy.Sum, sympy.Product) and any("_" in symbol.name for symbol in expr.free_symbols):
        raise Unreadable("a sum over indexed variables, which the parser takes for constants")
    expr = expr.subs(sympy.Symbol("i"), sympy.I).doit()
    odd = (sympy.Float, sympy.Derivative, sympy.Integral, sympy.Limit, sympy.core.function.AppliedUndef)
    if expr.has(*odd) or expr.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise Unreadable(f"{latex!r} is {expr}")
    return expr


def prepared(latex: str) -> str:
    """LaTeX as the parser needs it; where it would guess, say it, or raise."""
    text = re.sub(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|exp|pi)(?![A-Za-z])", r"\\\1 ", latex)
    text = re.sub(r"(?<![\\A-Za-z])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = text.replace("**", "^").replace("*", r"\cdot ")
    if re.search(r"\\sqrt ?\d\d|\\frac ?\d ?\d\d", text):
        raise Unreadable("TeX takes one digit, the writer may have meant more")
    text = re.sub(r"\\sqrt ?(\d|[a-z])", r"\\sqrt{\1}", text)
    argument = r"\s*(?:\{([^{}]*)\}|([\dA-Za-z]))"
    text = re.sub(rf"\\frac{argument}(?=\s*[\dA-Za-z])\s*(\w)", lambda m: rf"\frac{{{m[1] or m[2]}}}{{{m[3]}}}", text)
    text = re.sub(r"\\frac\s*([\dA-Za-z])\s*(?=\{)", r"\\frac{\1}", text)
    text = re.sub(r"\^ ?(\\(?:frac ?\{[^{}]*\}|sqrt ?)\{[^{}]*\}|\\[a-z]+)", r"^{\1}", text)
    if re.search(r"(?<![\w}])[fgh] ?\(", text):
        raise Unreadable("an unknown function")
    factor = r"(?:\d+|[A-Za-z]|\\sqrt ?\{[^{}]*\}|\\[a-z]+(?! ?\{)|\([^()]*\)|\{[^{}]*\})(?: ?\^ ?(?:\w|\{[^{}]*\}))?"
    if re.search(rf"/ ?{factor} ?(?=[A-Za-z(]|\\(?!cdot|times|div|right|rfloor|rceil))", text):
        raise Unreadable("a/bc is either (a/b)c or a/(bc)")
    text = re.sub(r"(\\[a-z]+ ?)\{ ?(\([^(){}]*\)) ?\}", r"\1\2", text)  # \log{(2)}^2 is not \log(2^2)
    while (nested := re.sub(r"\| ?([^|]*[^|+\-*/^( ]) ?\|", r"\\lvert \1\\rvert ", text)) != text:
        text = nested
    if "|" in text:
        raise Unreadable("bars that do not pair")
    # The parser takes x(y) for a function of y, and I for the imaginary unit.
    text = re.sub(r"(?<![\\A-Za-z])I(?! ?_)", "I_{0}", text)
    text = re.sub(r"(\)|(?<![\\A-Za-z])[A-Za-z]|\\(?:pi|alpha|beta|gamma|theta|lambda)) ?(?=\()", r"\1\\cdot ", text)
    text = re.sub(r"(?<![\w.])(\d+) ?\\frac ?\{(\d+)\} ?\{(\d+)\}", r"(\1+\\frac{\2}{\3})", text)  # mixed number
    return re.sub(r"(\d*)\.(\d+)", lambda m: rf"(\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}})", text)


def same_value(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    if gold == answer:
        return True
    return all(same_number(a, b) for a, b in values(gold, answer))


def same_up_to_factor(gold: sympy.Expr, answer: sympy.Expr, positive: bool) -> bool:
    found = values(gold, answer)
    (a, b) = next((a, b) for a, b in found if a != 0 and b != 0)
    if positive and not (a / b).is_positive:
        return False
    return all(same_number(x * b, y * a) for x, y in found)


def values(gold: sympy.Expr, answer: sympy.Expr) -> list[tuple[sympy.Expr, sympy.Expr]]:
    """The values of both at the points where at least one of them is real, or complex by its own `i`."""
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not symbols:
        return [(gold, answer)]
    if len(symbols) > len(POINTS[0]):
        raise Unreadable("too many variables")
    unreal = gold.has(sympy.I) or answer.has(sympy.I)
    found = []
    steps = gold.has(*STEPS) or answer.has(*STEPS)
    for point in POINTS + FAR if steps else POINTS:
        at = dict(zip(symbols, point, strict=False))
        pair = tuple(expr.subs(at) for expr in (gold, answer))
        pole = any(value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) for value in pair)
        if not pole and (unreal or not all(value.has(sympy.I) for value in pair)):
            found.append(pair)
    if len(found) < 3 or (steps and len({a for a, _ in found}) == 1):
        raise Unreadable("defined at too few points, or constant at all of them")
    return found


def same_number(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether two constants agree in every digit that their size could hide a difference in."""
    if a == b:
        return True
    if a.is_Rational and b.is_Rational:
        return False
    digits = 60 + sum(magnitude(part) for expr in (a, b) for part in sympy.preorder_traversal(expr))
    if digits > MAX_DIGITS:
        raise Unreadable("too large to compare")
    left, right = sympy.N(a, digits), sympy.N(b, digits)
    if not (left.is_number and right.is_number) or left.has(sympy.nan) or right.has(sympy.nan):
        raise Unreadable("not a number")
    return bool(abs(left - right) <= sympy.Float(10, digits) ** (20 - digits) * abs(left))


def magnitude(part: sympy.Expr) -> int:
    """About how many decimal digits the value of a part, or its reciprocal, has."""
    if part.is_Rational:
        return int(0.302 * (abs(part.p).bit_length() + part.q.bit_length()))
    if not (part.is_Pow or part.is_Function):
        return 0
    value = sympy.N(part, 15)
    return 0 if value == 0 or not value.is_number else int(abs(sympy.N(sympy.log(abs(value)) / sympy.log(10), 15)))


if __name__ == "__main__":
    main()
