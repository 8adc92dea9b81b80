"""A set of arms -> one table of graded items. What the run store has is read; the rest is trained and evaluated."""

import os
import time
from collections.abc import Callable, Generator, Iterable
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
from mixdistill.study.scales import REVISIONS, Arm, Scale, TraceSet
from mixdistill.study.workers import End, in_turn, n_cores, side_by_side

STOPPED = "stopped: what was finished is stored, the same call goes on from there"


def sweep(arms: Iterable[Arm], scale: Scale, split: str | None = None, workers: int | None = None) -> pd.DataFrame:
    """Train and evaluate every arm that the run store lacks, and return the graded items of all.

    An arm that fails stops no other: the error comes when all the others are stored. An arm that another process works
    on, of this machine or of another that shares the store, is looked at again at the end.

    Arguments:
        workers: arms that run at a time, each in a process with one thread. None: on a CPU as many as there are cores;
            on a GPU one after the other in this process. Several small students share a GPU well.

    Returns: one row an arm, problem and sample: `evaluate.Scores.items` and student, params, recipe, alpha, base, seed.

    Raises:
        ValueError: there are no arms, or an arm's student, benchmark or data is unknown; before anything is trained.
        RuntimeError: arms failed; says which, and why the first did.
    """
    workers = whole("workers", workers, optional=True)
    instance("scale", scale, Scale)
    arms = [instance("an arm", arm, Arm) for arm in instance("arms", arms, Iterable)]
    if not arms:
        raise ValueError("there are no arms to run: give at least one, such as those of gap_arms(scale)")
    # The same training under two names (alpha=0 and short) is one piece of work.
    work = {same_work(arm): arm for arm in arms}
    stored = {key: run_arm(arm, scale, split, stored_only=True) for key, arm in work.items()}
    scores = {key: found for key, found in stored.items() if found is not None}
    todo = [arm for key, arm in work.items() if key not in scores]
    print(f"{len(work)} arms: {len(work) - len(todo)} in the run store, {len(todo)} to run", flush=True)
    failed = run_all(todo, scale, split, workers)
    for arm, error in failed.items():
        raise RuntimeError(
            f"{len(failed)} of {len(todo)} arms failed; the first, {name_of(arm)}: {error}. "
            "The others are stored: mend the cause and run again"
        ) from error
    scores |= {same_work(arm): run_arm(arm, scale, split) for arm in todo}
    return pd.concat([arm_items(arm, scale, scores[same_work(arm)].items) for arm in arms], ignore_index=True)


def run_all(
    arms: list[Arm], scale: Scale, split: str | None = None, workers: int | None = None
) -> dict[Arm, BaseException]:
    """Run the arms, as in `sweep`, and say how each ended; returns the errors of those that failed."""
    cost = {arm: _cost(arm) for arm in arms}
    waiting = sorted(arms, key=lambda arm: -cost[arm])  # the long ones first, so that no core waits for one at the end
    started, failed = time.monotonic(), {}
    try:
        with closing(_ends(waiting, scale, split, workers)) as ends:
            for (arm, *_), seconds, error in ends:
                if isinstance(error, files.Held):
                    print(f"{name_of(arm)}: {error}; looked at again at the end", flush=True)
                    continue
                waiting.remove(arm)
                if error:
                    failed[arm], said = error, f"FAILED: {error}"
                else:
                    said = f"{run_arm(arm, scale, split).accuracy:.1%} right, {seconds:.0f} s"
                left = sum(cost[a] for a in waiting)
                minutes = (time.monotonic() - started) * left / (sum(cost.values()) - left) / 60
                progress = f"[{len(arms) - len(waiting)}/{len(arms)}] {name_of(arm)}"
                print(f"{progress}: {said}; about {minutes:.1f} min left", flush=True)
    except KeyboardInterrupt:
        print(STOPPED, flush=True)
        raise KeyboardInterrupt(STOPPED) from None
    return failed


def _ends(waiting: list[Arm], scale: Scale, split: str | None, workers: int | None) -> Generator[End, None, None]:
    """The ends of all tasks: first of the arms that nobody works on, then of those that still wait."""
    for wait in (False, True):
        tasks = [(arm, scale, split, wait) for arm in waiting]
        if torch.cuda.is_available() and workers is None:
            yield from in_turn(_run, tasks)
        elif tasks:
            yield from side_by_side(_run, tasks, name_of, workers or n_cores())


@overload
def run_arm(arm: Arm, scale: Scale, split: str | None = None) -> Scores: ...
@overload
def run_arm(arm: Arm, scale: Scale, split: str | None = None, *, stored_only: bool) -> Scores | None: ...
def run_arm(arm: Arm, scale: Scale, split: str | None = None, stored_only: bool = False) -> Scores | None:
    """Train (unless untouched) and evaluate one arm; with `stored_only` just read it, None if the store lacks it.

    Raises ValueError for an unknown student, benchmark or trace set.
    """
    base, revision, cuda = scale.base(arm), REVISIONS.get(arm.student), torch.cuda.is_available()
    run: Run | None = untouched(base, revision)
    if arm.alpha is not None:
        run = finetune(
            base,
            training_set(arm, scale),
            lora=None if arm.student in scale.full else LoRA(r=scale.lora_rank),
            lr=scale.lr,
            epochs=scale.epochs,
            batch_size=scale.batch_size,
            max_tokens=scale.max_tokens,
            too_long=scale.too_long,
            seed=arm.seed,
            revision=revision,
            on=Placement(gpus=1 if n_params(base, revision) < TINY else max(1, torch.cuda.device_count())),
            progress=cuda,
            stored_only=stored_only,
        )
    if run is None:
        return None
    problems = [evaluation_problems(name, scale.n_problems, split) for name in scale.benchmarks]
    return evaluate(run, problems, max_new_tokens=scale.max_new_tokens, progress=cuda, stored_only=stored_only)


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
    return _kept(_mixed, _stamp(hard.source, easy.source), hard, easy, arm.alpha, scale.n_train, arm.seed)


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
    return (arm.student, arm.alpha, arm.seed) + ((arm.hard, arm.easy) if arm.alpha is not None else ())


def name_of(arm: Arm, *_: object) -> str:
    return f"{arm.student} {arm.recipe} seed {arm.seed}"


def _run(arm: Arm, scale: Scale, split: str | None, wait: bool) -> float:
    """Run an arm; returns the seconds. With `wait` False, raises Held in the place of waiting for another process."""
    started, before = time.monotonic(), files.waits.set(wait)
    try:
        run_arm(arm, scale, split)
    finally:
        files.waits.reset(before)
    return time.monotonic() - started


def _cost(arm: Arm) -> float:
    """Relative time of an arm. Longer traces take longer; the time of tiny students grows less than their size."""
    size = n_params(arm.student, REVISIONS.get(arm.student))
    return size ** (0.6 if size < TINY else 1) * (0.05 if arm.alpha is None else 0.5 + 0.5 * arm.alpha)


def arm_items(arm: Arm, scale: Scale, items: pd.DataFrame) -> pd.DataFrame:
    """An arm's graded items with the columns that tell it from others."""
    params = n_params(arm.student, REVISIONS.get(arm.student))
    facts: files.Record = {"student": arm.student, "params": params, "recipe": arm.recipe, "alpha": arm.alpha}
    return items.assign(**facts, base=scale.base(arm), seed=arm.seed)
