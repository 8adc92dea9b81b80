import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mixdistill import evaluate, files, finetune, load_traces, open_run, runs
from mixdistill.data.problems import Problem

# Both processes begin together, and say so when it is they who train.
TRAIN = """
import os, pathlib, sys, time
from mixdistill import finetune, load_traces
from mixdistill.finetuning import finetune as training
loop = training.loop
training.loop = lambda *arguments: print("I train", flush=True) or loop(*arguments)
traces = load_traces("pocket/short", n=64)
meeting = pathlib.Path(sys.argv[1])
(meeting / str(os.getpid())).touch()
while len(list(meeting.iterdir())) < 2:
    time.sleep(0.01)
finetune("pocket/xs", traces, epochs=40, progress=False)
"""


def test_the_key_depends_on_content_not_on_order():
    assert files.key({"a": 1, "b": 2}) == files.key({"b": 2, "a": 1}) != files.key({"a": 1, "b": 3})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": 1}


def test_two_processes_train_one_arm_once(store, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    command = [sys.executable, "-c", TRAIN, str(meeting)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = "".join(process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert output.count("I train") == 1
    assert output.count("another process works on") == 1
    assert len(list(store.rglob("manifest.json"))) == 1


def test_a_lock_is_free_afterwards_and_leaves_nothing(tmp_path):
    for _ in range(2):
        with files.lock(tmp_path / "a" / "b"):
            assert (tmp_path / "a" / "b" / ".lock").is_file()
        assert list(tmp_path.iterdir()) == []


def test_threads_take_turns(tmp_path):
    log = []

    def enter(i: int) -> None:
        with files.lock(tmp_path):
            log.append(i)
            time.sleep(0.05)
            log.append(i)

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log[::2] == log[1::2]


FOREIGN = "elsewhere/1 7 abc"


@pytest.mark.parametrize("left", ["", "garbage", FOREIGN], ids=["empty", "garbage", "of another host"])
def test_a_lock_that_nobody_renews_is_taken_over_and_its_holder_is_named(left, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "STALE", 1)
    (tmp_path / ".lock").write_text(left)
    with files.lock(tmp_path):
        said = capsys.readouterr().out
    assert f"/{tmp_path.name} (process" in said
    assert ("process 7 of elsewhere, renewed 0 s ago" in said) == (left == FOREIGN)


def test_who_does_not_want_to_wait_is_told_who_holds_the_lock(tmp_path):
    (tmp_path / ".lock").write_text(FOREIGN)
    with pytest.raises(files.Held, match=f"/{tmp_path.name} .process 7 of elsewhere, renewed 0 s ago"):
        files.lock(tmp_path, wait=False).__enter__()
    os.utime(tmp_path / ".lock", (0, 0))
    with pytest.raises(files.Held, match=r"renewed \d{10} s ago, which may be gone"):
        files.lock(tmp_path, wait=False).__enter__()
    assert (tmp_path / ".lock").read_text() == FOREIGN


def test_a_process_that_may_not_be_asked_lives(monkeypatch):
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    assert files._is_gone(2**31 - 2)
    assert files._is_gone(10**30)
    monkeypatch.setattr(os, "kill", refuse)
    assert not files._is_gone(2**31 - 2)


def test_what_is_finished_is_read_also_where_nothing_can_be_tidied_up(tmp_path, monkeypatch):
    def refuse(folder, wait=None):
        raise PermissionError

    files.write_json(tmp_path / "manifest.json", {"done": True})
    (tmp_path / "checkpoint.pt").touch()
    monkeypatch.setattr(files, "lock", refuse)
    runs.once(tmp_path, "manifest.json", pytest.fail)
    monkeypatch.undo()
    runs.once(tmp_path, "manifest.json", pytest.fail)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_student_below_home_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "students" / "mine").mkdir(parents=True)
    written = ("~/students/mine", tmp_path / "students" / "mine")
    ways = [runs.run_of({"student": way, "fingerprint": "x"}) for way in written]
    assert {run.config["student"] for run in ways} == {"mine"}
    assert len({run.folder for run in ways}) == len({run.place for run in ways}) == 1


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    script = "import os, sys; from pathlib import Path; from mixdistill import files; "
    script += "held = files.lock(Path(sys.argv[1])); held.__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == 9
    assert (tmp_path / ".lock").is_file()
    with files.lock(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_work_is_done_once_and_refused_work_leaves_no_folder(tmp_path):
    folder, done = tmp_path / "run", []

    def refuse() -> dict:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        runs.once(folder, "last.json", refuse)
    assert not folder.exists()
    for _ in range(2):
        runs.once(folder, "last.json", lambda: done.append(1) or {"done": len(done)})
    assert files.read_json(folder / "last.json") == {"done": 1}


def test_temporaries_of_killed_processes_are_swept_but_where_another_works(tmp_path):
    left = [tmp_path / ".a.tmp", tmp_path / "evaluations" / "1" / ".b.tmp", tmp_path / "evaluations" / "2" / ".c.tmp"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with files.lock(left[2].parent):
        runs.once(tmp_path, "last.json", dict)
        assert [path.exists() for path in left] == [False, False, True]


def test_the_store_is_where_the_variable_says_whatever_the_working_directory_becomes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MIXDISTILL_RUNS", "~/runs")
    assert runs.runs_dir() == tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXDISTILL_RUNS", "relative")
    assert runs.runs_dir() == tmp_path / "relative"
    monkeypatch.chdir("/")
    assert runs.runs_dir() == tmp_path / "relative"


@pytest.mark.parametrize("name", ["a\udcff", "x" * 300, "y/" * 2500], ids=["not UTF-8", "long", "long path"])
def test_a_store_that_can_not_be_is_refused(name, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_RUNS", name)
    with pytest.raises(ValueError, match=r"MIXDISTILL_RUNS is .*: name a folder that can be written"):
        runs.runs_dir()


def test_a_store_that_can_not_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot write .* \(Not a directory\): make room .* MIXDISTILL_RUNS"):
        evaluate("pocket/xs", "pocket/easy", n=1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux has such a folder")
def test_a_folder_in_which_none_can_be_made_is_said_and_not_waited_for(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    said = r"cannot write '/proc/nothing/.*' \(No such file or directory\): make room"
    with pytest.raises(OSError, match=said), files.lock(Path("/proc/nothing/run")):
        pass


@pytest.fixture
def bound():
    """A folder, and no superuser's rights in it."""
    superuser = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        os.seteuid(65534 if superuser else os.geteuid())
        yield Path(folder)
        os.seteuid(0 if superuser else os.geteuid())


def test_what_may_not_be_read_is_neither_damaged_nor_missing(bound):
    run = bound / "run"
    files.write_json(run / "config.json", {})
    (run / "config.json").chmod(0)
    with pytest.raises(PermissionError, match=r"cannot read .*: ask its owner"):
        files.read_json(run / "config.json")
    run.chmod(0)
    for look in (files.present, files.read_json, lambda path: files.files_in(path.parent), lambda path: open_run(run)):
        with pytest.raises(PermissionError, match=r"cannot read .*: ask its owner"):
            look(run / "config.json")
    run.chmod(0o755)


def test_files_follow_the_umask(store):
    before = os.umask(0o002)
    try:
        finetune("pocket/xs", load_traces("pocket/short", n=2), epochs=1, progress=False)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in store.rglob("*") if path.is_file()} == {0o664}


def test_the_same_student_is_the_same_run_wherever_it_lies_and_no_path_of_it_is_stored(tmp_path, qwen, math_traces):
    shutil.copytree(qwen, tmp_path / "here")
    train = load_traces(str(math_traces), columns={"question": "problem", "response": "solution"})
    problems = [Problem("1", "What is 1 plus 1?", "2", "", "sums", "math")]
    options = {"epochs": 1, "progress": False}
    run = finetune(str(tmp_path / "here"), train, **options)
    scores = evaluate(run, problems, max_new_tokens=4, progress=False)
    stored = [run.folder / "config.json", scores.folder / "config.json", scores.folder / "generations.jsonl"]
    assert all(str(tmp_path) not in path.read_text() for path in stored)

    shutil.move(tmp_path / "here", tmp_path / "there")
    with pytest.raises(
        ValueError, match=r"local student 'here' .*: say where it lies with open_run\(folder, student=...\)"
    ):
        evaluate(run.folder, problems, max_new_tokens=3)
    moved = open_run(run.folder, student=tmp_path / "there")
    assert len(evaluate(moved, problems, max_new_tokens=3, progress=False).items) == 1
    assert finetune(str(tmp_path / "there"), train, **options).folder == run.folder


def test_paths_are_shown_relative_to_the_repo(tmp_path):
    assert runs.shown(runs.REPO / "figures" / "a.png") == "figures/a.png"
    assert runs.shown(tmp_path) == str(tmp_path)


def test_a_json_file_that_was_edited_or_is_of_another_run_is_damaged_and_a_moved_store_is_not(tmp_path):
    run, other = (tmp_path / "store" / f"pocket-xs-{digit * 16}" for digit in "01")
    for folder in (run, other):
        files.write_json(folder / "manifest.json", {"seconds": 5.0, "loss": float("nan"), "said": ("é", None)})
    content = (run / "manifest.json").read_text()
    shutil.move(tmp_path / "store", tmp_path / "moved")
    moved = tmp_path / "moved" / run.name / "manifest.json"
    assert files.read_json(moved)["said"] == ["é", None]
    for changed in (content.replace("5.0", "4.0"), (tmp_path / "moved" / other.name / "manifest.json").read_text()):
        moved.write_text(changed)
        with pytest.raises(ValueError, match=r"is damaged \(it is not what was written there\): delete the folder"):
            files.read_json(moved)


def test_what_is_no_file_is_damaged(tmp_path):
    os.mkfifo(tmp_path / "scores.json")  # to open it would wait for ever
    with pytest.raises(ValueError, match=r"is damaged \(it is no file\)"):
        files.read_json(tmp_path / "scores.json")


def test_who_waits_gets_the_lock_of_refused_work_which_takes_its_folder_away(tmp_path):
    folder, waits = tmp_path / "a" / "b", threading.Event()

    def wait() -> None:
        waits.set()
        with files.lock(folder):
            (folder / "done").touch()

    thread = threading.Thread(target=wait)
    with files.lock(folder):
        thread.start()
        waits.wait()
        time.sleep(0.3)
    thread.join()
    assert (folder / "done").exists()


def test_a_lock_is_renewed_where_the_clock_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    path, rounds, times = tmp_path / ".lock", iter([False, False, True]), []
    path.touch()
    released = threading.Event()
    released.wait = lambda seconds: times.append(path.stat().st_mtime_ns) or next(rounds)
    files._renew(path, path.read_text(), released)
    assert len(set(times)) == 3


def test_a_lock_that_another_took_over_is_renewed_no_more(tmp_path):
    path, released = tmp_path / ".lock", threading.Event()
    path.write_text(FOREIGN)
    os.utime(path, (0, 0))
    released.wait = lambda seconds: False
    files._renew(path, "ours", released)
    assert path.stat().st_mtime == 0


def test_a_lock_that_is_a_link_is_refused_and_its_target_left(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STALE", 0)
    (tmp_path / "target").write_text("elsewhere/1 7 abc")
    (tmp_path / ".lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"its lock is no plain file\): make room .* clear what is in the way"):
        files.lock(tmp_path).__enter__()
    assert (tmp_path / "target").read_text() == "elsewhere/1 7 abc"


def test_a_clone_that_is_not_installed_runs(monkeypatch):
    monkeypatch.setattr(runs, "VERSIONS", ("no-such-package",))
    assert runs.machine()["versions"] == {"no-such-package": "not installed"}
