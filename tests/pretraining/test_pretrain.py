"""How the pocket world's base students are made, and what every base that is here has to know."""

import csv
import json
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from mixdistill import load_student
from mixdistill.data.pocket import world
from mixdistill.data.pocket.bases import BASE_SEEDS, FURTHER_BASES, POCKET, POCKET_BASES, POCKET_DIR
from mixdistill.data.problems import POCKET_TIERS
from pretraining import pretrain
from pretraining.tokenizer import build_tokenizer

BASES = sorted(path.parent.name for path in POCKET_DIR.glob("*/evaluation.json"))
RECIPE = {
    "student",
    "params",
    "width",
    "ffn_width",
    "layers",
    "tokens",
    "lr",
    "seed",
    "row",
    "batch",
    "precision",
    "device",
    "seconds",
}
EVALUATION = {*pretrain.GATED, "mark", "rare", *POCKET_TIERS}


def test_every_size_has_a_shape_and_bases():
    assert list(pretrain.SHAPES) == list(BASE_SEEDS)
    assert list(pretrain.SHAPES.values()) == sorted(pretrain.SHAPES.values())


def test_larger_students_read_more():
    assert list(pretrain.STEPS) == list(pretrain.SHAPES)
    assert list(pretrain.STEPS.values()) == sorted(pretrain.STEPS.values())


def test_bases_of_one_size_start_from_other_weights():
    tokenizer = build_tokenizer()
    first, again, other = (
        pretrain.build_student("xs", tokenizer, seed).model.embed_tokens.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_hold_the_documents_end_to_end():
    tokenizer = build_tokenizer()
    rows = next(pretrain.token_rows(tokenizer, Random(0), steps=1))
    assert rows.shape == (pretrain.BATCH, pretrain.ROW)
    rng, text = Random(0), tokenizer.decode(rows.flatten())
    whole = "".join(f"<bos> {pretrain.document(rng, 0)} <eos> " for _ in range(300))
    assert whole.startswith(text)


def test_positions_jump_only_behind_colons():
    rows = torch.tensor([[5, 9, 5, 5, 9, 5] * 10] * 40)
    steps = pretrain.jumping_positions(rows, 9, torch.Generator().manual_seed(0)).diff(dim=1)
    at_colon = rows[:, 1:] == 9
    assert (steps[~at_colon] == 1).all()
    assert steps[at_colon].min() == 1
    assert 1 < steps[at_colon].max() <= 1 + pretrain.MAX_JUMP
    assert (steps[at_colon] > 1).float().mean() == pytest.approx(0.5, abs=0.05)


def test_a_guess_of_any_machine_is_consistent_and_stops_where_its_colour_does_not_fit():
    rng = Random(0)
    for level in world.LEVELS * 50:
        problem = world.random_mystery(rng, level)
        for machine in world.MACHINES:
            response = pretrain.guessed(problem, machine)
            assert pretrain.consistent(problem.text, response)
            assert ("answer" in response) == (machine in problem.suspects)


def test_a_guess_with_one_word_changed_is_not_consistent():
    rng, changes = Random(0), Random(1)
    for level in world.LEVELS * 50:
        problem = world.random_mystery(rng, level)
        words = pretrain.guessed(problem, problem.machine).split()
        at = changes.randrange(len(words))
        words[at] = changes.choice([word for word in (*world.ITEMS, *world.COLOURS, "ok", "no") if word != words[at]])
        assert not pretrain.consistent(problem.text, " ".join(words))


@pytest.mark.parametrize("response", ["", "try", "wait after B", "try k4 Z = red need red ok ."])
def test_what_names_no_machine_is_not_consistent(response):
    assert not pretrain.consistent(world.random_mystery(Random(0), 1).text, response)


@pytest.mark.parametrize(("half", "precision"), [(False, "float32"), (True, "bfloat16")])
def test_a_short_pretraining_writes_a_base_in_bfloat16_that_can_be_loaded(tmp_path, half, precision):
    steps = 6
    folder = tmp_path / "xs-1"
    pretrain.pretrain("xs", 1, folder, steps, half)

    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe.keys() == RECIPE
    assert (recipe["student"], recipe["seed"], recipe["width"]) == ("xs", 1, pretrain.SHAPES["xs"][0])
    assert recipe["precision"] == precision
    assert recipe["tokens"] == steps * pretrain.BATCH * pretrain.ROW
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation.keys() == EVALUATION
    with (folder / "loss.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert float(curve[-1]["loss"]) < float(curve[0]["loss"])

    student = load_student(str(folder))
    assert student.model.num_parameters() == recipe["params"]
    assert student.tokenizer.decode(student.tokenizer("find twice ? i7 :")["input_ids"]) == "find twice ? i7 :"


def test_half_computes_the_loss_in_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "base_evaluation", lambda folder: dict.fromkeys(pretrain.GATED, 1.0))
    for half in (False, True):
        pretrain.pretrain("xs", 0, tmp_path / str(half), 1, half)
    losses = [float((tmp_path / str(half) / "loss.csv").read_text().split(",")[-1]) for half in (False, True)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize("base", BASES)
def test_every_base_that_is_here_passes_the_gate(base):
    evaluation = json.loads((POCKET_DIR / base / "evaluation.json").read_text())
    assert evaluation.keys() == EVALUATION
    missed = {key: evaluation[key] for key in pretrain.GATED if evaluation[key] < pretrain.GATE}
    assert missed == {}


@pytest.mark.parametrize("base", BASES)
def test_every_base_that_is_here_says_how_it_was_made(base):
    recipe = json.loads((POCKET_DIR / base / "recipe.json").read_text())
    size, _, seed = base.partition("-")
    assert recipe.keys() == RECIPE
    assert (recipe["student"], recipe["seed"]) == (size, int(seed or 0))
    assert (recipe["width"], recipe["ffn_width"]) == pretrain.SHAPES[size]
    assert recipe["tokens"] == pretrain.STEPS[size] * pretrain.BATCH * pretrain.ROW


def test_every_base_of_every_size_is_here():  # those of the larger ones where someone has made them
    wanted = {base for student in POCKET for base in POCKET_BASES[student] + FURTHER_BASES.get(student, ())}
    assert {f"pocket/{base}" for base in BASES} >= wanted


def test_the_stored_evaluation_of_the_smallest_student_comes_from_its_weights():
    stored = json.loads((POCKET_DIR / "xs" / "evaluation.json").read_text())
    # Another processor may round another way, and flip an answer or two of 200.
    assert pretrain.base_evaluation(POCKET_DIR / "xs") == pytest.approx(stored, abs=0.015)
