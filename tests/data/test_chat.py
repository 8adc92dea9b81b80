import json
from datetime import date

import pytest
from datasets import Dataset
from families import COMMAND_R7B, FAMILIES, GEMMA4, Family, chatml, tokenizer
from tokenizers.normalizers import NFD, NFKC, Lowercase, Sequence, StripAccents

from mixdistill import grade, load_problems, load_traces
from mixdistill.data.chat import (
    opens_thinking,
    prompt_fingerprint,
    prompt_ids,
    prompt_text,
    render,
    render_prompts,
    render_traces,
    stop_token_id,
)
from mixdistill.data.students import load_tokenizer
from pretraining.tokenizer import build_tokenizer

QUESTION, THOUGHT = "What is 12 plus 30?", "<think>\nLet me think.\n</think>\n\nIt is 42."


@pytest.fixture(scope="module")
def pocket_tokenizer():
    return build_tokenizer()


def trained_text(tokenizer, example) -> str:
    return tokenizer.decode(example.input_ids[example.n_prompt :])


def with_template(template):
    changed = build_tokenizer()
    changed.chat_template = template
    return changed


def test_the_loss_covers_response_and_stop_token_and_nothing_else(pocket_tokenizer):
    for trace in load_traces("pocket/long", n=30):
        example = render(pocket_tokenizer, trace["question"], trace["response"], "pocket")
        assert trained_text(pocket_tokenizer, example) == f"{trace['response']} <eos>"
        assert example.input_ids[: example.n_prompt] == prompt_ids(pocket_tokenizer, trace["question"], "pocket")
        assert example.input_ids.count(pocket_tokenizer.bos_token_id) == 1
        assert example.loss_mask == [i >= example.n_prompt for i in range(len(example.input_ids))]


def test_what_chatml_writes_after_the_stop_token_is_not_trained(bpe_tokenizer):
    example = render(bpe_tokenizer, QUESTION, "It is \\boxed{42}.", "gsm8k")
    assert trained_text(bpe_tokenizer, example) == "It is \\boxed{42}.<|im_end|>"
    assert bpe_tokenizer.decode(example.input_ids[: example.n_prompt]).endswith("<|im_start|>assistant\n")
    assert stop_token_id(bpe_tokenizer) == bpe_tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_math_problems_are_asked_with_the_papers_prompt(bpe_tokenizer):
    text = bpe_tokenizer.decode(prompt_ids(bpe_tokenizer, "What is {x}?", "math"))
    assert "Final Answer: \\boxed{your_answer}.\nProblem: What is {x}?\nAnswer:" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_is_trained_as_it_is_written_up_to_the_familys_stop_token(name):
    family = FAMILIES[name]
    words = tokenizer(family)
    example = render(words, QUESTION, THOUGHT, "gsm8k")
    prompt = prompt_text(words, QUESTION, "gsm8k")
    assert example.input_ids[: example.n_prompt] == prompt_ids(words, QUESTION, "gsm8k")
    said = trained_text(words, example)
    # Some templates open the block in the prompt; gpt-oss names a channel, and Mistral writes a space, before the
    # response.
    opened = THOUGHT.removeprefix("<think>\n") if prompt.endswith("<think>\n") else THOUGHT
    before = {"gpt-oss": "<|channel|>final<|message|>", "mistral": " "}.get(name, "")
    assert said == before + opened + family.stop
    assert words.decode([stop_token_id(words)]) == family.stop


@pytest.mark.parametrize("name", [name for name in FAMILIES if "<think>" not in FAMILIES[name].template])
def test_a_plain_templates_example_is_its_own_rendering_of_both_turns(name):
    family = FAMILIES[name]
    words = tokenizer(family)
    for response in ("It is 42.", " \nIt is 42.\n"):
        if "strftime_now" in family.template:
            continue  # it writes today's date
        turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": response}]
        text = words.apply_chat_template(turns, tokenize=False)
        text = text[: text.rindex(family.stop) + len(family.stop)] if family.stop in text[-40:] else text + family.stop
        if name in ("glm4", "qwen2.5", "smollm2", "phi", "phi3", "lfm2", "falcon-h1", "olmo2") and response[0] == " ":
            continue  # the blanks stay, and merge with the prompt's newline: the prompt's tokens are kept
        assert (
            render(words, QUESTION, response, "gsm8k").input_ids == words(text, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.parametrize(
    ("name", "thinking", "end"),
    [
        ("qwen3", None, "<|im_start|>assistant\n"),
        ("qwen3", True, "<|im_start|>assistant\n"),
        ("qwen3", False, "<think>\n\n</think>\n\n"),
        ("qwen3.5", None, "<think>\n"),
        ("qwen3.5", False, "<think>\n\n</think>\n\n"),
        ("smollm3", False, "<think>\n\n</think>\n\n"),
        ("nemotron3", True, "<|im_start|>assistant\n<think>\n"),
        ("nemotron3", False, "<think></think>"),
    ],
)
def test_thinking_is_the_templates_own_switch_and_its_empty_block_is_the_prompts(name, thinking, end):
    words = tokenizer(FAMILIES[name])
    assert prompt_text(words, QUESTION, "gsm8k", thinking).endswith(end)
    example = render(words, QUESTION, "It is 42.", "gsm8k", thinking)
    assert trained_text(words, example) == "It is 42.<|im_end|>"
    assert example.input_ids[: example.n_prompt] == prompt_ids(words, QUESTION, "gsm8k", thinking)


@pytest.mark.parametrize(
    ("template", "special", "ends", "trained"),
    [
        (
            GEMMA4,
            ("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<eos>"),
            ("<|turn>model\n", "<|turn>model\n<|channel>thought\n<channel|>"),
            "It is 42.<turn|>",
        ),
        (
            COMMAND_R7B,
            (*FAMILIES["cohere2"].special, "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            ("<|CHATBOT_TOKEN|>", "<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>"),
            "<|START_RESPONSE|>It is 42.<|END_RESPONSE|>",
        ),
    ],
    ids=["gemma4", "command-r7b"],
)
def test_an_empty_think_block_in_words_of_its_own_is_the_prompts_too(template, special, ends, trained):
    words = tokenizer(Family("Llama", template, special, special[-1]))
    for thinking, end in zip((True, False), ends, strict=True):
        assert prompt_text(words, QUESTION, "gsm8k", thinking).endswith(end)
        assert trained_text(words, render(words, QUESTION, "It is 42.", "gsm8k", thinking)) == trained


def test_a_switch_may_change_the_system_prompt(bpe_tokenizer):
    assert "/no_think" in prompt_text(tokenizer(FAMILIES["smollm3"]), QUESTION, "gsm8k", False)
    assert "Think first" in prompt_text(tokenizer(FAMILIES["granite"]), QUESTION, "gsm8k", True)
    for thinking in (True, False):
        with pytest.raises(ValueError, match=f"thinking is {thinking}, but the chat template of .* has no such switch"):
            render(bpe_tokenizer, QUESTION, THOUGHT, "gsm8k", thinking)


def test_no_prompt_depends_on_the_day():
    for name, written in {"llama3.2": "26 Jul 2024", "gpt-oss": "26 Jul 2024", "smollm3": "26 Jul 2024"}.items():
        text = prompt_text(tokenizer(FAMILIES[name]), QUESTION, "gsm8k")
        assert written in text
        assert date.today().strftime("%d %b %Y") not in text


def test_the_fingerprint_is_of_what_is_rendered():
    prints = [prompt_fingerprint(tokenizer(FAMILIES["qwen3"]), thinking) for thinking in (None, True, False)]
    assert prints[0] == prints[1] != prints[2]
    assert prints[0] == prompt_fingerprint(tokenizer(FAMILIES["qwen3"]))
    words = tokenizer(FAMILIES["qwen3"])
    words.chat_template = words.chat_template.replace("<|im_start|>user", "<|im_start|>human")
    assert prompt_fingerprint(words) != prints[0]
    assert prompt_fingerprint(build_tokenizer()) == prompt_fingerprint(build_tokenizer())


@pytest.mark.parametrize(
    ("question", "response", "named"),
    [
        ("What is <|im_end|>?", "It is 42.", r"'<\|im_end\|>'"),
        (QUESTION, "It is 42.<|im_end|>\n<|im_start|>user\nAnd", r"'<\|im_end\|>', '<\|im_start\|>'"),
        (QUESTION, "<|pad|> It is 42.", r"'<\|pad\|>'"),
    ],
)
def test_control_tokens_that_a_text_spells_out_are_refused_with_the_row(question, response, named):
    words = tokenizer(FAMILIES["qwen3"])
    rows = [(QUESTION, THOUGHT, "gsm8k"), (question, response, "gsm8k")]
    traces = Dataset.from_list([dict(zip(("question", "response", "answer_format"), row, strict=True)) for row in rows])
    with pytest.raises(ValueError, match=rf"row 1 of the traces .*: the text spells out control tokens .*{named}"):
        render_traces(words, traces, 256, "error")


@pytest.mark.parametrize(
    ("normalizer", "spelt"),
    [
        (NFKC(), "\uff1c|im_end|\uff1e"),
        (Lowercase(), "<|IM_END|>"),
        (Sequence([NFD(), StripAccents()]), "<|\xedm_end|>"),
    ],
)
def test_control_tokens_that_a_normalizer_spells_out_are_refused(normalizer, spelt):
    words = tokenizer(FAMILIES["qwen2.5"])
    words.backend_tokenizer.normalizer = normalizer
    with pytest.raises(ValueError, match=r"spells out control tokens of the student \('<\|im_end\|>'\)"):
        prompt_text(words, f"What is {spelt}?", "gsm8k")


@pytest.mark.parametrize(
    ("family", "thinking", "opens"),
    [("qwen3", None, False), ("qwen3", False, False), ("qwen3.5", None, True), ("qwen3.5", False, False)],
)
def test_whether_a_prompt_opens_a_thought(family, thinking, opens):
    assert opens_thinking(tokenizer(FAMILIES[family]), thinking) is opens


@pytest.mark.parametrize(
    ("end", "opens"),
    [("<think>\\n", True), ("</think>", False), ("<think></think>", False), ("[THINK]", True), ("", False)],
)
def test_the_last_tag_of_a_prompt_says_whether_a_thought_is_open(end, opens):
    words = tokenizer(FAMILIES["qwen2.5"])
    words.chat_template = words.chat_template.replace("<|im_start|>assistant\\n", f"<|im_start|>assistant\\n{end}")
    assert opens_thinking(words) is opens


def traces_of(*responses: str) -> Dataset:
    rows = [{"question": QUESTION, "response": said, "answer_format": "gsm8k"} for said in responses]
    return Dataset.from_list(rows)


def test_responses_that_never_end_the_prompts_thought_get_an_empty_one_and_are_counted():
    words = tokenizer(FAMILIES["qwen3.5"])
    with pytest.warns(UserWarning, match=r"1 of 3 responses do not end the thought .* empty one \(</think> before"):
        examples = render_traces(words, traces_of("It is 42.", THOUGHT, "So 42</think>It is 42."), 999, "error")
    shown = [trained_text(words, example).removesuffix("<|im_end|>") for example in examples]
    assert shown == ["\n</think>\n\nIt is 42.", THOUGHT.removeprefix("<think>\n"), "So 42</think>It is 42."]
    assert all(grade("<think>" + said, "42", "gsm8k").correct for said in shown)  # as evaluations grade it


def test_a_thought_behind_a_prompt_that_has_just_ended_one_is_refused():
    words = tokenizer(FAMILIES["qwen3.5"])
    with pytest.raises(ValueError, match=r"1 of 2 responses begin a thought \(the first: rows \[1\]\)"):
        render_traces(words, traces_of("It is 42.", THOUGHT), 999, "error", thinking=False)
    assert len(render_traces(words, traces_of("It is 42."), 999, "error", thinking=False)) == 1


def test_a_stop_token_before_the_response_is_refused():
    words = tokenizer(FAMILIES["qwen2.5"])
    words.chat_template = chatml("{{ 'thought<|im_end|>' + m['content'] }}")
    with pytest.raises(ValueError, match=r"writes '<\|im_end\|>' before the response and behind it"):
        prompt_ids(words, QUESTION, "gsm8k")


@pytest.mark.parametrize("written", ["m['content'] | lower", "m['content'][:20]", "m['content'].split() | join"])
def test_a_template_that_rewrites_the_question_is_refused(written):
    words = tokenizer(FAMILIES["qwen2.5"])
    words.chat_template = words.chat_template.replace("m['content'] + '", f"({written}) + '")
    with pytest.raises(ValueError, match="does not write a question as it is"):
        prompt_ids(words, QUESTION, "gsm8k")


def test_a_template_never_sees_what_it_is_asked():
    words = tokenizer(FAMILIES["qwen2.5"])
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    words.chat_template = f"{{% if '12 plus' in messages[0]['content'] %}}{loop}{{% endif %}}" + words.chat_template
    assert QUESTION in prompt_text(words, QUESTION, "gsm8k")


def test_added_tokens_that_the_template_names_are_control_tokens_and_others_are_text():
    words = tokenizer(FAMILIES["qwen2.5"])
    words.add_tokens(["<tool_call>", "<b>"])
    words.chat_template = "{% if tools %}<tool_call>{% endif %}" + words.chat_template
    assert "<b>12</b>" in prompt_text(words, "What is <b>12</b>?", "gsm8k")
    with pytest.raises(ValueError, match=r"control tokens of the student \('<tool_call>'\)"):
        prompt_text(words, "What is <tool_call>?", "gsm8k")


def test_a_pocket_tokenizer_goes_by_the_name_of_its_student():
    with pytest.raises(ValueError, match=r"unknown to the student's tokenizer \('pocket/xs'\)"):
        prompt_ids(load_tokenizer("pocket/xs"), "What is 7 plus 8?", "pocket")


def test_think_tags_may_be_special_tokens_and_turn_tokens_may_not():
    words = tokenizer(FAMILIES["qwen3"])
    words.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert trained_text(words, render(words, QUESTION, THOUGHT, "gsm8k")) == THOUGHT + "<|im_end|>"
    data = json.loads(words.backend_tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = False
    words = type(words)(
        tokenizer_object=type(words.backend_tokenizer).from_str(json.dumps(data)), chat_template=words.chat_template
    )
    with pytest.raises(ValueError, match=r"control tokens of the student \('<\|im_end\|>'\)"):
        prompt_ids(words, "What is <|im_end|>?", "gsm8k")


def test_texts_in_another_language_than_the_students_are_refused_with_the_problem(pocket_tokenizer, math_problems):
    problems = load_problems(str(math_problems), columns={"question": "problem"})
    with pytest.raises(ValueError, match=r"problem .*\d+ of \d+ tokens are unknown .*pocket students know the pocket"):
        render_prompts(pocket_tokenizer, problems, 256, None)
    with pytest.raises(ValueError, match=r"tokens are unknown to the student's tokenizer"):
        render(pocket_tokenizer, "find once B i7 :", "we add", "pocket")


def test_half_characters_and_nul_are_refused(bpe_tokenizer):
    for question, response in (("a \udc80", "b"), ("a", "b \udc80"), ("a", "b\0")):
        with pytest.raises(ValueError, match="a text without NUL or lone surrogates"):
            render(bpe_tokenizer, question, response, "gsm8k")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "chat_template is not set"),
        ("{% for m in messages %} {{ m['content'] }}{% endfor %}", "writes no special token after the response"),
        ("{% for m in messages %} {{ m['content'] | upper }} <eos>{% endfor %}", "right behind the generation prompt"),
        (
            "{% for m in messages %} {{ m['content'] }} <eos>{% endfor %}"
            "{% if add_generation_prompt %} wait{% endif %}",
            "right behind the generation prompt",
        ),
        ("{{ raise_exception('no users') }}", "does not render a question and its answer .*no users"),
        ("{{ 'a' * 10 ** 30 }}", "does not render a question and its answer"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "does not render a question and its answer"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "does not end within seconds",
        ),
        ("{{ 'a' * 4000000000 }}", "does not end within seconds, or takes too much memory"),
        ("{{ 'a' | center(300000000) }}", "takes too much memory"),
    ],
)
def test_templates_that_would_train_the_wrong_tokens_or_never_end_are_refused(template, message):
    for use in (render, prompt_text):
        texts = ("so i7 B = i3 .",) if use is render else ()
        with pytest.raises(ValueError, match=message):
            use(with_template(template), "find once B i7 :", *texts, "pocket")


def test_long_examples_are_refused_or_dropped_never_cut(pocket_tokenizer):
    traces = load_traces("pocket/long", n=40)
    lengths = [len(example.input_ids) for example in render_traces(pocket_tokenizer, traces, 256, "error")]
    limit = sorted(lengths)[20]
    over = sum(length > limit for length in lengths)
    with pytest.raises(ValueError, match=rf"{over} of 40 examples have more than {limit} tokens"):
        render_traces(pocket_tokenizer, traces, limit, "error")
    kept = render_traces(pocket_tokenizer, traces, limit, "drop")
    assert [len(example.input_ids) for example in kept] == [length for length in lengths if length <= limit]
    with pytest.raises(ValueError, match="40 of 40 examples have more than 3 tokens"):
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
