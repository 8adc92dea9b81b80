"""Does a completion end in the right answer? Extraction first, then equality, both by fixed rules.

| kind     | final answer of a completion                          |
|----------|-------------------------------------------------------|
| `pocket` | the token after the last `answer`                     |
| `math`   | the content of the last `\\boxed{}` or `\\fbox{}`        |
| `gsm8k`  | the last `\\boxed{}`; else what follows the last `####` |

No answer is wrong, and counted as `no_answer`.
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

KINDS = ("pocket", "math", "gsm8k")


@dataclass(frozen=True)
class Grade:
    """`reason` is `equal`, `different` or `no_answer`; `answer` is what was extracted, None without one."""

    correct: bool
    answer: str | None
    reason: str


def grade(response: str, gold: str, kind: str = "math") -> Grade:
    """Grade a whole completion against the gold answer.

    Raises ValueError for an unknown `kind`.
    """
    answer = final_answer(response, kind)
    if answer is None:
        return Grade(False, None, "no_answer")
    same = equal(gold, answer)
    return Grade(same, answer, "equal" if same else "different")


def final_answer(response: str, kind: str) -> str | None:
    """The final answer of a completion by the table above, or None."""
    if kind == "pocket":
        words = response.split()
        marks = [i for i, word in enumerate(words[:-1]) if word == "answer"]
        return words[marks[-1] + 1] if marks else None
    if kind not in KINDS:
        raise ValueError(f"unknown kind of answer {kind!r}: use one of {', '.join(KINDS)}")
    boxed = last_boxed(response)
    if boxed is None and kind == "gsm8k" and "####" in response:
        lines = response.rsplit("####", 1)[1].strip().splitlines()
        return lines[0].strip() if lines else None
    return boxed


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` or `\\fbox{...}`, nested braces included; None if it never closes."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    first = text.index("{", start) + 1
    depth = 1
    for at in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[first:at].strip()
    return None


def equal(gold: str, answer: str) -> bool:
    """Same text after removing `$`, spaces, `\\left`, `\\right` and thousands commas, or the same decimal number.

    Stricter than a person: `1/2` and `0.5` differ. It never accepts a different value.
    """
    left, right = _normal(gold), _normal(answer)
    if left == right:
        return True
    try:
        return Decimal(left) == Decimal(right)
    except InvalidOperation:
        return False


def _normal(text: str) -> str:
    text = str(text).replace("\\left", "").replace("\\right", "").replace("\\dfrac", "\\frac").replace("$", "")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"\s|\\[!,;: ]", "", text).rstrip(".")
