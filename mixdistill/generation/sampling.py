"""How the next token is chosen, so that a completion depends on nothing but its prompt, the seed and its own stream."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mixdistill import arguments


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else sampled with `top_p` and `seed`; `n` completions a
    prompt.

    Raises ValueError for a negative temperature, a `top_p` outside 0..1, a seed outside 0..2**63, `n` below 1, or
    several greedy completions.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        # A frozen dataclass is set this way; the checks give plain Python numbers, which the run store can write.
        object.__setattr__(self, "temperature", arguments.number("Sampling's temperature", self.temperature, low=0))
        object.__setattr__(self, "top_p", arguments.number("Sampling's top_p", self.top_p, above=0, high=1))
        object.__setattr__(self, "seed", arguments.whole("Sampling's seed", self.seed, low=0, high=2**63))
        object.__setattr__(self, "n", arguments.whole("Sampling's n", self.n))
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"{self}: greedy completions of one prompt are all the same, give a temperature above 0")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def uniforms(seed: int, streams: Sequence[int], n: int) -> torch.Tensor:
    """Random numbers in [0, 1), [streams, n] in float64: row i depends on `seed` and `streams[i]` only.

    Philox, a generator by counter and key, is the same on every machine (Salmon et al. 2011, "Parallel random numbers:
    as easy as 1, 2, 3").
    """
    keys = (np.array([seed, stream], dtype=np.uint64) for stream in streams)
    return torch.from_numpy(np.stack([np.random.Generator(np.random.Philox(key=key)).random(n) for key in keys]))


def joint_seed(seed: int, stream: int) -> int:
    """One seed below 2**63 for both numbers: for an engine with random numbers of its own."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8]) >> 1


def next_tokens(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> torch.Tensor:
    """The next token of every row: the most probable one, or the one at which the cumulated probabilities pass
    `uniform`.

    Arguments:
        logits: [rows, vocabulary].
        uniform: [rows], in [0, 1); not looked at by greedy sampling.

    Returns: token ids [rows].
    """
    if sampling.greedy:
        return logits.argmax(-1)
    logits = logits.double()
    # The maximum goes first, so that a temperature near 0 cannot overflow.
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        # The smallest set of tokens whose probabilities add up to at least top_p.
        descending, order = probabilities.sort(descending=True, stable=True)
        before = descending.cumsum(-1) - descending
        probabilities = probabilities.scatter(-1, order, descending.where(before < sampling.top_p, 0))
    cumulated = probabilities.cumsum(-1)
    return torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True).squeeze(-1)
