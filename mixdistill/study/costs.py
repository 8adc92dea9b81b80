"""What the arms of a student cost on a machine: tokens, FLOPs, hours, memory, disk. No weight is read.

Counts are exact for the pocket world, and estimates from published sizes for data that lie on the Hub.
"""

import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from transformers import PretrainedConfig

from mixdistill.data.chat import render_traces
from mixdistill.data.pocket.bases import POCKET
from mixdistill.data.students import load_tokenizer, student_source
from mixdistill.finetuning import memory_model as memory
from mixdistill.study.hardware import Gpu
from mixdistill.study.scales import REVISIONS, Arm, Scale, TraceSet
from mixdistill.study.sweep import evaluation_problems, trace_set, training_set

# What has to be assumed. Utilisations are shares of the GPU's dense bfloat16 peak and of its memory bandwidth.
UTILISATION, BANDWIDTH_UTILISATION = 0.4, 0.5
BYTES_PER_TOKEN = 3.3  # of mathematical English in the students' tokenizers
PROMPT_TOKENS, TEMPLATE_TOKENS = 150, 80  # a problem as it is asked; what prompt and chat template add to its text
AT_LIMIT = 0.02  # share of answers that run to the limit
IN_FLIGHT, STEP = 256, 0.004  # completions decoded at a time, if they fit; seconds that a step takes at least
USABLE = 0.92  # of a GPU's memory
# Microseconds a token on one CPU core: at size 0, and more a parameter. Fitted to process times of the pocket students from 29k
# to 862k on x86 cores with AVX-512; decoding scatters by a factor of two around it.
CPU_TRAINING, CPU_DECODING = (12, 0.108e-3), (60, 0.25e-3)

# Published trace sets: examples, and bytes of each, problem included. The long one from its card, the others are estimates.
PUBLISHED = {
    "UWNSL/MATH_training_split_long_cot": (5383, 4153),
    "UWNSL/MATH_training_split_short_cot": (5383, 1300),
    "UWNSL/MATH_training_split_distill_large_teacher": (4540, 1300),
    "UWNSL/MATH_training_split_distill_small_teacher": (4540, 1300),
}
UNKNOWN_SET = (5000, 4000)
N_PROBLEMS = {"math": 5000, "math500": 500, "gsm8k": 1319, "amc23": 40, "aime24": 30, "olympiadbench": 674}
UNKNOWN_BENCHMARK = 1000


def trace_sizes(scale: Scale) -> pd.DataFrame:
    """One row a part: its trace set, examples, mean tokens of an example and of the answer in it, and how they are known."""
    rows = []
    for part in ("long", "short", "large", "small", "unverified", "direct"):
        traces: TraceSet | None = getattr(scale, part)
        if traces is None:
            continue
        commit = "-"
        if traces.source.startswith("pocket/"):
            lengths = _lengths(trace_set(traces, scale.n_train, 0))
            n, example, answer, basis = len(lengths), lengths["all"].mean(), lengths["answer"].mean(), "counted"
        elif Path(traces.source).exists():
            texts = trace_set(traces, scale.n_train, 0)["response"][:]
            n, answer = len(texts), len("".join(texts).encode()) / len(texts) / BYTES_PER_TOKEN
            example, basis = answer + PROMPT_TOKENS, "from bytes"
        else:
            n, size = PUBLISHED.get(traces.source, UNKNOWN_SET)
            answer = size / BYTES_PER_TOKEN
            example, basis = answer + TEMPLATE_TOKENS, "estimate" if traces.source in PUBLISHED else "guess"
            commit = traces.revision[:8] if traces.revision else "not pinned"
        n = min(n, scale.n_train or n)
        row = {"part": part, "traces": traces.source, "commit": commit, "examples": n}
        rows.append(row | {"tokens each": example, "answer tokens": answer, "basis": basis})
    return pd.DataFrame(rows).set_index("part", drop=False)


def _lengths(traces: Dataset) -> pd.DataFrame:
    """Tokens of every pocket example, and of the response in it."""
    examples = render_traces(load_tokenizer(student_source(POCKET[0])), traces, sys.maxsize, "error")
    return pd.DataFrame(
        [(len(e.input_ids), len(e.input_ids) - e.n_prompt) for e in examples], columns=["all", "answer"]
    )


def count_problems(benchmark: str, scale: Scale) -> int:
    if benchmark.startswith("pocket/") or Path(benchmark).exists():
        return len(evaluation_problems(benchmark, scale.n_problems, None))
    n = N_PROBLEMS.get(benchmark, UNKNOWN_BENCHMARK)
    return min(n, scale.n_problems or n)


def count_arms(
    student: str, config: PretrainedConfig, arms: list[Arm], scale: Scale, traces: pd.DataFrame, n_problems: int
) -> dict:
    """What all arms of a student amount to, whatever the machine."""
    rank = None if student in scale.full else scale.lora_rank
    size, trained = memory.model_size(config).total, [arm for arm in arms if arm.alpha is not None]
    limit = scale.max_new_tokens or min(16_000, config.max_position_embeddings - PROMPT_TOKENS)
    tokens = training_flops = 0
    for arm in trained:
        n, mean = _examples(arm, scale, traces)
        tokens += scale.epochs * n * mean
        training_flops += scale.epochs * n * memory.training_flops(config, [mean], lora=rank is not None)
    answers = [(1 - AT_LIMIT) * _mixed(arm, traces, "answer tokens") + AT_LIMIT * limit for arm in arms]
    decoding_flops = n_problems * memory.decoding_flops(config, [PROMPT_TOKENS + answer for answer in answers])
    adapters = 4 * (size if rank is None else memory.n_lora_params(config, rank))
    local = Path(student_source(student)).is_dir() or cached(student)
    return {
        "student": student,
        "parameters": size,
        "method": "all weights" if rank is None else f"LoRA r={rank}",
        "commit": "-" if Path(student_source(student)).is_dir() else REVISIONS.get(student, "not pinned")[:10],
        "trainings": len(trained),
        "evaluations": len(arms),
        "training tokens": tokens,
        "answer tokens": n_problems * sum(answers),
        "training PFLOPs": training_flops / 1e15,
        "decoding PFLOPs": decoding_flops / 1e15,
        "runs GB": (adapters * len(trained) + BYTES_PER_TOKEN * n_problems * sum(answers)) / 1e9,
        "download GB": 0.0 if local else memory.BF16 * size / 1e9,
    }


def _examples(arm: Arm, scale: Scale, traces: pd.DataFrame) -> tuple[int, float]:
    """How many examples train an arm, and their mean tokens; counted where the traces are here."""
    sources = {traces["traces"][part] for part in (arm.hard, arm.easy)}
    if all(source.startswith("pocket/") for source in sources):
        return _pocket_examples(replace(arm, student="", recipe=""), scale)
    if all(Path(source).exists() for source in sources):
        return len(training_set(arm, scale)), _mixed(arm, traces, "tokens each")
    return min(traces["examples"][arm.hard], traces["examples"][arm.easy]), _mixed(arm, traces, "tokens each")


@lru_cache(maxsize=256)
def _pocket_examples(arm: Arm, scale: Scale) -> tuple[int, float]:
    lengths = _lengths(training_set(arm, scale))["all"]
    return len(lengths), lengths.mean()


def _mixed(arm: Arm, traces: pd.DataFrame, column: str) -> float:
    """A mean over the traces that train an arm; the untouched student counts as one on easy traces."""
    alpha = arm.alpha or 0
    return alpha * traces[column][arm.hard] + (1 - alpha) * traces[column][arm.easy]


def cpu_hours(row: dict) -> float:
    """Hours of one core."""
    (a, b), (c, d) = CPU_TRAINING, CPU_DECODING
    size = row["parameters"]
    return (row["training tokens"] * (a + b * size) + row["answer tokens"] * (c + d * size)) / 3.6e9


def on_gpus(
    row: dict, config: PretrainedConfig, scale: Scale, n_problems: int, gpu: Gpu, n_gpus: int
) -> tuple[dict, list[str]]:
    """Hours and memory of a student's arms on these GPUs, and what does not fit, with advice."""
    student, limit, obstacles = row["student"], scale.max_new_tokens or 16_000, []
    spread, training = _training_fit(student, config, scale, gpu, n_gpus)
    if training > USABLE * gpu.memory:
        obstacles.append(_training_advice(student, config, scale, gpu, training))
    # Tensor-parallel over as many as divide the key heads; one answer at the limit has to fit.
    splits = [k for k in range(1, n_gpus + 1) if config.num_key_value_heads % k == 0]
    whole = {k: memory.inference_memory(config, 1, PROMPT_TOKENS + limit, shards=k).total for k in splits}
    fitting = [k for k in splits if whole[k] <= USABLE * gpu.memory]
    if not fitting:
        fitting = splits[-1:]
        obstacles.append(
            f"{student}: one answer of {limit} tokens takes {whole[splits[-1]] / 1e9:.0f} GB on each of {splits[-1]} GPUs of "
            f"{gpu.memory / 1e9:.0f} GB: lower max_new_tokens, use more GPUs, or leave the student out"
        )
    mean = round(PROMPT_TOKENS + row["answer tokens"] / (row["evaluations"] * n_problems))
    ways = {k: _decoding(row, config, mean, limit, gpu, k) for k in fitting}
    split = min(ways, key=lambda k: ways[k][0])
    training_seconds = 1e15 * row["training PFLOPs"] / (gpu.flops * UTILISATION)
    costs = {
        "GPU hours": (training_seconds + ways[split][0]) / 3600,
        "training GB": training / 1e9,
        "GPUs to train": spread,
        "decoding GB": max(ways[split][1], whole[split]) / 1e9,
        "GPUs to decode": split,
        "fits": "no" if obstacles else "yes",
    }
    return costs, obstacles


def _decoding(row: dict, config: PretrainedConfig, mean: int, limit: int, gpu: Gpu, split: int) -> tuple[float, int]:
    """(GPU-seconds of all answers, bytes on each GPU) with as many in flight as fit at their mean length."""
    batch = IN_FLIGHT
    while batch > 1 and memory.inference_memory(config, batch, mean, shards=split).total > USABLE * gpu.memory:
        batch //= 2
    # A step reads all weights and half of each completion's final cache, or computes, whichever takes longer; at the end of an
    # evaluation the answers that run to the limit are alone.
    bandwidth = gpu.bandwidth * BANDWIDTH_UTILISATION
    weights, cache = memory.BF16 * row["parameters"], memory.kv_bytes(config) * batch * mean / 2
    steps, last_steps = row["answer tokens"] / batch, row["evaluations"] * limit
    reading = steps * max((weights + cache) / bandwidth, STEP * split)
    reading += last_steps * max(weights / bandwidth, STEP * split)
    computing = 1e15 * row["decoding PFLOPs"] / (gpu.flops * UTILISATION)
    return max(reading, computing), memory.inference_memory(config, batch, mean, shards=split).total


def _training_fit(student: str, config: PretrainedConfig, scale: Scale, gpu: Gpu, n_gpus: int) -> tuple[int, int]:
    """(GPUs that share the weights, bytes on each) of the first way to train that fits, or of the last that does not.

    A pass holds one example of the greatest length. Whole on each GPU; the same with gradient checkpointing, then with what that
    keeps in the host's memory; then spread over 2, 4, ... GPUs (FSDP).
    """
    longest = min(scale.max_tokens or sys.maxsize, config.max_position_embeddings)
    rank = None if student in scale.full else scale.lora_rank
    spreads = [2**k for k in range(n_gpus.bit_length())]
    ways = [(1, False, False)] + [(spread, True, offload) for spread in spreads for offload in (False, True)]
    for spread, checkpointing, offload in ways:
        estimate = memory.training_memory(config, longest, lora_rank=rank, checkpointing=checkpointing, shards=spread)
        needed = estimate.total - (estimate.activations if offload else 0)
        if needed <= USABLE * gpu.memory:
            break
    return spread, needed


def _training_advice(student: str, config: PretrainedConfig, scale: Scale, gpu: Gpu, needed: int) -> str:
    """What would make a student that is too large for the GPUs fit."""
    ways = []
    enough = next(
        (n for n in (2, 4, 8, 16, 32, 64) if _training_fit(student, config, scale, gpu, n)[1] <= USABLE * gpu.memory), 0
    )
    if enough:
        ways.append(f"use {enough} GPUs")
    for max_tokens in range((scale.max_tokens or 16_384) - 1024, 0, -1024):
        shorter = replace(scale, max_tokens=max_tokens)
        if _training_fit(student, config, shorter, gpu, 1)[1] <= USABLE * gpu.memory:
            ways.append(f"lower max_tokens to {max_tokens} for all students (longer examples are dropped and counted)")
            break
    if student in scale.full:
        ways.append("train it with LoRA (take it out of `full`)")
    ways.append("leave it out")
    return (
        f"{student}: training takes {needed / 1e9:.0f} GB on a {gpu.name} of {gpu.memory / 1e9:.0f} GB: {', or '.join(ways)}; "
        f"replace(get_scale({scale.name!r}), ...) makes such a scale"
    )


def cached(student: str) -> bool:
    """Whether the weights lie in the cache of the Hub."""
    files = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(student, f, revision=REVISIONS.get(student)), str) for f in files)
