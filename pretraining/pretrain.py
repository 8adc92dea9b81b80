"""Pre-train the pocket world's base students from scratch: `python -m pretraining.pretrain xs s m l xl --out FOLDER`.

The text holds lists of facts, chains, mystery problems solved in SHORT form by a guess that may fail the colour test
(then the text stops), and single steps of long traces behind a problem or a clue. It never holds tests of two machines
for one problem: a base knows every step of a long trace and not the procedure, which is what students must learn by
fine-tuning.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mixdistill.data.pocket import world
from mixdistill.data.pocket.bases import GATE, GATED, POCKET_DIR
from mixdistill.data.problems import POCKET_TIERS, Problem, load_problems
from mixdistill.data.students import Student, load_student
from mixdistill.results.evaluate import evaluate
from pretraining.muon import Muon
from pretraining.tokenizer import CONTEXT, build_tokenizer

TABLES = world.TABLES
# The first cue of the text: by item the machine before the one that it prefers in the problems.
HABITUAL = {item: world.MACHINES[world.MACHINES.index(machine) - 1] for item, machine in TABLES.preferred.items()}
# How often a mark is in the lists, in the end and at the beginning: a few facts, met often, soon bring a student to
# look them up; many at once leave it on a plateau (Zucchet et al. 2025, arXiv 2503.21676).
MARK_WEIGHTS = list(accumulate(TABLES.mark_weight.values()))
FIRST_WEIGHTS = list(accumulate(weight**3 for weight in TABLES.mark_weight.values()))
ROW = 128  # tokens: several texts, so that what is copied is found among as many others as in a long trace
BATCH = 16  # rows
MAX_JUMP = 130  # positions; about the length of a long trace
WARMUP = 100  # steps

# Width and feed-forward width; all else but the steps follows from them by one rule each.
SHAPES = {
    "xs": (32, 48),
    "s": (32, 96),
    "m": (48, 144),
    "l": (64, 192),
    "xl": (96, 288),
    "2xl": (160, 480),
    "3xl": (320, 960),
}
LAYERS = 2
# Of BATCH x ROW = 2,048 tokens: 5.7M to 20.5M tokens. Larger students read more, else they too end before they know the
# marks.
STEPS = {"xs": 2800, "s": 2900, "m": 4000, "l": 5800, "xl": 6000, "2xl": 8000, "3xl": 10000}

# Weights of the kinds of documents; their shares are about the same.
MIXTURE = {"product": 0.08, "chain": 0.09, "colour": 0.14, "same": 0.15, "mark": 0.10, "guess": 0.40, "lists": 0.055}
# Of the guesses: so many follow the text's own cue (`HABITUAL`), so many that of the problems
# (`TABLES.preferred`). A student knows both, and that the first is likelier; what fine-tuning has to turn round. At the
# beginning of the training and at its end: a cue that only half of the guesses follow was found late, or never.
HABIT, HUNCH = (1.0, 0.5), (0.0, 0.3)


def peak_lr(width: int) -> float:
    return 0.01 * math.sqrt(32 / width)


def document(rng: Random, progress: float) -> str:
    """One pre-training document, without its <bos> and <eos>, at `progress` (0 to 1) of the training."""
    what = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
    if what == "product":
        return fact_list([(rng.choice(world.MACHINES), rng.choice(world.ITEMS)) for _ in range(4)])
    if what == "chain":
        machine, item, times = rng.choice(world.MACHINES), rng.choice(world.ITEMS), rng.choice(world.LEVELS)
        return f"find {world.COUNTS[times - 1]} {machine} {item} : {world.solved(world.chain(machine, item, times))}"
    if what == "lists":  # of marks, as single facts in whole sentences leave small students on a plateau
        weights = MARK_WEIGHTS if rng.random() < progress else FIRST_WEIGHTS
        return fact_list(rng.choices(list(TABLES.mark_weight), cum_weights=weights, k=8))
    return guess(rng, progress) if what == "guess" else lone_step(rng, what)


def fact_list(known: list[tuple[str, str]]) -> str:
    return " ; ".join(world.fact(machine, x, TABLES.facts[machine, x]) for machine, x in known) + " ."


def between(ends: tuple[float, float], progress: float) -> float:
    """On a line from the value at the beginning of the training to that at its end."""
    first, last = ends
    return first + (last - first) * progress


def lone_step(rng: Random, what: str) -> str:
    """A clue, in most texts in its whole problem, and one step of a long trace about it.

    Problems before a mark get another number and mark, so most of them have no answer and their split is any; none is
    solved.
    """
    problem = world.random_mystery(rng, rng.choice(world.LEVELS), split="train", cue=False)
    before, whole = f"{problem.number} ? {problem.mark}", problem.text
    if what == "colour":
        machine = rng.choice(world.MACHINES)
        last = world.MACHINES[world.MACHINES.index(machine) - 1]
        before = f"{problem.kind} ? {problem.colour}"
        step = f"try {world.test(machine, problem.kind, problem.colour)}"
        # Behind a whole problem `try` alone is left to the guesses, as it tells the machine that comes to mind first.
        in_problem = rng.random() < 0.5
        step = f"wait after {last} {step}" if in_problem or rng.random() < 0.5 else step
        return f"{whole if in_problem else before + ' :'} {step} ."
    if what == "same":  # comparisons without a machine: they say nothing about any mark
        found = [problem.mark if rng.random() < 1 / 3 else rng.choice(world.MARKS) for _ in range(6)]
        # Ends with what fits, as a search does: so `ok` says no more than that this mark was found before.
        if problem.mark in found:
            found = found[: found.index(problem.mark) + 1]
        says = ["ok" if mark == problem.mark else "no" for mark in found]
        step = " . ".join(
            f"check {problem.number} = {m} need {problem.mark} {s}" for m, s in zip(found, says, strict=True)
        )
    else:
        machine, number = rng.choices(list(TABLES.mark_weight), cum_weights=MARK_WEIGHTS)[0]
        mark = TABLES.facts[machine, number] if rng.random() < 0.25 else rng.choice(world.MARKS)
        step = f"check {world.test(machine, number, mark)}"
        # Its machine is the one named last, which a check in a long trace has to copy. Nothing is tested but this mark.
        named = [*rng.choices(world.MACHINES, k=rng.randrange(3)), machine]
        step = f"{' '.join(f'{problem.kind} {m}' for m in named)} . {step}"
        whole = whole.replace(before, f"{number} ? {mark}")
        before = f"{number} ? {mark}"
    return f"{whole if rng.random() < 0.75 else before + ' :'} {step} ."


def guess(rng: Random, progress: float) -> str:
    """A mystery problem and one guess: solved where the colour fits, else broken off."""
    problem = world.random_mystery(rng, rng.choice(world.LEVELS), split="train", cue=False)
    draw, machine = rng.random(), rng.choice(world.MACHINES)
    habit, hunch = between(HABIT, progress), between(HUNCH, progress)
    if draw < habit + hunch:
        machine = (HABITUAL if draw < habit else TABLES.preferred)[problem.item]
    return f"{problem.text} {guessed(problem, machine)}"


def guessed(problem: world.Mystery, machine: str) -> str:
    """The short answer of someone who guesses `machine`."""
    test = f"try {world.test(machine, problem.kind, problem.colour)} ."
    return test if test.endswith("no .") else f"{test} {world.solution(problem, machine)}"


def token_rows(tokenizer: PreTrainedTokenizerFast, rng: Random, steps: int) -> Iterator[torch.Tensor]:
    """`steps` batches of int64 [BATCH, ROW]: documents joined end to end and cut into rows."""
    index = tokenizer.get_vocab()
    bos, eos = index["<bos>"], index["<eos>"]
    buffer: list[int] = []
    for step in range(steps):
        while len(buffer) < BATCH * ROW:
            buffer += [bos, *(index[word] for word in document(rng, step / steps).split()), eos]
        yield torch.tensor(buffer[: BATCH * ROW]).view(BATCH, ROW)
        buffer = buffer[BATCH * ROW :]


def jumping_positions(rows: torch.Tensor, colon: int, generator: torch.Generator) -> torch.Tensor:
    """Positions int64 of `rows` [BATCH, ROW] that jump ahead by 1..MAX_JUMP at half of the colons.

    So nothing can be learnt from the distance between a problem and its solution, which in a long trace is larger than
    ever in this text (after Ruoss et al. 2023, randomised positions). Without it all students copied by position, and
    lost the question's item in long traces.
    """
    jump = torch.randint(1, MAX_JUMP + 1, rows.shape, generator=generator)
    jumps = (rows == colon) & (torch.rand(rows.shape, generator=generator) < 0.5)
    return torch.arange(rows.shape[1]) + torch.where(jumps, jump, 0).cumsum(1)


def build_student(name: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of this size with random weights."""
    width, ffn_width = SHAPES[name]
    heads = max(4, width // 32)  # with two heads, 32 and 64 wide students were slower to learn to copy
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=ffn_width,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # In a prototype the default of 0.02 never left the plateau at these widths.
        initializer_range=0.6 / math.sqrt(width),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def pretrain(name: str, seed: int, out: Path, steps: int | None = None, half: bool = False) -> bool:
    """Train base `seed` of student `name` for `steps` (None: its own) on the GPU if there is one, and write it to `out`
    as a Hugging Face folder (bfloat16 weights), with `recipe.json`, `loss.csv` and `evaluation.json` beside. `half`:
    multiply in bfloat16. Returns whether it passes the gate.
    """
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer()
    model = build_student(name, tokenizer, seed).to(device)
    width, ffn_width = SHAPES[name]
    steps, lr = steps or STEPS[name], peak_lr(width)
    matrices = [p for key, p in model.named_parameters() if p.ndim == 2 and "embed" not in key]
    others = [p for key, p in model.named_parameters() if p.ndim == 1 or "embed" in key]
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    optimizers = [Muon(matrices, lr, half=half), adamw]
    batches = token_rows(tokenizer, Random(f"pretrain/{name}/{seed}"), steps)
    colon, generator = tokenizer.get_vocab()[":"], torch.Generator().manual_seed(seed)
    # Without a mask, transformers 5 takes a jump for the border of two packed texts and hides the first from the
    # second.
    see_all = torch.ones(BATCH, ROW, dtype=torch.long, device=device)
    started, curve = time.time(), []
    for step in range(steps):
        rows = next(batches)
        positions = jumping_positions(rows, colon, generator).to(device)
        rows = rows.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(rows, attention_mask=see_all, position_ids=positions, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = min(1.0, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr * share
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            curve.append((step, (step + 1) * BATCH * ROW, round(loss.item(), 4)))
        if step % 250 == 0:
            left = (time.time() - started) / (step + 1) * (steps - step - 1) / 60
            print(f"{out.name}: step {step + 1}/{steps}, loss {loss.item():.3f}, {left:.1f} minutes left", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    params = model.num_parameters()
    # Half the size; fine-tuning and decoding take them up to float32 again.
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    facts = {"student": name, "params": params, "width": width, "ffn_width": ffn_width, "layers": LAYERS}
    facts |= {
        "tokens": steps * BATCH * ROW,
        "lr": lr,
        "seed": seed,
        "row": ROW,
        "batch": BATCH,
        "precision": "bfloat16" if half else "float32",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "seconds": round(time.time() - started),
    }
    (out / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
    with (out / "loss.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "tokens", "loss"), *curve])
    facts = base_evaluation(out)
    (out / "evaluation.json").write_text(json.dumps(facts, indent=2) + "\n")
    missed = [f"{key} {facts[key]} (gate {GATE})" for key in GATED if facts[key] < GATE]
    print(
        f"{out.name}: {'misses the gate: ' + ', '.join(missed) if missed else 'passes the gate'}; {facts}", flush=True
    )
    return not missed


def base_evaluation(folder: Path) -> dict[str, float]:
    """What a base student knows and can; `GATE` says what every size has to reach.

    `product`, `colour`: share of the facts known; `mark` and, of the rarer half, `rare` as in `marks_known`. `chain`:
    plain chains with a shown machine. On development problems: `form`, share of the answers without a false step,
    whatever machine is guessed; `habit`, of the guesses that follow one of the text's two cues; `copy`, of the checks
    begun with the problem's number; `machine`, of those that go on with the machine named last; `need`, of those that
    ask for the problem's mark; `same`, of the marks compared rightly with the problem's, half of them equal. Then the
    accuracy on these problems, by tier.
    """
    student = load_student(str(folder))
    facts = TABLES.facts
    known = {
        "product": completed(student, {f"{x} {m} =": y for (m, x), y in facts.items() if x in world.ITEMS}),
        "colour": completed(student, {f"try {x} {m} =": y for (m, x), y in facts.items() if x in world.KINDS}),
        "mark": marks_known(student, list(TABLES.mark_weight)),
        "rare": marks_known(student, [(machine, n) for machine, numbers in world.RARE.items() for n in numbers]),
    }
    rng = Random("chain probe")
    chains = []
    for i in range(300):
        machine, item, times = rng.choice(world.MACHINES), rng.choice(world.ITEMS), rng.choice(world.LEVELS)
        question = f"find {world.COUNTS[times - 1]} {machine} {item} :"
        answer = world.chain(machine, item, times)[-1][2]
        chains.append(Problem(f"chain/{i}", question, answer, str(times), "chain", "pocket"))
    tiers = [load_problems(name, n=200, split="dev") for name in POCKET_TIERS]
    items = evaluate(str(folder), [chains, *tiers], progress=False).items
    accuracy = items.groupby("benchmark", sort=False)["correct"].mean().to_dict()
    known["chain"] = accuracy.pop("chain")
    mysteries = items[items["benchmark"] != "chain"]
    known["form"] = sum(map(consistent, mysteries.question, mysteries.response)) / len(mysteries)
    questions = [problem.question for tier in tiers for problem in tier]
    cues = (HABITUAL, TABLES.preferred)
    guesses = [{f"{q} try {q.split()[0]}": cue[q.split()[-2]] for q in questions} for cue in cues]
    known["habit"] = sum(completed(student, guess) for guess in guesses)
    known["same"] = completed(student, comparisons(questions))
    known["copy"] = completed(student, {f"{q} check": q.split()[4] for q in questions})
    known["machine"] = completed(student, machine_copies(questions))
    known["need"] = completed(student, need_copies(questions))
    return {name: round(float(value), 4) for name, value in (known | accuracy).items()}


def marks_known(student: Student, marks: list[tuple[str, str]]) -> float:
    """Share of the marks (machine, number) that the student recalls behind a clue that asks for another, as in the
    checks of wrong machines.
    """
    rng, texts = Random("mark probe"), {}
    for machine, number in marks:
        mark = TABLES.facts[machine, number]
        other = rng.choice([m for m in world.MARKS if m != mark])
        texts[f"{number} ? {other} : check {number} {machine} ="] = mark
    return completed(student, texts)


def comparisons(questions: list[str]) -> dict[str, str]:
    """A check of each problem, of any machine, up to its verdict."""
    rng, texts = Random("same probe"), {}
    for question in questions:
        number, mark = question.split()[4], question.split()[6]
        found = mark if rng.random() < 0.5 else rng.choice(world.MARKS)
        says = "ok" if found == mark else "no"
        texts[f"{question} check {number} {rng.choice(world.MACHINES)} = {found} need {mark}"] = says
    return texts


def machine_copies(questions: list[str]) -> dict[str, str]:
    """A check of each problem up to its machine, the second of two that were named."""
    rng, texts = Random("machine probe"), {}
    for question in questions:
        kind, number, (first, second) = question.split()[0], question.split()[4], rng.sample(world.MACHINES, 2)
        texts[f"{question} {kind} {first} {kind} {second} . check {number}"] = second
    return texts


def need_copies(questions: list[str]) -> dict[str, str]:
    """A check of each problem, of any machine, up to the mark that is needed."""
    rng, texts = Random("need probe"), {}
    for question in questions:
        kind, number, mark = question.split()[0], question.split()[4], question.split()[6]
        machine, found = rng.choice(world.MACHINES), rng.choice(world.MARKS)
        texts[f"{question} {kind} {machine} . check {number} {machine} = {found} need"] = mark
    return texts


@torch.inference_mode()
def completed(student: Student, texts: dict[str, str]) -> float:
    """Share of the texts that the student goes on with the right word. All texts have one length, or nearly."""
    right = 0
    by_length: dict[int, list[str]] = {}
    for text in texts:
        by_length.setdefault(len(text.split()), []).append(text)
    for group in by_length.values():
        ids = student.tokenizer([f"<bos> {text}" for text in group], return_tensors="pt")["input_ids"]
        said = student.model(input_ids=ids.to(student.device)).logits[:, -1].argmax(-1).tolist()
        right += sum(map(int.__eq__, said, student.tokenizer.convert_tokens_to_ids([texts[text] for text in group])))
    return right / len(texts)


def consistent(question: str, response: str) -> bool:
    """Is the answer what someone says who guesses one machine and makes no false step?"""
    kind, _, colour, *_, count, _, item, _ = question.split()
    machine = [*response.split(), "", "", ""][2]
    if machine not in world.MACHINES:
        return False
    test = f"try {world.test(machine, kind, colour)} ."
    solved = world.solved(world.chain(machine, item, world.COUNTS.index(count) + 1))
    return response == (test if test.endswith("no .") else f"{test} {solved}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("students", nargs="+", choices=list(SHAPES))
    parser.add_argument("--seed", type=int, default=0, help="which base, from 0: of first weights and text")
    parser.add_argument("--out", type=Path, default=POCKET_DIR, help="folder that gets one folder a base")
    parser.add_argument("--steps", type=int, help="default: the student's own number")
    parser.add_argument(
        "--half",
        action="store_true",
        help="multiply in bfloat16: 2 times as fast with AVX-512 BF16, slower on other CPUs",
    )
    args = parser.parse_args()
    folders = {name: args.out / (f"{name}-{args.seed}" if args.seed else name) for name in args.students}
    for folder in folders.values():
        if (folder / "config.json").exists():
            parser.error(f"{folder} holds a base, which published numbers may come from: give another --out")
    passed = [pretrain(name, args.seed, folder, args.steps, args.half) for name, folder in folders.items()]
    if not all(passed):
        raise SystemExit("a base that misses the gate is none of the study's: take the next seed in its place")


if __name__ == "__main__":
    main()
