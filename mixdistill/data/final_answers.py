"""The final answer of a completion, and the number that a text spells; the rules are in `docs/grading.md`."""

import re
from fractions import Fraction
from itertools import pairwise

from mixdistill.arguments import choice, instance

ANSWER_FORMATS = ("pocket", "math", "gsm8k")
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# An empty box, or one that the completion only talks about: "I write it as \boxed{answer}".
EMPTY = re.compile(
    r"[\s.?_]*|\\?[lc]?dots|(?:\\text\s*\{)?\s*(?:(?:your|the|final)(?: |\\?_))*(?:answer|result|number)\s*\}?", re.I
)
# Where a thought begins or ends: <think>, </think>, [THINK], <seed:think>, <think_fast>, <|END_THINKING|>, <thought>,
# <|begin_of_thought|>; no [think] of prose, and no List<think> or a[THINK] of code, behind a word.
THOUGHT = re.compile(
    r"(?:(?<!\w)|(?=<\||</|\[/))(?:<\|?/?\|?(?:\w+:)?(?:START_|END_)?(?:think(?:ing)?|THINK(?:ING)?)(?:_\w+)?\|?>|"
    r"<\|(?:begin|end)_of_thought\|>|</?[tT]hought>|\[/?THINK\])|\u25c1/?think\u25b7"
)
# The same as channels of an answer: gpt-oss's, Gemma 4's.
CHANNEL = re.compile(r"<\|channel\|>(?:analysis|final)|<\|channel>thought|<channel\|>")
TAG = re.compile(f"{THOUGHT.pattern}|{CHANNEL.pattern}")
# A further question at the start of a line, glued to an answer, or behind a sentence that is no number of a list; no
# "Step 1: Understand the Question:".
RUN_ON = re.compile(
    r"(?:^[^\w\n]*(?:(?:Next |New |Original )?Question|Problem|User|Human|Q)|"
    r"(?:(?<=[\w.!?}$*)%\"'])|(?<=[.!?}$] )(?<!^\d\. )(?<!^\d\d\. )(?<!\*\d\. ))Question)(?: \d+)?:|"
    r"<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|return|end)\|>|</s>|<eos>|<end_of_turn>|<\uff5cend\u2581of\u2581sentence\uff5c>",
    re.M,
)
# How LaTeX groups digits: 70{,}000 and 70,\!000 and 70\,000; and others, by a narrow space.
THOUSANDS = re.compile(r"(?<=\d)(?<!\d{4})(?:\{,\}|,\s*\\!|\\[,;!]|[\xa0\u2009\u202f])\s*(?=\d{3}(?!\d))")
LED = re.compile(
    r"(?:\banswer(?:\s*(?:is|:|=|\*\*))+(?:\s+(?:therefore|thus|simply|exactly|option)\b)?|####)[\s:*]*(?=([^\n]+))",
    re.I,
)
# Words before a formula that is no answer: "it is not $5$", "substitute $x=5$", "$4$ when $x=5$".
DOUBT = re.compile(
    r"\b(?:not|cannot|never|no|at (?:least|most)|(?:more|less|greater|fewer|smaller|larger) than|approximately|about|"
    r"roughly|contradiction|unable|check|substitute|start|let|suppose|assume|consider|try|if|when|where|unless)\b",
    re.I,
)
# A reason behind a number, or behind a formula that a sentence begins with.
BEHIND = re.compile(r"(?<=\d),? +\(?(?:(?:since|because|as|which|not|approximately)\b|i\.e)")
REASONED = re.compile(
    r"(\$[^$]*\d[^$]*\$|\\\((?:(?!\\\)).)*\d(?:(?!\\\)).)*\\\)),? +"
    r"\(?(?:since|because|as|not|obtained|attained|with|where|when)\b"
)
FORMULA = re.compile(r"(?<!\\)\$\$?([^$]+)(?<!\\)\$\$?|\\\(((?:(?!\\\().)+?)\\\)|\\\[((?:(?!\\\[).)+?)\\\]", re.S)
JOINT = re.compile(r"\s{0,20}(?:[,;]|[,;]?\s{0,20}(?:and|or))\s{0,20}")  # between the members of a list

SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER = (
    r"(?:(?<![\w)])[-\u2212]|(?<=[:=#] )[-\u2212] |(?<=is )[-\u2212] )?(?:\\?\$ ?-?)?"
    r"(?:(?:\d+ ?)?\\[dt]?frac ?(?:\{\d+\} ?\{\d+\}|\d ?\d(?!\d))|(?:\d+ )?\d+/\d+|\d* ?[\xbc-\xbe\u2150-\u215e]|"
    rf"(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s(?:{'|'.join(SCALES)})\b)?"
)
POWER = r"(?:(?:e|(?: ?(?:\\times|\\cdot|\u00d7|\*) ?10)? ?\^ ?)\{?[-+]?\d+\}?)?"  # 5e3, 5 * 10^3, 10^6
# The number behind ####, unless it numbers a heading: "#### 1. Eggs left", "#### 2-day total", with a text below.
MARKED = re.compile(
    r"####(?![\s*]*\d+[.):-]\**[ \t]*[A-Za-z][^\n.]*\n\s*\S)"
    rf"(?:[\s*:$({{~]|\b(?:the|final|answer|is|total)\b)*({NUMBER})",
    re.I,
)
VALUE = re.compile(
    r"(?P<sign>[-+]? ?)(?:\\?\$ ?)?(?:(?P<whole>\d+)(?: |(?= ?\\frac)) ?(?=\S+/|\\frac))?"
    r"(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,4})?)(?: ?/ ?(?P<divisor>-?[\d.]+))?|"
    r"\\frac ?\{ ?(?P<top>-?[\d.]+) ?\} ?\{ ?(?P<bottom>-?[\d.]+) ?\})"
    rf"(?: ?(?P<scale>{'|'.join(SCALES)}))?",
    re.I,
)
# A Chinese unit behind a number: no factor (ten thousand, half, ...) in it; a thousand in kilograms and the like only.
CHINESE = (
    "(?:(?![\u4e07\u842c\u4ebf\u5104\u767e\u5341\u534a\u500d\u6298\u6210\u6253]|\u5343(?![\u514b\u7c73\u74e6\u5361]))"
    "[\u4e00-\u9fff]){1,4}(?<![\u5206\u89d2])\u3002?"
)
# A counted noun behind a number, such as `red apples` or `cups of tea`, and words that are none: 5 lakh, 5 or more.
NOUN = re.compile(r"(?:[a-z]+ )*(?:[a-z]+(?<!s)s|people|(?:wo)?men|children|feet|fish|sheep)(?: of [a-z ]+)?")
# What mathematics counts, in words that change a number elsewhere: 5 pairs are 10.
COUNTED = re.compile(
    r"\bordered (?:pair|triple|quadruple)s|\b(?:real|complex|distinct|integer|rational|positive|negative) roots|"
    r"\bperfect (?:square|cube|power)s|\btrailing zero(?:e?s)|\b\w+-digit (?:positive )?(?:number|integer)s"
)
DIGIT_WORD = (
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w*teen|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ie)|zero)"
)
SPELT = re.compile(rf"\((?=(?P<spelt>(?:\b{DIGIT_WORD}\b[- ]?)+))(?P=spelt)\)", re.I)  # 5 (five)
NUMBER_WORD = (
    rf"(?:{DIGIT_WORD}|hundred|thousand|\w*illion|dozen|score|lakh|crore|myriad|grand|k|pair|couple|double|triple)"
    r"(?:e?s)?|\w*illion\w*"
)
ORDINAL = r"\w*(?:four|fif|six|seven|eigh|nin|ten|twelf|hundred|thousand|ie|een)"
NO_NOUN = re.compile(
    rf"\b(?:{NUMBER_WORD}|half|halves|thirds?|quarters?|{ORDINAL}ths?|"
    r"percent(?:age)?s?|and|or|over|per|mod|bases?|if|when|where|plus\w*|minus(?:es)?|not|no|except|times|more|less|than|is|as|"
    r"(?:root|log|radian|factorial|power|factor|square|cube|negative|inverse|reciprocal|opposite|multiple|remainder|lot)s?|"
    r"squareds?|cubeds?|fails|works|differs|contradicts|exceeds|equals|cos|(?:co)?sines?|(?:co)?tangents?|pis|googols?|mils|"
    r"bils|thous|lacs|gross(?:es)?|quires?|reams?|\w*weights|permilles?|basis|unknowns?|false|wrong|missing|other|additional|"
    r"extra|remaining|"
    r"below|above|under|at|between|divided|multiplied|with|by|to|in)\b"
)

MONEY = "$\u20ac\u00a3\u00a5\u20b9"
# A gold answer around its number. Before it may stand a sign of money or what names an answer; behind it a unit or what
# is counted, but no word that makes another number of it (5 dozen, 2 and a half), no variable and no factor (2x, 5 M).
LEAD = re.compile(
    r"[\s*:=(#~\"'\[,]*(?:(?:the|final|answer|ans|result|total|is|it|so|thus|hence|therefore|exactly|only|"
    r"[a-z](?= ?[=:]))\b[\s*:=(,]*)*"
    rf"(?:US|AU|CA|HK|NZ|Rs\.?|INR|USD|EUR|GBP|[{MONEY}])?\s*",
    re.I,
)
# 0.33... is no 0.33.
REST = re.compile(rf"(?!\s?\.\.)(?:[^\W\d_]|[\s.,;:()\[\]'\"/%{MONEY}\u00a2\u00b0*-])*")
CHANGES = re.compile(
    rf"[\u4e00-\u9fff]|\b(?:{NUMBER_WORD}|half|halves|quarters?|thirds?|{ORDINAL}(?:ths|th(?! (?!of\b)[a-z]))|or|to|"
    r"nor|plus|minus|times|divided|multiplied|squared|cubed|factorial|pi|[mb]n|[mb]il|mln|mio|mill|milliards?|tril|tn|tsd|"
    r"(?-i:MM)|gross|fold|doubled|halved|tripled|twice|negative|debt|roots?|reciprocal|inverse|binary|octal|hex\w*|"
    r"recurring|repeating)\b",
    re.I,
)
# A letter alone that is no unit, and not that of `5 a day`.
LETTER = re.compile(r"(?<![^\W\d_])(?!\d|_|[LghlmsJNCF]\b|(?<=\s)(?:a[ .]|p\.))\w(?![^\W_])")
LOOK = (  # what only changes how a gold answer looks
    (r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r" \1"),
    (r"(?<=\d)(?=\\[dt]?frac)", " "),
    (r"\\[dt]?frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}", r"\1/\2"),
    (r"\\[()\[\]]|\$\$|\\(?:math|text)bf|[{}`_\u201c\u201d]|\\[,;: ]|\^ ?\{?\\circ\}?|\\(?=%)|(?<=[A-Za-z])!+$", " "),
    (r"^\s*\u2013(?=\d)", "-"),
    (r"(?<=[A-Za-z])\.(?=\d)", ". "),  # Rs.5 is not .5
    (rf"(?<=\d) ?{CHINESE}$", ""),
    (r"\s+", " "),
)
UNIT_POWER = re.compile(r"(?:(?<=[A-Za-z])|(?<=[A-Za-z]\})) ?(?:\^ ?\{?[23]\}?(?!\d)|[\u00b2\u00b3])")


def final_answer(response: str, answer_format: str, strict: bool = False) -> str | None:
    """The final answer of a completion, or None if it gives none.

    | answer_format | final answer                                                                              |
    |---------------|-------------------------------------------------------------------------------------------|
    | `pocket`      | the token behind the last `answer`                                                        |
    | `math`        | the last box; without one, what follows `answer is` or `Final Answer:`, or a last formula |
    | `gsm8k`       | the last box with a number; else the number behind the first `####`; else the last number |

    `math` and `gsm8k` read what stands behind a last `</think>` or the like (`TAG`), up to a run-on such as
    `Question:`. With `strict` only what is marked counts: for `math` a box (the paper's rule), for `gsm8k` a box or
    `####`. Raises ValueError for an unknown `answer_format`, or a response that is no text.
    """
    choice("answer_format", answer_format, ANSWER_FORMATS)
    instance("a response", response, str)
    if answer_format == "pocket":
        found = re.findall(r"(?<!\S)answer(?=\s+(\S+))", response)
        return found[-1] if found else None
    *_, last = None, *TAG.finditer(response)
    if last and not ends_thought(last[0]):
        return None  # it was cut while it thought
    text = response[last.end() :] if last else response
    text = THOUSANDS.sub(",", text) if answer_format == "gsm8k" else text
    marked, unmarked = (_last_box, _unboxed) if answer_format == "math" else (_marked_number, _last_number)
    for piece in RUN_ON.split(text):
        answer = marked(piece)
        if answer is not None:
            return answer or None  # "" is a last box that never closes: a completion that was cut
        if (answer := unmarked(piece)) is not None:
            return None if strict else answer
    return None


def _last_box(text: str) -> str | None:
    """What the last box that is not empty holds, `\\boxed{5}` or `\\boxed 5`; "" if it never closes, None without."""
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
        if led[-1][1].strip() in ("\\[", "$$"):  # on lines of its own
            shown = FORMULA.match(text, led[-1].end())
            return next(filter(None, shown.groups())).strip() if shown else None
        sentence = re.split(r"(?<!i\.e)\.(?:\s|$)|\s*I hope", led[-1][1])[0].strip(" *")
        sentence = found[1] if (found := REASONED.match(sentence)) else BEHIND.split(sentence)[0]
        if not re.search(r"[\w\u221e\u2205]", sentence):  # cut behind "the answer is:"; infinity, empty set
            return None
        return (None if sentence[:1].isdigit() else _last_formulas(sentence)) or sentence
    last = text.rstrip(" \n\t.*").rsplit("\n", 1)[-1]
    if (number := re.match(rf"(.*)\b(?:is|get|gives|equals)[\s:*]+({NUMBER})$", last)) and not DOUBT.search(number[1]):
        return number[2]
    if formulas := _last_formulas(text[-2000:] if last in ("$$", "\\]") else last):
        return formulas
    return last.strip(" *") if re.fullmatch(NUMBER, last.strip(" *")) else None


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
    found = formulas[first if is_list else -1 :]
    if DOUBT.search(re.split(r"[,.;:]\s", text[: found[0].start()])[-1]):
        return None
    return ", ".join(next(filter(None, formula.groups())).strip() for formula in found)


def _marked_number(text: str) -> str | None:
    box = _last_box(text)
    if box is None or (box and not re.search(r"\d", box)):
        found = MARKED.search(text)
        return found[1].strip() if found else None
    plain = re.sub(rf"\\(?:text|mathrm)\s*\{{([^{{}}]*)\}}|\\?%$|(?<=\d) ?{CHINESE}$", r" \1", box).strip()
    found = re.fullmatch(r"([-+]?\\?\$?[\d.,/]+) ?([A-Za-z ]{3,})\.?", plain)
    if found and is_counted(found[2].strip().lower()):  # 5 red apples are 5
        return found[1]
    words = SPELT.sub("", plain.lower())
    words = re.sub(r"\bper\b|[^a-z]+", " ", words)
    # 5 more, 5 in total; 5 more than x is another number.
    words = re.sub(r"\b(?:more|extra|additional|other|remaining|in (?:total|all|an?))\b", "", words)
    # 18\text{ m} is no product. A number that is all of a short box is read as that of a gold answer.
    return (gold_number(box) if len(box) <= 60 and not NO_NOUN.search(words) else None) or plain


def ends_thought(tag: str) -> bool:
    """Whether a tag as `TAG` finds it ends a thought."""
    if CHANNEL.fullmatch(tag):
        return tag in ("<|channel|>final", "<channel|>")
    return "/" in tag[1:3] or "END_" in tag.upper() or tag.rstrip("|>").endswith("_end")


def math_gold(text: str) -> str | None:
    """What a `math` gold answer says: itself, or of a worked solution what its last box holds. None if that never
    closes, and for a solution that marks its answer by `####`, which is a `gsm8k` one."""
    if BOX.search(text):
        return _last_box(text) or None
    return None if "####" in text else text


def gold_number(text: str) -> str | None:
    """What a `gsm8k` gold answer says: the only number of its text, or of what a worked solution marks; a text without
    a number as it is. None for several numbers, or one that the text around it changes, as in 5^2 or 5 dozen."""
    marked = re.search(r"####\s*([^\n]*)", text)
    said = _last_box(text) if "\\boxed" in text else f"# {marked[1]}" if marked else text
    if not said or number_value(said) is not None:  # "" is a box that never closes
        return said.strip() if said else None
    plain = UNIT_POWER.sub("", THOUSANDS.sub(",", said))
    for pattern, written in LOOK:
        plain = re.sub(pattern, written, plain)
    numbers = re.findall(NUMBER, plain)
    if not numbers:
        return None if marked else said
    before, _, after = plain.partition(numbers[0])
    after = re.sub(f"^ ?{SPELT.pattern}", "", after, flags=re.I)
    money = re.search(rf"[{MONEY}]|\b(?:Rs|INR|USD|EUR|GBP)\b", before + numbers[0], re.I)
    if money and re.match(r" ?[b-zA-Z]\b", after):  # $5m are millions, though 5 m is a length
        return None
    kept = len(numbers) == 1 and LEAD.fullmatch(before) and REST.fullmatch(after)
    return numbers[0].strip() if kept and not CHANGES.search(after) and not LETTER.search(after) else None


def _last_number(text: str) -> str | None:
    numbers = re.findall(f"{NUMBER}{POWER}", UNIT_POWER.sub("", text))
    return numbers[-1].strip() if numbers else None


def is_counted(words: str) -> bool:
    """Whether words behind a number name what it counts, such as `red apples`, and do not change it."""
    words = COUNTED.sub("things", words)
    return bool(NOUN.fullmatch(words)) and not NO_NOUN.search(words)


def number_value(text: str) -> Fraction | None:
    """The exact value of `-1234.5`, `1/2`, `1\\frac{1}{2}`, `2 \\times 10^3`, `1e3`, `1.5 million`; None for others."""
    power = r" ?(?:\\times|\\cdot|\*) ?10 ?\^ ?(?:\{ ?([-+]?\d+) ?\}|(\d))"
    found = VALUE.fullmatch(re.sub(power, r"e\1\2", text.strip()))
    if not found:
        return None
    try:
        value = Fraction(found["number"] or found["top"]) / Fraction(found["divisor"] or found["bottom"] or 1)
    except (ValueError, ZeroDivisionError):  # 1.2.3, or more digits than Python reads
        return None
    if found["whole"]:
        if not 0 <= value < 1:
            return None  # 2\frac{3}{2} may be a product
        value += int(found["whole"])
    return value * SCALES.get((found["scale"] or "").lower(), 1) * (-1 if "-" in found["sign"] else 1)
