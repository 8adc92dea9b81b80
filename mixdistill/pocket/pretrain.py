"""Pre-train the pocket world's base students from scratch: `python -m mixdistill.pocket.pretrain xs s m l`.

The text holds arithmetic facts, chains, known-operator problems, mystery problems in SHORT form, and the words of long
traces in fragments. It never holds a long trace: that procedure is what the students must learn by fine-tuning.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mixdistill.evaluate import evaluate
from mixdistill.pocket import world
from mixdistill.pocket.tokenizer import CONTEXT, build_tokenizer
from mixdistill.problems import POCKET_TIERS, Problem, load_problems

STUDENTS_DIR = Path(__file__).parent / "students"
ROW = 64  # tokens; in a prototype, rows of 128 left the bases undertrained at the same budget
BATCH = 64  # rows
WARMUP = 100  # steps


@dataclass(frozen=True)
class BaseRecipe:
    """How one base student is made: Qwen2 shape, tokens seen, peak learning rate, seed."""

    width: int
    layers: int
    tokens: int
    lr: float
    seed: int = 0


BASES = {
    "xs": BaseRecipe(width=32, layers=2, tokens=20_000_000, lr=5e-3),
    "s": BaseRecipe(width=64, layers=2, tokens=14_000_000, lr=3e-3),
    "m": BaseRecipe(width=96, layers=4, tokens=14_000_000, lr=2e-3),
    "l": BaseRecipe(width=128, layers=4, tokens=14_000_000, lr=2e-3),
}

# Share of the documents of each kind.
MIXTURE = {"fact": 0.12, "chain": 0.08, "solve": 0.16, "known": 0.29, "mystery": 0.18, "hunch": 0.08, "fragment": 0.09}


def document(rng: Random) -> str:
    """One pre-training document, without its <bos> and <eos>."""
    kind = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
    if kind == "fact":
        return fact(rng) + " ."
    if kind == "chain":
        return world.forward(world.chain(random_steps(rng))) + " ."
    if kind == "solve":
        expr = random_steps(rng)
        steps = world.chain(expr)
        return f"find {world.expression(expr)} : so {world.forward(steps)} answer {steps[-1][3]} ."
    if kind == "known":
        return known_operator_problem(rng)
    if kind == "fragment":
        return fragment(rng)
    problem = world.random_mystery(rng, rng.choice(world.LEVELS), split="train")
    if kind == "mystery":
        return f"{problem.text} {world.short_trace(problem)}"
    return f"{problem.text.split(' . ')[0]} : try {problem.operator} ."


def fact(rng: Random) -> str:
    operator = rng.choices("+-*/", weights=[0.35, 0.15, 0.35, 0.15])[0]
    left, right = rng.randint(1, 30), rng.randint(2, 9)
    return f"{left} {operator} {right} = {world.apply(left, operator, right)}"


def random_steps(rng: Random):
    return world.random_expression(rng, rng.choice(world.LEVELS))


def known_operator_problem(rng: Random) -> str:
    """A problem whose operators are all shown; in half of them the clue's target is false, and the text stops there."""
    clue, question = world.random_expression(rng, 2), random_steps(rng)
    steps = world.chain(clue)
    holds = rng.random() < 0.5
    target = steps[-1][3] if holds else rng.randint(1, 30)
    holds = target == steps[-1][3]
    text = f"{world.expression(clue)} = {target} . find {world.expression(question)} : {world.forward(steps)} ; "
    if not holds:
        return text + f"need {target} no ."
    solution = world.chain(question)
    return text + f"need {target} ok . so {world.forward(solution)} . answer {solution[-1][3]} ."


def fragment(rng: Random) -> str:
    """A compared fact, or a phrase of the long traces out of its context."""
    if rng.random() < 0.5:
        text = fact(rng)
        value = text.split()[-1]
        need = value if rng.random() < 0.5 else str(rng.randint(1, 30))
        return f"{text} ; need {need} {'ok' if need == value else 'no'} ."
    steps = world.chain(random_steps(rng))
    phrases = [
        f"wait alternatively try {rng.choice('+*')} :",
        f"wait redo : {world.forward(steps)} .",
        f"hmm check {world.backward(steps)} .",
        f"check {world.backward(steps)} .",
    ]
    return rng.choice(phrases)


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


def pretrain(name: str, out: Path) -> None:
    """Train base student `name` and write it to `out` as a Hugging Face folder with `recipe.json` and `loss.csv` beside."""
    recipe = BASES[name]
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = build_student(recipe, tokenizer)
    steps = recipe.tokens // (BATCH * ROW)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
    )
    batches = token_rows(tokenizer, Random(f"pretrain/{name}/{recipe.seed}"))
    started, curve = time.time(), []
    for step in range(steps):
        rows = next(batches)
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
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
    """Accuracy of a base student on development problems of each tier, and on plain chains with known operators (`chain`).

    `chain` is the skill that all traces are made of: bases are compared by it.
    """
    rng = Random("chain probe")
    chains = []
    for i in range(300):
        expr = random_steps(rng)
        answer = str(world.chain(expr)[-1][3])
        chains.append(
            Problem(f"chain/{i}", f"find {world.expression(expr)} :", answer, str(len(expr[1])), "chain", "pocket")
        )
    tiers = [load_problems(name, split="dev") for name in POCKET_TIERS]
    items = evaluate(str(folder), [*tiers, chains], progress=False).items
    return items.groupby("benchmark", sort=False)["correct"].mean().round(4).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("students", nargs="+", choices=list(BASES))
    parser.add_argument("--out", type=Path, default=STUDENTS_DIR, help="folder that gets one folder a student")
    args = parser.parse_args()
    for name in args.students:
        pretrain(name, args.out / name)


if __name__ == "__main__":
    main()
