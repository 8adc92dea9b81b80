"""Exercises are checked against the results at hand, and their solutions stay folded."""

import html
import re
from decimal import Decimal
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import REPO

FILE = REPO / "notebooks" / "exercises.py"


@pytest.fixture
def notebook() -> dict:
    """The variables of a notebook that has run the file."""
    curves = pd.DataFrame({"student": ["s"] * 3, "alpha": [0.0, 0.2, 1.0], "accuracy": [0.5, 0.6, 0.4]})
    graded = pd.DataFrame({"student": "s", "recipe": "long", "error": ["right", "endless", "endless"]})
    scale = SimpleNamespace(pocket=True, students=["xs", "s"], alphas=(0.0, 0.2, 1.0))
    names = {"scale": scale, "curves": curves, "graded": graded}
    exec(compile(FILE.read_text(), FILE, "exec"), names)
    return names


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("03.2", 0.2, "right"),
        ("03.2", 0.4, "not yet. Hint: choose that student"),
        ("03.2", "0.2", "right"),
        ("03.2", np.array(0.2), "right"),
        ("03.2", Decimal("0.4"), "not yet. Hint: choose that student"),
        ("03.2", [0.2], "give a number"),
        ("03.2", 10**400, "give a number"),
        ("03.2", float("nan"), "give a number"),
        ("01.2", 2, "an exercise of notebook 01, whose cells have to run first"),
        ("04.3", 1, "give a word"),
        ("03.2", None, "no answer yet"),
        ("04.3", " Endless", "right"),
        ("04.3", "lost operand", "not yet. Hint: a check is recall"),
    ],
)
def test_an_answer_is_right_or_gets_a_hint(notebook, capsys, name, answer, said):
    notebook["check"](name, answer)
    assert capsys.readouterr().out.startswith(f"{name}: {said}")


def test_a_right_answer_follows_the_results(notebook, capsys):
    notebook["curves"] = notebook["curves"].assign(accuracy=[0.5, 0.6, 0.7])
    notebook["check"]("03.2", 1)
    assert capsys.readouterr().out == "03.2: right\n"


def test_where_a_run_is_too_small_nothing_is_claimed(notebook, capsys):
    notebook["graded"] = notebook["graded"].assign(error="right")
    notebook["check"]("04.3", "endless")
    said = "this run has too few answers of the kind to tell what is right"
    assert capsys.readouterr().out == f"04.3: {said}\n"
    assert f"<p>{said}</p>" in notebook["solution"]("04.3").data


def test_a_solution_is_folded_and_has_words_number_and_code(notebook):
    shown = notebook["solution"]("03.2").data
    assert shown.startswith("<details><summary>")
    assert "at alpha 0.2, 60.0%." in shown
    assert "def best_share" in shown
    assert "endless, in 66.7% of its long answers" in notebook["solution"]("04.3").data


def test_other_worlds_have_no_checks_and_unknown_exercises_are_refused(notebook, capsys):
    with pytest.raises(ValueError, match=r"exercise is '9': use one of 01\.1"):
        notebook["check"]("9", 0)
    notebook["scale"].pocket = False
    notebook["check"]("04.1", None)
    assert "of the pocket world only" in capsys.readouterr().out + notebook["solution"]("04.1").data


def test_the_notebooks_check_and_solve_every_exercise(notebook):
    cells = [cell.source for path in FILE.parent.glob("*.ipynb") for cell in nbformat.read(path, 4).cells]
    for function in ("check", "solution"):
        asked = [name for cell in cells for name in re.findall(rf'^{function}\("([\d.]+)"', cell)]
        assert sorted(asked) == sorted(notebook["EXERCISES"])


def test_committed_solutions_are_todays(notebook):
    for name, exercise in notebook["EXERCISES"].items():
        (path,) = FILE.parent.glob(f"{name[:2]}_*.ipynb")
        cells = nbformat.read(path, 4).cells
        (outputs,) = [cell.outputs for cell in cells if cell.source == f'solution("{name}")']
        shown = html.unescape(outputs[0].data["text/html"])
        code = FILE.read_text().partition(f"def {exercise.right.__name__}(")[2].partition("\n\n\n")[0]
        assert all(part in shown for part in [*re.split(r"\{[^}]*\}", exercise.solution), code]), name
