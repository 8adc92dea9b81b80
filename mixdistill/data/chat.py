"""A problem and a trace as the student sees them: token ids by its chat template, and which of them are trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mixdistill.data.problems import Problem

# How a question is asked, by answer_format or by a problem's own choice. `math` is the paper's prompt; GSM8K and the pocket world get
# the bare question. `gsm8k_boxed` asks for the box too: a student that was never tuned to it loses points on the bare one.
PROMPTS = {
    "math": (
        "Solve the following math problem. Present the final answer in the format: Final Answer: \\boxed{{your_answer}}.\n"
        "Problem: {question}\nAnswer:"
    ),
    "gsm8k": "{question}",
    "gsm8k_boxed": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "pocket": "{question}",
}


@dataclass(frozen=True)
class Example:
    """Token ids of prompt, response and stop token; the first `n_prompt` carry no loss."""

    input_ids: list[int]
    n_prompt: int
    row: int = -1  # of the trace set that it comes from

    @property
    def loss_mask(self) -> list[bool]:
        return [i >= self.n_prompt for i in range(len(self.input_ids))]


def render(tokenizer: PreTrainedTokenizerBase, question: str, response: str, answer_format: str) -> Example:
    """One training example. It ends with the chat template's stop token, which is trained; what the template writes after it
    (Qwen's newline) is left away.

    Raises ValueError if the tokenizer has no chat template, or if the template rewrites the prompt or the response.
    """
    prompt = prompt_text(tokenizer, question, answer_format)
    turns = [
        {"role": "user", "content": PROMPTS[answer_format].format(question=question)},
        {"role": "assistant", "content": response},
    ]
    full = tokenizer.apply_chat_template(turns, tokenize=False)
    behind = full[len(prompt) :]
    if not full.startswith(prompt) or not behind.lstrip().startswith(response.strip()):
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} does not put the response right behind the generation prompt: "
            "use a template that leaves both as they are"
        )
    start = len(full) - len(behind.lstrip()) + len(response.strip())
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ends = [at + len(token) for token in special if (at := full.find(token, start)) >= 0]
    if not ends:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} writes no special token after the response, so the student "
            "would never learn to stop: end the assistant's turn with the eos token"
        )
    prompt_tokens = prompt_ids(tokenizer, question, answer_format)
    tokens = tokenizer(full[: min(ends)], add_special_tokens=False)["input_ids"]
    if tokens[: len(prompt_tokens)] != prompt_tokens:
        raise ValueError(
            f"the tokens of the prompt change once the response follows (tokenizer of {tokenizer.name_or_path!r}): "
            "end the generation prompt with a special token, a space or a newline"
        )
    return Example(tokens, len(prompt_tokens))


def prompt_text(tokenizer: PreTrainedTokenizerBase, question: str, answer_format: str) -> str:
    """The chat template's text up to where the assistant begins."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use the student's Instruct version, or set "
            "tokenizer.chat_template and save the student to a local folder"
        )
    user = [{"role": "user", "content": PROMPTS[answer_format].format(question=question)}]
    return tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str, answer_format: str) -> list[int]:
    # The template has written the special tokens, so the tokenizer must not add a second BOS.
    return tokenizer(prompt_text(tokenizer, question, answer_format), add_special_tokens=False)["input_ids"]


def stop_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn: what training examples end with, and where generation stops."""
    return render(tokenizer, "question", "response", "gsm8k").input_ids[-1]


def render_traces(tokenizer: PreTrainedTokenizerBase, traces: Dataset, max_tokens: int, too_long: str) -> list[Example]:
    """All traces as examples of at most `max_tokens` tokens.

    `too_long` says what happens to longer ones: `error` refuses the set, `drop` leaves them out.
    """
    if too_long not in ("error", "drop"):
        raise ValueError(f"too_long is {too_long!r}: use 'error', or 'drop' to leave longer examples out")
    rows = zip(traces["question"][:], traces["response"][:], traces["answer_format"][:], strict=True)
    examples = [replace(render(tokenizer, *trace), row=row) for row, trace in enumerate(rows)]
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
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], context: int, max_new_tokens: int | None
) -> tuple[list[list[int]], int]:
    """The prompts' token ids, and how many new tokens each may get.

    With `max_new_tokens` None that is what the longest prompt leaves of the student's context, at most the paper's 16,000.
    Raises ValueError if a prompt leaves less room than asked.
    """
    unknown = sorted({p.prompt for p in problems} - set(PROMPTS) - {""})
    if unknown:
        raise ValueError(f"unknown prompt {', '.join(map(repr, unknown))}: use one of {', '.join(PROMPTS)}")
    prompts = [prompt_ids(tokenizer, problem.question, problem.prompt or problem.answer_format) for problem in problems]
    longest = max(map(len, prompts))
    room = max_new_tokens or max(1, min(16_000, context - longest))
    long = [problem.id for problem, ids in zip(problems, prompts, strict=True) if len(ids) + room > context]
    if long:
        raise ValueError(
            f"{len(long)} of {len(problems)} prompts (the longest has {longest} tokens; the first: {long[:3]}) and {room} new "
            f"tokens exceed the student's context of {context}: lower max_new_tokens or leave these problems out"
        )
    return prompts, room
