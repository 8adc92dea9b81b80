"""How the next token is chosen, so that a completion depends on nothing but its prompt and its own seed."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mixdistill import arguments

# The token ids [rows] for logits [rows, vocabulary], the prompts [rows] that the rows answer, and the step.
Choose = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0, else sampled with `top_p` and `seed`; `n` completions a prompt.

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
        if self.greedy and self.n > 1:
            raise ValueError(f"{self}: greedy completions of one prompt are all the same, give a temperature above 0")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def seed_of(self, *completion: str | int) -> int:
        """A seed below 2**63 for one completion: its benchmark, problem id and number say which."""
        text = repr((self.seed, *completion))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def chooser(sampling: Sampling, seeds: Sequence[int], n: int, device: torch.device) -> Choose:
    """What chooses the next token of every row in up to n steps: the most probable one, or the one at which the
    cumulated probabilities pass the next random number of the prompt's seed.

    Random numbers are Philox's, which is the same on every machine (Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3").
    """
    if sampling.greedy:
        return lambda logits, prompts, step: logits.argmax(-1)
    streams = [np.random.Generator(np.random.Philox(key=seed)).random(n) for seed in seeds]
    uniform = torch.from_numpy(np.stack(streams)).to(device)

    def choose(logits: torch.Tensor, prompts: torch.Tensor, step: int) -> torch.Tensor:
        # The maximum goes first, so that a temperature near 0 cannot overflow.
        logits = logits.double() - logits.amax(-1, keepdim=True)
        probabilities = (logits / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            # The smallest set of tokens whose probabilities add up to at least top_p.
            descending, order = probabilities.sort(descending=True, stable=True)
            before = descending.cumsum(-1) - descending
            probabilities = probabilities.scatter(-1, order, descending.where(before < sampling.top_p, 0))
        cumulated = probabilities.cumsum(-1)
        threshold = uniform[prompts, step, None] * cumulated[:, -1:]
        return torch.searchsorted(cumulated, threshold, right=True).squeeze(-1)

    return choose
