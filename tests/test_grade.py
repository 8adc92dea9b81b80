import pytest

from mixdistill.grade import final_answer, grade


@pytest.mark.parametrize(
    ("kind", "response", "answer"),
    [
        ("pocket", "so 7 + 8 = 15 . answer 15 .", "15"),
        ("pocket", "answer 3 . wait redo : answer 4 .", "4"),
        ("pocket", "need 7 no .", None),
        ("pocket", "so answer", None),
        ("math", "First \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("math", "\\fbox{x}", "x"),
        ("math", "never closed \\boxed{1", None),
        ("math", "The answer is 5.", None),
        ("gsm8k", "9 * 2 = 18\n#### 18\n", "18"),
        ("gsm8k", "#### 1 then \\boxed{2}", "2"),
        ("gsm8k", "####", None),
    ],
)
def test_final_answers(kind, response, answer):
    assert final_answer(response, kind) == answer


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("27.0", "27", True),
        ("073", "73", True),
        ("1,000", "1000", True),
        ("$\\left( 3, \\frac{\\pi}{2} \\right)$", "(3,\\frac{\\pi}{2})", True),
        ("\\dfrac12", "\\frac12", True),
        ("12", "2", False),
        ("(1,2)", "(1,3)", False),
        ("1,2", "12", False),
        ("x", "y", False),
    ],
)
def test_equality_is_of_text_or_decimal_value(gold, answer, same):
    assert grade(f"\\boxed{{{answer}}}", gold).correct is same


def test_no_answer_is_wrong_and_says_so():
    assert grade("I do not know", "4") == type(grade("", ""))(correct=False, answer=None, reason="no_answer")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="pocket, math, gsm8k"):
        grade("4", "4", kind="essay")
