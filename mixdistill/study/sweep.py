"""A set of arms -> one table of graded items. What the run store has is read; the rest is trained and evaluated."""

import gc
import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import lru_cache
from multiprocessing import connection

import pandas as pd
import torch
from datasets import Dataset

from mixdistill.data import students
from mixdistill.data.mix import mix
from mixdistill.data.problems import Problem, load_problems
from mixdistill.data.students import TINY, n_params
from mixdistill.data.traces import load_traces
from mixdistill.finetuning.finetune import LoRA, default_lr, finetune
from mixdistill.results.evaluate import Scores, evaluate, untouched
from mixdistill.study.scales import REVISIONS, Arm, Scale, TraceSet

HEARTBEAT = 30  # seconds without a finished arm until a line says who is at work
COLUMNS = [
    "benchmark",
    "problem_id",
    "level",
    "subject",
    "sample",
    "answer",
    "correct",
    "reason",
    "finish_reason",
    "loop",
    "n_tokens",
]


def sweep(arms: list[Arm], scale: Scale, split: str | None = None) -> pd.DataFrame:
    """Train and evaluate every arm that the run store lacks, and return the graded items of all.

    On a CPU as many arms run at a time as there are cores, each in a process with one thread; on a GPU one after the other in
    this process. An arm that fails does not stop the others: the error comes when all the others are stored.

    Returns: one row an arm and problem, with columns student, params, recipe, alpha, base, seed and those of `COLUMNS`.

    Raises:
        ValueError: an arm's student, benchmark or data is unknown; before anything is trained.
        RuntimeError: arms failed; says which, and why the first did.
    """
    # The same training under two names (alpha=0 and short) is one piece of work.
    work = {same_work(arm): arm for arm in arms}
    scores = {key: run_arm(arm, scale, split, stored_only=True) for key, arm in work.items()}
    todo = [arm for key, arm in work.items() if scores[key] is None]
    print(f"{len(work)} arms: {len(work) - len(todo)} in the run store, {len(todo)} to run", flush=True)
    if todo:
        _run_all(todo, scale, split)
        scores = {key: run_arm(arm, scale, split) for key, arm in work.items()}
    return pd.concat([_items(arm, scale.base(arm), scores[same_work(arm)]) for arm in arms], ignore_index=True)


def run_arm(arm: Arm, scale: Scale, split: str | None = None, stored_only: bool = False) -> Scores | None:
    """Train (unless untouched) and evaluate one arm; with `stored_only` just read it, None if the store lacks it."""
    base, revision = scale.base(arm), REVISIONS.get(arm.student)
    run = untouched(base, revision)
    if arm.alpha is not None:
        lora = None if arm.student in scale.full else LoRA(r=scale.lora_rank)
        run = finetune(
            base,
            training_set(arm, scale),
            lora=lora,
            lr=scale.lr or default_lr(arm.student, lora),
            epochs=scale.epochs,
            batch_size=scale.batch_size,
            max_tokens=scale.max_tokens,
            too_long=scale.too_long,
            seed=arm.seed,
            revision=revision,
            gpus=1 if n_params(base, revision) < TINY else max(1, torch.cuda.device_count()),
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

    In the pocket world a seed draws the problems, where the long teacher begins, the mix, and the base. Published sets and files hold one trace a
    problem: there a seed draws only which problems get the hard trace, and nothing of the data where alpha is 0 or 1. (In
    every world it also draws first adapter weights and the order of the examples, `finetune`.)

    Raises ValueError if the scale has no trace set for a part.
    """
    missing = [part for part in (arm.hard, arm.easy) if getattr(scale, part) is None]
    if missing:
        raise ValueError(
            f"the scale {scale.name!r} has no trace set for {' and '.join(missing)}, which {arm.recipe!r} needs: use one of "
            f"{', '.join(scale.recipes)}, or give it one with replace(scale, {missing[0]}=TraceSet(...))"
        )
    return _mixed(getattr(scale, arm.hard), getattr(scale, arm.easy), arm.alpha, scale.n_train, arm.seed)


@lru_cache(maxsize=256)
def _mixed(hard: TraceSet, easy: TraceSet, alpha: float, n: int | None, seed: int) -> Dataset:
    return mix(trace_set(hard, n, seed), trace_set(easy, n, seed), alpha, seed)


@lru_cache(maxsize=64)
def trace_set(traces: TraceSet, n: int | None, seed: int) -> Dataset:
    """The traces that play a part at a scale, such as `scale.long`; of files the first `n`, None means all."""
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


@lru_cache(maxsize=16)
def evaluation_problems(benchmark: str, n: int | None, split: str | None) -> list[Problem]:
    return load_problems(benchmark, n=n, split=split)


def same_work(arm: Arm) -> tuple:
    """What an arm trains, whatever its recipe is called: equal for alpha=0 and short."""
    return (arm.student, arm.alpha, arm.seed) + ((arm.hard, arm.easy) if arm.alpha is not None else ())


def _run_all(arms: list[Arm], scale: Scale, split: str | None) -> None:
    cost = {arm: _cost(arm) for arm in arms}
    arms = sorted(arms, key=cost.get, reverse=True)  # the long ones first, so that no core waits for one at the end
    started, done, errors = time.time(), [], {}

    def report(arm: Arm, seconds: float, error: BaseException | None) -> None:
        done.append(arm)
        if error is not None:
            errors[arm] = error
        done_cost = sum(cost[a] for a in done) + sum(cost[a] for a in running(arms, done)) / 2  # half done, on average
        left = (time.time() - started) * (sum(cost.values()) / done_cost - 1) / 60
        result = f"FAILED: {error}" if error else f"{run_arm(arm, scale, split).accuracy:.1%} right"
        print(
            f"[{len(done)}/{len(arms)}] {arm.student} {arm.recipe} seed {arm.seed}: {result}, {seconds:.0f} s; "
            f"about {left:.1f} min left",
            flush=True,
        )

    if torch.cuda.is_available():
        for arm in arms:
            try:
                report(arm, _timed(arm, scale, split), None)
            except Exception as error:
                report(arm, 0, error)
            gc.collect()
            torch.cuda.empty_cache()  # what this arm's optimizer and cache held
    else:
        # Spawned, as a fork of a process that has used torch may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(len(arms), n_cores()), context, initializer=_start_worker) as pool:
            futures = {pool.submit(_timed, arm, scale, split): arm for arm in arms}
            try:
                while futures:
                    ended = wait(futures, timeout=HEARTBEAT, return_when=FIRST_COMPLETED).done
                    for future in ended:
                        error = future.exception()
                        report(futures.pop(future), 0 if error else future.result(), error)
                    if not ended:
                        names = ", ".join(f"{a.student} {a.recipe} seed {a.seed}" for a in running(arms, done))
                        print(f"    {time.time() - started:.0f} s, at work: {names}", flush=True)
            except BaseException:  # the user stops the notebook: do not start what waits
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if errors:
        arm, error = next(iter(errors.items()))
        raise RuntimeError(
            f"{len(errors)} of {len(arms)} arms failed; the first, {arm.student} {arm.recipe} seed {arm.seed}: {error}. "
            "The others are stored: mend the cause and run again"
        ) from error


def running(arms: list[Arm], done: list[Arm]) -> list[Arm]:
    """The arms at work: as many as there are cores, in the order of the list."""
    return [arm for arm in arms if arm not in done][: n_cores()]


def _timed(arm: Arm, scale: Scale, split: str | None) -> float:
    started = time.time()
    run_arm(arm, scale, split)
    return time.time() - started


def n_cores() -> int:
    """The cores that this process may use (`taskset` and job schedulers give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """One thread, and an end to this process when its parent is gone (a killed notebook)."""
    students.max_threads = 1
    parent = multiprocessing.parent_process()

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _cost(arm: Arm) -> float:
    """Relative time of an arm, for the minutes left: more for longer traces, and the less than the size the tinier the student."""
    size = n_params(arm.student, REVISIONS.get(arm.student))
    return size ** (0.6 if size < TINY else 1) * (0.05 if arm.alpha is None else 0.5 + 0.5 * arm.alpha)


def _items(arm: Arm, base: str, scores: Scores) -> pd.DataFrame:
    params = n_params(arm.student, REVISIONS.get(arm.student))
    facts = {"student": arm.student, "params": params, "recipe": arm.recipe, "alpha": arm.alpha, "base": base}
    return scores.items[COLUMNS].assign(**facts, seed=arm.seed)
