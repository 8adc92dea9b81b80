"""The laptop study at full size, in one go, on a machine with a GPU: rates first, then every arm.

    python benchmarks/laptop.py --student FOLDER --traces FOLDER --out FOLDER [--workers 8] [--stages rates svamp gsm8k]

`--student` is a student of the scale `laptop`, or a folder or `.gguf` file that holds one. `--traces` holds the scale's
trace files, `svamp_test.jsonl` and `gsm8k_test.jsonl` (`docs/real-models.md` says where they come from). Written to
`--out`: `rates.csv`, and for each stage its graded items (one row an arm and problem, without texts) and their
accuracies. What the run store holds is not computed again.

A learning rate is chosen on a held-out part of the training problems, by the mean accuracy over the recipes of a
contrast, never by a difference between recipes.
"""

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mixdistill.results import stats
from mixdistill.study.scales import Arm, Scale, TraceSet, get_scale, recipe_arm, untouched_arms
from mixdistill.study.sweep import sweep

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
RATE_SEEDS = (1000, 1001)  # far from the study's
HELD_OUT_EVERY = 7  # each seventh training problem is held out while rates are chosen
FAMILIES = {"long": ("short", "long", "mix_long"), "large": ("small_teacher", "large_teacher", "mix_large")}
KEPT = ["student", "recipe", "seed", "benchmark", "problem_id", "answer", "correct", "finish_reason", "n_tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=8, help="processes that share the GPU")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--stages", nargs="*", default=["rates", "svamp", "gsm8k"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    own = {"students": (args.student,), "alpha_student": args.student, "n_seeds": args.seeds}
    scale = replace(get_scale("laptop"), **own)
    if "rates" in args.stages:
        choose_rates(scale, args.traces, args.out, args.workers)
    os.environ["MIXDISTILL_DATA"] = str(args.traces)
    rates = pd.read_csv(args.out / "rates.csv").groupby(["family", "lr"])["accuracy"].mean()
    long, large = (replace(scale, lr=float(rates[family].idxmax())) for family in FAMILIES)
    print(f"rates: {long.lr:g} for the long contrast, {large.lr:g} for the teachers", flush=True)
    if "svamp" in args.stages:
        save(svamp(long, large, args.workers), "svamp", args.out)
    if "gsm8k" in args.stages:
        save(gsm8k(long, args.workers), "gsm8k", args.out)


def choose_rates(scale: Scale, traces: Path, out: Path, workers: int) -> None:
    """Write `rates.csv`: accuracy on held-out training problems of every recipe, rate and seed."""
    # A folder like that of the traces, whose tests are the held-out problems, so that these are asked and graded like
    # the tests.
    folder = out / "rates"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = {path.name: path.read_text().splitlines() for path in traces.glob("svamp_*.jsonl")}
    held_out = [line for i, line in enumerate(rows[scale.long.source]) if i % HELD_OUT_EVERY == 0]
    questions = {json.loads(line)["question"] for line in held_out}
    for name, lines in rows.items():
        kept = [line for line in lines if json.loads(line)["question"] not in questions]
        (folder / name).write_text("\n".join(held_out if name == "svamp_test.jsonl" else kept) + "\n")
    os.environ["MIXDISTILL_DATA"] = str(folder)
    family = {recipe: name for name, recipes in FAMILIES.items() for recipe in recipes}
    arms = [recipe_arm(scale.students[0], recipe, seed) for recipe in family for seed in RATE_SEEDS]
    tables = []
    for lr in RATES:
        items = sweep(arms, replace(scale, lr=lr), workers=workers)
        accuracy = items.groupby(["recipe", "seed"], as_index=False)["correct"].mean()
        tables.append(accuracy.rename(columns={"correct": "accuracy"}).assign(lr=lr))
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(family=table["recipe"].map(family))
    table.to_csv(out / "rates.csv", index=False)
    print(
        table.groupby(["family", "lr", "recipe"])["accuracy"].mean().unstack("recipe").round(3).to_string(), flush=True
    )


def svamp(long: Scale, large: Scale, workers: int) -> pd.DataFrame:
    """Both contrasts, the share of long traces, the levels between short and long, and another teacher's levels."""
    student, seeds = long.students[0], range(long.n_seeds)
    arms = untouched_arms(long, [student]) + [recipe_arm(student, r, seed) for r in FAMILIES["long"] for seed in seeds]
    arms += [Arm(student, f"alpha={alpha:g}", alpha, seed) for alpha in (0.1, 0.4, 0.6, 0.8) for seed in seeds]
    parts = [sweep(arms, long, workers=workers)]
    parts.append(sweep([recipe_arm(student, r, s) for r in FAMILIES["large"] for s in seeds], large, workers=workers))
    for level in (2, 3):
        between = replace(long, long=traces_of(f"svamp_llama_level{level}"))
        items = sweep([recipe_arm(student, "long", seed) for seed in seeds], between, workers=workers)
        parts.append(items.assign(recipe=f"level {level}"))
    gpt = replace(long, long=traces_of("svamp_chatgpt_level6"), short=traces_of("svamp_chatgpt_level1"))
    items = sweep([recipe_arm(student, r, seed) for r in FAMILIES["long"] for seed in seeds], gpt, workers=workers)
    return pd.concat([*parts, items.assign(recipe="gpt " + items["recipe"])], ignore_index=True)


def gsm8k(scale: Scale, workers: int) -> pd.DataFrame:
    """Levels 2 and 1 of Llama 3 70B on GSM8K, four seeds."""
    sets = {"long": traces_of("gsm8k_llama_level2"), "short": traces_of("gsm8k_llama_level1")}
    scale = replace(scale, **sets, benchmarks=("gsm8k", *scale.benchmarks))
    student = scale.students[0]
    arms = untouched_arms(scale, [student]) + [recipe_arm(student, r, s) for r in FAMILIES["long"] for s in range(4)]
    return sweep(arms, scale, workers=workers)


def traces_of(name: str) -> TraceSet:
    return TraceSet(f"{name}.jsonl", answer_format="gsm8k")


def save(items: pd.DataFrame, name: str, out: Path) -> None:
    items[KEPT].to_csv(out / f"{name}_items.csv.gz", index=False)
    by = ["benchmark", "recipe"] if items["benchmark"].nunique() > 1 else ["recipe"]
    table = stats.accuracy_table(items, by)
    table.to_csv(out / f"{name}.csv", index=False)
    print(table.round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
