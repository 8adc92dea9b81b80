"""Choose each pocket student's LoRA learning rate: `python -m mixdistill.pocket.choose_lr`.

The criterion is the mean accuracy over short, long and mix_long on *development* problems, never a contrast between them,
so that the choice cannot favour the phenomenon. Writes `students/lr_search.csv`; `finetune.POCKET_LR` holds the winners.
"""

import argparse
from dataclasses import replace

import pandas as pd

from mixdistill.scales import get_scale, recipe_arm
from mixdistill.students import POCKET, POCKET_DIR
from mixdistill.sweep import sweep

GRID = (5e-3, 1e-2)
# Far from the study's seeds, so that its training sets are not chosen on; meets the first base of every size.
SEED = 1008
N_PROBLEMS = 120  # of each tier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("students", nargs="*", default=POCKET, help=f"default: {' '.join(POCKET)}")
    path = POCKET_DIR / "lr_search.csv"
    for student in parser.parse_args().students:
        old = (
            pd.read_csv(path)
            if path.exists()
            else pd.DataFrame(columns=["student", "lr", *get_scale("pocket").recipes, "mean"])
        )
        rows = []
        for lr in GRID:
            arms = [recipe_arm(student, recipe, SEED) for recipe in get_scale("pocket").recipes]
            items = sweep(arms, replace(get_scale("pocket"), lr=lr, n_problems=N_PROBLEMS), split="dev")
            accuracy = items.groupby("recipe")["correct"].mean()
            rows.append({"student": student, "lr": lr} | accuracy.to_dict() | {"mean": accuracy.mean()})
        table = pd.DataFrame(rows)
        print(table.round(3).to_string(index=False), flush=True)
        print(f"{student}: best lr {table.loc[table['mean'].idxmax(), 'lr']:g}", flush=True)
        kept = old[old["student"] != student]
        table = pd.concat([kept, table], ignore_index=True) if len(kept) else table
        table.round(4).to_csv(path, index=False)


if __name__ == "__main__":
    main()
