"""Evaluation: a student on benchmarks, one row an item, stored beside the run and resumable."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from mixdistill import runs, stats
from mixdistill.chat import render_prompts
from mixdistill.finetune import TRAINING_VERSION, load_trained
from mixdistill.generate import Sampling, complete, length_sorted_batches
from mixdistill.grade import grade
from mixdistill.problems import Problem, load_problems
from mixdistill.runs import Run
from mixdistill.students import fingerprint

# Raised whenever the same evaluation would give another result than before (rendering, decoding, grading).
EVALUATION_VERSION = 1


@dataclass(frozen=True, repr=False)
class Scores:
    """The result of an evaluation; a notebook shows it as a table.

    `items` has one row a problem: benchmark, problem_id, level, question, gold, response, answer, correct, reason,
    finish_reason, n_tokens.
    """

    folder: Path
    items: pd.DataFrame

    @property
    def accuracy(self) -> float:
        return float(self.items["correct"].mean())

    def table(self) -> pd.DataFrame:
        """Accuracy with its 95% interval, and rates of truncated and missing answers, by benchmark and over all problems."""
        whole = self.items.assign(benchmark="all")
        return stats.accuracy_table(pd.concat([self.items, whole]).assign(seed=0), ["benchmark"]).drop(
            columns="n_seeds"
        )

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
    batch_size: int = 128,
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
        batch_size: prompts decoded together.
        revision: commit of a Hub model, where `run` is a student's name.
        progress: print a line after each batch.
        stored_only: evaluate nothing; return None if the store has no such evaluation.

    Raises:
        ValueError: no benchmark, an unknown one, the same problem twice, a prompt longer than the context, or a run that is
            damaged or not finished.
    """
    run = _as_run(run, revision)
    problems = _problems(benchmarks, n, split)
    config = {
        "version": EVALUATION_VERSION,
        "problems": runs.key({"problems": [asdict(problem) for problem in problems]}),
        "n_problems": len(problems),
        "max_new_tokens": max_new_tokens,
        "sampling": asdict(sampling),
        "batch_size": batch_size,
    }
    folder = run.folder / "evaluations" / runs.key(config)
    stored = (folder / "scores.json").is_file()
    if stored_only and not stored:
        return None
    if not stored:
        with runs.lock(folder):
            if not (folder / "scores.json").is_file():
                runs.start(run)
                runs.write_json(folder / "config.json", config)
                _evaluate(run, problems, config, sampling, folder, progress)
    return Scores(folder, _read_items(folder, problems))


def _evaluate(
    run: Run, problems: list[Problem], config: dict, sampling: Sampling, folder: Path, progress: bool
) -> None:
    student = load_trained(run)
    prompts, room = render_prompts(student.tokenizer, problems, student.context, config["max_new_tokens"])
    batches = length_sorted_batches(prompts, config["batch_size"])
    file = folder / "generations.jsonl"
    done = _finished_batches(file, batches)
    for number, batch in enumerate(batches[done:], start=done + 1):
        # Each batch has a seed of its own, so that a resumed evaluation samples what an undisturbed one does.
        choice = replace(sampling, seed=sampling.seed + number)
        completions = complete(student, [prompts[i] for i in batch], room, choice)
        rows = []
        for i, completion in zip(batch, completions, strict=True):
            problem = problems[i]
            verdict = grade(completion.text, problem.answer, problem.kind)
            rows.append(
                {
                    "index": i,
                    "benchmark": problem.source,
                    "problem_id": problem.id,
                    "level": problem.level,
                    "question": problem.question,
                    "gold": problem.answer,
                    "response": completion.text,
                    "answer": verdict.answer,
                    "correct": verdict.correct,
                    "reason": verdict.reason,
                    "finish_reason": completion.finish_reason,
                    "n_tokens": completion.n_tokens,
                }
            )
        with file.open("a") as out:
            out.write("".join(json.dumps(row) + "\n" for row in rows))
            out.flush()
            os.fsync(out.fileno())
        if progress:
            print(f"{run.folder.name}: {number}/{len(batches)} batches decoded", flush=True)
    scores = Scores(folder, _read_items(folder, problems))
    summary = {row.pop("benchmark"): row for row in scores.table().to_dict("records")}
    runs.write_json(folder / "manifest.json", {"max_new_tokens": room} | runs.machine())
    runs.write_json(folder / "scores.json", {"accuracy": scores.accuracy, "benchmarks": summary})


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


def _read_items(folder: Path, problems: list[Problem]) -> pd.DataFrame:
    file = folder / "generations.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(file)!r} is damaged ({error}): delete the folder {str(folder)!r} and evaluate again"
        ) from error
    if len(rows) != len(problems):
        raise ValueError(
            f"{str(file)!r} holds {len(rows)} completions for {len(problems)} problems: delete the folder {str(folder)!r} and "
            "evaluate again"
        )
    items = pd.DataFrame(rows).sort_values("index", ignore_index=True)
    return items.drop(columns="index")
