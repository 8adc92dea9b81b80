"""The laptop study at full size, in one go, on a machine with a GPU: rates first, then every arm.

    python benchmarks/laptop.py --student FOLDER --traces FOLDER --out FOLDER [--workers 8] [--stages rates svamp gsm8k]

`--student` is a student of the scale `laptop`, or a folder or `.gguf` file that holds one. `--traces` holds the trace files of the scale
and `svamp_test.jsonl` (`docs/real-models.md` says where they come from). Written to `--out`: `rates.csv`, and for each stage its graded items
(`svamp.csv.gz`, one row an arm and problem, without texts) and its tables. What the run store holds is not computed again.

The rate is chosen on a held-out part of the training problems, by the mean accuracy over all recipes of a contrast, never by a
difference between recipes.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mixdistill.results import stats
from mixdistill.study.scales import Arm, Scale, TraceSet, get_scale, recipe_arm, untouched_arms
from mixdistill.study.sweep import sweep

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
RATE_SEEDS = (1000, 1001)  # far from the study's
HELD_OUT_EVERY = 7  # each seventh training problem is held out while rates are chosen
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
    scale = replace(
        in_folder(get_scale("laptop"), args.traces),
        students=(args.student,),
        alpha_student=args.student,
        n_seeds=args.seeds,
    )
    if "rates" in args.stages:
        choose_rates(scale, args.out, args.workers).to_csv(args.out / "rates.csv", index=False)
    rates = pd.read_csv(args.out / "rates.csv").groupby(["family", "lr"])["accuracy"].mean()
    chosen = {family: rates[family].idxmax() for family in ("long", "large")}
    print(f"rates: {chosen}", flush=True)
    if "svamp" in args.stages:
        save(svamp(scale, chosen, args.traces, args.workers), "svamp", args.out)
    if "gsm8k" in args.stages:
        save(gsm8k(replace(scale, lr=chosen["long"]), args.traces, args.workers), "gsm8k", args.out)


def in_folder(scale: Scale, traces: Path) -> Scale:
    """The scale with its files read from this folder."""
    sets = {part: replace(getattr(scale, part), source=str(traces / getattr(scale, part).source)) for part in PARTS}
    return replace(scale, **sets, benchmarks=(str(traces / "svamp_test.jsonl"),))


PARTS = ("long", "short", "large", "small")
FAMILIES = {"long": ("short", "long", "mix_long"), "large": ("small_teacher", "large_teacher", "mix_large")}


def choose_rates(scale: Scale, out: Path, workers: int) -> pd.DataFrame:
    """Accuracy on held-out training problems of every recipe, rate and seed."""
    held_out = {q for i, q in enumerate(questions(scale.long.source)) if i % HELD_OUT_EVERY == 0}
    split = {part: replace(getattr(scale, part), source=without(getattr(scale, part).source, held_out, out)) for part in PARTS}
    dev = only(scale.long.source, held_out, out)
    rows = []
    for lr in RATES:
        scale_of_rate = replace(scale, **split, benchmarks=(dev,), lr=lr)
        arms = [
            recipe_arm(student, recipe, seed)
            for student in scale.students
            for recipes in FAMILIES.values()
            for recipe in recipes
            for seed in RATE_SEEDS
        ]
        items = sweep(arms, scale_of_rate, workers=workers)
        accuracy = items.groupby(["student", "recipe", "seed"], as_index=False)["correct"].mean()
        rows.append(accuracy.assign(lr=lr))
    table = pd.concat(rows).rename(columns={"correct": "accuracy"})
    family = {recipe: name for name, recipes in FAMILIES.items() for recipe in recipes}
    return table.assign(family=table["recipe"].map(family))


def svamp(scale: Scale, chosen: dict[str, float], traces: Path, workers: int) -> pd.DataFrame:
    """Both contrasts, the levels between short and long, the share of long traces, and another teacher's levels."""
    student, seeds = scale.students[0], range(scale.n_seeds)
    long = replace(scale, lr=chosen["long"])
    arms = untouched_arms(long, [student]) + [recipe_arm(student, r, s) for r in FAMILIES["long"] for s in seeds]
    arms += [Arm(student, f"alpha={a:g}", a, s) for a in (0.1, 0.4, 0.6, 0.8) for s in seeds]
    parts = [sweep(arms, long, workers=workers)]
    for level in (2, 3):
        between = replace(long, long=replace(long.long, source=str(traces / f"svamp_llama_level{level}.jsonl")))
        items = sweep([recipe_arm(student, "long", seed) for seed in seeds], between, workers=workers)
        parts.append(items.assign(recipe=f"level {level}"))
    gpt = {part: TraceSet(str(traces / f"svamp_chatgpt_level{n}.jsonl"), answer_format="gsm8k") for part, n in (("long", 6), ("short", 1))}
    items = sweep([recipe_arm(student, r, s) for r in FAMILIES["long"] for s in seeds], replace(long, **gpt), workers=workers)
    parts.append(items.assign(recipe="gpt " + items["recipe"]))
    large = replace(scale, lr=chosen["large"])
    parts.append(sweep([recipe_arm(student, r, s) for r in FAMILIES["large"] for s in seeds], large, workers=workers))
    return pd.concat(parts, ignore_index=True)


def gsm8k(scale: Scale, traces: Path, workers: int) -> pd.DataFrame:
    """Levels 2 and 1 of Llama 3 70B on GSM8K, four seeds."""
    sets = {part: TraceSet(str(traces / f"gsm8k_llama_level{n}.jsonl"), answer_format="gsm8k") for part, n in (("long", 2), ("short", 1))}
    scale = replace(scale, **sets, benchmarks=("gsm8k", *scale.benchmarks))
    student = scale.students[0]
    arms = untouched_arms(scale, [student])
    return sweep(arms + [recipe_arm(student, r, s) for r in FAMILIES["long"] for s in range(4)], scale, workers=workers)


def save(items: pd.DataFrame, name: str, out: Path) -> None:
    items[KEPT].to_csv(out / f"{name}.csv.gz", index=False)
    table = stats.accuracy_table(items, ["recipe"])
    table.to_csv(out / f"{name}.csv", index=False)
    print(table.round(3).to_string(index=False), flush=True)


def questions(path: str) -> list[str]:
    return [json.loads(line)["question"] for line in Path(path).read_text().splitlines()]


def without(path: str, held_out: set[str], out: Path) -> str:
    return _filtered(path, out / "train", lambda question: question not in held_out)


def only(path: str, held_out: set[str], out: Path) -> str:
    return _filtered(path, out / "dev", lambda question: question in held_out)


def _filtered(path: str, folder: Path, wanted) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in Path(path).read_text().splitlines() if wanted(json.loads(line)["question"])]
    target = folder / Path(path).name
    target.write_text("\n".join(lines) + "\n")
    return str(target)


if __name__ == "__main__":
    main()
