"""Three ways to shorten a pocket student's training step, beside the step as it is: what `make reproduce` could gain.

    python benchmarks/ways.py             a few minutes; prints the table; --save writes it to benchmarks/ways.csv

- as it is: the passes of `finetune`.
- compiled: the layers compiled by inductor (dynamic shapes), with PyTorch's attention or one of plain products that it
  can fuse. What the compiling costs is a column of its own: every process pays it once, less with a warm cache.
- side by side: three seeds of one base in one pass by `torch.func`, their adapters stacked and the base shared.
- larger passes: the same step in passes of twice and four times the tokens.

All in turn within one process and one thread; CPU time, the best of the rounds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, stack_module_state, vmap

from mixdistill import LoRA, load_student, load_traces
from mixdistill.data.chat import Example, render_traces
from mixdistill.finetuning.batches import Batch, pad, token_groups
from mixdistill.finetuning.lora import trainable_model
from mixdistill.finetuning.loss import CPU_CHUNK, ResponseLoss, causal_model
from mixdistill.finetuning.memory import Placement, pass_tokens

BATCH = 16  # examples a step, as in the study
STEPS = 6
SEEDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["pocket/xs", "pocket/s", "pocket/xl"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/ways.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 100  # all students share the layers' code
    rows = []
    for name in given.students:
        ways = ways_of(name)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.rounds):
            for way, (step, _) in ways.items():
                started = time.process_time()
                step()
                seconds[way].append(time.process_time() - started)
        as_it_is = min(seconds["as it is"])
        for way, (_, compiling) in ways.items():
            share = min(seconds[way]) / as_it_is / (SEEDS if way.startswith("side by side") else 1)
            rows.append({"student": name, "way": way, "time_over_as_it_is": round(share, 3), "compiling_s": compiling})
    table = pd.DataFrame(rows)
    if given.save:
        table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    print(table.to_string(index=False))


def ways_of(name: str) -> dict[str, tuple[Callable[[], None], float]]:
    """Every way: a function that computes the gradients of `STEPS` steps, and the CPU seconds until it first had."""
    student = load_student(name)
    train = load_traces("pocket/long", n=BATCH * STEPS)
    examples = render_traces(student.tokenizer, train, student.context, "error")
    longest = max(len(example.input_ids) for example in examples)
    tokens = pass_tokens(Placement(), student.model.config, torch.device("cpu"), longest)

    def passes(times: int) -> list[Batch]:
        steps = [examples[at : at + BATCH] for at in range(0, len(examples), BATCH)]
        return [pad(group, 0) for step in steps for group in groups_of(step, times * tokens)]

    def plain(attention: str = "sdpa", compiled: bool = False, times: int = 1) -> tuple[Callable[[], None], float]:
        loss_of = loss_of_fresh(name, attention)
        if compiled:
            for layer in causal_model(loss_of.model).model.layers:
                layer.compile(dynamic=True)
        return warmed(lambda: [loss_of(batch).backward() for batch in passes(times)])

    return {
        "as it is": plain(),
        "compiled": plain(compiled=True),
        "compiled, attention too": plain("eager", compiled=True),
        f"side by side, {SEEDS} seeds": side_by_side(name, passes(1)),
        "passes twice as large": plain(times=2),
        "passes four times as large": plain(times=4),
    }


def warmed(step: Callable[[], object]) -> tuple[Callable[[], object], float]:
    started = time.process_time()
    step()
    return step, round(time.process_time() - started, 1)


def groups_of(step: list[Example], tokens: int) -> list[list[Example]]:
    return [[step[i] for i in group] for group in token_groups([len(e.input_ids) for e in step], tokens, packed=False)]


def loss_of_fresh(name: str, attention: str = "sdpa", seed: int = 0) -> ResponseLoss:
    student = load_student(name)
    student.model.set_attn_implementation(attention)
    return ResponseLoss(trainable_model(student, LoRA(), seed)).train()


def side_by_side(name: str, passes: list[Batch]) -> tuple[Callable[[], object], float]:
    """The gradients of `SEEDS` seeds at a time. All get the same batch, which costs what batches of their own would."""
    models = [loss_of_fresh(name, seed=seed) for seed in range(SEEDS)]
    every = stack_module_state(models)[0]
    stacked = {key: value for key, value in every.items() if "lora_" in key}
    shared = {key: value for key, value in models[0].named_parameters() if key not in stacked}

    # PyTorch's chunked function can not be stacked; this computes the same in the same chunks.
    def head_loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = causal_model(models[0].model).get_output_embeddings().weight
        chunks = zip(hidden.split(CPU_CHUNK), labels.split(CPU_CHUNK), strict=True)
        return sum(F.cross_entropy(F.linear(rows, weight), ids, reduction="sum") for rows, ids in chunks)

    models[0].head_loss = head_loss

    def loss(adapters: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        return functional_call(models[0], shared | adapters, (batch,))

    def step() -> None:
        for batch in passes:
            vmap(grad(loss), in_dims=(0, None))(stacked, batch)

    return warmed(step)


if __name__ == "__main__":
    main()
