"""The run store: one folder a trained student, named by the hash of what it was trained with.

    runs/pocket-xs-seed0-1f2e.../
        config.json       what the hash covers: student, its fingerprint, data, hyper-parameters
        checkpoint.pt     while training; a killed run goes on from it
        metrics.jsonl     loss curve
        adapter/          LoRA weights as safetensors (or model/ after full fine-tuning)
        manifest.json     versions, commit, hardware, times, tokens; written last: with it the training is finished
        evaluations/HASH/ config.json, generations.jsonl (every completion), scores.json (written last)

Files are replaced whole, never rewritten in place, so a kill at any moment leaves the last good state.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout

REPO = Path(__file__).parents[1]
VERSIONS = ("mixdistill", "torch", "transformers", "peft", "datasets")


def runs_dir() -> Path:
    """The run store: `$MIXDISTILL_RUNS`, or `runs/` in the repo."""
    return Path(os.environ.get("MIXDISTILL_RUNS") or REPO / "runs")


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
        return self.config["student"]

    @property
    def trained(self) -> bool:
        return self.config["train"] is not None

    @property
    def manifest(self) -> dict:
        return read_json(self.folder / "manifest.json")

    def metrics(self) -> pd.DataFrame:
        """The loss curve: one row every few steps."""
        return pd.read_json(self.folder / "metrics.jsonl", lines=True)


def key(config: dict) -> str:
    """Hash of a configuration: 16 hexadecimal digits of its canonical JSON's SHA-256."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_of(config: dict) -> Run:
    """The run of a configuration, whether the store has it or not."""
    name = Path(config["student"]).name if Path(config["student"]).is_dir() else config["student"]
    label = "".join(c if c.isalnum() or c in ".-" else "-" for c in name)
    return Run(runs_dir() / f"{label}-{key(config)}", config)


def start(run: Run) -> None:
    """Write the run's configuration, or check the one that is there."""
    path = run.folder / "config.json"
    if not path.exists():
        write_json(path, run.config)
    elif read_json(path) != run.config:
        raise ValueError(f"{str(path)!r} was changed after it was written: delete the folder and run again")


def finished(run: Run) -> bool:
    return not run.trained or (run.folder / "manifest.json").is_file()


def open_run(folder: str | Path) -> Run:
    """The finished run in a folder.

    Raises ValueError if the folder is none of the run store's, is damaged, or its training has not finished.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        what = "is empty" if folder.is_dir() and not any(folder.iterdir()) else "holds no config.json"
        what = what if folder.is_dir() else "does not exist"
        raise ValueError(
            f"the run folder {str(folder)!r} {what}: give the folder of a finished run, or call finetune again"
        )
    run = Run(folder, read_json(folder / "config.json"))
    if not finished(run):
        raise ValueError(
            f"the run in {str(folder)!r} has not finished (no manifest.json): call finetune with the same arguments again, "
            "it goes on from the last checkpoint"
        )
    return run


def lock(folder: Path) -> FileLock:
    """Held while a run or an evaluation is written, so that no two processes do the same work; freed when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        print(f"waiting: another process works on {folder.name}", flush=True)
        held.acquire()
    return held


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole: a temporary file, synced to disk, takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def replace(path: Path, write) -> None:
    """Let `write` write a temporary file or folder, then put it in the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
    except BaseException:  # a full disk: what is half written helps nobody
        temporary.unlink(missing_ok=True) if not temporary.is_dir() else shutil.rmtree(temporary)
        raise
    if temporary.is_file():
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged or missing ({error}): delete the folder {str(path.parent)!r} and run again"
        ) from error


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
