"""The pocket students: which bases there are, where they lie, and what is known of them."""

import json
from pathlib import Path

POCKET_DIR = Path(__file__).parent / "students"
# The pocket students by size, and the seeds of their bases: several models of one size, from other first weights and
# other pre-training text. The first seeds that passed the gate (`pocket/pretrain.py`): seed 5 of s and seed 2 of 2xl
# missed it.
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
    f"pocket/{name}": tuple(f"pocket/{name}-{seed}" if seed else f"pocket/{name}" for seed in seeds)
    for name, seeds in BASE_SEEDS.items()
}
LARGE = ("pocket/2xl", "pocket/3xl")  # of the scale `pocket-large`; their weights are not in the repo
POCKET = tuple(name for name in POCKET_BASES if name not in LARGE)


# What every base has to reach in its evaluation, whatever its size, and in what
# (`pretraining.pretrain.base_evaluation`).
GATE = 0.95
GATED = ("product", "colour", "chain", "form", "habit", "same", "copy", "machine", "need")


def base_folder(name: str) -> Path:
    """The folder of a pocket student, such as `pocket/xs` or `pocket/xs-1`.

    Raises ValueError if there is none of this name, or its weights were not made yet.
    """
    if not any(name in bases for bases in POCKET_BASES.values()):
        raise ValueError(f"unknown student {name!r}: the pocket world has {', '.join(POCKET)}")
    size, _, seed = name.removeprefix("pocket/").partition("-")
    folder = POCKET_DIR / name.removeprefix("pocket/")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"the weights of {name!r} are not in mixdistill/data/pocket/students: make them with "
            f"`python -m pretraining.pretrain {size} --seed {seed or 0}`"
        )
    return folder


def pocket_recipe(name: str) -> dict:
    """How a pocket student was pre-trained: the `recipe.json` beside its weights."""
    return json.loads(Path(base_folder(name), "recipe.json").read_text())


def base_facts(name: str) -> dict[str, float]:
    """What a pocket student's first base was trained on, and what it knew and could afterwards
    (`pretrain.base_evaluation`).
    """
    measured = json.loads(Path(base_folder(name), "evaluation.json").read_text())
    known = {key: value for key, value in measured.items() if not key.startswith("pocket/")}
    return {"bases": len(POCKET_BASES[name]), "pre-training tokens": pocket_recipe(name)["tokens"]} | known
