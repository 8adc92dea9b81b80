"""A set of arms -> one table of graded items. What the run store has is read; the rest is trained and evaluated."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from datasets import Dataset

from mixdistill import files
from mixdistill.arguments import instance, number, whole
from mixdistill.data.chat import render_prompts, render_traces
from mixdistill.data.mix import mix
from mixdistill.data.problems import BENCHMARKS, Problem, load_problems, plain_question
from mixdistill.data.student_files import REVISIONS
from mixdistill.data.students import TINY, Tokenizer, context_of, load_config, load_tokenizer, n_params
from mixdistill.data.tables import local_path, of_pocket
from mixdistill.data.traces import load_traces
from mixdistill.finetuning.finetune import LoRA, finetune
from mixdistill.finetuning.memory import Placement
from mixdistill.results.evaluate import Scores, evaluate, problems_of, untouched
from mixdistill.runs import Run
from mixdistill.study import cluster
from mixdistill.study.jobs import Job, Progress
from mixdistill.study.scales import Arm, ProblemSet, Scale, TraceSet, source_of
from mixdistill.study.workers import in_processes

STOPPED = "stopped: what was finished is stored, the same call goes on from there"
LACKING = "it has run, and this machine's run store lacks it: all machines need one that they share"
MANY = 4 * 10**9  # parameters, from which an arm takes all GPUs of a machine


def sweep(
    arms: Iterable[Arm], scale: Scale, split: str | None = None, workers: int | None = None, on: str = "local"
) -> pd.DataFrame:
    """Train and evaluate every arm that the run store lacks, and return the graded items of all.

    An arm that fails stops no other. One that another process works on, of this machine or of another that shares the
    store, is looked at again at the end: the same call on several machines divides the work.

    Arguments:
        workers: arms at a time on this machine, each in a process with one thread. None: as many as there are cores;
            or one a GPU, and of large students one at a time on all GPUs.
        on: `local`; `ray`, the Ray cluster that this machine is in; or `ray://HEAD:10001`, another (docs/cluster.md).

    Returns: one row an arm, problem and sample: `evaluate.Scores.items` and student, params, recipe, alpha, base, seed.

    Raises:
        ValueError: there are no arms, or an arm's student, benchmark or data is unknown; before anything is trained.
        RuntimeError: arms failed; says which, and why the first did.
    """
    arms = [instance("an arm", arm, Arm) for arm in instance("arms", arms, Iterable)]
    results = [*zip(arms, run_arms(arms, scale, split, workers, on), strict=True)]
    failed = [(name_of(arm), result) for arm, result in results if isinstance(result, BaseException)]
    if failed:
        first, error = failed[0]
        what = f"{len(failed)} of {len(arms)} arms failed; the first, {first}: {error}"
        raise RuntimeError(f"{what}. The others are stored: mend the cause and run again") from error
    tables = [arm_items(arm, scale, result.items) for arm, result in results if isinstance(result, Scores)]
    return pd.concat(tables, ignore_index=True)


def run_arms(
    arms: Sequence[Arm], scale: Scale, split: str | None = None, workers: int | None = None, on: str = "local"
) -> list[Scores | BaseException]:
    """Run what the store lacks, as `sweep` says; returns each arm's scores, or the error that it failed with."""
    workers, on = whole("workers", workers, optional=True), cluster.check_place(on)
    instance("scale", scale, Scale)
    if not arms:
        raise ValueError("there are no arms to run: give at least one, such as those of gap_arms(scale)")
    _say_what_is_asked_twice(_tests(scale, split))  # what is wrong with them is said before anything is trained
    work = {same_work(arm): arm for arm in arms}
    found = {key: _stored(arm, scale, split) for key, arm in work.items()}
    jobs = {key: _job(arm, scale, split) for key, arm in work.items() if found[key] is None}
    if jobs:
        check_arms([work[key] for key in jobs], scale, split)
    n_damaged = sum(isinstance(stored, Exception) for stored in found.values())
    damaged = f" ({n_damaged} of them can not be read)" if n_damaged else ""
    print(f"{len(work)} arms: {len(work) - len(jobs)} in the run store{damaged}, {len(jobs)} to run", flush=True)
    failed = run_all([*jobs.values()], workers, on)
    for key, job in jobs.items():
        found[key] = failed.get(job) or _stored(work[key], scale, split) or RuntimeError(LACKING)
    return [found[same_work(arm)] for arm in arms]


def _tests(scale: Scale, split: str | None) -> list[Problem]:
    form = scale.answer_format
    return problems_of([evaluation_problems(name, scale.n_problems, split, form) for name in scale.benchmarks])


def _stored(arm: Arm, scale: Scale, split: str | None) -> Any:
    """An arm's scores, None if the store lacks them, or what it says of damaged ones, which stops no other arm."""
    try:
        return run_arm(arm, scale, split, stored_only=True)
    except (files.Damaged, OSError) as error:
        return error


def _say_what_is_asked_twice(problems: list[Problem]) -> None:
    asked_by: dict[str, set[str]] = {}
    for problem in problems:
        asked_by.setdefault(plain_question(problem.question), set()).add(problem.source)
    if n_twice := sum(len(sources) > 1 for sources in asked_by.values()):
        what = f"{n_twice} of {len(asked_by)} questions stand in several benchmarks"
        print(f"{what}: intervals take them as different problems, and are too narrow", flush=True)


def check_arms(arms: Sequence[Arm], scale: Scale, split: str | None = None) -> None:
    """Say before anything is trained what an arm or its test would say hours later. Raises ValueError if a student's
    context has no room for its answers, or a trace can not be written in its format. Prints how many questions of
    training are among those of the test."""
    problems = _tests(scale, split)
    read: set[tuple] = set()
    for student, arm in {arm.student: arm for arm in arms}.items():
        base, revision = scale.base(arm), REVISIONS.get(student)
        context, tokenizer = context_of(load_config(base, revision)), load_tokenizer(base, revision)
        try:
            render_prompts(tokenizer, problems, context, scale.max_new_tokens)
            _check_traces([arm for arm in arms if arm.student == student], scale, tokenizer, context, read)
        except ValueError as error:
            raise ValueError(f"{student}: {error}") from error
    with files.speaking("comparing the questions of training and test"):
        said = taught(arms, scale, problems)
    print("".join(f"{line}\n" for line in said), end="", flush=True)


def taught(arms: Sequence[Arm], scale: Scale, problems: Sequence[Problem]) -> list[str]:
    """Of each real trace set of the arms that has any: how many of its questions are asked, too."""
    asked, said = {plain_question(problem.question) for problem in problems if problem.answer_format != "pocket"}, []
    for part in dict.fromkeys(part for arm in arms if arm.alpha is not None for part in (arm.hard, arm.easy)):
        made = getattr(scale, part)
        questions = trace_set(made, None, 0)["question"][:] if asked and made and not made.pocket else []
        if n_known := sum(plain_question(question) in asked for question in questions):
            what = f"{n_known} of {len(questions)} questions of {made.source!r} are asked in the test, too"
            said.append(f"{what}: what is learnt by heart counts as right (docs/real-models.md: to leave them out)")
    return said


def _check_traces(arms: Sequence[Arm], scale: Scale, tokenizer: Tokenizer, context: int, read: set[tuple]) -> None:
    """Write the real traces that these arms of a student may learn from, whatever a seed draws: the hard side and the
    easy one, once for students that write alike (`read`)."""
    alike = tokenizer.get_chat_template(), tokenizer.backend_tokenizer.to_str(), context
    taught = [(arm, alpha) for arm in arms for alpha in (0.0, 1.0) if arm.alpha not in (None, 1 - alpha)]
    for side, arm in {(arm.hard, arm.easy, arm.n_train, alpha): arm for arm, alpha in taught}.items():
        hard, easy, _, alpha = side
        traces = getattr(scale, hard if alpha else easy)
        if traces.pocket or (*side, *alike) in read:
            continue
        read.add((*side, *alike))
        with files.speaking(f"reading {traces.source}"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the arm says it
            made = training_set(replace(arm, alpha=alpha), scale)
            try:
                render_traces(tokenizer, made, min(scale.max_tokens or context, context), scale.too_long)
            except ValueError as error:
                raise ValueError(f"{traces.source}, in the order of the mix: {error}") from error


def run_all(jobs: Sequence[Job], workers: int | None = None, on: str = "local") -> dict[Job, BaseException]:
    """Run the jobs, the long ones first, where `sweep` says, and show how they go; returns the errors of those that
    failed. A job that another process holds is looked at again when all others have ended."""
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


def run_arm(arm: Arm, scale: Scale, split: str | None = None, stored_only: bool = False) -> Scores | None:
    """Train (unless untouched) and evaluate one arm; with `stored_only` just read it, None if the store lacks it.
    Raises ValueError for an unknown student, benchmark or trace set."""
    run = trained(arm, scale, stored_only)
    if run is None:
        return None
    problems = _tests(scale, split)
    shown = _shows_progress()
    return evaluate(run, problems, max_new_tokens=scale.max_new_tokens, progress=shown, stored_only=stored_only)


def trained(arm: Arm, scale: Scale, stored_only: bool = False) -> Run | None:
    """The student of an arm, trained unless it is the untouched one, as a run; None as in `run_arm`."""
    base, revision = scale.base(arm), REVISIONS.get(arm.student)
    if arm.alpha is None:
        return untouched(base, revision)
    n_gpus = 1 if n_params(base, revision) < MANY else max(1, torch.cuda.device_count())
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
        on=Placement(gpus=n_gpus, shard=n_gpus > 1),
        progress=_shows_progress(),
        stored_only=stored_only,
    )


def _shows_progress() -> bool:
    return torch.cuda.is_available() and not sys.stdout.isatty()  # where the sweep has its bar


def training_set(arm: Arm, scale: Scale) -> Dataset:
    """The mix that trains an arm.

    In the pocket world a seed draws the problems, where the long teacher begins, the mix, and the base. Published sets
    and files hold one trace a problem: there a seed draws only which problems get the hard trace.

    Raises ValueError if the scale has no trace set for a part, or none of so many problems.
    """
    missing = [part for part in (arm.hard, arm.easy) if getattr(scale, part) is None]
    if missing:
        what = f"the scale {scale.name!r} has no trace set for {' and '.join(missing)}, which {arm.recipe!r} needs"
        ways = f"use one of {', '.join(scale.recipes)}, or give it one with replace(scale, {missing[0]}=TraceSet(...))"
        raise ValueError(f"{what}: {ways}")
    n, sets = arm.n_train or scale.n_train, [getattr(scale, part) for part in (arm.hard, arm.easy)]
    # Files may hold the same problems in another order, so the first of them are taken of those that both hold.
    hard, easy = (trace_set(made, n if of_pocket(made.source) else None, arm.seed) for made in sets)
    made = mix(hard, easy, number("alpha", arm.alpha), arm.seed, n)
    if arm.n_train and len(made) < arm.n_train:  # a scale's own is at most so many
        raise ValueError(f"n_train is {arm.n_train}: there are traces of {len(made)} problems, ask for no more")
    return made


def trace_set(traces: TraceSet, n: int | None, seed: int) -> Dataset:
    """The traces that play a part at a scale, such as `scale.long`; of files the first `n`, None means all."""
    instance("traces", traces, TraceSet)
    return _kept(_traces, _stamp(traces.source), traces, n, seed)


def evaluation_problems(
    benchmark: str | ProblemSet, n: int | None, split: str | None, answer_format: str | None = None
) -> list[Problem]:
    """`load_problems`, read once as long as nothing on disk changes; `answer_format` is for files of one's own."""
    source, folder = source_of(benchmark), os.environ.get("MIXDISTILL_DATA", "")
    known = BENCHMARKS.get(source)
    own = {} if known or of_pocket(source) else {"answer_format": answer_format}
    file = os.path.join(folder, known.file.format(split=split or "test")) if known else source
    return _kept(_problems, _stamp(file), benchmark, n=n, split=split, **own)


def _problems(benchmark: str | ProblemSet, **options: Any) -> list[Problem]:
    if isinstance(benchmark, ProblemSet):
        options["columns"] = {"question": benchmark.question, "answer": benchmark.answer}
        options["unusable"] = benchmark.unusable
    return load_problems(source_of(benchmark), **options)


@lru_cache(maxsize=256)
def _kept(read: Callable[..., Any], stamp: tuple, *arguments: Any, **options: Any) -> Any:
    """What `read` gives, read again only with another stamp."""
    return read(*arguments, **options)


def _stamp(source: str) -> tuple:
    """Size and time of a local file, or of those in a folder; empty for what is not on disk."""
    path = local_path(source)
    found = [file for file in (path, *path.rglob("*")) if file.is_file()]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino) for file in found for stat in [file.stat()])


def _traces(traces: TraceSet, n: int | None, seed: int) -> Dataset:
    if traces.source.startswith("pocket/"):
        return load_traces(traces.source, n=n, seed=seed)
    columns = {"question": traces.question, "response": traces.response}
    own: dict[str, Any] = {"answer_format": traces.answer_format, "unusable": traces.unusable}
    return load_traces(traces.source, n=n, columns=columns, revision=traces.revision, **own)


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
    cost *= arm.epochs / scale.epochs if arm.epochs else 1
    # Weights, gradients and the optimizer's two moments, in float32; with LoRA the weights only.
    memory = (16 if arm.student in scale.full else 4) * size + (5 * 10**8 if size < TINY else 2 * 10**9)
    return Job(name_of(arm), _run, (arm, scale, split), cost, memory, wide=size >= MANY)


def _run(arm: Arm, scale: Scale, split: str | None) -> str:
    scores = run_arm(arm, scale, split)
    assert scores is not None  # as always without stored_only
    run = trained(arm, scale, stored_only=True) if arm.alpha is not None else None  # the untouched one has no manifest
    dropped = run.manifest.get("rows_too_long_dropped", ()) if run else ()
    return f"{scores.accuracy:.1%} right" + f", {len(dropped)} traces too long and left out" * bool(dropped)


def arm_items(arm: Arm, scale: Scale, items: pd.DataFrame) -> pd.DataFrame:
    """An arm's graded items with the columns that tell it from others."""
    params = n_params(arm.student, REVISIONS.get(arm.student))
    facts: files.Record = {"student": arm.student, "params": params, "recipe": arm.recipe, "alpha": arm.alpha}
    return items.assign(**facts, base=scale.base(arm), seed=arm.seed)
