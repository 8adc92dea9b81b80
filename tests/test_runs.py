import subprocess
import sys

import pytest

from mixdistill import runs

TRAIN = """
from mixdistill import finetune, load_traces
finetune("pocket/xs", load_traces("pocket/short", n=64), epochs=8, progress=False)
"""


def test_the_key_depends_on_content_not_on_order():
    assert runs.key({"a": 1, "b": 2}) == runs.key({"b": 2, "a": 1}) != runs.key({"a": 1, "b": 3})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runs.write_json(path, {"a": object()})
    assert runs.read_json(path) == {"a": 1}


def test_two_processes_train_one_arm_once(store):
    processes = [subprocess.Popen([sys.executable, "-c", TRAIN], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    (manifest,) = store.rglob("manifest.json")
    assert manifest.parent.name.startswith("pocket-xs-")
    assert sum("another process works on" in output for output in outputs) <= 1


def test_paths_are_shown_relative_to_the_repo(tmp_path):
    assert runs.shown(runs.REPO / "figures" / "a.png") == "figures/a.png"
    assert runs.shown(tmp_path) == str(tmp_path)
