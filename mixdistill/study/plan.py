"""What a scale would run and what it costs, without the network and before a weight is read: `python -m mixdistill plan gpu`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import PretrainedConfig

from mixdistill.data.students import student_source
from mixdistill.finetuning import memory_model as memory
from mixdistill.finetuning.finetune import FULL_LR, LORA_LR
from mixdistill.runs import runs_dir
from mixdistill.study import costs
from mixdistill.study.hardware import ASSUMED, Gpu, found_gpus, model_config
from mixdistill.study.scales import REVISIONS, Arm, Scale, alpha_arms, control_arms, gap_arms
from mixdistill.study.sweep import n_cores, run_arm, same_work

NEEDS_GPU = 50_000_000  # parameters: larger students are not for a CPU


@dataclass(frozen=True, repr=False)
class Plan:
    """What a scale would run; `print` shows it.

    `students` has one row a student, `traces` one a part with its trace set. `obstacles` says what keeps the scale from running
    on this machine, each with what to do.
    """

    scale: Scale
    gpu: Gpu | None  # None: on the CPU
    n_gpus: int
    found: bool  # the GPUs are here, not assumed
    students: pd.DataFrame
    traces: pd.DataFrame
    n_problems: int  # of all benchmarks
    obstacles: tuple[str, ...]

    def __str__(self) -> str:
        what = [
            "student",
            "parameters",
            "method",
            "commit",
            "trainings",
            "evaluations",
            "training tokens",
            "answer tokens",
        ]
        unneeded = [] if self.gpu else ["training PFLOPs", "decoding PFLOPs", "download GB"]
        tables = [self.traces, self.students[what], self.students.drop(columns=[*what[1:], *unneeded])]
        blocks = [_header(self), *(_table(table) for table in tables), _totals(self), _assumptions(self)]
        if self.obstacles:
            blocks.append("\n".join(["Can not run here:", *(f"- {obstacle}" for obstacle in self.obstacles)]))
        return "\n\n".join(blocks)


def plan(scale: Scale, n_gpus: int | None = None) -> Plan:
    """Count what a scale would run.

    Arguments:
        scale: as `get_scale` gives it, or one of your own.
        n_gpus: plan for so many GPUs; None means those found, or where there are none as many H100 as the scale is meant for.

    Raises ValueError for a student whose configuration is not at hand (`hardware.model_config`), or n_gpus below 1.
    """
    if n_gpus is not None and n_gpus < 1:
        raise ValueError(f"the number of GPUs is {n_gpus}: give at least 1")
    configs, on_cpu = _configs(scale), not _needs_gpu(scale)
    found = found_gpus()
    gpu, n_found = found or (ASSUMED, scale.gpus)
    traces = costs.trace_sizes(scale)
    n_problems = sum(costs.count_problems(name, scale) for name in scale.benchmarks)
    arms = _arms(scale)
    rows, obstacles = [], []
    if not on_cpu and not found:
        obstacles.append("no CUDA GPU: the plan is for assumed ones; `make reproduce`, the pocket world, needs none")
    for student, config in configs.items():
        of_student = [arm for arm in arms if arm.student == student]
        row = costs.count_arms(student, config, of_student, scale, traces, n_problems)
        if on_cpu:
            row["CPU hours"] = costs.cpu_hours(row)
        else:
            gpu_costs, unfit = costs.on_gpus(row, config, scale, n_problems, gpu, n_gpus or n_found)
            row |= gpu_costs
            obstacles += unfit
        rows.append(row)
    students = pd.DataFrame(rows)
    obstacles += _disk_obstacles(students)
    return Plan(
        scale, None if on_cpu else gpu, n_gpus or n_found, bool(found), students, traces, n_problems, tuple(obstacles)
    )


def check_machine(scale: Scale) -> None:
    """Show the plan of a scale of real models, and refuse the scale where this machine can not run it.

    Pocket students run everywhere, and what the run store holds whole is only read, which needs no GPU.

    Raises ValueError with every reason and what to do: no GPU, one that is too small, too little disk, students that are
    neither in the cache nor to be had from the Hub.
    """
    if not _needs_gpu(scale) or _all_stored(scale):
        return
    made = plan(scale)
    print(f"{made}\n", flush=True)
    reasons = [*made.obstacles, *_access_obstacles(scale)]
    if reasons:
        listed = "\n".join(f"- {reason}" for reason in reasons)
        raise ValueError(f"the scale {scale.name!r} can not run on this machine:\n{listed}")


def _arms(scale: Scale) -> list[Arm]:
    """What the notebooks run, each piece of work once; the untouched students first."""
    arms = [*gap_arms(scale), *alpha_arms(scale, scale.alpha_student, scale.alphas), *control_arms(scale)]
    return list({same_work(arm): arm for arm in arms}.values())


def _all_stored(scale: Scale) -> bool:
    try:
        return all(run_arm(arm, scale, stored_only=True) is not None for arm in _arms(scale))
    except ValueError:  # a student or data set that is not here: then the plan says what is missing
        return False


def _configs(scale: Scale) -> dict[str, PretrainedConfig]:
    return {student: model_config(student, REVISIONS.get(student)) for student in scale.students}


def _needs_gpu(scale: Scale) -> bool:
    return any(memory.model_size(config).total >= NEEDS_GPU for config in _configs(scale).values())


def _disk_obstacles(students: pd.DataFrame) -> list[str]:
    cache, runs = Path(constants.HF_HUB_CACHE), runs_dir()
    stored = sum(path.stat().st_size for path in runs.rglob("*") if path.is_file()) / 1e9
    to_store = max(0.0, students["runs GB"].sum() - stored)
    needed = {"weights": (cache, students["download GB"].sum()), "runs": (runs, to_store)}
    if _device(cache) == _device(runs):
        needed = {"weights and runs": (runs, sum(gigabytes for _, gigabytes in needed.values()))}
    obstacles = []
    for what, (folder, gigabytes) in needed.items():
        free = shutil.disk_usage(_existing(folder)).free / 1e9
        if gigabytes > free:
            obstacles.append(
                f"disk: {what} take {gigabytes:.0f} GB and {free:.0f} GB are free: make room, point HF_HOME and MIXDISTILL_RUNS to "
                "a larger disk, or take fewer seeds or students"
            )
    return obstacles


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _device(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _access_obstacles(scale: Scale) -> list[str]:
    """The students that are not in the cache and that the Hub does not give us."""
    obstacles = []
    for student in scale.students:
        if Path(student_source(student)).is_dir() or costs.cached(student):
            continue
        try:
            HfApi().auth_check(student)
        except GatedRepoError:
            obstacles.append(
                f"{student} is gated: accept its licence at https://huggingface.co/{student}, then `hf auth login`"
            )
        except RepositoryNotFoundError:
            obstacles.append(f"{student}: the Hub has no such model, or hides it: check the name, or `hf auth login`")
        except Exception as error:  # no network, HF_HUB_OFFLINE, or the Hub is down: each has its own
            obstacles.append(
                f"{student} is not in the cache and the Hub can not be reached ({type(error).__name__}): connect this machine, or "
                f"copy the cache of one that has run `hf download {student}`"
            )
    return obstacles


def _header(made: Plan) -> str:
    scale, where = made.scale, f"{n_cores()} CPU cores"
    if made.gpu is not None:
        assumed = "" if made.found else " (assumed)"
        where = f"{made.n_gpus} x {made.gpu.name}, {made.gpu.memory / 1e9:.0f} GB{assumed}"
    rate = f"{LORA_LR:g}" + (f" with LoRA, {FULL_LR:g} without" if scale.full else "")
    if scale.lr or scale.pocket:
        rate = f"{scale.lr:g}" if scale.lr else "the student's own"
    length = f"at most {scale.max_tokens:,} tokens" if scale.max_tokens else "the student's context"
    longer = "refuses" if scale.too_long == "error" else "leaves out and counts"
    answer = f"at most {scale.max_new_tokens:,} new tokens" if scale.max_new_tokens else "what the context leaves"
    return (
        f"Scale {scale.name} on {where}; seeds: {scale.n_seeds}\n"
        f"Recipes: {', '.join(scale.recipes)}; alpha {', '.join(f'{alpha:g}' for alpha in scale.alphas)} with {scale.alpha_student}\n"
        f"Training: epochs {scale.epochs}, batch {scale.batch_size}, learning rate {rate}, {length} an example; {longer} longer ones\n"
        f"Evaluation: {', '.join(scale.benchmarks)}: {made.n_problems:,} problems, greedy, {answer}"
    )


def _totals(made: Plan) -> str:
    students = made.students
    lines = [
        f"Total: {students['trainings'].sum()} trainings and {students['evaluations'].sum()} evaluations, "
        f"{_short(students['training tokens'].sum())} training tokens, {_short(students['answer tokens'].sum())} answer tokens, "
        f"{students['training PFLOPs'].sum() + students['decoding PFLOPs'].sum():,.3g} PFLOPs"
    ]
    if made.gpu is None:
        hours = students["CPU hours"].sum()
        lines.append(
            f"Time: {60 * hours:.1f} core-minutes, about {60 * hours / n_cores():.1f} minutes on {n_cores()} cores, and a minute for the notebooks"
        )
    else:
        hours = students["GPU hours"].sum()
        lines.append(f"Time: {hours:,.0f} GPU-hours, at least {hours / 24 / made.n_gpus:,.1f} days on these GPUs")
    download, runs = students["download GB"].sum(), students["runs GB"].sum()
    lines.append(
        f"Disk: {download:.1f} GB of weights to download, {runs:.1f} GB of runs (adapters or weights, and all answers)"
    )
    return "\n".join(lines)


def _assumptions(made: Plan) -> str:
    """What the numbers rest on, and where the scale leaves the rule that arms share everything."""
    scale = made.scale
    lines = [f"an answer is as long as the traces it was trained on, {costs.AT_LIMIT:.0%} run to the limit"]
    if made.gpu is None:
        lines.append("speeds are those of the x86 core with AVX-512 that they were fitted on")
    else:
        lines += [
            f"training and prefill at {costs.UTILISATION:.0%} of the GPU's dense bf16 peak, decoding at "
            f"{costs.BANDWIDTH_UTILISATION:.0%} of its bandwidth with at most {costs.IN_FLIGHT} answers in flight: an engine such as "
            "vLLM; uneven lengths, small batches and loading are not counted, and nothing of it was measured: a lower bound",
            "memory as in mixdistill.finetuning.memory_model, with the longest example in a pass; decoding GB holds one "
            "answer at the limit, or as many of mean length as fit",
        ]
    if set(made.traces["basis"]) - {"counted"}:
        lines.append(
            f"traces from published or file sizes at {costs.BYTES_PER_TOKEN} bytes a token; long from its card, the others estimated; "
            "a problem that only one of two teachers solved is left out (`mix` counts them)"
        )
    pinned = list(made.traces["commit"]) + list(made.students["commit"])
    if "not pinned" in pinned:
        lines.append("not pinned: the commit or text found at run time is recorded in the fingerprint of every run")
    if scale.full and set(scale.full) != set(scale.students):
        lines.append(
            "not all arms share their method: as in the paper, some students train all weights and the larger ones LoRA, at another "
            "rate; a gap is always between arms of one student, but its course over sizes crosses that change"
        )
    gated = [student for student in scale.students if student.startswith("meta-llama/")]
    if gated:
        lines.append(
            f"{len(gated)} Llama students are gated: accept their licences on the Hub and `hf auth login` before the run"
        )
    lines.append("arms that the run store holds already are read, not run again")
    return "\n".join(["Assumed:", *(f"- {line}" for line in lines)])


def _table(rows: pd.DataFrame) -> str:
    return rows.map(lambda value: value if isinstance(value, str) else _short(value)).to_string(index=False)


def _short(number: float) -> str:
    if number >= 100_000:
        size, letter = next(pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if number >= pair[0])
        return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.2g}"
