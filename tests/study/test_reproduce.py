"""Kill -9 at any moment loses no finished arm, and the next call ends as if nothing had happened."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import REPO
from publish import publish_notebook, with_results
from test_notebooks import check_tables

from mixdistill.__main__ import run
from mixdistill.study import reproduce
from mixdistill.study.grid import sweep_grid
from mixdistill.study.reproduce import NOTEBOOKS, execute

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
REPRODUCE = [sys.executable, "-m", "mixdistill", "reproduce", "--scale", "smoke", "--seeds", "1"]
GIVEN = Namespace(command="reproduce", scale="smoke", seeds=1, students="", benchmarks="", notebooks="first")
TRAIN = """
from mixdistill import evaluate, finetune, load_traces
from mixdistill.finetuning import finetune as training
training.CHECKPOINT_EVERY = 10
run = finetune("pocket/s", load_traces("pocket/long", n=48), epochs=16, progress=False)
evaluate(run, ["pocket/easy"], n=20, batch_size=4, progress=False)
"""


def start(command: list[str], store: Path) -> subprocess.Popen:
    environment = os.environ | {"MIXDISTILL_RUNS": str(store)}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finished(store: Path) -> dict[str, bytes]:
    """The scores of every evaluation, by its place in the store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("scores.json")}


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    """Until it holds, however slow the machine is; if `process` ends before, it never will."""
    while not condition():
        assert process is None or process.poll() is None, "ended too early"
        time.sleep(0.02)


def published() -> dict[Path, bytes]:
    files = [
        *REPO.glob("figures/*.png"),
        *REPO.glob("figures/data/*.csv"),
        *REPO.glob("notebooks/*"),
        REPO / "README.md",
    ]
    return {path: path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    store, before, said = tmp_path_factory.mktemp("undisturbed"), published(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("MIXDISTILL_RUNS", str(store))
        patch.chdir(store)  # nothing depends on the working directory
        assert run(GIVEN) == 0
    assert published() == before  # a smaller run replaces nothing that is published
    return store, said.getvalue()


def test_it_shows_progress_and_ends_with_the_gaps_and_the_figures(undisturbed):
    store, output = undisturbed
    assert "[3/5] notebooks/02_learnability_gap.ipynb" in output
    assert "min left" in output
    # The first sweep has trained all that they show.
    said = re.findall(r"arms: .*, (\d+) to run", output.partition("[1/5]")[2])
    assert said
    assert set(said) == {"0"}
    assert "mix_long-best" in output
    for name in ("01_trace_lengths", "02_learnability_gap", "03_mix_distillation"):
        assert f"{store}/figures/smoke_n_seeds=1/{name}.png" in output
    assert "(one seed)" in output
    check_tables(store / "figures" / "smoke_n_seeds=1" / "data", n_students=2, n_seeds=1, n_problems=24)
    assert "Done in" in output


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_executed_notebook_is_fit_to_be_published(name, undisturbed, tmp_path):
    executed = undisturbed[0] / "notebooks" / "smoke_n_seeds=1" / f"{name}.ipynb"
    outputs = [output for cell in nbformat.read(executed, 4).cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    publish_notebook(executed, tmp_path / "published.ipynb")  # refuses paths of this machine
    assert str(Path.home()) not in (tmp_path / "published.ipynb").read_text()


def test_a_second_call_executes_no_notebook_until_something_has_changed(undisturbed, monkeypatch, capsys):
    store, first = undisturbed
    monkeypatch.setenv("MIXDISTILL_RUNS", str(store))
    assert run(GIVEN) == 0
    again = capsys.readouterr().out
    assert "Nothing has changed since the last call" in again
    assert "[1/5]" not in again
    assert again.partition("Gaps,")[2].partition("Done in")[0] == first.partition("Gaps,")[2].partition("Done in")[0]
    note = store / "notebooks" / "smoke_n_seeds=1" / "done-first.json"
    code = reproduce.code_hash()
    assert reproduce._unchanged(note, code)
    assert not reproduce._unchanged(note, "other code")
    assert not reproduce._unchanged(note.with_name("done-all.json"), code)
    scores = next(store.glob("*/evaluations/*/scores.json"))
    written = note.read_text()
    for broken in ("", "[]", "{}", '{"code": "' + code + '"}', '{"code": "' + code + '", "left": []}'):
        note.write_text(broken)
        assert not reproduce._unchanged(note, code)
    note.write_text(written)
    table = store / "figures" / "smoke_n_seeds=1" / "data" / "slope.csv"
    for changed in (table, scores, scores.parents[2] / "manifest.json", note.with_name("00_tour.ipynb")):
        kept = changed.rename(changed.with_suffix(".kept"))
        assert not reproduce._unchanged(note, code)
        kept.rename(changed)
    assert reproduce._unchanged(note, code)


def test_a_file_of_ones_own_is_read_again_though_all_else_is_the_same(tmp_path, store, monkeypatch):
    def trains(*_):
        raise RuntimeError("it swept")

    monkeypatch.setattr(reproduce, "_unchanged", lambda *_: True)
    monkeypatch.setattr(reproduce, "sweep", trains)
    (own := tmp_path / "own.jsonl").write_text("{}")
    monkeypatch.setattr(reproduce, "check_machine", lambda _: None)
    with pytest.raises(RuntimeError, match="it swept"):
        reproduce.reproduce("smoke", 1, benchmarks=str(own))


def test_kills_lose_no_finished_arm_and_change_no_score(undisturbed, tmp_path, monkeypatch):
    expected = finished(undisturbed[0])
    store = tmp_path / "killed"
    # In the middle of the sweep; then of a notebook.
    for reached in (lambda: finished(store), lambda: any("ipykernel_launcher" in line for line in commands_of(store))):
        process = start(REPRODUCE, store)
        wait_for(reached, process)
        before = {path: path.stat().st_mtime_ns for path in store.rglob("scores.json")}
        kill(process)
        wait_for(lambda: not workers_of(store))  # nobody goes on in the background
        assert len(finished(store)) < len(expected)
        assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setenv("MIXDISTILL_RUNS", str(store))
    sweep_grid("smoke", 1, grid=["STUDENT=pocket/xs,pocket/s"])
    ended = finished(store)
    both = ended.keys() & expected.keys()
    assert len(both) > 10
    assert {path: ended[path] for path in both} == {path: expected[path] for path in both}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def commands_of(store: Path) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [" ".join(process.cmdline()) for process in workers_of(store)]
    return []


def workers_of(store: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MIXDISTILL_RUNS") == str(store) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_arms_that_fail_end_the_command_in_one_sentence(monkeypatch):
    def fail(*_):
        raise RuntimeError("2 of 12 arms failed; the first, pocket/xs short seed 0: no room")

    monkeypatch.setattr(reproduce, "reproduce", fail)
    assert run(GIVEN) == "\nerror: 2 of 12 arms failed; the first, pocket/xs short seed 0: no room"


def test_kills_in_the_middle_of_training_change_no_bit(tmp_path):
    command = [sys.executable, "-c", TRAIN]
    finish(start(command, tmp_path / "undisturbed"))
    store = tmp_path / "killed"
    for pattern in ("checkpoint.pt", "generations.jsonl"):  # in the middle of training, then of decoding
        process = start(command, store)
        wait_for(lambda p=pattern: list(store.rglob(p)), process)
        kill(process)
    finish(start(command, store))
    names = ("adapter_model.safetensors", "generations.jsonl", "scores.json", "metrics.jsonl")
    for name in names:
        (one,), (other,) = list((tmp_path / "undisturbed").rglob(name)), list(store.rglob(name))
        assert one.read_bytes() == other.read_bytes()


def test_the_readme_shows_what_the_tables_hold():
    readme = (REPO / "README.md").read_text()
    assert with_results(readme) == readme
    with pytest.raises(ValueError, match="lacks the marks"):
        with_results("# nothing")


def test_the_readme_example_runs_as_it_stands(capsys, monkeypatch):
    """With fewer problems to train on and to answer than the pocket world has unless asked."""
    monkeypatch.setattr("mixdistill.data.traces.N_POCKET", 64)
    monkeypatch.setattr("mixdistill.data.problems.N_POCKET", 20)
    (example,) = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), flags=re.DOTALL)
    exec(example, {})
    assert "pocket/hard" in capsys.readouterr().out


def test_sockets_have_a_short_path_and_a_killed_process_leaves_none(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, own = (Path(f"/tmp/mixdistill-kernel-{pid}-a") for pid in (ended.pid, os.getpid()))
    left.mkdir()
    own.mkdir()
    nbformat.write(nbformat.v4.new_notebook(metadata=PYTHON, cells=[]), tmp_path / "empty.ipynb")
    execute(tmp_path / "empty.ipynb", tmp_path / "out.ipynb", {})
    assert str(tmp_path) not in (tmp_path / "out.ipynb").read_text()
    assert not left.exists()
    own.rmdir()
