"""Examples -> batches by token budget: which examples share a forward pass, and the tensors that they become there.

On CUDA a batch is one row without padding, in which examples see only themselves (`attention`). On a CPU it is rows of
similar length, padded on the right: a block mask makes attention pay for all pairs of a row's tokens, and measured
slower at every size of the pocket students (`benchmarks/README.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithFlattening

from mixdistill.data.chat import Example

NOTHING = Example([0], n_prompt=1)  # what a process is given for which nothing is left
IGNORED = -100  # the label of what is not supervised
flattened = DataCollatorWithFlattening(return_flash_attn_kwargs=True)


@dataclass(frozen=True)
class Batch:
    """The tensors of one forward pass. Packed: one row. Padded: a row an example, padding on the right."""

    inputs: dict[str, torch.Tensor | int]  # of the model's forward: input_ids [rows, width], where packed examples lie
    predicts: torch.Tensor  # [supervised]: flat positions whose output predicts a supervised token
    labels: torch.Tensor  # [supervised]: the tokens that they predict

    def to(self, device: torch.device) -> "Batch":
        """All tensors on a device, none waited for."""

        def moved(value):
            return value.pin_memory().to(device, non_blocking=True) if torch.is_tensor(value) else value

        if device.type != "cuda":
            return self
        inputs = {name: moved(value) for name, value in self.inputs.items()}
        return Batch(inputs, moved(self.predicts), moved(self.labels))


def batch_of(examples: Sequence[Example], step: int, batch_size: int, seed: int) -> list[Example]:
    """The examples of a step, each epoch in a new order that depends on seed and epoch only."""
    epoch, at = divmod(step, -(-len(examples) // batch_size))
    generator = torch.Generator().manual_seed((1_000_003 * seed + epoch) % 2**64)
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [examples[i] for i in order[at * batch_size : (at + 1) * batch_size]]


def token_groups(
    lengths: Sequence[int], budget: int, packed: bool, rank: int = 0, ranks: int = 1, boundary: int | None = None
) -> list[list[int]]:
    """Which examples share a forward pass in one of `ranks` processes: first fit, the longest first.

    Arguments:
        lengths: tokens of each example.
        budget: tokens of a pass, padding included; a longer example gets a pass of its own.
        packed: whether examples are packed or padded to the longest of their pass.
        boundary: examples of more tokens share no pass with others (`rope_boundary`).

    Returns: indices into `lengths`, in all processes together every one once; the costliest pass first. All processes
        have equally many passes, some of them empty, as sharded weights are gathered by all in step.
    """
    if boundary is not None:
        sides = [[i for i, n in enumerate(lengths) if (n > boundary) == long] for long in (True, False)]
        groups = [token_groups([lengths[i] for i in side], budget, packed, rank, ranks) for side in sides]
        return [[side[i] for i in group] for side, own in zip(sides, groups, strict=True) for group in own]
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    shares = [_first_fit(longest_first[i::ranks], lengths, budget, packed) for i in range(ranks)]
    return shares[rank] + [[]] * (max(map(len, shares)) - len(shares[rank]))


def _first_fit(longest_first: Sequence[int], lengths: Sequence[int], budget: int, packed: bool) -> list[list[int]]:
    def load(group: list[int]) -> int:
        """Tokens, without padding."""
        return sum(lengths[i] for i in group)

    groups: list[list[int]] = []
    for i in longest_first:
        for group in groups:
            tokens = load([*group, i]) if packed else (len(group) + 1) * lengths[group[0]]
            if tokens <= budget:
                group.append(i)
                break
        else:
            groups.append([i])
    return sorted(groups, key=load, reverse=True)


def pack(examples: Sequence[Example]) -> Batch:
    """One row with all examples behind each other; positions restart, and no example predicts into the next."""
    inputs = flattened([{"input_ids": example.input_ids, "labels": labels_of(example)} for example in examples])
    return _batch(inputs, inputs.pop("labels")[0])


def pad(examples: Sequence[Example], pad_token: int) -> Batch:
    """A row an example. Under a causal mask no token sees the padding on its right: no attention mask is needed."""
    rows = [torch.tensor(example.input_ids) for example in examples]
    labels = [torch.tensor(labels_of(example)) for example in examples]
    inputs = {"input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_token)}
    return _batch(inputs, pad_sequence(labels, batch_first=True, padding_value=IGNORED).flatten())


def labels_of(example: Example) -> list[int]:
    return [IGNORED] * example.n_prompt + example.input_ids[example.n_prompt :]


def _batch(inputs: dict[str, torch.Tensor | int], labels: torch.Tensor) -> Batch:
    supervised = (labels != IGNORED).nonzero()[:, 0]
    return Batch(inputs, supervised - 1, labels[supervised])
