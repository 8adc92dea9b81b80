"""Problems that show other marks than the study's rarer half, for notebooks 07 and 10: `%run -i` runs this file among a
notebook's own variables, of which it uses `scale`. It is no module of the package.
"""

from dataclasses import replace
from random import Random

from datasets import Dataset

from mixdistill import LoRA, finetune, mix
from mixdistill.data.pocket import world
from mixdistill.data.problems import POCKET_TIERS, Problem
from mixdistill.finetuning.finetune import default_lr
from mixdistill.runs import Run
from mixdistill.study.scales import Arm

BY_FREQUENCY = {  # machine -> its numbers, those with the most frequent marks first
    machine: sorted(world.NUMBERS, key=lambda number: -world.TABLES.mark_weight[machine, number])
    for machine in world.MACHINES
}
SHOWN = {"frequent": slice(85), "rarest": slice(-85, None), "all": slice(None)}  # of BY_FREQUENCY


def some_mysteries(marks: str, n: int, split: str, levels: list[int], seed: int = 0) -> list[world.Mystery]:
    """Different problems, drawn as the study's (`pocket_mysteries`), but with other numbers."""
    rng, found = Random(f"{marks} marks/{split}/{levels}/{seed}"), {}
    while len(found) < n:
        drawn = world.random_mystery(rng, levels[len(found) % len(levels)])
        problem = replace(drawn, number=rng.choice(BY_FREQUENCY[drawn.machine][SHOWN[marks]]))
        seen = [world.TABLES.facts[machine, problem.number] for machine in problem.suspects]
        if seen.count(problem.mark) == 1 and world.split_of(problem.text) == split:  # one machine passes both tests
            found[problem.text] = problem
    return [*found.values()]


def traces_of(teacher: str, mysteries: list[world.Mystery], seed: int) -> Dataset:
    rng, same = Random(f"{teacher}/{seed}"), {"teacher": teacher, "style": teacher, "answer_format": "pocket"}
    return Dataset.from_list(
        [
            {"problem_id": one.text, "question": one.text, "response": world.TEACHERS[teacher](one, rng), **same}
            for one in mysteries
        ]
    )


def tests_of(marks: str) -> list[list[Problem]]:
    """As many test problems of each tier as the scale has; of all tiers where it asks files only."""
    tiers = [name for name in scale.benchmarks if name in POCKET_TIERS] or [*POCKET_TIERS]
    drawn = {tier: some_mysteries(marks, scale.n_problems, "test", [POCKET_TIERS[tier]]) for tier in tiers}
    return [
        [Problem(f"test/{one.text}", one.text, one.answer, str(one.level), tier, "pocket") for one in mysteries]
        for tier, mysteries in drawn.items()
    ]


def traces_with_marks(marks: str, arm: Arm) -> Dataset:
    """What `sweep.training_set` is to the study's problems."""
    mysteries = some_mysteries(marks, scale.n_train, "train", [*world.LEVELS], arm.seed)
    long, short = (traces_of(teacher, mysteries, arm.seed) for teacher in ("long", "short"))
    return mix(long, short, arm.alpha, arm.seed)


def trained_here(arm: Arm, start: str, traces: Dataset) -> Run:
    """A student that is trained from `start` with the study's settings."""
    settings = {"lora": LoRA(r=scale.lora_rank), "lr": default_lr(scale.base(arm), LoRA())}
    settings |= {"epochs": scale.epochs, "batch_size": scale.batch_size}
    return finetune(start, traces, seed=arm.seed, progress=False, **settings)
