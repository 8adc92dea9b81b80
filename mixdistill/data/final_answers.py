"""The final answer that a completion gives, by fixed rules (`docs/grading.md`)."""

import re

ANSWER_FORMATS = ("pocket", "math", "gsm8k")
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212])?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?")


def final_answer(response: str, answer_format: str) -> str | None:
    """The final answer of a completion by the table above, or None."""
    if answer_format == "pocket":
        words = response.split()
        marks = [i for i, word in enumerate(words[:-1]) if word == "answer"]
        return words[marks[-1] + 1] if marks else None
    if answer_format not in ANSWER_FORMATS:
        raise ValueError(f"unknown answer_format {answer_format!r}: use one of {', '.join(ANSWER_FORMATS)}")
    if answer_format == "math" or BOX.search(response):
        return last_boxed(response)
    if "####" in response:
        line = response.rsplit("####", 1)[1].strip().split("\n")[0].strip()
        number = NUMBER.match(line)
        return (number[0] if number else line) or None
    numbers = [match[0] for match in NUMBER.finditer(response)]
    return numbers[-1] if numbers else None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, `\\fbox{...}` or `\\boxed 5`, nested braces included.

    None without one, if the last one never closes (a completion that was cut), or if it is empty.
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    first = boxes[-1].end()
    if text[first : first + 1] != "{":
        bare = re.match(r"[^\s$\\{}]+", text[first:])
        return bare[0].rstrip(".,;") or None if bare else None
    depth = 0
    for brace in re.finditer(r"(?<!\\)(?:\\\\)*[{}]", text[first:]):
        depth += 1 if brace[0][-1] == "{" else -1
        if depth == 0:
            return text[first + 1 : first + brace.end() - 1].strip() or None
    return None
