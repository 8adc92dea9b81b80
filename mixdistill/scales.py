"""The one dial: which students, how much data and how many seeds a study takes."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mixdistill.mix import RECIPES
from mixdistill.problems import POCKET_TIERS
from mixdistill.students import POCKET


@dataclass(frozen=True)
class Scale:
    """A named set of arms. All arms share everything but student, recipe and seed; the learning rate is the student's own."""

    name: str
    students: tuple[str, ...]  # from small to large
    n_seeds: int
    n_train: int  # problems
    epochs: int
    benchmarks: tuple[str, ...]
    n_problems: int  # of each benchmark
    alphas: tuple[float, ...]  # of the sweep
    alpha_student: str  # who is swept
    batch_size: int = 32
    lora_rank: int = 16
    lr: float | None = None  # None: the student's own (`finetune.default_lr`)


SCALES = {
    # As small as goes through every line: for tests.
    "smoke": Scale(
        name="smoke",
        students=("pocket/xs", "pocket/s"),
        n_seeds=2,
        n_train=32,
        epochs=1,
        benchmarks=tuple(POCKET_TIERS),
        n_problems=8,
        alphas=(0.0, 0.2, 1.0),
        alpha_student="pocket/xs",
    ),
    # The default: the study on a laptop.
    "pocket": Scale(
        name="pocket",
        students=POCKET,
        n_seeds=3,
        n_train=1600,
        epochs=4,
        benchmarks=tuple(POCKET_TIERS),
        n_problems=200,
        alphas=(0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
        alpha_student="pocket/xs",
    ),
}


def get_scale(name: str, n_seeds: int = 0) -> Scale:
    """The scale of this name, with another number of seeds if `n_seeds` is above 0.

    Raises ValueError for an unknown name or a negative number.
    """
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}: use one of {', '.join(SCALES)}")
    if n_seeds < 0:
        raise ValueError(f"the number of seeds is {n_seeds}: give at least 1, or 0 for the scale's own")
    return replace(SCALES[name], n_seeds=n_seeds or SCALES[name].n_seeds)


@dataclass(frozen=True)
class Arm:
    """One student under one recipe with one seed. `alpha` is the share of hard traces, None for the untouched student."""

    student: str
    recipe: str
    alpha: float | None
    seed: int


def gap_arms(scale: Scale) -> list[Arm]:
    """Every student untouched, and on short, long and mixed traces with every seed."""
    untouched = [Arm(student, "untouched", None, 0) for student in scale.students]
    return untouched + [
        recipe_arm(s, recipe, i) for i in range(scale.n_seeds) for s in scale.students for recipe in RECIPES
    ]


def alpha_arms(scale: Scale, student: str, alphas: tuple[float, ...]) -> list[Arm]:
    """One student over shares of long traces with every seed."""
    return [Arm(student, f"alpha={alpha:g}", alpha, seed) for seed in range(scale.n_seeds) for alpha in alphas]


def recipe_arm(student: str, recipe: str, seed: int) -> Arm:
    """The arm of a named recipe. Raises ValueError for an unknown one."""
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: use one of {', '.join(RECIPES)}")
    return Arm(student, recipe, RECIPES[recipe], seed)


def check_parameters(namespace: Mapping[str, object], **types: type) -> None:
    """Refuse parameters that a notebook does not know, or of another type than it declares, before anything runs.

    Arguments:
        namespace: the notebook's `globals()`.
        types: every parameter with its type.

    Raises:
        ValueError: papermill has set a name that is not among `types`, or a value has another type.
    """
    injected = set()
    for cell in namespace.get("In", []):
        if cell.startswith("# Parameters"):  # papermill's mark on the cell that it puts in
            targets = [
                target for node in ast.parse(cell).body if isinstance(node, ast.Assign) for target in node.targets
            ]
            injected |= {ast.unparse(target) for target in targets}
    unknown = sorted(injected - set(types))
    if unknown:
        raise ValueError(f"unknown notebook parameter {', '.join(unknown)}: this notebook takes {', '.join(types)}")
    for name, wanted in types.items():
        value = namespace[name]
        allowed = (int, float) if wanted is float else wanted
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(
                f"the notebook parameter {name} is {value!r}, a {type(value).__name__}: give a {wanted.__name__}"
            )
