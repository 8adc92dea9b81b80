import errno
import os
import re
import subprocess
import sys
import time
from shutil import copytree

import nbformat
import pandas as pd
import pytest
from conftest import REPO

from mixdistill import get_scale
from mixdistill.__main__ import main
from mixdistill.data.pocket.bases import POCKET_BASES
from mixdistill.study import grid
from mixdistill.study.grid import _parsed, _printed, grid_arms, sweep_grid
from mixdistill.study.plan import all_arms
from mixdistill.study.reproduce import FURTHER
from mixdistill.study.scales import recipe_arm
from mixdistill.study.sweep import STOPPED, run_arm

DONE = pd.DataFrame({"result": [""], "folder": [""], "cause": [None]})
SMOKE = get_scale("smoke", 1)
GRID = ["STUDENT=pocket/xs", "ALPHA=0,1", "SEED=0"]
NOTEBOOK = """
import os
assert NUMBER < 3, "too large"
open(os.environ["SEEN"], "a").write(f"{NUMBER}{LETTER} ")
print(f"{LETTER * NUMBER}: {SCALE}")
"""


def sweep_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mixdistill", "sweep", "--scale", "smoke", "--seeds", "1", *arguments]


def table_of(said: str) -> pd.DataFrame:
    return pd.read_csv(said.strip().splitlines()[-1].removeprefix("Table: "))


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """One that fails at NUMBER 3, and notes what it was run with."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.txt"))
    parameters = nbformat.v4.new_code_cell('SCALE: str = "pocket"\nNUMBER: int = 1\nLETTER: str = "a"')
    parameters.metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    found, after = nbformat.v4.new_markdown_cell("## What was found"), nbformat.v4.new_code_cell("'an exercise'")
    cells = [parameters, found, nbformat.v4.new_code_cell(NOTEBOOK), after]
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), tmp_path / "own.ipynb")
    return tmp_path / "own.ipynb"


def test_a_grid_of_a_notebook_trains_what_is_published_too(monkeypatch):
    """Published answers in one row and answers of this machine in the next would be no table."""
    seen = []
    monkeypatch.setattr(grid, "_notebook_table", lambda source, combinations, on: seen.extend(combinations) or DONE)
    sweep_grid("pocket", grid=["ALPHA=0.1,0.2"], notebook="03_mix_distillation")
    assert [(given["ALPHA"], given["RESULTS"]) for given in seen] == [(0.1, "live"), (0.2, "live")]
    seen.clear()
    sweep_grid("pocket", grid=["RESULTS=stored"], notebook="02_learnability_gap")
    assert [given["RESULTS"] for given in seen] == ["stored"]


def test_without_a_heading_a_notebooks_result_is_what_its_last_cell_has_printed(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('first')", "print('last')")]
    for cell, said in zip(cells, ("first", "last"), strict=True):
        cell.outputs = [nbformat.v4.new_output("stream", text=said + "\n")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "executed.ipynb")
    assert _printed(tmp_path / "executed.ipynb") == "last"


def test_every_notebook_with_a_study_says_what_was_found():
    for name in ("02_learnability_gap", "03_mix_distillation", "04_mechanism", *FURTHER):
        said = _printed(REPO / "notebooks" / f"{name}.ipynb")
        assert "pocket/xs" in said or "pocket/s" in said, name


def test_two_processes_divide_a_grid_and_both_end_with_the_whole_table(store, capsys):
    grid, environment = ["STUDENT=pocket/xs", "ALPHA=0,1", "SEED=0,1"], os.environ | {"PYTHONPATH": str(REPO)}
    command = sweep_command("--grid", *grid)
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(store.glob("*/.lock")):  # until it trains, so that both are at work
        assert other.poll() is None
        time.sleep(0.05)
    sweep_grid("smoke", 1, grid=grid)
    said = other.communicate()[0]
    assert other.returncode == 0, said
    tables = [table_of(text) for text in (said, capsys.readouterr().out)]
    assert tables[0].equals(tables[1])
    assert tables[0][["alpha", "seed"]].values.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert tables[0]["cause"].isna().all()
    assert tables[0]["accuracy"].between(tables[0]["ci_low"], tables[0]["ci_high"]).all()
    assert set(tables[0]["n_problems"]) == {24}
    assert len(list(store.glob("*/manifest.json"))) == 4


def test_a_failed_arm_is_a_row_with_its_cause_and_runs_again(store, capsys):
    broken = run_arm(recipe_arm("pocket/xs", "short", 0), SMOKE).folder.parents[1]
    run_arm(recipe_arm("pocket/xs", "long", 0), SMOKE)
    config = (broken / "config.json").read_text()
    (broken / "manifest.json").unlink()
    (broken / "config.json").write_text("{}")
    table = sweep_grid("smoke", 1, grid=GRID)
    assert table["cause"].isna().tolist() == [False, True]
    assert "was changed after it was written" in table["cause"][0]
    assert pd.isna(table["accuracy"][0])
    assert table["accuracy"][1] == run_arm(recipe_arm("pocket/xs", "long", 0), SMOKE).accuracy
    (broken / "config.json").write_text(config)
    capsys.readouterr()
    again = sweep_grid("smoke", 1, grid=GRID)
    assert again["cause"].isna().all()
    told = capsys.readouterr().out
    assert "accuracy" in told
    assert not {"cause", "n_train"} & set(told.split())  # columns that no run has


def test_a_grid_names_what_differs_from_the_scale():
    assert grid_arms({}, SMOKE) == all_arms(SMOKE)
    arms = grid_arms({"LR": [1e-3, 1e-2], "SEED": [0, 6]}, SMOKE)
    untouched = [arm for arm in arms if arm.alpha is None]
    assert len(untouched) == len({SMOKE.base(arm) for arm in untouched})
    assert {arm.student for arm in arms} == set(SMOKE.students)
    assert len(arms) - len(untouched) == 2 * 2 * len(SMOKE.students) * len(SMOKE.recipes)
    assert all(arm.lr is None for arm in untouched)
    assert len(POCKET_BASES["pocket/xs"]) <= 6


def test_an_arm_s_own_rate_and_epochs_are_those_of_its_run(store):
    arms = grid_arms({"STUDENT": ["pocket/xs"], "RECIPE": ["short"], "LR": [1e-3], "EPOCHS": [2]}, SMOKE)
    table = sweep_grid("smoke", 1, grid=["STUDENT=pocket/xs", "RECIPE=short", "LR=0.001", "EPOCHS=2"])
    own = run_arm(arms[0], SMOKE, stored_only=True)
    assert table["accuracy"].tolist() == [own.accuracy]
    assert run_arm(recipe_arm("pocket/xs", "short", 0), SMOKE, stored_only=True) is None


def test_a_notebook_runs_once_for_every_combination(notebook, store, tmp_path, capsys):
    grid = ["NUMBER=1,3,2", "LETTER=b,c"]
    for _ in range(2):
        table = sweep_grid("smoke", grid=grid, notebook=str(notebook))
    assert table[["NUMBER", "LETTER"]].values.tolist() == [[n, letter] for n in (1, 3, 2) for letter in "bc"]
    assert table["result"].dropna().tolist() == ["b: smoke", "c: smoke", "bb: smoke", "cc: smoke"]
    advice = "(what was finished is stored: mend the cause and run again)"
    cause = f"cell 3 of own.ipynb failed: AssertionError: too large {advice}"
    assert table["cause"].dropna().tolist() == [cause] * 2
    assert (tmp_path / "seen.txt").read_text() == "1b 1c 2b 2c "  # the second call has read
    told = capsys.readouterr().out
    assert "6 runs of own.ipynb, 4 in the run store, 2 to run" in told
    assert "..." not in told  # neither a result nor a path is cut
    assert f"row 1: {table['folder'][0]}\n    b: smoke\n" in told
    assert f"FAILED: row 3: {cause}\n" in told
    for folder in table["folder"]:
        assert (store.parent / folder / "own.ipynb").is_file()


def test_a_notebook_runs_again_when_a_file_has_changed_that_its_scale_reads(qwen, tmp_path, monkeypatch):
    student = copytree(qwen, tmp_path / "student")
    monkeypatch.setenv("MIXDISTILL_DATA", str(tmp_path))
    given = {"SCALE": "laptop", "STUDENTS": str(student), "BENCHMARKS": "svamp,own/own.csv"}
    (tmp_path / "own").mkdir()
    read = [grid._read(given)]
    for name in ("svamp_test.jsonl", "svamp_llama_level1.jsonl", "own/own.csv", "student/chat_template.jinja"):
        (tmp_path / name).write_text("changed")
        read.append(grid._read(given))
    assert [one for n, one in enumerate(read) if one in read[:n]] == []
    assert grid._read({"SCALE": "none", "NUMBER": 1}) == {}
    assert grid._read({"SCALE": "pocket"}) == {}


def test_a_notebook_that_lacks_a_parameter_that_was_given_is_refused(notebook):
    with pytest.raises(ValueError, match=r"own\.ipynb has no parameter SEEDS and STUDENTS: leave it out"):
        sweep_grid("smoke", 1, "pocket/xs", notebook=str(notebook))


def test_students_in_the_place_of_the_scales_are_those_of_the_arms(capsys):
    table = sweep_grid("smoke", 1, "pocket/xs", grid=["RECIPE=short,untouched"])
    assert table[["student", "recipe"]].values.tolist() == [["pocket/xs", "short"], ["pocket/xs", "untouched"]]
    assert "seeds=1_pocket-xs" in capsys.readouterr().out  # the table's own file


def test_a_store_that_can_only_be_read_ends_in_the_table_and_one_sentence(store, monkeypatch, capsys):
    sweep_grid("smoke", 1, grid=GRID)
    shown = capsys.readouterr().out.partition("Table: ")[0]

    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("os.replace", fail)
    monkeypatch.setattr(sys, "argv", sweep_command("--grid", *GRID)[2:])
    with pytest.raises(SystemExit) as end:
        main()
    assert re.match(r"error: .*cannot write '.*csv' .*: make room .*, and call again", str(end.value))
    assert capsys.readouterr().out.partition("\n\n")[2] == shown.partition("\n\n")[2]


def test_a_scheduler_that_takes_the_machine_back_stops_a_sweep_as_an_interrupt_does(store):
    command = [sys.executable, "-m", "mixdistill", "sweep", "--scale", "pocket", "--grid", *GRID]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(REPO)}, stdout=subprocess.PIPE, text=True)
    while not list(store.rglob("config.json")):  # a worker trains
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.communicate()[0].splitlines()[-1] == STOPPED
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("x=True,false", [True, False]),
        ("x=[1,2],[3]", [[1, 2], [3]]),
        ("y=1,2.5", [1, 2.5]),
        ("y=1,a", ["1", "a"]),
        ("z=[a,b]", None),
    ],
)
def test_values_have_the_type_of_their_name(value, read):
    types = {"x": "bool" if "rue" in value else "list", "y": "None", "z": "str"}
    assert _parsed([value], types, "a notebook")[value[0]] == (read or ["[a", "b]"])


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"cells": [{"cell_type": "code"}], "nbformat": 4}'])
def test_a_file_that_is_no_notebook_is_refused(text, tmp_path):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"x\.ipynb is no notebook \(.*\): give another"):
        sweep_grid("smoke", notebook=str(tmp_path / "x.ipynb"))


def test_bad_flags_are_refused():
    with pytest.raises(ValueError, match="FAST='7': FAST is of the type bool"):
        _parsed(["FAST=7"], {"FAST": "bool"}, "a notebook")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "STUDENTS=pocket/xs"], "--grid has 'STUDENTS=pocket/xs': give NAME=value,value"),
        (["--grid", "ALPHA=much"], "--grid has ALPHA='much': ALPHA is of the type float"),
        (["--notebook", "03_mix_distillation", "--grid", "ALPHA=nan"], "--grid's ALPHA is nan: it is a finite number"),
        (["--grid", "ALPHA=1.5"], "alpha is 1.5: it is a finite number, at least 0, at most 1"),
        (["--grid", "STUDENT=pocket/huge", "SEED=0"], "unknown student 'pocket/huge'"),
        (["--grid", "STUDENT=pocket/xs", "--grid", "ALPHA=much"], "--grid has ALPHA='much'"),
        (["--notebook", "setup.cfg"], "there is no notebook 'setup.cfg'"),
        (["--grid", "RECIPE=longest"], "RECIPE is 'longest': use one of untouched, short"),
        (["--grid", "ALPHA=0", "RECIPE=long"], "the grid has ALPHA and RECIPE"),
        (["--grid", "SEED"], "--grid has 'SEED': give NAME=value,value"),
        (["--on", "slurm"], "on is 'slurm': use local, ray"),
        (["--notebook", "05_none"], "there is no notebook '05_none': give the path of one, or one of 00_tour"),
        (["--notebook", "03_mix_distillation", "--grid", "ALPHAA=0.1"], "the notebook 03_mix_distillation.ipynb has"),
        (["--notebook", "03_mix_distillation", "--grid", "ALPHA=x"], "ALPHA is of the type float"),
    ],
)
def test_bad_grids_are_refused_in_one_sentence_before_any_work(arguments, message, monkeypatch, store):
    monkeypatch.setattr(sys, "argv", sweep_command(*arguments)[2:])
    with pytest.raises(SystemExit) as end:
        main()
    assert message in str(end.value)
    assert "\n" not in str(end.value)
    assert not list(store.rglob("*"))
