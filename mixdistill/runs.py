"""The run store: one folder a trained student, named by the hash of what it was trained with.

    runs/pocket-xs-1f2e.../
        config.json       what the hash covers, and the student's name, which it leaves out
        checkpoint.pt     while training; a killed run goes on from it
        metrics.jsonl     loss curve
        adapter/          LoRA weights as safetensors (or model/ after full fine-tuning)
        manifest.json     versions, hardware, times, tokens, digests of the files; written when all else is on the disk
        evaluations/HASH/ config.json, generations.jsonl (every completion), scores.json (written last)
    runs/teachers/HASH/   traces of the pocket world's trained teachers
    runs/merged/NAME/     the student of a run with its adapters merged, to train on
    runs/on_policy/NAME/  students of notebook 09, distilled on their own samples
    runs/.students/       where local students lie on this machine: the only files with paths, no part of any run

Files are replaced whole, so a kill at any moment leaves the last good state. What is read is checked: the folder's name
against its config.json, JSON files against the hash in them, other files against the manifest, rows against the
evaluation that they belong to. A damaged run heals by one step, which the error says: delete its folder, call again.
"""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from mixdistill import arguments, files
from mixdistill.files import Record, damaged, key, present, read_json

REPO = Path(__file__).parents[1]
VERSIONS = ("mixdistill", "torch", "transformers", "peft", "datasets", "math-verify", "sympy")
one_at_a_time = threading.RLock()  # transformers loads, and torch draws, for one thread of a process


def runs_dir() -> Path:
    """The run store: `$MIXDISTILL_RUNS` (from the working directory of its first use), or `runs/` in the repo. Raises
    ValueError for a path that can not be."""
    given = os.environ.get("MIXDISTILL_RUNS")
    if not given:
        return REPO / "runs"
    try:
        given.encode()
        path = Path(given).expanduser().absolute()
        path.exists()
    except (UnicodeEncodeError, RuntimeError, OSError) as error:
        raise ValueError(f"MIXDISTILL_RUNS is {given!r} ({error}): name a folder that can be written") from error
    os.environ["MIXDISTILL_RUNS"] = str(path)  # for child processes, and when the working directory changes
    return path


def shown(path: Path) -> str:
    """A path as people should see it: relative to the repo, where it lies in it."""
    return str(path.relative_to(REPO)) if path.is_relative_to(REPO) else str(path)


@dataclass(frozen=True)
class Run:
    """A trained student in the run store, or, without training data in its configuration, an untouched one."""

    folder: Path
    config: Record
    place: str | None = None  # where a local student lies, if this process has met it

    @property
    def student(self) -> str:
        """What `load_student` takes for it: its name, or the folder where it lies on this machine."""
        name, fingerprint = self.config["student"], self.config["fingerprint"]
        if name.startswith("pocket/") or fingerprint.startswith("hub:"):
            return name
        note = _note(self)  # a damaged one names no place
        noted = note.read_text(errors="replace") if note.is_file() else name
        place = os.path.expanduser(self.place or noted)
        if os.path.exists(place):
            return place
        what = f"the run {self.folder.name!r} was made from the local student {name!r} ({fingerprint})"
        raise ValueError(f"{what}, which is not where it was: say where it lies with open_run(folder, student=...)")

    @property
    def trained(self) -> bool:
        return self.config["train"] is not None

    @property
    def manifest(self) -> Record:
        return read_json(self.folder / "manifest.json")

    def checked(self, name: str) -> Path:
        """The path of a file or folder that training has written. Raises ValueError if anything in it was changed."""
        listed, found = self.manifest.get("files", {}), digests(self.folder, [name])
        stored = {path: listed[path] for path in listed if path.split("/")[0] == name}
        different = [path for path in stored.keys() | found.keys() if stored.get(path) != found.get(path)]
        if different or not stored:
            path = self.folder / min(different, default=name)
            raise damaged(path, "it is not what training has written", self.folder)
        return self.folder / name

    def metrics(self) -> pd.DataFrame:
        """The loss curve: one row a step."""
        return pd.read_json(self.checked("metrics.jsonl"), lines=True)


def run_key(config: Record) -> str:
    """Hash of a run: a fingerprint says what its student is, wherever it lies, and the prompt whether it thinks."""
    return key({name: value for name, value in config.items() if name not in ("student", "revision", "thinking")})


def run_of(config: Record) -> Run:
    """The run of a configuration, whether the store has it or not; `student` is a name or a local folder."""
    name, hashed, place = os.path.expanduser(config["student"]), run_key(config), None
    if not name.startswith("pocket/") and Path(name).exists():
        name, place = Path(name).resolve().name, str(Path(name).absolute())
    label = "".join(c if c.isalnum() or c in ".-" else "-" for c in name)[:40]
    # The same student under another name has made the same run.
    stored = next(runs_dir().glob(f"*-{hashed}"), runs_dir() / f"{label}-{hashed}")
    return Run(stored, config | {"student": name}, place)


def start(run: Run) -> None:
    """Write the run's configuration, or check the one that is there; note where its student lies."""
    path = run.folder / "config.json"
    if not present(path):
        files.write_json(path, run.config)
    elif run_key(read_json(path)) != run_key(run.config):
        raise damaged(path, "it was changed after it was written")
    if run.place:
        place, home = Path(run.place), Path.home()
        noted = Path("~", place.relative_to(home)) if place.is_relative_to(home) else place
        files.replace(_note(run), lambda path: path.write_text(str(noted)))


def _note(run: Run) -> Path:
    """Says where this machine last met a local student."""
    return run.folder.parent / ".students" / run.config["fingerprint"].replace(":", "-")


def finished(run: Run) -> bool:
    return not run.trained or present(run.folder / "manifest.json")


def open_run(folder: str | Path, student: str | Path | None = None) -> Run:
    """The finished run in a folder of the run store, or of a copy of it; `student` says where a local student lies now
    that was moved. Raises ValueError if the folder is no run's, was changed, or its training has not finished."""
    folder = Path(arguments.text("folder", folder)).expanduser().resolve()  # its name says which run it is
    path = folder / "config.json"
    if not present(path) and not present(folder / "manifest.json"):
        raise ValueError(f"{str(folder)!r} is no run's folder (no config.json): give one, or call finetune again")
    config = read_json(path)
    if not folder.resolve().name.endswith(f"-{run_key(config)}"):
        raise damaged(path, f"its hash is {run_key(config)}, which the folder's name does not end with")
    run = Run(folder, config, arguments.text("student", student, optional=True))
    if not finished(run):
        what = f"the run in {str(folder)!r} has not finished (no manifest.json)"
        raise ValueError(f"{what}: call finetune with the same arguments again, it goes on from the last checkpoint")
    return run


def is_run_folder(path: str | Path) -> bool:
    """Whether a path is a run's folder, whole or damaged, and not a student's."""
    path = Path(path)
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        inside = path.resolve().parent == runs_dir().resolve()
        return inside or any((path / name).exists() for name in ("manifest.json", "evaluations", "checkpoint.pt"))
    return False


def trained_folder(run: Run) -> Path:
    """`adapter/`, or `model/` after full fine-tuning. Raises ValueError if a file is not what training has written."""
    return run.checked("model" if run.config["lora"] is None else "adapter")


def once(folder: Path, last_file: str, work: Callable[[], Record]) -> None:
    """Do a piece of work once, whoever asks for it: nothing if `folder` holds its last file; else, under the folder's
    lock, look again, work, and write as the last file what `work` returns."""
    last = folder / last_file
    left = any(present(folder / name) for name in (".lock", "checkpoint.pt"))  # by a kill after the last file
    if present(last):
        if left:
            # What only tidies up is worth no error.
            with contextlib.suppress(OSError, files.Held), files.lock(folder, wait=False):
                files.sweep_up(folder, held=folder)
                files.delete(folder / "checkpoint.pt")
        return
    with one_at_a_time, files.lock(folder):
        files.sweep_up(folder, held=folder)
        if not present(last):
            files.write_json(last, work())
        files.delete(folder / "checkpoint.pt")


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files and of all files in folders, by their paths in `folder`."""
    paths = [path for name in names for path in files.files_in(folder / name)]
    return {path.relative_to(folder).as_posix(): files.digest(path) for path in paths}


def machine() -> Record:
    """What a result may depend on: versions, commit and hardware; no names, no paths."""
    git = ["git", "-C", str(REPO), "describe", "--always", "--dirty", "--abbrev=40"]
    commit = None
    with contextlib.suppress(OSError):  # there is no git; in what is no clone it prints nothing
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
        "commit": commit,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # as this package is in a clone that was not installed
        return "not installed"
