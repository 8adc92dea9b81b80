"""A set of arms -> one table of graded items. What the run store has is read; the rest is trained and evaluated."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any, overload

import pandas as pd
import torch
from datasets import Dataset

from mixdistill import files
from mixdistill.arguments import instance, whole
from mixdistill.data.mix import mix
from mixdistill.data.problems import Problem, load_problems
from mixdistill.data.students import TINY, n_params
from mixdistill.data.tables import local_path
from mixdistill.data.traces import load_traces
from mixdistill.finetuning.finetune import LoRA, finetune
from mixdistill.finetuning.memory import Placement
from mixdistill.results.evaluate import Scores, evaluate, untouched
from mixdistill.runs import Run
from mixdistill.study import cluster
from mixdistill.study.jobs import Job, Progress
from mixdistill.study.scales import REVISIONS, Arm, Scale, TraceSet
from mixdistill.study.workers import in_processes

STOPPED = "stopped: what was finished is stored, the same call goes on from there"
LACKING = "it has run, and this machine's run store lacks it: all machines need one that they share"
MANY = 4 * 10**9  # parameters, from which an arm takes all GPUs of a machine


def sweep(
    arms: Iterable[Arm], scale: Scale, split: str | None = None, workers: int | None = None, on: str = "local"
) -> pd.DataFrame:
    """Train and evaluate every arm that the run store lacks, and return the graded items of all.

    An arm that fails stops no other: the error comes when all the others are stored. An arm that another process works
    on, of this machine or of another that shares the store, is looked at again at the end: the same call on several
    machines divides the work.

    Arguments:
        workers: arms at a time on this machine, each in a process with one thread. None: as many as there are cores;
            or one a GPU, and of large students one at a time on all GPUs.
        on: `local`; or `ray`, the Ray cluster that this machine is in, or `ray://HEAD:10001`, one that it is not in
            (docs/cluster.md).

    Returns: one row an arm, problem and sample: `evaluate.Scores.items` and student, params, recipe, alpha, base, seed.

    Raises:
        ValueError: there are no arms, or an arm's student, benchmark or data is unknown; before anything is trained.
        RuntimeError: arms failed; says which, and why the first did.
    """
    arms = [instance("an arm", arm, Arm) for arm in instance("arms", arms, Iterable)]
    scores, failed = run_arms(arms, scale, split, workers, on)
    if failed:
        first = next(arm for arm in arms if same_work(arm) in failed)
        error = failed[same_work(first)]
        raise RuntimeError(
            f"{len(failed)} of {len(failed) + len(scores)} arms failed; the first, {name_of(first)}: {error}. "
            "The others are stored: mend the cause and run again"
        ) from error
    return pd.concat([arm_items(arm, scale, scores[same_work(arm)].items) for arm in arms], ignore_index=True)


def run_arms(
    arms: Sequence[Arm], scale: Scale, split: str | None = None, workers: int | None = None, on: str = "local"
) -> tuple[dict[tuple, Scores], dict[tuple, BaseException]]:
    """Run what the store lacks, as `sweep` says; returns the scores, and the errors of what failed, by `same_work`."""
    workers, on = whole("workers", workers, optional=True), cluster.check_place(on)
    instance("scale", scale, Scale)
    if not arms:
        raise ValueError("there are no arms to run: give at least one, such as those of gap_arms(scale)")
    # The same training under two names (alpha=0 and short) is one piece of work.
    work = {same_work(arm): arm for arm in arms}
    stored = {key: run_arm(arm, scale, split, stored_only=True) for key, arm in work.items()}
    scores = {key: found for key, found in stored.items() if found is not None}
    jobs = {_job(arm, scale, split): key for key, arm in work.items() if key not in scores}
    print(f"{len(work)} arms: {len(scores)} in the run store, {len(jobs)} to run", flush=True)
    failed = {jobs[job]: error for job, error in run_all([*jobs], workers, on).items()}
    for key in jobs.values():
        found = None if key in failed else run_arm(work[key], scale, split, stored_only=True)
        if found is not None:
            scores[key] = found
        elif key not in failed:
            failed[key] = RuntimeError(LACKING)
    return scores, failed


def run_all(jobs: Sequence[Job], workers: int | None = None, on: str = "local") -> dict[Job, BaseException]:
    """Run the jobs, the long ones first, and show how they go; returns the errors of those that failed.

    A job that another process holds is looked at again when all others have ended.

    Arguments:
        workers: jobs at a time on this machine; None: one a GPU, or without any one a core.
        on: `local`, or the Ray cluster as in `cluster.in_ray`.
    """
    waiting = sorted(jobs, key=lambda job: -job.cost)
    failed: dict[Job, BaseException] = {}
    try:
        with closing(Progress(waiting)) as shown:
            for patient in (False, True):
                todo = [*waiting]
                local = in_processes(todo, patient, shown, workers)
                with closing(local if on == "local" else cluster.in_ray(todo, patient, shown, on)) as ends:
                    for job, said, error in ends:
                        if isinstance(error, files.Held):
                            shown.say(f"{job.name}: {error}; looked at again at the end")
                            continue
                        waiting.remove(job)
                        failed |= {job: error} if error else {}
                        shown.ended(job, f"FAILED: {error}" if error else said)
    except KeyboardInterrupt:
        print(STOPPED, flush=True)
        raise KeyboardInterrupt(STOPPED) from None
    return failed


@overload
def run_arm(arm: Arm, scale: Scale, split: str | None = None) -> Scores: ...
@overload
def run_arm(arm: Arm, scale: Scale, split: str | None = None, *, stored_only: bool) -> Scores | None: ...
def run_arm(arm: Arm, scale: Scale, split: str | None = None, stored_only: bool = False) -> Scores | None:
    """Train (unless untouched) and evaluate one arm; with `stored_only` just read it, None if the store lacks it.

    Raises ValueError for an unknown student, benchmark or trace set.
    """
    run = trained(arm, scale, stored_only)
    if run is None:
        return None
    problems = [evaluation_problems(name, scale.n_problems, split) for name in scale.benchmarks]
    shown = _shows_progress()
    return evaluate(run, problems, max_new_tokens=scale.max_new_tokens, progress=shown, stored_only=stored_only)


def trained(arm: Arm, scale: Scale, stored_only: bool = False) -> Run | None:
    """The student of an arm, trained unless it is the untouched one, as a run; None as in `run_arm`."""
    base, revision = scale.base(arm), REVISIONS.get(arm.student)
    if arm.alpha is None:
        return untouched(base, revision)
    return finetune(
        base,
        training_set(arm, scale),
        lora=None if arm.student in scale.full else LoRA(r=scale.lora_rank),
        lr=arm.lr or scale.lr,
        epochs=arm.epochs or scale.epochs,
        batch_size=scale.batch_size,
        max_tokens=scale.max_tokens,
        too_long=scale.too_long,
        seed=arm.seed,
        revision=revision,
        on=Placement(gpus=1 if n_params(base, revision) < MANY else max(1, torch.cuda.device_count())),
        progress=_shows_progress(),
        stored_only=stored_only,
    )


def _shows_progress() -> bool:
    return torch.cuda.is_available() and not sys.stdout.isatty()  # where the sweep has its bar


def training_set(arm: Arm, scale: Scale) -> Dataset:
    """The mix that trains an arm.

    In the pocket world a seed draws the problems, where the long teacher begins, the mix, and the base. Published sets
    and files hold one trace a problem: there a seed draws only which problems get the hard trace, and nothing of the
    data where alpha is 0 or 1. (In every world `finetune` also draws first adapter weights and the order of examples.)

    Raises ValueError if the scale has no trace set for a part.
    """
    hard, easy = getattr(scale, arm.hard), getattr(scale, arm.easy)
    missing = [part for part, traces in ((arm.hard, hard), (arm.easy, easy)) if traces is None]
    if missing:
        raise ValueError(
            f"the scale {scale.name!r} has no trace set for {' and '.join(missing)}, which {arm.recipe!r} needs: "
            f"use one of {', '.join(scale.recipes)}, or give it one with replace(scale, {missing[0]}=TraceSet(...))"
        )
    n_train = arm.n_train or scale.n_train
    made = _kept(_mixed, _stamp(hard.source, easy.source), hard, easy, arm.alpha, n_train, arm.seed)
    if arm.n_train and len(made) < arm.n_train:
        raise ValueError(f"n_train is {arm.n_train}: there are traces of {len(made)} problems, ask for no more")
    return made


def trace_set(traces: TraceSet, n: int | None, seed: int) -> Dataset:
    """The traces that play a part at a scale, such as `scale.long`; of files the first `n`, None means all."""
    instance("traces", traces, TraceSet)
    return _kept(_traces, _stamp(traces.source), traces, n, seed)


def evaluation_problems(benchmark: str, n: int | None, split: str | None) -> list[Problem]:
    """`load_problems`, read once as long as nothing on disk changes."""
    stamp = _stamp(benchmark, os.environ.get("MIXDISTILL_DATA", ""))
    return _kept(load_problems, stamp, benchmark, n=n, split=split)


@lru_cache(maxsize=256)
def _kept(read: Callable[..., Any], stamp: tuple, *arguments: Any, **options: Any) -> Any:
    """What has been read before; with another stamp it is read again."""
    return read(*arguments, **options)


def _stamp(*sources: str) -> tuple:
    """Sizes and times of local files and of those in folders; empty for what is not on disk."""
    paths = [local_path(source) for source in sources if source]
    found = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino) for file in found for stat in [file.stat()])


def _mixed(hard: TraceSet, easy: TraceSet, alpha: float, n: int | None, seed: int) -> Dataset:
    return mix(trace_set(hard, n, seed), trace_set(easy, n, seed), alpha, seed)


def _traces(traces: TraceSet, n: int | None, seed: int) -> Dataset:
    if traces.source.startswith("pocket/"):
        return load_traces(traces.source, n=n, seed=seed)
    return load_traces(
        traces.source,
        n=n,
        columns={"question": traces.question, "response": traces.response},
        answer_format=traces.answer_format,
        unusable=traces.unusable,
        revision=traces.revision,
    )


def same_work(arm: Arm) -> tuple:
    """What an arm trains, whatever its recipe is called: equal for alpha=0 and short."""
    if arm.alpha is None:
        return arm.student, None, arm.seed
    own = (arm.lr, arm.epochs, arm.n_train) if arm.lr or arm.epochs or arm.n_train else ()
    return arm.student, arm.alpha, arm.seed, arm.hard, arm.easy, *own


def name_of(arm: Arm) -> str:
    own = {"lr": arm.lr, "epochs": arm.epochs, "n_train": arm.n_train}
    chosen = [f" {name} {value:g}" for name, value in own.items() if value is not None]
    return f"{arm.student} {arm.recipe} seed {arm.seed}{''.join(chosen)}"


def _job(arm: Arm, scale: Scale, split: str | None) -> Job:
    size = n_params(arm.student, REVISIONS.get(arm.student))
    # Longer traces take longer; the time of tiny students grows less than their size.
    cost = size ** (0.6 if size < TINY else 1) * (0.05 if arm.alpha is None else 0.5 + 0.5 * arm.alpha)
    cost *= arm.n_train / scale.n_train if arm.n_train and scale.n_train else 1
    # Weights, gradients and the optimizer's two moments, in float32; with LoRA the weights only.
    memory = (16 if arm.student in scale.full else 4) * size + 2 * 10**9
    return Job(name_of(arm), _run, (arm, scale, split), cost, memory, wide=size >= MANY)


def _run(arm: Arm, scale: Scale, split: str | None) -> str:
    return f"{run_arm(arm, scale, split).accuracy:.1%} right"


def arm_items(arm: Arm, scale: Scale, items: pd.DataFrame) -> pd.DataFrame:
    """An arm's graded items with the columns that tell it from others."""
    params = n_params(arm.student, REVISIONS.get(arm.student))
    facts: files.Record = {"student": arm.student, "params": params, "recipe": arm.recipe, "alpha": arm.alpha}
    return items.assign(**facts, base=scale.base(arm), seed=arm.seed)
