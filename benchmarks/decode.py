"""Our decoding loop beside transformers' `generate`: same weights, same prompts, greedy, in turn within one process.

    python benchmarks/decode.py                              a long student of pocket/s, one CPU thread; a minute
    python benchmarks/decode.py --student model.gguf         any student of `load_student`
    python benchmarks/decode.py --student smollm2-135m       random weights of a known shape, which no stop token ends
    python benchmarks/decode.py --device cuda --student smollm2-135m qwen2.5-1.5b

Every round runs all methods; a ratio is the median over the rounds of the ratio within a round. On a CPU time is CPU
time of one thread, on a GPU wall time. Rows are added to `decode.csv` with --save.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mixdistill import finetune, load_problems, load_student, load_traces
from mixdistill.data.chat import render_prompts
from mixdistill.data.problems import POCKET_TIERS
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.generation.decode import decode
from mixdistill.generation.sampling import Sampling, chooser

LONG = "pocket/s, long"  # the student of the first row: fine-tuned on long traces, as the study does
# Shapes of real students (their config.json on the Hub).
SHAPES = {
    "smollm2-135m": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2.5-1.5b": (
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--student", nargs="+", default=[LONG])
    parser.add_argument(
        "--rows", type=int, help="answers decoded together; default 256 of a pocket student, 32 of others"
    )
    parser.add_argument("--new-tokens", type=int, help="default: what a pocket student's context leaves, 64 of others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="add the rows to decode.csv")
    options = parser.parse_args()
    tables = []
    for name in options.student:
        model, prompts, room = load(name, options.device, options.rows)
        if options.device == "cpu":
            torch.set_num_threads(1)
        tables.append(compare(name, model, prompts, options.new_tokens or room, options.rounds, options.device))
        print(tables[-1].to_string(index=False), flush=True)
    if options.save:
        file = Path(__file__).with_suffix(".csv")
        old = [pd.read_csv(file)] if file.is_file() else []
        pd.concat([*old, *tables]).drop_duplicates(KEY, keep="last").to_csv(file, index=False)


KEY = ["student", "machine", "rows", "new_tokens", "method"]


def load(name: str, device: str, rows: int | None) -> tuple[torch.nn.Module, list[list[int]], int]:
    """A model, its prompts (token ids), and the most new tokens."""
    if name in SHAPES:
        architecture, config = SHAPES[name]
        torch.manual_seed(0)
        with torch.device(device):
            model = architecture(config).to(torch.bfloat16 if device == "cuda" else torch.float32).eval()
        model.generation_config = GenerationConfig(eos_token_id=[config.vocab_size - 1], pad_token_id=0)
        ids = torch.randint(config.vocab_size - 1, (rows or 32, 100)).tolist()
        return model, [row[: 60 + 40 * i // len(ids)] for i, row in enumerate(ids)], 64
    pocket = name.startswith("pocket/")
    if name == LONG:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MIXDISTILL_RUNS"] = folder
            run = finetune("pocket/s", load_traces("pocket/long", n=1600), epochs=4, progress=False)
            student = load_trained(run)
    else:
        student = load_student(name)
    n = rows or (256 if pocket else 32)
    # As many of each level as the study asks, or GSM8K's first.
    tiers = POCKET_TIERS if pocket else ["gsm8k"]
    problems = [problem for tier in tiers for problem in load_problems(tier, n=-(-n // len(tiers)))][:n]
    prompts, _ = render_prompts(student.tokenizer, problems, student.context, None)
    return student.model, prompts, student.context - max(map(len, prompts)) if pocket else 64


def compare(
    name: str, model: torch.nn.Module, prompts: list[list[int]], new_tokens: int, rounds: int, device: str
) -> pd.DataFrame:
    methods = {
        "ours": lambda: ours(model, prompts, new_tokens),
        "generate": lambda: by_generate(model, prompts, new_tokens, None),
        "generate, static cache": lambda: by_generate(model, prompts, new_tokens, "static"),
    }
    stops = set(model.generation_config.eos_token_id)
    seconds = {method: [] for method in methods}
    answers = {}
    for _ in range(rounds + 1):
        for method, decode_all in methods.items():
            taken, rows = timed(decode_all, device)
            seconds[method].append(taken)
            answers[method] = [until_stop(row, stops) for row in rows]
    seconds = {method: times[1:] for method, times in seconds.items()}  # the first round warms up
    rows = []
    for method, times in seconds.items():
        n_tokens = sum(map(len, answers[method]))
        differ = sum(a != b for a, b in zip(answers[method], answers["generate"], strict=True))
        ratio = median(base / mine for mine, base in zip(times, seconds["generate"], strict=True))
        machine = torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread"
        rows.append(
            [
                name,
                machine,
                len(prompts),
                new_tokens,
                method,
                n_tokens,
                median(times),
                n_tokens / median(times),
                ratio,
                differ,
            ]
        )
    columns = [*KEY, "tokens", "seconds", "tokens_per_second", "times_generate", "answers_that_differ"]
    return pd.DataFrame(rows, columns=columns).round({"seconds": 3, "tokens_per_second": 0, "times_generate": 2})


def timed(decode_all: Callable[[], list[list[int]]], device: str) -> tuple[float, list[list[int]]]:
    clock = time.perf_counter if device == "cuda" else time.process_time
    started = clock()
    rows = decode_all()  # ends on the CPU, with lists
    return clock() - started, rows


def ours(model: torch.nn.Module, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    greedily = chooser(Sampling(), (), new_tokens, model.device)
    stops = model.generation_config.eos_token_id
    return decode(model, prompts, new_tokens, stops, greedily)


@torch.inference_mode()
def by_generate(
    model: torch.nn.Module, prompts: list[list[int]], new_tokens: int, cache: str | None
) -> list[list[int]]:
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    stops = model.generation_config
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=stops.eos_token_id,
        pad_token_id=stops.pad_token_id,
        cache_implementation=cache,
    )
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()


def until_stop(tokens: list[int], stops: set[int]) -> list[int]:
    """With the stop token, without the padding after it."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))]


if __name__ == "__main__":
    main()
