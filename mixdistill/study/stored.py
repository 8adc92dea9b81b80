"""The published results travel with the clone, so that a notebook opens on them in seconds: every graded answer of the
study in one Parquet file of about 2 MB, which `make publish` writes from the run store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from mixdistill.arguments import choice, instance
from mixdistill.runs import REPO, shown
from mixdistill.study.scales import SCALES, Arm, Scale
from mixdistill.study.sweep import arm_items, name_of, same_work, sweep

FILE = REPO / "figures" / "data" / "items.parquet"
N_SWEPT = 2  # the smallest students of the study, of which the file holds every share of long traces


@dataclass(frozen=True)
class Results:
    """Where a notebook's items come from, and the `folder` for its figures and tables."""

    scale: Scale
    folder: Path
    stored: bool

    @property
    def swept(self) -> tuple[str, ...]:
        """Students of whom every share of long traces is at hand."""
        return self.scale.students[:N_SWEPT] if self.stored else (self.scale.alpha_student,)

    def items(self, arms: Sequence[Arm]) -> pd.DataFrame:
        """The graded items of the arms, read from the file or by `sweep`; ValueError for an arm that the file lacks."""
        if not self.stored:
            return sweep(arms, self.scale)
        if lacking := [arm for arm in arms if key(arm) not in self._stored]:
            alpha = lacking[0].alpha
            share = "" if alpha is None else f" with a share of {alpha:g} of long traces"
            what = f"{shown(FILE)} lacks {name_of(lacking[0])}{share}: it has the recipes of every student"
            shares = f"{', '.join(f'{alpha:g}' for alpha in self.scale.alphas)} of {' and '.join(self.swept)}"
            raise ValueError(f"{what}, and the shares {shares}; to train others set RESULTS = 'live'")
        return pd.concat([arm_items(arm, self.scale, self._stored[key(arm)]) for arm in arms], ignore_index=True)

    @cached_property
    def _stored(self) -> dict[str, pd.DataFrame]:
        try:
            works = pd.read_parquet(FILE).groupby("work", sort=False)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are these
            raise ValueError(_unusable(str(error).splitlines()[0])) from error
        return {str(key): rows.drop(columns="work").reset_index(drop=True) for key, rows in works}


def open_results(scale: Scale, results: str = "", **changed: object) -> Results:
    """Where a notebook takes its items from, which it also prints, and its folder.

    Arguments:
        results: `stored`, `live` (the run store, trained where it lacks them), or empty: stored for the published study
            with its own parameters, else live.
        changed: parameters of the notebook beside the scale that differ from the study's.

    Raises ValueError for another word, or if stored results are asked for of another scale or number of seeds.
    """
    choice("RESULTS", results or "stored", ("stored", "live"))
    study, folder = SCALES["pocket"], instance("scale", scale, Scale).figures_dir(**changed)
    if results == "stored" and replace(scale, alpha_student=study.alpha_student) != study:
        other = [name for name, value in vars(study).items() if getattr(scale, name) != value]
        what = f"what is stored is the scale {study.name!r} as it is, and this has another {', '.join(other)}"
        raise ValueError(f"RESULTS is 'stored', and {what}: set RESULTS = 'live', which trains what is lacking")
    if results == "stored" and not FILE.is_file():
        raise ValueError(_unusable("it is not there"))
    stored = results == "stored" or (not results and folder == study.figures_dir() and FILE.is_file())
    if stored:
        print(f"results: as published, read from {shown(FILE)}; RESULTS = 'live' trains the students here")
        return Results(scale, scale.figures_dir(**changed, RESULTS="stored"), True)
    absent = "" if FILE.is_file() else f" (there is no {shown(FILE)})"
    print(f"results: from the run store; what it lacks is trained and evaluated here{absent}")
    return Results(scale, folder, False)


def _unusable(reason: str) -> str:
    return f"cannot read {shown(FILE)} ({reason}): git checkout {shown(FILE)}, or set RESULTS = 'live', which trains"


def key(arm: Arm) -> str:
    """The name of an arm's work in the file."""
    return " ".join(f"{part:g}" if isinstance(part, float | int) else str(part) for part in same_work(arm))
