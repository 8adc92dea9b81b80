"""Where a student is trained, and what to give up, one thing after the other, when the memory runs out."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from mixdistill import arguments

# Tokens of a forward pass, padding included. On a GPU enough to keep it busy. On a CPU so few that the widest
# activation, of the MLP, stays in a core's cache (1 MB): at every size of the pocket students near the best of
# `benchmarks/passes.csv`.
GPU_TOKENS = 16_384
CPU_CACHE = 2**20  # bytes
CPU_TOKENS = (512, 2048)  # at least, at most


@dataclass(frozen=True)
class Placement:
    """Where a student is trained. All placements compute the same, up to rounding, so no run's name holds one."""

    gpus: int = 1  # processes of this machine, one a GPU
    tokens: int | None = (
        None  # of a pass of one process, padding included; a longer example goes alone. None: `pass_tokens`
    )
    checkpointing: bool = (
        False  # compute each layer again in the backward pass, and keep its input only: a third more FLOPs
    )
    offload: bool = False  # let what checkpointing keeps wait in the host's memory
    shard: bool = False  # share the weights out over the GPUs (FSDP2) instead of a copy on each
    compile: bool = False  # compile the decoder layers; takes minutes, pays off for hours

    def __post_init__(self) -> None:
        object.__setattr__(self, "gpus", arguments.whole("gpus", self.gpus))
        object.__setattr__(self, "tokens", arguments.whole("tokens", self.tokens, optional=True))
        for name in ("checkpointing", "offload", "shard", "compile"):
            arguments.flag(name, getattr(self, name))
        if self.offload and not self.checkpointing:
            raise ValueError("offload is True: it moves what checkpointing keeps, so set checkpointing=True too")


def pass_tokens(on: Placement, config: PreTrainedConfig, device: torch.device, longest: int) -> int:
    """Tokens of a pass: what was asked for, or this device's default; at least the longest example, which is never
    split.
    """
    low, high = CPU_TOKENS
    text = config.get_text_config()
    width = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    on_cpu = min(max(CPU_CACHE // (4 * width), low), high)
    return max(longest, on.tokens or (GPU_TOKENS if device.type == "cuda" else on_cpu))


def recompute(model: PreTrainedModel | PeftModel, on: Placement) -> None:
    """Let the model's layers keep what the placement says: their inputs only, or everything."""
    if on.checkpointing:
        causal = model.get_base_model() if isinstance(model, PeftModel) else model
        causal.activation_checkpointing_enable({"use_reentrant": False}, offload=on.offload)


def more_frugal(on: Placement, longest: int, device: torch.device) -> Placement:
    """The next placement after one whose memory ran out: a quarter of the tokens, down to the longest example; then
    checkpointing; then, on a GPU, offload. Raises MemoryError where nothing is left to give up."""
    if on.tokens > longest:
        return replace(on, tokens=max(longest, on.tokens // 4))
    if not on.checkpointing:
        return replace(on, checkpointing=True)
    if not on.offload and device.type == "cuda":
        return replace(on, offload=True)
    raise MemoryError(f"a pass over one example of {longest} tokens does not fit, with {on}")


@contextlib.contextmanager
def out_of_memory_caught(on: Placement, longest: int, device: torch.device) -> Iterator[list[BaseException]]:
    """Holds the error if the memory ran out in its body; any other goes on.

    Raises MemoryError where weights are shared out: the other processes wait for this one in the middle of a layer.
    """
    caught: list[BaseException] = []
    try:
        yield caught
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if on.shard:
            raise MemoryError(f"call again with on={more_frugal(on, longest, device)}") from error
        caught.append(error.with_traceback(None))  # the traceback would hold the activations


@contextlib.contextmanager
def advice_when_out_of_memory() -> Iterator[None]:
    """Raises RuntimeError that says what to change, where the memory ran out for good."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            f"out of memory ({str(error).splitlines()[0]}): lower max_tokens with too_long='drop', train with LoRA, or "
            "share the weights out with on=Placement(gpus=..., shard=True); with another `on` alone finetune goes on "
            "from the last checkpoint"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a type for it; the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
