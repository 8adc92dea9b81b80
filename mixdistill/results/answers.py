"""The stored answers of an evaluation: how a row is made, graded, and found again in other evaluations of its run."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mixdistill import files, runs
from mixdistill.data.problems import Problem
from mixdistill.files import Record
from mixdistill.generation.generate import Completion
from mixdistill.grading.grade import GRADING_VERSION, Grade, grade_all
from mixdistill.runs import Run


def row_of(
    at: int, problem: Problem, prompt: Sequence[int], sample: int, completion: Completion, grade: Grade
) -> Record:
    """What `generations.jsonl` holds of a completion; `at` is its place among all that the evaluation asks for."""
    asked = {"index": at, "benchmark": problem.source, "problem_id": problem.id, "level": problem.level}
    asked |= {"subject": problem.subject, "question": problem.question, "gold": problem.answer}
    asked |= {"sample": sample, "n_prompt_tokens": len(prompt)}
    return asked | asdict(completion) | asdict(grade)


def graded(problems: Sequence[Problem], responses: Sequence[str], config: Record) -> list[Grade]:
    """The grades of completions, behind what their prompts have opened."""
    opened = "<think>" if "opens_thinking" in config else ""
    grades: dict[int, Grade] = {}  # by place
    for answer_format in {problem.answer_format for problem in problems}:
        places = [at for at, problem in enumerate(problems) if problem.answer_format == answer_format]
        texts, golds = [opened + responses[at] for at in places], [problems[at].answer for at in places]
        grades |= zip(places, grade_all(texts, golds, answer_format), strict=True)
    return [grades[at] for at in range(len(problems))]


def graded_anew(rows: list[Record], problems: list[Problem], config: Record) -> list[Record]:
    """Stored rows with the grades that today's rules give."""
    asked = [problems[row["index"] // config["sampling"]["n"]] for row in rows]
    grades = graded(asked, [row["response"] for row in rows], config)
    return [row | asdict(grade) for row, grade in zip(rows, grades, strict=True)]


def key_of(problems: list[Problem]) -> str:
    """Hash of all that is asked, and of how it is graded."""
    return files.key({"problems": [asdict(problem) for problem in problems]})


def owner_of(run: Run, folder: Path) -> str:
    """Whose the rows are: this run's, of this evaluation."""
    return f"{runs.run_key(run.config)}/{folder.name}"


def known(run: Run, problems: list[Problem], config: Record, room: int) -> tuple[list[Record], int]:
    """Rows of the run's finished evaluations that asked some of these problems and nothing else, in the same way and
    with as many new tokens (`room`), such as SVAMP alone where SVAMP and GSM8K are asked now.

    Returns: the rows, with their places among all of these; and the version of the oldest rules that graded any.
    """
    places = {(problem.source, problem.id): at for at, problem in enumerate(problems)}
    found, oldest = dict[int, Record](), GRADING_VERSION
    for last in sorted((run.folder / "evaluations").glob("*/scores.json")):
        with contextlib.suppress(OSError, KeyError, TypeError, files.Damaged):  # no answer of it is taken
            stored = files.read_json(last.parent / "config.json")
            asked = {name: stored[name] for name in config}
            if files.key(asked) != last.parent.name or asked["n_problems"] > len(problems):
                continue
            asked["max_new_tokens"] = files.read_json(last.parent / "manifest.json")["max_new_tokens"]
            others = config | {"max_new_tokens": room, "problems": asked["problems"], "n_problems": asked["n_problems"]}
            if asked != others:
                continue
            graded_by = min(oldest, stored.get("grading", 0))
            rows = files.read_rows(last.parent / "generations.jsonl", owner_of(run, last.parent))
            rows.sort(key=lambda row: row["index"])
            at = [places[row["benchmark"], row["problem_id"]] for row in rows]  # KeyError: it asked others, too
            if key_of([problems[place] for place in dict.fromkeys(at)]) != asked["problems"]:
                continue
            found |= {place * config["sampling"]["n"] + row["sample"]: row for place, row in zip(at, rows, strict=True)}
            oldest = graded_by
    return [row | {"index": place} for place, row in found.items()], oldest
