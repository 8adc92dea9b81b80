import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from safetensors.torch import load_file

from mixdistill import LoRA, Placement, files, finetune, load_student, load_traces, mix, runs
from mixdistill.data.pocket.bases import POCKET_BASES, POCKET_DIR
from mixdistill.data.problems import load_problems
from mixdistill.finetuning import finetune as training
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.finetuning.finetune import schedule
from mixdistill.finetuning.lora import trainable_model

SETTINGS = {"lora": LoRA(r=4), "epochs": 2, "batch_size": 8, "lr": 5e-3, "progress": False}


def pocket_train(n: int = 32):
    return mix(load_traces("pocket/long", n=n), load_traces("pocket/short", n=n), 0.2)


def math_train(path):
    return load_traces(str(path), columns={"question": "problem", "response": "solution"})


def adapter(run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter" / "adapter_model.safetensors")


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_lowers_the_loss_and_leaves_the_files_that_are_promised():
    run = finetune("pocket/xs", pocket_train(), **SETTINGS | {"epochs": 8})
    losses = run.metrics()["loss"]
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]
    assert {path.name for path in run.folder.iterdir() if not path.name.startswith(".")} == {
        "config.json",
        "metrics.jsonl",
        "adapter",
        "manifest.json",
    }
    assert run.manifest["n_steps"] == 8 * 4
    assert run.manifest["n_examples"] == 32
    assert run.manifest["supervised_tokens"] < run.manifest["tokens"]


def test_the_same_arm_is_trained_once_and_another_seed_is_another_run(monkeypatch):
    train = pocket_train()
    run = finetune("pocket/xs", train, **SETTINGS)
    monkeypatch.setattr(training, "loop", None)  # a second training would fail
    assert finetune("pocket/xs", train, **SETTINGS) == run
    assert finetune("pocket/xs", train, **SETTINGS, seed=1, stored_only=True) is None
    assert finetune("pocket/xs", pocket_train(31), **SETTINGS, stored_only=True) is None


def test_same_seed_same_bits_other_seed_other_bits(monkeypatch, tmp_path):
    first = finetune("pocket/xs", pocket_train(), **SETTINGS)
    other = finetune("pocket/xs", pocket_train(), **SETTINGS, seed=1)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "elsewhere"))
    again = finetune("pocket/xs", pocket_train(), **SETTINGS)
    assert again.folder != first.folder
    assert same(adapter(again), adapter(first))
    assert not same(adapter(other), adapter(first))


@pytest.mark.parametrize("lora", [LoRA(r=4), None], ids=["lora", "full"])
def test_a_killed_run_goes_on_and_ends_as_if_undisturbed(monkeypatch, tmp_path, lora):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 10)
    settings = SETTINGS | {"lora": lora, "epochs": 8}
    undisturbed = finetune("pocket/xs", pocket_train(), **settings)

    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "killed"))
    steps = 0

    def die_at_step_25(*arguments):
        nonlocal steps
        steps += 1
        if steps == 25:
            raise KeyboardInterrupt
        return schedule(*arguments)

    monkeypatch.setattr(training, "schedule", die_at_step_25)
    with pytest.raises(KeyboardInterrupt):
        finetune("pocket/xs", pocket_train(), **settings)
    assert finetune("pocket/xs", pocket_train(), **settings, stored_only=True) is None
    steps = 1000
    resumed = finetune("pocket/xs", pocket_train(), **settings)
    assert steps == 1000 + 32 - 20  # the first 20 steps were not done again
    file = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    assert same(load_file(resumed.folder / file), load_file(undisturbed.folder / file))
    assert resumed.metrics().equals(undisturbed.metrics())


def test_a_damaged_checkpoint_is_named(monkeypatch):
    run = finetune("pocket/xs", pocket_train(), **SETTINGS)
    (run.folder / "manifest.json").unlink()
    (run.folder / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*: delete this file and call finetune again"):
        finetune("pocket/xs", pocket_train(), **SETTINGS)


@pytest.mark.parametrize("tokens", [60, 9999])
def test_a_step_in_many_passes_equals_one_big_batch(monkeypatch, tmp_path, tokens):
    """With unequal numbers of supervised tokens in the passes."""
    settings = SETTINGS | {"batch_size": 13}
    whole = finetune("pocket/xs", pocket_train(13), **settings)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "elsewhere"))
    parts = finetune("pocket/xs", pocket_train(13), **settings, on=Placement(tokens=tokens))
    assert parts.config == whole.config
    assert parts.metrics()["loss"].to_list() == pytest.approx(whole.metrics()["loss"].to_list(), rel=1e-6)
    for name, weight in adapter(whole).items():  # AdamW divides by a gradient that may be rounding alone; lr is 5e-3
        torch.testing.assert_close(adapter(parts)[name], weight, rtol=1e-3, atol=1e-4)


def test_adapters_sit_on_all_linear_layers_but_the_head(qwen, llama):
    for name in (qwen, llama):
        model = trainable_model(load_student(name), LoRA(r=2), seed=0)
        adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
        assert len(adapted) == 2 * 7
        assert not any("head" in name or "embed" in name for name in adapted)


@pytest.mark.parametrize("lora", [LoRA(r=4), None], ids=["lora", "full"])
def test_a_real_architecture_trains_saves_and_reloads(qwen, llama, math_traces, lora):
    for name in (qwen, llama):
        run = finetune(name, math_train(math_traces), **SETTINGS | {"lora": lora})
        ids = torch.arange(3, 40)[None]
        trained = load_trained(run).model(ids).logits
        assert not torch.allclose(trained, load_student(name).model(ids).logits)
        if lora is None:  # the trained model is a student like any other
            torch.testing.assert_close(load_student(str(run.folder / "model")).model(ids).logits, trained)
        else:  # plain peft reads what we wrote, and it names the student, not where it lies
            plain = PeftModel.from_pretrained(load_student(name).model, run.folder / "adapter")
            torch.testing.assert_close(plain(ids).logits, trained)
            config = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == Path(name).name


def test_runs_name_no_path_of_this_machine(qwen, math_traces):
    for student, train in (("pocket/xs", pocket_train()), (qwen, math_train(math_traces))):
        run = finetune(student, train, **SETTINGS)
        for path in run.folder.rglob("*.*"):
            if path.suffix in (".json", ".md", ".jsonl"):
                assert '"/' not in path.read_text()
                assert str(run.folder.parent) not in path.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "pocket/huge"}, "pocket/xs, pocket/s, pocket/m, pocket/l, pocket/xl"),
        ({"student": "gpt"}, "unknown student 'gpt'"),
        ({"student": "nobody/no-such-model"}, "cannot load the student 'nobody/no-such-model'"),
        ({"student": None}, "student is None: it is a text"),
        ({"train": [{"question": "?"}]}, "the traces are a list: give one datasets.Dataset"),
        ({"train": pd.DataFrame({"question": ["?"]})}, "the traces are a DataFrame"),
        ({"train": DatasetDict()}, "the traces are a DatasetDict"),
        ({"lora": {"r": 4}}, "it is a LoRA, or None"),
        ({"on": {"gpus": 1}}, "it is a Placement"),
        ({"on": Placement(shard=True)}, "shard is True on 1 GPU"),
        ({"on": Placement(gpus=64)}, r"gpus is 64, this machine has \d"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": True}, "epochs is True"),
        ({"epochs": 2.0}, "epochs is 2.0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": "1e-3"}, "lr is '1e-3': it is a finite number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 30}, "32 of 32 examples have more than 30 tokens"),
        ({"too_long": "cut"}, "use one of error, drop"),
        ({"thinking": "yes"}, "thinking is 'yes': it is True or False, or None"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": None}, "seed is None"),
        ({"lora": LoRA(r=64)}, "r is 64: a LoRA of 'pocket/xs' has at most its width, 32"),
    ],
)
def test_bad_requests_are_refused_and_leave_no_folder(change, message):
    arguments = {"student": "pocket/xs", "train": pocket_train()} | SETTINGS | change
    with pytest.raises(ValueError, match=message):
        finetune(**arguments)
    assert not runs.runs_dir().exists() or not list(runs.runs_dir().iterdir())


@pytest.mark.parametrize("bad", [{"r": 0}, {"r": 2.5}, {"alpha": 0}, {"r": True}, {"alpha": 1.5}])
def test_an_adapter_that_trains_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="whole number, at least 1"):
        LoRA(**bad)


def test_natural_values_are_taken_as_they_are_meant(tmp_path):
    """numpy's numbers and a Path name the same run as Python's own."""
    train = pocket_train()
    run = finetune("pocket/xs", train, **SETTINGS)
    same_run = finetune(Path("pocket/xs"), train, **SETTINGS | {"lora": LoRA(r=np.int64(4)), "epochs": np.int64(2)})
    assert same_run == run


@pytest.mark.parametrize("seed", [20251127, 2**44 + 1, 2**63 - 1])
def test_large_seeds_are_seeds_like_any_other(seed):
    run = finetune("pocket/xs", pocket_train(8), **SETTINGS, seed=seed)
    assert run.config["seed"] == seed


def test_a_clock_that_stands_still_or_runs_backwards_ends_no_run(monkeypatch):
    times = itertools.chain([50.0], itertools.repeat(7.0))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(times))
    run = finetune("pocket/xs", pocket_train(8), **SETTINGS)
    assert run.manifest["seconds"] >= 0


def test_problems_are_no_traces():
    problems = load_problems("pocket/easy", n=3)
    table = Dataset.from_list([{"question": p.question, "answer": p.answer} for p in problems])
    with pytest.raises(ValueError, match="no column 'problem_id', 'response'"):
        finetune("pocket/xs", table)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(llama, tmp_path, math_traces):
    student = load_student(llama)
    word = student.tokenizer("What is 7")["input_ids"][-1]
    student.model.get_input_embeddings().weight.data[word] = float("inf")  # one word poisons the examples that hold it
    folder = tmp_path / "poisoned"
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    train = math_train(math_traces)
    with pytest.raises(
        RuntimeError, match=r"is nan and its gradient's norm nan at step \d+: lower lr .* not_finite.json"
    ):
        finetune(str(folder), train, **SETTINGS | {"batch_size": 1})
    (path,) = runs.runs_dir().rglob("not_finite.json")
    batch = files.read_json(path)
    (question,) = train[batch["rows"]]["question"]
    assert word in student.tokenizer(question)["input_ids"]
    assert batch["problem_ids"] == train[batch["rows"]]["problem_id"]
    assert not (path.parent / "manifest.json").exists()


def test_students_without_safetensors_are_refused(qwen, tmp_path, math_traces):
    model = load_student(qwen)
    folder = tmp_path / "pickled"
    model.model.config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    torch.save(model.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        finetune(str(folder), math_train(math_traces), **SETTINGS)


def test_pocket_rates_are_the_best_of_the_search():
    search = pd.read_csv(POCKET_DIR / "lr_search.csv")
    best = search.loc[search.groupby("student")["mean"].idxmax()]
    assert dict(zip(best["student"], best["lr"], strict=True)) == training.POCKET_LR
    assert set(training.POCKET_LR) == set(POCKET_BASES)


def test_the_schedule_warms_up_and_ends_near_zero():
    values = [schedule(step, 100) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[9] == 1.0
    assert values[-1] < 0.001
    assert values[9:] == sorted(values[9:], reverse=True)
