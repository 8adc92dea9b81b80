"""Decoding: many prompts through a student, by one of two engines that give the greedy tokens of `generate`.

- `static`: batches padded on the left, which rows that have ended leave (`decode`). Architectures that `decode` does
  not know go through transformers' `generate`, to the longest answer of the batch.
- `vllm`: the next prompt takes the place of an answer that has ended (`vllm_engine`); an extra, for GPUs.

Neither stops at a piece of text: a completion ends with a stop token or at its limit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedTokenizerBase

from mixdistill import arguments
from mixdistill.data.final_answers import THOUGHT
from mixdistill.data.students import TINY, Student, check_ids, rope_boundary
from mixdistill.files import tell
from mixdistill.generation.decode import decode, is_plain, pad_left
from mixdistill.generation.sampling import Choose, Sampling, chooser

ENGINES = ("static", "vllm")
LOOP_TOKENS, LOOP_TIMES = 60, 3  # a tail of so many tokens that says the same so many times is a loop
LOOP_WINDOW = 1500  # tokens of the tail that are looked at

# The rows of a batch that a model was seen to have memory for, where that was not all of them.
_rows_that_fit: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()
_blind_to_padding: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Completion:
    """One completion and how it came about.

    `finish_reason` is `stop` (the student ended its turn) or `length` (cut at the limit); `n_tokens` counts the stop
    token; `loop` says that its tail repeats itself; `engine` is one of `ENGINES`, or `static, generate` where
    transformers decodes; `batch` is prompts x tokens of the longest prompt, or prompts in flight.
    """

    response: str
    n_tokens: int
    finish_reason: str
    loop: bool
    engine: str
    dtype: str
    batch: str


def default_engine(n_params: int) -> str:
    """`vllm` where it is installed and there is a GPU, for a student that is not tiny; else `static`."""
    return "vllm" if torch.cuda.is_available() and n_params >= TINY and find_spec("vllm") else "static"


def check_engine(engine: str) -> None:
    """Raise ValueError for an engine that does not exist or is not installed."""
    arguments.choice("engine", engine, ENGINES)
    if engine == "vllm" and find_spec("vllm") is None:
        raise ValueError("the engine 'vllm' needs the package vllm: pip install -e '.[vllm]', or use 'static'")


def length_sorted_batches(prompts: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Places of the prompts in batches of similar length, the longest first: what does not fit fails at once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def complete(
    student: Student,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    seeds: Sequence[int] = (),
) -> list[Completion]:
    """Complete prompts (token ids), one completion a prompt, by the engine `static`.

    A completion depends on its prompt and its seed, and not on the other prompts or their number (but for rounding: in
    float32 about one in a million tokens). If memory runs out, the batch is halved and decoded again.

    Arguments:
        max_new_tokens: at least 1; prompt and new tokens fit into the student's context.
        seeds: one a prompt, from 0 to 2**63, for its random numbers (`Sampling.seed_of`); none for greedy decoding.

    Raises ValueError for an argument out of its range, RuntimeError if a single row does not fit into memory.
    """
    arguments.whole("max_new_tokens", max_new_tokens)
    seeds = [arguments.whole("a seed", seed, low=0, high=2**63) for seed in seeds]
    if not sampling.greedy and len(seeds) != len(prompts):
        raise ValueError(f"there are {len(seeds)} seeds for {len(prompts)} prompts: give one a prompt")
    check_ids(student, prompts)
    model, stops = student.model, sorted(student.model.generation_config.eos_token_id)
    plain = is_plain(model)
    size = min(_rows_that_fit.get(model, len(prompts)), len(prompts))
    if not plain and len(prompts) > 1 and not _share_a_batch(model, max(map(len, prompts)) + max_new_tokens):
        size = 1
    rows: list[list[int]] = []
    while len(rows) < len(prompts):
        part = slice(len(rows), len(rows) + size)
        try:
            choose = chooser(sampling, seeds[part], max_new_tokens, student.device)
            rows += (decode if plain else _generate)(model, prompts[part], max_new_tokens, stops, choose)
            continue
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            reason = str(error).splitlines()[0]
        # Out of the except clause, so that the traceback no longer holds the batch.
        clear_device_cache(garbage_collection=True)
        size = _rows_that_fit[model] = size // 2
        print(f"memory ran out with {2 * size} completions at a time ({reason}): now {size} at a time", flush=True)
    how = {
        "engine": "static" if plain else "static, generate",
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "batch": f"{len(prompts)}x{max(map(len, prompts), default=0)}",
    }
    return [completion(student.tokenizer, row, stops, how) for row in rows]


def _share_a_batch(model: torch.nn.Module, longest: int) -> bool:
    """Whether rows of at most so many tokens are decoded together as they are alone, which a few architectures do not:
    padding enters the state of some recurrent ones, and LongRoPE reads all rows of a call as its longest."""
    boundary = rope_boundary(model.config)
    return _padding_is_nothing(model) if boundary is None else longest <= boundary


@torch.inference_mode()
def _padding_is_nothing(model: torch.nn.Module) -> bool:
    """Whether padding on the left changes nothing: seen on two steps of a short row, alone and beside a longer one."""
    if model not in _blind_to_padding:
        rows = [[1, 2, 3, 4, 5] * 5, [5, 2, 4, 1, 3]]
        alone, beside = (_two_steps(model, given)[-1] for given in (rows[1:], rows))
        bound = 1e-3 if model.dtype == torch.float32 else 3e-2
        same = _blind_to_padding[model] = bool((alone - beside).abs().max() <= bound * alone.abs().max())
        if not same:
            kind = model.config.model_type
            print(f"{kind}: padding changes the answers, so rows are decoded one at a time", flush=True)
    return _blind_to_padding[model]


def _two_steps(model: torch.nn.Module, prompts: Sequence[list[int]]) -> torch.Tensor:
    """The logits of two greedy steps [rows, steps, tokens]; the first step says the same in every row."""
    ids, mask = pad_left(prompts, model.device)
    same = [lambda _, logits: torch.zeros_like(logits)]
    both: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "logits_processor": same, "eos_token_id": None}
    both |= {"attention_mask": mask, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(ids, **both).logits, dim=1).float()


@torch.inference_mode()
def _generate(
    model: torch.nn.Module, prompts: Sequence[list[int]], max_new_tokens: int, stops: Sequence[int], choose: Choose
) -> list[list[int]]:
    """As `decode.decode`, by transformers: for every architecture."""
    ids, mask = pad_left(prompts, next(model.parameters()).device)
    rows = torch.arange(len(prompts), device=ids.device)

    def only_the_chosen(ids_so_far: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Logits whose maximum is the chosen token."""
        step = ids_so_far.shape[1] - ids.shape[1]
        tell(f"{step} tokens of {len(rows)} answers")
        chosen = choose(logits, rows, step)
        return torch.full_like(logits, -torch.inf).scatter(-1, chosen[:, None], 0.0)

    ends = {"max_new_tokens": max_new_tokens, "eos_token_id": list(stops)}
    output = model.generate(ids, attention_mask=mask, do_sample=False, logits_processor=[only_the_chosen], **ends)
    return output[:, ids.shape[1] :].tolist()


def completion(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: Collection[int], how: Mapping[str, str]
) -> Completion:
    """The completion that an engine's new tokens make; what follows the first stop token is padding."""
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    said, silent = list(tokens[:end]), _silent(tokenizer)
    # A tag that begins or ends a thought may be a special token: without it, a thought would pass for an answer.
    response = tokenizer.decode([token for token in said if token not in silent], skip_special_tokens=False)
    reason = "length" if end is None else "stop"
    return Completion(response, len(said) + (end is not None), reason, is_loop(said), **how)


@lru_cache(maxsize=64)
def _silent(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special tokens that a response is shown without."""
    special = {at: token.content for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    channels = ("<|channel|>", "<|channel>", "<channel|>")  # with a word they are tags as in `CHANNEL`
    return frozenset(at for at, text in special.items() if text not in channels and not THOUGHT.fullmatch(text))


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the tail repeats itself: at least 60 tokens that are at least 3 times the same piece."""
    tail = tokens[-LOOP_WINDOW:][::-1]
    for period in range(1, len(tail) // LOOP_TIMES + 1):
        needed = max(LOOP_TOKENS, LOOP_TIMES * period)
        if needed <= len(tail) and all(tail[i] == tail[i + period] for i in range(needed - period)):
            return True
    return False
