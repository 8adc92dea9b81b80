"""Examples -> batches by token budget: which examples share a forward pass, and the tensors that they become there.

On CUDA a batch is one row without padding, in which examples see only themselves (`attention`). On a CPU it is rows of
similar length, padded on the right: a block mask makes attention pay for all pairs of a row's tokens, and measured
slower at every size of the pocket students (`benchmarks/README.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixdistill.data.chat import Example

NOTHING = Example([0], n_prompt=1)  # what a process is given for which nothing is left


@dataclass(frozen=True)
class Batch:
    """The tensors of one forward pass. Packed: one row. Padded: a row an example, padding on the right."""

    input_ids: torch.Tensor  # [rows, width]
    position_ids: torch.Tensor | None  # [1, width], from 0 again in each packed example; None when padded
    cu_seqlens: torch.Tensor | None  # [examples + 1], int32: where the packed examples begin; None when padded
    max_seqlen: int  # tokens of the longest example
    predicts: torch.Tensor  # [supervised]: flat positions whose output predicts a supervised token
    labels: torch.Tensor  # [supervised]: the tokens that they predict

    def to(self, device: torch.device) -> "Batch":
        """All tensors on a device, none waited for."""
        if device.type != "cuda":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved = {name: value.pin_memory().to(device, non_blocking=True) for name, value in tensors.items()}
        return Batch(**vars(self) | moved)


def batch_of(examples: list[Example], step: int, batch_size: int, seed: int) -> list[Example]:
    """The examples of a step, each epoch in a new order that depends on seed and epoch only."""
    epoch, at = divmod(step, -(-len(examples) // batch_size))
    generator = torch.Generator().manual_seed((1_000_003 * seed + epoch) % 2**64)
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [examples[i] for i in order[at * batch_size : (at + 1) * batch_size]]


def token_groups(lengths: Sequence[int], budget: int, packed: bool) -> list[list[int]]:
    """Which examples share a forward pass: first fit, the longest first.

    Arguments:
        lengths: tokens of each example.
        budget: tokens of a pass, padding included; a longer example gets a pass of its own.
        packed: whether examples are packed or padded to the longest of their pass.

    Returns: indices into `lengths`, every one once; the costliest pass first.
    """
    groups: list[list[int]] = []
    loads: list[int] = []  # tokens, without padding
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for at, group in enumerate(groups):
            tokens = loads[at] + lengths[i] if packed else (len(group) + 1) * lengths[group[0]]
            if tokens <= budget:
                group.append(i)
                loads[at] += lengths[i]
                break
        else:
            groups.append([i])
            loads.append(lengths[i])
    return [group for _, group in sorted(zip(loads, groups, strict=True), key=lambda pair: -pair[0])]


def share_of(groups: list[list[int]], rank: int, ranks: int) -> list[list[int]]:
    """The passes of one of `ranks` processes, as many for each: sharded weights are gathered by all in step.

    Where the number does not come out even, passes are halved, the largest first; a pass left empty has nothing to
    train.
    """
    groups = list(groups)
    while len(groups) % ranks:
        largest = max(groups, key=len)
        if len(largest) < 2:
            groups.append([])
            continue
        at = groups.index(largest)
        groups[at : at + 1] = [largest[::2], largest[1::2]]
    return groups[rank::ranks]


def pack(examples: Sequence[Example]) -> Batch:
    """One row with all examples behind each other; positions restart, and no example predicts into the next."""
    lengths = [len(example.input_ids) for example in examples]
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return Batch(
        input_ids=torch.tensor([[token for example in examples for token in example.input_ids]]),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        max_seqlen=max(lengths),
        **_supervised(examples, starts[:-1]),
    )


def pad(examples: Sequence[Example], pad_token: int) -> Batch:
    """A row an example. Under a causal mask no real token sees the padding on its right: no attention mask is
    needed.
    """
    width = max(len(example.input_ids) for example in examples)
    rows = [example.input_ids + [pad_token] * (width - len(example.input_ids)) for example in examples]
    return Batch(torch.tensor(rows), None, None, width, **_supervised(examples, [width * i for i in range(len(rows))]))


def _supervised(examples: Sequence[Example], starts: list[int]) -> dict[str, torch.Tensor]:
    """What the head is asked, for examples that begin at these flat positions."""
    asked = list(zip(starts, examples, strict=True))
    predicts = [start + i - 1 for start, e in asked for i in range(e.n_prompt, len(e.input_ids))]
    labels = [token for e in examples for token in e.input_ids[e.n_prompt :]]
    return {"predicts": torch.tensor(predicts, dtype=torch.long), "labels": torch.tensor(labels, dtype=torch.long)}
