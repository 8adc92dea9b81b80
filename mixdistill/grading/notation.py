"""An answer in one way of writing, whatever it looked like: the first step of a comparison (`equality`)."""

import re
import unicodedata

from mixdistill.data.final_answers import SCALES

FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp"
GREEK = "alpha|beta|delta|(?:var)?epsilon|eta|theta|lambda|mu|nu|rho|sigma|tau|(?:var)?phi|psi|omega"
ARGUMENT = rf"([\dA-Za-z]|\\(?:pi|{GREEK})(?![A-Za-z]))"  # what TeX takes for an argument without braces
STYLES = r"text(?:bf|it|rm|tt|sf|normal)?|math(?:rm|bf|it|sf)|rm|bf|it|emph|mbox|operatorname|boldsymbol"
LOOK = [  # what only changes how an answer looks, in this order
    (r"^[*`\"]+|[*`\"]+$|(?<!\\)\$|\\[()]|^\\\[|\\\]$", ""),
    (r"(?<=\\\\)\s*\[\s*[\d.]+\s*(?:ex|em|pt|mm|cm)\s*\]", " "),  # room between the rows of a matrix
    (r"(?<!\\)\\\\(?=[A-Za-z]{2})", r"\\"),  # an escaped command, not the end of a row in front of one
    (r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\,)\s*(?=\d{3}(?!\d))|\\!|\\(?=%)", ""),
    (r"\\(?:left|right)(?![A-Za-z])\.?|\\(?:[bB]igg?[lr]?|(?:display|text)style|[lL]arge|[hH]uge)(?![A-Za-z])", ""),
    (r"(?<![\^_}\]A-Za-z\\])\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}"),
    (r"\\(?:math)?(?:bf|rm)(?![A-Za-z]|\s*\{)|\\checkmark", ""),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\vert(?![A-Za-z])", "|"),
    (r"(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z]))|~", " "),
    (r"\\(?:textcolor|color)\s*\{\w+\}|\\boxed\s*(?=\{)", ""),
    (rf"\\(?:{STYLES})\s*(?=\{{)", r"\\text"),
    (rf"\\text\s*\{{\s*({FUNCTIONS.replace('sec|', '')})\s*\}}\s*(?=[({{\\\w])", r"\\\1 "),  # `sec` is a unit, too
    (r"^\s*\\text\s*\{\s*(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswer(?: is)?:?\s*\}\s*(?=\S)", ""),
    (r"^\s*\\text\s*\{\s*\([A-E]\)\s*\}\s*(?=\\?\$?-?\.?\d|\\(?:[dt]?frac|sqrt|pi))", ""),  # a choice and its value
    (rf"\\text\s*\{{\s*({'|'.join(SCALES)})\s*\}}", r" \1 "),
    (r"(?<![\d)}])(?<![\d)}] )\\text\s*\{\s*([A-Za-z])\s*\}", r" \1 "),
    (r"\\text\s*\{([^{}]*\w),?\s+(?:and|or)\s*\}(?=\s*[-\d\\])", r"\\text{\1}, "),  # 5 cm and 12 cm
    (r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)?\s*\}|(?<![A-Za-z\\{])(?:and|or)(?![A-Za-z]))", ", "),
    (r"(?:\\text\s*\{|(?<=\d))\s*(?:percent(?:age)?|pct)\s*(?:\}|$)", "%"),
    (r"(?:\\text\s*\{|(?<=\d))\s*degrees?\s*(?:\}|$)|\^\s*\{\s*\\circ\s*\}", r"^\\circ "),
    (r"\\(?:[dtcs]|nice)(frac|binom)(?![A-Za-z])", r"\\\1"),
    (rf"\\frac\s*{ARGUMENT}\s*(?=[{{\\A-Za-z]|\d(?!\d))", r"\\frac{\1}"),
    (rf"(\\frac\s*\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})\s*{ARGUMENT}(?!\d)", r"\1{\2}"),
    (r"√ ?\(([^()]*)\)|√ ?(\d+|[a-z])|\\sqrt ?(\d(?!\d)|[a-z])", r"\\sqrt{\1\2\3}"),
    (r"(\\sqrt ?\[\w+\]) ?(\d(?!\d)|[a-z])", r"\1{\2}"),
    (r"∛ ?(\d+|[a-z])", r"\\sqrt[3]{\1}"),
    (r"\*\*|\^ ?(?=\()", "^"),
    (r"\^\(([^()]*)\)", r"^{\1}"),
    (r"\\geq?(?:slant)?(?![A-Za-z])|>=", r"\\ge "),
    (r"\\leq?(?:slant)?(?![A-Za-z])|<=", r"\\le "),
    (r"^\s*(\d+)!\s*=", r"\1! ="),
    (r"\\neq?(?![A-Za-z])|!=", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\+/-|^\s*\+-(?=\s*[\d\\])", r"\\pm "),
    (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2 "),
    (r"(\^\w) (?=\d)", r"\1\\cdot "),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\[? ?\\begin ?\{(?:[pb]?matrix|array)\}(?: ?\{[lcr| ]*\})?", r"\\begin{pmatrix}"),
    (r"(?:\\\\\s*)?\\end ?\{(?:[pb]?matrix|array)\} ?\]?", r"\\end{pmatrix}"),
    (r"^\s*(?:\\approx|=)|(?<=\d:\d\d):00$|\\text\s*\{\s*[.,]\s*\}$", ""),
    (r"(?:(?<=[\d}])|(?<=\\pi)|(?<=\\pi )) *\\approx *[\d.]+$", ""),
    (r"\s+", " "),
    (r"^ ?\\text ?\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\} ?\.?$", r"\1"),
]
# The escapes are minus, times, union and the fraction slash.
SYMBOLS = (
    "\u2212=- \xd7=\\times ·=\\cdot ⋅=\\cdot ÷=\\div ≤=\\le ≥=\\ge ≠=\\ne ±=\\pm \u222a=\\cup ∈=\\in ≈=\\approx "
    "⩾=\\ge ⩽=\\le 、=, ∞=\\infty °=^\\circ ∅=\\emptyset \u2044=/ θ=\\theta π=\\pi"
)


def clean(text: str) -> str:
    """An answer in one way of writing: no Unicode, styles, thousands separators, brackets around the whole."""
    for mark, digits in (("^", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ"), ("_", "₀₁₂₃₄₅₆₇₈₉")):
        text = re.sub(rf"[{digits}]+", rf"{mark}{{\g<0>}}", text)
    text = re.sub(r"(?<=\d)(?=[\xbc-\xbe\u2150-\u215e])", " ", text)  # 1½ is not 11/2
    text = unicodedata.normalize("NFKC", re.sub(r"^\u2013(?=[\d.\\])", "-", text))  # elsewhere an en dash is a range
    for char, latex in (pair.split("=") for pair in SYMBOLS.split()):
        text = text.replace(char, f"{latex} ")
    for pattern, replacement in LOOK:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"(?<!\.)\.$|\u3002$|[\\ ,;]+$", "", text.strip())
    while found := re.fullmatch(r"\\?\{(?!\\empty)([^{}\[\],;]+?)\\?\}|\(([^()\[\],;]+)\)|\+(.+)", text):
        text = next(filter(None, found.groups())).strip()
    # `parse` knows no list of two inside of a fraction or of brackets: 1/2 (1 \pm \sqrt 5).
    text = ",".join(map(_both_signs, members(text))) if "\\pm" in text else text
    return text.replace(" ", "") if re.fullmatch(r"[1-9]\d{0,2}(?: \d{3})+", text) else text


def members(text: str) -> list[str]:
    """What stands between the commas of a list, those in brackets left aside."""
    depth, parts = 0, [""]
    for char in text:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(char, 0)
        parts[-1] += char
        if char == "," and depth == 0:
            parts[-1:] = [parts[-1][:-1], ""]
    return [part.strip() for part in parts]


def _both_signs(text: str) -> str:
    """A member with one \\pm in brackets as its two values, with a comma between."""
    if not re.fullmatch(r"[^{(]*[{(].*\\pm.*", text) or text.count("\\pm") > 1 or "\\{" in text or "," in text:
        return text
    plus = re.sub(r"(?<=[{(]) ?\\pm ?", "", text).replace("\\pm", "+")
    return plus + "," + text.replace("\\pm", "-")
