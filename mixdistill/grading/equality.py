"""Are two final answers the same? The structure of an answer, and numbers that need no computer algebra.

The policy, with an example for each rule, is the table in `docs/grading.md`. `compare` takes an answer apart (lists, tuples,
intervals, unions, matrices, equations, units) and compares part by part: texts as texts, rational numbers exactly. What is left,
two mathematical expressions, it hands to `ask`.
"""

import re
from collections.abc import Callable
from fractions import Fraction

MAX_CHARS = 2000  # no final answer is that long; longer ones are compared as text only

# The escapes are minus, en dash, times, union and a wide percent sign.
UNICODE = dict(
    re.findall(
        r"(\S)=(\S+)",
        "\u2212=- \u2013=- \u00d7=\\times ·=\\cdot ÷=\\div π=\\pi √=\\sqrt ≤=\\le ≥=\\ge ≠=\\ne ±=\\pm \u222a=\\cup ∈=\\in ≈=\\approx "
        "²=^2 ³=^3 ½=\\frac{1}{2} ¼=\\frac{1}{4} ¾=\\frac{3}{4} ∞=\\infty °=^\\circ \uff05=%",
    )
)
SYNONYMS = [  # what only changes how an answer looks, in this order
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|mathstrut)(?![A-Za-z])\.?", ""),
    (r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname)\s*(?=\{)", r"\\text"),
    (r"\\text\{\s*([A-Za-z])\s*\}", r"\1 "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\(?:geqslant|geq)(?![A-Za-z])|>=", r"\\ge "),
    (r"\\(?:leqslant|leq)(?![A-Za-z])|<=", r"\\le "),
    (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\(?:[lc]?dots)(?![A-Za-z])", r"\\dots "),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\^\s*\{\s*\\circ\s*\}|\\degree(?![A-Za-z])", r"^\\circ "),
    (r"\\%", "%"),
    (r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, as TeX writes them
    (r"(?<!\\)\\(?:[,;:!> ]|q?quad(?![A-Za-z]))|~", " "),
    (r"(?<!\\)\$|\\[()]|\\[\[\]](?![^\[]*\])", ""),
    (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2 "),
]
# Names of units; a power may follow, or `square` and `cubic` lead. All other units are compared as text.
UNITS = dict(
    re.findall(
        r"(\w+)=(\S*)",
        "centimeter=cm centimetre=cm millimeter=mm meter=m metre=m kilometer=km inche=inch feet=ft foot=ft yard=yd mile=mi hour=h "
        "hr=h minute=min second=s sec=s gram=g kilogram=kg liter=l litre=l dollar=$ usd=$ cent=¢ degree=° percent=% percentage=% "
        "pct=% unit= pound=lb mph=mph day=day week=week month=month year=year",
    )
)
NUMERALS = re.compile(  # words behind a number that are no unit
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|score|gross|pair|couple|hal(?:f|ve)|third|fourth|quarter|fifth|sixth|"
    r"seventh|eighth|ninth|tenth|one|two|three|four|five|six|seven|eight|nine|ten|and|or|over|per|divided|mod|base|if|when|where|"
    r"remainder|plus|minus|negative|below|under|above|not|except|squared|cubed|factorial|percent|degree|times|more|less|fewer|"
    r"choose)s?\b|ths?\b"
)
RELATION = r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|[<>=]|\\approx(?![A-Za-z])|\\in(?![A-Za-z]))"
FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
COMMANDS = re.compile(  # that computer algebra may read
    r"frac|sqrt|binom|cdot|times|div|pi|ln|log|exp|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|[lr]floor|[lr]ceil|"
    r"[lr]vert|alpha|beta|[gG]amma|[dD]elta|(?:var)?epsilon|zeta|eta|[tT]heta|kappa|[lL]ambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi|"
    r"chi|[pP]si|[oO]mega|Phi|sum|prod|max|min|overline"
)
NAME = re.compile(r"(?:\\?[A-Za-z]++|_\{[^{}]*+\}|_\w|['|(),:{}\s])++")

NO_NAME = r"\|[^|]*[a-z]|\\(?:sqrt|ln|log|exp|sin|cos|tan)"  # |x| = 5 does not give x; |AB| = 5 names a length


def compare(gold: str, answer: str, ask: Callable[[str, str, str], bool]) -> bool:
    """True if the two answers are the same by the policy.

    `ask(question, gold, answer)` decides about LaTeX expressions: the question is `value` (is it the same number or function?)
    `equation` (the same equation up to a constant factor? both are given as left minus right side) or `inequality` (the same up to
    a positive factor? both are given as greater minus less).
    """
    if max(len(gold), len(answer)) > MAX_CHARS:
        return gold.strip() == answer.strip()
    gold, answer = normal(gold), normal(answer)
    if not gold or not answer:
        return False
    if tolerance := re.fullmatch(r"(.+) ?\\text ?\{ ?within ?\}(.+)", gold):
        value, allowed, found = (rational(text) for text in (*tolerance.groups(), _with_unit(answer)[0]))
        return None not in (value, allowed, found) and abs(found - value) <= allowed
    return _same(gold, answer, ask)


def normal(text: str) -> str:
    """An answer without what only changes its look: `$`, spacing, `\\left`, `\\dfrac`, thousands separators, a final dot."""
    text = re.sub(r"√ ?(\d+)", r"\\sqrt{\1}", text)
    for char, latex in UNICODE.items():
        text = text.replace(char, f"{latex} ")
    for pattern, replacement in SYNONYMS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(".\\ ")
    text = text.replace(" ", "") if re.fullmatch(r"[1-9]\d{0,2}(?: \d{3})+", text) else text
    thousands = re.fullmatch(r"((?:\\\$ ?)?[-+]?(?:\\\$ ?)?[1-9]\d{0,2}(?:,\d{3})+(?!\d))([^,]*)", text)
    return thousands[1].replace(",", "") + thousands[2] if thousands else text


def rational(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number or `a \\times 10^n`; None for anything else."""
    text = text.strip()
    text = _unwrapped(text)
    sign = 1
    while text[:1] in ("-", "+"):
        sign, text = (-sign if text[0] == "-" else sign), text[1:].strip()
    number = r"(\d+\.?\d*|\.\d+)"
    if found := re.fullmatch(rf"{number}(?: ?\\(?:times|cdot) ?10 ?\^ ?(?:\{{ ?(-?\d{{1,3}}) ?\}}|(\d)))?", text):
        return sign * Fraction(found[1]) * Fraction(10) ** int(found[2] or found[3] or 0)
    if found := re.fullmatch(r"(\d*)\.(\d*) ?\\overline ?\{(\d+)\}", text):
        whole, fixed, period = found.groups()
        repeated = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
        return sign * (Fraction(int(whole + fixed or "0"), 10 ** len(fixed)) + repeated)
    part = r"(?:\{ ?([-+]? ?(?:\d+\.?\d*|\.\d+)) ?\}|(\d))"
    if found := re.fullmatch(rf"(\d*) ?\\frac ?{part} ?{part}", text):
        whole, top, bottom = found[1], found[2] or found[3], found[4] or found[5]
    elif found := re.fullmatch(rf"(?:(\d+) )?{number} ?/ ?{number}", text):
        whole, top, bottom = found.groups()
    else:
        return None
    top, bottom = Fraction(top.replace(" ", "")), Fraction(bottom.replace(" ", ""))
    if bottom == 0 or (whole and not 0 <= top / bottom < 1):
        return None
    return sign * (int(whole or 0) + top / bottom)


def _same(gold: str, answer: str, ask) -> bool:
    gold, answer = _unwrapped(gold).removeprefix("+"), _unwrapped(answer).removeprefix("+")
    if _text(gold) == _text(answer):
        return True
    left, right = _members(gold), _members(answer)
    if left is None or right is None:
        return False  # two independent signs in one answer: only the same text is surely the same
    if len(left) > 1 or len(right) > 1:
        return _same_lists(left, right, ask)
    gold, answer = left[0], right[0]
    if _cut(gold, RELATION)[1] or _cut(answer, RELATION)[1]:
        return _same_relations(gold, answer, ask)
    for separator in (r"\\cup(?![A-Za-z])", ":"):
        left, right = _split(gold, separator), _split(answer, separator)
        if len(left) > 1 or len(right) > 1:
            return (_same_ordered if separator == ":" else _same_unordered)(left, right, ask)
    left, right = _matrix(gold), _matrix(answer)
    if left or right:
        rows = zip(left or [], right or [], strict=False)
        return len(left or []) == len(right or []) and all(_same_ordered(a, b, ask) for a, b in rows)
    left, right = _brackets(gold), _brackets(answer)
    if left or right:
        return bool(left and right and left[0] == right[0]) and _same_ordered(left[1], right[1], ask)
    return _same_values(gold, answer, ask)


def _same_lists(gold: list[str], answer: list[str], ask) -> bool:
    """Members in any order; in the given order where they carry different names (`x=1, y=2`)."""
    names = [{_text(name) for member in members if (name := _named(member)[0])} for members in (gold, answer)]
    ordered = max(map(len, names)) > 1 and not all(len(found) > 1 for found in names)
    return (_same_ordered if ordered else _same_unordered)(gold, answer, ask)


def _same_ordered(gold: list[str], answer: list[str], ask) -> bool:
    return len(gold) == len(answer) and all(_same(a, b, ask) for a, b in zip(gold, answer, strict=True))


def _same_unordered(gold: list[str], answer: list[str], ask) -> bool:
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for member in gold:
        found = next((other for other in left if _text(member) == _text(other)), None)
        found = found or next((other for other in left if _same(member, other, ask)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_relations(gold: str, answer: str, ask) -> bool:
    """Equations, inequalities, `x \\in S`, and chains such as `x = 5 + 3 = 8`."""
    (left, left_signs), (right, right_signs) = _cut(gold, RELATION), _cut(answer, RELATION)
    if not set(left_signs + right_signs) <= {"=", r"\in", r"\approx"}:  # inequalities, also written from the other end
        return _same_inequalities(left, left_signs, right, right_signs, ask)
    (gold_name, values), (answer_name, others) = _named(gold), _named(answer)
    named_alike = gold_name and answer_name and _text(gold_name) == _text(answer_name)
    if named_alike or not (left_signs and right_signs):
        # An equation such as x + y = 3 is no value.
        is_value = (gold_name or set(left_signs) <= {r"\approx"}) and len(values) == 1
        return bool(is_value) and all(_same(values[0], value, ask) for value in others)
    if left_signs == right_signs == ["="]:
        return _ask("equation", _difference(left, "="), _difference(right, "="), ask)
    return False


def _same_inequalities(left: list[str], left_signs: list[str], right: list[str], right_signs: list[str], ask) -> bool:
    flipped = [FLIPPED.get(sign) for sign in right_signs[::-1]]
    if (left_signs == right_signs and _same_ordered(left, right, ask)) or (
        left_signs == flipped and _same_ordered(left, right[::-1], ask)
    ):
        return True
    if len(left_signs) != 1 or len(right_signs) != 1 or left_signs[0] not in (right_signs[0], flipped[0]):
        return False
    question = "equation" if left_signs == [r"\ne"] else "inequality"
    return _ask(question, _difference(left, left_signs[0]), _difference(right, right_signs[0]), ask)


def _difference(sides: list[str], sign: str) -> str:
    """`a - b` for `a = b`, and for `a > b` or `b < a`."""
    greater, less = reversed(sides) if sign in ("<", r"\le") else sides
    return f"({greater})-({less})"


def _ask(question: str, gold: str, answer: str, ask) -> bool:
    return _expression(gold) and _expression(answer) and ask(question, gold, answer)


def _same_values(gold: str, answer: str, ask) -> bool:
    """Two single values, each with or without a unit."""
    (gold_value, gold_unit), (answer_value, answer_unit) = _with_unit(gold), _with_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    if _text(gold_value) == _text(answer_value) and "%" not in (gold_unit, answer_unit):
        return True
    left, right = rational(gold_value), rational(answer_value)
    if left is not None and right is not None:
        if gold_unit == answer_unit or "%" not in (gold_unit, answer_unit):
            return left == right
        share = 100 * (right if gold_unit == "%" else left)
        percent = left if gold_unit == "%" else right
        # Without its sign a percentage above 1 is still one; 0.5 for 0.5% is not.
        return percent == share or (100 * percent == share and abs(percent) > 1)
    if "%" in (gold_unit, answer_unit) and gold_unit != answer_unit:
        return False
    return _ask("value", gold_value, answer_value, ask)


def _text(text: str) -> str:
    """What is compared as text: no spaces; words, in or out of `\\text`, in lower case and without brackets."""
    plain = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text)
    plain = _unwrapped(plain.strip())
    if re.fullmatch(r"[A-Za-z\s.,'-]*[A-Za-z]{3}[A-Za-z\s.,'-]*", plain):
        return re.sub(r"[\s-]+", " ", plain).strip().rstrip(".").lower()
    return re.sub(r"\s(?!(?<=\d\s)\d)", "", plain)


def _unwrapped(text: str) -> str:
    """Without brackets around the whole: `{x}`, `(x)` and `\\{x\\}`, but not a tuple's."""
    text = text.strip()
    for first, last in (("{", "}"), ("\\{", "\\}"), ("(", ")")):
        if text.startswith(first) and text.endswith(last) and not (first == "{" and text.endswith("\\}")):
            inner = text[len(first) : -len(last)]
            if (
                _depths(inner)
                and not (first == "(" and len(_split(inner, "[,;]")) > 1)
                and inner.strip() not in ("", "\\emptyset")
            ):
                return _unwrapped(inner)
    return text


def _depths(text: str) -> bool:
    """True if no bracket in `text` closes one that it has not opened; intervals may mix `(` and `[`."""
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _split(text: str, separator: str) -> list[str]:
    return _cut(text, separator)[0]


def _cut(text: str, separator: str) -> tuple[list[str], list[str]]:
    """The parts of `text`, and the separators between them that stand outside all brackets."""
    parts, found, start, depth = [], [], 0, 0
    matches = {match.start(): match for match in re.finditer(separator, text)}
    for at, char in enumerate(text):
        if depth == 0 and at in matches and at >= start:
            parts.append(text[start:at].strip())
            found.append(matches[at][0])
            start = matches[at].end()
        depth += (char in "([{") - (char in ")]}")
    return [*parts, text[start:].strip()], found


def _members(text: str) -> list[str] | None:
    """The members of a list or set, `a \\pm b` as two of them; None for several signs in one member."""
    text = re.sub(r"\\text ?\{ ?(?:and|or) ?\}|(?<![A-Za-z\\{])(?:and|or)(?![A-Za-z])", ",", text)
    members: list[str] = []
    for member in filter(None, _split(text, "[,;]")):
        signs = re.findall(r"\\(?:pm|mp)(?![A-Za-z])", member)
        if len(signs) > 1:
            return None
        plus, minus = ("-", "+") if r"\mp" in signs else ("+", "-")
        members += [re.sub(r"\\(?:pm|mp)(?![A-Za-z])", sign, member) for sign in (plus, minus)] if signs else [member]
    return members or [text]


def _named(text: str) -> tuple[str | None, list[str]]:
    """The name and the values of `x = 5`, `f(x) = 2x`, `x \\in S`, `x = 5 + 3 = 8`; an approximation behind a value is dropped."""
    parts, signs = _cut(text, RELATION)
    if not set(signs) <= {"=", r"\in", r"\approx"}:
        return None, [text]
    named = signs and NAME.fullmatch(parts[0]) and not re.search(NO_NAME, parts[0])
    name = parts.pop(0) if named else None
    kept = signs[1:] if name is not None else signs
    return name, parts[: kept.index(r"\approx") + 1 if r"\approx" in kept else len(parts)]


def _matrix(text: str) -> list[list[str]] | None:
    found = re.fullmatch(r"\[?\\begin ?\{([pb]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end ?\{\1\}\]?", text)
    if not found:
        return None
    rows = [row for row in re.split(r"\\\\", found[2]) if row.strip()]
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def _brackets(text: str) -> tuple[str, list[str]] | None:
    """The kind (`()`, `[)`, ...) and the members of a tuple or interval."""
    inner = re.sub(r"^\\langle(.*)\\rangle$", r"<\1>", text)
    if len(inner) < 2 or inner[0] + inner[-1] not in ("()", "[]", "(]", "[)", "<>") or not _depths(inner[1:-1]):
        return None
    return inner[0] + inner[-1], _split(inner[1:-1], "[,;]")


def _with_unit(text: str) -> tuple[str, str]:
    """A value and its unit, `""` if it has none."""
    if found := re.fullmatch(r"([-+]?) ?(\\\$|\\pounds|[€£]) ?(.+)", text):
        return found[1] + found[3], found[2].removeprefix("\\")
    if found := re.fullmatch(r"((?:(?!\\(?:sin|cos|tan|cot|sec|csc)).)*?\S) ?(%|\^ ?\\circ)", text):
        return found[1], "%" if found[2] == "%" else "°"
    if found := re.fullmatch(r"(.*?[\w})!]) ?\\text ?\{([^{}]*)\} ?(\^ ?\{?\d\}?)?", text):
        unit = _unit(found[2])
        noun = re.fullmatch(r"([a-z]{3,} ?){1,3}", found[2].strip()) and not NUMERALS.search(found[2])
        unit = found[2].strip() if unit is None and noun else unit
    elif found := re.fullmatch(r"(.*?[\d})]) ((?:square |cubic |sq )?[A-Za-z]{2,}) ?(\^ ?\d)?", text):
        unit = _unit(found[2])
    else:
        return text, ""
    return (text, "") if unit is None else (found[1], unit + re.sub(r"[\s{}]", "", found[3] or ""))


def _unit(words: str) -> str | None:
    """The short name of a known unit, None for other words."""
    words = words.strip().rstrip(".").lower()
    power = {"square": "^2", "sq": "^2", "cubic": "^3"}.get(words.split(" ")[0], "")
    name = words.split(" ", 1)[1] if power and " " in words else words
    for singular in (name, name.removesuffix("s")):
        if singular in UNITS or singular in UNITS.values():
            return UNITS.get(singular, singular) + power
    return None


def _expression(text: str) -> bool:
    """Whether computer algebra can read this: nothing but numbers, letters, operators and known commands.

    Words, number bases, primes, double factorials and the like are refused here, as a reader might drop or misread them.
    """
    if re.search(r"[\d)}] ?_|\d \d|! ?!|[\d)] ?'", text) or not all(
        map(COMMANDS.fullmatch, re.findall(r"\\([A-Za-z]+)", text))
    ):
        return False
    plain = re.sub(r"\\[A-Za-z]+|(?<![A-Za-z])(?:sqrt|sin|cos|tan|log|exp)(?![A-Za-z])", " ", text)
    plain = re.sub(r"_ ?\{ ?[a-z] ?=", "_{", plain)  # of a sum
    word = re.fullmatch(r"[A-Za-z]{2,}", text) or re.search(r"[A-Za-z]{3}", plain)
    return not word and not re.search(r"[^\w\s+\-*/^(){}\[\]|!.]", plain) and any(map(str.isalnum, text))
