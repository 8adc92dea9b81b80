"""The decoding loop of Llama-like students: a cache of its own, and rows that have ended leave the batch.

transformers' `generate` runs a batch to its longest answer and spends, in every step, milliseconds on masks, cache
objects and checks. Here a step is the forward pass and nothing else. (`benchmarks/decode.py` measures both.)
"""

import math
from collections.abc import Callable, Sequence

import psutil
import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear

from mixdistill.data.students import TINY
from mixdistill.files import tell
from mixdistill.generation.sampling import Choose

# Their layers are: norm, attention with rotary positions, norm, gated MLP; nothing else.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
CHECK_EVERY = 4  # steps between two looks at which rows have ended
FIRST_ROOM = 64  # new tokens for which the cache has room at first; it doubles when it is full


def is_plain(model: torch.nn.Module) -> bool:
    """Whether `decode` can decode a model: one of its architectures, whose layers all see the whole text."""
    config = model.config
    layer_types = getattr(config, "layer_types", None)
    windowed = set(layer_types) != {"full_attention"} if layer_types else getattr(config, "sliding_window", None)
    # The other types of rotary positions change with the length of the text.
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return config.model_type in ARCHITECTURES and not windowed and rotary in ("default", "linear", "llama3")


@torch.inference_mode()
def decode(
    model: torch.nn.Module, prompts: Sequence[list[int]], max_new_tokens: int, stops: Sequence[int], choose: Choose
) -> list[list[int]]:
    """Complete prompts (token ids) by a model for which `is_plain` holds, with or without adapters.

    Returns: the new tokens of every prompt; what follows the first of the tokens `stops` means nothing.

    Raises MemoryError or torch.OutOfMemoryError if the cache does not fit.
    """
    unread, mask = pad_left(prompts, next(model.parameters()).device)
    student = PlainStudent(model, mask, max_new_tokens)
    stop_ids = mask.new_tensor(stops)
    answers = mask.new_full((len(prompts), max_new_tokens), stops[0])
    rows = torch.arange(len(prompts), device=mask.device)  # the prompt that each row of the batch answers
    ended = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        tokens = choose(student.read(unread), rows, step)
        answers[rows, step] = tokens
        ended |= (tokens[:, None] == stop_ids).any(-1)
        if step % CHECK_EVERY == 0:
            going = (~ended).nonzero().squeeze(-1)
            if not len(going):
                break
            if 8 * len(going) <= 7 * len(rows):  # copying the cache costs about as much as a step
                student.keep(going)
                rows, tokens, ended = rows[going], tokens[going], ended[going]
            tell(f"{step + 1} tokens, {len(going)} of {len(prompts)} answers not finished")
        unread = tokens[:, None]
    return answers.tolist()


def pad_left(prompts: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [prompts, tokens of the longest]; padding is 0."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class PlainStudent:
    """A Llama-like model and, by layer, the keys and values of what it has read [rows, heads, positions, size]."""

    def __init__(self, model: torch.nn.Module, mask: torch.Tensor, max_new_tokens: int) -> None:
        adapted = hasattr(model, "peft_config")
        base = model.get_base_model() if adapted else model
        self.body, config, embeddings = base.model, base.config, base.model.embed_tokens.weight
        # Below float32 the sum of weights and adapters would be rounded away; a larger model gains nothing by a copy.
        fold = embeddings.dtype == torch.float32 and (adapted or base.num_parameters() < TINY)
        self.head = joint([base.lm_head], fold)
        self.projections = [
            (
                joint([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj], fold),
                joint([layer.self_attn.o_proj], fold),
                joint([layer.mlp.gate_proj, layer.mlp.up_proj], fold),
                joint([layer.mlp.down_proj], fold),
            )
            for layer in self.body.layers
        ]
        self.n_heads, self.n_kv = config.num_attention_heads, config.num_key_value_heads
        self.size = self.body.layers[0].self_attn.head_dim
        n_rows, width = mask.shape
        places = torch.arange(width + max_new_tokens, device=mask.device)
        self.cos, sin = (table[0] for table in self.body.rotary_emb(embeddings, places[None]))
        places = places - (mask == 0).sum(1, keepdim=True)
        self.positions = places.clamp(min=0)  # of the tokens in their texts: [rows, positions of the cache]
        # Added to attention, where there is padding: the lowest number, as minus infinity would make NaN of its rows.
        lowest = embeddings.new_tensor(torch.finfo(embeddings.dtype).min)
        self.bias = (places < 0)[:, None, None] * lowest if (places < 0).any() else None
        # The rotation's first half has a minus sign, (x1, x2) -> (-x2, x1), which lies in the table.
        self.sin = torch.cat([-sin[:, : self.size // 2], sin[:, self.size // 2 :]], dim=-1)
        self.end = 0  # positions of the cache that are in use
        nothing = embeddings.new_empty(n_rows, self.n_kv, 0, self.size)
        self.keys, self.values = ([nothing] * len(self.body.layers) for _ in range(2))
        self._reserve(width + min(FIRST_ROOM, max_new_tokens))

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        for cache in (self.keys, self.values):
            for layer, cached in enumerate(cache):  # one after the other, so that memory has room for them
                cache[layer] = cached[rows]
        self.positions = self.positions[rows]
        self.bias = None if self.bias is None else self.bias[rows]

    def _reserve(self, capacity: int) -> None:
        """Give the cache room for so many positions; what it holds is copied."""
        shape = (len(self.positions), self.n_kv, capacity, self.size)
        n_bytes = 2 * len(self.keys) * math.prod(shape) * self.keys[0].itemsize
        # Linux promises more memory than there is, and then kills the process that takes it.
        if self.keys[0].device.type == "cpu" and n_bytes > psutil.virtual_memory().available:
            raise MemoryError(f"a cache of {n_bytes / 1e9:.1f} GB for {shape[0]} rows of {capacity} tokens")
        # Short heads are multiplied faster where the positions of one dimension lie side by side (8 wide: 3 times).
        for cache, turned in ((self.keys, self.size <= 32), (self.values, False)):
            for layer, old in enumerate(cache):
                new = old.new_empty(shape[0], self.n_kv, self.size, capacity).mT if turned else old.new_empty(shape)
                new[:, :, : self.end] = old[:, :, : self.end]
                cache[layer] = new

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits [rows, vocabulary] after `ids` [rows, new]: the prompts, or one more token of every row."""
        rows, new = ids.shape
        n_q, heads, size, until = self.n_heads, self.n_heads + self.n_kv, self.size, self.end + new
        if until > self.keys[0].shape[2]:
            self._reserve(min(2 * self.end, self.positions.shape[1]))
        positions = self.positions[:, self.end : until]
        bias = None if self.bias is None else self.bias[..., :until]
        if new > 1 and bias is not None:
            bias = bias + bias.new_full((new, new), -torch.inf).triu(1)
            bias.diagonal(dim1=-2, dim2=-1).zero_()  # padding sees itself: some kernels make NaN of a row without keys
        # On a GPU the kernels that save memory take either a mask or heads that share keys.
        copies = n_q // self.n_kv if bias is not None and ids.is_cuda else 1
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        x = self.body.embed_tokens(ids)
        for layer, keys, values, (to_qkv, to_out, to_hidden, to_x) in zip(
            self.body.layers, self.keys, self.values, self.projections, strict=True
        ):
            attention = layer.self_attn
            qkv = to_qkv(layer.input_layernorm(x)).view(rows, new, heads + self.n_kv, size)
            qk, v = qkv[:, :, :heads], qkv[:, :, heads:]
            if hasattr(attention, "q_norm"):  # Qwen3
                qk = torch.cat([attention.q_norm(qk[:, :, :n_q]), attention.k_norm(qk[:, :, n_q:])], dim=2)
            qk = qk * cos + qk.roll(size // 2, dims=-1) * sin
            q, k, v = (part.transpose(1, 2) for part in (qk[:, :, :n_q], qk[:, :, n_q:], v))
            keys[:, :, self.end : until], values[:, :, self.end : until] = k, v
            if new == 1:
                y = attend(q, keys[:, :, :until], values[:, :, :until], bias, attention.scaling)
            else:
                k, v = (part.repeat_interleave(copies, dim=1) if copies > 1 else part for part in (k, v))
                y = F.scaled_dot_product_attention(
                    q, k, v, bias, is_causal=bias is None, scale=attention.scaling, enable_gqa=True
                )
            y = y.reshape(rows, n_q, new, size).transpose(1, 2).reshape(rows, new, -1)
            x = x + to_out(y)
            gate, up = to_hidden(layer.post_attention_layernorm(x)).chunk(2, dim=-1)
            x = x + to_x(layer.mlp.act_fn(gate) * up)
        self.end = until
        return self.head(self.body.norm(x[:, -1]))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Attention of one query a head [rows, heads, 1, size] to keys and values [rows, shared heads, positions, size]:
    in float32 on a CPU in half the time of `scaled_dot_product_attention`."""
    rows, shared, positions, size = k.shape
    # The heads that share keys stand as if they were several positions of one head.
    q = q.reshape(rows, shared, -1, size)
    if q.dtype != torch.float32:  # rounded, the scores of Qwen2 would lose whole units (transformers #33317)
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    weights = torch.bmm((q * scale).flatten(0, 1), k.flatten(0, 1).mT)
    if bias is not None:
        weights = (weights.view(rows, shared, -1, positions) + bias).flatten(0, 1)
    return torch.bmm(weights.softmax(-1), v.flatten(0, 1))


def joint(layers: Sequence[torch.nn.Linear | LoraLinear], fold: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that gives the outputs of linear layers of one input, side by side. With `fold` it is a single
    product by the weights, side by side, with their adapters, W + s B A, added once."""
    if not fold:
        parts = [_with_adapter(layer) if isinstance(layer, LoraLinear) else layer for layer in layers]
        return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)
    weights = [
        layer.base_layer.weight + layer.get_delta_weight("default") if isinstance(layer, LoraLinear) else layer.weight
        for layer in layers
    ]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])  # all or none have one
    return lambda x: F.linear(x, weight, bias)


def _with_adapter(layer: LoraLinear) -> Callable[[torch.Tensor], torch.Tensor]:
    """[x, x A^T] times [W, s B]: in bfloat16 a small update would be lost if an output that is rounded met it."""
    weight, dtype = layer.base_layer.weight, layer.base_layer.weight.dtype
    a = layer.lora_A["default"].weight.T.to(dtype)
    both = torch.cat([weight, (layer.lora_B["default"].weight * layer.scaling["default"]).to(dtype)], dim=1)
    return lambda x: F.linear(torch.cat([x, x @ a], dim=-1), both, layer.base_layer.bias)
