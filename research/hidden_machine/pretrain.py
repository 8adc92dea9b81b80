"""Pre-train the pocket world's base students from scratch: `python -m mixdistill.pocket.pretrain xs s m l`.

The text holds facts, chains, and mystery problems in SHORT form whose guess has nothing to do with the cue and may fail the colour test (then the
text stops). Words and pieces of long traces occur alone. It never holds two tests of one problem: that procedure is what the students must learn
by fine-tuning.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mixdistill.evaluate import evaluate
from mixdistill.pocket import world
from mixdistill.pocket.tokenizer import CONTEXT, build_tokenizer
from mixdistill.problems import POCKET_TIERS, Problem, load_problems
from mixdistill.students import Student, load_student

TABLES = world.TABLES
MARK_WEIGHTS = list(accumulate(TABLES.mark_weight.values()))
STUDENTS_DIR = Path(__file__).parent / "students"
ROW = 64  # tokens
BATCH = 32  # rows; twice as many rows a step took xs about twice the tokens to the gate
MAX_JUMP = 130  # positions; about the length of a long trace
WARMUP = 100  # steps
GATE = {"product": 0.99, "colour": 0.99, "chain": 0.97, "form": 0.95}  # of `base_evaluation`, for every size


@dataclass(frozen=True)
class BaseRecipe:
    """How one base student is made: Qwen2 shape, tokens seen, peak learning rate, seed."""

    width: int
    layers: int
    tokens: int
    lr: float
    seed: int = 0


# Sizes differ by width only: with four layers (96 wide) the colours came much later than with two.
BASES = {
    "xs": BaseRecipe(width=32, layers=2, tokens=9_000_000, lr=5e-3),
    "s": BaseRecipe(width=64, layers=2, tokens=7_000_000, lr=4e-3),
    "m": BaseRecipe(width=96, layers=2, tokens=5_000_000, lr=3.5e-3),
    "l": BaseRecipe(width=128, layers=2, tokens=10_000_000, lr=3e-3),
    "xl": BaseRecipe(width=192, layers=2, tokens=5_000_000, lr=2.5e-3),
}

# Share of the documents of each kind.
MIXTURE = {"product": 0.10, "colour": 0.18, "mark": 0.04, "same": 0.06, "chain": 0.24, "guess": 0.38}
HABIT = 0.4  # of the guesses: they follow the text's own cue (`TABLES.habitual`), so that students know what a cue is


def document(rng: Random) -> str:
    """One pre-training document, without its <bos> and <eos>."""
    kind = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
    machine, clue, item = rng.choice(world.MACHINES), rng.choice(world.INPUTS), rng.choice(world.ITEMS)
    if kind == "product":
        return f"{world.forward(world.chain(machine, item, 1))} ."
    if kind == "colour":
        return colour(rng, machine, clue)
    if kind == "mark":
        machine, clue = rng.choices(list(TABLES.mark_weight), cum_weights=MARK_WEIGHTS)[0]
        return f"{world.mark_test(machine, clue, needed(rng, TABLES.mark[machine, clue], world.MARKS))} ."
    if kind == "same":
        mark = rng.choice(world.MARKS)
        need = needed(rng, mark, world.MARKS)
        return f"has {mark} need {need} {'ok' if mark == need else 'no'} ."
    if kind == "chain":
        times = rng.choice(world.LEVELS)
        steps = world.chain(machine, item, times)
        return f"find {world.COUNTS[times - 1]} {machine} {item} : so {world.forward(steps)} . answer {steps[-1][2]} ."
    return guess(rng)


def colour(rng: Random, machine: str, clue: str) -> str:
    """A colour test; in 30% behind the words by which a long trace goes on."""
    test = world.colour_test(machine, clue, needed(rng, TABLES.colour[machine, clue], world.COLOURS))
    before = world.MACHINES[world.MACHINES.index(machine) - 1]
    return f"wait after {before} {test} ." if rng.random() < 0.3 else f"{test} ."


def needed(rng: Random, true: str, values: tuple[str, ...]) -> str:
    return true if rng.random() < 0.5 else rng.choice(values)


def guess(rng: Random) -> str:
    """A mystery problem and one guess: solved where the colour fits, else broken off."""
    problem = world.random_mystery(rng, rng.choice(world.LEVELS), split="train", cue=None)
    machine = TABLES.habitual[problem.item] if rng.random() < HABIT else rng.choice(world.MACHINES)
    test = world.colour_test(machine, problem.clue, problem.colour)
    if test.endswith("no"):
        return f"{problem.text} {test} ."
    return f"{problem.text} {test} . {world.solution(problem, machine)}"


def token_rows(tokenizer: PreTrainedTokenizerFast, rng: Random) -> Iterator[torch.Tensor]:
    """Endless batches of int64 [BATCH, ROW]: documents joined end to end and cut into rows."""
    index = tokenizer.get_vocab()
    bos, eos = index["<bos>"], index["<eos>"]
    buffer: list[int] = []
    while True:
        while len(buffer) < BATCH * ROW:
            buffer += [bos, *(index[word] for word in document(rng).split()), eos]
        yield torch.tensor(buffer[: BATCH * ROW]).view(BATCH, ROW)
        buffer = buffer[BATCH * ROW :]


def jumping_positions(rows: torch.Tensor, colon: int, generator: torch.Generator) -> torch.Tensor:
    """Positions int64 of `rows` [BATCH, ROW] that jump ahead by 1..MAX_JUMP behind half of the colons.

    So nothing can be learnt from the distance between a problem and its solution, which in a long trace is larger than ever in this text (after
    Ruoss et al. 2023, randomised positions). Without it all students copied by position, and lost the question's item in long traces.
    """
    jump = torch.randint(1, MAX_JUMP + 1, rows.shape, generator=generator)
    jumps = (rows == colon) & (torch.rand(rows.shape, generator=generator) < 0.5)
    return torch.arange(rows.shape[1]) + torch.where(jumps, jump, 0).cumsum(1)


def build_student(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 of the recipe's shape with random weights."""
    heads = max(2, recipe.width // 32)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # In a prototype the default of 0.02 never left the plateau at these widths.
        initializer_range=0.6 / math.sqrt(recipe.width),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    return Qwen2ForCausalLM(config)


def pretrain(name: str, out: Path, seed: int = 0) -> None:
    """Train base student `name` and write it to `out` as a Hugging Face folder with `recipe.json` and `loss.csv` beside."""
    recipe = replace(BASES[name], seed=seed)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = build_student(recipe, tokenizer)
    steps = recipe.tokens // (BATCH * ROW)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
    )
    batches = token_rows(tokenizer, Random(f"pretrain/{name}/{recipe.seed}"))
    colon, generator = tokenizer.get_vocab()[":"], torch.Generator().manual_seed(recipe.seed)
    # Without a mask, transformers 5 takes a jump for the border of two packed texts and hides the first from the second.
    see_all = torch.ones(BATCH, ROW, dtype=torch.long)
    started, curve = time.time(), []
    for step in range(steps):
        rows = next(batches)
        positions = jumping_positions(rows, colon, generator)
        loss = model(input_ids=rows, attention_mask=see_all, position_ids=positions, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            curve.append((step, (step + 1) * BATCH * ROW, round(loss.item(), 4)))
            left = (time.time() - started) / (step + 1) * (steps - step - 1) / 60
            print(f"{name}: step {step + 1}/{steps}, loss {loss.item():.3f}, {left:.1f} minutes left", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    facts = {"student": name, "params": model.num_parameters(), "seconds": round(time.time() - started)}
    (out / "recipe.json").write_text(json.dumps(facts | asdict(recipe) | {"row": ROW, "batch": BATCH}, indent=2) + "\n")
    with (out / "loss.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "tokens", "loss"), *curve])
    (out / "evaluation.json").write_text(json.dumps(base_evaluation(out), indent=2) + "\n")


def base_evaluation(folder: Path) -> dict[str, float]:
    """What a base student knows and can; `GATE` says what every size has to reach.

    `product`, `colour`, `mark`: share of the facts known. `chain`: plain chains with a shown machine. `form`: development problems answered
    consistently, whatever machine is guessed. Then the accuracy on these problems, by tier.
    """
    student = load_student(str(folder))
    known = {
        "product": facts_known(student, TABLES.product, "{} {} ="),
        "colour": facts_known(student, TABLES.colour, "try {} {} is"),
    }
    rng = Random("chain probe")
    chains = []
    for i in range(300):
        machine, item, times = rng.choice(world.MACHINES), rng.choice(world.ITEMS), rng.choice(world.LEVELS)
        question = f"find {world.COUNTS[times - 1]} {machine} {item} :"
        answer = world.chain(machine, item, times)[-1][2]
        chains.append(Problem(f"chain/{i}", question, answer, str(times), "chain", "pocket"))
    tiers = [load_problems(name, split="dev") for name in POCKET_TIERS]
    items = evaluate(str(folder), [chains, *tiers], progress=False).items
    accuracy = items.groupby("benchmark", sort=False)["correct"].mean().to_dict()
    mysteries = items[items["benchmark"] != "chain"]
    form = [
        consistent(question, response)
        for question, response in zip(mysteries.question, mysteries.response, strict=True)
    ]
    known |= {"chain": accuracy.pop("chain"), "form": sum(form) / len(form)}
    known |= {"mark": facts_known(student, TABLES.mark, "check {} {} has")} | accuracy
    return {name: round(float(value), 4) for name, value in known.items()}


@torch.inference_mode()
def facts_known(student: Student, table: dict[tuple[str, str], str], prompt: str) -> float:
    """Share of a table's facts that the student completes rightly, out of context."""
    ids = student.tokenizer([f"<bos> {prompt.format(*key)}" for key in table], return_tensors="pt")["input_ids"]
    guessed = student.model(input_ids=ids.to(student.device)).logits[:, -1].argmax(-1).cpu()
    right = torch.tensor(student.tokenizer.convert_tokens_to_ids(list(table.values())))
    return (guessed == right).float().mean().item()


def consistent(question: str, response: str) -> bool:
    """Does the answer test one machine's colour rightly, stop where it does not fit, and compute by that machine where it does?"""
    clue, _, _, needed, *_, count, _, item, _ = question.split()
    machine = response.removeprefix("try ")[:1]
    if machine not in world.MACHINES:
        return False
    test = world.colour_test(machine, clue, needed)
    steps = world.chain(machine, item, world.COUNTS.index(count) + 1)
    solved = f"{test} . so {world.forward(steps)} . answer {steps[-1][2]} ."
    return response == (f"{test} ." if test.endswith("no") else solved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("students", nargs="+", choices=list(BASES))
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights and text; folders of other seeds are named xs-1"
    )
    parser.add_argument("--out", type=Path, default=STUDENTS_DIR, help="folder that gets one folder a student")
    args = parser.parse_args()
    for name in args.students:
        pretrain(name, args.out / (name if args.seed == 0 else f"{name}-{args.seed}"), args.seed)


if __name__ == "__main__":
    main()
