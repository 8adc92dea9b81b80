"""The decoding loop of Llama-like students: a cache of its own, and rows that have ended leave the batch.

transformers' `generate` runs a batch to its longest answer and spends, in every step, milliseconds on masks, cache
objects and checks. Here a step is the forward pass and nothing else. (`benchmarks/decode.py` measures both.)
"""

import time
from collections.abc import Callable, Sequence

import psutil
import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear

from mixdistill.data.students import TINY
from mixdistill.generation.sampling import Sampling, next_tokens

# Their layers are: norm, attention with rotary positions, norm, gated MLP; nothing else.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
CHECK_EVERY = 4  # steps between two looks at which rows have ended
FIRST_ROOM = 64  # new tokens for which the cache has room at first; it doubles when it is full
SPEAK_EVERY = 30  # seconds between two lines of progress


def is_plain(model: torch.nn.Module) -> bool:
    """Whether this module can decode a model: one of its architectures, whose layers all see the whole text."""
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "layer_types", None) is None else None
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        config.model_type in ARCHITECTURES
        and not windows
        and window is None
        and rotary in ("default", "linear", "llama3")  # the other types change with the length of the text
        and getattr(config, "quantization_config", None) is None
    )


@torch.inference_mode()
def decode(
    model: torch.nn.Module,
    prompts: list[list[int]],
    max_new_tokens: int,
    stops: Sequence[int],
    sampling: Sampling,
    uniform: torch.Tensor,
    progress: "Progress",
) -> list[list[int]]:
    """Complete prompts (token ids).

    Arguments:
        model: for which `is_plain` holds, with or without adapters.
        stops: token ids that end a completion.
        uniform: random numbers [prompts, max_new_tokens]; empty for greedy sampling.

    Returns: the new tokens of every prompt; what follows the first stop token means nothing.

    Raises MemoryError or torch.OutOfMemoryError if the cache does not fit.
    """
    student = PlainStudent(model, prompts, max_new_tokens)
    device = student.device
    stop_ids = torch.tensor(sorted(stops), device=device)
    uniform = uniform.to(device)
    answers = torch.full((len(prompts), max_new_tokens), int(stop_ids[0]), device=device)
    rows = torch.arange(len(prompts), device=device)  # the prompt that each row of the batch answers
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    logits = student.read_prompts(prompts)
    for step in range(max_new_tokens):
        tokens = next_tokens(logits, sampling, uniform if sampling.greedy else uniform[rows, step])
        answers[rows, step] = tokens
        if step + 1 == max_new_tokens:
            break
        ended |= (tokens[:, None] == stop_ids).any(-1)
        if step % CHECK_EVERY == 0:
            going = (~ended).nonzero().squeeze(-1)
            if not len(going):
                break
            if 8 * len(going) <= 7 * len(rows):  # copying the cache costs about as much as a step
                student.keep(going)
                rows, tokens, ended = rows[going], tokens[going], ended[going]
            progress.speak(step + 1, len(going))
        logits = student.read(tokens)
    return answers.tolist()


class Progress:
    """A line every 30 seconds, so that a slow batch is not taken for a hang."""

    def __init__(self, n_prompts: int, on: bool) -> None:
        self.n_prompts, self.on, self.spoke = n_prompts, on, time.monotonic()

    def speak(self, n_tokens: int, n_going: int) -> None:
        if self.on and time.monotonic() - self.spoke >= SPEAK_EVERY:
            self.spoke = time.monotonic()
            print(f"decoding: {n_tokens} tokens, {n_going} of {self.n_prompts} answers not finished", flush=True)


class PlainStudent:
    """A Llama-like model and the keys and values of the texts that it reads: `cache`, per layer [rows, heads,
    positions, size].
    """

    def __init__(self, model: torch.nn.Module, prompts: list[list[int]], max_new_tokens: int) -> None:
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        fuse = base.num_parameters() < TINY  # of a larger one it would cost memory, and gain nothing
        self.body, self.head = base.model, product([base.lm_head], False)
        self.device, self.dtype = self.body.embed_tokens.weight.device, self.body.embed_tokens.weight.dtype
        self.products = []
        for layer in self.body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self.products.append(
                (
                    product([attention.q_proj, attention.k_proj, attention.v_proj], fuse),
                    product([attention.o_proj], fuse),
                    product([mlp.gate_proj, mlp.up_proj], fuse),
                    product([mlp.down_proj], fuse),
                )
            )
        config = base.config
        self.n_heads, self.n_kv = config.num_attention_heads, config.num_key_value_heads
        self.size = self.body.layers[0].self_attn.head_dim
        self.width = max(map(len, prompts))
        self.longest = self.width + max_new_tokens
        positions = torch.arange(self.longest, device=self.device)[None]
        self.cos, sin = (table[0] for table in self.body.rotary_emb(self.body.embed_tokens.weight, positions))
        # The rotation's first half has a minus sign, (x1, x2) -> (-x2, x1), which lies in the table.
        self.sin = torch.cat([-sin[:, : self.size // 2], sin[:, self.size // 2 :]], dim=-1)
        # Short heads are multiplied faster where the positions of one dimension lie side by side (8 wide: 3 times).
        self.turned = self.size <= 32
        self.cache: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.bias: torch.Tensor | None = None  # 0 or, at padding, minus infinity: [rows, 1, 1, positions]
        self.end = 0  # positions of the cache that are in use
        self.padding = torch.tensor([self.width - len(prompt) for prompt in prompts], device=self.device)

    def read_prompts(self, prompts: list[list[int]]) -> torch.Tensor:
        """Read whole prompts, padded on the left; the logits after the last token, [rows, vocabulary]."""
        ids = torch.tensor([[0] * (self.width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        places = torch.arange(self.width, device=self.device)
        allowed = None
        if self.padding.any():
            seen = places >= self.padding[:, None]
            # Padding sees itself: a softmax over nothing would be NaN.
            causal = (places[:, None] >= places) & seen[:, None, :] | (places[:, None] == places)
            allowed = causal[:, None]
            self.bias = torch.zeros(len(prompts), 1, 1, self.longest, device=self.device, dtype=self.dtype)
            self.bias[:, 0, 0, : self.width].masked_fill_(~seen, -torch.inf)
        self._reserve(len(prompts), min(self.width + FIRST_ROOM, self.longest))
        return self._forward(ids, (places - self.padding[:, None]).clamp(min=0), allowed)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token of every row, [rows]; the logits after it, [rows, vocabulary]."""
        capacity = self.cache[0][1].shape[2]
        if self.end == capacity:
            self._reserve(len(tokens), min(2 * capacity, self.longest))
        bias = None if self.bias is None else self.bias[..., : self.end + 1]
        return self._forward(tokens[:, None], (self.end - self.padding)[:, None], bias)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        self.padding = self.padding[rows]
        self.bias = None if self.bias is None else self.bias[rows]

    def _reserve(self, n_rows: int, capacity: int) -> None:
        """Give the cache room for so many positions; what it holds is copied."""
        value_shape = (n_rows, self.n_kv, capacity, self.size)
        key_shape = (n_rows, self.n_kv, self.size, capacity) if self.turned else value_shape
        n_bytes = 2 * len(self.body.layers) * torch.Size(value_shape).numel() * self.dtype.itemsize
        # Linux promises more memory than there is, and then kills the process that takes it.
        if self.device.type == "cpu" and n_bytes > psutil.virtual_memory().available:
            raise MemoryError(f"a cache of {n_bytes / 1e9:.1f} GB for {n_rows} rows of {capacity} tokens")
        cache = []
        for layer in range(len(self.body.layers)):
            keys, values = (
                torch.empty(shape, device=self.device, dtype=self.dtype) for shape in (key_shape, value_shape)
            )
            if self.cache:
                old_keys, old_values = self.cache[layer]
                values[:, :, : self.end] = old_values
                self._places(keys)[:, :, : self.end] = self._places(old_keys)
                del old_keys, old_values
                self.cache[layer] = ()  # frees it before the next layer's is made
            cache.append((keys, values))
        self.cache = cache

    def _places(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys as [rows, heads, positions, size], however they lie."""
        return keys.transpose(2, 3) if self.turned else keys

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The logits after the last of `ids` [rows, new], whose keys and values go into the cache."""
        rows, new = ids.shape
        heads, size, until = self.n_heads + self.n_kv, self.size, self.end + new
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        x = self.body.embed_tokens(ids)
        for layer, (keys, values), (to_qkv, to_out, to_hidden, to_x) in zip(
            self.body.layers, self.cache, self.products, strict=True
        ):
            attention = layer.self_attn
            qkv = to_qkv(layer.input_layernorm(x)).view(rows, new, heads + self.n_kv, size)
            qk = qkv[:, :, :heads]
            if hasattr(attention, "q_norm"):  # Qwen3
                q, k = qk.split([self.n_heads, self.n_kv], dim=2)
                qk = torch.cat([attention.q_norm(q), attention.k_norm(k)], dim=2)
            qk = qk * cos + qk.roll(size // 2, dims=-1) * sin
            q, k, v = (
                part.transpose(1, 2) for part in (qk[:, :, : self.n_heads], qk[:, :, self.n_heads :], qkv[:, :, heads:])
            )
            keys = self._places(keys)
            keys[:, :, self.end : until], values[:, :, self.end : until] = k, v
            if new == 1:
                y = attend(q * attention.scaling, keys[:, :, :until], values[:, :, :until], mask)
            else:  # whole prompts, before which there is nothing
                y = F.scaled_dot_product_attention(
                    q, k, v, mask, is_causal=mask is None, scale=attention.scaling, enable_gqa=True
                )
            y = y.reshape(rows, self.n_heads, new, size).transpose(1, 2).reshape(rows, new, -1)
            x = x + to_out(y)
            gate, up = to_hidden(layer.post_attention_layernorm(x)).chunk(2, dim=-1)
            x = x + to_x(layer.mlp.act_fn(gate) * up)
        self.end = until
        return self.head(self.body.norm(x[:, -1]))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention of one scaled query a head, [rows, heads, 1, size], to keys and values [rows, shared heads, positions,
    size].

    On a CPU two batched products take half the time of `scaled_dot_product_attention`.
    """
    rows, shared, positions, size = k.shape
    # The heads that share keys stand as if they were several positions of one head.
    weights = torch.bmm(q.reshape(rows * shared, -1, size), k.flatten(0, 1).transpose(1, 2))
    if bias is not None:
        weights = (weights.view(rows, shared, -1, positions) + bias).flatten(0, 1)
    return torch.bmm(weights.softmax(-1), v.flatten(0, 1))


def product(layers: Sequence[torch.nn.Module], fuse: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that gives the outputs of linear layers of one input, side by side; with `fuse` as a single product.

    Adapters in float32 are folded into the weights, W + s B A, once; below that precision the sum would be rounded
    away, so x A^T B^T is added to each output.
    """
    parts, low = [], []
    for layer in layers:
        adapted = isinstance(layer, LoraLinear)
        weight, bias = (layer.base_layer if adapted else layer).weight, layer.bias
        if adapted and weight.dtype == torch.float32:
            weight = weight + layer.get_delta_weight("default")
        elif adapted:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight * layer.scaling["default"]
            low.append((a.t().to(weight.dtype), b.t().to(weight.dtype)))
        parts.append((weight, bias))
    if low:
        both = list(zip(parts, low, strict=True))
        return lambda x: torch.cat([F.linear(x, *part) + x @ a @ b for part, (a, b) in both], dim=-1)
    if fuse:
        weights, biases = zip(*parts, strict=True)
        if all((bias is None) == (biases[0] is None) for bias in biases):
            parts = [(torch.cat(weights), None if biases[0] is None else torch.cat(biases))]
    if len(parts) == 1:
        weight, bias = parts[0]
        return lambda x: F.linear(x, weight, bias)
    return lambda x: torch.cat([F.linear(x, weight, bias) for weight, bias in parts], dim=-1)
