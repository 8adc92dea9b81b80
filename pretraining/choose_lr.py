"""Choose each pocket student's LoRA learning rate: `python -m pretraining.choose_lr`.

The criterion is the mean accuracy over short, long and mix_long, and over all bases of the size, on *development*
problems, never a contrast between recipes, so that the choice cannot favour the phenomenon. Writes
`students/lr_search.csv`; `finetune.POCKET_LR` holds the winners.
"""

import argparse
from dataclasses import replace

import pandas as pd

from mixdistill.data.pocket.bases import POCKET, POCKET_BASES, POCKET_DIR
from mixdistill.study.scales import get_scale, recipe_arm
from mixdistill.study.sweep import sweep

GRID = (2.5e-3, 5e-3, 1e-2)  # goes on, in steps of 2, while the best rate is the first or the last
SEED = 1008  # the first; far from the study's seeds, so that its training sets are not chosen on
N_PROBLEMS = 120  # of each tier


def mean_accuracies(student: str, lr: float) -> dict[str, str | float]:
    """Accuracy of every recipe at this rate in the mean over the bases, each with a seed of its own; and their mean."""
    seeds = range(SEED, SEED + len(POCKET_BASES[student]))
    arms = [recipe_arm(student, recipe, seed) for recipe in get_scale("pocket").recipes for seed in seeds]
    items = sweep(arms, replace(get_scale("pocket"), lr=lr, n_problems=N_PROBLEMS), split="dev")
    accuracy = items.groupby("recipe")["correct"].mean()
    return {"student": student, "lr": lr} | accuracy.to_dict() | {"mean": accuracy.mean()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("students", nargs="*", default=POCKET, help=f"default: {' '.join(POCKET)}")
    path = POCKET_DIR / "lr_search.csv"
    students = parser.parse_args().students
    if unknown := [student for student in students if student not in POCKET_BASES]:
        parser.error(f"there is no pocket student {unknown[0]!r}: {', '.join(POCKET_BASES)}")
    for student in students:
        table = pd.DataFrame([mean_accuracies(student, lr) for lr in GRID])
        while (best := table["mean"].idxmax()) in (0, len(table) - 1):
            lr = table["lr"][best] * (2 if best else 0.5)
            more = pd.DataFrame([mean_accuracies(student, lr)])
            table = pd.concat([table, more]).sort_values("lr", ignore_index=True)
        print(table.round(3).to_string(index=False), flush=True)
        print(f"{student}: best lr {table['lr'][best]:g}", flush=True)
        # Read now, as another process may have written it meanwhile.
        others = pd.read_csv(path) if path.exists() else table.head(0)
        others = others[others["student"] != student]
        pd.concat([others, table], ignore_index=True).round(6).to_csv(path, index=False)


if __name__ == "__main__":
    main()
