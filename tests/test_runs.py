import subprocess
import sys

import pytest

from mixdistill import runs

# Both processes begin together, and say so when it is they who train.
TRAIN = """
import importlib, os, pathlib, sys, time
from mixdistill import finetune, load_traces
training = importlib.import_module("mixdistill.finetuning.finetune")
train_run = training.train_run
training.train_run = lambda *arguments: (print("I train", flush=True), train_run(*arguments))
traces = load_traces("pocket/short", n=64)
meeting = pathlib.Path(sys.argv[1])
(meeting / str(os.getpid())).touch()
while len(list(meeting.iterdir())) < 2:
    time.sleep(0.01)
finetune("pocket/xs", traces, epochs=40, progress=False)
"""


def test_the_key_depends_on_content_not_on_order():
    assert runs.key({"a": 1, "b": 2}) == runs.key({"b": 2, "a": 1}) != runs.key({"a": 1, "b": 3})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runs.write_json(path, {"a": object()})
    assert runs.read_json(path) == {"a": 1}


def test_two_processes_train_one_arm_once(store, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    command = [sys.executable, "-c", TRAIN, str(meeting)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = "".join(process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert output.count("I train") == 1
    assert output.count("another process works on") == 1
    assert len(list(store.rglob("manifest.json"))) == 1


def test_paths_are_shown_relative_to_the_repo(tmp_path):
    assert runs.shown(runs.REPO / "figures" / "a.png") == "figures/a.png"
    assert runs.shown(tmp_path) == str(tmp_path)
