"""What transformers does not read of a `.gguf` file by itself: how a text is split, and how positions are scaled."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mixdistill.data.student_files import refused

# How a byte-level vocabulary of a .gguf file wants its text split (the names in llama.cpp's src/llama-vocab.cpp).
# transformers 5.23 knows those of `GGUF_PRE_TOKENIZER_SPLITS` and splits for all others as GPT-2 does.
AS_GPT2 = {"gpt-2", "phi-2", "olmo", "jais", "trillion"}
DIGIT_BY_DIGIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}  # then as GPT-2
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3"}  # a word of the vocabulary is one token, whatever the merges say
# Llama 3's scaling of rotary positions; its factor is 8 (3.1, 3.3) or 32 (3.2).
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def gguf_tokenizer(name: str | Path, path: Path) -> Tokenizer:
    """The tokenizer of a `.gguf` file, which says how a text is split, with the chat template beside it if any."""
    architecture, words, settings = get_gguf_tokenizer(str(path))
    split = words.get("pre_tokenizer_type")
    if words["tokenizer_type"] == "gpt2" and split not in AS_GPT2 | DIGIT_BY_DIGIT | GGUF_PRE_TOKENIZER_SPLITS.keys():
        raise refused(name, f"how its tokenizer splits a text (tokenizer.ggml.pre is {split!r}) is not known here")
    backend, _ = convert_gguf_tokenizer(architecture, words)
    if split in DIGIT_BY_DIGIT:
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if split in WHOLE_WORDS:
        backend.model.ignore_merges = True
    template = path.with_name("chat_template.jinja")
    if template.is_file():
        settings["chat_template"] = template.read_text()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def scale_positions(name: str | Path, path: Path, config: PreTrainedConfig) -> None:
    """Give a configuration what the `.gguf` file says of rotary positions, which transformers 5.23 leaves out.

    Raises ValueError for a scaling that is not known here: the model would be another one beyond a few tokens.
    """
    metadata, names = read_gguf_metadata(str(path))
    fields = {key.partition(".rope.")[2]: value for key, value in metadata.items() if ".rope." in key}
    tensors = {}
    if factors_of := [name for name in names if name.startswith("rope_f")]:
        from gguf import GGUFReader  # an extra; it takes ten times as long

        found = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
        tensors = {name: torch.tensor(found[name]) for name in factors_of}
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in rope and "freq_base" in fields:
        rope["rope_theta"] = float(fields["freq_base"])
    factors = tensors.pop("rope_freqs.weight", None)
    if factors is not None and rope.get("rope_type") == "default":
        config.rope_parameters = rope | LLAMA3 | {"rope_type": "llama3", "factor": factors.max().item()}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = rope["rope_theta"] ** (-torch.arange(len(factors)) / len(factors))
        if torch.allclose(plain / factors, scaled, rtol=1e-3):  # llama.cpp divides the frequencies by them
            factors = None
    factor = fields.get("scaling.factor", fields.get("scale_linear", 0))  # without a type it is linear
    kind = fields.get("scaling.type") or ("none" if factor in (0, 1) else "linear")
    # Gemma 2 27B divides by the width of its heads, which the file does not say; transformers takes that of 9B.
    other = config.model_type == "gemma2" and config.num_hidden_layers == 46
    if tensors or factors is not None or kind != "none" or other:
        what = f"its positions are scaled in a way that is not read from a .gguf file (rope.scaling.type {kind!r})"
        raise refused(name, f"{what}: take its folder in Hugging Face form")
