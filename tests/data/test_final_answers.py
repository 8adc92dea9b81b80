"""Which part of a completion is its final answer? The rules are those of docs/grading.md."""

import pytest

from mixdistill.data.final_answers import final_answer, number_value

BOXED = [
    (r"First \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\fbox{x}", "x"),
    ("It is \\boxed 5.", "5"),
    (r"$\boxed\pi$", r"\pi"),
    (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
    (r"\boxed{\text{a \{ brace}}", r"\text{a \{ brace}"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{3} and so \boxed{\frac{1}{2", None),  # cut
    (r"\boxed{}", None),
    (r"\boxedly{5}", None),
    (r"\boxed{4}, as asked: mark your solution with \boxed", "4"),
    (r"\boxed{4} (Format: \boxed{your_answer})", "4"),
    (r"\boxed{4}. I write it as \boxed{answer}, not \boxed{}.", "4"),
    ("\\boxed{5}\n\nQuestion: 2 + 2? \\boxed{4}", "5"),
    ("Problem: find x.\nSolution: \\boxed{5}", "5"),
    (r"<think> \boxed{4} </think> It is \boxed{5}.", "5"),
    (r"<think> surely \boxed{5}", None),  # cut while it thought
    (r"<|channel|>analysis surely \boxed{5}", None),
    (r"<|channel|>analysis surely 4assistant<|channel|>final\boxed{5}", "5"),
    ("<|channel>thought\n surely \\boxed{5}", None),
    ("<|channel>thought\n so 4<channel|>\\boxed{5}", "5"),
    (r"[THINK] surely \boxed{5}", None),
    (r"[THINK] surely \boxed{5} [/THINK] \boxed{6}", "6"),
    (r"<seed:think>\boxed{5}</seed:think>\boxed{6}", "6"),
    (r"<|START_THINKING|>\boxed{5}<|END_THINKING|>\boxed{6}", "6"),
    (r"<think>\boxed{4}</think> Wait. <think> \boxed{5}", None),
    (r"<think_fast>\boxed{4}</think_fast>\boxed{6}", "6"),
    (r"<think> So it is 4</think>\boxed{5}", "5"),  # a tag that stands right behind a word
    (r"[THINK]so 4[/THINK]\boxed{5}", "5"),
    (r"<|START_THINKING|>so 4<|END_THINKING|>\boxed{5}", "5"),
    (r"<|begin_of_thought|> surely \boxed{5}", None),
    (r"<|begin_of_thought|>so 4<|end_of_thought|>\boxed{5}", "5"),
    (r"<Thought> surely \boxed{5}", None),
    ("\u25c1think\u25b7so 4\u25c1/think\u25b7\\boxed{5}", "5"),
    (r"**Step 1: Understand the Question:** How many? \boxed{5}", "5"),
    (r"It is \boxed{5}Question: 1 + 1? \boxed{2}", "5"),
    (r"It is \boxed{5}. Question: 1 + 1? \boxed{2}", "5"),
    (r"It is \boxed{5} Question: 1 + 1? \boxed{2}", "5"),
    ("1. Question: 1 + 4?\n2. So \\boxed{5}", "5"),
    (r"I [rethink] it: \boxed{5}", "5"),
    (r"[Thinking] Let me compute. So \boxed{5}", "5"),
    (r"See [think](http://x.y): dp[i_think] = a[think], List<think> x. \boxed{5}", "5"),
]
UNBOXED = [
    ("The answer is $10$ since $a=5$.", "10"),
    ("Therefore the answer is $10$ because $n=3$ fails.", "10"),
    ("The final answer is $10$, obtained at $x=3$.", "10"),
    ("The answer is $10$ (with $x=2$).", "10"),
    ("So the answer is $2$, not $3$.", "2"),
    ("The answer is 2, i.e. $x=2$.", "2"),
    ("The answer is $(1,2)$ and $(3,4)$.", "(1,2), (3,4)"),
    ("The answer is $m+n$, which is $100+3=103$.", "100+3=103"),
    ("The answer is the coefficient of $x^2$, which is $-6$.", "-6"),
    ("The answer is $f(2)$, i.e., $12$.", "12"),
    ("The final answer is $(a,b)$ with $a=3$ and $b=4$.", "a=3, b=4"),
    ("The answer is 42.", "42"),
    ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
    ("**Final Answer:** 42", "42"),
    ("So\n$x = 2$, and then\n$42$.", "42"),
    ("Therefore\n\\[\n x = 42 \n\\]", "x = 42"),
    ("The answer is 5.\n\nQuestion: 1 + 1? The answer is \\boxed{2}", "5"),
    ("So the answer is:\n\\[\n42\n\\]\nsince $x = 3$.", "42"),
    ("**Final Answer:**\n\n$$\n\\frac{1}{2}\n$$", r"\frac{1}{2}"),
]
GSM8K = [
    (r"\boxed{18\text{ more minutes}}", "18"),
    (r"\boxed{\$1,800\text{ in total}}", r"\$1,800"),
    (r"\boxed{18\text{ eggs in a week}}", "18"),
    (r"\boxed{12\text{ remaining}}", "12"),
    (r"\boxed{3 \text{ (three)}}", "3"),
    (r"\boxed{5\text{ to one}}", "5  to one"),
    (rf"\boxed{{5 ({'seventeen ' * 40}x)}}", f"5 ({'seventeen ' * 40}x)"),  # in no time
    ("So the profit is **$70\u202f000**.", "$70,000"),
    ("#### 70\u202f000", "70,000"),
    ("In 2020\u202f300 came", "300"),
    ("It is 5 apples.<end_of_turn> 7", "5"),
    ("9 * 2 = 18 #### 18", "18"),
    ("#### $1,234.50 a year", "1,234.50"),
    ("#### **42**", "42"),
    ("#### Answer: 42", "42"),
    ("#### - 5", "- 5"),
    ("So the profit is $70{,}000$.", "$70,000"),
    (r"So the profit is $70\,000$.", "$70,000"),
    (r"#### 70,\!000", "70,000"),
    ("**Step 1: Understand the Question:** 48 clips in 2 days.\n#### 72", "72"),
    ("The answer is 18. Question: A robe takes 2 bolts. Answer: 3", "18"),
    ("So 18 dollarsQuestion: 1 + 2? 3", "18"),
    ("18.\nNext Question: 3? 3", "18"),
    ("1. Question: 1 + 4?\n2. The answer is 5", "5"),
    ("#### 1. Eggs left\n16 - 7 = 9\n#### 2. Money\nShe makes $18.", "$18"),
    ("#### **1. Find the eggs**\n9 * 2 = 18", "18"),
    ("#### 2-day total\nThe total is 36.", "36"),
    ("#### 18. That leaves 5 apples.", "18"),
    ("#### 18. She makes $18 every day.\n\nNote that she eats 3 eggs.", "18"),
    ("#### The final answer is 18. Here is why:\n16 - 3 - 4 = 9.", "18"),
    ("#### Answer: 18. Janet sells 9 eggs.\nCheck: 16-7 = 9", "18"),
    ("#### (18) dollars\nbecause 9 * 2 is 18 and 9 = 16 - 7", "18"),
    ("#### 18.00. She makes it.\nBye 3", "18.00"),
    (r"\boxed{5\text{ less}}", "5  less"),
    (r"\boxed{5 (\text{" + "teen" * 40 + "x}}", "5 ( " + "teen" * 40 + "x"),
    ("#### 18\n#### 5", "18"),
    (r"\boxed{18\text{ m}}", "18"),
    (r"\boxed{25\text{ years old}}", "25"),
    (r"\boxed{\$18\text{ per day}}", r"\$18"),
    (r"\boxed{5\text{ dozen}}", "5  dozen"),
    (r"\boxed{9\times 2}", r"9\times 2"),
    ("#### 1 and later #### 2", "1"),
    (r"#### 1 then \boxed{2}", "2"),
    (r"#### 42. As asked, \boxed{answer}.", "42"),
    (r"\boxed{42 apples}", "42"),
    (r"\boxed{\text{5 red apples}}", "5"),
    (r"\boxed{5 dozen}", "5 dozen"),
    (r"\boxed{28\%}", "28"),
    (r"\boxed{2", None),
    ("She has 3 and buys 4, so 7 apples.", "7"),
    ("The change is -2.5 dollars.", "-2.5"),
    ("The answer is - 5", "- 5"),
    ("That is 10-4", "4"),
    ("That is 10 - 4", "4"),
    ("It takes 2 1/2 hours", "2 1/2"),
    (r"It is \frac{1}{2}", r"\frac{1}{2}"),
    ("She sold 1.5 million", "1.5 million"),
    ("The answer is 18.\n\nQuestion: How many? #### 10", "18"),
    ("I do not know.", None),
    ("The area is 18 cm^2.", "18"),
    ("The area is $18\\text{ cm}^2$.", "$18"),
    ("so x^2 = 9", "9"),
    ("There are 10^6.", "10^6"),
    (r"It is $5 \times 10^3$", r"$5 \times 10^3"),
    (r"It is $\frac56$.", r"$\frac56"),
    ("\\boxed{18\u5143}", "18"),
    ("\\boxed{18\u4e07}", "18\u4e07"),
    ("\\boxed{18\u4e07\u5143}", "18\u4e07\u5143"),
]


@pytest.mark.parametrize(("completion", "answer"), BOXED)
def test_the_last_box_that_holds_something_is_the_answer(completion, answer):
    assert final_answer(completion, "math") == answer
    assert final_answer(completion, "math", strict=True) == answer


@pytest.mark.parametrize(("completion", "answer"), UNBOXED)
def test_without_a_box_the_named_answer_or_the_last_formula_counts_unless_strict(completion, answer):
    assert final_answer(completion, "math") == answer
    assert final_answer(completion, "math", strict=True) is None


@pytest.mark.parametrize(("completion", "answer"), GSM8K)
def test_gsm8k_takes_a_box_with_a_number_then_the_first_marked_then_the_last_number(completion, answer):
    assert final_answer(completion, "gsm8k") == answer


@pytest.mark.parametrize("text", ["Wait, let me check again. ", "\n", "\\(", "\n|---|---|\n", "the ", "$1$" + " " * 40])
@pytest.mark.parametrize("answer_format", ["math", "gsm8k"])
def test_the_end_of_a_completion_that_loops_is_found_in_linear_time(text, answer_format):
    """60,000 characters: by trying again from every place it would be minutes, and the test would not end."""
    found = final_answer("So x = 5. " + text * (60_000 // len(text)), answer_format)
    assert found in (None, "5", "1", "$1")


def test_strict_gsm8k_takes_marked_numbers_only():
    assert final_answer("#### 18", "gsm8k", strict=True) == "18"
    assert final_answer("so 18", "gsm8k", strict=True) is None


@pytest.mark.parametrize(
    ("completion", "answer"),
    [("so i7 B = i3 . answer i3 .", "i3"), ("answer i3 . wait after B answer i4 .", "i4"), ("answer", None)],
)
def test_a_pocket_answer_is_the_token_behind_the_last_answer(completion, answer):
    assert final_answer(completion, "pocket") == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5 million", "1500000"),
        (r"-1\frac{1}{2}", "-3/2"),
        (r"1.2 \times 10^{3}", "1200"),
        ("1.2e-3", "3/2500"),
        ("- 5", "-5"),
        (r"2\frac{3}{2}", "None"),  # a mixed number, or a product?
        ("1/0", "None"),
        ("1.2.3", "None"),
    ],
)
def test_the_value_of_a_number_is_exact(text, value):
    assert str(number_value(text)) == value


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 41. Wait, the answer is 42.", "42"),
        ("The answer is $3$ or $5$.", "3, 5"),
        ("Thus $x=3$ and $x=5$.", "x=3, x=5"),
        ("Thus for $n=3$, $2^n=8$.", "2^n=8"),
    ],
)
def test_without_a_box_the_last_statement_counts_and_a_list_is_whole(response, answer):
    assert final_answer(response, "math") == answer


@pytest.mark.parametrize(
    "response",
    [
        "So the answer cannot be $5$.",
        "We conclude that $x$ is greater than $5$.",
        "There is no solution with $x = 5$.",
        "Next, substitute $x = 5$",
        "We need to check $n=4$ and $n=5$.",
        "$x$ equals 42 when $y = 5$.",
        "I was not able to solve this for $n=5$.",
        "So the answer is:",
        "The final answer is:\n",
        "The answer is\t",
    ],
)
def test_a_formula_that_is_taken_back_or_only_tried_is_no_answer(response):
    assert final_answer(response, "math") is None


@pytest.mark.parametrize(
    "response",
    ["The value of $x$ is 42.", "I get **42**", "So the answer is 42 since 6*7 = 42.", "The answer is 42, which fits."],
)
def test_a_number_that_a_sentence_ends_with_or_explains_is_the_answer(response):
    assert final_answer(response, "math") == "42"
