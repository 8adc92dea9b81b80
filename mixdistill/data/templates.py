"""What a student's chat template writes around question and response, found out once by rendering probes.

Prompts and examples are put together from this `Format`, so a stranger's template never sees them, and runs only in a
process with limits (`template_worker`).
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from mixdistill import arguments
from mixdistill.data import template_worker
from mixdistill.data.pocket.tokenizer import CHAT_TEMPLATE

# What a template may do to a question, it does to this one: text, blank lines, mathematics, HTML, quotes.
QUESTION = "Probe 7:  is\n\n  $\\frac{1}{2} <\t2$ <b>&amp;</b> {x} 'a' \"b\" naïve 你好?"
RESPONSE = "Probe response 8"
THINK_TAG = re.compile(r"[<\[]/?\|?[\w:/]*think\w*\|?[>\]]", re.IGNORECASE)  # <think>, </think>, [THINK], <seed:think>
THINK_BLOCK = re.compile(rf"\s*({THINK_TAG.pattern}\s*)+\Z", re.IGNORECASE)  # opened or empty, at the end of a prompt


@dataclass(frozen=True)
class Format:
    """What a template writes around question and response."""

    prompt: str  # up to where the assistant begins, with QUESTION in the question's place
    before: str  # between prompt and response, such as gpt-oss's channel; trained
    after: str  # behind the response, up to the stop token
    trims_question: bool  # whether the template cuts off blanks at both ends
    trims_response: bool
    control: tuple[str, ...]  # tokens that only the template may write


def format_of(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> Format:
    """The format of the tokenizer's chat template.

    `thinking` is the switch of a template that has one (`enable_thinking`, `thinking`); None leaves it to the template.

    Raises ValueError for a template that is absent, has no such switch, writes no stop token, rewrites prompt or
    response, or takes too much time or memory.
    """
    arguments.flag("thinking", thinking, optional=True)
    return _format_of(tokenizer, tokenizer.get_chat_template(), thinking)


@lru_cache(maxsize=64)
def _format_of(tokenizer: PreTrainedTokenizerBase, template: str, thinking: bool | None) -> Format:
    name = f"the chat template of {tokenizer.name_or_path!r}"
    said = ([QUESTION], [f" \n{QUESTION} \n"], [QUESTION, RESPONSE], [QUESTION, f" \n{RESPONSE} \n"])
    prompt, padded_prompt, full, padded_full = _rendered(tokenizer, template, thinking, *said)
    if thinking is not None and [prompt] == _rendered(tokenizer, template, not thinking, [QUESTION]):
        raise ValueError(f"thinking is {thinking}, but {name} has no such switch: leave it at None")

    # R1's template opens a think block in the prompt and leaves it out of the turn.
    kept = prompt if full.startswith(prompt) else THINK_BLOCK.sub("", prompt)
    before, found, after = full.removeprefix(kept).partition(RESPONSE)
    if not THINK_TAG.sub("", before).strip() and (kept != prompt or THINK_TAG.search(before)):
        before = ""  # an empty block, with which Qwen3 shows a turn without thinking
    if not found or not full.startswith(kept) or (before and kept != prompt) or QUESTION not in prompt:
        rule = "write a question as it is, and the response right behind the generation prompt"
        raise ValueError(f"{name} does not {rule}: use a template that leaves both as they are")

    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
    written = template + full.replace(QUESTION, "").replace(RESPONSE, "")
    names = {token.content for token in added if token.special or token.content in written}
    # Think tags are no control tokens: traces write them on purpose.
    control = tuple(sorted(token for token in names if not THINK_TAG.fullmatch(token)))
    if not any(token in after for token in control):  # GLM-4 ends a turn with the token that begins the user's next one
        (followed,) = _rendered(tokenizer, template, thinking, [QUESTION, RESPONSE, QUESTION])
        after = followed.rpartition(RESPONSE)[2].partition(QUESTION)[0]
    stops = [(after.index(token), after.index(token) + len(token)) for token in control if token in after]
    if not stops:
        what = "writes no special token after the response, so the student would never learn to stop"
        raise ValueError(f"{name} {what}: end the assistant's turn with the eos token")
    end = min(stops, key=lambda stop: (stop[0], -stop[1]))[1]
    return Format(prompt, before, after[:end], padded_prompt == prompt, padded_full == full, control)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, template: str, thinking: bool | None, *conversations: list[str]
) -> list[str]:
    """Conversations, user and assistant by turns, as text; one question alone gets the generation prompt."""
    switch = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
    variables = tokenizer.special_tokens_map | {"tools": None, "documents": None} | switch
    asked = []
    for said in conversations:
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        asked.append(variables | {"messages": turns, "add_generation_prompt": len(said) == 1})
    if template == CHAT_TEMPLATE:  # our own
        return template_worker.render(template, asked)
    script, job = [sys.executable, template_worker.__file__], {"template": template, "conversations": asked}
    done = subprocess.run(script, input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} does not render a question and its answer ({error}): it "
            "is broken, does not end within seconds, or takes too much memory, so use another student"
        )
    return json.loads(done.stdout)
