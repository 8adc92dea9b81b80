"""Facts about machines and models that a plan needs: GPUs and their speeds, CPU cores, architectures of the paper's students."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from mixdistill.data.students import load_config, student_source

GB = 10**9


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: memory in bytes, dense bfloat16 FLOP/s, memory bandwidth in bytes/s."""

    name: str
    memory: int
    flops: float
    bandwidth: float


# From the vendor's data sheets, for the names that CUDA reports; of two that match, the first counts.
GPUS = (
    Gpu("B200", 180 * GB, 2250e12, 8e12),
    Gpu("H200", 141 * GB, 989e12, 4.8e12),
    Gpu("H100", 80 * GB, 989e12, 3.35e12),
    Gpu("A100", 80 * GB, 312e12, 2.04e12),
    Gpu("L40S", 48 * GB, 362e12, 0.864e12),
    Gpu("A6000", 48 * GB, 155e12, 0.768e12),
    Gpu("RTX 4090", 24 * GB, 165e12, 1.008e12),
    Gpu("RTX 3090", 24 * GB, 71e12, 0.936e12),
    Gpu("A10", 24 * GB, 125e12, 0.6e12),
    Gpu("L4", 24 * GB, 121e12, 0.3e12),
)
ASSUMED = GPUS[2]


def found_gpus() -> tuple[Gpu, int] | None:
    """The first GPU of this machine, with the memory that it has, and how many there are; None where there is none."""
    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    return gpu_named(facts.name, facts.total_memory), torch.cuda.device_count()


def gpu_named(name: str, memory: int) -> Gpu:
    """A GPU by the name that CUDA reports, with the speed of its kind; one that is not in `GPUS` is as slow as the slowest."""
    kind = next((gpu for gpu in GPUS if gpu.name in name), min(GPUS, key=lambda gpu: gpu.flops))
    return Gpu(name, memory, kind.flops, kind.bandwidth)


# (type, hidden size, MLP width, layers, query heads, key heads, tied head, vocabulary, context), from their config.json.
ARCHITECTURES = {
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 896, 4864, 24, 14, 2, True, 151_936, 32_768),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 8960, 28, 12, 2, True, 151_936, 32_768),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", 2048, 11_008, 36, 16, 2, True, 151_936, 32_768),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 3584, 18_944, 28, 28, 4, False, 152_064, 32_768),
    "Qwen/Qwen2.5-14B-Instruct": ("qwen2", 5120, 13_824, 48, 40, 8, False, 152_064, 32_768),
    "Qwen/Qwen2.5-32B-Instruct": ("qwen2", 5120, 27_648, 64, 40, 8, False, 152_064, 32_768),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 2048, 8192, 16, 32, 8, True, 128_256, 131_072),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 3072, 8192, 28, 24, 8, True, 128_256, 131_072),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 4096, 14_336, 32, 32, 8, False, 128_256, 131_072),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama", 8192, 28_672, 80, 64, 8, False, 128_256, 131_072),
}


def model_config(student: str, revision: str | None = None) -> PretrainedConfig:
    """A student's configuration without the network: from its folder, from the cache, or from `ARCHITECTURES`.

    Raises ValueError for an unknown student, or one of the Hub that is in none of these.
    """
    source = student_source(student)
    if Path(source).exists():
        return load_config(student)
    try:
        return AutoConfig.from_pretrained(source, revision=revision, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if student not in ARCHITECTURES:
            raise ValueError(
                f"the configuration of {student!r} is not in the cache of the Hub: get it with "
                f"`hf download {student} config.json`, or give a folder"
            ) from error
    kind, h, i, layers, heads, key_heads, tied, vocabulary, context = ARCHITECTURES[student]
    return AutoConfig.for_model(
        kind,
        hidden_size=h,
        intermediate_size=i,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        vocab_size=vocabulary,
        max_position_embeddings=context,
    )
