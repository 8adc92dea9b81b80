"""Does one forward pass before any training say which traces suit a student? Rank-Surprisal Ratio (arXiv 2601.14249).

    python benchmarks/suitability.py                                     the pocket students, beside what they got
    python benchmarks/suitability.py --plot                              draws `suitability.png` again from the table
    python benchmarks/suitability.py --student model.gguf --traces a.jsonl b.jsonl     any student, any trace files
    python benchmarks/suitability.py --student ... --traces ... --study figures/laptop/data     beside what it got

Of every response token the student's surprisal (nats) and rank (1 is its first choice, at most 100); a set's are the
means over its traces, and the ratio is mean rank over mean surprisal. The paper: the lower, the better for the student.
Of the pocket students every base is compared with what it got in the published study; the table is `suitability.csv`,
the plot `suitability.png`.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.stats import spearmanr

from mixdistill import files, load_student, load_traces, mix
from mixdistill.data.chat import render_traces
from mixdistill.data.pocket.bases import POCKET, POCKET_BASES
from mixdistill.data.students import Student
from mixdistill.finetuning.batches import pad
from mixdistill.results.drawing import SIZES, STYLE, load_table
from mixdistill.results.stats import require
from mixdistill.runs import REPO
from mixdistill.study.scales import gap_arms, get_scale
from mixdistill.study.stored import open_results

TABLE, STUDY = Path(__file__).with_suffix(".csv"), REPO / "figures" / "laptop" / "data"
N_TRACES = 200  # of each set, as in the paper
# The trace set of an arm of the laptop study that has one set alone.
SET_OF_RECIPE = {"short": "svamp_llama_level1", "long": "svamp_llama_level4"}
SET_OF_RECIPE |= {f"Llama level {n}": f"svamp_llama_level{n}" for n in (2, 3)}
SET_OF_RECIPE |= {f"GPT-4o level {n}": f"svamp_chatgpt_level{n}" for n in (1, 6)}
SET_OF_RECIPE |= {"small_teacher": "svamp_flant5large", "large_teacher": "svamp_gpt35"}
CLIP = 100  # ranks above it count as it
ROWS = 16  # traces of a pass
MEASURES = ("ratio", "surprisal", "rank")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", help="default: the pocket students")
    parser.add_argument("--traces", nargs="*", default=[], help="JSON Lines with question, response and answer")
    parser.add_argument("--plot", action="store_true", help="only draw suitability.png from suitability.csv")
    parser.add_argument(
        "--study", type=Path, help="folder with the tables svamp.csv and levels.csv of the laptop study"
    )
    parser.add_argument("-n", type=int, default=N_TRACES, help="traces of each set")
    args = parser.parse_args()
    if bool(args.student) != bool(args.traces):
        parser.error("give --student and --traces, or neither for the pocket students")
    try:
        if args.plot:
            plot(pd.read_csv(TABLE))
        elif args.student:
            of_files(args.student, args.traces, args.n, args.study)
        else:
            pocket(args.n)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def of_files(name: str, traces: list[str], n: int, study: Path | None) -> None:
    trained = accuracies(study) if study else None
    shown = Path(name).name.removesuffix(".gguf")
    if trained is not None and shown not in set(trained["student"]):
        raise ValueError(f"{study} has no {shown!r}, only {', '.join(trained['student'].unique())}: leave --study out")
    if len({Path(file).stem for file in traces}) < len(traces):
        raise ValueError("two of --traces have one name, and would be one row: give each a name of its own")
    sets = {Path(file).stem: load_traces(file, n=n, answer_format="gsm8k") for file in traces}
    student, rows = load_student(name), []
    for stem, part in sets.items():
        with files.speaking(stem):
            rows.append({"student": shown, "traces": stem} | suitability(student, part))
        print(pd.DataFrame(rows[-1:]).round(3).to_csv(index=False, header=len(rows) == 1), end="", flush=True)
    if trained is not None:
        table = pd.DataFrame(rows).merge(trained, on=["student", "traces"])
        print(table.drop(columns=["student", "seconds"]).round(3).to_string(index=False))
        for measure in MEASURES:
            found = spearmanr(table[measure], table["accuracy"])
            of = f"rank correlation with accuracy over {len(table)} trace sets"
            print(f"{measure}: {of} {found.statistic:.2f} (p = {found.pvalue:.2f})")


def accuracies(study: Path) -> pd.DataFrame:
    """What the laptop study's students got at the scale's rate, a row a trace set."""
    table = pd.concat([load_table(study / f"{name}.csv") for name in ("svamp", "levels")])
    require(table, "student", "recipe", "lr", "accuracy", "ci_low", "ci_high", "n_seeds")
    table = table[table["lr"] == get_scale("laptop").lr].set_index("recipe")
    table = table.rename(index=SET_OF_RECIPE).loc[lambda all: all.index.isin(SET_OF_RECIPE.values())]
    return table.rename_axis("traces").reset_index()[["student", "traces", "accuracy", "ci_low", "ci_high", "n_seeds"]]


@torch.inference_mode()
def suitability(student: Student, traces: Dataset) -> dict[str, float]:
    """Mean surprisal in nats, mean clipped rank, and their ratio, over the traces; seconds that it took."""
    started, found = time.perf_counter(), []
    examples = sorted(
        render_traces(student.tokenizer, traces, student.context, "error"), key=lambda e: len(e.input_ids)
    )
    for at in range(0, len(examples), ROWS):
        files.tell(f"trace {at} of {len(examples)}")
        part = examples[at : at + ROWS]
        batch = pad(part, 0).to(student.device)
        hidden = student.model.base_model(**batch.inputs, use_cache=False).last_hidden_state
        logits = student.model.get_output_embeddings()(hidden.flatten(0, 1)[batch.predicts]).float()
        surprisal = F.cross_entropy(logits, batch.labels, reduction="none")
        rank = 1 + (logits > logits.gather(1, batch.labels[:, None])).sum(1).clamp(max=CLIP - 1)
        lengths = [len(example.input_ids) - example.n_prompt for example in part]
        pairs = zip(surprisal.split(lengths), rank.float().split(lengths), strict=True)
        found += [(s.mean().item(), r.mean().item()) for s, r in pairs]
    surprisal, rank = (sum(values) / len(found) for values in zip(*found, strict=True))
    seconds = time.perf_counter() - started
    return {"surprisal": surprisal, "rank": rank, "ratio": rank / surprisal, "seconds": round(seconds, 1)}


def pocket(n: int) -> None:
    rows = []
    for size in POCKET:
        for seed, base in enumerate(POCKET_BASES[size]):
            student = load_student(base)
            long, short = (load_traces(f"pocket/{part}", n=n, seed=seed) for part in ("long", "short"))
            for recipe, traces in {"short": short, "long": long, "mix_long": mix(long, short, 0.2, seed)}.items():
                rows.append({"student": size, "base": base, "recipe": recipe} | suitability(student, traces))
    scale = get_scale("pocket")
    items = open_results(scale, "stored").items(gap_arms(scale))
    accuracy = items.groupby(["base", "recipe"], as_index=False)["correct"].mean()  # of three tiers of as many problems
    table = pd.DataFrame(rows).merge(accuracy.rename(columns={"correct": "accuracy"}))
    if n == N_TRACES:  # what is published stays as it is where only a few traces are looked at
        table.drop(columns="seconds").round(4).to_csv(TABLE, index=False)
        plot(table)
    print(table.groupby(["student", "recipe"])[[*MEASURES, "accuracy", "seconds"]].mean().round(2).to_string())
    for measure in MEASURES:
        by_base = table.pivot(index="base", columns="recipe", values=[measure, "accuracy"])
        gap, difference = (by_base[column]["long"] - by_base[column]["short"] for column in ("accuracy", measure))
        within = [spearmanr(part[measure], part["accuracy"]).statistic for _, part in table.groupby("base")]
        print(f"{measure}: rank correlation with accuracy over all {len(table)} points", end=" ")
        print(f"{spearmanr(table[measure], table['accuracy']).statistic:.2f},", end=" ")
        print(f"within a base {sum(within) / len(within):.2f} (mean of {len(within)}),", end=" ")
        print(f"of long - short with the gap across bases {spearmanr(difference, gap).statistic:.2f}")


def plot(table: pd.DataFrame) -> None:
    """What students got by the ratio of their traces, by base the gap by the difference of the ratios, and the same
    as the first of a real student, from its tables."""
    figure, (left, right, real) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for recipe, rows in table.groupby("recipe", sort=False):
        color, marker, label = STYLE[recipe]
        left.scatter(rows["ratio"], 100 * rows["accuracy"], c=color, marker=marker, label=label)
    left.set(xscale="log", xlabel="mean rank over mean surprisal (said to be better where lower)", ylabel="accuracy, %")
    left.set_xticks([2, 3, 5, 10], ["2", "3", "5", "10"])
    left.minorticks_off()
    left.set_title("Pocket students: three trace sets, every base")
    left.legend(fontsize=9)
    by_base = table.pivot(index=["student", "base"], columns="recipe", values=["ratio", "accuracy"])
    change = pd.DataFrame({name: by_base[name]["long"] - by_base[name]["short"] for name in ("ratio", "accuracy")})
    for (color, marker), student in zip(SIZES, POCKET, strict=False):
        rows = change.loc[student]
        right.scatter(rows["ratio"], 100 * rows["accuracy"], c=color, marker=marker, label=student)
    right.axhline(0, color="black", lw=0.8)
    right.set(xlabel="long - short of the ratio", ylabel="long - short of the accuracy, points")
    right.set_title("Does it say who profits from long traces?")
    right.legend(fontsize=9, loc="lower left")
    of = spearmanr(change["ratio"], change["accuracy"]).statistic
    points = pd.read_csv(TABLE.with_name("suitability_smollm2.csv")).merge(accuracies(STUDY), on=["student", "traces"])
    for place, point in points.iterrows():
        ends = [[point["accuracy"] - point["ci_low"]], [point["ci_high"] - point["accuracy"]]]
        real.errorbar(point["ratio"], 100 * point["accuracy"], 100 * np.array(ends), fmt="o", c="#0072B2", capsize=3)
        name = point["traces"].removeprefix("svamp_").replace("_", " ").replace("chatgpt", "GPT-4o")
        beside = {"xytext": (4, 4 if place % 2 else -10), "textcoords": "offset points"}
        real.annotate(name, (point["ratio"], 100 * point["accuracy"]), fontsize=8, **beside)
    real.margins(x=0.2)
    real.set(ylim=(0, None), xlabel="mean rank over mean surprisal", title="SmolLM2-135M on SVAMP, eight trace sets")
    real.set_ylabel("accuracy, %, with 95% intervals")
    alike = spearmanr(points["ratio"], points["accuracy"]).statistic
    note = (
        f"n = {len(change)} bases of pocket students, {N_TRACES} traces a set, rank correlation in the middle {of:.2f}"
    )
    seeds = f"{points['n_seeds'].min()} to {points['n_seeds'].max()} seeds"
    note += (
        f"; {len(points)} sets of a real student, 60 traces each, {seeds}, rank correlation on the right {alike:.2f}"
    )
    figure.supxlabel(note, fontsize=9, x=0.01, ha="left")
    figure.savefig(TABLE.with_suffix(".png"), dpi=200)


if __name__ == "__main__":
    main()
