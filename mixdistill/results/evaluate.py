"""Evaluation: a student on benchmarks, one row a completion, stored beside the run and resumable."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from mixdistill import arguments, files, runs
from mixdistill.data.chat import prompt_fingerprint, render_prompts
from mixdistill.data.problems import Problem, load_problems
from mixdistill.data.students import fingerprint, load_tokenizer, n_params, student_source
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.finetuning.finetune import TRAINING_VERSION
from mixdistill.generation.generate import (
    Completion,
    Sampling,
    check_engine,
    complete,
    default_engine,
    length_sorted_batches,
)
from mixdistill.generation.vllm_engine import Complete, open_vllm
from mixdistill.grading.grade import Grade, grade_all
from mixdistill.results import stats
from mixdistill.runs import Run

# Raised whenever the same evaluation would give another result than before (rendering, decoding, grading).
EVALUATION_VERSION = 3
# Prompts decoded, graded and stored at a time: what a kill can cost, against the wait for the longest answer of each
# batch.
BATCH_SIZE = {"static": 256, "continuous": 256, "vllm": 1024}

Benchmarks = str | Path | Problem | Sequence["Benchmarks"]


@dataclass(frozen=True, repr=False)
class Scores:
    """The result of an evaluation; a notebook shows it as a table.

    `items` has one row a completion, as `generations.jsonl` in `folder` has it:

    | columns                                   | what                                                              |
    |-------------------------------------------|-------------------------------------------------------------------|
    | benchmark, problem_id, level, subject     | the problem                                                       |
    | question, gold                            | its text and its right answer                                     |
    | sample                                    | 0, or which of the several completions of the problem             |
    | response, answer                          | the completion, and the final answer extracted from it or None    |
    | correct, reason                           | the grade (`grade.Grade`)                                         |
    | finish_reason, loop                       | `stop` or `length`; whether the completion's tail repeats itself  |
    | n_prompt_tokens, n_tokens                 | tokens of the prompt, and of the completion with its stop token   |
    | engine, dtype, batch                      | how it was decoded (`generate.Completion`)                        |
    """

    folder: Path
    items: pd.DataFrame

    @property
    def accuracy(self) -> float:
        """Mean over the benchmarks, each of which counts the same, as in the paper."""
        return float(self.items.groupby("benchmark")["correct"].mean().mean())

    def table(self) -> pd.DataFrame:
        """By benchmark, and as the mean over the benchmarks: accuracy with its 95% interval, and how the answers
        ended.
        """
        items = self.items.assign(seed=0)
        mean = stats.accuracy_table(items, []).assign(benchmark="mean")
        table = pd.concat([stats.accuracy_table(items, ["benchmark"]), mean], ignore_index=True)
        return table.drop(columns=["n_seeds", "n_bases"] + ["n_samples"] * bool((table["n_samples"] == 1).all()))

    def __repr__(self) -> str:
        return self.table().to_string(index=False)

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, float_format=lambda value: f"{value:.3f}")


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
    """Evaluate a run, or an untouched student; an evaluation that the store already holds is read from it.

    Arguments:
        run: what `finetune` returned; a run's folder, in the store or in a copy; or an untouched student as in
            `load_student`.
        benchmarks: a name or file for `load_problems`, a list of problems, or a list of these.
        n, split: for benchmarks given by name, as in `load_problems`.
        max_new_tokens: None means what the student's context leaves, at most 16,000.
        sampling: greedy unless a temperature is given.
        engine: `static`, `continuous` or `vllm` (`generate`); None means the fastest that this machine has.
        batch_size: prompts decoded, graded and stored at a time; no part of the result. None means 256, with vLLM 1024.
        revision: commit of a Hub model, where `run` is a student's name.
        thinking: for chat templates with such a switch; None means what the template does by itself.
        progress: print a line after each batch.
        stored_only: evaluate nothing; return None if the store has no such evaluation.

    Raises:
        ValueError: a bad argument, no benchmark, an unknown one, the same problem twice, a problem without gold answer,
            a prompt longer than the context, an engine that is not here, or a run that is damaged or not finished.
        OSError: the store can not be read or written.
        RuntimeError: an engine has left prompts without completion; what was finished before is stored.
    """
    arguments.whole("n", n, optional=True)
    arguments.text("split", split, optional=True)
    max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, optional=True)
    arguments.instance("sampling", sampling, Sampling)
    if engine is not None:
        check_engine(engine, sampling)
    batch_size = arguments.whole("batch_size", batch_size, optional=True)
    arguments.flag("thinking", thinking, optional=True)
    arguments.flag("progress", progress)
    arguments.flag("stored_only", stored_only)
    problems = _problems(benchmarks, n, split)
    run = as_run(run, revision)
    config = {
        "version": EVALUATION_VERSION,
        "problems": files.key({"problems": [asdict(problem) for problem in problems]}),
        "n_problems": len(problems),
        "max_new_tokens": max_new_tokens,
        # Greedily, neither seed nor top_p changes anything.
        "sampling": asdict(Sampling() if sampling.greedy else sampling),
        "thinking": thinking,
        "prompts": _prompts_seen(run.student, run.config["revision"], run.config["fingerprint"], thinking),
    }
    folder = run.folder / "evaluations" / files.key(config)
    if stored_only and not (folder / "scores.json").is_file():
        return None
    how = {"engine": engine, "batch_size": batch_size}
    runs.once(folder, "scores.json", partial(_evaluate, run, problems, config, how, sampling, folder, progress))
    return _read_scores(run, folder, config, len(problems) * sampling.n)


def untouched(student: str | Path, revision: str | None = None) -> Run:
    """The run of a student that nothing was done to."""
    student, revision = arguments.text("student", student), arguments.text("revision", revision, optional=True)
    return runs.run_of(
        {
            "version": TRAINING_VERSION,
            "student": student,
            "fingerprint": fingerprint(student, revision),
            "revision": revision,
            "train": None,
        }
    )


@lru_cache(maxsize=256)
def _prompts_seen(student: str, revision: str | None, fingerprint: str, thinking: bool | None) -> str:
    return prompt_fingerprint(load_tokenizer(student_source(student), revision), thinking)


def as_run(run: Run | str | Path, revision: str | None = None) -> Run:
    """The finished run that `evaluate` is given: itself, a run's folder, or an untouched student's."""
    if not isinstance(run, Run) and not runs.is_run_folder(name := arguments.text("run", run)):
        return untouched(name, revision)
    if revision is not None:
        raise ValueError(f"revision is {revision!r}: it is for a student's name, a run has its own")
    if not isinstance(run, Run):
        return runs.open_run(name)
    if run.trained:
        runs.open_run(run.folder)  # is it finished, and what it was?
    return run


def _problems(benchmarks: Benchmarks, n: int | None, split: str | None) -> list[Problem]:
    items = benchmarks if isinstance(benchmarks, list | tuple) else [benchmarks]
    named = any(isinstance(item, str | os.PathLike) for item in items)
    if not named and (n is not None or split is not None):
        raise ValueError(
            f"n is {n} and split {split!r}: they are for benchmarks by name, take them off lists of problems"
        )
    problems: list[Problem] = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            problems += load_problems(item, n=n, split=split)
        elif isinstance(item, Problem | list | tuple):
            problems += [item] if isinstance(item, Problem) else item
        else:
            raise ValueError(
                f"benchmarks has a {type(item).__name__} in it: give a benchmark's name, a list of problems, or a list "
                "of these"
            )
    for problem in problems:
        arguments.instance("a problem", problem, Problem)
    if not problems:
        raise ValueError("there is nothing to evaluate: give at least one benchmark with at least one problem")
    n_ids = len({(problem.source, problem.id) for problem in problems})
    if n_ids < len(problems):
        raise ValueError(f"{len(problems)} problems have {n_ids} different ids: give each once")
    return problems


def _evaluate(
    run: Run, problems: list[Problem], config: dict, how: dict, sampling: Sampling, folder: Path, progress: bool
) -> dict:
    """Decode, grade and store what is missing, batch by batch; returns the summary for `scores.json`."""
    path, file, owner = folder / "config.json", folder / "generations.jsonl", _owner(run, folder)
    # `how` is not part of the name, so that a laptop reads what a GPU has computed; an evaluation goes on as it began.
    if path.is_file():
        how = _read_config(folder, config)
    engine = how.get("engine") or default_engine(n_params(run.student, run.config["revision"]), sampling)
    check_engine(engine, sampling)
    batch_size = arguments.whole("batch_size", how.get("batch_size") or BATCH_SIZE[engine])
    tokenizer, context, complete_batch = _open(run, engine)
    prompts, room = render_prompts(tokenizer, problems, context, config["max_new_tokens"], config["thinking"])
    requests = [(i, sample) for i in range(len(problems)) for sample in range(sampling.n)]
    batches = length_sorted_batches([prompts[i] for i, _ in requests], batch_size)

    files.sweep_up(run.folder, held=folder)
    if not run.trained:
        with files.lock(run.folder):
            runs.start(run)
    files.write_json(path, config | {"engine": engine, "batch_size": batch_size})
    rows = files.read_rows(file, owner)
    done = len(rows) // batch_size if len(rows) < len(requests) else len(batches)
    rows = rows[: done * batch_size]
    files.append_rows(file, rows, owner, at=0)  # without what a kill has left of a further batch
    for number, batch in enumerate(batches[done:], start=done + 1):
        asked = [problems[requests[at][0]] for at in batch]
        asked_with = [prompts[requests[at][0]] for at in batch]
        completions = complete_batch(asked_with, room, sampling, streams=batch, progress=progress)
        grades = _graded(asked, completions)
        new = [
            _row(at, asked[i], requests[at][1], len(asked_with[i]), completions[i], grades[i])
            for i, at in enumerate(batch)
        ]
        files.append_rows(file, new, owner, at=len(rows))
        rows += new
        if progress:
            print(f"{run.folder.name}: {number}/{len(batches)} batches decoded", flush=True)
    scores = Scores(folder, _items(rows))
    summary = {row.pop("benchmark"): row for row in scores.table().to_dict("records")}
    files.write_json(folder / "manifest.json", {"max_new_tokens": room} | runs.machine())
    return {"accuracy": scores.accuracy, "benchmarks": summary}


def _open(run: Run, engine: str) -> tuple[PreTrainedTokenizerBase, int, Complete]:
    """The run's tokenizer, its context, and the function that completes a batch of prompts."""
    if engine != "vllm":
        student = load_trained(run)
        return student.tokenizer, student.context, partial(complete, student, engine=engine)
    trained = runs.trained_folder(run) if run.trained else None
    lora = run.config["lora"] if run.trained else None
    if run.trained and lora is None:
        return open_vllm(str(trained), None, None, 0)
    return open_vllm(student_source(run.student), run.config["revision"], trained, lora["r"] if lora else 0)


def _graded(problems: list[Problem], completions: list[Completion]) -> list[Grade]:
    verdicts: dict[int, Grade] = {}
    for answer_format in {problem.answer_format for problem in problems}:
        places = [at for at, problem in enumerate(problems) if problem.answer_format == answer_format]
        texts, golds = [completions[at].text for at in places], [problems[at].answer for at in places]
        verdicts |= zip(places, grade_all(texts, golds, answer_format), strict=True)
    return [verdicts[at] for at in range(len(problems))]


def _row(at: int, problem: Problem, sample: int, n_prompt_tokens: int, completion: Completion, grade: Grade) -> dict:
    return {
        "index": at,
        "benchmark": problem.source,
        "problem_id": problem.id,
        "level": problem.level,
        "subject": problem.subject,
        "question": problem.question,
        "gold": problem.answer,
        "sample": sample,
        "response": completion.text,
        "answer": grade.answer,
        "correct": grade.correct,
        "reason": grade.reason,
        "finish_reason": completion.finish_reason,
        "loop": completion.loop,
        "n_prompt_tokens": n_prompt_tokens,
        "n_tokens": completion.n_tokens,
        "engine": completion.engine,
        "dtype": completion.dtype,
        "batch": completion.batch,
    }


def _read_config(folder: Path, config: dict) -> dict:
    stored = files.read_json(folder / "config.json")
    if any(stored.get(name, ...) != value for name, value in config.items()):
        raise files.damaged(folder / "config.json", "it is not this evaluation's")
    return stored


def _owner(run: Run, folder: Path) -> str:
    """Whose rows they are: of this run and this evaluation."""
    return f"{runs.run_key(run.config)}/{folder.name}"


def _read_scores(run: Run, folder: Path, config: dict, n: int) -> Scores:
    _read_config(folder, config)
    summary = files.read_json(folder / "scores.json")
    rows = files.read_rows(folder / "generations.jsonl", _owner(run, folder))
    if len(rows) != n:
        raise files.damaged(folder / "generations.jsonl", f"row {len(rows) + 1} of {n} is missing or was changed")
    scores = Scores(folder, _items(rows))
    accuracy = summary.get("accuracy")
    if not isinstance(accuracy, float) or not math.isclose(accuracy, scores.accuracy):
        raise files.damaged(folder / "scores.json", f"its accuracy is {accuracy}, that of the rows {scores.accuracy}")
    return scores


def _items(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).sort_values("index", ignore_index=True).drop(columns="index")
