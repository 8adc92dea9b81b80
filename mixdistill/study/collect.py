"""One's own traces by rejection sampling: ask a teacher, grade, keep what is right, count what is not."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from mixdistill import arguments, files, runs
from mixdistill.data.problems import POCKET_TIERS, Problem, load_problems
from mixdistill.data.traces import N_POCKET
from mixdistill.generation.sampling import Sampling
from mixdistill.results.evaluate import as_run, evaluate
from mixdistill.runs import Run
from mixdistill.study.scales import Scale, TraceSet, recipe_arm
from mixdistill.study.sweep import trained, training_set

KEEP = ("all", "shortest", "longest", "random")
OPTIONS = ("max_new_tokens", "engine", "batch_size", "thinking", "progress")
FATES = ("kept", "wrong", "no_answer", "truncated", "unreadable", "duplicate", "not_chosen")


@dataclass(frozen=True)
class Collected:
    """What a teacher gave: `traces` as `load_traces` gives them; `counts`, one row a problem, how many of its
    completions were kept, wrong, ... (`FATES`); and the `folder` with every completion."""

    traces: Dataset
    counts: pd.DataFrame
    folder: Path

    def summary(self) -> pd.Series:
        """Totals over all problems, and how many problems have a trace."""
        solved = {"problems": len(self.counts), "problems_with_trace": int((self.counts["kept"] > 0).sum())}
        return pd.concat([pd.Series(solved), self.counts[list(FATES)].sum()])


def collect_traces(
    teacher: Run | str | Path,
    problems: Sequence[Problem],
    n: int = 1,
    *,
    keep: str = "all",
    style: str = "",
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    revision: str | None = None,
    **options: Any,
) -> Collected:
    """Sample completions of a teacher for every problem and keep the right ones, as the paper made its data.

    A killed collection goes on with the problems that were not finished, and a repeated one only reads, whatever `keep`
    says.

    Arguments:
        teacher: a student's name as in `load_student`, or a run: anything that can answer.
        n: completions a problem; 1 at temperature 0.
        keep: of a problem's right completions `all`, or the `shortest`, the `longest` (in tokens), or a `random` one.
        style: a label for the set, such as `long`.
        options: of `evaluate`: those in `OPTIONS`.

    Raises ValueError for a bad argument, no problem, or not one right completion (the message counts the reasons).
    """
    arguments.choice("keep", keep, KEEP)
    for name in options:
        arguments.choice("an option", name, OPTIONS)
    if isinstance(problems, str) or not isinstance(problems, Sequence):
        raise ValueError(f"problems is {arguments.shown(problems)}: give a list of them, as from load_problems")
    style = arguments.text("style", style, empty=True)
    sampling, asked = Sampling(temperature, top_p, seed, n), as_run(teacher, revision)
    formats = {arguments.instance("a problem", problem, Problem).id: problem.answer_format for problem in problems}
    if len(formats) < len(problems):
        raise ValueError(f"{len(problems)} problems have {len(formats)} different ids: each trace has its problem's")
    scores = evaluate(asked, problems, sampling=sampling, **options)
    assert scores is not None  # as always without stored_only
    name, items = asked.config["student"], scores.items.assign(fate=_fates(scores.items, keep, sampling.seed))
    counts = pd.crosstab(items["problem_id"], items["fate"])
    counts = counts.reindex(index=list(formats), columns=list(FATES), fill_value=0).rename_axis(columns=None)
    kept = items.loc[items["fate"] == "kept", ["problem_id", "question", "response"]]
    if "opens_thinking" in files.read_json(scores.folder / "config.json"):  # the prompt did, so no completion does
        kept["response"] = "<think>\n" + kept["response"]
    traces = kept.assign(teacher=name, style=style, answer_format=kept["problem_id"].map(formats)).to_dict("records")
    collected = Collected(Dataset.from_list(traces), counts.reset_index(names="problem_id"), scores.folder)
    total = collected.summary()
    said = ", ".join(f"{total[fate]} {fate.replace('_', ' ')}" for fate in FATES if total[fate])
    if kept.empty:
        what = f"none of the {len(items)} completions by {name!r} is right ({said})"
        raise ValueError(f"{what}: give easier problems, a stronger teacher, a larger n or a larger max_new_tokens")
    n_solved = total["problems_with_trace"]
    if n_solved < len(problems):
        said = f"{name!r} gave a right answer to {n_solved} of {len(problems)} problems; completions: {said}"
        warnings.warn(said, stacklevel=2)
    return collected


def _fates(items: pd.DataFrame, keep: str, seed: int) -> pd.Series:
    """What becomes of every completion. One that was cut is no whole trace, even with the right box in it."""
    cases = {
        "truncated": items["finish_reason"] == "length",
        "no_answer": items["reason"] == "no_answer",
        "wrong": ~items["correct"] & (items["reason"] == "different"),
        "unreadable": ~items["correct"],
    }
    fate = pd.Series(np.select(list(cases.values()), list(cases), "kept"), items.index)
    right = items[fate == "kept"]
    again = right.duplicated(["problem_id", "response"])
    fate[again.index[again]] = "duplicate"
    right = right[~again]
    if keep == "random":
        right = right.sample(frac=1, random_state=np.random.default_rng(seed))
    elif keep != "all":
        right = right.sort_values("n_tokens", ascending=keep == "shortest", kind="stable")
    if keep != "all":
        fate[right.index[right.duplicated("problem_id")]] = "not_chosen"
    return fate


def trained_teachers(scale: Scale) -> tuple[Scale, pd.DataFrame]:
    """A pocket scale with trace sets of a large and a small *trained* teacher (the paper's section 3.2).

    The teachers are the scale's largest and smallest student, fine-tuned on long traces with seed 0. Each answers about
    twice as many problems of the training split as the scale trains on, from all tiers and none of its own training, 4
    times at temperature 0.7. Of the problems that both solve, the first `n_train` are kept, each with one of its right
    answers at random.

    Returns: the scale, its `large` and `small` being files in the run store; and a table [problems asked] of which
        teacher solved which at least once, and which were kept: problem_id, level, large, small, both, kept.

    Raises ValueError for a scale of real models, or if no problem is solved by both.
    """
    if not arguments.instance("scale", scale, Scale).pocket:
        raise ValueError(f"the scale {scale.name!r} has real models: give it trace sets of its teachers")
    small, large = scale.students[0], scale.students[-1]
    if small == large:
        raise ValueError(f"the scale has one student, {small}: a large and a small teacher are two, add one")
    n, given, parts = scale.n_train or N_POCKET, {}, {}
    tiers = [load_problems(tier, n=ceil(2 * n / len(POCKET_TIERS)), split="train") for tier in POCKET_TIERS]
    own = set(training_set(recipe_arm(small, "long", 0), scale)["problem_id"])
    problems = [problem for row in zip(*tiers, strict=True) for problem in row if problem.id not in own]
    table = pd.DataFrame([{"problem_id": problem.id, "level": problem.level} for problem in problems])
    for role, student in (("large", large), ("small", small)):
        run = trained(recipe_arm(student, "long", 0), scale)
        assert run is not None  # as always without stored_only
        with warnings.catch_warnings(action="ignore"):  # that some are not solved: the table says which
            given[role] = collect_traces(run, problems, 4, keep="random", style=role, batch_size=1024)
        table[role] = table["problem_id"].isin(given[role].traces["problem_id"][:])
    table["both"] = table["large"] & table["small"]
    table["kept"] = table["both"] & (table["both"].cumsum() <= n)
    common = table["problem_id"][table["kept"]].tolist()
    if not common:
        raise ValueError("no problem is solved by both teachers: give the scale a larger n_train or more epochs")
    answers = {role: f"{found.folder.parents[1].name}/{found.folder.name}" for role, found in given.items()}
    folder = runs.runs_dir() / "teachers" / files.key(answers | {"common": common})
    for role, collected in given.items():
        path, traces = folder / f"{role}.jsonl", collected.traces.to_pandas().set_index("problem_id")
        text = traces.loc[common].reset_index().to_json(orient="records", lines=True)
        if not files.present(path) or path.read_text() != text:  # a second call only reads
            files.replace(path, partial(Path.write_text, data=text))
        parts[role] = TraceSet(str(path), answer_format="pocket")
    return replace(scale, large=parts["large"], small=parts["small"]), table
