"""A problem and a trace as the student sees them: token ids by its chat template, and which of them are trained.

An example is the template's generation prompt, the response as it is written, and the token with which the template
ends an assistant's turn. The response is not read back from the rendered turn, because templates of thinking students
delete or trim the thinking of earlier turns.
"""

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from datasets import Dataset
from transformers import PreTrainedTokenizerBase as Tokenizer

from mixdistill import arguments, files
from mixdistill.data.problems import PROMPTS, Problem
from mixdistill.data.templates import QUESTION, THINK_TAG, Format, format_of

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
    tokenizer: Tokenizer, question: str, response: str, answer_format: str, thinking: bool | None = None
) -> Example:
    """One training example: prompt, response as it is written, and the chat template's stop token, which is trained.

    Arguments:
        thinking: the switch of a template that has one (`enable_thinking`, `thinking`); None leaves it to the template.
            Where the generation prompt opens `<think>` itself, the `<think>` of a response is not written a second
            time. A think block that a response leaves open stays open.

    Raises ValueError as `templates.format_of` does, and for a text with control tokens, or with words that the student
    does not know.
    """
    form, prompt = format_of(tokenizer, thinking), prompt_text(tokenizer, question, answer_format, thinking)
    response = _plain(form, "response", response)
    text = form.before + _continued(prompt, response.strip() if form.trims_response else response) + form.after
    prompt_tokens, tokens = _ids(tokenizer, prompt), _ids(tokenizer, prompt + text)
    if tokens[: len(prompt_tokens)] != prompt_tokens:
        # A prompt that ends in a newline before a response that begins with one. What a student generates follows the
        # prompt's own tokens, so these stay, where the tokenizer can begin in the middle of a text.
        tokens = prompt_tokens + _ids(tokenizer, text)
        if tokenizer.decode(tokens, clean_up_tokenization_spaces=False) != prompt + text:
            what = f"the tokens of the prompt change once the response follows ({tokenizer.name_or_path!r})"
            raise ValueError(f"{what}: end the generation prompt with a special token, a space or a newline")
    return Example(tokens, len(prompt_tokens))


def prompt_text(tokenizer: Tokenizer, question: str, answer_format: str, thinking: bool | None = None) -> str:
    """The chat template's text up to where the assistant begins; raises as `render` does."""
    form, prompt = format_of(tokenizer, thinking), PROMPTS[arguments.choice("answer_format", answer_format, PROMPTS)]
    asked = prompt.format(question=_plain(form, "question", question))
    return form.prompt.replace(QUESTION, asked.strip() if form.trims_question else asked)


def prompt_ids(tokenizer: Tokenizer, question: str, answer_format: str, thinking: bool | None = None) -> list[int]:
    """The token ids of `prompt_text`."""
    return _ids(tokenizer, prompt_text(tokenizer, question, answer_format, thinking))


def stop_token_id(tokenizer: Tokenizer) -> int:
    """The token that ends the assistant's turn: what training examples end with, and where generation stops."""
    return _ids(tokenizer, format_of(tokenizer, None).after)[-1]


def prompt_fingerprint(tokenizer: Tokenizer, thinking: bool | None = None) -> str:
    """A hash of all that stands around questions and responses: under one name, runs and evaluations saw the same."""
    return files.key({"asked": PROMPTS, "format": astuple(format_of(tokenizer, thinking))})


def render_traces(
    tokenizer: Tokenizer, traces: Dataset, max_tokens: int, too_long: str, thinking: bool | None = None
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
    kept = [example for example in examples if len(example.input_ids) <= max_tokens]
    n_long, longest = len(examples) - len(kept), max(len(example.input_ids) for example in examples)
    if not kept or (n_long and too_long == "error"):
        raise ValueError(
            f"{n_long} of {len(examples)} examples have more than {max_tokens} tokens (the longest {longest}): raise "
            "max_tokens up to the student's context, or leave some out with too_long='drop'"
        )
    return kept


def render_prompts(
    tokenizer: Tokenizer,
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
        prompts_of = f"{len(long)} of {len(problems)} prompts (the longest has {longest} tokens; the first: {long[:3]})"
        too_much = f"{room} new tokens exceed the student's context of {context}"
        raise ValueError(f"{prompts_of} and {too_much}: lower max_new_tokens or leave these problems out")
    return prompts, room


def _plain(form: Format, name: str, text: str) -> str:
    """A question or response, in which no control token is spelt out."""
    text = arguments.text(name, text, empty=name == "response")
    if spelt := [repr(token) for token in form.control if token in text]:
        what = f"the text spells out control tokens of the student ({', '.join(spelt)})"
        raise ValueError(f"{what}, which would end a turn or begin another: take them out, or leave this text out")
    return text


def _continued(prompt: str, response: str) -> str:
    """The response behind a prompt: without its `<think>` and the blanks after it, where the prompt ends with them."""
    tag = re.match(rf"\s*({THINK_TAG.pattern})", response, re.IGNORECASE)
    if tag is None or not prompt.rstrip().endswith(tag.group(1)):
        return response
    return response[tag.end() :].removeprefix(prompt[len(prompt.rstrip()) :])


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    # The template has written the special tokens, so the tokenizer must not add a second BOS.
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    # A tokenizer without unknown words may name its eos token as the unknown one.
    if unknown not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id) and unknown in ids:
        raise ValueError(
            f"{ids.count(unknown)} of {len(ids)} tokens are unknown to the student's tokenizer "
            f"({tokenizer.name_or_path!r}): give texts in the student's own language, or another student (pocket "
            "students know the pocket world only)"
        )
    return ids
