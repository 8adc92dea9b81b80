"""Students in one `.gguf` file: its header is read once, and its tokenizer splits a text as the file says."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from mixdistill.data.student_files import fingerprint, once_per_content, refused

# How a byte-level vocabulary wants its text split (`tokenizer.ggml.pre`, the names in llama.cpp's src/llama-vocab.cpp).
# transformers 5.23 knows those of `GGUF_PRE_TOKENIZER_SPLITS` and splits for all others as GPT-2 does.
AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"}
DIGIT_BY_DIGIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}  # then as GPT-2


def from_header(path: Path, what: str, read: Callable[[], Any]) -> Any:
    """A copy of what `read` finds in the header, which takes seconds; read again when a file has changed."""
    return copy.deepcopy(once_per_content(f"{what} {fingerprint(path)}", path, read))


def gguf_tokenizer(path: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a `.gguf` file, with the chat template beside it where there is one.

    Raises ValueError if the file does not say how a text is split, or transformers cannot split it so.
    """
    metadata, _ = read_gguf_metadata(str(path))
    split = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") == "gpt2" and split not in AS_GPT2 | DIGIT_BY_DIGIT | {
        *GGUF_PRE_TOKENIZER_SPLITS
    }:
        raise refused(name, f"how its tokenizer splits a text (tokenizer.ggml.pre is {split!r}) is not known here")
    tokenizer = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, padding_side="left", trust_remote_code=False
    )
    if split in DIGIT_BY_DIGIT:
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    template = path.with_name("chat_template.jinja")
    if template.is_file():
        tokenizer.chat_template = template.read_text()
    return tokenizer
