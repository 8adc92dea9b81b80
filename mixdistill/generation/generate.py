"""Decoding: many prompts through a student, by one of three engines that give the same greedy tokens up to rounding.

| engine       | what it does                                              | used                                  |
|--------------|-----------------------------------------------------------|---------------------------------------|
| `static`     | batches of prompts of similar length, padded on the left  | on a CPU, by tiny students, to sample |
| `continuous` | paged cache, the next prompt takes a finished one's place | on a GPU, greedily                    |
| `vllm`       | the same, faster, LoRA adapters served as they are        | on a GPU where it is installed        |

Of a `static` batch finished rows leave where the student's architecture is a plain one (`decode`); transformers'
`generate` decodes the others, to the longest answer of the batch. No engine stops at a piece of text: a completion ends
with a stop token or at its limit.
"""

import gc
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from mixdistill import arguments
from mixdistill.data.students import TINY, Student
from mixdistill.generation.decode import Progress, decode, is_plain
from mixdistill.generation.sampling import Sampling, next_tokens, uniforms

ENGINES = ("static", "continuous", "vllm")
LOOP_TOKENS = 60  # a tail of at least so many tokens ...
LOOP_TIMES = 3  # ... that says the same at least so many times is a loop
LOOP_WINDOW = 1500  # tokens of the tail that are looked at

# The rows of a batch that a model was seen to have memory for, where that was not all of them.
_rows_that_fit: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Completion:
    """One completion and how it came about.

    `finish_reason` is `stop` (the student ended its turn) or `length` (cut at the limit); `n_tokens` counts the stop
    token; `loop` says that its tail repeats itself; `engine` is one of `ENGINES`, or `static, generate` where
    transformers decodes; `batch` is prompts x tokens of the longest prompt, or prompts in flight.
    """

    text: str
    n_tokens: int
    finish_reason: str
    loop: bool
    engine: str
    dtype: str
    batch: str


def default_engine(n_params: int, sampling: Sampling = Sampling()) -> str:
    """The fastest engine that this machine has for a student of this size."""
    if not torch.cuda.is_available() or n_params < TINY:
        return "static"
    if importlib.util.find_spec("vllm"):
        return "vllm"
    return "continuous" if sampling.greedy else "static"


def check_engine(engine: str, sampling: Sampling = Sampling()) -> None:
    """Raise ValueError for an engine that does not exist, or cannot run here or sample."""
    arguments.choice("engine", engine, ENGINES)
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError("the engine 'vllm' needs the package vllm: pip install -e '.[vllm]', or use 'continuous'")
    if engine == "continuous" and not sampling.greedy:
        raise ValueError(
            f"the engine 'continuous' is greedy and temperature is {sampling.temperature:g}: its random numbers depend "
            "on what else is in flight; use 'static' or 'vllm', or temperature 0"
        )


def length_sorted_batches(prompts: list[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts in batches of similar length, the longest first, so that what does not fit fails at
    once.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def complete(
    student: Student,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    engine: str = "static",
    streams: Sequence[int] | None = None,
    progress: bool = False,
) -> list[Completion]:
    """Complete prompts (token ids), one completion a prompt, by a transformers engine.

    A sampled completion depends on its prompt, the seed and its stream, and not on the other prompts or their number
    (but for rounding: in float32 about one in a million tokens). If memory runs out, the batch is halved and decoded
    again.

    Arguments:
        max_new_tokens: at least 1; prompt and new tokens fit into the student's context.
        engine: `static` or `continuous`.
        streams: one integer a prompt, from 0, that its random numbers come from; None means its place among the
            prompts.
        progress: print a line every 30 seconds.

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: the engine has left a prompt without its completion, or a single row does not fit into memory.
    """
    check_engine(engine, sampling)
    arguments.whole("max_new_tokens", max_new_tokens)
    streams = (
        list(range(len(prompts)))
        if streams is None
        else [arguments.whole("a stream", s, low=0, high=2**63) for s in streams]
    )
    if len(streams) != len(prompts):
        raise ValueError(f"there are {len(streams)} streams for {len(prompts)} prompts: give one a prompt")
    stops = set(student.model.generation_config.eos_token_id)
    dtype = str(next(student.model.parameters()).dtype).removeprefix("torch.")
    if engine == "continuous":
        rows, shape = _continuous(student, prompts, max_new_tokens), f"{len(prompts)} in flight"
    else:
        plain = is_plain(student.model)
        engine = "static" if plain else "static, generate"
        rows, shape = [], f"{len(prompts)}x{max(map(len, prompts), default=0)}"

        def decode_rows(at: int, n: int) -> list[list[int]]:
            part = prompts[at : at + n]
            uniform = (
                torch.empty(0) if sampling.greedy else uniforms(sampling.seed, streams[at : at + n], max_new_tokens)
            )
            method = decode if plain else _generate
            speaker = Progress(len(part), progress)
            return method(student.model, part, max_new_tokens, sorted(stops), sampling, uniform, speaker)

        rows = _within_memory(student.model, len(prompts), decode_rows)
    return [completion(student.tokenizer, row, stops, engine, dtype, shape) for row in rows]


def _within_memory(
    model: torch.nn.Module, n: int, decode_rows: Callable[[int, int], list[list[int]]]
) -> list[list[int]]:
    """All n rows, decoded as many at a time as memory has room for: all of them, or halves, quarters, ..."""
    rows: list[list[int]] = []
    while len(rows) < n:
        size = min(n - len(rows), _rows_that_fit.get(model, n))
        try:
            rows += decode_rows(len(rows), size)
            continue
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # Out of the except clause, so that the traceback no longer holds the batch.
        gc.collect()
        torch.cuda.empty_cache()
        if size == 1:
            raise RuntimeError(
                f"one completion at a time does not fit into memory ({reason}): give a smaller max_new_tokens"
            )
        _rows_that_fit[model] = size // 2
        print(f"memory ran out with {size} completions at a time ({reason}): now {size // 2} at a time", flush=True)
    return rows


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own; the allocator of a CPU raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class _NextTokens(LogitsProcessor):
    """Lets `generate`'s argmax find the token that `next_tokens` chooses."""

    def __init__(self, sampling: Sampling, uniform: torch.Tensor, width: int, progress: Progress) -> None:
        self.sampling, self.uniform, self.width, self.progress = sampling, uniform, width, progress

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width
        self.progress.speak(step, len(scores))
        if self.sampling.greedy:
            return scores
        chosen = next_tokens(scores, self.sampling, self.uniform[:, step])
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen[:, None], 0.0)


@torch.inference_mode()
def _generate(
    model: torch.nn.Module,
    prompts: list[list[int]],
    max_new_tokens: int,
    stops: Sequence[int],
    sampling: Sampling,
    uniform: torch.Tensor,
    progress: Progress,
) -> list[list[int]]:
    """As `decode.decode`, by transformers: for every architecture."""
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=_config(model, max_new_tokens),
        logits_processor=[_NextTokens(sampling, uniform.to(device), width, progress)],
    )
    return output[:, width:].tolist()


def _config(model: torch.nn.Module, max_new_tokens: int) -> GenerationConfig:
    stops = model.generation_config
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops.eos_token_id, pad_token_id=stops.pad_token_id
    )


def _continuous(student: Student, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    # The adapters lie in the layers of the base model, which has the paged decoding that peft's wrapper lacks.
    model = student.model.get_base_model() if hasattr(student.model, "get_base_model") else student.model
    results = model.generate_batch(
        prompts,
        generation_config=_config(student.model, max_new_tokens),
        continuous_batching_config=_paged_cache(student, prompts, max_new_tokens),
    )
    outputs = list(results.values())
    failed = [output.error for output in outputs if output.error]
    if failed or len(outputs) < len(prompts):
        raise RuntimeError(
            f"continuous batching gave {len(outputs) - len(failed)} completions for {len(prompts)} prompts"
            f"{f' (the first error: {failed[0]})' if failed else ''}: give a smaller batch_size or engine='static'"
        )
    return [output.generated_tokens for output in outputs]


def _paged_cache(student: Student, prompts: list[list[int]], max_new_tokens: int) -> ContinuousBatchingConfig:
    """A paged cache: on a GPU as large as its memory allows, on a CPU (for tests) as large as these prompts need."""
    if student.device.type == "cuda":
        return ContinuousBatchingConfig()
    page = 32
    pages = sum(-(-(len(prompt) + max_new_tokens) // page) for prompt in prompts)
    return ContinuousBatchingConfig(page_size=page, num_blocks=pages + 1, max_batch_tokens=256)


def completion(tokenizer, tokens: list[int], stops: set[int], engine: str, dtype: str, batch: str) -> Completion:
    """The completion that an engine's new tokens make; what follows the first stop token is padding."""
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    said = tokens[:end]
    return Completion(
        text=tokenizer.decode(said, skip_special_tokens=True),
        n_tokens=len(said) + (end is not None),
        finish_reason="length" if end is None else "stop",
        loop=is_loop(said),
        engine=engine,
        dtype=dtype,
        batch=batch,
    )


def is_loop(tokens: list[int]) -> bool:
    """Whether the tail repeats itself: at least 60 tokens that are at least 3 times the same piece."""
    tail = tokens[-LOOP_WINDOW:][::-1]
    for period in range(1, len(tail) // LOOP_TIMES + 1):
        needed = max(LOOP_TOKENS, LOOP_TIMES * period)
        if needed <= len(tail) and all(tail[i] == tail[i + period] for i in range(needed - period)):
            return True
    return False
