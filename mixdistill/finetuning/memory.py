"""How a training step is laid out so that it fits the GPU, and what to change when it did not."""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from mixdistill.finetuning.memory_model import training_memory

# Tokens of a forward pass, padding included. On a GPU enough to keep it busy. On a CPU so few that the widest activation, of
# the MLP, stays in a core's cache (1 MB): at every size of the pocket students near the best of `benchmarks/passes.csv`.
GPU_TOKENS = 16_384
CPU_CACHE = 2**20  # bytes
CPU_TOKENS = (512, 2048)  # at least, at most
SAFE_SHARE = 0.92  # of the free memory that an estimate may take


@dataclass(frozen=True)
class MemoryPlan:
    """What a training step keeps where. All plans compute the same, up to rounding."""

    micro_batch_tokens: int  # of a forward pass of one process, padding included
    checkpointing: bool = False  # layers are computed again in the backward pass
    offload: bool = False  # what checkpointing keeps waits in the host's memory
    shard: bool = False  # FSDP2: each GPU holds its share of the weights
    why: str = ""


def choose_memory_plan(
    config: PretrainedConfig,
    longest: int,
    free: int | None,
    *,
    lora_rank: int | None,
    gpus: int = 1,
    micro_batch_tokens: int | None = None,
    checkpointing: bool | None = None,
    offload: bool | None = None,
    shard: bool | None = None,
) -> MemoryPlan:
    """The fastest plan whose estimate (`training_memory`) fits; where none does, the most frugal one.

    From fast to frugal: shorter passes, checkpointing (a third more FLOPs), offload, sharding (traffic between the GPUs).

    Arguments:
        longest: tokens of the longest example, which no plan splits.
        free: bytes that one GPU has for all of it; None on a CPU, where nothing is estimated.
        micro_batch_tokens, checkpointing, offload, shard: a value overrides the choice.

    Raises ValueError for settings that contradict each other.
    """
    if offload and checkpointing is False:
        raise ValueError("offload moves what checkpointing keeps: leave checkpointing on, or offload off")
    if free is None:
        if offload:
            raise ValueError("offload moves activations off a GPU, and this machine has none: leave it out")
        budget = max(longest, micro_batch_tokens or cpu_tokens(config))
        return MemoryPlan(budget, bool(checkpointing), False, bool(shard), "nothing is estimated on a CPU")
    budgets = [micro_batch_tokens] if micro_batch_tokens else [GPU_TOKENS, GPU_TOKENS // 4]
    plans = [
        MemoryPlan(max(longest, budget), recompute, move, split)
        for split in ((False, True) if gpus > 1 else (False,))
        for recompute, move in ((False, False), (True, False), (True, True))
        for budget in budgets
        if shard in (None, split) and checkpointing in (None, recompute) and offload in (None, move)
    ]
    if not plans:
        raise ValueError(f"shard is {shard} with {gpus} GPU: weights are shared out over several, set gpus")
    for plan in plans:
        needed = estimate(config, plan, lora_rank, gpus)
        if needed <= SAFE_SHARE * free:
            break
    fits = "fits" if needed <= SAFE_SHARE * free else "DOES NOT FIT, the most frugal plan is tried"
    why = f"estimate {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB free: {fits}"
    return MemoryPlan(plan.micro_batch_tokens, plan.checkpointing, plan.offload, plan.shard, why)


def cpu_tokens(config: PretrainedConfig) -> int:
    """Tokens of a forward pass on a CPU, where the user has not chosen."""
    low, high = CPU_TOKENS
    return min(max(CPU_CACHE // (4 * config.intermediate_size), low), high)


def estimate(config: PretrainedConfig, plan: MemoryPlan, lora_rank: int | None, gpus: int = 1) -> int:
    """Peak bytes of a step on one GPU."""
    memory = training_memory(
        config,
        plan.micro_batch_tokens,
        lora_rank=lora_rank,
        checkpointing=plan.checkpointing,
        shards=gpus if plan.shard else 1,
    )
    return memory.total - (memory.activations if plan.offload else 0)


def out_of_memory_advice(plan: MemoryPlan, longest: int, max_tokens: int, gpus: int) -> str:
    """What to lower, and by how much, after a pass under `plan` did not fit."""
    if plan.micro_batch_tokens > longest:
        return (
            f"lower micro_batch_tokens from {plan.micro_batch_tokens} to {max(longest, plan.micro_batch_tokens // 2)}"
        )
    if not plan.checkpointing:
        return "set checkpointing=True (its activations then take about a tenth)"
    if not plan.offload:
        return "set offload=True (activations then wait in the host's memory)"
    if gpus > 1 and not plan.shard:
        return f"set shard=True (each of {gpus} GPUs then holds its share of the weights)"
    return (
        f"the longest example alone has {longest} tokens: lower max_tokens from {max_tokens} to {longest // 2} with "
        "too_long='drop', or use more GPUs with shard=True"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a type for it; the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
