"""The pocket students: which bases there are, where they lie, and what is known of them."""

import json
from pathlib import Path

POCKET_DIR = Path(__file__).parent / "students"
# The sizes, and the seeds of their bases: models of one size from other first weights and other pre-training text. They
# are the first seeds that passed the gate (`pretraining/pretrain.py`): seed 5 of s and seed 2 of 2xl missed it.
BASE_SEEDS = {
    "xs": (0, 1, 2, 3, 4, 5),
    "s": (0, 1, 2, 3, 4, 6),
    "m": (0, 1, 2),
    "l": (0, 1, 2, 3, 4),
    "xl": (0, 1, 2),
    "2xl": (0, 1, 3),
    "3xl": (0, 1, 2),
}
POCKET_BASES = {
    f"pocket/{size}": tuple(f"pocket/{size}-{seed}" if seed else f"pocket/{size}" for seed in seeds)
    for size, seeds in BASE_SEEDS.items()
}
# Of notebook 07's end, not of the study: seed 4 missed the gate.
FURTHER_BASES = {"pocket/m": tuple(f"pocket/m-{seed}" for seed in (3, 5, 6, 7, 8, 9, 10, 11, 12))}
LARGE = ("pocket/2xl", "pocket/3xl")  # of the scale `pocket-large`; their weights are not in the repo
POCKET = tuple(name for name in POCKET_BASES if name not in LARGE)
# What every base has to reach, whatever its size, and in what (`pretraining.pretrain.base_evaluation`).
GATE = 0.95
GATED = ("product", "colour", "chain", "form", "habit", "same", "copy", "machine", "need")


def base_folder(name: str) -> Path:
    """The folder of a pocket student, such as `pocket/xs` or `pocket/xs-1`. Raises ValueError if there is none of this
    name, or its weights were not made yet."""
    if not any(name in bases for bases in (*POCKET_BASES.values(), *FURTHER_BASES.values())):
        raise ValueError(f"unknown student {name!r}: the pocket world has {', '.join(POCKET)}")
    folder = POCKET_DIR / name.removeprefix("pocket/")
    if not (folder / "config.json").is_file():
        size, _, seed = folder.name.partition("-")
        what = f"the weights of {name!r} are not in mixdistill/data/pocket/students"
        raise ValueError(f"{what}: make them with `python -m pretraining.pretrain {size} --seed {seed or 0}`")
    return folder


def base_facts(name: str) -> dict[str, float]:
    """What a base was trained on, and what it knew and could afterwards; a student's name means its first base."""
    recipe, measured = (json.loads((base_folder(name) / f).read_text()) for f in ("recipe.json", "evaluation.json"))
    known = {key: value for key, value in measured.items() if not key.startswith("pocket/")}
    return {"bases": len(POCKET_BASES.get(name, ())), "pre-training tokens": recipe["tokens"]} | known
