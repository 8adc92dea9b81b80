"""Supervised fine-tuning of a student on a trace set: one flat loop, LoRA or full, resumable at any moment.

`finetune` checks what it is given, asks the run store, and calls `loop`. In the order of a step: `batches`
(examples -> tensors), `attention`, `loss`, `checkpoints`; around it `lora`, `memory`, `progress`, `gpus`.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from mixdistill import arguments, files, runs
from mixdistill.data.chat import Example, prompt_fingerprint, render_traces
from mixdistill.data.students import Student, check_ids, fingerprint, load_student, load_tokenizer, rope_boundary
from mixdistill.data.traces import check_traces
from mixdistill.finetuning import gpus, memory
from mixdistill.finetuning.attention import VARLEN, attention_for
from mixdistill.finetuning.batches import NOTHING, batch_of, pack, pad, token_groups
from mixdistill.finetuning.checkpoints import load_checkpoint, save_checkpoint, save_trained
from mixdistill.finetuning.lora import LoRA, trainable_model
from mixdistill.finetuning.loss import ResponseLoss, check_loss
from mixdistill.finetuning.memory import Placement
from mixdistill.finetuning.progress import Progress, peak_memory
from mixdistill.runs import Run

# Raised whenever the same configuration would train another student than before: old runs are not taken for new.
TRAINING_VERSION = 4

# LoRA learning rate of the pocket students: in steps of 2, the one with the best mean accuracy over short, long and
# mix_long and all bases of the size (of 2xl and 3xl the first) on development problems
# (`python -m pretraining.choose_lr`).
RATES = {"xs": 5e-3, "s": 2.5e-3, "m": 1e-2, "l": 5e-3, "xl": 2.5e-3, "2xl": 2.5e-3, "3xl": 5e-3}
POCKET_LR = {f"pocket/{size}": lr for size, lr in RATES.items()}
LORA_LR, FULL_LR = 1e-4, 1e-5  # the paper's, for everybody else
BETAS = (0.9, 0.98)  # 0.999 would average over more steps than a short run has
WARMUP = 0.1  # share of the steps
CHECKPOINT_EVERY = 50  # steps, or where they are long
CHECKPOINT_SECONDS = 300.0


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
    run changes rounding only, and is no part of a run's name: it may go on elsewhere after it was stopped.

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
        on: where it is computed. When memory runs out, the loop goes on with shorter passes, then checkpointing.
        progress: print a line now and then.
        stored_only: train nothing; return None if the store has no such run.

    Raises:
        ValueError: bad arguments, an unknown student, traces that do not fit.
        RuntimeError: the loss is not finite: the run's folder stays, with `not_finite.json` and the last checkpoint. Or
            memory ran out (what to change is said), or a process failed.
        OSError: the disk is full or read-only; the last checkpoint is whole.
    """
    student = arguments.text("student", student)
    check_traces(train)
    arguments.instance("lora", lora, LoRA, optional=True)
    arguments.instance("on", on, Placement)
    arguments.flag("progress", progress)
    arguments.flag("stored_only", stored_only)
    config: dict[str, Any] = {
        "version": TRAINING_VERSION,
        "student": student,
        "revision": arguments.text("revision", revision, optional=True),
        "thinking": arguments.flag("thinking", thinking, optional=True),
        "train": data_fingerprint(train),
        "lora": {"r": lora.r, "alpha": lora.scaled_alpha} if lora else None,
        "lr": arguments.number("lr", default_lr(student, lora) if lr is None else lr, above=0),
        "epochs": arguments.whole("epochs", epochs, high=10_000),
        "batch_size": arguments.whole("batch_size", batch_size),
        "max_tokens": arguments.whole("max_tokens", max_tokens, optional=True),
        "too_long": arguments.choice("too_long", too_long, ("error", "drop")),
        "seed": arguments.whole("seed", seed, low=0, high=2**63 - 1),
    }
    with Progress(f"seed {seed}", progress and gpus.rank() == 0) as shown:  # from here: large files take long to hash
        config["fingerprint"] = fingerprint(student, revision)
        config["prompt"] = prompt_fingerprint(load_tokenizer(student, revision), thinking)
        run = runs.run_of(config)
        if gpus.agreed(runs.finished(run)):
            runs.once(run.folder, "manifest.json", dict)  # sweeps up after a process that was killed at its very end
            return run
        if stored_only:
            return None
        shown.label = f"{run.config['student']}, seed {seed}"
        if not gpus.to_launch(on):
            with runs.one_at_a_time:
                train_run(run, train, lora, replace(on, gpus=gpus.world()), shown)
            return run
    chosen = ("lr", "epochs", "batch_size", "max_tokens", "too_long", "thinking", "seed", "revision")
    placed = {"student": student, "train": train, "lora": lora, "on": on, "progress": progress}
    with files.lock(run.folder / "launch"):  # here, where it is known whether to wait: the new processes always would
        if not runs.finished(run):
            gpus.launch(placed | {name: config[name] for name in chosen}, on.gpus)
    return run


def train_run(run: Run, train: Dataset, lora: LoRA | None, on: Placement, shown: Progress) -> None:
    """Bring a student to where it is trained, and call the loop unless another process has done so.

    Every process of a run calls it. What cannot be trained is refused here, before the run has a folder.
    """
    config, device = run.config, gpus.join()
    files.tell("getting ready")

    def load() -> tuple[Student, list[Example], ResponseLoss]:
        student = load_student(run.student, config["revision"], device="cpu")
        limit = min(config["max_tokens"] or student.context, student.context)
        examples = render_traces(student.tokenizer, train, limit, config["too_long"], config["thinking"])
        half = student.model.dtype == torch.bfloat16
        check_ids(student, [example.input_ids for example in examples])
        causal, attention = student.model, attention_for(student.model, device)
        student.model = trainable_model(student, lora, config["seed"], fused=device.type == "cpu")
        if not on.shard:
            student.model.to(device)
        loss_of = ResponseLoss(student.model, half).train()
        causal.set_attn_implementation(attention)  # last: the head was looked at where the weights are, in their type
        if gpus.rank() == 0:
            check_loss(student, loss_of)
        if on.shard:
            gpus.shard(loss_of)
        return student, examples, loss_of

    try:
        # One process of a machine after the other, if each holds the whole model until it has cut out its share.
        student, examples, loss_of = gpus.in_turn(load) if on.shard else load()
        gpus.once(run, lambda: loop(run, train, examples, student, loss_of, gpus.agreed(on), shown))
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise memory.advice(error, on) from error


def loop(
    run: Run,
    train: Dataset,
    examples: list[Example],
    student: Student,
    loss_of: ResponseLoss,
    on: Placement,
    shown: Progress,
) -> dict[str, Any]:
    """The training loop, in which every process of a run takes its share of each step; returns the manifest."""
    started, config, model = time.monotonic(), run.config, student.model
    batch_size, n_steps = config["batch_size"], math.ceil(len(examples) / config["batch_size"]) * config["epochs"]
    longest = max(len(example.input_ids) for example in examples)
    on = replace(on, tokens=memory.pass_tokens(on, model.config, gpus.join(), longest))
    memory.recompute(model, on)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], betas=BETAS, weight_decay=0.0, fused=True)
    runs.start(run)
    before = load_checkpoint(run, model, optimizer) or {"step": 0, "log": [], "n_half": 0, "seconds": 0.0}
    step, log, n_half = before["step"], before["log"], before["n_half"]
    started -= before["seconds"]
    n_dropped = len(train) - len(examples)
    dropped = f" ({n_dropped} others are too long and left out)" if n_dropped else ""
    attention = model.config._attn_implementation
    shown.say(f"{len(examples)} examples{dropped}, {n_steps} steps, {attention} attention, {on}")
    shown.begin(log, n_steps)
    saved = time.monotonic()

    def checkpoint() -> None:
        nonlocal saved
        progress = {"step": step, "log": log, "n_half": n_half, "seconds": time.monotonic() - started}
        save_checkpoint(run, progress, model, optimizer)
        saved = time.monotonic()

    # ------------------------------------------------------------------------------------------------------------------
    while step < n_steps:
        batch = batch_of(examples, step, batch_size, config["seed"])
        loss = accumulate_gradients(loss_of, batch, student.tokenizer.pad_token_id, on, shown)
        if loss is None:  # memory ran out: once more from the same weights, with less at a time
            optimizer.zero_grad()
            if step:
                checkpoint()
            on = memory.more_frugal(on, longest)
            memory.recompute(model, on)
            shown.say(f"out of memory at step {step + 1}: goes on with {on}")
            continue

        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        measured = torch.stack([loss, norm.full_tensor() if on.shard else norm]).tolist()  # waits for the GPU
        if not all(map(math.isfinite, measured)):
            raise not_finite(run, train, batch, step + 1, *measured)
        for param_group in optimizer.param_groups:
            param_group["lr"] = config["lr"] * schedule(step, n_steps)
        optimizer.step()
        optimizer.zero_grad()

        step, n_half = step + 1, n_half + loss_of.half
        tokens, supervised = sum(len(example.input_ids) for example in batch), n_supervised(batch)
        row = {"step": step, "loss": measured[0], "lr": param_group["lr"], "grad_norm": measured[1]}
        shown.share = 0.0
        files.tell(f"step {step} of {n_steps}")
        log.append(row | {"tokens": tokens, "supervised_tokens": supervised})
        late = gpus.in_any(time.monotonic() - saved > CHECKPOINT_SECONDS)
        if (late or step % CHECKPOINT_EVERY == 0) and step < n_steps:
            checkpoint()
    # ------------------------------------------------------------------------------------------------------------------

    save_trained(run, model, student)
    if gpus.rank() > 0:
        return {}
    text = "".join(json.dumps(row) + "\n" for row in log)
    files.replace(run.folder / "metrics.jsonl", lambda path: path.write_text(text))
    facts = {
        "n_examples": len(examples),
        "rows_too_long_dropped": sorted(set(range(len(train))) - {example.row for example in examples}),
        "n_steps": n_steps,
        "n_steps_in_bfloat16": n_half,  # the others are in float32
        "n_trained_params": sum(p.numel() for p in parameters),
        "tokens": sum(row["tokens"] for row in log),
        "supervised_tokens": sum(row["supervised_tokens"] for row in log),
        "seconds": round(time.monotonic() - started, 2),
        "processes": gpus.world(),
        "attention": model.config._attn_implementation,
        "placement": asdict(on),
        "peak_memory_bytes": peak_memory(),
    }
    return facts | runs.machine() | {"files": runs.digests(run.folder, ("adapter", "model", "metrics.jsonl"))}


def accumulate_gradients(
    loss_of: ResponseLoss, batch: Sequence[Example], pad_token: int, on: Placement, shown: Progress
) -> torch.Tensor | None:
    """The forward and backward passes of a step: leaves the gradient of its mean loss with the parameters.

    Returns: that loss, a scalar; None, in all processes, if the memory ran out in one.
    """
    device, packed = gpus.join(), loss_of.model.config._attn_implementation == VARLEN
    assert on.tokens is not None  # `pass_tokens` has filled it in
    lengths, boundary = [len(example.input_ids) for example in batch], rope_boundary(loss_of.model.config)
    groups = token_groups(lengths, on.tokens, packed, gpus.rank(), gpus.world(), boundary)
    loss, ran_out = torch.zeros((), device=device), False
    try:
        for done, group in enumerate(groups, start=1):
            chosen = [batch[i] for i in group] or [NOTHING]
            passed = pack(chosen) if packed else pad(chosen, pad_token)
            # Divided by the tokens of the whole step, so that every token weighs the same in whatever pass it is.
            part = loss_of(passed.to(device)) / n_supervised(batch)
            part.backward()
            loss += part.detach()
            shown.share = done / len(groups)
    except (RuntimeError, MemoryError) as error:
        ran_out = memory.is_out_of_memory(error)
        if not ran_out or on.shard:  # where the other processes wait for this one in the middle of a layer
            raise
    if gpus.in_any(ran_out):
        return None
    parameters = [p for p in loss_of.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:  # an expert that no token of these passes went to
            p.grad = torch.zeros_like(p)
    gpus.add_up([loss] if on.shard else [loss, *(p.grad for p in parameters)])  # FSDP2 has added up its gradients
    return loss


def n_supervised(batch: Sequence[Example]) -> int:
    return sum(len(example.input_ids) - example.n_prompt for example in batch)


def schedule(step: int, n_steps: int) -> float:
    """Share of the peak learning rate: linear warmup, then cosine to 0."""
    n_warmup = max(1, round(WARMUP * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def not_finite(run: Run, train: Dataset, batch: Sequence[Example], step: int, loss: float, norm: float) -> RuntimeError:
    """Store which examples a step had whose loss or gradient was not finite; returns what to raise."""
    rows = [example.row for example in batch]
    seen = {"step": step, "loss": repr(loss), "grad_norm": repr(norm)}  # as texts: NaN is no JSON
    files.write_json(run.folder / "not_finite.json", seen | {"rows": rows, "problem_ids": train[rows]["problem_id"]})
    what = f"the loss of {run.config['student']} is {loss} and its gradient's norm {norm} at step {step}"
    advice = f"lower lr (it is {run.config['lr']}), or look at the examples listed in not_finite.json"
    return RuntimeError(f"{what}: {advice}; it and the last good checkpoint are in {run.folder.name}")


def default_lr(student: str, lora: LoRA | None) -> float:
    """The peak learning rate where none is given."""
    if lora is None:
        return FULL_LR
    return POCKET_LR.get(student.partition("-")[0], LORA_LR)  # pocket/xs-1 is another base of pocket/xs


def data_fingerprint(train: Dataset) -> str:
    """Hash of what is trained on, in its order: questions, responses, answer_formats."""
    digest = hashlib.sha256()
    for row in zip(train["question"][:], train["response"][:], train["answer_format"][:], strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:32]
