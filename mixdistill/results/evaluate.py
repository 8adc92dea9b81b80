"""Evaluation: a student on benchmarks, one row a completion, stored beside the run and resumable."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from mixdistill import arguments, files, runs
from mixdistill.data.chat import opens_thinking, prompt_fingerprint, render_prompts
from mixdistill.data.problems import Problem, load_problems
from mixdistill.data.students import context_of, fingerprint, load_config, load_tokenizer, n_params, student_source
from mixdistill.files import Record
from mixdistill.finetuning.checkpoints import check_unchanged, load_trained
from mixdistill.finetuning.finetune import TRAINING_VERSION
from mixdistill.generation.generate import check_engine, complete, default_engine, length_sorted_batches
from mixdistill.generation.sampling import Sampling
from mixdistill.generation.vllm_engine import Complete, open_vllm, why_not
from mixdistill.grading.grade import GRADING_VERSION
from mixdistill.results import answers, stats
from mixdistill.runs import Run

# Raised whenever the same evaluation would give other completions than before (rendering, decoding).
EVALUATION_VERSION = 3
# Prompts decoded, graded and stored at a time: what a kill can cost, against waiting for each batch's longest answer.
BATCH_SIZE = {"static": 256, "vllm": 1024}

Benchmarks = str | Path | Problem | Sequence["Benchmarks"]


@dataclass(frozen=True, repr=False)
class Scores:
    """The result of an evaluation; a notebook shows it as a table.

    `items` has one row a completion, as `generations.jsonl` in `folder`: the problem (benchmark, problem_id, level,
    subject, question, gold), which sample of it, n_prompt_tokens, the completion (response, n_tokens, finish_reason,
    loop, engine, dtype, batch: see `generate.Completion`), and the grade (correct, answer, reason: see `grade.Grade`).
    """

    folder: Path
    items: pd.DataFrame

    @property
    def accuracy(self) -> float:
        """Mean over the benchmarks, each of which counts the same, as in the paper."""
        return float(self.items.groupby("benchmark")["correct"].mean().mean())

    def table(self) -> pd.DataFrame:
        """By benchmark, and as the mean over them: accuracy with its 95% interval, and how the answers ended."""
        items = self.items.assign(seed=0)
        mean = stats.accuracy_table(items, []).assign(benchmark="mean")
        table = pd.concat([stats.accuracy_table(items, ["benchmark"]), mean], ignore_index=True)
        one_sample = (table["n_samples"] == 1).all()
        return table.drop(columns=["n_seeds", "n_bases", "n_samples"] if one_sample else ["n_seeds", "n_bases"])

    def __repr__(self) -> str:
        return self.table().to_string(index=False)

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, float_format="{:.3f}".format)


def evaluate(
    run: Run | str | Path,
    benchmarks: Benchmarks,
    *,
    n: int | None = None,
    split: str | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = Sampling(),
    engine: str | None = None,
    batch_size: int | None = None,
    revision: str | None = None,
    thinking: bool | None = None,
    progress: bool = True,
    stored_only: bool = False,
) -> Scores | None:
    """Evaluate a run, or an untouched student; an evaluation that the store already holds is read from it. Where
    problems are added to one, and answers may be as long, those that it holds are not asked again. Completions that an
    older version of the rules has graded are graded anew, which is said and stored.

    Arguments:
        run: what `finetune` returned; a run's folder, in the store or in a copy; or an untouched student as in
            `load_student`.
        benchmarks: a name or file for `load_problems`, a list of problems, or a list of these.
        n, split: for benchmarks given by name, as in `load_problems`.
        max_new_tokens: None means what the student's context leaves, at most 16,000.
        sampling: greedy unless a temperature is given.
        engine: `static` or `vllm` (`generate`); None means vLLM where it is installed and there is a GPU.
        batch_size: prompts decoded, graded and stored at a time; no part of the result. None means 256, with vLLM 1024.
        revision: commit of a Hub model, where `run` is a student's name.
        thinking: for chat templates with such a switch; None means as the run was trained, of an untouched student what
            the template does by itself.
        progress: print a line after each batch, and every 30 seconds.
        stored_only: evaluate nothing; return None if the store has no such evaluation.

    Raises:
        ValueError: a bad argument, an unknown benchmark, the same problem twice, a problem without gold answer, a
            prompt longer than the context, an engine that is not here, or a run that is damaged or not finished.
        OSError: the store can not be read or written.
        RuntimeError: memory has no room for one answer, or vLLM gave one up; what was finished before is stored.
    """
    arguments.instance("sampling", sampling, Sampling)
    if engine is not None:
        check_engine(engine)
    batch_size = arguments.whole("batch_size", batch_size, optional=True)
    arguments.flag("thinking", thinking, optional=True)
    arguments.flag("progress", progress)
    arguments.flag("stored_only", stored_only)
    problems = problems_of(benchmarks, n, split)
    with files.speaking("evaluate", progress):  # large files take long to hash
        run = as_run(run, revision)
    thinking = run.config.get("thinking") if thinking is None else thinking
    config = {
        "version": EVALUATION_VERSION,
        "problems": answers.key_of(problems),
        "n_problems": len(problems),
        "max_new_tokens": arguments.whole("max_new_tokens", max_new_tokens, optional=True),
        # Greedily, neither seed nor top_p changes anything.
        "sampling": asdict(Sampling() if sampling.greedy else sampling),
    } | _prompts_seen(run.student, run.config["revision"], run.config["fingerprint"], thinking)
    folder = run.folder / "evaluations" / files.key(config)
    if stored_only and not files.present(folder / "scores.json"):
        return None
    # Not part of the name, so that a laptop reads what a GPU has computed; the name holds what the switch writes.
    how = {"engine": engine, "batch_size": batch_size, "thinking": thinking}
    owner = answers.owner_of(run, folder)
    with files.speaking(run.folder.name, progress):
        runs.once(folder, "scores.json", partial(_evaluate, run, problems, config, folder, owner, how, progress))
    return _read_scores(problems, config, folder, owner)


def untouched(student: str | Path, revision: str | None = None) -> Run:
    """The run of a student that nothing was done to."""
    student, revision = arguments.text("student", student), arguments.text("revision", revision, optional=True)
    config = {"version": TRAINING_VERSION, "student": student, "revision": revision, "train": None}
    return runs.run_of(config | {"fingerprint": fingerprint(student, revision)})


def as_run(run: Run | str | Path, revision: str | None = None) -> Run:
    """The finished run that `evaluate` is given: itself, a run's folder, or an untouched student's."""
    if not isinstance(run, Run) and not runs.is_run_folder(arguments.text("run", run)):
        return untouched(run, revision)
    if revision is not None:
        raise ValueError(f"revision is {revision!r}: it is for a student's name, a run has its own")
    if not isinstance(run, Run):
        return runs.open_run(run)
    if run.trained:
        runs.open_run(run.folder)  # is it finished, and what it was?
    return run


@lru_cache(maxsize=256)
def _prompts_seen(student: str, revision: str | None, fingerprint: str, thinking: bool | None) -> Record:
    """What the prompts show around a question, and whether they open a think block, which grades then begin with."""
    tokenizer = load_tokenizer(student, revision)
    opened = {"opens_thinking": True} if opens_thinking(tokenizer, thinking) else {}
    return {"prompts": prompt_fingerprint(tokenizer, thinking)} | opened


def problems_of(benchmarks: Benchmarks, n: int | None = None, split: str | None = None) -> list[Problem]:
    """The problems of all benchmarks. Raises ValueError if a problem or the name of a benchmark is there twice."""
    found: list[Any] = []
    named, listed = False, set[str]()
    for item in benchmarks if isinstance(benchmarks, list | tuple) else [benchmarks]:
        if isinstance(item, str | os.PathLike):
            named = True
            item = load_problems(os.fspath(item), n=n, split=split)
        if isinstance(item, list | tuple):
            sources = {one.source for one in item if isinstance(one, Problem)}
            if shared := sorted(sources & listed):
                what = f"two of benchmarks are called {shared[0]!r}, and would count as one"
                raise ValueError(f"{what}: give each once, and files names of their own")
            listed |= sources
        found += item if isinstance(item, list | tuple) else [item]
    others = [other for other in found if not isinstance(other, Problem)]
    if others or not found:
        what = f"benchmarks holds {arguments.shown(others[0])}" if others else "there is nothing to evaluate"
        raise ValueError(f"{what}: give a benchmark's name or file, a problem, or a list of these")
    if (n, split) != (None, None) and not named:
        what = f"n is {n} and split {split!r}: they are for benchmarks by name"
        raise ValueError(f"{what}, take them off lists of problems")
    ids = Counter((problem.source, problem.id) for problem in found)
    if len(ids) < len(found):
        (source, which), times = ids.most_common(1)[0]
        what = f"{len(found)} problems have {len(ids)} different ids ({which!r} of {source!r} comes {times} times)"
        raise ValueError(f"{what}: give each once, and files names of their own")
    return found


def _evaluate(
    run: Run, problems: list[Problem], config: Record, folder: Path, owner: str, how: Record, progress: bool
) -> Record:
    """Decode, grade and store what is missing, batch by batch; returns the summary for `scores.json`."""
    path, file = folder / "config.json", folder / "generations.jsonl"
    rows = files.read_rows(file, owner)
    began = _read_config(folder, config) if rows else how  # it goes on as it began
    engine = began.get("engine") or _default_engine(run)
    check_engine(engine)
    batch_size = arguments.whole("batch_size", began.get("batch_size") or BATCH_SIZE[engine])
    tokenizer, model = (load(run.student, run.config["revision"]) for load in (load_tokenizer, load_config))
    prompts, room = render_prompts(tokenizer, problems, context_of(model), config["max_new_tokens"], how["thinking"])
    known, grading = rows[: began.get("n_known", 0)], min(GRADING_VERSION, began.get("grading", 0))
    if not rows:
        known, grading = answers.known(run, problems, config, room)
        rows = [*known]
        if progress and rows:
            print(f"{run.folder.name}: {len(rows)} answers are taken from its other evaluations", flush=True)
    sampling = Sampling(**config["sampling"])
    asked = zip(problems, prompts, strict=True)
    requests = [(problem, prompt, sample) for problem, prompt in asked for sample in range(sampling.n)]
    left = sorted(set(range(len(requests))) - {row["index"] for row in known})
    places = length_sorted_batches([requests[at][1] for at in left], batch_size)
    batches = [[left[place] for place in batch] for batch in places]
    order = [row["index"] for row in known] + [at for batch in batches for at in batch]

    files.sweep_up(run.folder, held=folder)
    if not run.trained:
        with files.lock(run.folder):
            runs.start(run)
    wanted = takewhile(lambda pair: pair[0]["index"] == pair[1], zip(rows, order, strict=False))
    there = len([*wanted])  # of what a kill, or an older clone, has left
    done = (there - len(known)) // batch_size if there < len(order) else len(batches)
    rows = rows[: len(known) + done * batch_size]
    began = {"engine": engine, "batch_size": batch_size, "thinking": how["thinking"]}
    files.write_json(path, config | began | {"n_known": len(known), "grading": grading})  # before the rows
    files.append_rows(file, rows, owner, at=0)  # without what a kill has left of a further batch
    if batches[done:]:
        complete_batch = _open(run, engine, progress)
    for number, batch in enumerate(batches[done:], start=done + 1):
        files.tell(f"answer {len(rows)} of {len(requests)}")
        batch_problems, batch_prompts, samples = zip(*(requests[at] for at in batch), strict=True)
        seeds = [sampling.seed_of(p.source, p.id, sample) for p, sample in zip(batch_problems, samples, strict=True)]
        completions = complete_batch(batch_prompts, room, sampling, seeds=seeds)
        grades = answers.graded(batch_problems, [completion.response for completion in completions], config)
        results = zip(batch, completions, grades, strict=True)
        new = [answers.row_of(at, *requests[at], completion, grade) for at, completion, grade in results]
        files.append_rows(file, new, owner, at=len(rows))
        rows += new
        if progress:
            print(f"{run.folder.name}: {number}/{len(batches)} batches decoded", flush=True)
    files.write_json(folder / "manifest.json", {"max_new_tokens": room} | runs.machine())
    return _summary(_scores(folder, rows))


def _default_engine(run: Run) -> str:
    student, revision, lora = run.student, run.config["revision"], run.config.get("lora")
    unserved = why_not(student, load_config(student, revision), lora["r"] if lora else 0)
    return "static" if unserved else default_engine(n_params(student, revision))


def _open(run: Run, engine: str, progress: bool) -> Complete:
    """The function by which a run completes a batch of prompts."""
    if engine == "static":
        return partial(complete, load_trained(run))
    trained, lora = runs.trained_folder(run) if run.trained else None, run.config.get("lora")
    if trained and lora is None:
        return open_vllm(str(trained), None, None, 0, progress)[2]
    found = fingerprint(run.student, run.config["revision"])
    check_unchanged(run, found)
    commit = found.removeprefix("hub:") if found.startswith("hub:") else None  # a branch may move while vLLM starts
    return open_vllm(student_source(run.student), commit, trained, lora["r"] if lora else 0, progress)[2]


def _read_config(folder: Path, config: Record) -> Record:
    stored = files.read_json(folder / "config.json")
    if any(stored.get(name, ...) != value for name, value in config.items()):
        raise files.damaged(folder / "config.json", "it is not this evaluation's")
    return stored


def _read_scores(problems: list[Problem], config: Record, folder: Path, owner: str) -> Scores:
    stored = _read_config(folder, config)
    rows, n = files.read_rows(folder / "generations.jsonl", owner), config["n_problems"] * config["sampling"]["n"]
    if len(rows) != n:
        raise files.damaged(folder / "generations.jsonl", f"row {len(rows) + 1} of {n} is missing or was changed")
    if len({row["index"] for row in rows}) < n:
        raise files.damaged(folder / "generations.jsonl", "an answer is there twice")
    if stored.get("grading", 0) < GRADING_VERSION:  # and not newer ones, which an older clone leaves as they are
        return _store_anew(folder, stored, rows, answers.graded_anew(rows, problems, config), owner)
    scores, accuracy = _scores(folder, rows), files.read_json(folder / "scores.json").get("accuracy")
    if not isinstance(accuracy, float) or not math.isclose(accuracy, scores.accuracy):
        raise files.damaged(folder / "scores.json", f"its accuracy is {accuracy}, that of the rows {scores.accuracy}")
    return scores


def _store_anew(folder: Path, stored: Record, before: list[Record], rows: list[Record], owner: str) -> Scores:
    """Store rows with new grades, the version last, so that a killed process does it again."""
    scores = _scores(folder, rows)
    n_changed = sum(old != new for old, new in zip(before, rows, strict=True))
    done = "stored"
    try:
        with files.lock(folder, wait=False):
            files.append_rows(folder / "generations.jsonl", rows, owner, at=0)
            files.write_json(folder / "scores.json", _summary(scores))
            files.write_json(folder / "config.json", stored | {"grading": GRADING_VERSION})
    except (OSError, files.Held) as error:  # a store that can be read only, or that another writes
        done = f"not stored ({getattr(error, 'strerror', None) or error})"
    if n_changed:
        what = f"{len(rows)} answers graded by newer rules, {n_changed} otherwise than before, {done}"
        print(f"{folder.parents[1].name}: {what}", flush=True)
    return scores


def _summary(scores: Scores) -> Record:
    benchmarks = {row.pop("benchmark"): row for row in scores.table().to_dict("records")}
    return {"accuracy": scores.accuracy, "benchmarks": benchmarks}


def _scores(folder: Path, rows: list[Record]) -> Scores:
    return Scores(folder, pd.DataFrame(rows).sort_values("index", ignore_index=True).drop(columns="index"))
