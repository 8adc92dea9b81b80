"""A problem and a trace as the student sees them: token ids by its chat template, and which of them are trained.

An example is the template's generation prompt, the response as it is written, and the token with which the template ends an
assistant's turn. The response is not read back from the rendered turn, because templates of thinking students delete or trim
the thinking of earlier turns.
"""

import datetime
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from datasets import Dataset
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from mixdistill import arguments
from mixdistill.data.pocket.tokenizer import CHAT_TEMPLATE
from mixdistill.data.problems import PROMPTS, Problem

LONGEST = 16_000  # new tokens, where no limit is given: the paper's
# What a template is told for today: Llama 3.2 and SmolLM3 write the date into every prompt, and no run may depend on its day.
# It is the date that Llama's own template falls back to. transformers passes no functions to a template, so this is a macro.
TODAY = datetime.datetime(2024, 7, 26)
REPLACED = "".join(f" | replace('%{letter}', '{TODAY.strftime('%' + letter)}')" for letter in "aAbBdHIjmMpSyY")
STRFTIME = f"{{% macro strftime_now(form) %}}{{{{ form | replace('%-', '%'){REPLACED} }}}}{{% endmacro %}}"
QUESTION, RESPONSE = "Probe question 7", "Probe response 8"  # what a template is tried with
THINK_TAG = re.compile(r"[<\[]/?\|?[\w:/]*think\w*\|?[>\]]", re.IGNORECASE)  # <think>, </think>, [THINK], <seed:think>
THINK_BLOCK = re.compile(rf"\s*({THINK_TAG.pattern}\s*)+\Z", re.IGNORECASE)  # opened or empty, at the end of a prompt


@dataclass(frozen=True)
class Example:
    """Token ids of prompt, response and stop token; the first `n_prompt` carry no loss."""

    input_ids: list[int]
    n_prompt: int
    row: int = -1  # of the trace set that it comes from

    @property
    def loss_mask(self) -> list[bool]:
        return [i >= self.n_prompt for i in range(len(self.input_ids))]


@dataclass(frozen=True)
class _Format:
    """What a template writes around question and response, found out with a probe."""

    before: str  # between generation prompt and response, such as gpt-oss's channel; trained
    after: str  # behind the response, up to the stop token
    trims: bool  # whether the template cuts blanks off both ends of the response
    control: dict[int, str]  # control tokens, which only the template may write
    n_prompt_control: int  # how many it writes in a prompt
    n_control: int  # and in a whole example


def render(
    tokenizer: PreTrainedTokenizerBase, question: str, response: str, answer_format: str, thinking: bool | None = None
) -> Example:
    """One training example: prompt, response as it is written, and the chat template's stop token, which is trained.

    Arguments:
        thinking: the switch of a template that has one (`enable_thinking`, `thinking`); None leaves it to the template.
            Where the generation prompt opens `<think>` itself, the `<think>` of a response is not written a second time.

    Raises ValueError for a template that is absent, has no such switch, writes no stop token, or rewrites prompt or response;
    and for a text with control tokens, or with words that the student does not know.
    """
    form = _format(tokenizer, _template(tokenizer), thinking)
    response = arguments.text("response", response, empty=True)
    prompt = prompt_text(tokenizer, question, answer_format, thinking)
    example = _example(tokenizer, form, prompt, response)
    _check_content(tokenizer, form, example.input_ids, form.n_control, question + response)
    return example


def _example(tokenizer: PreTrainedTokenizerBase, form: _Format, prompt: str, response: str) -> Example:
    text = form.before + _continued(prompt, response.strip() if form.trims else response) + form.after
    prompt_tokens, tokens = _ids(tokenizer, prompt), _ids(tokenizer, prompt + text)
    if tokens[: len(prompt_tokens)] != prompt_tokens:
        # A prompt that ends in a newline before a response that begins with one. What a student generates follows the
        # prompt's own tokens, so these stay, where the tokenizer can begin in the middle of a text.
        tokens = prompt_tokens + _ids(tokenizer, text)
        if tokenizer.decode(tokens, clean_up_tokenization_spaces=False) != prompt + text:
            raise ValueError(
                f"the tokens of the prompt change once the response follows (tokenizer of {tokenizer.name_or_path!r}): "
                "end the generation prompt with a special token, a space or a newline"
            )
    return Example(tokens, len(prompt_tokens))


def _continued(prompt: str, response: str) -> str:
    """The response behind this prompt: without its `<think>`, and the blanks after it, where the prompt ends with them."""
    tag = re.match(rf"\s*({THINK_TAG.pattern})", response, re.IGNORECASE)
    if tag is None or not prompt.rstrip().endswith(tag.group(1)):
        return response
    return response[tag.end() :].removeprefix(prompt[len(prompt.rstrip()) :])


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, question: str, answer_format: str, thinking: bool | None = None
) -> str:
    """The chat template's text up to where the assistant begins; raises as `render` does."""
    form = arguments.choice("answer_format", answer_format, PROMPTS)
    user = PROMPTS[form].format(question=arguments.text("question", question))
    return _apply(tokenizer, [user], thinking)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, answer_format: str, thinking: bool | None = None
) -> list[int]:
    """The token ids of `prompt_text`."""
    form = _format(tokenizer, _template(tokenizer), thinking)
    ids = _ids(tokenizer, prompt_text(tokenizer, question, answer_format, thinking))
    _check_content(tokenizer, form, ids, form.n_prompt_control, question)
    return ids


def stop_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn: what training examples end with, and where generation stops."""
    return _ids(tokenizer, _format(tokenizer, _template(tokenizer), None).after)[-1]


def prompt_fingerprint(tokenizer: PreTrainedTokenizerBase, thinking: bool | None = None) -> str:
    """A hash of what fixed conversations render to, text and ids: runs and evaluations under one name saw the same prompts."""
    form = _format(tokenizer, _template(tokenizer), thinking)
    seen = []
    for prompt in PROMPTS.values():
        text = _apply(tokenizer, [prompt.format(question="What is 7 + 8? find need i7 B :")], thinking)
        example = _example(tokenizer, form, text, " So 7 + 8 = 15. so i7 B = i3 .\n")
        seen.append([text, form.before, form.after, form.trims, example.input_ids, example.n_prompt])
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]


def render_traces(
    tokenizer: PreTrainedTokenizerBase, traces: Dataset, max_tokens: int, too_long: str, thinking: bool | None = None
) -> list[Example]:
    """All traces as examples of at most `max_tokens` tokens.

    `too_long` says what happens to longer ones: `error` refuses the set, `drop` leaves them out. `thinking` as in `render`.
    """
    arguments.choice("too_long", too_long, ("error", "drop"))
    _format(tokenizer, _template(tokenizer), thinking)  # what is wrong with the template is no fault of a row
    examples = []
    columns = (traces[name][:] for name in ("question", "response", "answer_format"))
    for row, trace in enumerate(zip(*columns, strict=True)):
        try:
            examples.append(replace(render(tokenizer, *trace, thinking), row=row))
        except ValueError as error:
            raise ValueError(f"row {row} of the traces: {error}") from error
    long = [i for i, example in enumerate(examples) if len(example.input_ids) > max_tokens]
    if long and too_long == "error":
        longest = max(len(example.input_ids) for example in examples)
        raise ValueError(
            f"{len(long)} of {len(examples)} examples have more than {max_tokens} tokens (the longest {longest}; the first: "
            f"rows {long[:5]}): raise max_tokens up to the student's context, or leave them out with too_long='drop'"
        )
    kept = [example for i, example in enumerate(examples) if i not in set(long)]
    if not kept:
        raise ValueError(f"all {len(examples)} examples have more than {max_tokens} tokens: raise max_tokens")
    return kept


def render_prompts(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    context: int,
    max_new_tokens: int | None,
    thinking: bool | None = None,
) -> tuple[list[list[int]], int]:
    """The prompts' token ids, and how many new tokens each may get.

    With `max_new_tokens` None that is what the longest prompt leaves of the student's context, at most the paper's 16,000.
    Raises ValueError if a prompt leaves less room than asked, and as `render` does.
    """
    _format(tokenizer, _template(tokenizer), thinking)
    prompts = []
    for problem in problems:
        try:
            asked = problem.prompt or problem.answer_format
            prompts.append(prompt_ids(tokenizer, problem.question, asked, thinking))
        except ValueError as error:
            raise ValueError(f"problem {problem.id!r}: {error}") from error
    longest = max(map(len, prompts))
    room = max(1, min(LONGEST, context - longest)) if max_new_tokens is None else max_new_tokens
    long = [problem.id for problem, ids in zip(problems, prompts, strict=True) if len(ids) + room > context]
    if long:
        raise ValueError(
            f"{len(long)} of {len(problems)} prompts (the longest has {longest} tokens; the first: {long[:3]}) and {room} new "
            f"tokens exceed the student's context of {context}: lower max_new_tokens or leave these problems out"
        )
    return prompts, room


def _check_content(
    tokenizer: PreTrainedTokenizerBase, form: _Format, ids: list[int], n_control: int, said: str
) -> None:
    """Refuse a text with words that the student does not know, or that spells out control tokens."""
    unknown = tokenizer.unk_token_id
    if unknown not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id) and unknown in ids:
        raise ValueError(
            f"{ids.count(unknown)} of {len(ids)} tokens are unknown to the student's tokenizer ({tokenizer.name_or_path!r}): "
            "give texts in the student's own language, or another student (pocket students know the pocket world only)"
        )
    if sum(token in form.control for token in ids) != n_control:
        spelt = [name for name in form.control.values() if name in said]
        raise ValueError(
            f"the text spells out control tokens of the student ({', '.join(map(repr, spelt))}), which would end a turn or "
            "begin another: take them out or leave the text out"
        )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template has written the special tokens, so the tokenizer must not add a second BOS.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _apply(tokenizer: PreTrainedTokenizerBase, said: list[str], thinking: bool | None) -> str:
    """The text of a conversation, user and assistant by turns; after a user's turn with the generation prompt."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    switch = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
    template = tokenizer.get_chat_template()
    return tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=len(said) == 1,
        chat_template=(STRFTIME + template) if "strftime_now" in template else template,
        **switch,
    )


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, which renders within limits of time and memory."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use the student's Instruct version, or set "
            "tokenizer.chat_template and save the student to a local folder"
        )
    template = tokenizer.get_chat_template()
    if template != CHAT_TEMPLATE and not _ends(template):
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} does not end within seconds on a short question, or takes "
            "too much memory: it is broken or hostile, use another student"
        )
    return template


@lru_cache(maxsize=64)
def _ends(template: str) -> bool:
    """Whether it renders some conversations within the limits of `template_check`, tried in a process of its own."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate((QUESTION, RESPONSE) * 2)]
    variables = [
        {"messages": turns[:n], "add_generation_prompt": n == 1} | {"enable_thinking": on, "thinking": on}
        for n in (1, 2, 3)
        for on in (True, False)
    ]
    script = [sys.executable, str(Path(__file__).with_name("template_check.py"))]
    job = json.dumps({"template": template, "variables": variables})
    return subprocess.run(script, input=job, text=True, stderr=subprocess.DEVNULL).returncode == 0


@lru_cache(maxsize=64)
def _format(tokenizer: PreTrainedTokenizerBase, template: str, thinking: bool | None) -> _Format:
    arguments.flag("thinking", thinking, optional=True)
    name = tokenizer.name_or_path
    try:
        prompt, full = (_apply(tokenizer, said, thinking) for said in ([QUESTION], [QUESTION, RESPONSE]))
        padded = _apply(tokenizer, [QUESTION, f" \n{RESPONSE} \n"], thinking)
        switches = thinking is None or prompt != _apply(tokenizer, [QUESTION], not thinking)
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(
            f"the chat template of {name!r} does not render a question and its answer ({error})"
        ) from error
    if not switches:
        raise ValueError(
            f"thinking is {thinking}, but the chat template of {name!r} has no such switch: leave it at None"
        )
    stem = prompt if full.startswith(prompt) else THINK_BLOCK.sub("", prompt)
    before, found, after = full[len(stem) :].partition(RESPONSE)
    if not found or not full.startswith(stem) or (stem != prompt and THINK_TAG.sub("", before).strip()):
        raise ValueError(
            f"the chat template of {name!r} does not put the response right behind the generation prompt: use a template "
            "that leaves both as they are"
        )
    if stem != prompt or (THINK_TAG.search(before) and not THINK_TAG.sub("", before).strip()):
        before = ""  # an empty think block: it is the prompt's, or the template's way to show an earlier turn
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    added |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    control = {i: token for i, token in added.items() if i != tokenizer.unk_token_id and not THINK_TAG.fullmatch(token)}
    stop = _first(control.values(), after)
    if stop is None:  # GLM-4 ends a turn with the token that begins the user's next one
        after = (
            _apply(tokenizer, [QUESTION, RESPONSE, QUESTION], thinking).rpartition(RESPONSE)[2].partition(QUESTION)[0]
        )
        stop = _first(control.values(), after)
    if stop is None:
        raise ValueError(
            f"the chat template of {name!r} writes no special token after the response, so the student would never learn to "
            "stop: end the assistant's turn with the eos token"
        )
    form = _Format(before, after[:stop], padded == full, control, 0, 0)
    n_prompt, n = (
        sum(token in control for token in ids)
        for ids in (_ids(tokenizer, prompt), _example(tokenizer, form, prompt, RESPONSE).input_ids)
    )
    return replace(form, n_prompt_control=n_prompt, n_control=n)


def _first(tokens: Collection[str], text: str) -> int | None:
    """Where the first of these tokens ends in the text."""
    return min((at + len(token) for token in tokens if (at := text.find(token)) >= 0), default=None)
