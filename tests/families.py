"""Toy students of real families: the real architecture with tiny random weights, a BPE trained on the spot, and a chat
template written from the family's documented format."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8, "mamba_expand": 2}
TEXT = [
    "What is 12 plus 30? It is \\boxed{42}.",
    "Final Answer: \\boxed{7} user assistant",
    "Let me think. Wait, so 7.",
]


def turns(user: str, assistant: str, prompt: str, system: str = "") -> str:
    """A template of two roles, with what the assistant's turn begins with where it is to be generated."""
    return (
        f"{system}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{user}{{% else %}}{assistant}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


def chatml(assistant: str = "{{ m['content'] }}", prompt: str = "", system: str = "") -> str:
    return turns(
        "{{ '<|im_start|>user\\n' + m['content'] + '<|im_end|>\\n' }}",
        f"{{{{ '<|im_start|>assistant\\n' }}}}{assistant}{{{{ '<|im_end|>\\n' }}}}",
        f"{{{{ '<|im_start|>assistant\\n' }}}}{prompt}",
        system,
    )


SPLIT = (  # how hybrid templates take a turn apart
    "{% set said = m['content'] %}{% set thought = '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
)
SHOWN = SPLIT + "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + said }}"
HIDDEN = SPLIT + "{{ said }}"
OFF = "enable_thinking is defined and enable_thinking is false"
EMPTY = "{{ '<think>\\n\\n</think>\\n\\n' }}"
OPEN = "{{ '<think>\\n' }}"
DATE = "{{ strftime_now('%d %b %Y') }}"
HEADER = "<|start_header_id|>{}<|end_header_id|>\\n\\n"
LLAMA3 = turns(
    f"{{{{ '{HEADER.format('user')}' + m['content'] | trim + '<|eot_id|>' }}}}",
    f"{{{{ '{HEADER.format('assistant')}' + m['content'] | trim + '<|eot_id|>' }}}}",
    f"{{{{ '{HEADER.format('assistant')}' }}}}",
    f"{{{{ bos_token + '{HEADER.format('system')}' }}}}Today Date: {DATE}{{{{ '<|eot_id|>' }}}}",
)
GEMMA = turns(
    "{{ '<start_of_turn>user\\n' + m['content'] | trim + '<end_of_turn>\\n' }}",
    "{{ '<start_of_turn>model\\n' + m['content'] | trim + '<end_of_turn>\\n' }}",
    "{{ '<start_of_turn>model\\n' }}",
    "{{ bos_token }}",
)
COHERE = turns(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m['content'].strip() }}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{{ m['content'].strip() }}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "{{ bos_token }}",
)
GRANITE = turns(
    "{{ '<|start_of_role|>user<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}",
    "{{ '<|start_of_role|>assistant<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}",
    "{{ '<|start_of_role|>assistant<|end_of_role|>' }}",
    "{% if thinking %}<|start_of_role|>system<|end_of_role|>Think first.<|end_of_text|>{% endif %}",
)
PHI3 = turns(
    "{{ '<|user|>\\n' + m['content'] + '<|end|>\\n' }}",
    "{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}",
    "{{ '<|assistant|>\\n' }}",
)
MISTRAL = turns(
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}", "{{ ' ' + m['content'] + eos_token }}", "", "{{ bos_token }}"
)
OLMO2 = turns(
    "{{ '<|user|>\\n' + m['content'] + '\\n' }}",
    "{{ '<|assistant|>\\n' + m['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}",
    "{{ '<|assistant|>\\n' }}",
    "{{ bos_token }}",
)
GPT_OSS = turns(
    "<|start|>user<|message|>{{ m['content'] }}<|end|>",
    "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}",
    "<|start|>assistant",
    f"<|start|>system<|message|>Current date: {DATE}<|end|>",
)
BAR = "\uff5c"  # DeepSeek's tokens are written with the wide one
R1_TOKENS = tuple(f"<{BAR}{name}{BAR}>" for name in ("begin▁of▁sentence", "User", "Assistant", "end▁of▁sentence"))
R1 = turns(
    R1_TOKENS[1] + "{{ m['content'] }}",
    R1_TOKENS[2] + "{{ m['content'].split('</think>')[-1] }}" + R1_TOKENS[3],
    R1_TOKENS[2] + OPEN,
    "{{ bos_token }}",
)
GLM4 = turns(
    "{{ '<|user|>\\n' + m['content'] }}",
    "{{ '<|assistant|>\\n' + m['content'] }}",
    "{{ '<|assistant|>\\n' }}",
    "[gMASK]<sop>",
)
SMOLLM3 = chatml(
    HIDDEN,
    f"{{% if {OFF} %}}{EMPTY}{{% endif %}}",
    f"{{{{ '<|im_start|>system\\nToday Date: ' }}}}{DATE}"
    f"{{% if {OFF} %}}/no_think{{% else %}}/think{{% endif %}}{{{{ '<|im_end|>\\n' }}}}",
)
QWEN3 = chatml(SHOWN, f"{{% if {OFF} %}}{EMPTY}{{% endif %}}")
QWEN3_5 = chatml(SHOWN, f"{{% if {OFF} %}}{EMPTY}{{% else %}}{OPEN}{{% endif %}}")
GEMMA4 = turns(
    "{{ '<|turn>user\\n' + m['content'] | trim + '<turn|>\\n' }}",
    "{{ '<|turn>model\\n' + m['content'] | trim + '<turn|>\\n' }}",
    "{{ '<|turn>model\\n' }}"
    "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\\n<channel|>' }}{% endif %}",
    "{{ bos_token }}{% if enable_thinking | default(false) %}{{ '<|turn>system\\n<|think|><turn|>\\n' }}{% endif %}",
)
COMMAND_R7B = turns(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m['content'] }}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m['content'] }}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% if not enable_thinking %}<|START_THINKING|><|END_THINKING|>{% endif %}",
    "{{ bos_token }}",
)
NEMOTRON = chatml(
    SPLIT + "{{ '<think></think>' + said }}", f"{{% if {OFF} %}}<think></think>{{% else %}}{OPEN}{{% endif %}}"
)


@dataclass(frozen=True)
class Family:
    """`architecture` is the prefix of the classes of transformers; `stop` ends the assistant's turn."""

    architecture: str
    template: str
    special: tuple[str, ...]  # the first is BOS, the last EOS
    stop: str
    config: dict = field(default_factory=dict)
    config_class: str = ""


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LFM2_LAYERS = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
QWEN3_5_LAYERS = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE_SCALES = {
    "logits_scaling": 8.0,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
}
FAMILIES = {
    "qwen2.5": Family("Qwen2", chatml(), IM, "<|im_end|>", {"tie_word_embeddings": True}),
    "qwen3": Family("Qwen3", QWEN3, IM, "<|im_end|>"),
    "qwen3.5": Family("Qwen3_5", QWEN3_5, IM, "<|im_end|>", QWEN3_5_LAYERS, "Qwen3_5TextConfig"),
    "llama3.2": Family(
        "Llama",
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        {"tie_word_embeddings": True},
    ),
    "smollm2": Family("Llama", chatml(system="{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}"), IM, "<|im_end|>"),
    "smollm3": Family("SmolLM3", SMOLLM3, IM, "<|im_end|>"),
    "gemma3": Family(
        "Gemma3",
        GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<end_of_turn>",
        WINDOW | {"query_pre_attn_scalar": 8, "tie_word_embeddings": True},
        "Gemma3TextConfig",
    ),
    "gemma2": Family(
        "Gemma2",
        GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<end_of_turn>",
        WINDOW | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    ),
    "granite": Family(
        "Granite",
        GRANITE,
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
        GRANITE_SCALES,
    ),
    "granitemoehybrid": Family(
        "GraniteMoeHybrid",
        GRANITE,
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
        GRANITE_SCALES
        | EXPERTS
        | MAMBA
        | {
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "shared_intermediate_size": 48,
        },
    ),
    "phi3": Family(
        "Phi3",
        PHI3,
        ("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
        {"sliding_window": 8},
    ),
    "phi": Family("Phi", chatml(), IM, "<|im_end|>"),
    "mistral": Family("Mistral", MISTRAL, ("<s>", "[INST]", "[/INST]", "</s>"), "</s>", {"sliding_window": 8}),
    "olmo2": Family("Olmo2", OLMO2, ("<|endoftext|>",), "<|endoftext|>"),
    "cohere": Family(
        "Cohere",
        COHERE,
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>",
        {"logit_scale": 0.0625},
    ),
    "cohere2": Family(
        "Cohere2",
        COHERE,
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>",
        WINDOW | {"logit_scale": 0.25},
    ),
    "lfm2": Family("Lfm2", chatml(), IM, "<|im_end|>", LFM2_LAYERS),
    "gpt-oss": Family(
        "GptOss",
        GPT_OSS,
        ("<|startoftext|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
        "<|return|>",
        EXPERTS | WINDOW,
    ),
    "falcon-h1": Family(
        "FalconH1",
        chatml(),
        IM,
        "<|im_end|>",
        MAMBA | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "lm_head_multiplier": 0.5},
    ),
    # Older bodies, which get their input as a positional argument; GPT-2's weights are turned around.
    "gpt2": Family("GPT2", chatml(), IM, "<|im_end|>", {"n_inner": 48}),
    "bloom": Family("Bloom", chatml(), IM, "<|im_end|>"),
    "mamba2": Family(
        "Mamba2", chatml(), IM, "<|im_end|>", {"num_heads": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8}
    ),
    # Dropout of its own.
    "opt": Family("OPT", chatml(), IM, "<|im_end|>", {"word_embed_proj_dim": 32, "ffn_dim": 48}),
    # Nemotron keeps the lengths of packed examples from its attention; Falcon and Llama 4 add to outputs in place, and
    # Llama 4's router is a linear layer that also chooses; Gemma 3n has widths by layer.
    "nemotron": Family("Nemotron", chatml(), IM, "<|im_end|>"),
    "llama4": Family("Llama4", chatml(), IM, "<|im_end|>", EXPERTS | {"intermediate_size_mlp": 48}, "Llama4TextConfig"),
    "gemma3n": Family(
        "Gemma3n",
        GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<end_of_turn>",
        WINDOW
        | {
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.0, 0.0],
            "vocab_size_per_layer_input": 320,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
        },
        "Gemma3nTextConfig",
    ),
    "r1-distilled": Family("Qwen2", R1, R1_TOKENS, R1_TOKENS[3]),
    "glm4": Family("Glm", GLM4, ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|endoftext|>"), "<|user|>"),
    "nemotron3": Family(
        "NemotronH",
        NEMOTRON,
        IM,
        "<|im_end|>",
        {
            "layers_block_type": ["mamba", "moe", "attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
}


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the family's control tokens and think tags, which are no special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|pad|>", *family.special]
    bpe.train_from_iterator(
        TEXT * 9,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=family.special[0],
        eos_token=family.special[-1],
        pad_token="<|pad|>",
        chat_template=family.template,
    )


def model(family: Family, vocabulary: int) -> torch.nn.Module:
    """Random weights of the family's own class; biases and the vectors that begin as zeros or ones are random too."""
    torch.manual_seed(0)
    config_class = getattr(transformers, family.config_class or f"{family.architecture}Config")
    config = config_class(
        vocab_size=vocabulary, **SHAPE | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1} | family.config
    )
    toy = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in toy.named_parameters():
            if name.endswith(("bias", "sinks")):
                weight.normal_(std=0.5)
    return toy


def save(name: str, folder: Path) -> str:
    """The family's toy as a folder in Hugging Face form."""
    words = tokenizer(FAMILIES[name])
    model(FAMILIES[name], len(words)).save_pretrained(folder / name)
    words.save_pretrained(folder / name)
    return str(folder / name)
