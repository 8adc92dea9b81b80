"""Supervised fine-tuning of a student on a trace set: one flat loop, LoRA or full, resumable at any moment.

In the order of a step: `packing` (examples -> batches), `attention`, `loss`, `checkpoints`; around it `memory_plan` (what fits),
`lora`, `progress`, and for several GPUs `parallel` and `launch`.
"""

import contextlib
import hashlib
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from mixdistill import runs
from mixdistill.data.chat import Example, render_traces
from mixdistill.data.pocket.bases import POCKET_BASES
from mixdistill.data.students import fingerprint, load_student
from mixdistill.data.traces import check_traces
from mixdistill.finetuning import launch
from mixdistill.finetuning.attention import attention_for, packs
from mixdistill.finetuning.batches import pack, pad, share_of, token_groups
from mixdistill.finetuning.checkpoints import (
    load_checkpoint,
    load_trained,
    remove_unfinished,
    save_checkpoint,
    save_metrics,
    save_trained,
)
from mixdistill.finetuning.lora import LoRA, merge, trainable_model
from mixdistill.finetuning.loss import check_loss
from mixdistill.finetuning.memory import choose_memory_plan, is_out_of_memory, out_of_memory_advice
from mixdistill.finetuning.parallel import only_last_synchronised, prepared, summed_over_processes
from mixdistill.finetuning.progress import flops_per_token, peak_memory, progress_line
from mixdistill.runs import Run

__all__ = ["LoRA", "default_lr", "finetune", "load_trained", "merge", "schedule", "train_run"]

# Raised whenever the same configuration would train another student than before, so that old runs are not taken for new.
TRAINING_VERSION = 2

# LoRA learning rate of the pocket students: in steps of 2, the one with the best mean accuracy over short, long and mix_long
# on development problems (`python -m pretraining.choose_lr`).
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
LOG_EVERY = 10  # steps
PROGRESS_EVERY = 15  # seconds


def finetune(
    student: str,
    train: Dataset,
    *,
    lora: LoRA | None = LoRA(),
    lr: float | None = None,
    epochs: int = 2,
    batch_size: int = 32,
    micro_batch_size: int | None = None,
    micro_batch_tokens: int | None = None,
    warmup: float = 0.1,
    max_tokens: int | None = None,
    too_long: str = "error",
    seed: int = 0,
    revision: str | None = None,
    checkpoint_every: int = 100,
    checkpointing: bool | None = None,
    offload: bool | None = None,
    compile: bool = False,
    gpus: int = 1,
    shard: bool | None = None,
    progress: bool = True,
    stored_only: bool = False,
) -> Run | None:
    """Fine-tune a student on traces; a run that the store already holds is returned at once.

    The loss is the mean cross-entropy of all response tokens of a step, stop token included, prompts not. AdamW without
    weight decay, linear warmup, cosine to 0, gradients clipped at norm 1. How a step is cut into passes and where they run is
    no part of what a run is: it changes rounding only, and a run may go on with other settings after it was stopped.

    Arguments:
        student: as in `load_student`.
        train: traces (`load_traces`, `mix`).
        lora: adapters; None trains all weights.
        lr: peak learning rate; None takes the pocket students' own, or the paper's (1e-4 with LoRA, 1e-5 without).
        epochs: passes over `train`.
        batch_size: examples a step, over all GPUs.
        micro_batch_size: examples a forward pass at most; None leaves it to the tokens.
        micro_batch_tokens: tokens a forward pass, padding included; a longer example goes alone. None, here and for
            checkpointing, offload and shard: by an estimate of the memory (`choose_memory_plan`), which the log states.
        warmup: share of the steps.
        max_tokens: longest example; None means the student's context.
        too_long: what to do with longer examples, `error` or `drop` (listed in the manifest).
        seed: of adapter weights, order of the examples, and dropout.
        revision: commit of a Hub model.
        checkpoint_every: steps; a killed run goes on from the last checkpoint and ends as if it had not been killed.
        checkpointing: compute each layer again in the backward pass instead of keeping what it needs.
        offload: let what checkpointing keeps wait in the host's memory.
        compile: compile the decoder layers; takes minutes, pays off for hours.
        gpus: processes of this machine, one a GPU.
        shard: share the weights out over the GPUs (FSDP2) instead of a copy on each (DDP).
        progress: print a line now and then.
        stored_only: train nothing; return None if the store has no such run.

    Raises:
        ValueError: bad arguments, an unknown student, traces that do not fit.
        RuntimeError: the loss is not finite, memory ran out (what to lower is said), or a process failed.
        OSError: the disk is full; the last checkpoint is whole.
    """
    arguments = {
        name: value for name, value in locals().items() if name not in ("train", "stored_only", "gpus", "lora")
    }
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "micro_batch_tokens": micro_batch_tokens,
        "checkpoint_every": checkpoint_every,
        "gpus": gpus,
    }
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: it is at least 1")
    check_traces(train)
    lr = default_lr(student, lora) if lr is None else lr
    if not lr > 0 or not 0 <= warmup < 1:
        raise ValueError(
            f"lr is {lr} and warmup {warmup}: lr is above 0, warmup a share of the steps from 0 to below 1"
        )
    run = runs.run_of(
        {
            "version": TRAINING_VERSION,
            "student": student,
            "fingerprint": fingerprint(student, revision),
            "revision": revision,
            "train": data_fingerprint(train),
            "lora": asdict(lora) | {"alpha": lora.scaled_alpha} if lora else None,
            "lr": lr,
            "epochs": epochs,
            "batch_size": batch_size,
            "warmup": warmup,
            "max_tokens": max_tokens,
            "too_long": too_long,
            "seed": seed,
        }
    )
    if stored_only:
        return run if runs.finished(run) else None
    if runs.finished(run):
        return run
    if gpus > 1:
        if gpus > torch.cuda.device_count():
            raise ValueError(f"gpus is {gpus}, this machine has {torch.cuda.device_count()}: ask for at most that many")
        arm = launch.save_arm(run.folder, train, arguments | {"lora": asdict(lora) if lora else None})
        launch.torchrun(arm, gpus)  # never a fork: CUDA may be in use here
        return run
    state = PartialState(cpu=not torch.cuda.is_available())
    with runs.lock(run.folder) if state.is_main_process else contextlib.nullcontext():
        # Another process may have trained it while we waited.
        (finished,) = broadcast_object_list([runs.finished(run)])
        if not finished:
            if state.is_main_process:
                remove_unfinished(run.folder)
                runs.start(run)
            overrides = {"micro_batch_tokens": micro_batch_tokens, "checkpointing": checkpointing, "offload": offload}
            train_run(
                run, train, lora, overrides | {"shard": shard}, micro_batch_size, checkpoint_every, compile, progress
            )
        state.wait_for_everyone()
    return run


def train_run(
    run: Run,
    train: Dataset,
    lora: LoRA | None,
    overrides: dict,
    max_rows: int | None,
    checkpoint_every: int,
    compile: bool,
    progress: bool,
) -> None:
    """The training loop: load, render, step, save. Every process of a run calls it and takes its share of each step."""
    config, state, started = run.config, PartialState(), time.time()
    device, world, main = state.device, state.num_processes, state.is_main_process
    student = load_student(run.student, config["revision"], device="cpu")
    limit = min(config["max_tokens"] or student.context, student.context)
    examples = render_traces(student.tokenizer, train, limit, config["too_long"])
    longest = max(len(example.input_ids) for example in examples)

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    rank = lora.r if lora else None
    plan = choose_memory_plan(student.model.config, longest, free, lora_rank=rank, gpus=world, **overrides)
    dtype = student.model.dtype
    attention = attention_for(student.model, device)
    student.model.set_attn_implementation(attention)
    if not plan.shard:  # else FSDP2 moves what is this GPU's
        student.model.to(device)
    model = trainable_model(student, lora, config["seed"])
    check_loss(student, model)
    loss_of = prepared(model, dtype == torch.bfloat16, plan, compile, state)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], betas=BETAS, weight_decay=0.0, fused=True)

    steps_per_epoch = math.ceil(len(examples) / config["batch_size"])
    n_steps = steps_per_epoch * config["epochs"]
    fresh = {"step": 0, "log": [], "recent": [], "counts": {}, "seconds": 0.0}
    before = load_checkpoint(run.folder, parameters, optimizer) or fresh
    step, log, counts = before["step"], before["log"], Counter(before["counts"])
    recent = [
        torch.tensor(pair, device=device) for pair in before["recent"]
    ]  # (loss, gradient norm) since the last log line
    spoke, flops = time.time(), flops_per_token(model)
    if progress and main:
        print(
            f"{run.folder.name}: {len(examples)} examples, {n_steps} steps, attention {attention}, {plan}", flush=True
        )

    def checkpoint() -> None:
        pairs = summed_over_processes(torch.stack(recent), world).tolist() if recent else []
        seconds = before["seconds"] + time.time() - started
        done = {"step": step, "log": log, "recent": pairs, "counts": dict(counts), "seconds": seconds}
        save_checkpoint(run.folder, done, parameters, optimizer)

    model.train()
    looped = time.time()
    while step < n_steps:
        batch = batch_of(examples, step, steps_per_epoch, config["batch_size"], config["seed"])
        lengths = [len(example.input_ids) for example in batch]
        n_supervised = sum(lengths) - sum(example.n_prompt for example in batch)
        groups = token_groups(lengths, plan.micro_batch_tokens, packs(attention), max_rows)
        groups = share_of(groups, state.process_index, world)
        if (
            lora and lora.dropout
        ):  # what is dropped depends on the step only, so a checkpoint needs no generator's state
            torch.manual_seed((config["seed"] << 40) + step * world + state.process_index)
        loss = torch.zeros((), device=device)
        try:
            for at, group in enumerate(groups):
                chosen = [batch[i] for i in group] or [NOTHING]
                passed = pack(chosen) if packs(attention) else pad(chosen, student.tokenizer.pad_token_id)
                with only_last_synchronised(loss_of, at == len(groups) - 1):
                    # Divided by the tokens of the whole step, so that every token weighs the same in whatever pass and
                    # process it is. DDP and FSDP2 take the mean over the processes where the sum is meant.
                    part = loss_of(passed.to(device)) / n_supervised
                    (part * world).backward()
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            optimizer.zero_grad()
            if world == 1:  # others wait in the middle of their step, and no one can be asked for its share
                checkpoint()
            advice = out_of_memory_advice(plan, longest, limit, world)
            raise RuntimeError(
                f"out of memory at step {step + 1} of {n_steps} ({plan}): {advice}, and call finetune again, which goes on "
                "from the last checkpoint"
            ) from error
        for param_group in optimizer.param_groups:
            param_group["lr"] = config["lr"] * schedule(step, n_steps, config["warmup"])
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        recent.append(torch.stack([loss, norm.full_tensor() if plan.shard else norm]))
        counts.update(steps=1, tokens=sum(lengths), supervised=n_supervised)

        if step % LOG_EVERY == 0 or step == n_steps:
            pairs = summed_over_processes(torch.stack(recent), world).tolist()  # the one wait for the GPU
            bad = [i for i, pair in enumerate(pairs) if not all(map(math.isfinite, pair))]
            if bad:
                at = step - len(pairs) + bad[0]
                batch = batch_of(examples, at, steps_per_epoch, config["batch_size"], config["seed"])
                raise not_finite(run, train, batch, at + 1, pairs[bad[0]])
            mean_loss = sum(loss for loss, _ in pairs) / len(pairs)
            rate = optimizer.param_groups[0]["lr"]
            row = {"step": step, "loss": mean_loss, "lr": rate, "grad_norm": pairs[-1][1], "tokens": counts["tokens"]}
            log.append(row | {"supervised_tokens": counts["supervised"]})
            recent = []
            if progress and main and time.time() - spoke > PROGRESS_EVERY:
                spoke = time.time()
                here = counts - Counter(before["counts"])
                print(progress_line(run, n_steps, log[-1], here, spoke - started, flops, world, device), flush=True)
        if step % checkpoint_every == 0 and step < n_steps:
            checkpoint()

    ended = time.time()
    save_trained(run.folder, model, student)
    if main:
        save_metrics(run.folder, log)
        kept = {example.row for example in examples}
        facts = {
            "n_examples": len(examples),
            "n_too_long_dropped": len(train) - len(examples),
            "rows_too_long_dropped": [row for row in range(len(train)) if row not in kept],
            "n_steps": n_steps,
            "n_trained_params": sum(p.numel() for p in parameters),
            "tokens": counts["tokens"],
            "supervised_tokens": counts["supervised"],
            "tokens_per_second": round((counts["tokens"] - before["counts"].get("tokens", 0)) / (ended - looped), 1),
            "seconds": round(before["seconds"] + time.time() - started, 2),
            "seed": config["seed"],
            "processes": world,
            "attention": attention,
            "memory_plan": asdict(plan),
            "peak_memory_bytes": peak_memory(device),
        }
        facts |= {"files": runs.digests(run.folder, ("adapter", "model", "metrics.jsonl"))}
        runs.write_json(run.folder / "manifest.json", facts | runs.machine())
        (run.folder / "checkpoint.pt").unlink(missing_ok=True)


NOTHING = Example([0], n_prompt=1)  # what a process is given for which nothing is left


def not_finite(run: Run, train: Dataset, batch: list[Example], step: int, pair: list[float]) -> RuntimeError:
    """Store which examples a step had whose loss or gradient was not finite; returns what to raise."""
    rows = [example.row for example in batch]
    loss, norm = (repr(value) for value in pair)  # NaN is no JSON
    seen = {"step": step, "loss": loss, "grad_norm": norm, "rows": rows, "problem_ids": train[rows]["problem_id"]}
    runs.write_json(run.folder / "not_finite.json", seen)
    return RuntimeError(
        f"the loss of {run.student} is {loss} and its gradient's norm {norm} at step {step}: lower lr (it is "
        f"{run.config['lr']}), or look at the examples listed in not_finite.json; it and the last good checkpoint are in "
        f"{run.folder.name}"
    )


def batch_of(examples: list[Example], step: int, steps_per_epoch: int, batch_size: int, seed: int) -> list[Example]:
    """The examples of a step, each epoch in a new order that depends on seed and epoch only."""
    epoch, at = divmod(step, steps_per_epoch)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).tolist()
    return [examples[i] for i in order[at * batch_size : (at + 1) * batch_size]]


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warmup, then cosine to 0."""
    n_warmup = max(1, round(warmup * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def default_lr(student: str, lora: LoRA | None) -> float:
    if lora is None:
        return FULL_LR
    size = next((size for size, bases in POCKET_BASES.items() if student in bases), student)
    return POCKET_LR.get(size, LORA_LR)


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
        train, arguments = launch.load_arm(Path(sys.argv[1]))
        lora = arguments.pop("lora")
        finetune(train=train, lora=LoRA(**lora) if lora else None, **arguments)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"Error: {error}")
    finally:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
