"""A real student on this machine: a training step beside a bare loop, decoding beside `generate`, in one run.

    python benchmarks/real.py --student model.gguf --traces svamp_llama_level4.jsonl        a quarter of an hour

Both compute in the type that the machine is made for (`student_dtype`). The aims for 135M parameters on a CPU with
bfloat16: 0.9 of the bare loop's tokens/s, and 0.8 of `generate` with a static cache and 32 rows.
"""

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import torch
from decode import compare
from train import run_bare, run_ours

from mixdistill import load_problems, load_student, load_traces
from mixdistill.arguments import whole
from mixdistill.data.chat import render_prompts, render_traces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True, help="as in load_student")
    parser.add_argument("--traces", required=True, help="JSON Lines with question, response and answer")
    parser.add_argument("--examples", type=int, default=32, choices=range(1, 33), metavar="N", help="at most 32")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="answers decoded together")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    try:
        measure(parser.parse_args())
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def measure(args: argparse.Namespace) -> None:
    for option in ("new_tokens", "rounds"):
        whole(option, getattr(args, option))
    for n in args.rows:
        whole("one of rows", n)
    name, traces = Path(args.student).name, load_traces(args.traces, n=args.examples, answer_format="gsm8k")
    problems = load_problems(args.traces, n=max(args.rows), answer_format="gsm8k")  # now, not behind the training
    student, device = load_student(args.student), "cuda" if torch.cuda.is_available() else "cpu"
    examples = render_traces(student.tokenizer, traces, student.context, "error")
    speeds = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIXDISTILL_RUNS"] = folder
        for seed in range(args.rounds):
            ours, bare = run_ours(args.student, traces, seed), run_bare(args.student, examples)
            speeds.append((ours.tokens_per_second, bare.tokens_per_second))
            print(
                f"training, {student.model.dtype}: {speeds[-1][0]:.0f} tokens/s, bare {speeds[-1][1]:.0f}", flush=True
            )
    if device == "cpu":
        torch.set_num_threads(1)
    print(f"training: {median(ours / bare for ours, bare in speeds):.2f} of the bare loop's tokens/s", flush=True)
    for n in args.rows:
        prompts, _ = render_prompts(student.tokenizer, problems[:n], student.context, args.new_tokens)
        print(compare(name, student.model, prompts, args.new_tokens, args.rounds, device).to_string(), flush=True)


if __name__ == "__main__":
    main()
