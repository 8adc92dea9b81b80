"""What a training run leaves on disk: checkpoints that it goes on from, and the trained adapter or weights.

Sharded parameters (FSDP2) are put together before they are written: files hold whole tensors, whatever the number of
processes, and may be read by another number. (accelerate up to 1.15 wrote rank 0's shards of an adapter only: its
#4206.)
"""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.checkpoint import state_dict

from mixdistill import files, runs
from mixdistill.data.student_files import quiet
from mixdistill.data.students import Student, load_student
from mixdistill.files import Record
from mixdistill.finetuning import gpus
from mixdistill.finetuning.memory import is_out_of_memory
from mixdistill.runs import Run

# Whole tensors of what is trained, in the first process's memory only.
WHOLE = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def save_checkpoint(run: Run, progress: Record, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write `checkpoint.pt`; called by all processes, written by the first.

    Arguments:
        progress: numbers and lists of them; the steps done as `step`, at least 1.

    Raises OSError if the file cannot be written, such as on a full disk; the last checkpoint is whole then.
    """
    trained = trained_shapes(model)
    weights, moments = state_dict.get_state_dict(model, optimizer, options=WHOLE)
    weights = {name: value for name, value in weights.items() if name in trained}  # no buffers
    state = {"run": runs.run_key(run.config), "progress": progress, "parameters": weights, "optimizer": moments}
    if gpus.rank() == 0:
        sealed = state | {"check": _seal(state)}
        files.replace(run.folder / "checkpoint.pt", lambda path: torch.save(sealed, path))


def load_checkpoint(run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Record | None:
    """Restore parameters and optimizer; returns the `progress` that was saved, None without a checkpoint. Raises
    ValueError if the file is damaged, of another run, or does not fit this one."""
    path = run.folder / "checkpoint.pt"
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")  # tensors and numbers only
        whole = state.pop("check") == _seal(state) and state["run"] == runs.run_key(run.config)
        weights, moments = state["parameters"], state["optimizer"]
        fits = whole and {name: value.shape for name, value in weights.items()} == trained_shapes(model)
    except Exception as error:  # torch has many for a damaged file, for one that was cut OSError(EINVAL)
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is no damage
            raise files.unreadable(path, error) from error
        fits = False
    if not fits:
        what = f"{runs.shown(path)} is damaged or of another run"
        raise ValueError(f"{what}: delete this file and call finetune again, which begins at the first step")
    options = state_dict.StateDictOptions(full_state_dict=True, strict=False)  # what is frozen is not stored
    state_dict.set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)
    return state["progress"]


def _seal(state: Record) -> str:
    """A hash of all that a checkpoint holds: `torch.load` reads changed bits without a word."""
    return files.key({"checkpoint": json.dumps(state, default=_tensor_facts)})


def _tensor_facts(tensor: torch.Tensor) -> list[Any]:
    content = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
    return [str(tensor.dtype), *tensor.shape, hashlib.sha256(content).hexdigest()]


def trained_shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """Names and whole shapes of the parameters that are trained."""
    return {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trained(run: Run, model: torch.nn.Module, student: Student) -> None:
    """Write `adapter/`, or after full fine-tuning `model/`, which can be a student itself. Called by all processes."""
    adapted = isinstance(model, PeftModel)
    state = state_dict.get_model_state_dict(model, options=WHOLE)
    tied = getattr(model, "all_tied_weights_keys", {})  # stored under one of their names, tied again when loaded
    state = {name: value for name, value in state.items() if (".lora_" in name if adapted else name not in tied)}

    def write(path: Path) -> None:
        if adapted:
            model.peft_config["default"].base_model_name_or_path = run.config["student"]  # no path of this machine
            model.save_pretrained(path, state_dict=state, save_embedding_layers=False)
            (path / "README.md").unlink(missing_ok=True)  # peft's card holds the path of the weights on this machine
        else:
            model.save_pretrained(path, state_dict=state)
            student.tokenizer.save_pretrained(path)

    if gpus.rank() == 0:
        with quiet():
            files.replace(run.folder / ("adapter" if adapted else "model"), write)


def load_trained(run: Run) -> Student:
    """The student of a run: the untouched one, or with the run's adapter or weights. Raises ValueError if the student
    is not what it was, or what was trained is lost or damaged."""
    student = load_student(run.student, run.config["revision"])
    check_unchanged(run, student.fingerprint)
    if not run.trained:
        return student
    folder = runs.trained_folder(run)
    if run.config["lora"] is None:
        with quiet():
            model = type(student.model).from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        student.model.load_state_dict(model.state_dict())
    else:
        student.model = PeftModel.from_pretrained(student.model, folder).eval()
    return student


def check_unchanged(run: Run, fingerprint: str) -> None:
    """Raise ValueError unless this is the fingerprint of the student that a run was made of."""
    if fingerprint != run.config["fingerprint"]:
        what = f"the student {run.student!r} is not what it was when the run {run.folder.name!r} was made"
        which = f"fingerprint {fingerprint}, then {run.config['fingerprint']}"
        raise ValueError(f"{what} ({which}): give the old one, or call finetune again with the new")


def merged(run: Run) -> Path:
    """The student of a run, adapters merged into its weights, as a folder of the run store: a student itself, to train
    on. It is made once. Raises ValueError if it was changed since, or where `load_trained` does."""
    name = run.folder.resolve().name  # of a link or of "..", the run's own
    made = Run(runs.runs_dir() / "merged" / name, run.config)

    def merge() -> Record:
        student = load_trained(run)
        model = student.model.merge_and_unload() if isinstance(student.model, PeftModel) else student.model

        def write(path: Path) -> None:
            model.save_pretrained(path)
            student.tokenizer.save_pretrained(path)

        with quiet():
            files.replace(made.folder / name, write)
        return {"files": runs.digests(made.folder, [name])}

    runs.once(made.folder, "manifest.json", merge)
    return made.checked(name)
