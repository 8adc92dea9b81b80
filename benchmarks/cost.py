"""What training costs by supervised tokens, from 10^4 to 10^7: `finetune` as users call it, loading and saving
included.

python benchmarks/cost.py          measures (minutes: the last point alone is 10^7 tokens), writes cost.csv, draws
                                   cost.png
python benchmarks/cost.py --draw   draws cost.png from cost.csv
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from mixdistill import finetune, load_traces, mix

STUDENT = "pocket/xs"
TOKENS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
N_TRACES = 1600
TABLE, FIGURE = Path(__file__).with_suffix(".csv"), Path(__file__).with_suffix(".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="only draw")
    parser.add_argument("--most", type=int, default=TOKENS[-1], help="supervised tokens of the last point")
    arguments = parser.parse_args()
    if not arguments.draw:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MIXDISTILL_RUNS"] = folder
            rows = [measured(tokens) for tokens in TOKENS if tokens <= arguments.most]
        pd.DataFrame(rows).to_csv(TABLE, index=False)
    draw(pd.read_csv(TABLE))


def measured(wanted: int) -> dict:
    """Train on about so many supervised tokens: fewer traces for few, more epochs for many."""
    n = min(N_TRACES, max(32, round(wanted / 100)))
    train = mix(load_traces("pocket/long", n=n), load_traces("pocket/short", n=n), 0.5)
    epoch = finetune(STUDENT, train, epochs=1, progress=False).manifest["supervised_tokens"]
    wall, cpu = time.perf_counter(), time.process_time()
    run = finetune(STUDENT, train, epochs=max(2, round(wanted / epoch)), progress=False)
    row = {
        "student": STUDENT,
        "supervised_tokens": run.manifest["supervised_tokens"],
        "tokens": run.manifest["tokens"],
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def draw(table: pd.DataFrame) -> None:
    last = table.iloc[-1]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(table["supervised_tokens"], table["cpu_seconds"], "o-", label=f"{last['student']}, one core")
    line = table["supervised_tokens"] * last["cpu_seconds"] / last["supervised_tokens"]
    axes.loglog(table["supervised_tokens"], line, "--", color="gray", label="proportional to the last point")
    axes.set(xlabel="supervised tokens", ylabel="CPU seconds, loading and saving included")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
