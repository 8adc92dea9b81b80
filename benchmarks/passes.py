"""How long a forward and backward pass takes on a CPU, by tokens of a pass and by layout: what `CPU_TOKENS` was chosen
from.

python benchmarks/passes.py        a few minutes; prints the table and writes benchmarks/passes.csv
"""

import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from mixdistill import LoRA, load_student, load_traces, mix
from mixdistill.data.chat import render_traces
from mixdistill.finetuning.batches import pack, pad, token_groups
from mixdistill.finetuning.lora import trainable_model
from mixdistill.finetuning.loss import ResponseLoss

STUDENTS = ("pocket/xs", "pocket/s", "pocket/m", "pocket/l", "pocket/xl")
BUDGETS = (256, 512, 768, 1024, 2048, 4096)  # tokens of a pass
ROUNDS = 3
BATCH = 32  # examples a step


def main() -> None:
    train = mix(load_traces("pocket/long", n=2 * BATCH), load_traces("pocket/short", n=2 * BATCH), 0.5)
    layouts = [(layout, budget) for layout in ("padded", "packed, block mask") for budget in BUDGETS]
    layouts += [("padded, adapters as in peft", budget) for budget in (512, 768)]
    rows = []
    for name in STUDENTS:
        student = load_student(name)
        examples = render_traces(student.tokenizer, train, student.context, "error")
        tokens = sum(len(e.input_ids) for e in examples)
        fused = ResponseLoss(trainable_model(student, LoRA(), seed=0)).train()
        plain = ResponseLoss(trainable_model(load_student(name), LoRA(), seed=0, fused=False)).train()
        seconds = {layout: [] for layout in layouts}
        for _ in range(ROUNDS):  # in turn, so that a busy machine slows all of them
            for layout in layouts:
                loss_of = plain if "peft" in layout[0] else fused
                seconds[layout].append(time_of(loss_of, examples, *layout))
        rows += [
            {"student": name, "layout": layout, "budget": budget, "tokens_per_second": round(tokens / median(times))}
            for (layout, budget), times in seconds.items()
        ]
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    print(
        table.pivot(index=["layout", "budget"], columns="student", values="tokens_per_second")[
            list(STUDENTS)
        ].to_string()
    )


def time_of(loss_of: torch.nn.Module, examples: list, layout: str, budget: int) -> float:
    """CPU seconds of the passes of all examples, in steps of `BATCH`."""
    packed = layout.startswith("packed")
    started = time.process_time()
    for at in range(0, len(examples), BATCH):
        batch = examples[at : at + BATCH]
        for group in token_groups([len(e.input_ids) for e in batch], budget, packed):
            chosen = [batch[i] for i in group]
            loss_of(pack(chosen) if packed else pad(chosen, 0)).backward()
    return time.process_time() - started


if __name__ == "__main__":
    main()
