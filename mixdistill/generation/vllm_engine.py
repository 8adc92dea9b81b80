"""vLLM as the decoding engine: optional, for NVIDIA GPUs (`pip install -e '.[vllm]'`).

Weights go from disk into vLLM and adapters are served as they are, unmerged. With several GPUs the model is split over as
many as divide its attention heads (tensor parallel).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from mixdistill.data.chat import stop_token_id
from mixdistill.data.students import load_tokenizer
from mixdistill.generation.generate import Completion, Sampling, completion

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be

Complete = Callable[[list[list[int]], int, Sampling], list[Completion]]


def open_vllm(
    source: str, revision: str | None, adapter: Path | None, rank: int, dtype: str = "bfloat16"
) -> tuple[PreTrainedTokenizerBase, int, Complete]:
    """Start vLLM on a model.

    Arguments:
        source: local folder or Hub id, with its `revision`.
        adapter: folder of a LoRA adapter of this `rank`, or None.
        dtype: of weights and activations.

    Returns: the tokenizer, the context in tokens, and the function that completes prompts as `generate.complete` does.
    """
    from vllm import LLM, SamplingParams  # optional, and slow to import
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    config = AutoConfig.from_pretrained(source, revision=revision)
    tokenizer = load_tokenizer(source, revision)
    stops = {stop_token_id(tokenizer), tokenizer.eos_token_id}
    heads, gpus = config.num_attention_heads, max(1, torch.cuda.device_count())
    lora = {"enable_lora": True, "max_lora_rank": min(r for r in LORA_RANKS if r >= rank)} if adapter else {}
    llm = LLM(
        model=source,
        revision=revision,
        skip_tokenizer_init=True,  # it gets and gives token ids
        dtype=dtype,
        tensor_parallel_size=max(n for n in range(1, gpus + 1) if heads % n == 0),
        max_model_len=config.max_position_embeddings,
        generation_config="vllm",  # not the checkpoint's own sampling defaults
        trust_remote_code=False,
        seed=0,
        **lora,
    )
    request = LoRARequest("adapter", 1, str(adapter)) if adapter else None

    def complete(prompts: list[list[int]], max_new_tokens: int, sampling: Sampling) -> list[Completion]:
        choices = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=max_new_tokens,
                stop_token_ids=sorted(stops),
                detokenize=False,
                seed=None if sampling.temperature == 0 else sampling.seed * 1_000_003 + number,
            )
            for number in range(len(prompts))
        ]
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            choices,
            lora_request=request,
            use_tqdm=False,
        )
        rows = [list(output.outputs[0].token_ids) for output in outputs if output.outputs]
        bad = [o.outputs[0].finish_reason for o in outputs if o.outputs and o.outputs[0].finish_reason == "abort"]
        if bad or len(rows) < len(prompts):
            raise RuntimeError(
                f"vLLM gave {len(rows) - len(bad)} completions for {len(prompts)} prompts ({len(bad)} aborted): nothing of "
                "this batch is stored; run again with a smaller batch_size, or engine='continuous'"
            )
        shape = f"{len(prompts)} in flight"
        return [completion(tokenizer, row, stops, "vllm", dtype, shape) for row in rows]

    return tokenizer, config.max_position_embeddings, complete
