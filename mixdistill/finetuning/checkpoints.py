"""What a training run leaves on disk: checkpoints that it goes on from, and the trained adapter or weights.

Sharded parameters (FSDP2) are put together before they are written: files hold whole tensors, whatever the number of
processes, and may be read by another number. (accelerate up to 1.15 wrote rank 0's shards of an adapter only: its #4206.)
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from torch.distributed.tensor import DTensor, distribute_tensor

from mixdistill import runs
from mixdistill.data.students import Student, load_student
from mixdistill.runs import Run


def save_checkpoint(
    folder: Path, progress: dict, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Write `checkpoint.pt`; called by all processes, written by the first.

    Arguments:
        progress: numbers and lists of them: steps done, loss curve.

    Raises OSError if the file cannot be written, such as on a full disk; the last checkpoint is whole then.
    """
    state = {
        "progress": progress,
        "parameters": [whole(p.detach()) for p in parameters],
        "optimizer": [{name: whole(value) for name, value in optimizer.state[p].items()} for p in parameters],
    }
    if not PartialState().is_main_process:
        return
    try:
        runs.replace(folder / "checkpoint.pt", lambda path: torch.save(state, path))
    except (OSError, RuntimeError) as error:  # torch has a RuntimeError where a write fails in the middle
        kept = "the last checkpoint" if (folder / "checkpoint.pt").is_file() else "no checkpoint"
        raise OSError(
            f"cannot write a checkpoint of about {_n_bytes(state) / 1e6:.0f} MB to {runs.shown(folder)} ({error}): make room "
            f"and call finetune with the same arguments again; {kept} is there"
        ) from error


def load_checkpoint(folder: Path, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> dict | None:
    """Restore parameters and optimizer; returns the `progress` that was saved, None without a checkpoint.

    Raises ValueError if the file is damaged.
    """
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")  # tensors and numbers only
    except Exception as error:  # torch has many for a damaged file
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}): delete the folder {str(folder)!r} and run again"
        ) from error
    with torch.no_grad():
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(_like(parameter, saved))
    for parameter, moments in zip(parameters, state["optimizer"], strict=True):
        # AdamW counts its steps in a scalar beside the moments, which have the parameter's shape.
        optimizer.state[parameter] = {
            name: _like(parameter, value) if value.shape == parameter.shape else value.to(parameter.device)
            for name, value in moments.items()
        }
    return state["progress"]


def save_trained(folder: Path, model: torch.nn.Module, student: Student) -> None:
    """Write `adapter/`, or after full fine-tuning `model/`, which can be a student itself. Called by all processes."""
    adapted = isinstance(model, PeftModel)
    tied = getattr(model, "all_tied_weights_keys", {})  # stored under one of their names, tied again when loaded
    wanted = [name for name in model.state_dict() if (".lora_" in name if adapted else name not in tied)]
    state = {name: whole(value) for name, value in model.state_dict().items() if name in set(wanted)}
    if not PartialState().is_main_process:
        return

    def write(path: Path) -> None:
        if adapted:
            model.peft_config["default"].base_model_name_or_path = student.name  # not a path of this machine
            model.save_pretrained(path, state_dict=state, save_embedding_layers=False)
        else:
            model.save_pretrained(path, state_dict=state)
            student.tokenizer.save_pretrained(path)

    target = folder / ("adapter" if adapted else "model")
    shutil.rmtree(target, ignore_errors=True)  # of a run killed between here and its manifest
    runs.replace(target, write)


def load_trained(run: Run) -> Student:
    """The student of a run: the untouched one, or with the run's adapter or weights."""
    student = load_student(run.student, run.config["revision"])
    if student.fingerprint != run.config["fingerprint"]:
        raise ValueError(
            f"the student {run.student!r} is not what it was when the run {run.folder.name!r} was made (fingerprint "
            f"{student.fingerprint}, then {run.config['fingerprint']}): give the old one, or call finetune again with the new"
        )
    if not run.trained:
        return student
    folder = runs.trained_folder(run)
    if run.config["lora"] is None:
        model = type(student.model).from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        student.model.load_state_dict(model.state_dict())
        return student
    config = student.model.generation_config
    student.model = PeftModel.from_pretrained(student.model, folder).eval()
    student.model.generation_config = config
    return student


def remove_unfinished(folder: Path) -> None:
    """Delete what a process has left that was killed while it wrote."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_metrics(folder: Path, log: list[dict]) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in log)
    runs.replace(folder / "metrics.jsonl", lambda path: path.write_text(rows))


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU, the shards of all processes put together; empty in all processes but the first."""
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return value.cpu() if PartialState().is_main_process else value.new_empty(0)


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor where and how a parameter lies: on its device, sharded as it is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _n_bytes(state: dict) -> int:
    tensors = [*state["parameters"], *(value for moments in state["optimizer"] for value in moments.values())]
    return sum(tensor.nbytes for tensor in tensors)
