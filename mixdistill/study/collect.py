"""One's own traces by rejection sampling: ask a teacher, grade, keep what is right, count what is not."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pandas as pd
from datasets import Dataset

from mixdistill.data.problems import Problem
from mixdistill.generation.generate import Sampling
from mixdistill.results.evaluate import evaluate
from mixdistill.runs import Run

KEEP = ("all", "shortest", "longest", "random")


@dataclass(frozen=True)
class Collected:
    """What a teacher gave.

    `traces` is a trace set as `load_traces` gives it. `counts` has one row a problem with the number of its completions by what
    became of them: `kept`; `wrong`, `no_answer`, `truncated`, `unreadable`; right, but `duplicate` (the same text again) or
    `not_chosen` (`keep` took another). They add up to the samples a problem. `folder` holds every completion.
    """

    traces: Dataset
    counts: pd.DataFrame
    folder: Path

    def summary(self) -> pd.Series:
        """Totals over all problems, and how many problems have a trace."""
        totals = self.counts.drop(columns="problem_id").sum()
        n_solved = int((self.counts["kept"] > 0).sum())
        return pd.concat([pd.Series({"problems": len(self.counts), "problems_with_trace": n_solved}), totals]).astype(
            int
        )


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
    progress: bool = True,
) -> Collected:
    """Sample `n` completions of a teacher for every problem and keep the right ones, as the paper made its data.

    Every completion is streamed to the run store; a killed collection goes on with the problems that were not finished, and a
    repeated one only reads. The samples of one `n`, seed and temperature are one collection, whatever `keep` says.

    Arguments:
        teacher: a student's name as in `load_student`, or a run: anything that can answer.
        problems: as from `load_problems`.
        n: completions a problem; 1 at temperature 0.
        keep: of a problem's right completions `all`, or the `shortest`, the `longest` (in tokens), or a `random` one.
        style: a label for the set, such as `long`.
        temperature, top_p, seed: how completions are sampled.
        max_new_tokens, engine, batch_size, revision, progress: as in `evaluate`.

    Raises:
        ValueError: unknown `keep`; no problem; or not one right completion (the message counts the reasons).
    """
    if keep not in KEEP:
        raise ValueError(f"keep is {keep!r}: use one of {', '.join(KEEP)}")
    scores = evaluate(
        teacher,
        [list(problems)],
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p, seed, n),
        engine=engine,
        batch_size=batch_size,
        revision=revision,
        progress=progress,
    )
    items = scores.items.assign(fate=_fates(scores.items, keep, seed))
    answer_formats = {problem.id: problem.answer_format for problem in problems}
    name = (
        teacher.student if isinstance(teacher, Run) else Path(teacher).name if Path(teacher).is_dir() else str(teacher)
    )
    kept = items[items["fate"] == "kept"]
    fates = ("kept", "wrong", "no_answer", "truncated", "unreadable", "duplicate", "not_chosen")
    counts = pd.crosstab(items["problem_id"], items["fate"]).reindex(
        index=list(answer_formats), columns=list(fates), fill_value=0
    )
    collected = Collected(
        Dataset.from_list(
            [
                {
                    "problem_id": row.problem_id,
                    "question": row.question,
                    "response": row.response,
                    "teacher": name,
                    "style": style,
                    "answer_format": answer_formats[row.problem_id],
                }
                for row in kept.itertuples()
            ]
        ),
        counts.rename_axis(index="problem_id", columns=None).reset_index(),
        scores.folder,
    )
    summary = collected.summary()
    if kept.empty:
        raise ValueError(
            f"none of the {len(items)} completions by {name!r} is right ({_said(summary)}): give easier problems, a stronger "
            "teacher, a larger n or a larger max_new_tokens"
        )
    if summary["problems_with_trace"] < summary["problems"]:
        warnings.warn(
            f"{name!r} gave a right answer to {summary['problems_with_trace']} of {summary['problems']} problems; "
            f"completions: {_said(summary)}",
            stacklevel=2,
        )
    return collected


def _fates(items: pd.DataFrame, keep: str, seed: int) -> pd.Series:
    """What becomes of every completion. One that was cut is no whole trace, even with the right box in it."""
    fate = pd.Series("kept", index=items.index)
    fate[~items["correct"]] = "wrong"
    fate[~items["correct"] & ~items["reason"].isin(["different", "no_answer"])] = "unreadable"
    fate[items["reason"] == "no_answer"] = "no_answer"
    fate[items["finish_reason"] == "length"] = "truncated"
    fate[
        (fate == "kept")
        & items[fate == "kept"].duplicated(["problem_id", "response"]).reindex(items.index, fill_value=False)
    ] = "duplicate"
    if keep == "all":
        return fate
    rng = Random(f"keep/{seed}")
    for _, group in items[fate == "kept"].groupby("problem_id", sort=False):
        tokens = group["n_tokens"]
        chosen = {
            "shortest": tokens.idxmin,
            "longest": tokens.idxmax,
            "random": lambda group=group: rng.choice(list(group.index)),
        }[keep]()
        fate[group.index.difference([chosen])] = "not_chosen"
    return fate


def _said(summary: pd.Series) -> str:
    counts = summary.drop(["problems", "problems_with_trace"])
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
