"""Attention while training: each token sees the earlier ones of its own example.

On a GPU several examples share one row (packed), and PyTorch's attention with variable lengths keeps them apart.
Everywhere else, and for models with more than plain attention, each example has a row of its own and the model's own
attention is used.
"""

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from mixdistill.finetuning.batches import NOTHING, pack

LARGEST_HEAD = 256  # of the kernel
VARLEN = "mixdistill_varlen"  # the one attention here that takes packed rows


def attention_for(model: PreTrainedModel, device: torch.device) -> str:
    """Name of the attention of transformers to train this model with, on this device."""
    half_on_gpu = device.type == "cuda" and model.dtype != torch.float32  # the kernel takes nothing else
    if half_on_gpu and torch.cuda.get_device_capability(device) >= (8, 0) and can_pack(model):
        return VARLEN
    return model.config._attn_implementation


def can_pack(model: PreTrainedModel) -> bool:
    """Whether attention alone carries anything from token to token, and the kernel can compute it: causal, with or
    without a window.

    Convolutions and Mamba layers run on from one packed example into the next. Soft caps, sinks and biases of the
    positions are what a model lacks that supports PyTorch's `sdpa`. A short pass shows the rest: some models keep the
    lengths from their attention, or give it masks or windows in a form that the kernel does not take.
    """
    layers, window = getattr(model.config, "layer_types", None), getattr(model.config, "sliding_window", None)
    plain_layers = {"full_attention", "sliding_attention"}.issuperset(layers or ())
    plain_attention = model._supports_attention_backend and model._supports_sdpa
    convolves = any(isinstance(module, torch.nn.Conv1d) for module in model.modules())
    if not (plain_layers and plain_attention) or convolves or model._is_stateful:
        return False
    windows, fits = set(), []

    def note(module, query, key, value, attention_mask=None, **given):
        size = value.shape[3]
        fits.append("cu_seq_lens_q" in given and attention_mask is None and query.shape[3] == size <= LARGEST_HEAD)
        windows.add(given.get("sliding_window"))
        return value.new_zeros(1, query.shape[2], query.shape[1], size), None

    own = model.config._attn_implementation
    AttentionInterface.register(VARLEN, note)
    try:
        model.set_attn_implementation(VARLEN)
        with torch.no_grad():
            model(**pack([NOTHING, NOTHING]).to(model.device).inputs, use_cache=False)
    finally:
        model.set_attn_implementation(own)
        AttentionInterface.register(VARLEN, varlen_attention)
    windowed = window and (not layers or "sliding_attention" in layers)
    return all(fits) and (window in windows or not windowed)


def varlen_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **lengths):
    """`torch.nn.attention.varlen` behind the signature of transformers.

    Arguments:
        query, key, value: [1, heads, tokens, size].
        sliding_window: how many tokens a token sees, itself among them; None means all.
        lengths: `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`, as in `Batch.inputs`.

    Returns: [1, tokens, heads, size], and no attention weights.
    """
    out = varlen_attn(
        # Positions rotated in float32 come out in float32; the value still has the kernel's type.
        *(states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value)),
        *(lengths[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")),
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None], None


AttentionInterface.register(VARLEN, varlen_attention)
