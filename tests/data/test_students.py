"""The names that a pocket student has, and what a reader is told of one that is not here."""

import pytest
import torch

from mixdistill import load_student
from mixdistill.data import students
from mixdistill.data.pocket import bases
from mixdistill.data.pocket.bases import BASE_SEEDS, GATED, LARGE, POCKET, POCKET_BASES, base_facts
from mixdistill.data.students import n_params, student_source


def test_the_first_base_carries_the_students_own_name():
    assert list(POCKET_BASES) == [*POCKET, *LARGE]
    assert all(names[0] == student for student, names in POCKET_BASES.items())
    assert all(base.startswith(f"{student}-") for student, names in POCKET_BASES.items() for base in names[1:])
    assert [len(names) for names in POCKET_BASES.values()] == [len(seeds) for seeds in BASE_SEEDS.values()]


@pytest.mark.parametrize(
    "name", ["pocket/huge", "pocket/xs-0", "pocket/xs-99", "pocket/xl-99", "pocket/xs-one", "pocket/"]
)
def test_unknown_bases_are_refused_with_the_students_that_there_are(name):
    with pytest.raises(ValueError, match=f"unknown student '{name}': the pocket world has pocket/xs, pocket/s, "):
        load_student(name)


@pytest.mark.parametrize(("name", "command"), [("pocket/m-2", "m --seed 2"), ("pocket/xl", "xl --seed 0")])
def test_a_base_whose_weights_are_not_here_is_refused_with_the_command_that_makes_it(
    name, command, tmp_path, monkeypatch
):
    monkeypatch.setattr(bases, "POCKET_DIR", tmp_path)
    with pytest.raises(
        ValueError, match=rf"weights of '{name}' are not in .* `python -m pretraining.pretrain {command}`"
    ):
        student_source(name)


def test_only_tiny_students_compute_in_full_precision_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_student("pocket/xs", device="cpu").model.dtype == torch.float32
    monkeypatch.setattr(students, "TINY", n_params("pocket/xs"))
    assert load_student("pocket/xs", device="cpu").model.dtype == torch.bfloat16


def test_pocket_students_go_from_small_to_large():
    sizes = [n_params(name) for name in POCKET]
    assert sizes == sorted(set(sizes))


def test_the_facts_of_a_base_say_what_it_read_and_knew():
    facts = base_facts("pocket/xs")
    assert (facts["bases"], facts["pre-training tokens"]) == (6, bases.pocket_recipe("pocket/xs")["tokens"])
    assert {*GATED, "mark", "rare"} <= facts.keys()
    assert not [key for key in facts if key.startswith("pocket/")]
