"""What a model costs, from its configuration alone: bytes to train and to decode, and FLOPs. No weight is read.

Symbols of the formulas, all of one decoder layer: h hidden size, q width of all query heads, k width of all key heads,
i width of the MLP; V vocabulary, N parameters. A `total` holds `OVERHEAD` for what the CUDA context and the allocator take.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from mixdistill.data.students import decoder_layers

BF16, FP32 = 2, 4  # bytes
# CUDA context, cuBLAS workspaces, fragments held by the allocator: a customary margin, not a measurement.
OVERHEAD = 2 * 10**9
LOGITS_CHUNK = 1024  # positions of which the loss holds logits at a time


@dataclass(frozen=True)
class TrainingMemory:
    """Peak of a training step on one GPU, in bytes, by what takes it."""

    weights: int  # of the base, with the copies that a step makes of them
    adapters: int
    gradients: int
    optimizer: int
    activations: int  # kept from the forward for the backward pass
    loss: int  # logits of a chunk, and what else is gone before the backward pass is at its peak
    backward: int  # the layer that is recomputed, if any, and gradients of activations

    @property
    def total(self) -> int:
        standing = self.weights + self.adapters + self.gradients + self.optimizer + self.activations
        return standing + max(self.loss, self.backward) + OVERHEAD


@dataclass(frozen=True)
class InferenceMemory:
    """Peak of decoding on one GPU, in bytes."""

    weights: int
    kv_cache: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.logits + OVERHEAD


def training_memory(
    config: PretrainedConfig,
    tokens: int,
    *,
    lora_rank: int | None,
    checkpointing: bool = False,
    shards: int = 1,
    logits_chunk: int = LOGITS_CHUNK,
) -> TrainingMemory:
    """Peak memory of a step of `finetune` on CUDA: bfloat16 autocast, AdamW in float32, attention that stores no scores.

    - LoRA: the frozen base in bfloat16, 2N; adapters, their gradients and AdamW's two moments in float32, 16 bytes a
      trained parameter, and autocast's bfloat16 copy of the adapters.
    - All weights (`lora_rank` None): float32 weights and autocast's bfloat16 copy of them, 6N; gradients 4N, moments 8N
      (Rajbhandari et al. 2020, ZeRO, section 3.1, counts 16N in all: there the gradients are half and the masters extra).
    - Over `shards` GPUs (FSDP2) each holds its share of all that, and in bfloat16 two whole layers, embedding and head.
    - Activations: `activation_bytes`. Logits: log-probabilities and two gradients in float32, 12V a position of a chunk; they
      are gone when the backward pass is at its peak, so only the larger of the two counts.

    Against the allocations of a profiled step on a CPU (small random Qwen2 and Llama under bfloat16 autocast) the sum is within
    10% (`tests/test_memory.py`); what CUDA adds, `OVERHEAD`, has not been measured, nor has sharding.

    Arguments:
        config: of a decoder-only model (Qwen2, Llama).
        tokens: in the largest forward pass of one GPU, padding included.
        lora_rank: None where all weights are trained.
        checkpointing: whether each layer's activations are recomputed in the backward pass.
        shards: GPUs that share the weights; 1 also for DDP, where each holds all.
        logits_chunk: positions of which logits are held at a time.

    Raises ValueError for a configuration of another kind, or counts below 1.
    """
    _check_positive(tokens=tokens, shards=shards, logits_chunk=logits_chunk)
    size = model_size(config)
    gathered = BF16 * (2 * size.layer + size.embedding + size.head) if shards > 1 else 0
    loss = 3 * FP32 * min(logits_chunk, tokens) * config.vocab_size
    if lora_rank is None:
        trained, adapters, weights = size.total, 0, FP32 * size.total // shards + gathered
        if shards == 1:
            weights += BF16 * (size.layer if checkpointing else size.total)
            # Autocast drops its copies when the forward pass ends; recomputation makes those of a layer again.
            loss += BF16 * size.total if checkpointing else 0
    else:
        trained = n_lora_params(config, lora_rank)
        adapters = (FP32 + BF16) * trained // shards
        weights = BF16 * size.total // shards + gathered
    kept, backward = activation_bytes(config, lora_rank=lora_rank, checkpointing=checkpointing)
    return TrainingMemory(
        weights=weights,
        adapters=adapters,
        gradients=FP32 * trained // shards,
        optimizer=2 * FP32 * trained // shards,
        activations=tokens * kept,
        loss=loss,
        backward=tokens * backward,
    )


def activation_bytes(
    config: PretrainedConfig, *, lora_rank: int | None, checkpointing: bool = False
) -> tuple[int, int]:
    """Bytes a token of (what all layers keep for the backward pass, what the backward pass adds at its peak).

    Counted as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1: 34h a layer for GPT), here for SwiGLU, grouped
    queries, no dropout, flash attention and autocast. A layer keeps

    - LoRA: 18h + 6q + 4k + 8i. Two norms keep a float32 copy (8h); q, k, v, gate and up each a bfloat16 copy of the input
      of their adapter (10h); attention q, k, v and output (4q + 4k), o's adapter its input (2q); SwiGLU gate, its SiLU, up
      and the input of down's adapter (8i); each of the seven adapters what its B is multiplied with (2 rank).
    - All weights: 26h + 4q + 4k + 8i. The residual stream is float32; each norm keeps its input and its output before the
      gain (16h), five products a bfloat16 copy of their input (10h); o and down share theirs with what is kept already.

    With checkpointing a layer keeps its input only (2h, or 4h in float32), and the above is recomputed for one layer.
    Gradients on their way back: three vectors of width i, and the residual stream's, 6i + 4h.
    """
    h, q, k, i, layers = _widths(config)
    if lora_rank is None:
        layer, stream = 26 * h + 4 * q + 4 * k + 8 * i, FP32 * h
    else:
        layer, stream = 18 * h + 6 * q + 4 * k + 8 * i + 7 * BF16 * lora_rank, BF16 * h
    gradients = 3 * BF16 * i + FP32 * h
    return (layers * stream, layer + gradients) if checkpointing else (layers * layer, gradients)


def inference_memory(config: PretrainedConfig, batch: int, length: int, *, shards: int = 1) -> InferenceMemory:
    """Peak memory of decoding `batch` completions that reach `length` tokens, prompt included, in bfloat16.

    Weights 2N; keys and values 2 x 2k bytes a token and layer (Pope et al. 2022, arXiv 2211.05102, section 2.1); float32
    logits of one step. Over `shards` GPUs (tensor-parallel) each holds its share.

    Raises ValueError for a configuration of another kind, or counts below 1.
    """
    _check_positive(batch=batch, length=length, shards=shards)
    return InferenceMemory(
        weights=BF16 * model_size(config).total // shards,
        kv_cache=kv_bytes(config) * batch * length // shards,
        logits=FP32 * batch * config.vocab_size // shards,
    )


def kv_bytes(config: PretrainedConfig) -> int:
    """Bytes of keys and values a token, all layers, in bfloat16."""
    _, _, k, _, layers = _widths(config)
    return 2 * BF16 * k * layers


def training_flops(config: PretrainedConfig, lengths: Iterable[int], *, lora: bool) -> int:
    """FLOPs of one pass over examples of these lengths (tokens): what the model needs, recomputation not counted.

    6N a token where all weights are trained (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), 4N with LoRA: no gradient
    of the frozen matrices. N counts what a token is multiplied with: all but the table of an untied embedding. Causal
    attention is 2 q L^2 a layer forward and twice that backward (PaLM, arXiv 2204.02311, appendix B, halved by the mask).
    The adapters' own share (below 1%) is left out; every token counts as if it reached the head.
    """
    lengths = list(lengths)
    n = model_size(config).multiplied
    return (4 if lora else 6) * n * sum(lengths) + 3 * _attention_flops(config, lengths)


def decoding_flops(config: PretrainedConfig, lengths: Iterable[int]) -> int:
    """FLOPs of completions whose lengths (tokens) include their prompts: 2N a token, and causal attention."""
    lengths = list(lengths)
    return 2 * model_size(config).multiplied * sum(lengths) + _attention_flops(config, lengths)


def n_lora_params(config: PretrainedConfig, rank: int) -> int:
    """Parameters of adapters of this rank on all linear layers but the head."""
    return rank * model_size(config).linear_widths


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model. A tied head counts in `total` once; `head` is 0 then."""

    total: int
    embedding: int
    head: int
    layer: int
    linear_widths: int  # sum of in + out features of all linear layers but the head

    @property
    def multiplied(self) -> int:
        return self.total - self.embedding if self.head else self.total


def model_size(config: PretrainedConfig) -> ModelSize:
    """Parameters counted on an empty model: no weight is read, no memory taken."""
    _widths(config)
    return _model_size(config.to_json_string(use_diff=False))


@lru_cache(maxsize=64)
def _model_size(config_json: str) -> ModelSize:
    fields = json.loads(config_json)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return ModelSize(
        total=model.num_parameters(),
        embedding=embedding.numel(),
        head=0 if head.weight is embedding else head.weight.numel(),
        layer=sum(p.numel() for p in decoder_layers(model)[0].parameters()),
        linear_widths=sum(m.in_features + m.out_features for m in linear),
    )


def _attention_flops(config: PretrainedConfig, lengths: list[int]) -> int:
    """Of a forward pass: scores and weighted values, each 2 q FLOPs a pair of tokens, half of the pairs masked."""
    _, q, _, _, layers = _widths(config)
    return 2 * layers * q * sum(length * length for length in lengths)


def _widths(config: PretrainedConfig) -> tuple[int, int, int, int, int]:
    """(h, q, k, i, number of layers)"""
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers")
    missing = [name for name in names if not getattr(config, name, None)]
    if missing:
        raise ValueError(
            f"a configuration of type {config.model_type!r} has no {', '.join(missing)}: estimates are for dense decoder-only "
            "models such as Qwen2 and Llama"
        )
    h, heads, key_heads, i, layers = (getattr(config, name) for name in names)
    head_dim = getattr(config, "head_dim", None) or h // heads
    return h, heads * head_dim, key_heads * head_dim, i, layers


def _check_positive(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: it is at least 1")
