"""Kills, failing disks and damaged files: whatever happens to the store, the next call ends as if nothing had, or in
one sentence.

python -m pytest tests/test_faults.py                          a sample of the file operations
MIXDISTILL_FAULTS=all python -m pytest tests/test_faults.py    every one, ten minutes
"""

import builtins
import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from mixdistill import evaluate, finetune, load_traces
from mixdistill.finetuning import finetune as training
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.results.evaluate import Scores

EVERY = 1 if os.environ.get("MIXDISTILL_FAULTS") == "all" else 32  # operations from one that fails to the next
QUIET = {"progress": False}
FAULTS = ("kill", "ENOSPC", "EIO")
COMPARED = (
    "config.json",
    "metrics.jsonl",
    "adapter_model.safetensors",
    "adapter_config.json",
    "generations.jsonl",
    "scores.json",
)


def work() -> Scores:
    """A run of 6 steps with checkpoints, and its evaluation in 2 batches."""
    training.CHECKPOINT_EVERY = 2
    run = finetune("pocket/xs", load_traces("pocket/short", n=6), epochs=3, batch_size=3, **QUIET)
    return evaluate(run, "pocket/easy", n=6, batch_size=3, **QUIET)


class Disk:
    """Counts the operations that change the store, and lets the n-th go wrong: `kill`, `EIO` once, or `ENOSPC` from
    there on.
    """

    def __init__(self, store: Path, fault: str = "", n: int = sys.maxsize) -> None:
        self.store, self.fault, self.n, self.count = str(store), fault, n, 0
        self.opened, self.fsync = io.open, os.fsync

    def install(self) -> None:
        """For as long as this process lives: an audit hook can not be taken away."""
        sys.addaudithook(self.audit)
        os.fsync = lambda descriptor: self.operation("fsync") or self.fsync(descriptor)
        io.open = builtins.open = self.open

    def audit(self, event: str, arguments: tuple) -> None:
        paths = [os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
        writes = event != "open" or (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        changes = event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod") and writes
        if changes and any(path.startswith(self.store) for path in paths):
            self.operation(event)

    def open(self, file: object, mode: str = "r", *rest: object, **options: object) -> io.IOBase:
        opened = self.opened(file, mode, *rest, **options)
        if set(mode) & set("wax+") and str(file).startswith(self.store):
            write = opened.write
            opened.write = lambda content: (
                self.operation("write", lambda: write(content[: len(content) // 2])) or write(content)
            )
        return opened

    def operation(self, name: str, half: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count < self.n or (self.count > self.n and self.fault != "ENOSPC"):
            return
        if self.fault == "kill":
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "EIO" or name in ("open", "write", "os.mkdir", "fsync"):
            half()
            raise OSError(getattr(errno, self.fault), os.strerror(getattr(errno, self.fault)))


def in_child(store: Path, disk: Disk | None = None) -> str:
    """Do the work in a fork of this process; returns what became of it: `done N operations`, `killed`, or the error."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.environ["MIXDISTILL_RUNS"] = str(store)
        try:
            if disk:
                disk.install()
            work()
            said = f"done {disk.count if disk else 0}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said or "killed"


def stored(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.name in COMPARED}


def trials(every: int) -> Iterator[str]:
    """What is wrong after a fault and a second call, over faults and operations."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "undisturbed")
        n = int(in_child(store, Disk(store)).removeprefix("done "))
        undisturbed = stored(store)
        yield f"{n} operations, {len(undisturbed)} files"
        for number, fault in enumerate(FAULTS):
            for at in range(1 + number * every // len(FAULTS), n + 1, every):
                store = Path(folder, f"{fault}-{at}")
                said = in_child(store, Disk(store, fault, at))
                in_a_sentence = "OSError" in said and "MIXDISTILL_RUNS" in said and "\n" not in said
                if not (said == "killed" if fault == "kill" else in_a_sentence or said.startswith("done")):
                    yield f"{fault} at {at}: {said}"
                if not (said := in_child(store)).startswith("done"):
                    yield f"{fault} at {at}, called again: {said}"
                if stored(store) != undisturbed:
                    yield f"{fault} at {at}: other files"
                if litter := [*store.rglob("*.tmp"), *store.rglob(".lock"), *store.rglob("checkpoint.pt")]:
                    yield f"{fault} at {at}: left {litter}"
                shutil.rmtree(store)


def test_kills_and_failing_disks_change_nothing():
    """A process of its own, as it forks: whatever threads a test runner has are not there."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(EVERY)]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert said[0].endswith("7 files")
    assert int(said[0].split()[0]) > 50
    assert said[1:] == []


DAMAGE = {
    "gone": lambda good, other: None,
    "empty": lambda good, other: b"",
    "half": lambda good, other: good[: len(good) // 2],
    "one bit": lambda good, other: good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
    "garbage": lambda good, other: bytes(range(256)) * 8,
    "zeros": lambda good, other: bytes(len(good)),
    "a JSON list": lambda good, other: b"[1, 2]\n",
    "a JSON number": lambda good, other: b"7\n",
    "deep brackets": lambda good, other: b"[" * 100_000,
    "another run's": lambda good, other: other,
    "no file": lambda good, other: "no file",
}
FILES = (
    "config.json",
    "manifest.json",
    "metrics.jsonl",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "evaluations/*/config.json",
    "evaluations/*/scores.json",
    "evaluations/*/generations.jsonl",
)


def arm(seed: int) -> pd.DataFrame:
    """Everything that is read of a run and of its evaluation."""
    run = finetune("pocket/xs", load_traces("pocket/short", n=4), seed=seed, epochs=1, batch_size=2, **QUIET)
    scores = evaluate(run, "pocket/easy", n=3, **QUIET)
    load_trained(run)
    return scores.items.assign(loss=run.metrics()["loss"].iloc[-1])


def put(path: Path, content: bytes | str | None) -> None:
    """Let a file hold this, be gone (None), or be no file: a pipe, to open which waits for ever."""
    path.unlink()
    if content == "no file":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A store with two finished runs, and what the first gives."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXDISTILL_RUNS", str(folder))
        arm(1)
        (other,) = folder.iterdir()
        items = arm(0)
    return folder, other.name, items


LAST = ("manifest.json", "evaluations/*/scores.json")


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_and_deleting_its_folder_heals(good, store, file):
    folder, other, items = good
    shutil.copytree(folder, store)
    (right,) = [path for path in store.glob(f"*/{file}") if other not in path.parts]
    (wrong,) = store.glob(f"{other}/{file}")
    whole, advised = right.read_bytes(), set()
    for damage, made in DAMAGE.items():
        content = made(whole, wrong.read_bytes())
        # Both runs may have the same. Without its last file a run or an evaluation is not damaged but unfinished; a bit
        # of it may be one that nobody reads.
        if content == whole or (file in LAST and damage in ("gone", "one bit")):
            continue
        put(right, content)
        with pytest.raises(ValueError, match=r"is damaged .*: delete the folder '.*' and call again") as caught:
            arm(0)
        assert str(right.parent) in str(caught.value), damage
        assert "\n" not in str(caught.value), damage
        advised.add(re.search("delete the folder '(.*)' and", str(caught.value))[1])
        right.unlink(missing_ok=True)
        right.write_bytes(whole)
    assert advised
    for heals in advised:
        put(right, b"")
        shutil.rmtree(heals)
        assert arm(0).equals(items)


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"no file"}))
def test_an_unfinished_evaluation_keeps_only_its_own_whole_rows(good, store, damage):
    folder, other, items = good
    shutil.copytree(folder, store)
    (right,) = [path for path in store.glob("*/evaluations/*/generations.jsonl") if other not in path.parts]
    (wrong,) = store.glob(f"{other}/evaluations/*/generations.jsonl")
    content = DAMAGE[damage](right.read_bytes(), wrong.read_bytes())
    put(right, content)
    right.with_name("scores.json").unlink()
    assert arm(0).equals(items)


if __name__ == "__main__":
    for line in trials(int(sys.argv[1])):
        print(line, flush=True)
