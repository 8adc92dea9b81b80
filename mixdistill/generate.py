"""Decoding: many prompts through a student, in batches of similar length, padded on the left."""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from mixdistill.students import Student


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else sampled with `top_p` and `seed`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is `stop` (the student ended its turn) or `length` (cut at the limit). `n_tokens` counts the stop token."""

    text: str
    n_tokens: int
    finish_reason: str


def length_sorted_batches(prompts: list[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts in batches of similar length, the longest first, so that what does not fit fails at once."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


@torch.inference_mode()
def complete(
    student: Student, prompts: list[list[int]], max_new_tokens: int, sampling: Sampling = Sampling()
) -> list[Completion]:
    """Complete one batch of prompts (token ids)."""
    width = max(map(len, prompts))
    pad = student.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=student.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=student.device)
    greedy = sampling.temperature == 0
    choice = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    if not greedy:
        torch.manual_seed(sampling.seed)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        eos_token_id=student.model.generation_config.eos_token_id,
        pad_token_id=pad,
        **choice,
    )
    output = student.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [_completion(student, row) for row in output[:, width:].tolist()]


def _completion(student: Student, tokens: list[int]) -> Completion:
    stops = set(student.model.generation_config.eos_token_id)
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    if end is None:
        return Completion(student.tokenizer.decode(tokens, skip_special_tokens=True), len(tokens), "length")
    return Completion(student.tokenizer.decode(tokens[:end], skip_special_tokens=True), end + 1, "stop")
