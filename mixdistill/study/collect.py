"""One's own traces by rejection sampling: ask a teacher, grade, keep what is right, count what is not."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pandas as pd
from datasets import Dataset

from mixdistill import arguments
from mixdistill.data.problems import Problem
from mixdistill.generation.sampling import Sampling
from mixdistill.results.evaluate import as_run, evaluate
from mixdistill.runs import Run

KEEP = ("all", "shortest", "longest", "random")
FATES = ("kept", "wrong", "no_answer", "truncated", "unreadable", "duplicate", "not_chosen")


@dataclass(frozen=True)
class Collected:
    """What a teacher gave.

    `traces` is a trace set as `load_traces` gives it. `counts` has one row a problem with the number of its completions
    by what became of them: `kept`; `wrong`, `no_answer`, `truncated`, `unreadable`; right, but `duplicate` (the same
    text again) or `not_chosen` (`keep` took another). They add up to the samples a problem. `folder` holds every
    completion.
    """

    traces: Dataset
    counts: pd.DataFrame
    folder: Path

    def summary(self) -> pd.Series:
        """Totals over all problems, and how many problems have a trace."""
        totals = self.counts.drop(columns="problem_id").sum()
        n_solved = int((self.counts["kept"] > 0).sum())
        of = pd.Series({"problems": len(self.counts), "problems_with_trace": n_solved})
        return pd.concat([of, totals]).astype(int)


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
    max_new_tokens: int | None = None,
    engine: str | None = None,
    batch_size: int | None = None,
    revision: str | None = None,
    thinking: bool | None = None,
    progress: bool = True,
) -> Collected:
    """Sample `n` completions of a teacher for every problem and keep the right ones, as the paper made its data.

    Every completion is streamed to the run store; a killed collection goes on with the problems that were not finished,
    and a repeated one only reads. The samples of one `n`, seed and temperature are one collection, whatever `keep`
    says.

    Arguments:
        teacher: a student's name as in `load_student`, or a run: anything that can answer.
        problems: as from `load_problems`.
        n: completions a problem; 1 at temperature 0.
        keep: of a problem's right completions `all`, or the `shortest`, the `longest` (in tokens), or a `random` one.
        style: a label for the set, such as `long`.
        temperature, top_p, seed: how completions are sampled.
        max_new_tokens, engine, batch_size, revision, thinking, progress: as in `evaluate`.

    Raises:
        ValueError: a bad argument; no problem; or not one right completion (the message counts the reasons).
    """
    arguments.choice("keep", keep, KEEP)
    style = arguments.text("style", style, empty=True)
    sampling = Sampling(temperature, top_p, seed, n)
    teacher = as_run(teacher, revision)
    scores = evaluate(
        teacher,
        arguments.instance("problems", problems, Sequence),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        engine=engine,
        batch_size=batch_size,
        thinking=thinking,
        progress=progress,
    )
    name, answer_formats = teacher.config["student"], {problem.id: problem.answer_format for problem in problems}
    if len(answer_formats) < len(problems):
        raise ValueError(
            f"{len(problems)} problems have {len(answer_formats)} different ids: a trace is known by its problem's"
        )
    items = scores.items.assign(fate=_fates(scores.items, keep, sampling.seed))
    kept = items[items["fate"] == "kept"]
    counts = pd.crosstab(items["problem_id"], items["fate"])
    counts = counts.reindex(index=list(answer_formats), columns=list(FATES), fill_value=0)
    counts = counts.rename_axis(index="problem_id", columns=None).reset_index()
    traces = kept[["problem_id", "question", "response"]].assign(
        teacher=name, style=style, answer_format=kept["problem_id"].map(answer_formats)
    )
    collected = Collected(Dataset.from_list(traces.to_dict("records")), counts, scores.folder)
    summary = collected.summary()
    n_solved, n_problems = summary["problems_with_trace"], summary["problems"]
    said = ", ".join(f"{summary[fate]} {fate.replace('_', ' ')}" for fate in FATES if summary[fate])
    if kept.empty:
        raise ValueError(
            f"none of the {len(items)} completions by {name!r} is right ({said}): give easier problems, a stronger "
            "teacher, a larger n or a larger max_new_tokens"
        )
    if n_solved < n_problems:
        warnings.warn(
            f"{name!r} gave a right answer to {n_solved} of {n_problems} problems; completions: {said}", stacklevel=2
        )
    return collected


def _fates(items: pd.DataFrame, keep: str, seed: int) -> pd.Series:
    """What becomes of every completion. One that was cut is no whole trace, even with the right box in it."""
    fate = pd.Series("kept", index=items.index)
    fate[~items["correct"]] = "wrong"
    fate[~items["correct"] & ~items["reason"].isin(["different", "no_answer"])] = "unreadable"
    fate[items["reason"] == "no_answer"] = "no_answer"
    fate[items["finish_reason"] == "length"] = "truncated"
    right = items[fate == "kept"]
    fate[right.index[right.duplicated(["problem_id", "response"])]] = "duplicate"
    if keep == "all":
        return fate
    rng = Random(f"keep/{seed}")
    for _, group in items[fate == "kept"].groupby("problem_id", sort=False):
        if keep == "random":
            chosen = rng.choice(list(group.index))
        else:
            chosen = group["n_tokens"].idxmin() if keep == "shortest" else group["n_tokens"].idxmax()
        fate[group.index.difference([chosen])] = "not_chosen"
    return fate
