"""The one dial: which students, how much data and how many seeds a study takes."""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixdistill import files, runs
from mixdistill.arguments import choice, instance, number, text, texts, whole
from mixdistill.data.mix import CONTROLS, RECIPES
from mixdistill.data.pocket.bases import LARGE, POCKET, POCKET_BASES
from mixdistill.data.problems import BENCHMARKS, POCKET_TIERS
from mixdistill.data.sets import ProblemSet, TraceSet, source_of
from mixdistill.data.student_files import REVISIONS
from mixdistill.data.tables import local_path, of_pocket

PARTS = tuple(dict.fromkeys(part for recipe in (RECIPES | CONTROLS).values() for part in (recipe.hard, recipe.easy)))


def _benchmarks(given: object) -> tuple[str | ProblemSet, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        return texts("benchmarks", given)  # which refuses it
    return tuple(one if isinstance(one, ProblemSet) else text("one of benchmarks", one) for one in given)


@dataclass(frozen=True)
class Scale:
    """A named set of arms. All arms share everything but student, recipe and seed; the rate is the student's own.

    A scale of your own, with your students (Hub ids or folders), traces and benchmarks (names or files):

        tests = ("math500", "test.jsonl", ProblemSet("others.csv", question=("Body", "Question"), answer="Answer"))
        mine = {"students": ("models/mine",), "alpha_student": "models/mine", "benchmarks": tests}
        mine |= {"long": TraceSet("long.jsonl", question="problem"), "short": TraceSet("short.jsonl")}
        scale = replace(get_scale("gpu"), name="mine", large=None, small=None, **mine)
        items = sweep(gap_arms(scale), scale)  # print(plan(scale)) first

    A new Hub student is pinned by an entry in `REVISIONS`. Raises ValueError for a field that cannot be.
    """

    name: str
    students: tuple[str, ...]  # from small to large
    alpha_student: str  # who is swept
    benchmarks: tuple[str | ProblemSet, ...]
    n_seeds: int = 3
    n_train: int | None = None  # problems, of files the first so many that both sets of a mix hold; None: all
    epochs: int = 2
    n_problems: int | None = None  # of each benchmark; None: all
    alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the sweep
    # The trace sets of `mix.RECIPES` (large and small may be absent, with their recipes) and of `mix.CONTROLS`.
    long: TraceSet = TraceSet("pocket/long")
    short: TraceSet = TraceSet("pocket/short")
    large: TraceSet | None = None
    small: TraceSet | None = None
    unverified: TraceSet | None = None
    confirmed: TraceSet | None = None
    shuffled: TraceSet | None = None
    direct: TraceSet | None = None
    batch_size: int = 32
    lora_rank: int = 16
    lr: float | None = None  # None: the student's own (`finetune.default_lr`)
    full: tuple[str, ...] = ()  # students that train all weights in the place of LoRA
    max_tokens: int | None = None  # of a training example; None: the student's context
    too_long: str = "error"  # what becomes of longer examples, as in `finetune`
    max_new_tokens: int | None = None  # of an answer; None: what the context leaves, at most 16,000

    def __post_init__(self) -> None:
        text("name", self.name)
        text("alpha_student", self.alpha_student)
        for name in ("students", "full"):
            object.__setattr__(self, name, texts(name, getattr(self, name)))  # a list as a tuple
        object.__setattr__(self, "benchmarks", _benchmarks(self.benchmarks))
        tests = [source_of(benchmark) for benchmark in self.benchmarks]
        for name, named in (("students", self.students), ("benchmarks", tests)):
            whole(f"the number of {name}", len(named))
            if len({os.path.realpath(one) if os.path.exists(one) else one for one in named}) < len(named):
                raise ValueError(f"{name} is {named}: give each once")
        may_be_none = ("n_train", "n_problems", "max_tokens", "max_new_tokens")
        for name in ("n_seeds", "epochs", "batch_size", "lora_rank", *may_be_none):
            whole(name, getattr(self, name), optional=name in may_be_none)
        for alpha in instance("alphas", self.alphas, Sequence):
            number("one of alphas", alpha, low=0, high=1)
        for name in PARTS:
            instance(name, getattr(self, name), TraceSet, optional=name not in ("long", "short"))
        self.answer_format  # noqa: B018, refuses sets that differ
        if self.lr is not None:
            number("lr", self.lr, above=0)
        choice("too_long", self.too_long, ("error", "drop"))
        real = [made.source for part in PARTS if (made := getattr(self, part)) and not made.pocket]
        real += [name for name in tests if name in BENCHMARKS]
        pocket = [student for student in self.students if of_pocket(student)]
        if real and pocket:
            what = f"{real[0]}, which {pocket[0]} can not read: pocket students know the pocket world only"
            raise ValueError(f"the scale {self.name!r} has {what}, give real ones")
        taught = "in English" if self.answer_format != "pocket" else "in the pocket world's language"
        others = [name for name in tests if of_pocket(name) != (self.answer_format == "pocket")]
        if not of_pocket(self.long.source) or pocket:  # a file may be in any language
            others = [name for name in others if of_pocket(name) or name in BENCHMARKS]
        if others:
            what = f"teaches {taught} (long is {self.long.source!r}) and asks {others[0]!r}, which is in another"
            raise ValueError(f"the scale {self.name!r} {what}: give trace sets and benchmarks of one language")

    @property
    def answer_format(self) -> str:
        """Of the traces, and so how the problems of a test file of one's own are asked and graded."""
        made = {part: one for part in PARTS if (one := getattr(self, part))}
        formats = {part: "pocket" if one.pocket else one.answer_format for part, one in made.items()}
        if len(set(formats.values())) > 1:
            found = ", ".join(f"{part} {one!r}" for part, one in formats.items())
            raise ValueError(f"the answer_format of the trace sets is {found}: students are asked in one, give all it")
        return formats["long"]

    @property
    def recipes(self) -> tuple[str, ...]:
        """Those of `mix.RECIPES` of which this scale has both trace sets."""
        return tuple(name for name, r in RECIPES.items() if getattr(self, r.hard) and getattr(self, r.easy))

    def base(self, arm: "Arm") -> str:
        """The model that an arm starts from: the seeds are spread over the bases of a pocket student."""
        bases = POCKET_BASES.get(arm.student, (arm.student,))
        return bases[arm.seed % len(bases)]

    @property
    def pocket(self) -> bool:
        return all(student in POCKET_BASES for student in self.students)

    def figures_dir(self, **changed: object) -> Path:
        """Where figures and tables of a run go: the run store, a folder named by the scale and what differs from it as
        it is defined here. `changed`: what a notebook's reader has set beside the scale."""
        own = SCALES.get(self.name, self)
        changed = {name: value for name, value in vars(self).items() if value != getattr(own, name)} | changed
        parts = [f"{name}={value}" for name, value in changed.items()]
        return runs.runs_dir() / "figures" / files.label(self.name, *parts)


def scale_files(scale: Scale) -> dict[str, str]:
    """SHA-256 of the files here that a scale's traces and tests are read from, by name; not of what the Hub gives."""
    tests = [source_of(benchmark) for benchmark in scale.benchmarks]
    sources = [BENCHMARKS[name].file.format(split="test") if name in BENCHMARKS else name for name in tests]
    sources += [made.source for part in PARTS if (made := getattr(scale, part))]
    found = {}
    for name in sources:
        source = local_path(name)
        for path in files.files_in(source):
            found[os.path.normpath(os.path.join(name, path.relative_to(source)))] = files.digest(path)
    return found


SMALL = tuple(REVISIONS)[:4]  # all from small to large
QWEN = tuple(student for student in REVISIONS if student.startswith("Qwen/"))
LLAMA = tuple(student for student in REVISIONS if student.startswith("meta-llama/"))

MATH_TRACES = "UWNSL/MATH_training_split_"
PUBLISHED = {"question": "problem", "response": "solution", "unusable": "drop"}
GPU = Scale(
    name="gpu",
    students=QWEN[:4],
    alpha_student="Qwen/Qwen2.5-3B-Instruct",
    benchmarks=("math500", "gsm8k", "amc23", "aime24", "olympiadbench"),
    long=TraceSet(f"{MATH_TRACES}long_cot", **PUBLISHED, revision="307eaa221cc715bceeb74e07ed55d1296312c7e4"),
    short=TraceSet(f"{MATH_TRACES}short_cot", **PUBLISHED, revision="90f97787754fb742749bf54cfc81f9af9329fe76"),
    large=TraceSet(f"{MATH_TRACES}distill_large_teacher", **PUBLISHED),
    small=TraceSet(f"{MATH_TRACES}distill_small_teacher", **PUBLISHED),
    batch_size=8,  # the paper's: 4 GPUs of 2 examples
    max_tokens=16_384,
    too_long="drop",  # counted in the manifest
    max_new_tokens=16_000,
)
# All students of the paper (Tables 1-3), trained as in the paper (Table 5 and model cards): all weights below 14B.
PAPER = replace(
    GPU,
    name="paper",
    students=QWEN + LLAMA,
    benchmarks=("math", "gsm8k", "amc23", "aime24", "olympiadbench"),
    full=QWEN[:4] + LLAMA[:3],
)
# Small real students on word problems, with traces of real teachers on the same problems: hours on a CPU, minutes on a
# GPU. `docs/real-models.md` says where the files come from; they are looked for in `$MIXDISTILL_DATA`.
LAPTOP = Scale(
    name="laptop",
    students=SMALL,
    alpha_student="HuggingFaceTB/SmolLM2-135M-Instruct",
    benchmarks=("svamp", "gsm8k"),
    long=TraceSet("svamp_llama_level4.jsonl", answer_format="gsm8k"),
    short=TraceSet("svamp_llama_level1.jsonl", answer_format="gsm8k"),
    large=TraceSet("svamp_gpt35.jsonl", answer_format="gsm8k"),
    small=TraceSet("svamp_flant5large.jsonl", answer_format="gsm8k"),
    lr=2e-3,  # chosen for SmolLM2-135M only (docs/real-log.md, entry 7); `benchmarks/laptop.py` chooses another's
    max_new_tokens=400,
)
OF_CONTROLS: dict[str, Any] = {name: TraceSet(f"pocket/{name}") for name in CONTROLS}
# The default: the study of the pocket world on a laptop.
POCKET_STUDY = Scale(
    name="pocket",
    students=POCKET,
    alpha_student="pocket/xs",
    benchmarks=tuple(POCKET_TIERS),
    n_seeds=6,
    n_train=1600,
    epochs=4,
    n_problems=340,
    **OF_CONTROLS,
    batch_size=16,
)
# The same with two larger sizes, to 2.9 million parameters; what the store holds of `pocket` is read.
POCKET_LARGE = replace(POCKET_STUDY, name="pocket-large", students=POCKET + LARGE)
# As small as goes through every line: for tests.
SMALLEST: dict[str, Any] = dict(n_seeds=2, n_train=32, epochs=1, n_problems=8, alphas=(0.0, 0.2, 1.0), batch_size=32)
SMOKE = replace(POCKET_STUDY, name="smoke", students=("pocket/xs", "pocket/s"), **SMALLEST)
SCALES = {scale.name: scale for scale in (SMOKE, POCKET_STUDY, POCKET_LARGE, LAPTOP, GPU, PAPER)}


def get_scale(name: str, n_seeds: int = 0, students: str = "", benchmarks: str = "") -> Scale:
    """The scale of this name; ValueError for an unknown one.

    Arguments:
        n_seeds: from 1 to 10,000, in the place of the scale's own.
        students: in the place of the scale's own: names as in `load_student`, from small to large, with commas between
            (pocket students are put into that order).
        benchmarks: in the place of the scale's own: names in `BENCHMARKS` and `POCKET_TIERS`, and files with columns
            `question` and `answer`, with commas between; a file with others as `own.csv:Body+Question:Answer`, and one
            whose rows without an answer are left out as `own.csv:Body+Question:Answer:drop`.
    """
    scale = SCALES[choice("scale", name, SCALES)]
    scale = replace(scale, n_seeds=whole("n_seeds", n_seeds, low=0, high=10_000) or scale.n_seeds)
    tests = tuple(map(_benchmark, _named("benchmarks", benchmarks))) or scale.benchmarks
    if not (names := _named("students", students)):
        return replace(scale, benchmarks=tests)
    for student in filter(of_pocket, names):  # and not one of its bases
        choice("one of students", student, POCKET_BASES)
    if all(map(of_pocket, names)):
        names = tuple(sorted(names, key=[*POCKET_BASES].index))
    if scale.pocket and (real := [student for student in names if not of_pocket(student)]):
        what = f"the scale {name!r} teaches and asks in the pocket world's language, which {real[0]!r} has never read"
        warnings.warn(f"{what}: word problems are the scale 'laptop'", stacklevel=2)
    swept = scale.alpha_student if scale.alpha_student in names else names[0]
    of_full = {Path(student).name for student in scale.full}  # a copy in a folder is the same student
    full = tuple(name for name in names if Path(name).name in of_full)
    if scale.full and (others := [name for name in names if name not in (*full, *scale.students)]):
        own = f"the scale {scale.name!r} trains all weights of its own smaller students"
        warnings.warn(f"{own}, and adapters of {', '.join(others)}, which it does not know", stacklevel=2)
    return replace(scale, students=names, alpha_student=swept, full=full, benchmarks=tests)


def _named(what: str, given: str) -> tuple[str, ...]:
    """The names in a text with commas between; none for a blank one."""
    names = text(what, given, empty=True)
    return texts(what, [name.strip() for name in names.split(",")]) if names.strip() else ()


def _benchmark(given: str) -> str | ProblemSet:
    """A benchmark's name, or a file with its columns, as `get_scale` says."""
    # A name may hold a colon: that of a file that exists is one whole.
    source, *columns = [given] if local_path(given).exists() else [part.strip() for part in given.split(":")]
    drops = len(columns) > 2 and columns[-1] == "drop"
    columns = columns[:-1] if drops else columns
    if len(columns) > 2 and local_path(named := ":".join([source, *columns[:-2]])).exists():
        source, columns = named, columns[-2:]
    if columns:
        if len(columns) != 2:
            raise ValueError(f"one of benchmarks is {given!r}: name columns as in own.csv:Body+Question:Answer")
        question = tuple(name.strip() for name in columns[0].split("+"))
        return ProblemSet(source, question, answer=columns[1], unusable="drop" if drops else "error")
    known = (*BENCHMARKS, *POCKET_TIERS)
    is_name = of_pocket(source) or not ({".", "/"} & set(source) or local_path(source).exists())
    if is_name and source not in known:
        raise ValueError(f"one of benchmarks is {source!r}: use one of {', '.join(known)}, or a file such as own.csv")
    return source


@dataclass(frozen=True)
class Arm:
    """One student under one recipe with one seed. Raises ValueError for a field that cannot be."""

    student: str
    recipe: str
    alpha: float | None  # share of hard traces; None: the untouched student
    seed: int
    hard: str = "long"  # parts, as in `mix.Recipe`
    easy: str = "short"
    lr: float | None = None  # its own, in the place of the scale's
    epochs: int | None = None
    n_train: int | None = None

    def __post_init__(self) -> None:
        text("student", self.student)
        text("recipe", self.recipe)
        if self.alpha is not None:
            number("alpha", self.alpha, low=0, high=1)
        whole("seed", self.seed, low=0)
        choice("hard", self.hard, PARTS)
        choice("easy", self.easy, PARTS)
        if self.lr is not None:
            number("lr", self.lr, above=0)
        whole("epochs", self.epochs, high=10_000, optional=True)
        whole("n_train", self.n_train, optional=True)


def gap_arms(scale: Scale) -> list[Arm]:
    """Every student untouched (each of its bases), and under every recipe of the scale with every seed."""
    instance("scale", scale, Scale)
    return untouched_arms(scale, scale.students) + _recipe_arms(scale, scale.recipes)


def untouched_arms(scale: Scale, students: Sequence[str]) -> list[Arm]:
    """The untouched students: one arm for each base that the scale's seeds meet."""
    seeds = {name: range(scale.n_seeds)[: len(POCKET_BASES.get(name, (name,)))] for name in texts("students", students)}
    return [Arm(student, "untouched", None, seed) for student in seeds for seed in seeds[student]]


def control_arms(scale: Scale, *names: str) -> list[Arm]:
    """Every student under the named controls (none named: all) that the scale has traces of, with every seed."""
    instance("scale", scale, Scale)
    wanted = [choice("a control", name, CONTROLS) for name in names] or list(CONTROLS)
    return _recipe_arms(scale, [name for name in wanted if getattr(scale, CONTROLS[name].hard)])


def alpha_arms(scale: Scale, student: str, alphas: Sequence[float]) -> list[Arm]:
    """One student over shares of long traces with every seed."""
    instance("scale", scale, Scale)
    shares = [number("one of alphas", alpha, low=0, high=1) for alpha in instance("alphas", alphas, Sequence)]
    return [Arm(student, f"alpha={alpha:g}", alpha, seed) for seed in range(scale.n_seeds) for alpha in shares]


def recipe_arm(student: str, recipe: str, seed: int) -> Arm:
    """The arm of a named recipe. Raises ValueError for an unknown one."""
    made = (RECIPES | CONTROLS)[choice("recipe", recipe, RECIPES | CONTROLS)]
    return Arm(student, recipe, made.alpha, seed, made.hard, made.easy)


def _recipe_arms(scale: Scale, recipes: Sequence[str]) -> list[Arm]:
    seeds = range(scale.n_seeds)
    return [recipe_arm(student, recipe, seed) for seed in seeds for student in scale.students for recipe in recipes]
