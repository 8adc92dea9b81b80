"""Files of the run store: written whole and synced, locked while they are written, checked when they are read.

flock is absent or broken on many file systems that machines share, so a lock is a file that only one process can
create, and that its holder renews (`filelock.SoftFileLease`).
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
from filelock import SoftFileLease, Timeout
from safetensors import SafetensorError

# Seconds without renewal, after which a lock is taken over; a network file system may show times a minute late.
STALE = 120


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder while it is written, so that no two processes or threads do the same work; waits for its turn.

    A process of this machine that is gone loses its lock at once, any other that has not renewed it for two minutes of
    our clock.

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
    name = "/".join(folder.parts[-3:] if folder.parent.name == "evaluations" else folder.parts[-1:])
    who = f"process {lease.owner.pid} of {lease.owner.hostname.split('?')[0]}" if lease.owner else "unknown"
    with contextlib.suppress(OSError):
        who += f", renewed {max(0, time.time() - (folder / '.lock').stat().st_mtime):.0f} s ago"
    print(f"waiting: another process works on {name} ({who}; taken over {STALE} s after the last renewal)", flush=True)


def _acquired(lease: SoftFileLease, path: Path) -> bool:
    """Wait some seconds for a lock; breaks one that says nothing, of a holder killed before it could, and a
    zombie's.
    """
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


def sweep_up(folder: Path, held: Path | None = None) -> None:
    """Delete what killed processes left in a folder and below, temporaries and locks; `held` is locked by us."""
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(".lock")]:
        if path.parent != held:
            lease = SoftFileLease(path.parent / ".lock", lease_duration=STALE)
            with contextlib.suppress(OSError), lease.acquire(timeout=0):  # not where another works
                if path.name != ".lock":  # which goes with the release
                    delete(path)
        elif path.name != ".lock":
            delete(path)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole: a temporary file, synced to disk, takes its place."""
    text = json.dumps(content, indent=2) + "\n"
    replace(path, lambda temporary: temporary.write_text(text))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a temporary file or folder, bring it to the disk, and put it in the place of `path` in one
    step.
    """
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
            delete(temporary)
            delete(old)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def delete(path: Path) -> None:
    """Delete a file or folder that nobody needs, if the disk lets us."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _sync(path: Path, inner: bool = True) -> None:
    """Bring a file, or a folder and all in it, to the disk, with the modes that the umask gives (safetensors writes
    600).
    """
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
            f"cannot write {str(path)!r} ({reason}): make room in the run store, or set MIXDISTILL_RUNS to a folder "
            "that can be written, and call again, which goes on from what is stored",
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """ValueError for a file that is missing; OSError for one that may not or can not be read, which is no damage."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise damaged(path, error.strerror) from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot read {str(path)!r} ({error.strerror}): ask its owner for the right to read it, or look after the "
            "disk",
        ) from error


def read_json(path: Path) -> dict:
    """A JSON object that `write_json` wrote."""
    with reading(path):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, no object")
    return content


def read_rows(path: Path, owner: str) -> list[dict]:
    """The rows of a JSON Lines file that `append_rows` wrote, up to one that was cut or changed, or is another
    owner's.
    """
    rows, text = [], b""
    if path.exists():
        with reading(path):
            text = path.read_bytes()
    for line in text.split(b"\n"):
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
    """Append rows to a JSON Lines file that has `at`, each with a hash of itself, its place and its owner; 0 begins a
    new file.
    """
    checks = [row | {"check": key({"owner": owner, "row": i, "is": row})} for i, row in enumerate(rows, start=at)]
    text = "".join(json.dumps(row) + "\n" for row in checks)
    if at == 0:
        return replace(path, lambda temporary: temporary.write_text(text))
    with storing(path), path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(config: dict) -> str:
    """Hash of a configuration: 16 hexadecimal digits of its canonical JSON's SHA-256."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def damaged(path: Path, reason: object, folder: Path | None = None) -> ValueError:
    """What to raise for a file that is missing or not what was written. The one step that heals: delete the folder,
    call again.
    """
    folder = folder or path.parent
    return ValueError(f"{str(path)!r} is damaged ({reason}): delete the folder {str(folder)!r} and call again")
