"""Supervised fine-tuning of a student on a trace set: one flat loop, LoRA or full, resumable at any moment.

`finetune` checks what it is given, asks the run store, and calls `loop`. In the order of a step: `batches`
(examples -> tensors), `attention`, `loss`, `checkpoints`; around it `lora`, `memory`, `progress`, `gpus`.
"""

import hashlib
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import torch
from datasets import Dataset

from mixdistill import arguments, files, runs
from mixdistill.data.chat import Example, prompt_fingerprint, render_traces
from mixdistill.data.pocket.bases import POCKET_BASES
from mixdistill.data.students import Student, fingerprint, load_student, load_tokenizer
from mixdistill.data.traces import check_traces
from mixdistill.finetuning import gpus, memory
from mixdistill.finetuning.attention import attention_for, packs
from mixdistill.finetuning.batches import NOTHING, batch_of, pack, pad, share_of, token_groups
from mixdistill.finetuning.checkpoints import load_checkpoint, save_checkpoint, save_trained
from mixdistill.finetuning.lora import LoRA, trainable_model
from mixdistill.finetuning.loss import ResponseLoss, check_loss
from mixdistill.finetuning.memory import Placement
from mixdistill.finetuning.progress import Progress, peak_memory
from mixdistill.runs import Run

# Raised whenever the same configuration would train another student than before: old runs are not taken for new.
TRAINING_VERSION = 3

# LoRA learning rate of the pocket students: in steps of 2, the one with the best mean accuracy over short, long and
# mix_long on development problems (`python -m pretraining.choose_lr`).
POCKET_LR = {
    "pocket/xs": 6.25e-4,
    "pocket/s": 2.5e-3,
    "pocket/m": 1e-2,
    "pocket/l": 2.5e-3,
    "pocket/xl": 1e-2,
    "pocket/2xl": 2.5e-3,
    "pocket/3xl": 5e-3,
}
LORA_LR, FULL_LR = 1e-4, 1e-5  # the paper's, for everybody else
BETAS = (0.9, 0.98)  # 0.999 would average over more steps than a short run has
WARMUP = 0.1  # share of the steps
LOG_EVERY = 10  # steps
CHECKPOINT_EVERY = 50  # steps


def finetune(
    student: str | Path,
    train: Dataset,
    *,
    lora: LoRA | None = LoRA(),
    lr: float | None = None,
    epochs: int = 2,
    batch_size: int = 32,
    max_tokens: int | None = None,
    too_long: str = "error",
    thinking: bool | None = None,
    seed: int = 0,
    revision: str | None = None,
    on: Placement = Placement(),
    progress: bool = True,
    stored_only: bool = False,
) -> Run | None:
    """Fine-tune a student on traces; a run that the store already holds is returned at once.

    The loss is the mean cross-entropy of all response tokens of a step, stop token included, prompts not. AdamW without
    weight decay, linear warmup, cosine to 0, gradients clipped at norm 1. How a step is cut into passes and where they
    run is no part of what a run is: it changes rounding only, and a run may go on elsewhere after it was stopped.

    Arguments:
        student: as in `load_student`.
        train: traces (`load_traces`, `mix`).
        lora: adapters; None trains all weights.
        lr: peak learning rate; None takes the pocket students' own, or the paper's (1e-4 with LoRA, 1e-5 without).
        epochs: passes over `train`.
        batch_size: examples a step, over all GPUs.
        max_tokens: longest example; None means the student's context.
        too_long: what to do with longer examples, `error` or `drop` (listed in the manifest).
        thinking: the switch of a chat template that has one; None leaves it to the template.
        seed: of adapter weights and order of the examples.
        revision: commit of a Hub model.
        on: where it is computed. When memory runs out, the loop goes on with shorter passes, checkpointing, offload.
        progress: print a line now and then.
        stored_only: train nothing; return None if the store has no such run.

    Raises:
        ValueError: bad arguments, an unknown student, traces that do not fit.
        RuntimeError: the loss is not finite, memory ran out (what to change is said), or a process failed.
        OSError: the disk is full or read-only; the last checkpoint is whole.
    """
    student = arguments.text("student", student)
    if not isinstance(train, Dataset):
        given = type(train).__name__
        raise ValueError(f"train is a {given}: give traces as load_traces and mix return them, a datasets.Dataset")
    check_traces(train)
    arguments.instance("lora", lora, LoRA, optional=True)
    arguments.instance("on", on, Placement)
    arguments.flag("progress", progress)
    arguments.flag("stored_only", stored_only)
    config = {
        "version": TRAINING_VERSION,
        "student": student,
        "revision": arguments.text("revision", revision, optional=True),
        "thinking": arguments.flag("thinking", thinking, optional=True),
        "train": data_fingerprint(train),
        "lora": {"r": lora.r, "alpha": lora.scaled_alpha} if lora else None,
        "lr": arguments.number("lr", default_lr(student, lora) if lr is None else lr, above=0),
        "epochs": arguments.whole("epochs", epochs),
        "batch_size": arguments.whole("batch_size", batch_size),
        "max_tokens": arguments.whole("max_tokens", max_tokens, optional=True),
        "too_long": arguments.choice("too_long", too_long, ("error", "drop")),
        "seed": arguments.whole("seed", seed, low=0, high=2**63 - 1),
    }
    config["fingerprint"] = fingerprint(student, config["revision"])
    config["prompt"] = prompt_of(student, config["revision"], config["fingerprint"], thinking)
    run = runs.run_of(config)
    if gpus.agreed(runs.finished(run)):
        runs.once(run.folder, "manifest.json", dict)  # sweeps up after a process that was killed at its very end
        return run
    if stored_only:
        return None
    if gpus.to_launch(on):
        chosen = ("lr", "epochs", "batch_size", "max_tokens", "too_long", "thinking", "seed", "revision")
        placed = {"student": student, "lora": config["lora"], "on": asdict(on), "progress": progress}
        gpus.launch(train, placed | {name: config[name] for name in chosen}, on.gpus)
    else:
        train_run(run, train, lora, replace(on, gpus=gpus.world()), progress)
    return run


def train_run(run: Run, train: Dataset, lora: LoRA | None, on: Placement, progress: bool) -> None:
    """Load what is trained, bring it to where it is trained, and call the loop unless another process has done so.

    Every process of a run calls it. What cannot be trained is refused here, before the run has a folder.
    """
    config, device = run.config, gpus.join()
    shown = Progress(f"{config['student']}, seed {config['seed']}", device, progress and gpus.rank() == 0)
    with shown, memory.advice_when_out_of_memory():
        with gpus.in_turn(on.shard):
            student = load_student(run.student, config["revision"], device="cpu")
            limit = min(config["max_tokens"] or student.context, student.context)
            examples = render_traces(student.tokenizer, train, limit, config["too_long"], config["thinking"])
            half = student.model.dtype == torch.bfloat16
            student.model.set_attn_implementation(attention_for(student.model, device))
            student.model = trainable_model(student, lora, config["seed"], fused=device.type == "cpu")
            if not on.shard:
                student.model.to(device)
            if gpus.rank() == 0:
                check_loss(student, student.model)
            loss_of = ResponseLoss(student.model, half)
            gpus.place(loss_of, on)
        gpus.once(run, lambda: loop(run, train, examples, student, loss_of, gpus.agreed(on), shown))
    files.delete(run.folder / "checkpoint.pt")


def loop(
    run: Run,
    train: Dataset,
    examples: list[Example],
    student: Student,
    loss_of: ResponseLoss,
    on: Placement,
    shown: Progress,
) -> dict:
    """The training loop, in which every process of a run takes its share of each step; returns the manifest."""
    started, device, config, model = time.monotonic(), gpus.join(), run.config, student.model
    attention, batch_size, seed = model.config._attn_implementation, config["batch_size"], config["seed"]
    longest = max(len(example.input_ids) for example in examples)
    on = replace(on, tokens=memory.pass_tokens(on, model.config, device, longest))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], betas=BETAS, weight_decay=0.0, fused=True)
    n_steps = math.ceil(len(examples) / batch_size) * config["epochs"]

    runs.start(run)
    fresh = {"step": 0, "log": [], "pairs": [], "counts": {}, "seconds": 0.0}
    before = load_checkpoint(run, n_steps, model, optimizer) or fresh
    step, log, counts = before["step"], before["log"], Counter(before["counts"])
    pairs = before["pairs"]  # (loss, gradient norm) of the steps since the last line of the log
    unread = []  # the same, of the steps that the GPU may still be at
    shown.say(f"{len(examples)} examples, {n_steps} steps, attention {attention}, {on}")
    shown.begin(step, n_steps)

    def read() -> None:
        """Fetch what is unread, the one wait for the GPU; a loss that is not finite ends the run."""
        if not unread:
            return
        losses, norms = torch.stack(unread, 1)  # of this process's passes; of the whole gradient
        gpus.add_up([losses])
        fetched = torch.stack([losses, norms], 1).tolist()
        for at, pair in enumerate(fetched, start=step - len(fetched)):
            if not all(map(math.isfinite, pair)):
                raise not_finite(run, train, batch_of(examples, at, batch_size, seed), at + 1, pair)
        pairs.extend(fetched)
        unread.clear()

    def checkpoint() -> None:
        read()  # weights that a loss has spoilt are not stored
        if step == 0:  # asked for its state, an optimizer without one would take a step
            return
        seconds = before["seconds"] + time.monotonic() - started
        state = {"step": step, "log": log, "pairs": pairs, "counts": dict(counts), "seconds": seconds}
        save_checkpoint(run, state, model, optimizer)

    # ------------------------------------------------------------------------------------------------------------------
    model.train()
    while step < n_steps:
        batch = batch_of(examples, step, batch_size, seed)
        lengths = [len(example.input_ids) for example in batch]
        n_supervised = sum(lengths) - sum(example.n_prompt for example in batch)
        groups = token_groups(lengths, on.tokens, packs(attention))
        groups = share_of(groups, gpus.rank(), gpus.world())

        loss = torch.zeros((), device=device)
        with memory.out_of_memory_caught(on, longest, device) as ran_out:
            for done, group in enumerate(groups):
                chosen = [batch[i] for i in group] or [NOTHING]
                passed = pack(chosen) if packs(attention) else pad(chosen, student.tokenizer.pad_token_id)
                # Divided by the tokens of the whole step, so that every token weighs the same in whatever pass it is.
                part = loss_of(passed.to(device)) / n_supervised
                part.backward()
                loss += part.detach()
                shown.at = step + (done + 1) / len(groups)
        if gpus.in_any(bool(ran_out)):  # once more from the same weights, with less at a time
            optimizer.zero_grad()
            checkpoint()
            on = memory.more_frugal(on, longest, device)
            memory.recompute(model, on)
            counts.update(out_of_memory=1)
            shown.say(f"out of memory at step {step + 1}: goes on with {on}")
            continue

        for p in parameters:
            if p.grad is None:  # an expert that no token of these passes went to
                p.grad = torch.zeros_like(p)
        if not on.shard:  # else each backward pass has done so
            gpus.add_up(p.grad for p in parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for param_group in optimizer.param_groups:
            param_group["lr"] = config["lr"] * schedule(step, n_steps)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        unread.append(torch.stack([loss, norm.full_tensor() if on.shard else norm]))
        counts.update(steps=1, half=loss_of.half, tokens=sum(lengths), supervised=n_supervised)
        shown.tokens, shown.supervised = shown.tokens + sum(lengths), shown.supervised + n_supervised

        if step % LOG_EVERY == 0 or step == n_steps:
            read()
            mean_loss, rate = sum(loss for loss, _ in pairs) / len(pairs), optimizer.param_groups[0]["lr"]
            row = {"step": step, "loss": mean_loss, "lr": rate, "grad_norm": pairs[-1][1]}
            log.append(row | {"tokens": counts["tokens"], "supervised_tokens": counts["supervised"]})
            shown.loss, pairs = mean_loss, []
        if step % CHECKPOINT_EVERY == 0 and step < n_steps:
            checkpoint()
    # ------------------------------------------------------------------------------------------------------------------

    speed = shown.tokens / max(time.monotonic() - shown.began, 1e-9)
    save_trained(run.folder, model, student)
    if gpus.rank() > 0:
        return {}
    rows = "".join(json.dumps(row) + "\n" for row in log)
    files.replace(run.folder / "metrics.jsonl", lambda path: path.write_text(rows))
    kept = {example.row for example in examples}
    facts = {
        "n_examples": len(examples),
        "n_too_long_dropped": len(train) - len(examples),
        "rows_too_long_dropped": [row for row in range(len(train)) if row not in kept],
        "n_steps": n_steps,
        "n_steps_in_bfloat16": counts["half"],  # the others are in float32
        "n_trained_params": sum(p.numel() for p in parameters),
        "tokens": counts["tokens"],
        "supervised_tokens": counts["supervised"],
        "tokens_per_second": round(speed, 1),
        "seconds": round(before["seconds"] + time.monotonic() - started, 2),
        "seed": config["seed"],
        "processes": gpus.world(),
        "attention": attention,
        "placement": asdict(on),
        "out_of_memory": counts["out_of_memory"],
        "peak_memory_bytes": peak_memory(device),
    }
    return facts | runs.machine() | {"files": runs.digests(run.folder, ("adapter", "model", "metrics.jsonl"))}


def not_finite(run: Run, train: Dataset, batch: list[Example], step: int, pair: list[float]) -> RuntimeError:
    """Store which examples a step had whose loss or gradient was not finite; returns what to raise."""
    rows = [example.row for example in batch]
    loss, norm = (repr(value) for value in pair)  # NaN is no JSON
    seen = {"step": step, "loss": loss, "grad_norm": norm, "rows": rows, "problem_ids": train[rows]["problem_id"]}
    files.write_json(run.folder / "not_finite.json", seen)
    return RuntimeError(
        f"the loss of {run.config['student']} is {loss} and its gradient's norm {norm} at step {step}: lower lr (it is "
        f"{run.config['lr']}), or look at the examples listed in not_finite.json; it and the last good checkpoint are "
        f"in {run.folder.name}"
    )


def schedule(step: int, n_steps: int) -> float:
    """Share of the peak learning rate: linear warmup, then cosine to 0."""
    n_warmup = max(1, round(WARMUP * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def default_lr(student: str, lora: LoRA | None) -> float:
    """The peak learning rate where none is given."""
    if lora is None:
        return FULL_LR
    size = next((size for size, bases in POCKET_BASES.items() if student in bases), student)
    return POCKET_LR.get(size, LORA_LR)


@lru_cache(maxsize=64)
def prompt_of(student: str, revision: str | None, fingerprint: str, thinking: bool | None) -> str:
    """What identifies the rendered prompt of a student; `fingerprint` tells it from another one of that name."""
    return prompt_fingerprint(load_tokenizer(student, revision), thinking)


def data_fingerprint(train: Dataset) -> str:
    """Hash of what is trained on, in its order: questions, responses, answer_formats."""
    digest = hashlib.sha256()
    for row in zip(train["question"][:], train["response"][:], train["answer_format"][:], strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:32]


def main() -> None:
    """`torchrun ... -m mixdistill.finetuning.finetune ARM.json`, or under `accelerate launch`."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mixdistill.finetuning.finetune ARM.json")
    try:
        train, given = gpus.load_arm(Path(sys.argv[1]))
        lora, on = given.pop("lora", asdict(LoRA())), given.pop("on", {})
        finetune(train=train, lora=LoRA(**lora) if lora else None, on=Placement(**on), **given)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
