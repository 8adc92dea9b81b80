"""The run store: one folder a trained student, named by the hash of what it was trained with.

    runs/pocket-xs-1f2e.../
        config.json       what the hash covers: data, hyper-parameters, the student's fingerprint; and its name, which
                          the hash leaves out
        checkpoint.pt     while training; a killed run goes on from it
        metrics.jsonl     loss curve
        adapter/          LoRA weights as safetensors (or model/ after full fine-tuning)
        manifest.json     versions, commit, hardware, times, tokens, digests of the files; written last: with it the
                          training is finished
        evaluations/HASH/ config.json, generations.jsonl (every completion), scores.json (written last)
    runs/.students/       where students that are local folders lie on this machine: the only file with paths, no part
                          of any run

Files are replaced whole, never rewritten in place, and are on the disk before the last one says finished, so a kill at
any moment leaves the last good state. What is read is checked: the folder's name against its config.json, files against
the digests of the manifest, rows against the evaluation that they belong to. A damaged run heals by one step, which the
error says: delete its folder, call again.
"""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from mixdistill import arguments
from mixdistill.files import damaged, delete, digest, key, lock, read_json, replace, sweep_up, write_json

REPO = Path(__file__).parents[1]
VERSIONS = ("mixdistill", "torch", "transformers", "peft", "datasets")
_one_at_a_time = threading.RLock()  # transformers loads, and torch draws, for one thread of a process
_places: dict[str, str] = {}  # fingerprint -> folder of the local students that this process has met


def runs_dir() -> Path:
    """The run store: `$MIXDISTILL_RUNS`, or `runs/` in the repo. A relative path starts at the working directory of its
    first use.
    """
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
    config: dict

    @property
    def student(self) -> str:
        """What `load_student` takes for it: its name, or the folder where it lies on this machine."""
        name, fingerprint = self.config["student"], self.config["fingerprint"]
        if name.startswith("pocket/") or fingerprint.startswith("hub:"):
            return name
        note = _note(self)
        places = [_places.get(fingerprint), note.read_text().strip() if note.is_file() else None]
        found = [place for place in places if place and Path(place).expanduser().exists()]
        if not found:
            raise ValueError(
                f"the run {self.folder.name!r} was made from the local student {name!r} ({fingerprint}), which is not "
                "where it was: say where it lies with open_run(folder, student=...)"
            )
        return str(Path(found[0]).expanduser())

    @property
    def trained(self) -> bool:
        return self.config["train"] is not None

    @property
    def manifest(self) -> dict:
        return read_json(self.folder / "manifest.json")

    def metrics(self) -> pd.DataFrame:
        """The loss curve: one row every few steps."""
        check_files(self.folder, "metrics.jsonl", self.manifest)
        return pd.read_json(self.folder / "metrics.jsonl", lines=True)


def run_key(config: dict) -> str:
    """Hash of a run: its student is known by its fingerprint, whatever it is called and wherever it lies."""
    return key({name: value for name, value in config.items() if name not in ("student", "revision")})


def run_of(config: dict) -> Run:
    """The run of a configuration, whether the store has it or not; `student` is a name or a local folder."""
    name = os.fspath(config["student"])
    if not name.startswith("pocket/") and Path(name).exists():
        _places[config["fingerprint"]] = str(Path(name).absolute())
        name = Path(name).resolve().name
    hashed = run_key(config)
    label = "".join(c if c.isalnum() or c in ".-" else "-" for c in name)[:40]
    folders = [runs_dir() / f"{label}-{hashed}", *runs_dir().glob(f"*-{hashed}")]
    return Run(next(filter(Path.is_dir, folders), folders[0]), config | {"student": name})


def start(run: Run) -> None:
    """Write the run's configuration, or check the one that is there."""
    path = run.folder / "config.json"
    if not path.exists():
        write_json(path, run.config)
    elif run_key(read_json(path)) != run_key(run.config):
        raise damaged(path, "it was changed after it was written")
    if place := _places.get(run.config["fingerprint"]):
        home = str(Path.home())
        place = place.replace(home, "~", 1) if place.startswith(home) else place
        if not _note(run).is_file() or _note(run).read_text() != place:
            replace(_note(run), lambda path: path.write_text(place))


def _note(run: Run) -> Path:
    return run.folder.parent / ".students" / run.config["fingerprint"].replace(":", "-")


def finished(run: Run) -> bool:
    return not run.trained or (run.folder / "manifest.json").is_file()


def open_run(folder: str | Path, student: str | Path | None = None) -> Run:
    """The finished run in a folder.

    Arguments:
        folder: of the run store, or of a copy of it.
        student: where the student lies now, if it is a local folder that was moved.

    Raises ValueError if the folder is none of the run store's, was changed, or its training has not finished.
    """
    folder = Path(arguments.text("folder", folder)).expanduser()
    path = folder / "config.json"
    if not path.is_file() and not (folder / "manifest.json").is_file():
        full = folder.is_dir() and any(folder.iterdir())
        what = "holds no config.json" if full else "is empty" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"the run folder {str(folder)!r} {what}: give the folder of a finished run, or call finetune again"
        )
    config = read_json(path)
    if not {"version", "student", "fingerprint", "revision", "train"} <= config.keys():
        raise damaged(path, "it is no run's configuration")
    if not folder.resolve().name.endswith(f"-{run_key(config)}"):
        raise damaged(path, f"its hash is {run_key(config)}, which the folder's name does not end with")
    run = Run(folder, config)
    if not finished(run):
        raise ValueError(
            f"the run in {str(folder)!r} has not finished (no manifest.json): call finetune with the same arguments "
            "again, it goes on from the last checkpoint"
        )
    _tidy(folder)
    if student is not None:
        _places[config["fingerprint"]] = arguments.text("student", student)
    return run


def is_run_folder(path: str | Path) -> bool:
    """Whether a path is a run's folder, whole or damaged, and not a student's."""
    path = Path(path)
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        inside = path.resolve().parent == runs_dir().resolve()
        return inside or any((path / name).exists() for name in ("manifest.json", "evaluations", "checkpoint.pt"))
    return False


def trained_folder(run: Run) -> Path:
    """`adapter/`, or `model/` after full fine-tuning; its files are those that training has written.

    Raises ValueError if one is missing or was changed.
    """
    name = "model" if run.config["lora"] is None else "adapter"
    check_files(run.folder, name, run.manifest)
    return run.folder / name


def once(folder: Path, last_file: str, work: Callable[[], dict]) -> None:
    """Do a piece of work once, whoever asks for it: nothing if `folder` holds its last file; else, under the folder's
    lock, look again, work, and write as the last file what `work` returns."""
    if (folder / last_file).is_file():
        return _tidy(folder)
    with _one_at_a_time, lock(folder):
        if not (folder / last_file).is_file():
            sweep_up(folder, held=folder)
            write_json(folder / last_file, work())


def _tidy(folder: Path) -> None:
    """Delete what a process has left that was killed right after its last file."""
    if any((folder / name).exists() for name in (".lock", "checkpoint.pt")):
        sweep_up(folder)
        delete(folder / "checkpoint.pt")


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files and of all files in folders, by their paths in `folder`."""
    paths = [path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(paths)}


def check_files(folder: Path, name: str, manifest: dict) -> None:
    """Raise ValueError if a file, or a folder's files, differ from what the manifest's `files` say."""
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise damaged(folder / "manifest.json", "it lists no files")
    stored = {path: listed[path] for path in listed if path.split("/")[0] == name}
    found = digests(folder, [name])
    different = [path for path in stored.keys() | found.keys() if stored.get(path) != found.get(path)]
    if different or not stored:
        raise damaged(folder / min(different, default=name), "it is not what training has written", folder)


def machine() -> dict:
    """What a result may depend on: versions, commit and hardware; no names, no paths."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "commit": git_commit(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    try:
        command = ["git", "-C", str(REPO), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
