"""A problem and a trace as the student sees them: token ids by its chat template, and which of them are trained.

An example is the template's generation prompt, the response as it is written, and the token with which the template
ends an assistant's turn. The response is not read back from the rendered turn, because templates of thinking students
delete or trim the thinking of earlier turns. What the template writes around both is found out once, by rendering
probes in a process with limits (`template_worker`): a stranger's template runs nowhere else.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

from datasets import Dataset
from transformers import PreTrainedTokenizerBase as Tokenizer

from mixdistill import arguments, files
from mixdistill.data import template_worker
from mixdistill.data.final_answers import THOUGHT, ends_thought
from mixdistill.data.problems import PROMPTS, Problem

LONGEST = 16_000  # new tokens, where no limit is given: the paper's
# What a template may do to a question, it does to this one: text, blank lines, mathematics, HTML, quotes.
QUESTION = "Probe 7:  is\n\n  $\\frac{1}{2} <\t2$ <b>&amp;</b> {x} 'a' \"b\" naïve 你好?"
RESPONSE = "Probe response 8"
# Of the pocket students: nothing stands between the user's turn, a problem that ends in ":", and the trace.
POCKET_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
)
# Opened or empty, at the end of a prompt; Gemma 4 has tags of its own.
THINK_BLOCK = re.compile(rf"\s*(({THOUGHT.pattern}|<\|channel>thought|<channel\|>)\s*)+\Z")


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

    Raises ValueError as `format_of` does, and for a text with control tokens, or with words that the student
    does not know.
    """
    form, prompt = format_of(tokenizer, thinking), prompt_text(tokenizer, question, answer_format, thinking)
    response = _plain(tokenizer, form, "response", response)
    text = form.before + _continued(prompt, response.strip() if form.trims_response else response) + form.after
    prompt_tokens, tokens = _ids(tokenizer, prompt), _ids(tokenizer, prompt + text)
    if tokens[: len(prompt_tokens)] != prompt_tokens:
        # A prompt that ends in a newline before a response that begins with one. What a student generates follows the
        # prompt's own tokens, so these stay, where the tokenizer can begin in the middle of a text.
        tokens = prompt_tokens + _ids(tokenizer, text)
        if tokenizer.decode(tokens, clean_up_tokenization_spaces=False) != prompt + text:
            what = f"the tokens of the prompt change once the response follows ({tokenizer.name_or_path!r})"
            raise ValueError(f"{what}: end the generation prompt with a special token or a newline")
    return Example(tokens, len(prompt_tokens))


def prompt_text(tokenizer: Tokenizer, question: str, answer_format: str, thinking: bool | None = None) -> str:
    """The chat template's text up to where the assistant begins; raises as `render` does."""
    form, prompt = format_of(tokenizer, thinking), PROMPTS[arguments.choice("answer_format", answer_format, PROMPTS)]
    asked = prompt.format(question=_plain(tokenizer, form, "question", question))
    return form.prompt.replace(QUESTION, asked.strip() if form.trims_question else asked)


def prompt_ids(tokenizer: Tokenizer, question: str, answer_format: str, thinking: bool | None = None) -> list[int]:
    """The token ids of `prompt_text`."""
    return _ids(tokenizer, prompt_text(tokenizer, question, answer_format, thinking))


def stop_token_id(tokenizer: Tokenizer) -> int:
    """The token that ends the assistant's turn: what training examples end with, and where generation stops."""
    return _ids(tokenizer, format_of(tokenizer, None).after)[-1]


def opens_thinking(tokenizer: Tokenizer, thinking: bool | None = None) -> bool:
    """Whether the prompt ends in an open think block, so that a response without its end is a thought that was cut."""
    return _opens(format_of(tokenizer, thinking).prompt)


def _opens(prompt: str) -> bool:
    block = THINK_BLOCK.search(prompt)
    tags = THOUGHT.findall(block[0]) if block else []
    return bool(tags) and not ends_thought(tags[-1])  # GLM 4.7's prompt may be a lone </think>


def prompt_fingerprint(tokenizer: Tokenizer, thinking: bool | None = None) -> str:
    """A hash of all that stands around questions and responses: under one name, runs and evaluations saw the same."""
    closes = {"closes": 2} if opens_thinking(tokenizer, thinking) else {}  # as `render_traces` does
    return files.key({"asked": PROMPTS, "format": astuple(format_of(tokenizer, thinking))} | closes)


def render_traces(
    tokenizer: Tokenizer, traces: Dataset, max_tokens: int, too_long: str, thinking: bool | None = None
) -> list[Example]:
    """All traces as examples of at most `max_tokens` tokens; for longer ones `too_long` refuses the set (`error`) or
    leaves them out (`drop`). `thinking` as in `render`.

    Where the prompt opens a thought, a response that never ends one would be graded as a thought that was cut: it gets
    an empty thought, as such templates write it, and a warning counts these.
    """
    arguments.choice("too_long", too_long, ("error", "drop"))
    prompt = format_of(tokenizer, thinking).prompt  # what is wrong with the template is no fault of a row
    responses = _with_thoughts_ended(prompt, traces["response"][:])
    examples = []
    columns = (traces["question"][:], responses, traces["answer_format"][:])
    for row, (question, response, answer_format) in enumerate(zip(*columns, strict=True)):
        try:
            examples.append(replace(render(tokenizer, question, response, answer_format, thinking), row=row))
        except ValueError as error:
            raise ValueError(f"row {row} of the traces ({str(question)[:60]!r}): {error}") from error
    kept = [example for example in examples if len(example.input_ids) <= max_tokens]
    n_long, longest = len(examples) - len(kept), max(len(example.input_ids) for example in examples)
    if not kept or (n_long and too_long == "error"):
        what = f"{n_long} of {len(examples)} examples have more than {max_tokens} tokens (the longest {longest})"
        raise ValueError(f"{what}: raise max_tokens up to the student's context, or leave them out (too_long='drop')")
    return kept


def _with_thoughts_ended(prompt: str, responses: list[str]) -> list[str]:
    """Responses as `render_traces` says. Raises ValueError if some begin a thought where the prompt has ended one."""
    if not (block := THINK_BLOCK.search(prompt)):
        return responses
    if not _opens(prompt):
        if again := [row for row, said in enumerate(responses) if THOUGHT.match(said.lstrip())]:
            what = f"{len(again)} of {len(responses)} responses begin a thought (the first: rows {again[:5]})"
            raise ValueError(f"{what}, and the prompt has just ended one: thinking=True, or take the thoughts out")
        return responses
    tag = THOUGHT.findall(block[0])[-1]
    end = tag.replace("START_", "END_").replace("begin_", "end_")
    end = f"{tag[0]}/{tag[1:]}" if end == tag else end
    empty = "\n" * prompt.endswith("\n") + f"{end}\n\n"
    if n_bare := sum(not THOUGHT.search(said) for said in responses):
        what = f"{n_bare} of {len(responses)} responses do not end the thought that the prompt opens"
        warnings.warn(f"{what}: they get an empty one ({end} before the response)", stacklevel=3)
    return [said if THOUGHT.search(said) else empty + said for said in responses]


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
            prompts.append(prompt_ids(tokenizer, problem.question, problem.prompt or problem.answer_format, thinking))
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


@dataclass(frozen=True)
class Format:
    """What a template writes around question and response."""

    prompt: str  # up to where the assistant begins, with QUESTION in the question's place
    before: str  # between prompt and response, such as gpt-oss's channel; trained
    after: str  # behind the response, up to the stop token
    trims_question: bool  # whether the template cuts off blanks at both ends
    trims_response: bool
    control: tuple[str, ...]  # tokens that only the template may write


def format_of(tokenizer: Tokenizer, thinking: bool | None) -> Format:
    """The format of the tokenizer's chat template; `thinking` as in `render`.

    Raises ValueError for a template that is absent, has no such switch, writes no stop token, rewrites prompt or
    response, or takes too much time or memory.
    """
    arguments.flag("thinking", thinking, optional=True)
    return _format_of(tokenizer, tokenizer.get_chat_template(), thinking)


@lru_cache(maxsize=64)
def _format_of(tokenizer: Tokenizer, template: str, thinking: bool | None) -> Format:
    name = f"the chat template of {tokenizer.name_or_path!r}"
    said = ([QUESTION], [f" \n{QUESTION} \n"], [QUESTION, RESPONSE], [QUESTION, f" \n{RESPONSE} \n"])
    prompt, padded_prompt, full, padded_full = _rendered(tokenizer, template, thinking, *said)
    if thinking is not None and [prompt] == _rendered(tokenizer, template, not thinking, [QUESTION]):
        raise ValueError(f"thinking is {thinking}, but {name} has no such switch: leave it at None")

    # R1's template opens a think block in the prompt and leaves it out of the turn; Gemma 4's closes it, too.
    kept = prompt if full.startswith(prompt) else THINK_BLOCK.sub("", prompt)
    before, found, after = full.removeprefix(kept).partition(RESPONSE)
    if not THOUGHT.sub("", before).strip() and (kept != prompt or THOUGHT.search(before)):
        before = ""  # an empty block, with which Qwen3 shows a turn without thinking
    opened = kept != prompt and _opens(prompt)
    if not found or not full.startswith(kept) or (before and opened) or QUESTION not in prompt:
        rule = "write a question as it is, and the response right behind the generation prompt"
        raise ValueError(f"{name} does not {rule}: use a template that leaves both as they are")

    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
    written = template + full.replace(QUESTION, "").replace(RESPONSE, "")
    names = {token.content for token in added if token.special or token.content in written}
    # Think tags are no control tokens: traces write them on purpose.
    control = tuple(sorted(token for token in names if not THOUGHT.fullmatch(token)))
    if not any(token in after for token in control):  # GLM-4 ends a turn with the token that begins the user's next one
        (followed,) = _rendered(tokenizer, template, thinking, [QUESTION, RESPONSE, QUESTION])
        after = followed.rpartition(RESPONSE)[2].partition(QUESTION)[0]
    stops = [(after.index(token), after.index(token) + len(token)) for token in control if token in after]
    if not stops:
        what = "writes no special token after the response, so the student would never learn to stop"
        raise ValueError(f"{name} {what}: end the assistant's turn with the eos token")
    start, end = min(stops, key=lambda stop: (stop[0], -stop[1]))
    if (stop := after[start:end]) in before:
        raise ValueError(f"{name} writes {stop!r} before the response and behind it: an answer would end at once")
    return Format(prompt, before, after[:end], padded_prompt == prompt, padded_full == full, control)


def _rendered(tokenizer: Tokenizer, template: str, thinking: bool | None, *conversations: list[str]) -> list[str]:
    """Conversations, user and assistant by turns, as text; one question alone gets the generation prompt."""
    switch = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
    variables = tokenizer.special_tokens_map | {"tools": None, "documents": None} | switch
    asked = []
    for said in conversations:
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        asked.append(variables | {"messages": turns, "add_generation_prompt": len(said) == 1})
    if template == POCKET_TEMPLATE:  # our own
        return template_worker.render(template, asked)
    script, job = [sys.executable, template_worker.__file__], {"template": template, "conversations": asked}
    done = subprocess.run(script, input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        what = f"the chat template of {tokenizer.name_or_path!r} does not render a question and its answer ({error})"
        raise ValueError(f"{what}: it is broken, does not end within seconds, or takes too much memory; use another")
    return json.loads(done.stdout)


def _plain(tokenizer: Tokenizer, form: Format, name: str, text: str) -> str:
    """A question or response, in which no control token is spelt out, also not as the tokenizer normalizes it."""
    text = arguments.text(name, text, empty=name == "response")
    normalizer = tokenizer.backend_tokenizer.normalizer
    ways = [str] if normalizer is None else [str, normalizer.normalize_str]
    if spelt := [repr(token) for token in form.control if any(way(token) and way(token) in way(text) for way in ways)]:
        what = f"the text spells out control tokens of the student ({', '.join(spelt)})"
        raise ValueError(f"{what}, which would end a turn or begin another: take them out, or leave this text out")
    return text


def _continued(prompt: str, response: str) -> str:
    """The response behind a prompt: without its `<think>` and the blanks after it, where the prompt ends with them."""
    tag = re.match(rf"\s*({THOUGHT.pattern})", response, re.IGNORECASE)
    if tag is None or not prompt.rstrip().endswith(tag.group(1)):
        return response
    return response[tag.end() :].removeprefix(prompt[len(prompt.rstrip()) :])


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    # The template has written the special tokens, so the tokenizer must not add a second BOS.
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    # A tokenizer without unknown words may name its eos token as the unknown one.
    if unknown not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id) and unknown in ids:
        where = f"unknown to the student's tokenizer ({tokenizer.name_or_path!r})"
        advice = "give texts in its language, or another student (pocket students know the pocket world only)"
        raise ValueError(f"{ids.count(unknown)} of {len(ids)} tokens are {where}: {advice}")
    return ids
