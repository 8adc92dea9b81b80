"""What a scale would run and what it costs: `python -m mixdistill plan --scale gpu`. Reads no weight, loads nothing."""

import os
import re
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pandas as pd
import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError

from mixdistill.arguments import instance
from mixdistill.data.chat import stop_token_id
from mixdistill.data.pocket.bases import POCKET_BASES
from mixdistill.data.problems import BENCHMARKS, HUB
from mixdistill.data.student_files import PICKLED, REVISIONS, WEIGHTS, refused
from mixdistill.data.students import load_tokenizer, n_params, student_source
from mixdistill.data.tables import FILES, local_path, of_pocket
from mixdistill.runs import read_json, runs_dir
from mixdistill.study.scales import (
    Arm,
    ProblemSet,
    Scale,
    TraceSet,
    alpha_arms,
    control_arms,
    gap_arms,
    source_of,
)
from mixdistill.study.sweep import MANY, evaluation_problems, run_arm, same_work, taught, trace_set
from mixdistill.study.workers import n_cores

ABLATIONS = ("unverified", "confirmed", "direct")  # the controls that all students of a study get
NEEDS_GPU = 600_000_000  # parameters: larger students are not for a CPU
# FLOP/s, where nothing was measured: an H100 at 40% of its dense bfloat16 peak; one CPU core with tiny students.
GPU_RATE, CORE_RATE = 4e14, 1e10
BYTES_PER_TOKEN = 3.3  # of mathematical English
# Sizes of what lies on the Hub: problems of a benchmark; examples of a trace set, and bytes of each with its problem.
N_PROBLEMS = dict(math=5000, math500=500, gsm8k=1319, svamp=300, amc23=40, aime24=30, olympiadbench=674)
GATED = ("meta-llama/", "google/gemma")  # students whose licence the Hub asks for
TRACES = {
    "UWNSL/MATH_training_split_long_cot": (5383, 4153),  # by its card
    "svamp_llama_level4.jsonl": (657, 549),  # those of the scale laptop as they were counted
    "svamp_llama_level1.jsonl": (657, 241),
    "svamp_gpt35.jsonl": (425, 527),
    "svamp_flant5large.jsonl": (425, 412),
}
OTHER_TRACES = (5000, 1300)  # our estimate


@dataclass(frozen=True, repr=False)
class Plan:
    """What a scale would run, one row a student, and what keeps it from running here; `print` shows it."""

    scale: Scale
    students: pd.DataFrame
    machine: str
    obstacles: tuple[str, ...]
    guessed: tuple[str, ...] = ()  # trace sets and tests that are no files here
    taught: tuple[str, ...] = ()  # what is said of questions that are trained on and asked

    def __str__(self) -> str:
        total = self.students.sum(numeric_only=True)
        pocket = self.scale.pocket
        which = "02 to 05 (reproduce leaves 05 to --notebooks all)" if pocket else "02, 03 and 06 (--notebooks all)"
        lines = [
            f"Scale {self.scale.name}: seeds {self.scale.n_seeds}, recipes {', '.join(self.scale.recipes)}, alpha of "
            f"{self.scale.alpha_student} {', '.join(f'{alpha:g}' for alpha in self.scale.alphas)}\n",
            self.students.to_string(index=False, float_format="{:,.3g}".format, na_rep="-") + "\n",
            f"Notebooks {which}: {total['trainings']:.0f} trainings, "
            f"{total['evaluations']:.0f} evaluations, {total['hours']:.2g} hours on {self.machine}, "
            f"{total['download GB']:.0f} GB of weights to download, {total['runs GB']:.1f} GB of runs.",
            f"Hours: 6ND FLOPs (4ND with LoRA, 2ND for answers) at {GPU_RATE:.0e} FLOP/s a GPU, {CORE_RATE:.0e} a "
            "core, or as fast as the runs trained that the store holds. Decoding on a GPU takes longer than that.",
            "What the store holds is read and not run again.",
        ]
        if self.guessed:
            lines += [f"Sizes, and so the hours, are guessed of what is no file here: {', '.join(self.guessed)}."]
        lines += self.taught
        return "\n".join([*lines, *(f"It can not run here: {obstacle}" for obstacle in self.obstacles)])


def plan(scale: Scale, arms: Sequence[Arm] = ()) -> Plan:
    """Count what a scale, or these arms of it, would run, and look for what keeps it from running on this machine.
    Raises ValueError for a student whose size can not be known without a download."""
    instance("scale", scale, Scale)
    arms, gpus, speeds, rows = arms or all_arms(scale), torch.cuda.device_count(), _measured(), []
    # An untouched student needs no traces, but its answers are taken to be as long. What a scale lacks, running says.
    sides = dict.fromkeys(part for arm in arms for part in (arm.hard, arm.easy))
    traces = {part: _examples(made, scale) for part in sides if (made := getattr(scale, part))}
    learnt = {part for arm in arms if arm.alpha is not None for part in (arm.hard, arm.easy)}
    parts = [part for part in traces if part in learnt]
    n_problems = sum(_n_problems(name, scale) for name in scale.benchmarks)
    sizes = {student: _size(student) for student in dict.fromkeys(arm.student for arm in arms)}
    on_gpus = gpus > 0 or max(size for size, _ in sizes.values()) >= NEEDS_GPU  # all students of a scale
    if on_gpus and not gpus:  # what a CPU measured says nothing of the GPU that is needed
        speeds, gpus = speeds.iloc[:0], 1
    for student, (size, here) in sizes.items():
        full = student in scale.full
        own = [arm for arm in arms if arm.student == student]
        trained = [(a, a.alpha) for a in own if a.alpha is not None and {a.hard, a.easy} <= traces.keys()]
        lengths = [alpha * traces[arm.hard][1] + (1 - alpha) * traces[arm.easy][1] for arm, alpha in trained]
        ns = [min(traces[arm.hard][0], traces[arm.easy][0], arm.n_train or 10**9) for arm, _ in trained]
        examples = [n * (arm.epochs or scale.epochs) for n, (arm, _) in zip(ns, trained, strict=True)]
        tokens = sum(length * times for length, times in zip(lengths, examples, strict=True))
        n_evaluations, lengths = len(own), lengths or [length for _, length in traces.values()]
        mean = sum(lengths) / max(1, len(lengths))
        answers = n_problems * n_evaluations * mean  # as long as the traces that a student learns
        rate = gpus * GPU_RATE if on_gpus else n_cores() * CORE_RATE
        at_a_time = n_cores() if not on_gpus else gpus if size < MANY else 1  # arms
        speed = speeds[student] * at_a_time if student in speeds else rate / ((6 if full else 4) * size)
        row = {"student": student, "parameters": size, "trains": "all weights" if full else "LoRA"}
        row["gated"] = "yes" if student.startswith(GATED) else "no"
        row |= {"trainings": len(trained), "evaluations": n_evaluations}
        row |= {"training tokens": tokens, "answer tokens": answers, "measured tokens/s": speeds.get(student)}
        row["hours"] = (tokens / speed + 2 * size * answers / rate) / 3600
        # A checkpoint has what is trained and its two moments in float32, and lies beside the next for a moment.
        kept = len(trained) * size * (4 if full else 0.04)
        checkpoints = bool(trained) * 2 * size * (12 if full else 0.12)
        row["runs GB"] = (kept + checkpoints + answers * BYTES_PER_TOKEN) / 1e9
        row["download GB"] = 0.0 if here else 2 * size / 1e9
        rows.append(row)
    students = pd.DataFrame(rows)
    machine = f"{gpus} GPU{'s' * (gpus > 1)}" if on_gpus else f"{n_cores()} CPU cores"
    sets = [getattr(scale, part).source for part in traces]
    sets = [name for name in (*sets, *map(source_of, scale.benchmarks)) if name not in TRACES | N_PROBLEMS]
    guessed = sorted({name for name in sets if not of_pocket(name) and not _here(name)})
    return Plan(
        scale, students, machine, tuple(_obstacles(scale, students, parts)), tuple(guessed), _taught(arms, scale)
    )


def check_machine(scale: Scale, arms: Sequence[Arm] = ()) -> None:
    """Refuse a scale, or arms of it, that this machine can not run, but for what the run store holds: reading needs no
    GPU, and no more of the disk. Raises ValueError with every reason and what to do."""
    made = plan(scale, arms)
    if not made.obstacles:
        return
    with suppress(ValueError):  # a student or data set that is not here: the plan says what is missing
        lacking = [arm for arm in arms or all_arms(scale) if run_arm(arm, scale, stored_only=True) is None]
        if not lacking or not (made := plan(scale, lacking)).obstacles:
            return
    print(f"{replace(made, obstacles=())}\n", flush=True)  # they are in the error
    listed = "\n".join(f"- {obstacle}" for obstacle in made.obstacles)
    raise ValueError(f"the scale {scale.name!r} can not run on this machine:\n{listed}")


def all_arms(scale: Scale, controls: Sequence[str] = ABLATIONS) -> list[Arm]:
    """What notebooks 02 to 05 run, each piece of work once; the traces of 06 and the controls of 07 are made there."""
    arms = [*gap_arms(scale), *alpha_arms(scale, scale.alpha_student, scale.alphas), *control_arms(scale, *controls)]
    return list({same_work(arm): arm for arm in arms}.values())


def _examples(traces: TraceSet, scale: Scale) -> tuple[int, float]:
    """Examples of a trace set, and their mean tokens; in the pocket world, where a word is one, of the first 100."""
    pocket = traces.source.startswith("pocket/")
    if not pocket and not local_path(traces.source).exists():
        n, size = TRACES.get(traces.source, OTHER_TRACES)
        return min(n, scale.n_train or n), size / BYTES_PER_TOKEN
    rows = trace_set(traces, min(100, scale.n_train or 100) if pocket else scale.n_train, 0)
    texts = [f"{row['question']} {row['response']}" for row in rows]
    tokens = [len(text.split()) + 3 if pocket else len(text.encode()) / BYTES_PER_TOKEN for text in texts]
    return scale.n_train if pocket and scale.n_train else len(rows), sum(tokens) / len(tokens)


def _taught(arms: Sequence[Arm], scale: Scale) -> tuple[str, ...]:
    """`taught` of the traces and the test files of one's own that are here."""
    here = [arm for arm in arms if all((of := getattr(scale, p)) and _here(of.source) for p in (arm.hard, arm.easy))]
    own = [name for name in scale.benchmarks if source_of(name) not in BENCHMARKS and _here(source_of(name))]
    form = scale.answer_format
    tests = [problem for name in own for problem in evaluation_problems(name, scale.n_problems, None, form)]
    return tuple(taught(here, scale, tests))


def _here(source: str) -> bool:
    return not of_pocket(source) and local_path(source).exists()


def _n_problems(benchmark: str | ProblemSet, scale: Scale) -> int:
    source = source_of(benchmark)
    if source.startswith("pocket/") or (source not in BENCHMARKS and local_path(source).exists()):
        return len(evaluation_problems(benchmark, scale.n_problems, None, scale.answer_format))
    return min(N_PROBLEMS.get(source, 1000), scale.n_problems or 10**9)


def _measured() -> pd.Series:
    """Tokens a second of training by student, over the finished runs of the store that were not all start-up."""
    size_of = {base: size for size, bases in POCKET_BASES.items() for base in bases}
    found = []
    for path in runs_dir().glob("*/manifest.json"):
        with suppress(ValueError, OSError):  # a run that is damaged, or another user's, says nothing of speed
            found.append(read_json(path.with_name("config.json")) | read_json(path))
    runs = pd.DataFrame(found, columns=["student", "tokens", "seconds"]).query("tokens > 100_000")
    sums = runs.groupby(runs["student"].replace(size_of))[["tokens", "seconds"]].sum()
    return sums["tokens"] / sums["seconds"].clip(lower=1)


def _size(student: str) -> tuple[int, bool]:
    """Parameters, by the configuration if it is here, otherwise as the name says; and whether the weights are here."""
    revision, local = REVISIONS.get(student), Path(student_source(student)).exists()
    names = ("config.json", "model.safetensors", "model.safetensors.index.json")
    config, *weights = (local or isinstance(try_to_load_from_cache(student, n, revision=revision), str) for n in names)
    if config:
        return n_params(student, revision), any(weights)
    if said := re.search(r"(\d+(?:\.\d+)?)([BM])\b", student, re.IGNORECASE):
        return int(float(said[1]) * {"B": 1e9, "M": 1e6}[said[2].upper()]), False
    what = f"how large is {student!r}? There is no such folder here"
    raise ValueError(f"{what}; of a student on the Hub, run `hf download {student} config.json` first")


def _obstacles(scale: Scale, students: pd.DataFrame, parts: Collection[str]) -> list[str]:
    """What keeps these students from running on this machine, each with what to do."""
    files_only = {name: made.file.format(split="test") for name, made in BENCHMARKS.items() if name not in HUB}
    tests = [source_of(benchmark) for benchmark in scale.benchmarks]
    sets = [getattr(scale, part).source for part in parts]
    own = [source for source in tests if source not in BENCHMARKS] + sets
    sources = [files_only[source] for source in tests if source in files_only]
    sources += [name for name in own if not of_pocket(name) and (name.endswith(FILES) or name.count("/") != 1)]
    missing = [source for source in sources if not local_path(source).exists()]
    unset = "" if os.environ.get("MIXDISTILL_DATA") else ", which is not set"
    found = [f"there is no file {name!r}: put it into the folder $MIXDISTILL_DATA{unset}" for name in missing]
    for student in students["student"]:
        if not of_pocket(student) and Path(student_source(student)).exists():
            folder = Path(student_source(student))
            try:
                if folder.is_dir() and not any(file for kind in WEIGHTS for file in folder.glob(kind)):
                    raise refused(student, PICKLED)
                stop_token_id(load_tokenizer(student))  # by its chat template
            except ValueError as error:
                found.append(str(error))
    if students["parameters"].max() >= NEEDS_GPU and not torch.cuda.device_count():
        found.append("there is no CUDA GPU: take a smaller scale, such as pocket, which needs none")
    needs = {"HF_HOME": (Path(constants.HF_HUB_CACHE), "download GB"), "MIXDISTILL_RUNS": (runs_dir(), "runs GB")}
    disks: dict[int, float] = {}
    for variable, (folder, column) in needs.items():
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        disk, free = existing.stat().st_dev, shutil.disk_usage(existing).free / 1e9
        disks[disk] = needed = disks.get(disk, 0.0) + students[column].sum()
        if needed > free:
            found.append(f"disk: {needed:.0f} GB are needed and {free:.0f} free: point {variable} to a larger disk")
    asked = [(name, "model", "") for name in students[students["download GB"] > 0]["student"]]
    data = os.environ.get("MIXDISTILL_DATA")
    for source in (source for source in tests if source in HUB):
        file = BENCHMARKS[source].file.format(split="test")
        if not (data and Path(data, file).expanduser().is_file()):
            asked.append((HUB[source][0], "dataset", f", or put {file!r} into the folder $MIXDISTILL_DATA"))
    asked += [(source, "dataset", "") for source in own if not of_pocket(source) and source not in missing]
    for name, kind, other in dict.fromkeys(asked):
        if kind == "dataset" and (local_path(name).exists() or _was_loaded(name)):
            continue
        try:
            HfApi().auth_check(name, repo_type=kind)
        except GatedRepoError:
            found.append(f"{name} is gated: accept its licence at https://huggingface.co/{name}, `hf auth login`")
        except Exception as error:  # no such model, no network, HF_HUB_OFFLINE, the Hub is down: each has its own
            reason = f"neither here nor in the cache, and the Hub does not give it ({type(error).__name__})"
            found.append(f"{name}: {reason}: check name and network, or copy the cache of another machine{other}")
    return found


def _was_loaded(dataset: str) -> bool:
    """Whether `datasets` has a Hub data set in its cache, whose folders have names of a spelling of their own."""
    wanted = re.sub(r"\W|_", "", dataset).lower()
    folders = Path(datasets.config.HF_DATASETS_CACHE).glob("*___*")
    return any(re.sub(r"\W|_", "", folder.name).lower() == wanted for folder in folders)
