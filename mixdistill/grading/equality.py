"""Are two final answers the same? Math-Verify (`parse` and `verify`) behind guards; the policy is `docs/grading.md`.

The same text and equal rational numbers are accepted. Any other pair is refused unless `parse` reads both as they are
written and finds the same structure (a tuple, an interval, a set, a relation, ...); `verify` decides on its members.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias, TypeVar

import sympy
from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.logic import And
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.relational import Relational

from mixdistill.data.final_answers import NO_NOUN, is_counted, number_value
from mixdistill.grading.notation import FUNCTIONS, GREEK, clean, members

AS_WRITTEN = NormalizationConfig(basic_latex=False, units=False, malformed_operators=False, nits=False, boxed="none")
LATEX = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=AS_WRITTEN)]
UNIT = (
    r"(?:(?:sq|square|cu|cubic) )?(?:[cmk]?m|[mk]?g|m?l|[a-z]*(?:met(?:er|re)|lit(?:er|re)|gram)|in|inch|inche|ft|foot|"
    r"feet|yd|yard|mi|mile|mph|kph|h|hr|hour|min|minute|s|sec|second|day|week|month|year|oz|lb|ounce|pound|[ap]m|dollar|"
    r"cent|euro|yuan|yen|unit|[km]?hz|[LJN])s?(?: ?\^ ?[23])?"
)
UNITS = re.compile(rf"{UNIT}(?:(?: ?/ ?| per ){UNIT})?")  # all other words have to be a counted noun
# Of money or of a number: $18 per day, 18/hour, $18 each.
RATE = re.compile(
    r"(\\?[$€£]? ?[-+]?[\d.,]+) ?(?:/ ?\\text ?\{ ?|\\text ?\{ ?(?:per |an? |/ ?))([a-z]{2,}) ?\}|"
    r"(\\?[$€£] ?[-+]?[\d.,]+) ?\\text ?\{ ?(?:each|dollars?|USD) ?\}"
)
SHORT = {
    **{"inch": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "hr": "h", "hour": "h", "minute": "min"},
    **{"sec": "s", "second": "s", "ounce": "oz", "pound": "lb", "dollar": "$", "euro": "€", "mph": "mi/h", "L": "l"},
}
METRIC = "^(?:(m)illi|(c)enti|(k)ilo)?(?:(m)et(?:er|re)|(g)ram|(l)it(?:er|re))$"
NUMERIC = r"(?:[\d\s.:+\-*/^(){}]|\\(?:frac|sqrt|pi|cdot|times)(?![A-Za-z]))*?"
WORDS = re.compile(r"[A-Za-z\s.,'-]*[A-Za-z]{3}[A-Za-z\s.,'-]*|[Nn][Oo]")
COMMON = {"yes", "no", "true", "false", "even", "odd", "none", "all", "both", "never", "east", "west", "red", "blue"}
CAPITALS = re.compile(r"\s*\$?\s*\\(?:text(?:bf|it|rm|tt|sf|normal)?|mathrm|mbox)\s*\{\s*[A-Z]{2,}\s*\}\s*\$?\s*")
# Letters that are a word and no product: `ab` and `xyz` are products.
WORD = re.compile(r"(?=.*[aeiou])[A-Za-z]{3,}|no|on|is|in|of|to|at|by|an|or|if|so|up|as|be|do|go|we|us|it")
# What an equation may name: x, x_1, AB, f(x), (p, q), \angle ABC, |AB|, A:B; but no function of a name, such as \sec x.
NAME = (
    rf"(?:\\(?:angle|triangle|overline|vec|{GREEK})(?![A-Za-z])|[A-Za-z]|_\{{[^{{}}]*\}}|_\w|['(),:{{}} ])+|"
    r"\|[A-Z]{2}\||\\frac ?\{[A-Z]+\} ?\{[A-Z]+\}|[A-Za-z]\([-\d, ]+\)|\[[A-Z]{3,}\]|[a-z](?: ?\+ ?[a-z])+|"
    r"[fghA] ?\^ ?\{ ?-1 ?\} ?(?:\([a-z]\))?|\\text ?\{ ?[A-Z][a-z]+ ?\}|[PE]\(\\text ?\{[A-Za-z ]+\}\)"
)
NAMED = re.compile(rf"(?:^|(?<=,)) ?({NAME}) ?(?:=|\\(?:in|approx)(?![A-Za-z])) ?")
SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\w)")  # of a name: m_{\max}, a_{n+1}
NO_NAME = re.compile(rf"(?<![A-Za-z])(?:{FUNCTIONS}|sqrt|floor|ceil|abs|max|min|gcd|lcm|det|mod)(?![A-Za-z])")
COMMANDS = rf"frac|sqrt|binom|cdot|times|div|pi|[lr]floor|[lr]ceil|[lr]vert|infty|pm|cup|[lgn]e|{FUNCTIONS}|{GREEK}"
KNOWN = re.compile(rf"\\(?:begin|end)\{{pmatrix\}}|\\(?:{COMMANDS})(?![A-Za-z])|\\\\|\\[{{}}]|{FUNCTIONS}")
UNKNOWN = re.compile(r"[A-Za-z]{5}|[^\w\s+\-*/^(){}|!.,;=<>\[\]&:]")
AMBIGUOUS = re.compile(  # what `parse` drops or guesses at: bases, Gauss's [x], stacked powers, a/bc, sets of sets
    r"\\\{[^}]*\\\{|"
    r"(?<!_)\d \d|[\d)}] ?_|! ?!|\^ ?(?:\{[^{}]*\}|\w) ?\^|\^ ?[(!T]|\.(?!\d)|\.\d+\.|\\sqrt ?\d|\\frac ?\d|\w ?\| ?\w|"
    r"(?<![A-Za-z])I(?![A-Za-z])|(?:[\d)}+\-*/^|]|(?<![A-Za-z\\])[A-Za-z]) ?\\\{|\\\} ?[\w(+\-*/^|]|\[[^,;\[\]]*\]|"
    rf"\\(?:{FUNCTIONS}) ?(?:\{{[^{{}}]*\}}|\([^()]*\)) ?\^|"
    r"/ ?(?:\d++|[A-Za-z]|\\[a-z]++(?=(?P<groups>(?: ?\{[^{}]*\})*))(?P=groups)|\([^()]*\))"
    r"(?: ?\^ ?(?:\w|\{[^{}]*\}))? ?"
    r"(?:[A-Za-z(]|\\(?!\\|cdot|times|div|cup|pm|[lgn]e|r|end))"
)
# A function's argument without parentheses, and what may belong to it or not: `parse` reads \ln 2/2 as \ln(2/2). What a
# lookahead has found and its group repeats is not tried in shorter forms, as if it were repeated possessively, which
# Python before 3.11.5 matches wrongly.
ARGUMENTS = (
    rf"\\?(?<![A-Za-z])(?:{FUNCTIONS})(?![A-Za-z]) ?"
    rf"(?=(?P<index>(?:[_^] ?(?:\w|\{{[^{{}}]*\}}) ?)*))(?P=index)"
    rf"(?=(?P<factors>(?: ?(?:[\dA-Za-z.]|\{{[^{{}}]*\}}|\\(?:pi|sqrt|frac|{GREEK})(?![A-Za-z])))+))(?P=factors) ?"
)
FACTOR = re.compile(rf"{ARGUMENTS}(?:[/*(]|\\(?:cdot|times|div)(?![A-Za-z]))")
PRODUCT = r"((?<![\^_])\d|\)|[^x]\}) ?(?=\()|(?<=[})])(?<!x\}) ?(?=\\(?:frac|binom))|(?<=\d) ?(?=\\binom)"  # no sum
Parsed: TypeAlias = sympy.Basic | sympy.MatrixBase
T = TypeVar("T")


def compare(gold: str, answer: str) -> bool:
    """True if two final answers are the same by the policy. Raises exceptions of all kinds on what is unreadable."""
    joined = [set(re.findall(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])", text)) for text in (gold, answer)]
    inequality = re.search(r"[<>≤≥]|\\[lg](?:eq?|t)(?![A-Za-z])", gold + answer)
    if joined[0] != joined[1] and (all(joined) or (inequality and "or" in joined[0] | joined[1])):
        return False  # x < 1 or x > 3: `clean` makes `and` and `or` commas
    if CAPITALS.fullmatch(gold) or CAPITALS.fullmatch(answer):  # a word, not a product of letters
        return _text(clean(gold)) == _text(clean(answer))
    return any(_same(one, other) for one in _readings(clean(gold)) for other in _readings(clean(answer)))


def _readings(text: str) -> list[str]:
    """`100,200` is a number or a list."""
    number = re.fullmatch(r"([^\d,(]*)([1-9]\d{0,2}(?:,\d{3})+(?!\d))([^,]*)", text)
    return [number[1] + number[2].replace(",", "") + number[3], text] if number else [text]


def _same(gold: str, answer: str) -> bool:
    """Two answers, each with or without names: `x = 5`, `x \\in \\{1, 2\\}`, `x=1, y=2`, `x = 5 + 3 = 8`."""
    if _text(gold) == _text(answer):
        return bool(gold)
    (names, left), (other_names, right) = _named(gold), _named(answer)
    line = any("+" in SUBSCRIPT.sub("", name) for name in names)  # as a gold answer x + y = 5 names no value
    others = names != other_names if other_names else "=" in right
    if "=" in left or line or (names and others):
        return _same_parsed(gold, answer)
    if re.search(r"[<>]|\\[lg]e ", left) and not set(other_names) <= set(left):
        return False  # x < 3 and y \in (-\infty, 3)
    if len(names or other_names) > 1:  # by place; y = 2, x = 1 answers (1, 2)
        right = right if names else _in_order(other_names, right)
        left, right = (value if value.startswith("(") else f"({value})" for value in (left, right))
    by_member = _same_members(left, right)
    if by_member is not None:
        return by_member
    return all(_same_value(left, side) for side in ([right] if "," in right else right.split("=")))


def _in_order(names: list[str], values: str) -> str:
    """The values of letters that have an order of their own, in this order; r, h and others as they are written."""
    listed = members(values)
    if len(listed) != len(names) or not (set(names) <= set("xyzw") or set(names) <= set("abcd")):
        return values
    return ",".join(value for _, value in sorted(zip(names, listed, strict=True)))


def _same_members(gold: str, answer: str) -> bool | None:
    """Lists, sets or tuples of which a member has a unit: member by member, of tuples by place. None for others."""
    left, right = (members(re.sub(r"^\\?[({](.*?)\\?[)}]$", r"\1", side)) for side in (gold, answer))
    if len(left) != len(right) or len(left) == 1 or not any(_with_unit(member)[1] for member in [*left, *right]):
        return None
    if re.search(r"\),|\[|\d,\d{3}(?!\d)", f"{gold} {answer}"):  # of tuples, intervals, thousands
        return None
    if "(" in (gold[:1], answer[:1]):
        return gold[:1] == answer[:1] and all(map(_same_value, left, right))
    return _matched(left, right, _same_value)


def _matched(left: Iterable[T], right: Iterable[T], same: Callable[[T, T], bool]) -> bool:
    """Whether every member on the left has one of its own on the right, in any order."""
    rest = list(right)
    for member in left:
        found = next((n for n, other in enumerate(rest) if same(member, other)), None)
        if found is None:
            return False
        rest.pop(found)
    return True


def _text(text: str) -> str:
    """What is compared as text: words without case, everything else without spaces."""
    plain = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text).strip()
    if WORDS.fullmatch(plain.strip("()")):
        return re.sub(r"[A-Za-z]+", _folded, plain.strip("() ."))
    return re.sub(r"(?<!\d) | (?!\d)", "", plain)


def _folded(word: re.Match[str]) -> str:
    """A word in small letters; no name of points, such as ABC, no letter, and nothing like xyZ."""
    text = word[0]
    folds = (text[1:].islower() and WORD.fullmatch(text.lower())) or (text.isupper() and len(text) > 4)
    folds = folds or text.lower() in COMMON
    return text.lower() if folds else text


def _named(text: str) -> tuple[list[str], str]:
    """The names, each once, and what they name, without an approximation behind it."""
    names = list(dict.fromkeys(map(_text, NAMED.findall(text))))
    if not names or any(NO_NAME.search(SUBSCRIPT.sub("", name)) for name in names):
        return [], text
    return names, re.sub(r" ?\\approx(?![A-Za-z]).*", "", NAMED.sub("", text))


def _same_value(gold: str, answer: str) -> bool:
    """Two values, each with or without a unit."""
    (left, unit), (right, other_unit) = _with_unit(gold), _with_unit(answer)
    if unit and other_unit and unit != other_unit:
        (money, _, rate), (other_money, _, other_rate) = unit.partition("/"), other_unit.partition("/")
        # $18 an hour is $18, and 18 an hour.
        if not {money, other_money} <= {*"$€£", ""} or (money and other_money and money != other_money):
            return False
        if rate and other_rate and rate != other_rate:
            return False
    one, other = number_value(left), number_value(right)
    if unit != other_unit and "%" in (unit, other_unit):
        if one is None or other is None:
            return False
        percent, share = (one, other) if unit == "%" else (other, one)
        # A missing percent sign: the question has named it. 0.5 for 0.5% and 150% for 150 could be meant as shares.
        return percent == 100 * share or (percent == share > 1 and (unit == "%" or share <= 100))
    if one is not None and other is not None:
        return one == other
    return _text(left) == _text(right) or _same_parsed(left, right)


def _with_unit(text: str) -> tuple[str, str]:
    """A value and its unit, "" if it has none."""
    if re.search(rf"[,;&]|\\begin|\\(?:{FUNCTIONS})", text):
        return text, ""
    if (found := RATE.fullmatch(text)) and not NO_NOUN.search(found[2] or ""):
        value, money = _with_unit(found[1] or found[3])
        return value, f"{money}/{_unit_name(found[2])}" if found[2] else money
    if found := re.fullmatch(r"([-+]?) ?\\?([$€£]) ?(.+)", text):
        return found[1] + found[3], found[2]
    if found := re.fullmatch(r"(.+?) ?(%|\^ ?\\circ|\\?[$€£])", text):
        return found[1], found[2].lstrip("\\")
    found = re.fullmatch(r"(.*?[\w})!.]) ?\\text ?\{([^{}]*)\}(.*)", text)
    found = found or re.fullmatch(
        rf"({NUMERIC}(?:[\d)}}]|\\pi))((?: [A-Za-z]{{2}}| [A-Za-z] ?/|[A-Za-z]{{4}})[A-Za-z. /]*)(.*)", text
    )
    words = re.sub("[.{}]", "", found[2] + found[3]).strip() if found else ""
    words = words if re.fullmatch(".|M[gmlL]", words) else words.lower()  # 7 M is not 7 m
    if not found or not (UNITS.fullmatch(words) or is_counted(words)):
        return text, ""
    return found[1], _unit_name(words)


def _unit_name(words: str) -> str:
    """One name for a unit: `cm^2` for `square centimeters`, `m/s` for `meters per second`."""
    parts = re.split(" ?/ ?| per ", words)
    if len(parts) > 1:
        return "/".join(map(_unit_name, parts))
    found = re.fullmatch(r"(?:(sq|cu)(?:uare|bic)? )?(.*?)(?: ?\^ ?([23]))?", words)
    assert found  # whatever the text
    power, name, exponent = found.groups()
    plural, name = name, re.sub(r" |(?<=ch)es$|(?<=\w\w)s$", "", name)
    if exponent and plural != name:
        return words  # `inches^2` is no way to write a unit (Math-Verify's suite refuses it)
    exponent = exponent or {"sq": "2", "cu": "3"}.get(power)
    name = re.sub(METRIC, r"\1\2\3\4\5\6", name)
    return SHORT.get(name, name) + (f"^{exponent}" if exponent else "")


def _same_parsed(gold: str, answer: str) -> bool:
    """Two expressions, relations, lists, tuples, ... as Math-Verify reads them."""
    letters = set(re.sub(r"\\[A-Za-z]+", "", gold + answer))
    if (WORD.fullmatch(gold) and WORD.fullmatch(answer)) or any(a.isupper() and a.lower() in letters for a in letters):
        return False  # `parse` makes letters small
    left, right = _parsed(gold), _parsed(answer)
    if isinstance(left, Relational | And) and isinstance(right, sympy.Set):
        left = left.as_set()
    elif _marks(gold) != _marks(answer):
        return False
    return _same_structure(left, right)


def _marks(text: str) -> list[str]:
    """Square brackets, which `parse` may read as round ones, and colons, which it reads as divisions."""
    return sorted(re.findall(r"[\[\]:]", re.sub(r"\\sqrt ?\[\w+\]", "", text)))


@lru_cache(maxsize=1000)
def _parsed(text: str) -> Parsed:
    """What `parse` reads. Raises ValueError if it drops or may misread a part of the text."""
    text = re.sub(r"(?<=\\sin|\\cos|\\tan) ?\(?([\d.]+) ?\^ ?\\circ ?\)?", r"(\\frac{\1\\pi}{180})", text)
    # School's root of a negative number, not the principal one.
    text = re.sub(r"\\sqrt ?\[(\d*[13579])\] ?\{ ?- ?([\d.]+) ?\}", r"(-\\sqrt[\1]{\2})", text)
    mixed = re.findall(r"(?<![\w.])\d+ ?\\frac ?\{\d+\} ?\{\d+\}", text)
    text = re.sub(rf"({ARGUMENTS})\\(?:cdot|times)(?= ?\\(?:{FUNCTIONS}))", r"\1", text)  # \sin x \cdot \cos x
    ambiguous = AMBIGUOUS.search(re.sub(r"\\sqrt ?\[\w+\]", r"\\sqrt", text)) or None in map(number_value, mixed)
    ambiguous = ambiguous or FACTOR.search(text) or text.count("=") > 1 + text.count(",")
    if ambiguous or UNKNOWN.search(KNOWN.sub(" ", text)):
        raise ValueError(text)
    text = re.sub(rf"(?<![\\A-Za-z])({FUNCTIONS}|pi)(?![A-Za-z])", r"\\\1 ", text)
    # `parse` reads decimals as rounded, and 5(3) as the mixed number 5 + 3.
    text = re.sub(r"(\d*)\.(\d+)", lambda m: rf"(\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}})", text)
    text = re.sub(PRODUCT, r"\1\\cdot ", text)
    found = parse(f"${text}$", LATEX, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True)
    if not found or not isinstance(found[0], Parsed):
        raise ValueError(text)
    return found[0]


def _same_structure(gold: Parsed, answer: Parsed) -> bool:
    (kind, left), (other_kind, right) = _structure(gold), _structure(answer)
    if kind != other_kind or len(left) != len(right):
        return False
    if kind == "value":
        return _same_expression(_exact(left[0]), _exact(right[0]))
    if kind in ("==", "!=", "<", "<="):  # equal up to a factor, which is positive for inequalities
        one, other = _exact(left[0]), _exact(right[0])
        if not one.free_symbols:
            return False  # 1 = 2
        factor = sympy.S.NaN if other == 0 else sympy.simplify(one / other)
        usable = factor.is_positive if "<" in kind else factor.is_number and factor.is_nonzero
        return bool(usable) and _same_expression(one, factor * other)
    if kind not in ("FiniteSet", "Union", "And"):
        return all(map(_same_structure, left, right))
    return _matched(left, right, _same_structure)


def _structure(expr: Parsed) -> tuple[str, Sequence[Parsed]]:
    """What an expression is, and its members; for a relation the difference of its sides."""
    if isinstance(expr, Relational):
        expr = expr.reversed if expr.rel_op in (">", ">=") else expr
        return expr.rel_op, [expr.lhs - expr.rhs]
    if isinstance(expr, sympy.Interval):
        return f"interval {expr.left_open} {expr.right_open}", expr.args[:2]
    if isinstance(expr, sympy.MatrixBase):
        return f"matrix {expr.shape}", list(expr)
    parts = getattr(expr, "_unsorted_args", expr.args)
    if isinstance(expr, sympy.FiniteSet) and len(parts) == 1:
        return _structure(parts[0])
    if isinstance(expr, sympy.FiniteSet | sympy.Union | sympy.Tuple | And):
        return type(expr).__name__, parts
    return "value", [expr]


def _exact(expr: Parsed) -> sympy.Expr:
    """With `i` as the imaginary unit. Raises ValueError unless it is a number or a function of its variables."""
    if not isinstance(expr, sympy.Expr) or any(not power.base and not power.exp for power in expr.atoms(sympy.Pow)):
        raise ValueError(str(expr))  # a set, or 0^0
    expr = expr.subs({symbol: sympy.I for symbol in expr.free_symbols if symbol.name == "i"}).doit()
    if expr.has(sympy.Float, sympy.nan, sympy.zoo, sympy.core.function.AppliedUndef):
        raise ValueError(str(expr))
    return expr


def _same_expression(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """`verify`, whose tolerance is absolute (huggingface/Math-Verify issue 14), for what agrees in relative terms."""
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {symbol: sympy.Rational(n, 101) for n, symbol in enumerate(symbols, 117)}
    left, right = (sympy.N(expr.subs(point), 100) for expr in (gold, answer))
    if left != right and not abs(left - right) < sympy.Float(10, 100) ** -60 * abs(left):
        return False
    return verify(gold, answer, numeric_precision=100, strict=True, timeout_seconds=None)
