"""The run store: one folder a trained student, named by the hash of what it was trained with.

    runs/pocket-xs-1f2e.../
        config.json       what the hash covers: data, hyper-parameters, the student's fingerprint; and its name, which the hash leaves out
        checkpoint.pt     while training; a killed run goes on from it
        metrics.jsonl     loss curve
        adapter/          LoRA weights as safetensors (or model/ after full fine-tuning)
        manifest.json     versions, commit, hardware, times, tokens, digests of the files; written last: with it the training is finished
        evaluations/HASH/ config.json, generations.jsonl (every completion), scores.json (written last)
    runs/.students/       where students that are local folders lie on this machine: the only file with paths, no part of any run

Files are replaced whole, never rewritten in place, and are on the disk before the last one says finished, so a kill at any moment leaves
the last good state. What is read is checked: the folder's name against its config.json, files against the digests of the manifest,
rows against the evaluation that they belong to. A damaged run heals by one step, which the error says: delete its folder, call again.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
from filelock import SoftFileLease, Timeout
from safetensors import SafetensorError

from mixdistill import arguments

REPO = Path(__file__).parents[1]
VERSIONS = ("mixdistill", "torch", "transformers", "peft", "datasets")
STALE = (
    120  # seconds without renewal, after which a lock is taken over; a network file system may show times a minute late
)
_one_at_a_time = threading.RLock()  # transformers loads, and torch draws, for one thread of a process
_places: dict[str, str] = {}  # fingerprint -> folder of the local students that this process has met


def runs_dir() -> Path:
    """The run store: `$MIXDISTILL_RUNS`, or `runs/` in the repo. A relative path starts at the working directory of its first use."""
    given = os.environ.get("MIXDISTILL_RUNS")
    if not given:
        return REPO / "runs"
    try:
        given.encode()
        path = Path(given).expanduser().absolute()
        path.exists()
    except (UnicodeEncodeError, RuntimeError, OSError) as error:
        raise ValueError(f"MIXDISTILL_RUNS is {given!r} ({error}): name a folder that can be written") from error
    os.environ["MIXDISTILL_RUNS"] = str(
        path
    )  # the same for child processes and after a change of the working directory
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
                f"the run {self.folder.name!r} was made from the local student {name!r} ({fingerprint}), which is not where it was: "
                "say where it lies with open_run(folder, student=...)"
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


def key(config: dict) -> str:
    """Hash of a configuration: 16 hexadecimal digits of its canonical JSON's SHA-256."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    if (place := _places.get(run.config["fingerprint"])) and not _note(run).is_file():
        home = str(Path.home())
        replace(
            _note(run), lambda path: path.write_text(place.replace(home, "~", 1) if place.startswith(home) else place)
        )


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
        what = (
            "does not exist" if not folder.is_dir() else "holds no config.json" if any(folder.iterdir()) else "is empty"
        )
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
            f"the run in {str(folder)!r} has not finished (no manifest.json): call finetune with the same arguments again, "
            "it goes on from the last checkpoint"
        )
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
    """Do a piece of work once, whoever asks for it: nothing if `folder` holds its last file; else, under the folder's lock,
    look again, work, and write as the last file what `work` returns."""
    if (folder / last_file).is_file():
        return _delete(folder / "checkpoint.pt")  # where the writing process ended between the two
    with _one_at_a_time, lock(folder):
        if not (folder / last_file).is_file():
            sweep_up(folder, held=folder)
            write_json(folder / last_file, work())


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder while it is written, so that no two processes or threads do the same work; waits for its turn.

    The holder's `.lock` is a file that no other may create, and whose time is renewed: flock is absent or broken on many file systems
    that machines share. It is taken over at once from a process of this machine that is gone, and from any that has not renewed it
    for two minutes of the waiting process's clock.

    Raises OSError where the folder can not be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lease = SoftFileLease(folder / ".lock", lease_duration=STALE, thread_local=False)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lease.acquire(timeout=0)
        except Timeout:
            _say_who_works(folder, lease)
            while not _acquired(lease, folder / ".lock"):
                pass
    try:
        yield
    finally:
        lease.release()
        with contextlib.suppress(OSError):  # refused work leaves no folder
            for path in made:
                path.rmdir()


def _say_who_works(folder: Path, lease: SoftFileLease) -> None:
    name = folder.relative_to(runs_dir()) if folder.is_relative_to(runs_dir()) else folder.name
    who = f"process {lease.owner.pid} of {lease.owner.hostname.split('?')[0]}" if lease.owner else "unknown"
    with contextlib.suppress(OSError):
        who += f", renewed {max(0, time.time() - (folder / '.lock').stat().st_mtime):.0f} s ago"
    print(f"waiting: another process works on {name} ({who}; taken over {STALE} s after the last renewal)", flush=True)


def _acquired(lease: SoftFileLease, path: Path) -> bool:
    """Wait some seconds for a lock; breaks one that says nothing, of a holder killed before it could, and a zombie's."""
    before = _inode_if_empty(path)
    try:
        lease.acquire(timeout=3, poll_interval=0.2)
    except Timeout:
        owner = lease.owner
        if (before and before == _inode_if_empty(path)) or (owner and _is_zombie(owner.pid, owner.hostname)):
            lease.force_break()
    return lease.is_locked


def _inode_if_empty(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        stat = path.stat()
        return None if stat.st_size else stat.st_ino


def _is_zombie(pid: int, host: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return host.split("?")[0] == socket.gethostname() and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return False


def sweep_up(folder: Path, held: Path) -> None:
    """Delete the temporaries of killed processes in a folder and below, but where one is at work; `held` is locked by us."""
    for path in folder.rglob(".*.tmp"):
        if path.parent == held:
            _delete(path)
            continue
        with (
            contextlib.suppress(OSError),
            SoftFileLease(path.parent / ".lock", lease_duration=STALE).acquire(timeout=0),
        ):
            _delete(path)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """A disk that is full, read-only or failing ends in one sentence.

    torch and safetensors have errors of their own where a write fails.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"cannot write {str(path)!r} ({reason}): make room in the run store, or set MIXDISTILL_RUNS to a folder that can be "
            "written, and call again, which goes on from what is stored",
        ) from error


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole: a temporary file, synced to disk, takes its place."""
    text = json.dumps(content, indent=2) + "\n"
    replace(path, lambda temporary: temporary.write_text(text))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a temporary file or folder, bring it to the disk, and put it in the place of `path` in one step."""
    temporary, old = _temporary(path), _temporary(path)
    with storing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            _sync(temporary)
            if path.is_dir():
                path.rename(old)
            os.replace(temporary, path)
            _sync(path.parent, inner=False)
        finally:  # of a full disk, too: what is half written helps nobody
            _delete(temporary)
            _delete(old)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _sync(path: Path, inner: bool = True) -> None:
    """Bring a file, or a folder and all in it, to the disk, with the modes that the umask gives (safetensors writes 600)."""
    if path.is_dir() and inner:
        for child in path.iterdir():
            if child.is_file():
                child.chmod(path.stat().st_mode & 0o666)
            _sync(child)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def read_bytes(path: Path) -> bytes:
    """A stored file; ValueError if it is missing, OSError if it may not be read, which is no damage."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise damaged(path, error.strerror) from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot read {str(path)!r} ({error.strerror}): ask its owner for the right to read it, or look after the disk",
        ) from error


def read_json(path: Path) -> dict:
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise error if "is damaged" in str(error) else damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, no object")
    return content


def read_rows(path: Path, owner: str) -> list[dict]:
    """The rows of a JSON Lines file that `append_rows` wrote, up to one that was cut or changed, or is another owner's."""
    rows = []
    for line in read_bytes(path).split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
            check = row.pop("check")
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
            break
        if check != key({"owner": owner, "row": len(rows), "is": row}):
            break
        rows.append(row)
    return rows


def append_rows(path: Path, rows: Iterable[dict], owner: str, at: int) -> None:
    """Append rows to a JSON Lines file that has `at`, each with a hash of itself, its place and its owner; 0 begins a new file."""
    checks = [row | {"check": key({"owner": owner, "row": i, "is": row})} for i, row in enumerate(rows, start=at)]
    text = "".join(json.dumps(row) + "\n" for row in checks)
    if at == 0:
        return replace(path, lambda temporary: temporary.write_text(text))
    with storing(path), path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files and of all files in folders, by their paths in `folder`."""
    paths = [
        path
        for name in names
        for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
    ]
    found = {}
    for path in sorted(filter(Path.is_file, paths)):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_files(folder: Path, name: str, manifest: dict) -> None:
    """Raise ValueError if a file, or a folder's files, differ from what the manifest's `files` say."""
    stored = {path: digest for path, digest in dict(manifest.get("files", {})).items() if path.split("/")[0] == name}
    found = digests(folder, [name])
    different = [path for path in stored.keys() | found.keys() if stored.get(path) != found.get(path)]
    if different or not stored:
        raise damaged(folder / min(different, default=name), "it is not what training has written", folder)


def damaged(path: Path, reason: object, folder: Path | None = None) -> ValueError:
    """What to raise for a file that is missing or not what was written. The one step that heals: delete the folder, call again."""
    folder = folder or path.parent
    return ValueError(f"{str(path)!r} is damaged ({reason}): delete the folder {str(folder)!r} and call again")


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
