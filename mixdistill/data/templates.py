"""What a chat template writes around question and response, found out by rendering probes, within limits."""

import datetime
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mixdistill import arguments
from mixdistill.data.pocket.tokenizer import CHAT_TEMPLATE

# What a template is told for today: Llama 3.2 and SmolLM3 write the date into every prompt, and no run may depend on
# its day. It is the date that Llama's own template falls back to. transformers passes no functions to a template, so
# this is a macro in front of it.
TODAY = datetime.datetime(2024, 7, 26)
REPLACED = "".join(f" | replace('%{letter}', '{TODAY.strftime('%' + letter)}')" for letter in "aAbBdHIjmMpSyY")
STRFTIME = f"{{% macro strftime_now(form) %}}{{{{ form | replace('%-', '%'){REPLACED} }}}}{{% endmacro %}}"
QUESTION, RESPONSE = "Probe question 7", "Probe response 8"
THINK_TAG = re.compile(r"[<\[]/?\|?[\w:/]*think\w*\|?[>\]]", re.IGNORECASE)  # <think>, </think>, [THINK], <seed:think>
THINK_BLOCK = re.compile(rf"\s*({THINK_TAG.pattern}\s*)+\Z", re.IGNORECASE)  # opened or empty, at the end of a prompt


@dataclass(frozen=True)
class Format:
    """What a template writes around question and response."""

    before: str  # between generation prompt and response, such as gpt-oss's channel; trained
    after: str  # behind the response, up to the stop token
    trims: bool  # whether the template cuts blanks off both ends of the response
    control: re.Pattern  # control tokens, which only the template may write


def format_of(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> Format:
    """The format of the tokenizer's chat template.

    Arguments:
        thinking: the switch of a template that has one (`enable_thinking`, `thinking`); None leaves it to the template.

    Raises ValueError for a template that is absent, has no such switch, writes no stop token, rewrites prompt or
    response, or takes too much time or memory.
    """
    arguments.flag("thinking", thinking, optional=True)
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use the student's Instruct version, or "
            "set tokenizer.chat_template and save the student to a local folder"
        )
    return _format_of(tokenizer, tokenizer.get_chat_template(), thinking)


@lru_cache(maxsize=64)
def _format_of(tokenizer: PreTrainedTokenizerBase, template: str, thinking: bool | None) -> Format:
    name = tokenizer.name_or_path
    if template != CHAT_TEMPLATE and not _ends(template):
        raise ValueError(
            f"the chat template of {name!r} does not end within seconds on a short question, or takes too much memory: "
            "it is broken or hostile, use another student"
        )
    try:
        prompt, full = (apply(tokenizer, said, thinking) for said in ([QUESTION], [QUESTION, RESPONSE]))
        padded = apply(tokenizer, [QUESTION, f" \n{RESPONSE} \n"], thinking)
        switches = thinking is None or prompt != apply(tokenizer, [QUESTION], not thinking)
    except Exception as error:  # a template is a program, which may fail in any way
        raise ValueError(
            f"the chat template of {name!r} does not render a question and its answer ({error})"
        ) from error
    if not switches:
        raise ValueError(
            f"thinking is {thinking}, but the chat template of {name!r} has no such switch: leave it at None"
        )
    before, after = _around(name, prompt, full)
    control = _control_tokens(tokenizer, prompt + full)
    stop = control.search(after)
    if stop is None:  # GLM-4 ends a turn with the token that begins the user's next one
        followed = apply(tokenizer, [QUESTION, RESPONSE, QUESTION], thinking)
        after = followed.rpartition(RESPONSE)[2].partition(QUESTION)[0]
        stop = control.search(after)
    if stop is None:
        raise ValueError(
            f"the chat template of {name!r} writes no special token after the response, so the student would never "
            "learn to stop: end the assistant's turn with the eos token"
        )
    return Format(before, after[: stop.end()], padded == full, control)


def _around(name: str, prompt: str, full: str) -> tuple[str, str]:
    """What stands between the generation prompt and the response, and behind it."""
    # R1's template opens a think block in the prompt and leaves it out of the turn.
    stem = prompt if full.startswith(prompt) else THINK_BLOCK.sub("", prompt)
    before, found, after = full[len(stem) :].partition(RESPONSE)
    rewritten = stem != prompt and THINK_TAG.sub("", before).strip()
    if not found or not full.startswith(stem) or rewritten:
        raise ValueError(
            f"the chat template of {name!r} does not put the response right behind the generation prompt: use a "
            "template that leaves both as they are"
        )
    if stem != prompt:
        return "", after
    tag = THINK_TAG.search(before)
    if tag and not THINK_TAG.sub("", before).strip():  # an empty block, with which Qwen3 shows a turn without thinking
        return "" if "/" in tag.group() else before[: tag.start()], after
    return before, after


def _control_tokens(tokenizer: PreTrainedTokenizerBase, written: str) -> re.Pattern:
    """Special tokens, and added ones that the template writes; think tags are neither, as traces write them on
    purpose.
    """
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
    names = {token.content for token in added if token.special or token.content in written}
    names = {name for name in names | set(tokenizer.all_special_tokens) if not THINK_TAG.fullmatch(name)}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def apply(tokenizer: PreTrainedTokenizerBase, said: list[str], thinking: bool | None) -> str:
    """The text of a conversation, user and assistant by turns; one question alone gets the generation prompt."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    template = tokenizer.get_chat_template()
    return tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=len(said) == 1,
        chat_template=(STRFTIME + template) if "strftime_now" in template else template,
        **({} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}),
    )


@lru_cache(maxsize=64)
def _ends(template: str) -> bool:
    """Whether it renders some conversations within the limits of `template_limits`, tried in a process of its own."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate((QUESTION, RESPONSE) * 2)]
    variables = [
        {"messages": turns[:n], "add_generation_prompt": n == 1} | {"enable_thinking": on, "thinking": on}
        for n in (1, 2, 3)
        for on in (True, False)
    ]
    script = [sys.executable, str(Path(__file__).with_name("template_limits.py"))]
    job = json.dumps({"template": template, "variables": variables})
    return subprocess.run(script, input=job, text=True, stderr=subprocess.DEVNULL).returncode == 0
