"""Attention while training: each token sees the earlier ones of its own example.

Both of ours take no mask. transformers makes none for implementations that it does not know, which saves its look for packed
examples in every pass: a read from the GPU, and on a CPU time.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

VARLEN = "mixdistill_varlen"  # for packed examples
CAUSAL = "mixdistill_causal"  # for examples in rows of their own, padded on the right


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """The attention to train with, for weights of this type on this device; what `choose_attention` says of what is found here."""
    if device.type != "cuda" or dtype == torch.float32:  # what packs takes half precision only
        return choose_attention("cpu", None, ())
    found = {"flash_attention_2": is_flash_attn_2_available(), "flash_attention_3": is_flash_attn_3_available()}
    installed = [name for name, there in found.items() if there]
    return choose_attention("cuda", torch.cuda.get_device_capability(device), installed)


def choose_attention(device_type: str, capability: tuple[int, int] | None, installed: Collection[str]) -> str:
    """Name of an attention implementation of transformers.

    FlashAttention 3 where it is installed and runs (Hopper), else FlashAttention 2 where it is installed, else PyTorch's own
    variable-length attention; all need Ampere (compute capability 8.0) or newer. Elsewhere examples are padded.
    """
    if device_type != "cuda" or capability < (8, 0):
        return CAUSAL
    if "flash_attention_3" in installed and capability[0] == 9:
        return "flash_attention_3"
    return "flash_attention_2" if "flash_attention_2" in installed else VARLEN


def packs(attention: str) -> bool:
    """Whether it keeps packed examples apart without paying for the pairs that it masks."""
    return attention != CAUSAL


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **lengths: torch.Tensor | int,
) -> tuple[torch.Tensor, None]:
    """`torch.nn.attention.varlen` behind the signature of transformers: [1, heads, tokens, size] -> [1, tokens, heads, size].

    `lengths` holds the `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k` given to the model, computed once a batch.
    """
    if dropout:
        raise ValueError(f"attention dropout is {dropout}: it is not supported here, set attention_dropout to 0")
    out = varlen_attn(
        # Positions rotated in float32 come out in float32; the value still has the kernel's type.
        *(states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value)),
        lengths["cu_seq_lens_q"],
        lengths["cu_seq_lens_k"],
        lengths["max_length_q"],
        lengths["max_length_k"],
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None], None


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention under a causal mask: [rows, heads, tokens, size] -> [rows, tokens, heads, size]."""
    width, window = query.shape[2], None
    if sliding_window is not None and sliding_window < width:
        window = torch.ones(width, width, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=window,
        dropout_p=dropout,
        is_causal=window is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2), None


AttentionInterface.register(VARLEN, varlen_attention)
AttentionInterface.register(CAUSAL, causal_attention)
