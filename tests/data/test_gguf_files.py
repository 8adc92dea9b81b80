"""What transformers leaves out of a .gguf file, on toys that are written as llama.cpp writes them."""

from pathlib import Path

import pytest
import torch
from conftest import CHATML
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from mixdistill.data.students import load_config, load_student

gguf = pytest.importorskip("gguf", reason="needs the package gguf, which `make test` installs")
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": len(TOKENS), "initializer_range": 0.3, "rms_norm_eps": 1e-5}
SHAPE |= {"max_position_embeddings": 131_072, "tie_word_embeddings": False}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tensors_of(model: PreTrainedModel, permuted: bool) -> dict[str, torch.Tensor]:
    """The weights under llama.cpp's names; it permutes the queries and keys of Llama."""
    tensors = {}
    for name, value in model.state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if permuted and (".attn_q." in name or ".attn_k." in name):
            heads = 4 if ".attn_q." in name else 2
            value = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        tensors[name] = value
    return tensors


def write(path: Path, arch: str, split: str, tensors: dict[str, torch.Tensor], **rope: float | str) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(131_072)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 3) + [3] * 3)
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_chat_template(CHATML)
    for name, value in rope.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{arch}.rope.{name.replace('__', '.')}", value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("scaled", [False, True])
def test_a_llama_of_a_gguf_file_scales_its_positions(scaled, tmp_path):
    torch.manual_seed(0)
    rope = LLAMA3 if scaled else {"rope_type": "default", "rope_theta": 500_000.0}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope)).eval()
    tensors = tensors_of(model, permuted=True)
    if scaled:  # as llama.cpp stores it: what it divides the frequencies by
        plain = 500_000.0 ** (-torch.arange(0, 16, 2) / 16)
        tensors["rope_freqs.weight"] = plain / model.model.rotary_emb.inv_freq
    student = load_student(write(tmp_path / "m.gguf", "llama", "llama-bpe", tensors, freq_base=500_000.0))
    ids = torch.arange(200)[None] % 250
    with torch.no_grad():
        assert torch.allclose(student.model(ids).logits, model(ids).logits, atol=1e-4)
    assert student.tokenizer.backend_tokenizer.model.ignore_merges


def test_another_scaling_is_refused(tmp_path):
    torch.manual_seed(0)
    tensors = tensors_of(Qwen2ForCausalLM(Qwen2Config(**SHAPE)), permuted=False)
    for name, rope, more in (
        ("yarn", {"scaling__type": "yarn", "scaling__factor": 4.0}, {}),
        ("long", {}, {"rope_factors_long.weight": torch.ones(8)}),
        ("other", {}, {"rope_freqs.weight": torch.tensor([1.0, 1, 1, 1, 2, 2, 3, 3])}),
    ):
        file = write(tmp_path / f"{name}.gguf", "qwen2", "qwen2", tensors | more, freq_base=1e6, **rope)
        with pytest.raises(ValueError, match=r"positions are scaled .* take its folder in Hugging Face form"):
            load_config(file)


def test_the_base_of_the_rotary_positions_is_the_files(tmp_path):
    nothing = {"token_embd.weight": torch.zeros(len(TOKENS), 64)}
    file = write(tmp_path / "m.gguf", "starcoder2", "starcoder", nothing, freq_base=999_999.0)
    assert load_config(file).rope_parameters["rope_theta"] == 999_999.0
