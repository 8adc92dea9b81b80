"""The line that a training run prints now and then: where it is, how fast, and what it takes."""

import resource
import sys
from collections.abc import Mapping

import torch

from mixdistill.runs import Run

# Dense bfloat16 peak of one GPU in FLOP/s, from NVIDIA's data sheets; matched in this order within the device's name.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "L4": 121e12,
}


def progress_line(
    run: Run,
    n_steps: int,
    row: Mapping[str, float],
    here: Mapping[str, int],
    seconds: float,
    flops: int,
    world: int,
    device: torch.device,
) -> str:
    """One line for a person.

    Arguments:
        row: the newest of the loss curve.
        here: steps, tokens and supervised tokens since these processes started, `seconds` ago.
        flops: of a token (`flops_per_token`).
        world: number of processes.
    """
    left = seconds / here["steps"] * (n_steps - row["step"]) / 60
    speed = utilisation(flops * here["tokens"] / seconds / world, device)
    return (
        f"{run.folder.name}: step {row['step']}/{n_steps}, loss {row['loss']:.3f}, {here['supervised'] / seconds:,.0f} "
        f"supervised of {here['tokens'] / seconds:,.0f} tokens/s, {speed}, {left:.1f} min left, "
        f"peak {peak_memory(device) / 1e9:.2f} GB"
    )


def flops_per_token(model: torch.nn.Module) -> int:
    """Training FLOPs of a token by convention: 6N where all weights are trained, 4N with adapters (no gradient of the frozen
    matrices). N counts every parameter that a token is multiplied with: all but the adapters and an untied embedding's
    table. Attention's own products, recomputation and the head's saved positions are left out of the count.
    """
    causal = getattr(model, "base_model", model).model if hasattr(model, "peft_config") else model
    n = sum(p.numel() for name, p in causal.named_parameters() if ".lora_" not in name)
    embedding = causal.get_input_embeddings().weight
    if causal.get_output_embeddings().weight is not embedding:
        n -= embedding.numel()
    return (4 if hasattr(model, "peft_config") else 6) * n


def utilisation(flops: float, device: torch.device) -> str:
    """Model FLOP/s of one device, as share of its peak (MFU) where that is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for part, peak in PEAK_FLOPS.items():
        if part in name:
            return f"MFU {flops / peak:.1%}"
    return f"{flops / 1e9:,.1f} model GFLOP/s"


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at most: allocated on the GPU, or resident of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
