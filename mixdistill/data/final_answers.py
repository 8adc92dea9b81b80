"""The final answer of a completion, and the number that a text spells. The rules are written down in
`docs/grading.md`.
"""

import re
from fractions import Fraction
from itertools import pairwise

from mixdistill.arguments import choice

ANSWER_FORMATS = ("pocket", "math", "gsm8k")
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# An empty box, or one that the completion only talks about: "I write it as \boxed{answer}".
EMPTY = re.compile(
    r"[\s.?_]*|\\?[lc]?dots|(?:\\text\s*\{)?\s*(?:(?:your|the|final) )*(?:answer|result|number)\s*\}?", re.I
)
RUN_ON = re.compile(
    r"Question(?: \d+)?:|^\W*(?:Problem|User|Human|Q)(?: \d+)?:|<\|(?:im_end|eot_id|endoftext)\|>|</s>", re.M
)
LED = re.compile(r"(?:\banswer(?:\s*(?:is|:|=|\*\*))+|####)[\s:*]*(?=([^\n]+))", re.I)
FORMULA = re.compile(r"(?<!\\)\$\$?([^$]+)(?<!\\)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
JOINT = re.compile(r"\s*(?:[,;]|[,;]?\s*(?:and|or))\s*")  # between the members of a list

SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    r"(?:(?<![\w)])[-\u2212]|(?<=[:=#] )[-\u2212] |(?<=is )[-\u2212] )?(?:\\?\$ ?-?)?"
    rf"(?:(?:\d+ ?)?\\[dt]?frac ?\{{\d+\}} ?\{{\d+\}}|(?:\d+ )?\d+/\d+|\d* ?[\xbc-\xbe\u2150-\u215e]|{DECIMAL})"
    rf"(?:\s(?:{'|'.join(SCALES)})\b)?"
)
MARKED = re.compile(rf"####(?:[\s*:$({{~]|\b(?:the|final|answer|is|total)\b)*({NUMBER.pattern})", re.I)
VALUE = re.compile(
    r"(?P<sign>(?:[-+] ?)?)(?:\\?\$ ?)?(?:"
    r"(?P<number>\d+\.?\d*|\.\d+)(?:(?: ?(?:\\times|\\cdot|\*) ?10 ?\^ ?\{? ?|[eE])(?P<power>[-+]?\d{1,4}) ?\}?)?|"
    r"(?P<start>\d*\.\d*) ?\\overline ?\{(?P<period>\d+)\}|"
    r"(?:(?P<whole>\d+) ?)?\\frac ?\{ ?(?P<top>-?[\d.]+) ?\} ?\{ ?(?P<bottom>-?[\d.]+) ?\}|"
    r"(?:(?P<whole2>\d+) )?(?P<top2>[\d.]+) ?/ ?(?P<bottom2>-?[\d.]+))"
    rf"(?: ?(?P<scale>{'|'.join(SCALES)}))?"
)
# A counted noun behind a number, such as `red apples` or `cups of tea`, and words that are none: 5 lakh, 3 cube roots,
# 5 or more.
NOUN = re.compile(r"(?:[a-z]+ )*(?:[a-z]+(?<!s)s|people|(?:wo)?men|children|feet|fish|sheep)(?: of [a-z ]+)?")
NO_NOUN = re.compile(
    r"\b(?:\w*illion\w*|hundreds?|thousands?|dozens?|scores|pairs|couples|lakhs?|crores?|myriads|halves|tens|ones|thirds|quarters|"
    r"\w*(?:four|fif|six|seven|eigh|nin|ten|twelf|hundred|thousand|ie)ths?|and|or|over|per|mod|base|if|when|where|plus|minus|not|"
    r"no|except|times|more|than|is|as|roots|logs|radians|factorials|powers|squares|cubes|negatives?|inverses|reciprocals|"
    r"half|opposites|multiples|remainders|below|above|under|at|between|divided|multiplied|with|by|to|in)\b"
)


def final_answer(response: str, answer_format: str, strict: bool = False) -> str | None:
    """The final answer of a completion, or None if it gives none.

    | answer_format | final answer                                                                             |
    |---------------|------------------------------------------------------------------------------------------|
    | `pocket`      | the token behind the last `answer`                                                       |
    | `math`        | the last box; without one, what follows `answer is` or `Final Answer:`, or a last formula |
    | `gsm8k`       | the last box with a number; else the number behind the first `####`; else the last number |

    Both read what stands behind `</think>`, up to a run-on such as `Question:`. With `strict` only what is marked
    counts: for `math` a box (the paper's rule), for `gsm8k` a box or `####`. Raises ValueError for an unknown
    `answer_format`.
    """
    choice("answer_format", answer_format, ANSWER_FORMATS)
    if answer_format == "pocket":
        words = response.split()
        marks = [i for i, word in enumerate(words[:-1]) if word == "answer"]
        return words[marks[-1] + 1] if marks else None
    text = response.rsplit("</think>", 1)[-1]
    if "<think>" in text:
        return None  # it was cut while it thought
    marked, unmarked = (last_box, _unboxed) if answer_format == "math" else (_marked_number, _last_number)
    for piece in RUN_ON.split(text):
        answer = marked(piece)
        if answer is not None:
            return answer or None  # "" is a last box that never closes: a completion that was cut
        answer = unmarked(piece)
        if answer is not None:
            return None if strict else answer
    return None


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, `\\fbox{...}`, `\\boxed 5` or `\\boxed\\frac{1}{2}` that is not empty.

    None without one; "" if the last one never closes.
    """
    for box in reversed(list(BOX.finditer(text))):
        end = box.end()
        if text[end : end + 1] == "{":
            end = _group_end(text, end)
            content = text[box.end() + 1 : end - 1]
        else:
            while token := re.compile(r"\\[A-Za-z]+|[^\s$\\{}]|\{").match(text, end):
                end = _group_end(text, end) if token[0] == "{" else token.end()
            content = re.sub(r"^[A-Za-z]{2,}.*|[.,;:`]+$", "", text[box.end() : end])  # prose behind a bare \boxed
        if end > len(text):
            return ""
        if not EMPTY.fullmatch(content):
            return content.strip()
    return None


def _group_end(text: str, start: int) -> int:
    """The place behind the brace that closes the one at `start`; behind the whole text if none does."""
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.S).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.end()
    return len(text) + 1


def _unboxed(text: str) -> str | None:
    """The answer of a completion without a box, as lm-evaluation-harness (minerva) and Math-Verify find it."""
    if led := list(LED.finditer(text)):
        sentence = re.split(r"\.(?:\s|$)|\s*I hope", led[-1][1])[0].strip(" *")
        return (None if sentence[:1].isdigit() else _last_formulas(sentence)) or sentence or None
    last = text.rstrip(" \n\t.*").rsplit("\n", 1)[-1]
    if formulas := _last_formulas(text[-2000:] if last in ("$$", "\\]") else last):
        return formulas
    return last.strip(" *") if NUMBER.fullmatch(last.strip(" *")) else None


def _last_formulas(text: str) -> str | None:
    """The last formula, together with those that a list joins to it: `$3$ or $5$` is not 5."""
    formulas = list(FORMULA.finditer(text))
    if not formulas:
        return None
    gaps = [text[one.end() : other.start()] for one, other in pairwise(formulas)]
    first = len(gaps)
    while first and JOINT.fullmatch(gaps[first - 1]):
        first -= 1
    # A comma alone also separates a formula from the clause before it: "for $n=3$, $2^n=8$".
    is_list = not text[: formulas[first].start()].strip() or re.search("and|or", "".join(gaps[first:]))
    return ", ".join(next(filter(None, formula.groups())).strip() for formula in formulas[first if is_list else -1 :])


def _marked_number(text: str) -> str | None:
    box = last_box(text)
    if box is not None and (box == "" or re.search(r"\d", box)):
        plain = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}|\\?%$", r" \1", box).strip()
        return without_noun(plain)
    found = MARKED.search(text)
    return found[1].strip() if found else None


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return numbers[-1].strip() if numbers else None


def without_noun(text: str) -> str:
    """`5 red apples` as `5`; anything else as it is."""
    found = re.fullmatch(r"([-+]?\\?\$?[\d.,/]+) ?([A-Za-z ]{3,})\.?", text)
    words = found[2].strip().lower() if found else ""
    return found[1] if NOUN.fullmatch(words) and not NO_NOUN.search(words) else text


def number_value(text: str) -> Fraction | None:
    """The exact value of `-1,234.5`-like numbers without commas, `1/2`, `1\\frac{1}{2}`, `2 \\times 10^3`, `1e3`,
    `0.\\overline{3}`, `1.5 million`; None for anything else."""
    found = VALUE.fullmatch(text.strip())
    if not found:
        return None
    try:
        if found["period"]:
            whole, _, fixed = found["start"].partition(".")
            period = Fraction(int(found["period"]), (10 ** len(found["period"]) - 1) * 10 ** len(fixed))
            value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed)) + period
        elif found["number"]:
            value = Fraction(found["number"]) * Fraction(10) ** int(found["power"] or 0)
        else:
            whole = int(found["whole"] or found["whole2"] or 0)
            value = Fraction(found["top"] or found["top2"]) / Fraction(found["bottom"] or found["bottom2"])
            if (found["whole"] or found["whole2"]) and not 0 <= value < 1:
                return None  # 2\frac{3}{2} may be a product
            value += whole
    except (ValueError, ZeroDivisionError):  # 1.2.3, or more digits than Python reads
        return None
    return value * SCALES.get(found["scale"], 1) * (-1 if "-" in found["sign"] else 1)
