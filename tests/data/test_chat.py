import pytest

from mixdistill import load_problems, load_traces
from mixdistill.data.chat import prompt_ids, render, render_prompts, render_traces, stop_token_id
from mixdistill.data.pocket.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def pocket_tokenizer():
    return build_tokenizer()


def trained_text(tokenizer, example) -> str:
    ids = [token for token, trained in zip(example.input_ids, example.loss_mask, strict=True) if trained]
    return tokenizer.decode(ids)


def test_the_loss_covers_response_and_stop_token_and_nothing_else(pocket_tokenizer):
    for trace in load_traces("pocket/long", n=30):
        example = render(pocket_tokenizer, trace["question"], trace["response"], "pocket")
        assert trained_text(pocket_tokenizer, example) == f"{trace['response']} <eos>"
        assert example.input_ids[: example.n_prompt] == prompt_ids(pocket_tokenizer, trace["question"], "pocket")
        assert example.input_ids.count(pocket_tokenizer.bos_token_id) == 1


def test_what_chatml_writes_after_the_stop_token_is_not_trained(bpe_tokenizer):
    example = render(bpe_tokenizer, "What is 12 plus 30?", "It is \\boxed{42}.", "gsm8k")
    assert trained_text(bpe_tokenizer, example) == "It is \\boxed{42}.<|im_end|>"
    assert bpe_tokenizer.decode(example.input_ids[: example.n_prompt]).endswith("<|im_start|>assistant\n")
    assert stop_token_id(bpe_tokenizer) == bpe_tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_math_problems_are_asked_with_the_papers_prompt(bpe_tokenizer):
    text = bpe_tokenizer.decode(prompt_ids(bpe_tokenizer, "What is {x}?", "math"))
    assert "Final Answer: \\boxed{your_answer}.\nProblem: What is {x}?\nAnswer:" in text


def with_template(tokenizer, template):
    copy = build_tokenizer()
    copy.chat_template = template
    return copy


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %} {{ m['content'] }}{% endfor %}", "writes no special token after the response"),
        ("{% for m in messages %} {{ m['content'] | upper }} <eos>{% endfor %}", "right behind the generation prompt"),
        (
            "{% for m in messages %} {{ m['content'] }} <eos>{% endfor %}"
            "{% if add_generation_prompt %} wait{% endif %}",
            "right behind the generation prompt",
        ),
    ],
)
def test_templates_that_would_train_the_wrong_tokens_are_refused(pocket_tokenizer, template, message):
    with pytest.raises(ValueError, match=message):
        render(with_template(pocket_tokenizer, template), "find once B i7 :", "so i7 B = i3 . answer i3 .", "pocket")


def test_long_examples_are_refused_or_dropped_never_cut(pocket_tokenizer):
    traces = load_traces("pocket/long", n=40)
    lengths = [len(example.input_ids) for example in render_traces(pocket_tokenizer, traces, 256, "error")]
    limit = sorted(lengths)[20]
    over = sum(length > limit for length in lengths)
    with pytest.raises(ValueError, match=rf"{over} of 40 examples have more than {limit} tokens"):
        render_traces(pocket_tokenizer, traces, limit, "error")
    kept = render_traces(pocket_tokenizer, traces, limit, "drop")
    assert [len(example.input_ids) for example in kept] == [length for length in lengths if length <= limit]
    with pytest.raises(ValueError, match="all 40 examples"):
        render_traces(pocket_tokenizer, traces, 3, "drop")
    with pytest.raises(ValueError, match="use one of error, drop"):
        render_traces(pocket_tokenizer, traces, limit, "cut")


def test_a_prompt_longer_than_the_context_is_refused(pocket_tokenizer):
    problems = load_problems("pocket/hard", n=5)
    prompts, room = render_prompts(pocket_tokenizer, problems, 256, None)
    assert room == 256 - max(map(len, prompts))
    with pytest.raises(ValueError, match="exceed the student's context of 10"):
        render_prompts(pocket_tokenizer, problems, 10, None)
    with pytest.raises(ValueError, match=r"5 of 5 prompts .* 250 new tokens exceed"):
        render_prompts(pocket_tokenizer, problems, 256, 250)
