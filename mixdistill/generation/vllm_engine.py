"""vLLM as the decoding engine: optional, for NVIDIA GPUs (`pip install -e '.[vllm]'`).

Weights go from disk into vLLM and adapters are served as they are, unmerged. With several GPUs the model is split over
as many as divide its attention heads (tensor parallel).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from mixdistill.data.students import context_of, load_config, load_tokenizer, stop_tokens_of
from mixdistill.generation.generate import Completion, completion
from mixdistill.generation.sampling import joint_seed

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be

Complete = Callable[..., list[Completion]]  # as `generate.complete`, without its student and engine


def open_vllm(
    source: str, revision: str | None, adapter: Path | None, rank: int, dtype: str = "bfloat16"
) -> tuple[PreTrainedTokenizerBase, int, Complete]:
    """Start vLLM on a model.

    Arguments:
        source: local folder or Hub id, with its `revision`.
        adapter: folder of a LoRA adapter of this `rank`, or None.
        dtype: of weights and activations.

    Raises ValueError for a rank or a file that vLLM does not serve.

    Returns: the tokenizer, the context in tokens, and the function that completes prompts as `generate.complete` does.
    """
    if rank > LORA_RANKS[-1]:
        raise ValueError(
            f"the adapter has rank {rank} and vLLM serves ranks up to {LORA_RANKS[-1]}: use the engine 'continuous' or "
            "'static'"
        )
    if source.endswith(".gguf"):
        raise ValueError(f"vLLM is not given {source!r}: .gguf files are for the engines 'continuous' and 'static'")
    from vllm import LLM, SamplingParams  # optional, and slow to import
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    config = load_config(source, revision)
    tokenizer = load_tokenizer(source, revision)
    stops = set(stop_tokens_of(source, tokenizer, revision))
    heads, gpus = config.num_attention_heads, max(1, torch.cuda.device_count())
    lora = {"enable_lora": True, "max_lora_rank": min(r for r in LORA_RANKS if r >= rank)} if adapter else {}
    llm = LLM(
        model=source,
        revision=revision,
        skip_tokenizer_init=True,  # it gets and gives token ids
        dtype=dtype,
        tensor_parallel_size=max(n for n in range(1, gpus + 1) if heads % n == 0),
        max_model_len=context_of(config),
        generation_config="vllm",  # not the checkpoint's own sampling defaults
        trust_remote_code=False,
        seed=0,
        **lora,
    )
    request = LoRARequest("adapter", 1, str(adapter)) if adapter else None

    def complete(prompts, max_new_tokens, sampling, streams=None, progress=False) -> list[Completion]:
        choices = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=max_new_tokens,
                stop_token_ids=sorted(stops),
                detokenize=False,
                seed=None if sampling.greedy else joint_seed(sampling.seed, stream),
            )
            for stream in (range(len(prompts)) if streams is None else streams)
        ]
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        outputs = llm.generate(asked, choices, lora_request=request, use_tqdm=progress)
        answers = [output.outputs[0] for output in outputs if output.outputs]
        whole = [answer for answer in answers if answer.finish_reason != "abort"]
        if len(whole) < len(prompts):
            raise RuntimeError(
                f"vLLM gave {len(whole)} completions for {len(prompts)} prompts ({len(answers) - len(whole)} aborted): "
                "nothing of this batch is stored; run again with a smaller batch_size, or engine='continuous'"
            )
        shape = f"{len(prompts)} in flight"
        return [completion(tokenizer, list(answer.token_ids), stops, "vllm", dtype, shape) for answer in whole]

    return tokenizer, context_of(config), complete
