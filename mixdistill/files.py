"""Files of the run store: written whole and synced, locked while they are written, checked when they are read."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError

# Seconds without renewal, after which a lock is taken over; a network file system may show times a minute late.
STALE = 120
# This machine since its start, and which processes it has: machines made of one image, and containers, share a name.
_BOOT, _PIDS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
HOST = f"{socket.gethostname()}/{_BOOT.read_text()[:8] if _BOOT.exists() else 0}"
HOST += f"/{_PIDS.stat().st_ino if _PIDS.exists() else 0}"
waits = ContextVar("waits", default=True)  # whether `lock` waits for its turn
heard: ContextVar[tuple[Callable[[str], object], ...]] = ContextVar("heard", default=())  # who hears what `tell` says
SPEAK_EVERY = 30  # seconds between two lines of `speaking`

Record = dict[str, Any]


class Held(Exception):
    """Another process holds the folder; says which, and how long ago it renewed its lock."""


@contextlib.contextmanager
def lock(folder: Path, wait: bool | None = None) -> Iterator[None]:
    """Hold a folder while it is written, so that no two processes or threads do the same work; waits for its turn.

    The lock is a file that only one process can create, and that its holder renews, as flock is absent or broken on
    many file systems that machines share. (filelock's lease takes over none on NFS.) A holder of this machine that is
    gone loses it at once, any other that has not renewed it for two minutes of our clock.

    Raises:
        OSError: the folder can not be written.
        Held: another holds it and `wait` is False; None means what `waits` says.
    """
    path, ours, released = folder / ".lock", f"{HOST} {os.getpid()} {uuid.uuid4().hex}", threading.Event()
    with storing(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        _take_turn(path, ours, waits.get() if wait is None else wait)
    threading.Thread(target=_renew, args=(path, ours, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        with contextlib.suppress(OSError):
            if path.read_text() == ours:  # and not another's, who took it over while this machine slept
                path.unlink()
            for empty in made:  # refused work leaves no folder
                empty.rmdir()


def _take_turn(path: Path, ours: str, wait: bool) -> None:
    """Create the lock, and its folder, when nobody holds it, or write ours into one whose holder is gone."""
    # A stranger's store could have us overwrite something else, or wait for ever.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EEXIST, "its lock is no plain file")
    before, since, said, missed = None, time.monotonic(), False, 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # a folder above was deleted just now, or is one in which none can be made
            missed += 1
            if missed == 50:
                raise
        with contextlib.suppress(FileNotFoundError):  # released just now, after refused work with its folder
            with contextlib.suppress(FileExistsError), path.open("x") as file:
                file.write(ours)
                return
            found, renewed = path.read_text(errors="replace"), path.stat().st_mtime
            if before != (found, renewed):
                before, since = (found, renewed), time.monotonic()
            host, pid, *_ = *found.split(), "unknown", "unknown"
            # One that says nothing is of a process that was killed before it could.
            gone = host == HOST and pid.isdecimal() and _is_gone(int(pid))
            if gone or time.monotonic() - since >= (STALE if found else 5):
                path.write_text(ours)
                time.sleep(1)  # of several that take it over, the last holds it
                if path.read_text() == ours:
                    return
                continue
            age = max(0, time.time() - renewed)
            who = f"process {pid} of {host.split('/')[0]}, renewed {age:.0f} s ago"
            who += ", which may be gone" if age > STALE else ""
            held = f"another process works on {'/'.join(path.parent.parts[-3:])} ({who})"
            if not wait:
                raise Held(held)
            if not said:
                print(f"waiting: {held}; taken over {STALE} s after the last renewal", flush=True)
            said = True
        time.sleep(0.2)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks only, and knows processes that /proc hides from other users
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except (ProcessLookupError, OverflowError, psutil.NoSuchProcess):
        return True
    except PermissionError:
        return False


def _renew(path: Path, ours: str, released: threading.Event) -> None:
    while not released.wait(STALE / 6):
        with contextlib.suppress(OSError):  # a network file system has hiccups
            if path.read_text() != ours:  # another took it over, while this machine slept
                return
            later = max(time.time_ns(), path.stat().st_mtime_ns + 10**9)  # also where the clock stands still
            try:
                os.utime(path, ns=(later, later))
            except PermissionError:  # the file of another user, who has held the lock before
                os.utime(path)


def sweep_up(folder: Path, held: Path | None = None) -> None:
    """Delete what killed processes left in a folder and below, temporaries and locks; `held` is locked by us."""
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(".lock")]:
        ours = contextlib.nullcontext() if path.parent == held else lock(path.parent, wait=False)
        with contextlib.suppress(OSError, Held), ours:  # not where another works
            if path.name != ".lock":  # which goes when it is released
                delete(path)


@contextlib.contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """A new folder in /tmp, for as long as the context; goes over those that killed processes have left there."""
    for left in Path("/tmp").glob(f"mixdistill-{kind}-*"):
        pid = left.name.split("-")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            delete(left)
    with tempfile.TemporaryDirectory(prefix=f"mixdistill-{kind}-{os.getpid()}-", dir="/tmp") as folder:
        yield Path(folder)


def tell(text: str) -> None:
    """Say how far this process is, to whoever listens by `heard`; work goes on if it cannot be written."""
    for listener in heard.get():
        with contextlib.suppress(OSError):
            listener(text)


@contextlib.contextmanager
def speaking(label: str, on: bool = True) -> Iterator[None]:
    """Print every 30 seconds what `tell` has said last, from a thread of its own: a single pass can take minutes."""
    told, ended, began = {"last": "getting ready"}, threading.Event(), time.monotonic()

    def speak() -> None:
        while on and not ended.wait(SPEAK_EVERY):
            print(f"{label}: {told['last']}, {time.monotonic() - began:.0f} s", flush=True)

    before = heard.set((*heard.get(), lambda text: told.update(last=text)))
    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        heard.reset(before)
        ended.set()
        thread.join()


def write_json(path: Path, content: Record) -> None:
    """Write a JSON file whole, with a hash of what it says and where."""
    text = json.dumps(content | {"check": _seal(path, content)}, indent=2) + "\n"
    replace(path, lambda temporary: temporary.write_text(text))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a temporary file or folder, bring it to the disk, and put it in the place of `path` in one
    step. Its files get the modes that the umask gives (safetensors writes 600)."""
    if path.name in ("", ".."):  # it would be the folder that holds all others
        raise ValueError(f"{str(path)!r} can not be replaced: name a file or folder in another one")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with storing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            for part in [*temporary.rglob("*"), temporary]:
                if part.is_file() and part != temporary:
                    part.chmod(temporary.stat().st_mode & 0o666)
                _sync(part)
            if path.is_dir():  # of a run that has not finished, else nobody would write it again
                shutil.rmtree(path)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:  # of a full disk, too: what is half written helps nobody
            delete(temporary)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def delete(path: Path) -> None:
    """Delete a file or folder that nobody needs, if the disk lets us."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """A disk that is full, read-only or failing ends in one OSError; torch and safetensors have errors of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        what = f"cannot write {str(path)!r} ({reason}): make room in the run store and clear what is in the way"
        other = "or set MIXDISTILL_RUNS to a folder that can be written"
        said = f"{what}, {other}, and call again, which goes on from what is stored"
        raise OSError(getattr(error, "errno", None) or errno.EIO, said) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """ValueError for a file that is missing or damaged; OSError for one that may not or can not be read."""
    try:
        if path.exists() and not path.is_file():
            raise IsADirectoryError(errno.EISDIR, "it is no file")
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise damaged(path, error.strerror) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:  # json has both
        raise damaged(path, error) from error


def present(path: Path) -> bool:
    """Whether a file or folder is there. Raises OSError where that may not be seen, which is no absence."""
    try:
        return path.exists()
    except OSError as error:
        raise unreadable(path, error) from error


def files_in(path: Path) -> list[Path]:
    """The files in a folder and below, or the file itself. Raises OSError where they may not be seen."""

    def fail(error: OSError) -> None:
        raise unreadable(path, error) from error

    if not path.is_dir():
        return [path] if present(path) else []
    found = sorted(Path(folder, name) for folder, _, names in os.walk(path, onerror=fail) for name in names)
    return [path for path in found if present(path) and path.is_file()]


def unreadable(path: Path, error: OSError) -> OSError:
    advice = "ask its owner for the right to read it, or look after the disk"
    return OSError(error.errno, f"cannot read {str(path)!r} ({error.strerror}): {advice}")


def read_json(path: Path) -> Record:
    """What `write_json` wrote there. Raises ValueError if it was changed or is another's; older files have no hash."""
    with reading(path):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, no object")
        if content.pop("check", None) not in (None, _seal(path, content)):
            raise ValueError("it is not what was written there")
    return content


def _seal(path: Path, content: Record) -> str:
    """A hash of a JSON file and its place in the store, from the run's hash on: a store may move."""
    place = re.sub(r"^.*-(?=[0-9a-f]{16}/)", "", (path.parent.resolve() / path.name).as_posix())
    return key({"place": place, "is": json.dumps(content)})


def read_rows(path: Path, owner: str) -> list[Record]:
    """The rows of a JSON Lines file that `append_rows` wrote, up to one that was cut or changed, or is of another
    owner; none where there is no file."""
    rows: list[Record] = []
    with reading(path):
        lines = path.read_bytes().splitlines() if path.exists() else []
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):  # what damage raises
        for line in lines:
            row = json.loads(line)
            if row.pop("check") != _check(owner, len(rows), row):
                break
            rows.append(row)
    return rows


def append_rows(path: Path, rows: Iterable[Record], owner: str, at: int) -> None:
    """Append rows to a JSON Lines file that has `at`, each with a hash of itself, place and owner; 0: a new file."""
    text = "".join(json.dumps(row | {"check": _check(owner, i, row)}) + "\n" for i, row in enumerate(rows, start=at))
    if at == 0:
        return replace(path, lambda temporary: temporary.write_text(text))
    with storing(path), path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _check(owner: str, at: int, row: Record) -> str:
    return key({"owner": owner, "row": at, "is": row})


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(config: Record) -> str:
    """Hash of a configuration: 16 hexadecimal digits of its canonical JSON's SHA-256."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def label(*parts: str) -> str:
    """A file's name that says what is in it, with a hash where something of it can not stand in a name."""
    text = "_".join(filter(None, parts))
    name = re.sub(r"[^\w.=-]+", "-", text)
    return name if name == text and len(name) <= 100 else f"{name[:100]}-{key({'': text})}"


class Damaged(ValueError):
    """A file of the store is missing or was changed."""


def damaged(path: Path, reason: object, folder: Path | None = None) -> Damaged:
    """The error for a file that is missing or was changed. One step heals: delete the folder, call again."""
    where = str(folder or path.parent)
    return Damaged(f"{str(path)!r} is damaged ({reason}): delete the folder {where!r} and call again")
