"""A problem and a trace as the student sees them: token ids by its chat template, and which of them are trained.

An example is the template's generation prompt, the response as it is written, and the token with which the template
ends an assistant's turn. The response is not read back from the rendered turn, because templates of thinking students
delete or trim the thinking of earlier turns.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mixdistill import arguments
from mixdistill.data.problems import PROMPTS, Problem
from mixdistill.data.templates import THINK_TAG, Format, apply, format_of

LONGEST = 16_000  # new tokens, where no limit is given: the paper's


@dataclass(frozen=True)
class Example:
    """Token ids of prompt, response and stop token; the first `n_prompt` carry no loss."""

    input_ids: list[int]
    n_prompt: int
    row: int = -1  # of the trace set that it comes from

    @property
    def loss_mask(self) -> list[bool]:
        return [i >= self.n_prompt for i in range(len(self.input_ids))]


def render(
    tokenizer: PreTrainedTokenizerBase, question: str, response: str, answer_format: str, thinking: bool | None = None
) -> Example:
    """One training example: prompt, response as it is written, and the chat template's stop token, which is trained.

    Arguments:
        thinking: the switch of a template that has one (`enable_thinking`, `thinking`); None leaves it to the template.
            Where the generation prompt opens `<think>` itself, the `<think>` of a response is not written a second
            time. A think block that a response leaves open stays open.

    Raises ValueError as `templates.format_of` does, and for a text with control tokens, or with words that the student
    does not know.
    """
    form = format_of(tokenizer, thinking)
    response = arguments.text("response", response, empty=True)
    prompt = prompt_text(tokenizer, question, answer_format, thinking)
    _check_control_tokens(form, response)
    example = _example(tokenizer, form, prompt, response)
    _check_known(tokenizer, example.input_ids)
    return example


def _example(tokenizer: PreTrainedTokenizerBase, form: Format, prompt: str, response: str) -> Example:
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
    """The response behind this prompt: without its `<think>`, and the blanks after it, where the prompt ends with
    them.
    """
    tag = re.match(rf"\s*({THINK_TAG.pattern})", response, re.IGNORECASE)
    if tag is None or not prompt.rstrip().endswith(tag.group(1)):
        return response
    return response[tag.end() :].removeprefix(prompt[len(prompt.rstrip()) :])


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, question: str, answer_format: str, thinking: bool | None = None
) -> str:
    """The chat template's text up to where the assistant begins; raises as `render` does."""
    prompt = PROMPTS[arguments.choice("answer_format", answer_format, PROMPTS)]
    _check_control_tokens(format_of(tokenizer, thinking), arguments.text("question", question))
    return apply(tokenizer, [prompt.format(question=question)], thinking)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, answer_format: str, thinking: bool | None = None
) -> list[int]:
    """The token ids of `prompt_text`."""
    ids = _ids(tokenizer, prompt_text(tokenizer, question, answer_format, thinking))
    _check_known(tokenizer, ids)
    return ids


def stop_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn: what training examples end with, and where generation stops."""
    return _ids(tokenizer, format_of(tokenizer, None).after)[-1]


def prompt_fingerprint(tokenizer: PreTrainedTokenizerBase, thinking: bool | None = None) -> str:
    """A hash of what fixed conversations render to, text and ids: runs and evaluations under one name saw the same
    prompts.
    """
    form = format_of(tokenizer, thinking)
    seen = []
    for prompt in PROMPTS.values():
        text = apply(tokenizer, [prompt.format(question="What is 7 + 8? find need i7 B :")], thinking)
        example = _example(tokenizer, form, text, " So 7 + 8 = 15. so i7 B = i3 .\n")
        seen.append([text, form.before, form.after, form.trims, example.input_ids, example.n_prompt])
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]


def render_traces(
    tokenizer: PreTrainedTokenizerBase, traces: Dataset, max_tokens: int, too_long: str, thinking: bool | None = None
) -> list[Example]:
    """All traces as examples of at most `max_tokens` tokens.

    `too_long` says what happens to longer ones: `error` refuses the set, `drop` leaves them out. `thinking` as in
    `render`.
    """
    arguments.choice("too_long", too_long, ("error", "drop"))
    format_of(tokenizer, thinking)  # what is wrong with the template is no fault of a row
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
            f"{len(long)} of {len(examples)} examples have more than {max_tokens} tokens (the longest {longest}; the "
            f"first: rows {long[:5]}): raise max_tokens up to the student's context, or leave them out with "
            "too_long='drop'"
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

    With `max_new_tokens` None that is what the longest prompt leaves of the student's context, at most the paper's
    16,000. Raises ValueError if a prompt leaves less room than asked, and as `render` does.
    """
    format_of(tokenizer, thinking)
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
            f"{len(long)} of {len(problems)} prompts (the longest has {longest} tokens; the first: {long[:3]}) and "
            f"{room} new tokens exceed the student's context of {context}: lower max_new_tokens or leave these "
            "problems out"
        )
    return prompts, room


def _check_control_tokens(form: Format, text: str) -> None:
    spelt = sorted(set(form.control.findall(text)))
    if spelt:
        raise ValueError(
            f"the text spells out control tokens of the student ({', '.join(map(repr, spelt))}), which would end a "
            "turn or begin another: take them out, or leave this text out"
        )


def _check_known(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    unknown = tokenizer.unk_token_id
    # A tokenizer without unknown words may name its eos token as the unknown one.
    if unknown not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id) and unknown in ids:
        raise ValueError(
            f"{ids.count(unknown)} of {len(ids)} tokens are unknown to the student's tokenizer "
            f"({tokenizer.name_or_path!r}): give texts in the student's own language, or another student (pocket "
            "students know the pocket world only)"
        )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template has written the special tokens, so the tokenizer must not add a second BOS.
    return tokenizer(text, add_special_tokens=False)["input_ids"]
