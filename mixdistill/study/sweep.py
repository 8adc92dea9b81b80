"""A set of arms -> one table of graded items. What the run store has is read; the rest is trained and evaluated."""

import gc
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import lru_cache

import pandas as pd
import torch
from datasets import Dataset

from mixdistill.arguments import instance, whole
from mixdistill.data.mix import mix
from mixdistill.data.problems import Problem, load_problems
from mixdistill.data.students import TINY, n_params
from mixdistill.data.tables import local_path
from mixdistill.data.traces import load_traces
from mixdistill.finetuning.finetune import LoRA, finetune
from mixdistill.finetuning.memory import Placement
from mixdistill.results.evaluate import Scores, evaluate, untouched
from mixdistill.study.scales import REVISIONS, Arm, Scale, TraceSet
from mixdistill.study.workers import n_cores, side_by_side

STOPPED = "stopped: what was finished is stored, the same call goes on from there"


def sweep(arms: Iterable[Arm], scale: Scale, split: str | None = None, workers: int | None = None) -> pd.DataFrame:
    """Train and evaluate every arm that the run store lacks, and return the graded items of all.

    An arm that fails does not stop the others: the error comes when all the others are stored.

    Arguments:
        workers: arms that run at a time, each in a process with one thread. None: on a CPU as many as there are cores;
            on a GPU one after the other in this process. Several small students share a GPU well.

    Returns: one row an arm, problem and sample, with the columns of `evaluate.Scores.items` and student, params,
        recipe, alpha, base, seed.

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
    scores = {key: run_arm(arm, scale, split, stored_only=True) for key, arm in work.items()}
    todo = [arm for key, arm in work.items() if scores[key] is None]
    print(f"{len(work)} arms: {len(work) - len(todo)} in the run store, {len(todo)} to run", flush=True)
    if todo:
        _run_all(todo, scale, split, workers)
        scores = {key: run_arm(arm, scale, split) for key, arm in work.items()}
    return pd.concat([_items(arm, scale.base(arm), scores[same_work(arm)]) for arm in arms], ignore_index=True)


def run_arm(arm: Arm, scale: Scale, split: str | None = None, stored_only: bool = False) -> Scores | None:
    """Train (unless untouched) and evaluate one arm; with `stored_only` just read it, None if the store lacks it.

    Raises ValueError for an unknown student, benchmark or trace set.
    """
    base, revision = scale.base(arm), REVISIONS.get(arm.student)
    run = untouched(base, revision)
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
            progress=torch.cuda.is_available(),
            stored_only=stored_only,
        )
    if run is None:
        return None
    return evaluate(
        run,
        [evaluation_problems(name, scale.n_problems, split) for name in scale.benchmarks],
        max_new_tokens=scale.max_new_tokens,
        progress=torch.cuda.is_available(),
        stored_only=stored_only,
    )


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
    return _mixed(hard, easy, arm.alpha, scale.n_train, arm.seed, (_stamp(hard.source), _stamp(easy.source)))


def trace_set(traces: TraceSet, n: int | None, seed: int) -> Dataset:
    """The traces that play a part at a scale, such as `scale.long`; of files the first `n`, None means all."""
    return _trace_set(traces, n, seed, _stamp(traces.source))


def evaluation_problems(benchmark: str, n: int | None, split: str | None) -> list[Problem]:
    """`load_problems`, read once as long as nothing on disk changes."""
    return _problems(benchmark, n, split, (_stamp(benchmark), _stamp(os.environ.get("MIXDISTILL_DATA", ""))))


# These keep what they have read. `stamp` is not used: with another one they read again.
@lru_cache(maxsize=256)
def _mixed(hard: TraceSet, easy: TraceSet, alpha: float, n: int | None, seed: int, stamp: tuple) -> Dataset:
    return mix(trace_set(hard, n, seed), trace_set(easy, n, seed), alpha, seed)


@lru_cache(maxsize=64)
def _trace_set(traces: TraceSet, n: int | None, seed: int, stamp: tuple) -> Dataset:
    if traces.source.startswith("pocket/"):
        return load_traces(traces.source, n=n, seed=seed)
    columns = {"question": traces.question, "response": traces.response}
    reading = {"answer_format": traces.answer_format, "unusable": traces.unusable, "revision": traces.revision}
    return load_traces(traces.source, n=n, columns=columns, **reading)


@lru_cache(maxsize=16)
def _problems(benchmark: str, n: int | None, split: str | None, stamp: tuple) -> list[Problem]:
    return load_problems(benchmark, n=n, split=split)


def _stamp(source: str) -> tuple:
    """Sizes and times of a local file or of those in a folder; empty for what is not on disk."""
    path = local_path(source)
    if not source or not path.exists():
        return ()
    facts = [(str(file), file.stat()) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in facts)


def same_work(arm: Arm) -> tuple:
    """What an arm trains, whatever its recipe is called: equal for alpha=0 and short."""
    return (arm.student, arm.alpha, arm.seed) + ((arm.hard, arm.easy) if arm.alpha is not None else ())


def _run_all(arms: list[Arm], scale: Scale, split: str | None, workers: int | None) -> None:
    """Run the arms, say how each ended, and raise RuntimeError at the end if some failed."""
    cost = {arm: _cost(arm) for arm in arms}
    arms = sorted(arms, key=cost.get, reverse=True)  # the long ones first, so that no core waits for one at the end
    started, waiting, errors = time.time(), list(arms), {}
    tasks = [(arm, scale, split) for arm in arms]
    in_turn = torch.cuda.is_available() and workers is None
    workers = min(len(tasks), workers or n_cores())
    runs = _in_turn(tasks) if in_turn else side_by_side(_timed, tasks, _name, workers)
    try:
        with closing(runs) as ends:
            for (arm, *_), seconds, error in ends:
                waiting.remove(arm)
                if error is None:
                    result = f"{run_arm(arm, scale, split).accuracy:.1%} right, {seconds:.0f} s"
                else:
                    errors[arm], result = error, f"FAILED: {error}"
                # Of those at work half is done, on average.
                left = sum(cost[a] for a in waiting) - sum(cost[a] for a in waiting[:workers]) / 2
                minutes = (time.time() - started) * left / (sum(cost.values()) - left) / 60
                progress = f"[{len(arms) - len(waiting)}/{len(arms)}] {_name(arm)}"
                print(f"{progress}: {result}; about {minutes:.1f} min left", flush=True)
    except KeyboardInterrupt:
        print(STOPPED, flush=True)
        raise KeyboardInterrupt(STOPPED) from None
    if errors:
        arm, error = next(iter(errors.items()))
        raise RuntimeError(
            f"{len(errors)} of {len(arms)} arms failed; the first, {_name(arm)}: {error}. "
            "The others are stored: mend the cause and run again"
        ) from error


def _in_turn(tasks: list[tuple[Arm, Scale, str]]) -> Iterator[tuple]:
    """`side_by_side` for GPUs: one arm after the other in this process."""
    for task in tasks:
        try:
            yield task, _timed(*task), None
        except Exception as error:
            yield task, None, error
        gc.collect()
        torch.cuda.empty_cache()  # what this arm's optimizer and cache held


def _timed(arm: Arm, scale: Scale, split: str | None) -> float:
    started = time.time()
    run_arm(arm, scale, split)
    return time.time() - started


def _cost(arm: Arm) -> float:
    """Relative time of an arm. Longer traces take longer; the time of tiny students grows less than their size."""
    size = n_params(arm.student, REVISIONS.get(arm.student))
    return size ** (0.6 if size < TINY else 1) * (0.05 if arm.alpha is None else 0.5 + 0.5 * arm.alpha)


def _name(arm: Arm, *_: object) -> str:
    return f"{arm.student} {arm.recipe} seed {arm.seed}"


def _items(arm: Arm, base: str, scores: Scores) -> pd.DataFrame:
    params = n_params(arm.student, REVISIONS.get(arm.student))
    facts = {"student": arm.student, "params": params, "recipe": arm.recipe, "alpha": arm.alpha, "base": base}
    return scores.items.assign(**facts, seed=arm.seed)
