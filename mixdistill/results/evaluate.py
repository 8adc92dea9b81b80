"""Evaluation: a student on benchmarks, one row a completion, stored beside the run and resumable."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from mixdistill import runs
from mixdistill.data.chat import render_prompts
from mixdistill.data.problems import Problem, load_problems
from mixdistill.data.students import fingerprint, n_params, student_source
from mixdistill.finetuning.finetune import TRAINING_VERSION, load_trained
from mixdistill.finetuning.memory_model import kv_bytes
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
EVALUATION_VERSION = 2
# Prompts decoded, graded and stored at a time: what a kill can cost, against the wait for the longest answer of each batch.
BATCH_SIZE = {"static": 256, "continuous": 256, "vllm": 1024}
LONGEST = 16_000  # new tokens, where no limit is given: the paper's
PROMPT_ROOM = 1000  # tokens: more than a prompt of these benchmarks has


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
        """By benchmark, and as the mean over the benchmarks: accuracy with its 95% interval, and how the answers ended."""
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
    benchmarks: Sequence[str | list[Problem]],
    *,
    n: int | None = None,
    split: str = "test",
    max_new_tokens: int | None = None,
    sampling: Sampling = Sampling(),
    engine: str | None = None,
    batch_size: int | None = None,
    revision: str | None = None,
    progress: bool = True,
    stored_only: bool = False,
) -> Scores | None:
    """Evaluate a run, or an untouched student; an evaluation that the store already holds is read from it.

    Arguments:
        run: what `finetune` returned; a run's folder; or a student's name as in `load_student`.
        benchmarks: names for `load_problems`, or lists of problems.
        n, split: for benchmarks given by name, as in `load_problems`.
        max_new_tokens: None means what the student's context leaves, at most 16,000.
        sampling: greedy unless a temperature is given.
        engine: `static`, `continuous` or `vllm` (`generate`); None means the fastest that this machine has.
        batch_size: prompts decoded, graded and stored at a time; None means what `default_batch_size` gives.
        revision: commit of a Hub model, where `run` is a student's name.
        progress: print a line after each batch.
        stored_only: evaluate nothing; return None if the store has no such evaluation.

    Raises:
        ValueError: no benchmark, an unknown one, the same problem twice, a prompt longer than the context, an engine that is
            not here, or a run that is damaged or not finished.
        RuntimeError: an engine has left prompts without completion; what was finished before is stored.
    """
    if engine is not None:
        check_engine(engine, sampling)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it is at least 1, or None")
    run = _as_run(run, revision)
    engine = engine or default_engine(n_params(run.student, run.config["revision"]), sampling)
    problems = _problems(benchmarks, n, split)
    config = {
        "version": EVALUATION_VERSION,
        "problems": runs.key({"problems": [asdict(problem) for problem in problems]}),
        "n_problems": len(problems),
        "max_new_tokens": max_new_tokens,
        "sampling": asdict(sampling),
    }
    folder = run.folder / "evaluations" / runs.key(config)
    stored = (folder / "scores.json").is_file()
    if stored_only and not stored:
        return None
    if not stored:
        with runs.lock(folder):
            if not (folder / "scores.json").is_file():
                runs.start(run)
                # Not part of the hash, so that a laptop reads what a GPU has computed; an evaluation goes on as it began.
                how = {"engine": engine, "batch_size": batch_size or default_batch_size(run, engine, max_new_tokens)}
                if (folder / "config.json").is_file():
                    how = {name: runs.read_json(folder / "config.json")[name] for name in how}
                    check_engine(how["engine"], sampling)
                runs.write_json(folder / "config.json", config | how)
                _evaluate(run, problems, config | how, sampling, folder, progress)
    return Scores(folder, _read_items(folder, len(problems) * sampling.n))


def _evaluate(
    run: Run, problems: list[Problem], config: dict, sampling: Sampling, folder: Path, progress: bool
) -> None:
    tokenizer, context, complete_batch = _open(run, config["engine"])
    prompts, room = render_prompts(tokenizer, problems, context, config["max_new_tokens"])
    requests = [(i, sample) for i in range(len(problems)) for sample in range(sampling.n)]
    batches = length_sorted_batches([prompts[i] for i, _ in requests], config["batch_size"])
    file = folder / "generations.jsonl"
    done = _finished_batches(file, batches)
    for number, batch in enumerate(batches[done:], start=done + 1):
        asked_with = [prompts[requests[at][0]] for at in batch]
        completions = complete_batch(asked_with, room, sampling, streams=batch, progress=progress)
        asked = [problems[requests[at][0]] for at in batch]
        verdicts = _graded(asked, completions)
        rows = [
            {"index": at} | _row(problem, requests[at][1], len(prompts[requests[at][0]]), completion, verdict)
            for at, problem, completion, verdict in zip(batch, asked, completions, verdicts, strict=True)
        ]
        with file.open("a") as out:
            out.write("".join(json.dumps(row) + "\n" for row in rows))
            out.flush()
            os.fsync(out.fileno())
        if progress:
            print(f"{run.folder.name}: {number}/{len(batches)} batches decoded", flush=True)
    scores = Scores(folder, _read_items(folder, len(requests)))
    summary = {row.pop("benchmark"): row for row in scores.table().to_dict("records")}
    runs.write_json(folder / "manifest.json", {"max_new_tokens": room} | runs.machine())
    runs.write_json(folder / "scores.json", {"accuracy": scores.accuracy, "benchmarks": summary})


def _open(run: Run, engine: str) -> tuple[PreTrainedTokenizerBase, int, Complete]:
    """The run's tokenizer, its context, and the function that completes a batch of prompts."""
    if engine != "vllm":
        student = load_trained(run)
        return student.tokenizer, student.context, partial(complete, student, engine=engine)
    lora = run.config.get("lora")
    if run.trained and lora is None:
        return open_vllm(str(run.folder / "model"), None, None, 0)
    adapter = run.folder / "adapter" if run.trained else None
    return open_vllm(student_source(run.student), run.config["revision"], adapter, lora["r"] if lora else 0)


def _graded(problems: list[Problem], completions: list[Completion]) -> list[Grade]:
    verdicts: dict[int, Grade] = {}
    for answer_format in {problem.answer_format for problem in problems}:
        places = [at for at, problem in enumerate(problems) if problem.answer_format == answer_format]
        texts, golds = [completions[at].text for at in places], [problems[at].answer for at in places]
        verdicts |= zip(places, grade_all(texts, golds, answer_format), strict=True)
    return [verdicts[at] for at in range(len(problems))]


def _row(problem: Problem, sample: int, n_prompt_tokens: int, completion: Completion, verdict: Grade) -> dict:
    return {
        "benchmark": problem.source,
        "problem_id": problem.id,
        "level": problem.level,
        "subject": problem.subject,
        "question": problem.question,
        "gold": problem.answer,
        "sample": sample,
        "response": completion.text,
        "answer": verdict.answer,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "finish_reason": completion.finish_reason,
        "loop": completion.loop,
        "n_prompt_tokens": n_prompt_tokens,
        "n_tokens": completion.n_tokens,
        "engine": completion.engine,
        "dtype": completion.dtype,
        "batch": completion.batch,
    }


def default_batch_size(run: Run, engine: str, max_new_tokens: int | None) -> int:
    """256 prompts, or as many (a power of 2) as have their whole cache in half of the free memory; more for an engine with a
    paged cache, which holds back itself what does not fit."""
    if engine != "static":
        return BATCH_SIZE[engine]
    config = AutoConfig.from_pretrained(student_source(run.student), revision=run.config["revision"])
    cuda = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    length = min(config.max_position_embeddings, (max_new_tokens or LONGEST) + PROMPT_ROOM)
    fit = free // 2 // (length * kv_bytes(config) * (1 if cuda else 2))  # float32 on a CPU
    return min(BATCH_SIZE[engine], 2 ** (max(1, fit).bit_length() - 1))


def _as_run(run: Run | str | Path, revision: str | None) -> Run:
    if isinstance(run, Run):
        return run
    if isinstance(run, Path) or Path(run).resolve().parent == runs.runs_dir().resolve():
        return runs.open_run(run)
    return untouched(run, revision)


def untouched(student: str, revision: str | None = None) -> Run:
    """The run of a student that nothing was done to."""
    return runs.run_of(
        {
            "version": TRAINING_VERSION,
            "student": student,
            "fingerprint": fingerprint(student, revision),
            "revision": revision,
            "train": None,
        }
    )


def _problems(benchmarks: Sequence[str | list[Problem]], n: int | None, split: str) -> list[Problem]:
    if isinstance(benchmarks, str):
        benchmarks = [benchmarks]
    problems: list[Problem] = []
    for benchmark in benchmarks:
        problems += load_problems(benchmark, n=n, split=split) if isinstance(benchmark, str) else benchmark
    if not problems:
        raise ValueError("there is nothing to evaluate: give at least one benchmark with at least one problem")
    if len({problem.id for problem in problems}) < len(problems):
        raise ValueError(f"{len(problems)} problems have {len({p.id for p in problems})} different ids: give each once")
    return problems


def _finished_batches(file: Path, batches: list[list[int]]) -> int:
    """How many whole batches a killed evaluation has left; what it left of a further one is cut off."""
    if not file.is_file():
        return 0
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    done = n_rows = 0
    while done < len(batches) and n_rows + len(batches[done]) <= len(lines):
        n_rows += len(batches[done])
        done += 1
    runs.replace(file, lambda path: path.write_text("".join(lines[:n_rows])))
    return done


def _read_items(folder: Path, n: int) -> pd.DataFrame:
    file = folder / "generations.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} is damaged ({error}): delete the folder {str(folder)!r} and evaluate again"
        ) from error
    if len(rows) != n:
        raise ValueError(
            f"{str(file)!r} holds {len(rows)} completions, not {n}: delete the folder {str(folder)!r} and evaluate again"
        )
    items = pd.DataFrame(rows).sort_values("index", ignore_index=True)
    return items.drop(columns="index")
