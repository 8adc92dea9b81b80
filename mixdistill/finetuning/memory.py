"""Where a student is trained, and what to give up, one thing after the other, when the memory runs out."""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from mixdistill import arguments
from mixdistill.finetuning.loss import causal_model

# Tokens of a forward pass, padding included. On a GPU enough to keep it busy. On a CPU so few that the widest
# activation, of the MLP, stays in a core's cache (1 MB): at every size of the pocket students near the best of
# `benchmarks/passes.csv`.
GPU_TOKENS = 16_384
CPU_CACHE = 2**20  # bytes
CPU_TOKENS = (512, 2048)  # at least, at most


@dataclass(frozen=True)
class Placement:
    """Where a student is trained. All placements compute the same, up to rounding, so no run's name holds one.

    Arguments:
        gpus: processes of this machine, one a GPU.
        tokens: of a pass of one process, padding included; an example that is longer goes alone. None: `pass_tokens`.
        checkpointing: keep only each layer's input and compute the layer again in the backward pass: a third more
            FLOPs.
        shard: share the weights out over the GPUs (FSDP2) instead of a copy on each.

    Raises ValueError for a value of another kind, or below 1.
    """

    gpus: int = 1
    tokens: int | None = None
    checkpointing: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "gpus", arguments.whole("gpus", self.gpus))
        object.__setattr__(self, "tokens", arguments.whole("tokens", self.tokens, optional=True))
        arguments.flag("checkpointing", self.checkpointing)
        arguments.flag("shard", self.shard)

    def __str__(self) -> str:
        """In words, for messages."""
        said = {
            f"{self.gpus} processes": self.gpus > 1,
            f"passes of up to {self.tokens or 0:,} tokens": self.tokens is not None,
            "layers computed again (checkpointing)": self.checkpointing,
            "shared weights (shard)": self.shard,
        }
        return ", ".join(words for words, holds in said.items() if holds) or "one process"


def pass_tokens(on: Placement, config: PreTrainedConfig, device: torch.device, longest: int) -> int:
    """Tokens of a pass: as asked, or this device's default; at least the longest example, which is never split."""
    text = config.get_text_config()
    width = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    width = max(width) if isinstance(width, list) else width  # Gemma 3n has one a layer
    on_cpu = min(max(CPU_CACHE // (4 * width), CPU_TOKENS[0]), CPU_TOKENS[1])
    return max(longest, on.tokens or (GPU_TOKENS if device.type == "cuda" else on_cpu))


def recompute(model: torch.nn.Module, on: Placement) -> None:
    """Let the model's layers keep their inputs only, if the placement says so."""
    if on.checkpointing:
        causal_model(model).activation_checkpointing_enable({"use_reentrant": False})


def more_frugal(on: Placement, longest: int) -> Placement:
    """The next placement after one whose memory ran out: a quarter of the tokens, down to the longest example; then
    checkpointing. Raises MemoryError where nothing is left to give up."""
    assert on.tokens is not None  # `pass_tokens` has filled it in
    if on.tokens > longest:
        return replace(on, tokens=max(longest, on.tokens // 4))
    if not on.checkpointing:
        return replace(on, checkpointing=True)
    raise MemoryError(f"a pass over one example of {longest} tokens does not fit, with {on}")


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a type for it; the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def advice(error: BaseException, on: Placement) -> RuntimeError:
    """What to raise where the memory ran out for good."""
    what = f"out of memory with {on} ({str(error).splitlines()[0]})"
    less = "with fewer tokens, checkpointing or shard in `on`; or lower max_tokens with too_long='drop', or use LoRA"
    return RuntimeError(f"{what}: call again, which goes on from the last checkpoint, {less}")
