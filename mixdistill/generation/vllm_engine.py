"""vLLM as the decoding engine: optional, for NVIDIA GPUs (`pip install -e '.[vllm]'`).

Weights go from disk into vLLM and adapters are served as they are, unmerged. With several GPUs the model is split over
as many as it can be shared out to (tensor parallel).
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mixdistill.data.students import context_of, load_config, load_tokenizer, rope_boundary, stop_tokens_of
from mixdistill.generation.generate import Completion, completion

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be
DTYPE = "bfloat16"
GPU_SHARE = 0.9  # of each GPU's memory

Complete = Callable[..., list[Completion]]  # as `generate.complete`, without its student


def divides(n: int, config: PreTrainedConfig) -> bool:
    """Whether vLLM can share a model out to `n` GPUs: its heads, keys and values (or copies of them), and its MLPs."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", 1)
    kv = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "intermediate_size", None) or 0
    widths = width if isinstance(width, list | tuple) else [width]  # Gemma 3n has one a layer
    return heads % n == 0 and (kv % n == 0 or n % kv == 0) and all(width % n == 0 for width in widths)


def why_not(source: str, config: PreTrainedConfig, rank: int) -> str:
    """What keeps vLLM from serving a student as it was trained; empty if nothing does."""
    if source.endswith(".gguf"):
        return "a .gguf file"
    text = config.get_text_config(decoder=True)
    # Its layers have other names than those of an adapter, and vLLM wants its processor, which text students lack.
    if text is not config:
        return "the text part of a multimodal student"
    if rank and any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "adapters of experts, which it may leave out without a word"
    if rank > LORA_RANKS[-1]:
        return f"an adapter of rank {rank} (at most {LORA_RANKS[-1]})"
    # LongRoPE: of all answers it reads the positions as of the longest that may come.
    return "a LongRoPE student as it was trained" if rope_boundary(config) is not None else ""


def open_vllm(
    source: str, revision: str | None, adapter: Path | None, rank: int, progress: bool = False
) -> tuple[PreTrainedTokenizerBase, int, Complete]:
    """vLLM for a local folder or Hub id, with the LoRA adapter of this rank in a folder, or None; `progress` shows its
    bar. It starts with the first prompts, which have to be the longest: it reserves memory for one answer to these.

    Returns: the tokenizer, the context in tokens, and the function that completes prompts as `generate.complete` does.

    Raises ValueError for a student that vLLM does not serve.
    """
    config, tokenizer = load_config(source, revision), load_tokenizer(source, revision)
    if reason := why_not(source, config, rank):
        raise ValueError(f"vLLM does not serve {reason}: use engine='static'")
    # A process that has asked torch for its GPUs can not be forked, and one that is spawned runs the caller's script
    # again unless `__main__` is another.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm import LLM, SamplingParams  # optional, and slow to import
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    stops = stop_tokens_of(source, tokenizer, revision)
    request = LoRARequest("adapter", 1, str(adapter)) if adapter else None

    def start(n_tokens: int) -> LLM:
        n_gpus, share = max(1, torch.cuda.device_count()), GPU_SHARE
        if torch.cuda.is_initialized():  # this process has trained: vLLM refuses to start with less than its share free
            clear_device_cache(garbage_collection=True)
            free = [there / total for there, total in map(torch.cuda.mem_get_info, range(n_gpus))]
            share = min(GPU_SHARE, *(0.95 * part for part in free))
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            return LLM(
                model=source,
                revision=revision,
                skip_tokenizer_init=True,  # it gets and gives token ids
                dtype=DTYPE,
                tensor_parallel_size=max(n for n in range(1, n_gpus + 1) if divides(n, config)),
                max_model_len=n_tokens,
                gpu_memory_utilization=share,
                generation_config="vllm",  # not the checkpoint's own sampling defaults
                trust_remote_code=False,
                seed=0,
                enable_lora=adapter is not None,
                max_lora_rank=min(served for served in LORA_RANKS if served >= rank),
            )
        finally:
            sys.modules["__main__"] = main

    started: list[LLM] = []

    def complete(prompts, max_new_tokens, sampling, seeds=()):
        if not started:
            started.append(start(max(map(len, prompts)) + max_new_tokens))
        same = {"max_tokens": max_new_tokens, "stop_token_ids": list(stops), "detokenize": False}
        same |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        each = [None] * len(prompts) if sampling.greedy else seeds
        choices = [SamplingParams(**same, seed=seed) for seed in each]
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        outputs = started[0].generate(asked, choices, lora_request=request, use_tqdm=progress)
        answers = [output.outputs[0] for output in outputs]
        if n_aborted := sum(answer.finish_reason not in ("stop", "length") for answer in answers):
            what = f"vLLM aborted {n_aborted} of {len(prompts)} completions: nothing of this batch is stored"
            raise RuntimeError(f"{what}; run again with a smaller batch_size, or engine='static'")
        how = {"engine": "vllm", "dtype": DTYPE, "batch": f"{len(prompts)} in flight"}
        return [completion(tokenizer, answer.token_ids, stops, how) for answer in answers]

    return tokenizer, context_of(config), complete
