"""The laptop study: rates first, then every arm, some seeds at a time. In one go on a machine with a GPU:

    python benchmarks/laptop.py --student FOLDER --traces FOLDER --out FOLDER --workers 8

The least of it, on one CPU core in a night:

    python benchmarks/laptop.py ... --workers 1 --families long --rate-seeds 1 --seeds 3 --stages rates svamp

`--student` is a student of the scale `laptop`, or a folder or `.gguf` file that holds one. `--traces` holds the scale's
trace files and `svamp_test.jsonl` (`benchmarks/laptop_traces.py` makes them), and `gsm8k_test.jsonl`. Written to
`--out`: `made_from.json` (the student and the files that the tables are of), `rates.csv`, and for each stage its graded
items (one row an arm and problem, without texts), their accuracies and gaps, as far as they are, beside those of other
rates. What the run store holds is not computed again, and `--stored-only` writes the tables of nothing else.

A learning rate is chosen on a held-out part of the training problems, by the mean over the recipes of a contrast of the
loss on held-out traces like those that a recipe trains on, never by a difference between recipes. (By accuracy a small
student on few problems cannot tell two rates apart, docs/real-log.md; it stands beside in `rates.csv`.)
"""

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from scipy.special import stdtrit

from mixdistill import Run, files
from mixdistill.arguments import number, whole
from mixdistill.data.chat import render_traces
from mixdistill.data.student_files import REVISIONS, fingerprint
from mixdistill.data.tables import read_table
from mixdistill.finetuning.batches import pad
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.finetuning.loss import ResponseLoss
from mixdistill.results import stats
from mixdistill.study.plan import check_machine
from mixdistill.study.scales import Arm, Scale, TraceSet, get_scale, recipe_arm, scale_files, untouched_arms
from mixdistill.study.sweep import (
    arm_items,
    check_arms,
    run_arm,
    run_arms,
    sweep,
    trained,
    training_set,
)
from mixdistill.study.workers import gpu_names, n_cores

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
FIRST_RATE_SEED = 1000  # far from the study's
HELD_OUT_EVERY = 7  # each seventh training problem is held out while rates are chosen
FAMILIES = {"long": ("short", "long", "mix_long"), "large": ("small_teacher", "large_teacher", "mix_large")}
RATE_COLUMNS = {"recipe": str, "seed": int, "accuracy": float, "loss": float, "lr": float}
RATE_COLUMNS |= {"family": str, "student": str, "epochs": int}
KEPT = [
    "student",
    "params",
    "recipe",
    "lr",
    "seed",
    "benchmark",
    "problem_id",
    "answer",
    "correct",
    "finish_reason",
    "n_tokens",
]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--student", required=True)
    parser.add_argument("--traces", type=path, required=True)
    parser.add_argument("--out", type=path, required=True)
    parser.add_argument("--workers", type=int, help="arms at a time; default: one a GPU, or a core with room for it")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, help="other than the scale's: to tables of their own")
    parser.add_argument("--lr", type=float, help="the rate of all arms, in the place of the stage rates")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="rates to choose from")
    parser.add_argument("--rate-seeds", type=int, default=2, help="seeds that a rate is chosen with")
    parser.add_argument("--rate-epochs", type=int, help="epochs that a rate is chosen with; default: the study's")
    parser.add_argument("--families", nargs="+", default=[*FAMILIES], choices=FAMILIES)
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="default: all, but for rates where none is asked")
    parser.add_argument("--stored-only", action="store_true", help="train nothing: the tables of what the store holds")
    try:
        study(parser.parse_args(given))
    except (ValueError, OSError, RuntimeError) as error:  # the last: arms failed
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(1) from None  # the sweep has said what is stored


def path(name: str) -> Path:
    return Path(name).expanduser()


def study(args: argparse.Namespace) -> None:
    os.environ["MIXDISTILL_DATA"] = str(args.traces.absolute())
    whole("workers", args.workers, optional=True)  # before any work
    whole("rate-seeds", args.rate_seeds)
    whole("rate-epochs", args.rate_epochs, optional=True)
    if not next(path for path in (args.out, *args.out.absolute().parents) if path.exists()).is_dir():
        raise ValueError(f"--out is {str(args.out)!r}, which is no folder and lies in none: give another")
    for rate in args.rates:
        number("one of rates", rate, above=0)
    given = args.lr is not None or args.stored_only
    args.stages = args.stages or [name for name in STAGES if name != "rates" or not given]
    if not args.traces.is_dir():
        raise ValueError(f"--traces is {str(args.traces)!r}: no such folder, benchmarks/laptop_traces.py makes one")
    scale = replace(get_scale("laptop", whole("seeds", args.seeds), args.student), lr=args.lr, benchmarks=("svamp",))
    usual = scale.epochs
    scale = replace(scale, epochs=whole("epochs", args.epochs, optional=True) or usual)
    named = "" if scale.epochs == usual else f"_epochs{scale.epochs}"  # of the tables
    if len(scale.students) > 1:
        raise ValueError(f"--student is {args.student!r}: give one, and call this once for each")
    if "large" not in args.families:
        scale = replace(scale, large=None, small=None)
    scales = dict.fromkeys(args.families, scale)
    stages = {name: made for name, made in STAGES.items() if name in args.stages and made}
    if args.stored_only and "rates" in args.stages:
        raise ValueError("--stored-only trains nothing, and the stage rates does: name others by --stages")
    if args.lr is not None and "rates" in args.stages:
        raise ValueError("--lr takes the place of the stage rates: leave it out, or name other stages")
    if "long" not in args.families and stages.keys() - {"svamp"}:
        raise ValueError("the stages levels and gsm8k are of the family long: leave them out, or add it")
    of_rates = [recipe_arm(scale.students[0], recipe, 0) for family in args.families for recipe in FAMILIES[family]]
    all_parts = [(scale, of_rates)] if "rates" in args.stages else []
    all_parts += [part for arms_of in stages.values() for part in arms_of(scales, 0)]
    for own, _ in all_parts:
        for part in (own.short, own.long, own.small, own.large):
            if part and Path(part.source).exists():
                raise ValueError(f"{part.source} lies in the working folder, too, and would be read: start elsewhere")
        check_machine(own)
    for own, arms in () if args.stored_only else all_parts:
        check_arms(arms, own)  # here, as hours may pass before a later stage begins
    student = pd.DataFrame({"student": [shown_name(args.student)], "lr": [0.0]})
    for name in stages:
        others_rates(args.out / f"{name}{named}.csv", student)
    if args.lr is None and "rates" not in args.stages and not (args.out / "rates.csv").is_file():
        raise ValueError(f"{args.out} holds no rates.csv: run the stage rates first, or give --lr")
    remember(args.out / "made_from.json", args.student, [own for own, _ in all_parts])
    if args.lr is None:
        if "rates" in args.stages:
            seeds = range(FIRST_RATE_SEED, FIRST_RATE_SEED + args.rate_seeds)
            tried = replace(scale, epochs=args.rate_epochs or scale.epochs)
            with files.scratch("rates") as folder:
                choose_rates(tried, args.rates, args.families, seeds, args.traces, args.out, args.workers, folder)
        scales = {family: replace(scale, lr=best_rate(args.out, args.student, family)) for family in args.families}
    print("rates: " + ", ".join(f"{own.lr:g} for {family}" for family, own in scales.items()), flush=True)
    failed = []
    # Seeds of three arms: two arms a worker, so that few wait for the last.
    at_a_time = math.ceil(2 * (args.workers or len(gpu_names()) or n_cores()) / 3)
    for stage, arms_of in stages.items():
        parts = []
        for first in range(0, args.seeds, at_a_time):
            together: dict[Scale, list[Arm]] = {}
            for seed in range(first, min(first + at_a_time, args.seeds)):
                for own, arms in arms_of(scales, seed):
                    together.setdefault(own, []).extend(arms)
            for own, arms in together.items():
                if args.stored_only:
                    scored = [run_arm(arm, own, stored_only=True) or RuntimeError("not in the store") for arm in arms]
                else:
                    scored = run_arms(arms, own, workers=args.workers)
                found = [*zip(arms, scored, strict=True)]
                wrong = [(arm, error) for arm, error in found if isinstance(error, BaseException)]
                failed += [f"{stage}, {arm.recipe}, seed {arm.seed}: {error}" for arm, error in wrong]
                # A gap needs the same seeds on both sides, which `level_gaps` sees to.
                lost = {arm.seed for arm, _ in wrong if stage != "levels"}
                for arm, scores in found:
                    if isinstance(scores, BaseException) or arm.seed in lost:
                        continue
                    rate = math.nan if arm.alpha is None else own.lr
                    parts.append(arm_items(arm, own, scores.items).assign(lr=rate))
            if parts:
                save(pd.concat(parts, ignore_index=True), stage, args.out, named)
    if failed:
        raise RuntimeError("\n".join(failed))


def choose_rates(
    scale: Scale,
    rates: Sequence[float],
    families: Sequence[str],
    seeds: Sequence[int],
    traces: Path,
    out: Path,
    workers: int | None,
    tried: Path,
) -> None:
    """Write `rates.csv`: of every recipe, rate and seed the accuracy on held-out training problems, and the loss on
    their traces. Rates that it has from before and that are not tried now stay in it, if they were tried with as many
    epochs."""
    rates = list(dict.fromkeys(number("one of rates", rate, above=0) for rate in rates))
    tables = [read_rates(out, scale.students[0])] if (out / "rates.csv").is_file() else []
    family = {recipe: name for name in families for recipe in FAMILIES[name]}
    for table in tables:  # what stays in it has to be comparable, which `best_rate` asks for
        kept = table[table["family"].isin(families) & table["epochs"].eq(scale.epochs) & ~table["lr"].isin(rates)]
        for (name, lr), part in kept.groupby(["family", "lr"]):
            if set(part["seed"]) != set(seeds) or len(part) != len(FAMILIES[name]) * len(seeds):
                what = f"rates.csv has the rate {lr:g} of {name} with other seeds or recipes than are tried now"
                raise ValueError(f"{what}: give the same --rate-seeds, or {lr:g} among --rates")
    sources = [part.source for part in (scale.short, scale.long, scale.small, scale.large) if part]
    columns = ["question", "response", "answer"]
    rows = {source: pd.DataFrame(read_table(str(traces / source), columns)) for source in sources}
    # A folder like that of the traces, whose tests are the held-out problems, so that these are asked and graded like
    # the tests.
    (tried / "held_out").mkdir()
    held_out = rows[scale.long.source][::HELD_OUT_EVERY]
    for name, part in (rows | {"svamp_test.jsonl": held_out}).items():
        held = part["question"].isin(held_out["question"])
        part[held].to_json(tried / "held_out" / name, orient="records", lines=True)
        part[held if name == "svamp_test.jsonl" else ~held].to_json(tried / name, orient="records", lines=True)
    arms = [recipe_arm(scale.students[0], recipe, seed) for recipe in family for seed in seeds]
    facts = {"student": Path(scale.students[0]).name, "epochs": scale.epochs}
    for own in [replace(scale, lr=lr) for lr in rates]:
        os.environ["MIXDISTILL_DATA"] = str(tried.absolute())
        items = sweep(arms, own, workers=workers)
        accuracy = items.groupby(["recipe", "seed"], as_index=False)["correct"].mean()
        runs = [run for arm in arms if (run := trained(arm, own, stored_only=True))]
        os.environ["MIXDISTILL_DATA"] = str(tried.absolute() / "held_out")
        with files.speaking(f"loss on held-out traces at {own.lr:g}"):
            losses = [held_out_loss(run, training_set(arm, own)) for run, arm in zip(runs, arms, strict=True)]
        of = pd.DataFrame({"recipe": [arm.recipe for arm in arms], "seed": [arm.seed for arm in arms], "loss": losses})
        found = accuracy.rename(columns={"correct": "accuracy"}).merge(of).assign(lr=own.lr)
        found = found.assign(family=found["recipe"].map(family))
        print(found.to_string(index=False), flush=True)
        others = [one["epochs"].ne(scale.epochs) | one["lr"].eq(own.lr) for one in tables]
        tables = [one[~(one["family"].isin(families) & same)] for one, same in zip(tables, others, strict=True)]
        tables.append(found.assign(**facts))
        write(out / "rates.csv", pd.concat(tables).round({"accuracy": 6, "loss": 6}))
    os.environ["MIXDISTILL_DATA"] = str(traces.absolute())


def best_rate(out: Path, student: str, family: str) -> float:
    """The rate with the lowest loss. Raises ValueError if there is none, or rates were tried with other arms."""
    table = read_rates(out, student)
    own = table[table["family"] == family]
    if own.empty:
        raise ValueError(f"rates.csv has no rate of {family}: run the stage rates for it")
    arms = own.groupby("lr").apply(lambda tried: frozenset(zip(tried["recipe"], tried["seed"], strict=True)))
    if arms.nunique() > 1:
        what = f"not all rates of {family} in rates.csv were tried with the same recipes and seeds"
        raise ValueError(f"{what}: run the stage rates for all of them")
    print(f"{family}: the best of {len(arms)} rates, {', '.join(map('{:g}'.format, arms.index))}", flush=True)
    return float(own.groupby("lr")["loss"].mean().idxmin())


@torch.inference_mode()
def held_out_loss(run: Run, traces: Dataset) -> float:
    """Mean loss of a trained student on traces, in nats a token of the responses."""
    student = load_trained(run)
    loss_of, total, n = ResponseLoss(student.model), 0.0, 0
    examples = render_traces(student.tokenizer, traces, student.context, "error")
    for done, example in enumerate(examples):
        files.tell(f"{run.folder.name}, {done} of {len(examples)}")
        batch = pad([example], 0).to(student.device)
        total += loss_of(batch).item()
        n += len(batch.labels)
    return total / n


def read_rates(out: Path, student: str) -> pd.DataFrame:
    """`rates.csv`; ValueError if it is damaged, or of another student."""
    try:
        table = pd.read_csv(out / "rates.csv", dtype=RATE_COLUMNS, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{out}/rates.csv is damaged ({error}): delete it, and run the stage rates") from None
    if missing := RATE_COLUMNS.keys() - set(table):
        raise ValueError(f"{out}/rates.csv lacks {', '.join(missing)}: delete it, and run the stage rates")
    if others := set(table["student"]) - {Path(student).name}:
        raise ValueError(f"{out}/rates.csv is of {' and '.join(others)}: give {student!r} another --out")
    return table


Part = tuple[Scale, list[Arm]]


def svamp(scales: dict[str, Scale], seed: int) -> Iterator[Part]:
    """The contrasts, and the untouched student beside the first seed."""
    for place, (family, scale) in enumerate(scales.items()):
        arms = untouched_arms(scale, scale.students) if seed == place == 0 else []
        yield scale, [*arms, *(recipe_arm(scale.students[0], recipe, seed) for recipe in FAMILIES[family])]


def levels(scales: dict[str, Scale], seed: int) -> Iterator[Part]:
    """The levels from short to long and the share of long traces, and another teacher's lowest and highest level."""
    long = scales["long"]
    for level in (2, 3):
        between = replace(long, long=traces_of(f"svamp_llama_level{level}"))
        yield between, [Arm(long.students[0], f"Llama level {level}", 1.0, seed)]
    gpt = replace(long, long=traces_of("svamp_chatgpt_level6"), short=traces_of("svamp_chatgpt_level1"))
    for scale, teacher, highest, shares in (
        (gpt, "GPT-4o", 6, (0.0, 1.0, 0.2)),
        (long, "Llama", 4, (0.0, 1.0, 0.1, 0.2, 0.4, 0.6, 0.8)),
    ):
        names = {0.0: f"{teacher} level 1", 1.0: f"{teacher} level {highest}"}
        yield scale, [Arm(long.students[0], names.get(a, f"{teacher} share {a:g}"), a, seed) for a in shares]


def gsm8k(scales: dict[str, Scale], seed: int) -> Iterator[Part]:
    """Levels 2 and 1 of Llama 3 70B on GSM8K, four seeds."""
    sets = {"long": traces_of("gsm8k_llama_level2"), "short": traces_of("gsm8k_llama_level1")}
    scale = replace(scales["long"], **sets, benchmarks=("gsm8k", "svamp"))
    student = scale.students[0]
    arms = untouched_arms(scale, [student]) if not seed else []
    if seed < 4:
        yield scale, [*arms, *(recipe_arm(student, recipe, seed) for recipe in FAMILIES["long"])]


STAGES = {"rates": None, "svamp": svamp, "levels": levels, "gsm8k": gsm8k}


def traces_of(name: str) -> TraceSet:
    return TraceSet(f"{name}.jsonl", answer_format="gsm8k")


def save(items: pd.DataFrame, stage: str, out: Path, named: str = "") -> None:
    """Write a stage's tables, in which rows of rates that were not run now stay."""
    name = f"{stage}{named}"
    items = items.assign(student=items["student"].map(shown_name))
    tables = {f"{name}.csv": stats.accuracy_table(items, ["student", "params", "benchmark", "recipe", "lr"])}
    of_rates = items.dropna(subset="lr").groupby("lr")
    rows = [(lr, pd.concat([items[items["lr"].isna()], part])) for lr, part in of_rates]
    gaps_of = level_gaps if stage == "levels" else gaps_and_what_decides_them
    if gaps := [table.assign(lr=lr) for lr, part in rows if len(table := gaps_of(part))]:
        tables[f"{name}_gaps.csv"] = pd.concat(gaps)
    for table in tables.values():
        print(table.round(3).to_string(index=False), flush=True)
    for file, table in (tables | {f"{name}_items.csv.gz": items[KEPT]}).items():
        rounded = table.round({column: 6 for column in table.select_dtypes("number") if column != "lr"})
        write(out / file, pd.concat([rounded, others_rates(out / file, table)]))


def write(path: Path, table: pd.DataFrame) -> None:
    """Whole, as a kill or a full disk would leave a part, and rows of earlier calls would be lost."""
    how = "gzip" if path.suffix == ".gz" else None
    files.replace(path, lambda temporary: table.to_csv(temporary, index=False, compression=how))


def shown_name(student: str) -> str:
    """No path."""
    return Path(student).name.removesuffix(".gguf")


def remember(path: Path, student: str, scales: Sequence[Scale]) -> None:
    """Write which student and which files the tables beside are of, by content; ValueError if they are of others under
    the same names."""
    now = {"student": f"{shown_name(student)} {fingerprint(student, REVISIONS.get(student))}"}
    now |= {name: digest for own in scales for name, digest in scale_files(own).items()}
    before = files.read_json(path) if path.is_file() else {}
    if others := [name for name in now if before.get(name, now[name]) != now[name]]:
        what = f"{', '.join(others)} of other content"
        if "student" in others:
            what = f"another student ({before['student'].split()[0]}), or this from another place"
        raise ValueError(f"{path.parent} is of {what}: give another --out")
    files.replace(path, lambda temporary: temporary.write_text(json.dumps(before | now, indent=2) + "\n"))


def others_rates(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a file has of other rates than a table, or of recipes that it lacks. Raises ValueError if it is of
    another student, or damaged."""
    if not path.is_file():
        return table[:0]
    try:
        before = pd.read_csv(path)
        other = set(before["student"]) - set(table["student"])
        what = [name for name in ("recipe", "contrast", "control") if name in before and name in table]
        keys = [pd.MultiIndex.from_frame(part[[*what, "lr"]].fillna({"lr": 0.0})) for part in (before, table)]
        rest = before[~keys[0].isin(keys[1])]
    except (ValueError, KeyError, OSError, EOFError) as error:  # the last two of a file that was cut
        raise ValueError(
            f"{path} is damaged ({error}): move it away, what the run store holds is written again"
        ) from None
    if other:
        raise ValueError(f"{path} is of {' and '.join(other)}: give another --out")
    return rest


def level_gaps(items: pd.DataFrame) -> pd.DataFrame:
    """Every level and share minus level 1 of the same teacher, over the seeds that both have, all at one rate."""
    rows = []
    for (student, benchmark, recipe), part in items.groupby(["student", "benchmark", "recipe"]):
        minus = f"{recipe.split()[0]} level 1"
        easy = items[items["recipe"].eq(minus) & items["benchmark"].eq(benchmark) & items["seed"].isin(part["seed"])]
        part = part[part["seed"].isin(easy["seed"])]
        if recipe != minus and len(part):
            facts = {"student": student, "params": part["params"].iloc[0], "benchmark": benchmark}
            facts |= {"control": recipe, "minus": minus} | stats.gap(part, easy).columns("delta") | stats.counts(part)
            rows.append(facts | {"problems_for_2_points": problems_for_2_points(part, easy)})
    table = pd.DataFrame(rows)
    return table.astype({"problems_for_2_points": "Int64"}) if rows else table  # where all of level 1 failed


def gaps_and_what_decides_them(items: pd.DataFrame) -> pd.DataFrame:
    """The gaps of every benchmark, those against the untouched student too, and `problems_for_2_points`, all at one
    rate."""
    gaps = stats.gap_table(items, by_benchmark=True)
    of = dict(tuple(items.groupby(["student", "benchmark", "recipe"], sort=False)))
    pairs = [
        (of[row.student, row.benchmark, stats.CONTRASTS[row.contrast][0]], of[row.student, row.benchmark, row.baseline])
        for row in gaps.itertuples()
    ]
    rows = []
    for (student, benchmark, recipe), part in of.items():
        once = of.get((student, benchmark, "untouched"))
        if recipe == "untouched" or once is None:
            continue
        untouched = pd.concat([once.assign(seed=seed) for seed in part["seed"].unique()])  # the same beside every seed
        facts = {"student": student, "params": part["params"].iloc[0], "benchmark": benchmark}
        facts |= {"contrast": f"{recipe}-untouched", "baseline": "untouched"}
        rows.append(facts | stats.gap(part, untouched).columns("delta") | stats.counts(part))
        pairs.append((part, untouched))
    needed = [problems_for_2_points(left, right) for left, right in pairs]
    table = pd.concat([gaps, pd.DataFrame(rows)], ignore_index=True)
    return table.assign(problems_for_2_points=pd.array(needed, dtype="Int64"))


def problems_for_2_points(left: pd.DataFrame, right: pd.DataFrame) -> int | None:
    """Test problems that, with these seeds, tell a difference of 2 points from 0 in four of five studies (at 5%); None
    where the seeds alone differ too much: no number of problems takes that away."""
    found = stats.gap(left, right)
    answers = (stats.replicates(left) - stats.replicates(right)).to_numpy(float).T  # [problems, seeds]
    n, n_seeds = answers.shape
    of_seeds = 0.0
    if n_seeds > 1:
        rest = answers - answers.mean(0) - answers.mean(1, keepdims=True) + answers.mean()
        of_rest = (rest**2).sum() / ((n - 1) * (n_seeds - 1))
        of_seeds = max(0.0, (answers.mean(0).var(ddof=1) - of_rest / n) / n_seeds)
    room = (0.02 / (stdtrit(found.df, 0.975) + stdtrit(found.df, 0.8))) ** 2 - of_seeds
    return math.ceil((found.se**2 - of_seeds) * n / room) if room > 0 else None


if __name__ == "__main__":
    main()
