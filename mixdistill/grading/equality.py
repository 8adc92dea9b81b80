"""The guards around Math-Verify: which parts of two final answers have to be equal, and which it may be asked about.

An answer is taken apart (lists, tuples, intervals, matrices, relations, units); texts are compared as texts and
rational numbers exactly. Two expressions go to `ask(relation, gold, answer)`, which is Math-Verify in `worker.py`, if
both are of a kind that it reads as written. The policy is `docs/grading.md`.
"""

import re
import unicodedata
from collections.abc import Callable

from mixdistill.data.final_answers import NO_NOUN, NOUN, SCALES, number_value

Ask = Callable[[str, str, str], bool]
STYLES = r"(?:text(?:bf|it|rm|normal|sf|tt)?|math(?:rm|bf|it|sf|tt|cal)|mbox|hbox|operatorname|bm|boldsymbol)"
LETTERS = (
    r"alpha|beta|[gG]amma|[dD]elta|(?:var)?epsilon|zeta|eta|[tT]heta|kappa|[lL]ambda|mu|nu|xi|rho|sigma|tau"
    r"|(?:var)?phi|chi|[pP]si|[oO]mega|Phi"
)
TOKEN = rf"(?:[\dA-Za-z]|\\(?:pi|{LETTERS})(?![A-Za-z]))"  # what TeX takes for an argument without braces
LOOK = [  # what only changes how an answer looks, in this order
    (r"\\(?:left|right)(?![A-Za-z])\.?", ""),
    (r"\\(?:[bB]igg?[lr]?|displaystyle|textstyle|limits|mathstrut|bf|it|rm|[lL]arge)(?![A-Za-z])", ""),
    (r"\\math(?:bf|it|rm)(?![A-Za-z]|\s*\{)", ""),
    (r"\\(?:textcolor|color)\s*\{[^{}]*\}|\\(?:boxed|fbox|underline|ensuremath)\s*(?=\{)", ""),
    (rf"\\{STYLES}\s*(?=\{{)", r"\\text"),
    (r"\\text\{\s*([A-Za-z])\s*\}", r" \1 "),
    (r"\\text\{[\s.]*\}\s*$", ""),
    (r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\{]),?\s*(?:and|or)(?![A-Za-z])", ", "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (rf"\\frac\s*({TOKEN})\s*(?=[{{\\A-Za-z]|\d(?!\d))", r"\\frac{\1}"),
    (rf"(\\frac\s*\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})\s*({TOKEN})(?!\d)", r"\1{\2}"),
    (r"\\geq?(?:slant)?(?![A-Za-z])|>=", r"\\ge "),
    (r"\\leq?(?:slant)?(?![A-Za-z])|<=", r"\\le "),
    (r"\\neq?(?![A-Za-z])|!=", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\[lc]?dots(?![A-Za-z])|\.{2,}", r"\\dots "),
    (r"\+\s*/?\s*-(?=\s*[\d\\])", r"\\pm "),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\^\s*\{\s*\\circ\s*\}|\\degree(?![A-Za-z])", r"^\\circ "),
    (r"\\%", "%"),
    (r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, as TeX writes them
    (r"\\!", ""),
    (r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z]))|~", " "),
    (r"(?<!\\)\$|\\[()]|^\\\[|\\\]$|[*`]{2,}(?!\s*[\d(a-z])|^[*`\"]+|[*`\"]+$", ""),
    (r"\*\*|\^\s*(?=\()", "^"),
    (r"\^\(([^()]*)\)", r"^{\1}"),
    (r"√(\[\d\])?\s?(\d+|[a-z])", r"\\sqrt\1{\2}"),
    (r"√(\[\d\])?\s?\(([^()]*)\)", r"\\sqrt\1{\2}"),
    (r"√", r"\\sqrt "),
    (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2 "),
    (r"(\^\w) (?=\d)", r"\1\\cdot "),
    (r"^\s*(?:\\approx|=)|(?<=\d:\d\d):00$", ""),
    (rf"\\text\s*\{{\s*({'|'.join(SCALES)})\s*\}}", r" \1"),
]
# The escapes are minus, times, union, the fraction slash, alpha, gamma, rho and sigma.
SYMBOLS = dict(
    re.findall(
        r"(\S)=(\S+)",
        "\u2212=- \xd7=\\times ·=\\cdot ⋅=\\cdot ÷=\\div ≤=\\le ≥=\\ge ≠=\\ne ±=\\pm \u222a=\\cup ∈=\\in ≈=\\approx "
        "∞=\\infty °=^\\circ ∅=\\emptyset ∛=√[3] ∜=√[4] \u2044=/ \u03b1=\\alpha β=\\beta \u03b3=\\gamma δ=\\delta "
        "ε=\\epsilon θ=\\theta λ=\\lambda μ=\\mu π=\\pi \u03c1=\\rho \u03c3=\\sigma φ=\\phi ω=\\omega",
    )
)
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
# Units by their short names. All other words behind a number have to be a counted noun, or are compared as text.
UNITS = dict(
    re.findall(
        r"(\w+)=(\S*)",
        "centimeter=cm centimetre=cm millimeter=mm meter=m metre=m kilometer=km kilometre=km inch=in inche=in feet=ft "
        "foot=ft yard=yd mile=mi hour=h hr=h minute=min second=s sec=s gram=g kilogram=kg liter=l litre=l "
        "milliliter=ml ounce=oz pound=lb dollar=$ usd=$ cent=¢ degree=° deg=° percent=% percentage=% pct=% unit= "
        "mph=mi/h kph=km/h euro=€ yuan=yuan yen=yen day=day week=week month=month year=year cm=cm mm=mm m=m km=km "
        "in=in ft=ft yd=yd mi=mi h=h min=min s=s g=g kg=kg mg=mg l=l ml=ml oz=oz lb=lb rpm=rpm hz=hz j=j n=n w=w v=v "
        "pm=pm am=am",
    )
)
RELATION = r"(\\(?:le|ge|ne|approx|in)(?![A-Za-z])|[<>=])"
FLIPPED = {">": "<", r"\ge": r"\le"}
VALUED = {"=", r"\in", r"\approx"}
FUNCTIONS = r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp"
COMMANDS = re.compile(  # that Math-Verify reads as they are meant
    rf"frac|sqrt|binom|cdot|times|div|pi|[lr]floor|[lr]ceil|[lr]vert|sum|prod|max|min|infty|circ|{FUNCTIONS}|{LETTERS}"
)
# What an equation may name: x, x_1, AB, f(x), (p, q), \angle ABC, |AB|, A:B; but no function of a name, such as \sec x.
NAME = re.compile(
    rf"(?:\\(?:angle|triangle|overline|vec|text|{LETTERS})(?![A-Za-z])|[A-Za-z]++|_\{{[^{{}}]*\}}|_\w|['(),:{{}}\s])++|"
    r"\|[A-Z]{2}\||\\frac ?\{[A-Z]+\} ?\{[A-Z]+\}|[A-Za-z]\([\d, ]+\)"
)
NO_NAME = re.compile(
    rf"(?<![A-Za-z])(?:{FUNCTIONS}|sqrt|floor|ceil|abs|max|min|gcd|lcm|det|mod|Gamma|zeta)(?![A-Za-z])"
)
# Letters that are a word and no product: `ab` and `xyz` are products.
WORD = re.compile(r"(?=.*[aeiou])[A-Za-z]{3,}|no|on|is|in|of|to|at|by|an|or|if|so|up|as|be|do|go|we|us|it")


def compare(gold: str, answer: str, ask: Ask) -> bool:
    """True if two final answers are the same by the policy; `ask(relation, gold, answer)` decides on expressions."""
    return any(_same(one, other, ask) for one in _readings(clean(gold)) for other in _readings(clean(answer)))


def clean(text: str) -> str:
    """An answer in one way of writing: no Unicode, styles, spaces, `\\left`, thousands separators, double escapes."""
    for mark, shifted, plain in (("^", RAISED, "0123456789+-n"), ("_", LOWERED, "0123456789")):
        table = str.maketrans(shifted, plain)
        text = re.sub(f"[{shifted}]+", lambda found: f"{mark}{{{found[0].translate(table)}}}", text)  # noqa: B023
    text = re.sub(r"(?<=\d)(?=[\xbc-\xbe\u2150-\u215e])", " ", text)  # 1½ is not 11/2
    text = unicodedata.normalize("NFKC", re.sub(r"^\u2013(?=[\d.\\])", "-", text))  # elsewhere an en dash is a range
    for char, latex in SYMBOLS.items():
        text = text.replace(char, f"{latex} ")
    if "\\begin{cases}" in text:
        text = re.sub(r"\\(?:begin|end)\{cases\}", "", text).replace("\\\\", ",")
    text = text.replace("\\\\", "\\") if "\\\\begin" in text else text
    text = text if "\\begin" in text else re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    for pattern, replacement in LOOK:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(".\\ ")
    text = re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text).strip().rstrip(".")
    return text.replace(" ", "") if re.fullmatch(r"[1-9]\d{0,2}(?: \d{3})+", text) else text


def _readings(text: str) -> list[str]:
    """`100,200` is a list or a number."""
    number = re.fullmatch(r"([^\d,(]*)([1-9]\d{0,2}(?:,\d{3})+(?!\d))([^,]*)", text)
    return [text, number[1] + number[2].replace(",", "") + number[3]] if number else [text]


def _same(gold: str, answer: str, ask: Ask) -> bool:
    gold, answer = _unwrapped(gold), _unwrapped(answer)
    if not gold or not answer or _text(gold) == _text(answer):
        return bool(gold and answer)
    left, right = _members(gold), _members(answer)
    if len(left) > 1 or len(right) > 1:
        names = [{_text(name) for member in members if (name := _named(member)[0])} for members in (left, right)]
        by_place = max(map(len, names)) > 1 and min(map(len, names)) < 2  # x=1, y=2 against 1, 2
        return (_same_ordered if by_place else _same_unordered)(left, right, ask)
    gold, answer = left[0], right[0]
    if _cut(gold, RELATION)[1] or _cut(answer, RELATION)[1]:
        return _same_relations(gold, answer, ask)
    for separator, same in ((r"\\cup(?![A-Za-z])", _same_unordered), (":", _same_ordered)):
        left, right = _cut(gold, separator)[0], _cut(answer, separator)[0]
        if len(left) > 1 or len(right) > 1:
            return same(left, right, ask)
    left, right = _parts(gold), _parts(answer)
    if left or right:
        return bool(left and right and left[0] == right[0]) and _same_ordered(left[1], right[1], ask)
    return _same_values(gold, answer, ask)


def _same_ordered(gold: list[str], answer: list[str], ask: Ask) -> bool:
    return len(gold) == len(answer) and all(_same(a, b, ask) for a, b in zip(gold, answer, strict=True))


def _same_unordered(gold: list[str], answer: list[str], ask: Ask) -> bool:
    left = list(answer)
    for member in gold if len(gold) == len(answer) else []:
        found = next((other for other in left if _same(member, other, ask)), None)
        if found is None:
            return False
        left.remove(found)
    return not left and bool(answer)


def _same_relations(gold: str, answer: str, ask: Ask) -> bool:
    """Equations, inequalities, `x \\in S`, and chains such as `x = 5 + 3 = 8`."""
    (left, left_signs), (right, right_signs) = _relation(gold), _relation(answer)
    if set(right_signs) <= VALUED:
        if not set(left_signs) <= VALUED:
            interval = _interval(left, left_signs)
            return interval is not None and _same(interval, answer, ask)
        (gold_name, values), (answer_name, others) = _named(gold), _named(answer)
        if (gold_name and answer_name and _text(gold_name) == _text(answer_name)) or not (left_signs and right_signs):
            is_value = gold_name or set(left_signs) <= {r"\approx"}  # an equation such as x + y = 3 is no value
            return bool(is_value and len(values) == 1) and all(_same(values[0], value, ask) for value in others)
    if left_signs != right_signs or r"\in" in left_signs:
        return False
    kind = "equation" if left_signs[0] in ("=", r"\ne") else "inequality"
    differences = [f"({high})-({low})" for low, high in (left[:2], right[:2])]
    return _same_ordered(left, right, ask) or (len(left_signs) == 1 and _ask(kind, *differences, ask))


def _relation(text: str) -> tuple[list[str], list[str]]:
    """The sides of a chain and the signs between them, written with `<` instead of `>`."""
    sides, signs = _cut(text, RELATION)
    if signs and set(signs) <= set(FLIPPED):
        return sides[::-1], [FLIPPED[sign] for sign in signs[::-1]]
    return sides, signs


def _interval(sides: list[str], signs: list[str]) -> str | None:
    """`x \\in (-\\infty, 3)` for `x < 3`; None if it is no such inequality."""
    at = next((i for i, side in enumerate(sides) if re.fullmatch("[A-Za-z]", side)), None)
    if at is None or not set(signs) <= {"<", r"\le"} or len(sides) > 3 or (len(sides) == 3 and at != 1):
        return None
    low = ("(" if signs[0] == "<" else "[") + sides[0] if at == 1 else r"(-\infty"
    high = sides[-1] + (")" if signs[-1] == "<" else "]") if at < len(sides) - 1 else r"\infty)"
    return rf"{sides[at]}\in {low},{high}"


def _same_values(gold: str, answer: str, ask: Ask) -> bool:
    """Two single values, each with or without a unit."""
    (gold_value, gold_unit), (answer_value, answer_unit) = _with_unit(gold), _with_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    left, right = number_value(gold_value), number_value(answer_value)
    if left is not None and right is not None and gold_unit != answer_unit and "%" in (gold_unit, answer_unit):
        percent, share = (left, right) if gold_unit == "%" else (right, left)
        # A missing percent sign: the question has named it. 0.5 for 0.5% and 150% for 150 could be meant as shares.
        return percent == 100 * share or (percent == share > 1 and (gold_unit == "%" or share <= 100))
    if "%" in (gold_unit, answer_unit) and gold_unit != answer_unit:
        return False
    if left is not None and right is not None:
        return left == right
    return _text(gold_value) == _text(answer_value) or _ask("value", gold_value, answer_value, ask)


def _ask(question: str, gold: str, answer: str, ask: Ask) -> bool:
    words = WORD.fullmatch(gold) and WORD.fullmatch(answer)
    return not words and _readable(gold) and _readable(answer) and ask(question, gold, answer)


def _readable(text: str) -> bool:
    """Whether Math-Verify reads this as it is written: numbers, letters, operators and the commands that it knows.

    It drops words, number bases and primes, and guesses at Gauss brackets, dots, ranges and stacked powers.
    """
    text = re.sub(r"\\log ?_ ?(?:\w|\{[^{}]*\})", r"\\log", text)
    if re.search(r"[\d)}] ?_|\d \d|! ?!|[\d)] ?'|\^ ?(?:\{[^{}]*\}|\w) ?\^|\^ ?\(|\^ ?!", text) or not all(
        map(COMMANDS.fullmatch, re.findall(r"\\([A-Za-z]+)", text))
    ):
        return False
    plain = re.sub(rf"\\[A-Za-z]+(?: ?\[\w+\])?|(?<![A-Za-z])(?:sqrt|{FUNCTIONS})(?![A-Za-z])", " ", text)
    plain = re.sub(r"_ ?\{ ?[a-z] ?=", "_{", plain)  # of a sum
    return not re.search(r"[A-Za-z]{5}|[^\w\s+\-*/^(){}|!.]", plain) and any(map(str.isalnum, text))


def _text(text: str) -> str:
    """What is compared as text: no spaces; words, in or out of `\\text`, in lower case and without brackets."""
    plain = _unwrapped(re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text).strip())
    if re.fullmatch(r"[A-Za-z\s.,'-]*[A-Za-z]{3}[A-Za-z\s.,'-]*", plain):
        return re.sub(r"\s+", " ", plain).strip(" .").lower()
    return re.sub(r"\s(?!(?<=\d\s)\d)", "", plain)


def _unwrapped(text: str) -> str:
    """Without brackets around the whole: `{x}`, `(x)` and `\\{x\\}`, but not a tuple's."""
    while text := text.strip().removeprefix("+"):
        found = re.fullmatch(r"(\\?\{|\()(.*?)(\\?\}|\))", text)
        if not found or found[1] + found[3] not in (r"\{\}", "{}", "()"):
            return text
        is_tuple = found[1] == "(" and len(_cut(found[2], "[,;]")[0]) > 1
        if found[2].strip() in ("", r"\emptyset") or not _balanced(found[2]) or is_tuple:
            return text
        text = found[2]
    return text


def _balanced(text: str) -> bool:
    """True if no bracket in `text` closes one that it has not opened; intervals may mix `(` and `[`."""
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


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


def _members(text: str) -> list[str]:
    """The members of a list or set; `a \\pm b` and `x \\in \\{a, b\\}` are two, several signs in one member are left as
    they are.
    """
    members: list[str] = []
    for member in filter(None, _cut(text, "[,;]")[0]):
        name, values = _named(member)
        found = re.fullmatch(r"\\\{(.*)\\\}", values[0]) if name else None
        signs = re.findall(r"\\(?:pm|mp)(?![A-Za-z])", member)
        if found and len(values) == 1:
            members += [f"{name}={value}" for value in _cut(found[1], "[,;]")[0]]
        elif len(signs) == 1:
            members += [member.replace(signs[0], sign) for sign in "+-"]
        else:
            members.append(member)
    return members or [text]


def _named(text: str) -> tuple[str | None, list[str]]:
    """Name and values of `x = 5`, `f(x) = 2x`, `x \\in S`, `x = 5 + 3 = 8`, without an approximation behind a value."""
    parts, signs = _cut(text, RELATION)
    if not signs or not set(signs) <= VALUED:
        return None, [text]
    name = parts.pop(0) if NAME.fullmatch(parts[0]) and not NO_NAME.search(parts[0]) else None
    kept = signs[1:] if name is not None else signs
    return name, parts[: kept.index(r"\approx") + 1 if r"\approx" in kept else len(parts)]


def _parts(text: str) -> tuple[str, list[str]] | None:
    """The brackets (`()`, `[)`, ...) and the members of a tuple or interval; the shape and the cells of a matrix."""
    if found := re.fullmatch(r"\[?\\begin ?\{([pb]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end ?\{\1\}\]?", text):
        rows = [row.split("&") for row in re.split(r"\\\\", found[2]) if row.strip()]
        return f"matrix {list(map(len, rows))}", [cell for row in rows for cell in row]
    inner = re.sub(r"^\\langle(.*)\\rangle$", r"<\1>", text)
    if len(inner) < 2 or inner[0] + inner[-1] not in ("()", "[]", "(]", "[)", "<>") or not _balanced(inner[1:-1]):
        return None
    return inner[0] + inner[-1], _cut(inner[1:-1], "[,;]")[0]


def _with_unit(text: str) -> tuple[str, str]:
    """A value and its unit, `""` if it has none."""
    if found := re.fullmatch(r"([-+]?) ?(\\\$|[€£]) ?(.+)", text):
        return found[1] + found[3], found[2].removeprefix("\\")
    if found := re.fullmatch(rf"((?:(?!\\(?:{FUNCTIONS})).)*?\S) ?(%|\^ ?\\circ|\\\$|[€£])", text):
        return found[1], "°" if found[2][0] == "^" else found[2].removeprefix("\\")
    found = re.fullmatch(r"(.*?[\w})!.]) ?\\text ?\{([^{}]*)\} ?((?:\^ ?\{?\d\}?)?)", text)
    found = found or re.fullmatch(r"(.*?[\d})])((?: [A-Za-z]|[A-Za-z]{4})[A-Za-z. /]*)((?:\^ ?\d)?)", text)
    unit = _unit(found[2].strip().replace(".", "")) if found else None
    return (text, "") if unit is None else (found[1], unit + re.sub(r"[\s{}]", "", found[3]))


def _unit(words: str) -> str | None:
    """The short name of a known unit, the words of a counted noun, None for other words."""
    if "/" in words or " per " in words:
        parts = [_unit(part.strip()) for part in re.split("/| per ", words)]
        return None if None in parts else "/".join(parts)
    power = re.search(r"^(sq|cu)(?:uare|bic)? |\^(\d)$", words)
    name = re.sub(r"^(?:sq|cu)(?:uare|bic)? |\^\d$", "", words).strip()
    name = name if len(name) == 1 else name.lower()  # 7 M is not 7 m
    short = UNITS.get(name, UNITS.get(name.removesuffix("s")))
    if short is not None:
        return short + (f"^{power[2] or (2 if power[1] == 'sq' else 3)}" if power and short else "")
    return name if NOUN.fullmatch(name) and not NO_NOUN.search(name) else None
