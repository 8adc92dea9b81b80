"""Decoding: many prompts through a student, by one of three engines that give the same greedy tokens up to rounding.

| engine       | what it does                                                     | used                                  |
|--------------|------------------------------------------------------------------|---------------------------------------|
| `static`     | batches of prompts of similar length, padded on the left         | on a CPU, and by tiny students        |
| `continuous` | paged cache, a finished completion's place is taken by the next  | on a GPU                              |
| `vllm`       | the same, faster, LoRA adapters served as they are               | on a GPU where `vllm` is installed    |

No engine stops at a piece of text: a completion ends with a stop token or at its limit.
"""

import importlib.util
from dataclasses import dataclass

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from mixdistill.data.students import TINY, Student

ENGINES = ("static", "continuous", "vllm")
LOOP_TOKENS = 60  # a tail of at least so many tokens ...
LOOP_TIMES = 3  # ... that says the same at least so many times is a loop
LOOP_WINDOW = 1500  # tokens of the tail that are looked at


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else sampled with `top_p` and `seed`; `n` completions a prompt.

    Raises ValueError for a negative temperature, a `top_p` outside 0..1, `n` below 1, or several greedy completions.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.n < 1:
            raise ValueError(f"{self}: temperature is at least 0, top_p above 0 and at most 1, n at least 1")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"{self}: greedy completions of one prompt are all the same, give a temperature above 0")


@dataclass(frozen=True)
class Completion:
    """One completion and how it came about.

    `finish_reason` is `stop` (the student ended its turn) or `length` (cut at the limit); `n_tokens` counts the stop token;
    `loop` says that its tail repeats itself; `batch` is prompts x tokens of the padded batch, or prompts in flight.
    """

    text: str
    n_tokens: int
    finish_reason: str
    loop: bool
    engine: str
    dtype: str
    batch: str


def default_engine(n_params: int) -> str:
    """The fastest engine that this machine has for a student of this size."""
    if not torch.cuda.is_available() or n_params < TINY:
        return "static"
    return "vllm" if importlib.util.find_spec("vllm") else "continuous"


def check_engine(engine: str) -> None:
    """Raise ValueError for an engine that does not exist or can not run here."""
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}: use one of {', '.join(ENGINES)}, or None for the fastest here")
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError("the engine 'vllm' needs the package vllm: pip install -e '.[vllm]', or use 'continuous'")


def length_sorted_batches(prompts: list[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts in batches of similar length, the longest first, so that what does not fit fails at once."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def complete(
    student: Student,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    engine: str = "static",
) -> list[Completion]:
    """Complete prompts (token ids) with at most `max_new_tokens` tokens, one completion a prompt, by a transformers engine.

    Raises RuntimeError if the engine leaves a prompt without its completion.
    """
    decode = _static if engine == "static" else _continuous
    rows, shape = decode(student, prompts, _config(student, max_new_tokens, sampling), sampling.seed)
    stops = set(student.model.generation_config.eos_token_id)
    dtype = str(next(student.model.parameters()).dtype).removeprefix("torch.")
    return [completion(student.tokenizer, row, stops, engine, dtype, shape) for row in rows]


def _config(student: Student, max_new_tokens: int, sampling: Sampling) -> GenerationConfig:
    greedy = sampling.temperature == 0
    choice = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        eos_token_id=student.model.generation_config.eos_token_id,
        pad_token_id=student.tokenizer.pad_token_id,
        **choice,
    )


@torch.inference_mode()
def _static(
    student: Student, prompts: list[list[int]], config: GenerationConfig, seed: int
) -> tuple[list[list[int]], str]:
    width = max(map(len, prompts))
    pad = student.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=student.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=student.device)
    if config.do_sample:
        torch.manual_seed(seed)
    output = student.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return output[:, width:].tolist(), f"{len(prompts)}x{width}"


def _continuous(
    student: Student, prompts: list[list[int]], config: GenerationConfig, seed: int
) -> tuple[list[list[int]], str]:
    # The adapters lie in the layers of the base model, which has the paged decoding that peft's wrapper lacks.
    model = student.model.get_base_model() if hasattr(student.model, "get_base_model") else student.model
    results = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=_cache(student, prompts, config, seed)
    )
    outputs = list(results.values())
    failed = [output.error for output in outputs if output.error]
    if failed or len(outputs) < len(prompts):
        raise RuntimeError(
            f"continuous batching gave {len(outputs) - len(failed)} completions for {len(prompts)} prompts"
            f"{f' (the first error: {failed[0]})' if failed else ''}: give a smaller batch_size or engine='static'"
        )
    return [output.generated_tokens for output in outputs], f"{len(prompts)} in flight"


def _cache(student: Student, prompts: list[list[int]], config: GenerationConfig, seed: int) -> ContinuousBatchingConfig:
    """A paged cache: on a GPU as large as its memory allows, on a CPU (for tests) as large as these prompts need."""
    if student.device.type == "cuda":
        return ContinuousBatchingConfig(seed=seed)
    page = 32
    pages = sum(-(-(len(prompt) + config.max_new_tokens) // page) for prompt in prompts)
    return ContinuousBatchingConfig(seed=seed, page_size=page, num_blocks=pages + 1, max_batch_tokens=256)


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
