"""Supervised fine-tuning of a student on a trace set: one flat loop, LoRA or full, resumable at any moment."""

import hashlib
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

from mixdistill import runs
from mixdistill.chat import Example, render_traces
from mixdistill.runs import Run
from mixdistill.students import Student, fingerprint, load_student
from mixdistill.traces import check_traces

# Raised whenever the same configuration would train another student than before, so that old runs are not taken for new.
TRAINING_VERSION = 1

# LoRA learning rate of the pocket students: of 2e-3 .. 3.2e-2 the one with the best mean accuracy over short, long and
# mix_long on development problems (`python -m mixdistill.pocket.choose_lr`).
POCKET_LR = {"pocket/xs": 1.6e-2, "pocket/s": 4e-3, "pocket/m": 1.6e-2, "pocket/l": 1.6e-2}
LORA_LR, FULL_LR = 1e-4, 1e-5  # the paper's, for everybody else
BETAS = (0.9, 0.98)  # 0.999 would average over more steps than a short run has
LOG_EVERY = 10  # steps
PROGRESS_EVERY = 15  # seconds


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on all linear layers but the head: rank, alpha (None: 2r), dropout."""

    r: int = 16
    alpha: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA(r={self.r}, dropout={self.dropout}): r is at least 1, dropout in 0..1")

    @property
    def scaled_alpha(self) -> int:
        return 2 * self.r if self.alpha is None else self.alpha


def finetune(
    student: str,
    train: Dataset,
    *,
    lora: LoRA | None = LoRA(),
    lr: float | None = None,
    epochs: int = 2,
    batch_size: int = 32,
    micro_batch_size: int = 8,
    warmup: float = 0.1,
    max_tokens: int | None = None,
    too_long: str = "error",
    seed: int = 0,
    revision: str | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
    stored_only: bool = False,
) -> Run | None:
    """Fine-tune a student on traces; a run that the store already holds is returned at once.

    The loss is the mean cross-entropy of all response tokens of a step, stop token included, prompts not. AdamW without
    weight decay, linear warmup, cosine to 0, gradients clipped at norm 1.

    Arguments:
        student: as in `load_student`.
        train: traces (`load_traces`, `mix`).
        lora: adapters; None trains all weights.
        lr: peak learning rate; None takes the pocket students' own, or the paper's (1e-4 with LoRA, 1e-5 without).
        epochs: passes over `train`.
        batch_size: examples a step.
        micro_batch_size: examples a forward pass; the result is the same up to rounding.
        warmup: share of the steps.
        max_tokens: longest example; None means the student's context.
        too_long: what to do with longer examples, `error` or `drop` (counted in the manifest).
        seed: of adapter weights, order of the examples, and dropout.
        revision: commit of a Hub model.
        checkpoint_every: steps; a killed run goes on from the last checkpoint and ends as if it had not been killed.
        progress: print a line now and then.
        stored_only: train nothing; return None if the store has no such run.

    Raises:
        ValueError: bad arguments, an unknown student, traces that do not fit.
        RuntimeError: the loss is not finite.
    """
    counts = {
        "epochs": epochs,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "checkpoint_every": checkpoint_every,
    }
    for name, value in counts.items():
        if value < 1:
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
            "micro_batch_size": micro_batch_size,
            "warmup": warmup,
            "max_tokens": max_tokens,
            "too_long": too_long,
            "seed": seed,
        }
    )
    if stored_only:
        return run if runs.finished(run) else None
    if not runs.finished(run):
        with runs.lock(run.folder):
            if not runs.finished(run):  # another process may have trained it while we waited
                runs.start(run)
                train_run(run, train, lora, checkpoint_every, progress)
    return run


def train_run(run: Run, train: Dataset, lora: LoRA | None, checkpoint_every: int, progress: bool) -> None:
    """The training loop: load, render, step, save."""
    config, started = run.config, time.time()
    student = load_student(config["student"], config["revision"])
    limit = min(config["max_tokens"] or student.context, student.context)
    examples = render_traces(student.tokenizer, train, limit, config["too_long"])
    model = trainable_model(student, lora, config["seed"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], betas=BETAS, weight_decay=0.0)

    steps_per_epoch = math.ceil(len(examples) / config["batch_size"])
    n_steps = steps_per_epoch * config["epochs"]
    step, log, seconds_before = load_checkpoint(run.folder, parameters, optimizer)
    total, recent, spoke = log[-1]["tokens"] if log else 0, [], time.time()

    model.train()
    while step < n_steps:
        batch = batch_of(examples, step, steps_per_epoch, config["batch_size"], config["seed"])
        n_supervised = sum(len(example.input_ids) - example.n_prompt for example in batch)
        loss = 0.0
        for at in range(0, len(batch), config["micro_batch_size"]):
            # Divided by the tokens of the whole step, so that accumulation weighs every token the same.
            micro = batch[at : at + config["micro_batch_size"]]
            part = response_loss(model, micro, student.tokenizer.pad_token_id) / n_supervised
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config["lr"] * schedule(step, n_steps, config["warmup"])
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        recent.append(loss)
        total += sum(len(example.input_ids) for example in batch)

        if step % LOG_EVERY == 0 or step == n_steps:
            mean_loss = torch.stack(recent).mean().item()
            if not math.isfinite(mean_loss):
                raise RuntimeError(
                    f"the loss of {config['student']} is {mean_loss} at step {step}: lower lr (it is {config['lr']}); "
                    f"the last good checkpoint is kept in {run.folder.name}"
                )
            log.append({"step": step, "loss": mean_loss, "lr": optimizer.param_groups[0]["lr"], "tokens": total})
            recent = []
        # A checkpoint falls on a log line, so the resumed loss curve has the same points.
        if step % (LOG_EVERY * math.ceil(checkpoint_every / LOG_EVERY)) == 0 and step < n_steps:
            save_checkpoint(run.folder, step, log, seconds_before + time.time() - started, parameters, optimizer)
        if progress and time.time() - spoke > PROGRESS_EVERY:
            spoke = time.time()
            left = (spoke - started) / step * (n_steps - step) / 60
            print(f"{run.folder.name}: step {step}/{n_steps}, loss {loss.item():.3f}, {left:.1f} min left", flush=True)

    save_trained(run.folder, model, student, lora)
    runs.replace(
        run.folder / "metrics.jsonl", lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in log))
    )
    facts = {
        "n_examples": len(examples),
        "n_too_long_dropped": len(train) - len(examples),
        "n_steps": n_steps,
        "n_trained_params": sum(p.numel() for p in parameters),
        "tokens": total,
        "supervised_tokens": config["epochs"] * sum(len(e.input_ids) - e.n_prompt for e in examples),
        "seconds": round(seconds_before + time.time() - started, 2),
        "seed": config["seed"],
    }
    runs.write_json(run.folder / "manifest.json", facts | runs.machine())
    (run.folder / "checkpoint.pt").unlink(missing_ok=True)


def response_loss(model: torch.nn.Module, examples: list[Example], pad: int) -> torch.Tensor:
    """Summed cross-entropy of the response tokens (stop tokens included) of a batch; a scalar.

    Only positions that predict a response token reach the head: at a vocabulary of 150,000 the others would cost most of
    the memory.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    width = max(len(example.input_ids) for example in examples)
    ids = torch.tensor([e.input_ids + [pad] * (width - len(e.input_ids)) for e in examples], device=causal.device)
    target = torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(examples):
        target[row, example.n_prompt : len(example.input_ids)] = True
    # Padded on the right under a causal mask, no real token ever sees padding: no attention mask is needed.
    with torch.autocast(causal.device.type, torch.bfloat16, enabled=causal.device.type == "cuda"):
        hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = causal.get_output_embeddings()(hidden[:, :-1][target[:, 1:]])
    return F.cross_entropy(logits.float(), ids[:, 1:][target[:, 1:]], reduction="sum")


def trainable_model(student: Student, lora: LoRA | None, seed: int) -> torch.nn.Module:
    """The student with fresh adapters, or with all its weights in float32 where `lora` is None."""
    torch.manual_seed(seed)
    if lora is None:
        return student.model.float()
    return get_peft_model(
        student.model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.scaled_alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def batch_of(examples: list[Example], step: int, steps_per_epoch: int, batch_size: int, seed: int) -> list[Example]:
    """The examples of a step, each epoch in a new order that depends on seed and epoch only.

    Within the step they go by length, so that micro-batches hold little padding.
    """
    epoch, at = divmod(step, steps_per_epoch)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).tolist()
    batch = [examples[i] for i in order[at * batch_size : (at + 1) * batch_size]]
    return sorted(batch, key=lambda example: len(example.input_ids))


def schedule(step: int, n_steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warmup, then cosine to 0."""
    n_warmup = max(1, round(warmup * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def save_checkpoint(folder: Path, step: int, log: list[dict], seconds: float, parameters, optimizer) -> None:
    state = {
        "step": step,
        "log": log,
        "seconds": seconds,
        "parameters": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    runs.replace(folder / "checkpoint.pt", lambda path: torch.save(state, path))


def load_checkpoint(folder: Path, parameters, optimizer) -> tuple[int, list[dict], float]:
    """Restore parameters, optimizer and random state; returns (steps done, loss curve, seconds spent)."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return 0, [], 0.0
    try:
        state = torch.load(path, weights_only=True)  # tensors and numbers only
    except Exception as error:  # torch has many for a damaged file
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}): delete the folder {str(folder)!r} and run again"
        ) from error
    for parameter, saved in zip(parameters, state["parameters"], strict=True):
        parameter.data.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["log"], state["seconds"]


def save_trained(folder: Path, model: torch.nn.Module, student: Student, lora: LoRA | None) -> None:
    """Write `adapter/`, or after full fine-tuning `model/`, which can be a student itself."""

    def write(path: Path) -> None:
        if lora is None:
            model.save_pretrained(path)
            student.tokenizer.save_pretrained(path)
        else:
            model.peft_config["default"].base_model_name_or_path = student.name  # not a path of this machine
            model.save_pretrained(path, save_embedding_layers=False)

    target = folder / ("model" if lora is None else "adapter")
    shutil.rmtree(target, ignore_errors=True)  # of a run killed between here and its manifest
    runs.replace(target, write)


def load_trained(run: Run) -> Student:
    """The student of a run: the untouched one, or with the run's adapter or weights."""
    student = load_student(run.config["student"], run.config["revision"])
    if not run.trained:
        return student
    if run.config["lora"] is None:
        model = type(student.model).from_pretrained(run.folder / "model", use_safetensors=True)
        student.model.load_state_dict(model.state_dict())
        return student
    if not (run.folder / "adapter" / "adapter_model.safetensors").is_file():
        raise ValueError(f"the run {str(run.folder)!r} has lost its adapter: delete the folder and call finetune again")
    config = student.model.generation_config
    student.model = PeftModel.from_pretrained(student.model, run.folder / "adapter").eval()
    student.model.generation_config = config
    return student


def default_lr(student: str, lora: LoRA | None) -> float:
    if lora is None:
        return FULL_LR
    return POCKET_LR.get(student, LORA_LR)


def data_fingerprint(train: Dataset) -> str:
    """Hash of what is trained on, in its order: questions, responses, kinds."""
    digest = hashlib.sha256()
    for row in zip(train["question"][:], train["response"][:], train["kind"][:], strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:32]
