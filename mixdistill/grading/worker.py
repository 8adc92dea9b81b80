"""Are two answers equal? A process of its own, with limits, that `grade` starts and asks.

It reads one JSON line a question, `[gold, answer, seconds]`, and writes one a verdict: `equal`, `different`,
`unparsable` or `limit`.

Math-Verify's parser reads an expression (latex2sympy2_extended, without its habit of making letters small) and its
`verify` decides. Its tolerance is absolute and calls 2^{-99} and 2^{-98} equal (huggingface/Math-Verify issue 14), so
numbers, and the values of expressions at two points, have to agree in relative terms first.
"""

import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify

MEMORY = 2 << 30  # bytes
DIGITS = 1000  # to which two numbers have to agree; 60 for the values of expressions, on which `verify` decides
POINTS = [
    [sympy.Rational(p, 7) for p in (17, 31, 5, 23, 40, 9)],
    [sympy.Rational(-p, 13) for p in (30, 7, 4, 22, 51, 10)],
]


class Unreadable(Exception):
    """An expression that is no number or function of its variables, or one too large to compare."""


def main() -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows and macOS lack it; the limits of time hold there too
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook keeps its worker
    # The package without its __init__, which would load torch.
    sys.modules["mixdistill"] = package = ModuleType("mixdistill")
    package.__path__ = [str(Path(__file__).parents[1])]
    from mixdistill.grading.equality import compare

    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        if hasattr(signal, "setitimer"):  # processor time, so that a busy machine grades alike
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the system ends the process, whatever sympy is busy with
            signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict = decide(compare, gold, answer)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


def decide(compare: Callable, gold: str, answer: str) -> str:
    unread = []

    def ask(question: str, one: str, other: str) -> bool:
        try:
            return same(question, read(one), read(other))
        except MemoryError:
            raise
        except Exception:  # antlr, latex2sympy and sympy raise all kinds on odd input
            unread.append(one)
            return False

    try:
        return "equal" if compare(gold, answer, ask) else "unparsable" if unread else "different"
    except MemoryError:
        return "limit"
    except Exception:  # such as a RecursionError
        return "unparsable"


@lru_cache(maxsize=1000)
def read(latex: str) -> sympy.Expr:
    """The expression, exact: decimals become fractions, `i` the imaginary unit. Raises on anything else."""
    unreal = re.search(r"(?<![\\A-Za-z])i(?![A-Za-z])", latex)
    config = ConversionConfig(lowercase_symbols=False)
    expr = latex2sympy(prepared(latex), is_real=not unreal, normalization_config=None, conversion_config=config)
    if not isinstance(expr, sympy.Expr):
        raise Unreadable(f"{latex!r} is a {type(expr).__name__}")
    if any(power.base.is_zero and power.exp.is_zero for power in expr.atoms(sympy.Pow)):
        raise Unreadable("0^0")
    if expr.has(sympy.Sum, sympy.Product) and any("_" in symbol.name for symbol in expr.free_symbols):
        raise Unreadable("a sum over indexed variables, which the parser takes for constants")
    expr = expr.subs({symbol: sympy.I for symbol in expr.free_symbols if symbol.name == "i"}).doit()
    odd = (sympy.Float, sympy.Derivative, sympy.Integral, sympy.Limit, sympy.core.function.AppliedUndef)
    if expr.has(*odd) or expr.has(sympy.nan, sympy.zoo):
        raise Unreadable(f"{latex!r} is {expr}")
    return expr


def prepared(latex: str) -> str:
    """LaTeX as the parser needs it; where it would guess, say it, or raise."""
    text = re.sub(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|exp|pi)(?![A-Za-z])", r"\\\1 ", latex)
    text = re.sub(r"(?<![\\A-Za-z])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", text).replace("*", r"\cdot ")
    text = re.sub(r"([\d.]+) ?\^ ?\\circ", r"(\\frac{\1\\pi}{180})", text)  # within a sine
    if re.search(r"\\sqrt ?\d\d|\\frac ?\d ?\d\d", text):
        raise Unreadable("TeX takes one digit, the writer may have meant more")
    text = re.sub(r"\\sqrt ?(\d|[a-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\^ ?(\\(?:frac ?\{[^{}]*\}|sqrt ?)\{[^{}]*\}|\\[a-z]+)", r"^{\1}", text)
    if re.search(r"(?<![\w}])[fgh] ?\(", text):
        raise Unreadable("an unknown function")
    factor = r"(?:\d+|[A-Za-z]|\\sqrt ?\{[^{}]*\}|\\(?:pi|alpha|beta|theta)|\([^()]*\)|\{[^{}]*\})"
    factor += r"(?: ?\^ ?(?:\w|\{[^{}]*\}))?"
    if re.search(rf"/ ?{factor} ?(?=[A-Za-z(]|\\(?!cdot|times|div|right|rfloor|rceil))", text):
        raise Unreadable("a/bc is either (a/b)c or a/(bc)")
    text = re.sub(r"(\\[a-z]+ ?)\{ ?(\([^(){}]*\)) ?\}", r"\1\2", text)  # \log{(2)}^2 is not \log(2^2)
    while (nested := re.sub(r"\| ?([^|]*[^|+\-*/^( ]) ?\|", r"\\lvert \1\\rvert ", text)) != text:
        text = nested
    if "|" in text:
        raise Unreadable("bars that do not pair")
    # The parser takes x(y) for a function of y, and I for the imaginary unit.
    text = re.sub(r"(?<![\\A-Za-z])I(?! ?_)", "I_{0}", text)
    text = re.sub(
        r"(\)|(?<![\^_])\d|(?<![\\A-Za-z])[A-Za-z]|\\(?:pi|alpha|beta|gamma|theta|lambda)) ?(?=\()", r"\1\\cdot ", text
    )
    text = re.sub(r"(?<![\w.])(\d+) ?\\frac ?\{(\d+)\} ?\{(\d+)\}", mixed, text)
    return re.sub(r"(\d*)\.(\d+)", lambda m: rf"(\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}})", text)


def mixed(number: re.Match) -> str:
    whole, top, bottom = number.groups()
    if int(top) >= int(bottom):
        raise Unreadable("a mixed number has a part below 1; this may be a product")
    return rf"({whole}+\frac{{{top}}}{{{bottom}}})"


def same(question: str, gold: sympy.Expr, answer: sympy.Expr) -> bool:
    if question != "value":  # two equations, as left minus right sides: equal up to a factor
        one, other = next(pair for pair in values(gold, answer) if 0 not in pair)
        if question == "inequality" and not (one / other).is_positive:
            return False
        gold, answer = gold * other, answer * one
    if gold == answer:
        return True
    if not (gold.free_symbols or answer.free_symbols):
        return same_number(gold, answer)
    pairs = values(gold, answer)
    return all(same_number(*pair, 60) for pair in pairs) and verify(
        gold, answer, numeric_precision=100, timeout_seconds=None
    )


def values(gold: sympy.Expr, answer: sympy.Expr) -> list[tuple[sympy.Expr, sympy.Expr]]:
    """The values of both at the points where they are defined."""
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    at = [dict(zip(symbols, point, strict=False)) for point in POINTS]
    pairs = [(gold.subs(point), answer.subs(point)) for point in at]
    return [pair for pair in pairs if not any(value.has(sympy.nan, sympy.zoo, sympy.oo) for value in pair)]


def same_number(a: sympy.Expr, b: sympy.Expr, digits: int = DIGITS) -> bool:
    """Whether two constants agree in every digit that their size could hide a difference in."""
    if a == b:
        return True
    if (a.is_Rational and b.is_Rational) or a.is_infinite or b.is_infinite:
        return False
    left, right = sympy.N(a, digits), sympy.N(b, digits)
    if not (left.is_number and right.is_number) or left.has(sympy.nan) or right.has(sympy.nan):
        raise Unreadable("not a number")
    tolerance = sympy.Float(10, digits) ** (20 - digits) * abs(left)
    return bool(abs(left - right) <= max(tolerance, last_place(a), last_place(b)))


def last_place(number: sympy.Expr) -> sympy.Rational:
    """How far a decimal of 12 significant digits and more may be from the value that it rounds; 0 for any other number.

    Half a unit in its last place, or half a unit in the last bit of a float.
    """
    places = next((n for n in range(40) if number.is_Rational and 10**n % number.q == 0), 0)
    if not places or abs(number) * 10**places < 10**11:
        return sympy.S.Zero
    return max(sympy.Rational(1, 2 * 10**places), abs(number) / 2**53)


if __name__ == "__main__":
    main()
