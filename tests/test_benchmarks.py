"""The benchmarks run as the README says, and end with what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import REPO, write_jsonl

from benchmarks import decode, laptop
from mixdistill.results import stats
from mixdistill.results.redraw import levels, redraw


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", *arguments],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )


def test_the_comparison_ends_with_one_line_of_json():
    pytest.importorskip("trl")
    process = run("train", "--students", "tiny", "--longest", "300", "--steps", "2", "--rounds", "1", "--json")
    assert process.returncode == 0, process.stderr
    *_, last = process.stdout.strip().splitlines()
    result = json.loads(last)
    assert result["speedup_over_trl"] > 0
    assert result["time_over_bare"] > 0
    assert result["students"].keys() == {"tiny"}
    for row in result["students"].values():
        assert row["ours_tokens_per_second"] > 0
        assert "per_device_train_batch_size" in row["trl_settings"]
    assert "| tiny |" in process.stdout


def test_the_measured_cost_is_linear_in_supervised_tokens():
    table = pd.read_csv(REPO / "benchmarks" / "cost.csv")
    assert table["supervised_tokens"].min() < 2e4
    assert table["supervised_tokens"].max() > 0.9e7
    per_token = table["cpu_seconds"] / table["supervised_tokens"]
    assert per_token[table["supervised_tokens"] > 1e5].agg(lambda part: part.max() / part.min()) < 1.5  # linear


def test_decoding_beside_generate_says_the_same(monkeypatch, capsys):
    table = pd.read_csv(REPO / "benchmarks" / "decode.csv")
    assert (table["answers_that_differ"] == 0).all()
    few = ["--student", "pocket/xs", "--rows", "6", "--new-tokens", "20", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["decode", *few])
    decode.main()
    assert "generate, static cache" in capsys.readouterr().out


def test_the_laptop_traces_are_those_that_are_right_on_the_same_untested_problems(tmp_path):
    clones, out = tmp_path / "clones", tmp_path / "out"
    eit, mentor = clones / "EIT-NLP/Distilling-CoT-Reasoning/data", clones / "2hojae/mentor-kd/data"

    def write(path, *rows, columns=("instruction", "output")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in rows]))

    golds = [("Ann has 2 pens and buys 3. How many?", "5"), ("Bo had $ 1,200. He lost 200. What is left?", "1000")]
    write(eit / "SVAMP_only_ans.json", *golds)
    write(eit / "gsm_train_onlyans.json", *golds)
    for teacher, last in (("ChatGPT", 6), ("gemini", 6), ("llama", 4)):
        for level in range(1, last + 1):
            wrong = teacher == "gemini" and level == 2
            second = (golds[1][0], "It is 1,200 - 200. The answer is 900" if wrong else "The answer is 1,000.")
            write(
                eit / f"SVAMP_{teacher}_level{level}_ranked.json", second, (golds[0][0], "2 + 3 = 5. The answer is 5")
            )
    for teacher in ("gemini", "llama"):
        for level in (1, 2):
            write(eit / f"gsm8k_{teacher}_level{level}_ranked.json", *[(q, f"The answer is {a}") for q, a in golds])
    asked = ("input", "answer")
    test = ("Cy has 4 cats.  How many cats?\n", "4")
    write(mentor / "skeleton/svamp_train.json", (golds[0][0], "5"), test, columns=asked)
    write(mentor / "skeleton/svamp_test.json", (golds[1][0] + "\n", "1000"), columns=asked)
    chain = ("input", "chain", "answer", "initial_correct")
    three = [(golds[0][0], "It is 6.", "5", False), (golds[0][0], "5 pens of 5.", "5", True)]
    three += [(golds[0][0], "So 5.", "5", True), (test[0], "4 cats.", "4", True), (golds[1][0], "1000.", "1000", True)]
    write(mentor / "main/svamp_3_train.json", *three, columns=chain)
    small = [(q, chain, "25.0", a, right) for q, chain, a, right in three[:-1]]
    columns = ("input", "chain", "completion", "answer", "initial_correct")
    write(mentor / "aug/flan-t5_large/svamp_rand3_aug3.json", *small, columns=columns)

    process = run("laptop_traces", "--clones", str(clones), "--out", str(out))
    assert process.returncode == 0, process.stderr
    found = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in out.glob("*.jsonl")}
    assert len(found) == 6 + 6 + 4 + 4 + 2 + 1
    assert found["svamp_test"] == [{"question": "Cy has 4 cats.  How many cats?", "answer": "4"}]
    pens = {"question": golds[0][0], "response": "2 + 3 = 5. The answer is 5", "answer": "5"}
    assert found["svamp_llama_level1"] == found["svamp_chatgpt_level6"] == [pens]  # one teacher has the other wrong
    assert [row["question"] for row in found["gsm8k_gemini_level2"]] == [question for question, _ in golds]
    assert found["svamp_flant5large"] == [pens | {"response": "5 pens of 5. The answer is 5."}]

    (eit / "SVAMP_only_ans.json").unlink()
    assert "SVAMP_only_ans.json is missing" in run("laptop_traces", "--clones", str(clones), "--out", str(out)).stderr


def test_rates_are_tried_on_held_out_problems_and_those_of_another_student_refused(qwen, llama, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_DATA", "")  # which it sets
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(18)]
    for name, part in (("svamp_test", rows[14:]), ("svamp_llama_level1", rows[:14]), ("svamp_llama_level4", rows[:14])):
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"response": f"It is {row['answer']}."} for row in part])
    held_out, sweep = {}, laptop.sweep

    def seen(*given, **options):
        folder = Path(os.environ["MIXDISTILL_DATA"])
        held_out.update({path.stem: path.read_text() for path in folder.glob("*.jsonl")})
        return sweep(*given, **options)

    monkeypatch.setattr(laptop, "sweep", seen)
    for rate in ("1e-3", "2e-3"):
        choose_rates(qwen, tmp_path, rate)
    rates = pd.read_csv(tmp_path / "out" / "rates.csv")
    assert sorted(zip(rates["lr"], rates["recipe"], strict=True)) == [
        (lr, recipe) for lr in (1e-3, 2e-3) for recipe in ("long", "mix_long", "short")
    ]
    asked = [json.loads(line)["question"] for line in held_out["svamp_test"].splitlines()]
    trained = held_out["svamp_llama_level1"]
    assert asked == [rows[0]["question"], rows[7]["question"]]
    assert trained.count("\n") == 12
    assert not any(question in trained for question in asked)
    for rate in ("0", "nan"):
        with pytest.raises(SystemExit, match="one of rates is"):
            choose_rates(qwen, tmp_path, rate)
    with monkeypatch.context() as patch:
        patch.setattr(laptop, "FIRST_RATE_SEED", 2000)  # other seeds than those of the rates that are there
        with pytest.raises(SystemExit, match=r"rates\.csv has the rate 0\.001 of long with other seeds"):
            choose_rates(qwen, tmp_path, "4e-3")
    with pytest.raises(SystemExit, match=r"out is of another student \(toy-qwen\), or this from"):
        choose_rates(llama, tmp_path, "1e-3")
    (tmp_path / "out/made_from.json").unlink()
    with pytest.raises(SystemExit, match=r"rates.csv is of toy-qwen: give '.*toy-llama' another --out"):
        choose_rates(llama, tmp_path, "1e-3")
    (tmp_path / "out/made_from.json").unlink()
    good = (tmp_path / "out/rates.csv").read_text()
    for damaged in (
        good.replace(",epochs", ""),
        good[: good.rindex("toy")],
        good.replace("toy-qwen,", "toy-qwen,x"),
        "",
    ):
        (tmp_path / "out/rates.csv").write_text(damaged)
        with pytest.raises(SystemExit, match=r"rates\.csv"):
            choose_rates(qwen, tmp_path, "1e-3")
    (tmp_path / "out/rates.csv").write_text(good)
    (tmp_path / "svamp_llama_level4.jsonl").write_text("{")
    with pytest.raises(SystemExit, match=r"svamp_llama_level4\.jsonl"):
        choose_rates(qwen, tmp_path, "1e-3")


def test_rates_delete_nothing_of_the_users_and_are_not_tried_where_files_would_be_mistaken(qwen, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_DATA", "")  # which it sets
    traces = tmp_path / "out" / "rates"
    traces.mkdir(parents=True)
    rows = [{"question": f"What is {n}?", "answer": str(n), "response": f"It is {n}."} for n in range(9)]
    for name in ("svamp_test", "svamp_llama_level1", "svamp_llama_level4"):
        write_jsonl(traces / f"{name}.jsonl", rows)
    choose_rates(qwen, traces, "1e-3", tmp_path / "out")
    monkeypatch.chdir(traces)
    with pytest.raises(SystemExit, match="lies in the working folder"):
        choose_rates(qwen, traces, "1e-3", tmp_path)
    assert len(list(traces.iterdir())) == 3


def test_the_best_rate_is_one_of_rates_that_were_tried_alike(tmp_path, capsys):
    rows = [("short", 1000, 0.1, 0.5, 5e-4), ("short", 1001, 0.1, 0.6, 5e-4), ("short", 1000, 0.1, 0.52, 1e-3)]
    table = pd.DataFrame(rows, columns=["recipe", "seed", "accuracy", "loss", "lr"])
    table.assign(family="long", student="s", epochs=1).to_csv(tmp_path / "rates.csv", index=False)
    with pytest.raises(ValueError, match=r"not all rates of long in rates\.csv were tried with the same"):
        laptop.best_rate(tmp_path, "s", "long")
    table[table["seed"] == 1000].assign(family="long", student="s", epochs=1).to_csv(
        tmp_path / "rates.csv", index=False
    )
    assert laptop.best_rate(tmp_path, "s", "long") == 5e-4
    assert "long: the best of 2 rates, 0.0005, 0.001" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"rates\.csv has no rate of large"):
        laptop.best_rate(tmp_path, "s", "large")


def answers(recipe: str, n: int, rate: float, of_seed: float = 0.0) -> pd.DataFrame:
    """Three seeds' answers to n problems that differ in how hard they are, and seeds in how much they know."""
    draw = np.random.default_rng([n, len(recipe)])
    ease, luck = draw.normal(0, 0.4, n), of_seed * np.array([-1, 0, 1])
    rows = [(seed, f"{i}", draw.random() < rate + ease[i] + luck[seed]) for seed in range(3) for i in range(n)]
    table = pd.DataFrame(rows, columns=["seed", "problem_id", "correct"])
    how = {"finish_reason": "stop", "reason": "equal", "loop": False, "n_tokens": 9, "sample": 0}
    return table.assign(student="s", params=5, benchmark="svamp", recipe=recipe, **how)


def test_so_many_problems_tell_two_points_from_0_and_no_number_where_seeds_differ_more():
    few = laptop.problems_for_2_points(answers("long", 600, 0.5), answers("short", 600, 0.5))
    found = stats.gap(answers("long", few, 0.5), answers("short", few, 0.5))
    assert found.se == pytest.approx(0.02 / 2.9, rel=0.3)
    assert laptop.problems_for_2_points(answers("long", 600, 0.5, of_seed=0.2), answers("short", 600, 0.5)) is None


def test_recipes_are_compared_with_the_untouched_student_which_was_asked_once():
    untouched = answers("untouched", 50, 0.2).query("seed == 0")
    items = pd.concat([untouched, answers("short", 50, 0.6), answers("long", 50, 0.5)])
    table = laptop.gaps_and_what_decides_them(items).set_index("contrast")
    assert list(table.index) == ["long-short", "short-untouched", "long-untouched"]
    means = items.groupby("recipe")["correct"].mean()
    assert table.loc["long-untouched", "delta"] == pytest.approx(means["long"] - means["untouched"])
    assert (table["ci_low"] < table["delta"]).all()


def test_tables_of_a_stage_keep_the_rows_of_other_rates_and_are_of_one_student(tmp_path):
    part = [answers(recipe, 9, rate) for recipe, rate in (("untouched", 0.2), ("short", 0.6), ("long", 0.5))]
    items = pd.concat(part).assign(answer="1", n_tokens=5).query("recipe != 'untouched' or seed == 0")
    for lr in (5e-4, 2e-3, 5e-4):
        rates = np.where(items["recipe"] == "untouched", np.nan, lr)
        laptop.save(items.assign(lr=rates), "svamp", tmp_path)
    table, gaps = pd.read_csv(tmp_path / "svamp.csv"), pd.read_csv(tmp_path / "svamp_gaps.csv")
    assert table["lr"].fillna(0).tolist() == [0, 5e-4, 5e-4, 2e-3, 2e-3]
    assert gaps["lr"].tolist() == [5e-4] * 3 + [2e-3] * 3
    assert len(pd.read_csv(tmp_path / "svamp_items.csv.gz")) == 9 + 2 * 2 * 27
    with pytest.raises(ValueError, match=r"svamp\.csv is of s: give another --out"):
        laptop.others_rates(tmp_path / "svamp.csv", pd.DataFrame({"student": ["other"], "lr": [5e-4]}))
    (tmp_path / "svamp.csv").write_text("x")
    with pytest.raises(ValueError, match="is damaged"):
        laptop.others_rates(tmp_path / "svamp.csv", table)


def test_levels_and_shares_are_compared_with_level_1_of_their_teacher_over_the_seeds_of_both(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    names = {"Llama level 1": 0.5, "Llama level 2": 0.4, "Llama share 0.2": 0.6, "GPT-4o level 6": 0.5}
    items = pd.concat([answers(name, 50, rate) for name, rate in names.items()])
    items = items[(items["recipe"] != "Llama level 2") | (items["seed"] == 1)].assign(lr=2e-3, answer="1")
    laptop.save(items, "levels", data)
    table = pd.read_csv(data / "levels_gaps.csv").set_index("control")
    assert list(table.index) == ["Llama level 2", "Llama share 0.2"]  # no level 1 of GPT-4o
    assert list(table["n_seeds"]) == [1, 3]
    means = items[items["seed"] == 1].groupby("recipe")["correct"].mean()
    expected = means["Llama level 2"] - means["Llama level 1"]
    assert table.loc["Llama level 2", "delta"] == pytest.approx(expected, abs=1e-6)
    laptop.save(items[items["recipe"] != "Llama level 2"], "levels", data)
    assert len(pd.read_csv(data / "levels_gaps.csv")) == 2  # the row of an earlier call stays
    assert redraw(tmp_path)[0].endswith("levels.png")
    figure = levels(pd.read_csv(data / "levels_gaps.csv"))
    labels = {label.get_text() for axes in figure.axes for label in axes.get_yticklabels()}
    assert labels == {"Llama level 2 (one seed)", "Llama share 0.2"}
    laptop.save(items[items["recipe"] == "GPT-4o level 6"], "levels", tmp_path)  # where its level 1 failed
    assert not (tmp_path / "levels_gaps.csv").exists()


def test_the_published_levels_are_those_of_their_items():
    data = REPO / "figures" / "laptop" / "data"
    items = pd.read_csv(data / "levels_items.csv.gz")
    gaps = pd.read_csv(data / "levels_gaps.csv").set_index("control")
    table = pd.read_csv(data / "levels.csv").set_index("recipe")
    again = laptop.level_gaps(items.assign(sample=0)).set_index("control")[["delta", "ci_low", "ci_high"]]
    np.testing.assert_allclose(again, gaps.loc[again.index, again.columns], atol=1e-6)
    means = items.groupby("recipe")["correct"].mean()
    np.testing.assert_allclose(means, table.loc[means.index, "accuracy"], atol=1e-6)


def test_traces_of_a_later_stage_are_read_before_the_first_begins(qwen, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_DATA", "")  # which it sets
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(9)]
    of = ("test", *(f"llama_level{n}" for n in range(1, 5)), "chatgpt_level1", "chatgpt_level6")
    for name in of:
        made = [row | {"response": f"It is {row['answer']}."} for row in rows]
        made[2]["response"] = "<|im_end|> It is 3." if name == "chatgpt_level6" else made[2]["response"]
        write_jsonl(tmp_path / f"svamp_{name}.jsonl", made)
    how = ["--student", qwen, "--traces", str(tmp_path), "--out", str(tmp_path / "out"), "--families", "long"]
    with pytest.raises(SystemExit, match=r"svamp_chatgpt_level6\.jsonl, .*: row 2 of the traces .*control tokens"):
        laptop.main([*how, "--lr", "1e-3", "--stages", "svamp", "levels", "--seeds", "1"])
    assert not (tmp_path / "out").exists()


def test_an_arm_that_fails_stops_no_other_seed_and_is_said(qwen, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_DATA", "")  # which it sets
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(9)]
    for name in ("svamp_test", "svamp_llama_level1", "svamp_llama_level4"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"response": f"It is {row['answer']}."} for row in rows])

    def run_arms(arms, own, workers):
        made = {arm: answers(arm.recipe, 9, 0.5).query("seed == 0").drop(columns=["student", "seed"]) for arm in arms}
        failing = [arm for arm in arms if (arm.recipe, arm.seed) == ("long", 1)]
        found = {arm: SimpleNamespace(items=made[arm].assign(answer="1")) for arm in arms}
        return [*(found | dict.fromkeys(failing, RuntimeError("no room"))).values()]

    monkeypatch.setattr(laptop, "run_arms", run_arms)
    of = ["--student", qwen, "--traces", str(tmp_path), "--out", str(tmp_path / "out"), "--families", "long"]
    for lr in ("6.25e-5", "1e-3"):
        with pytest.raises(SystemExit, match="svamp, long, seed 1: no room"):
            laptop.main([*of, "--lr", lr, "--stages", "svamp", "--seeds", "3"])
    table, items = (pd.read_csv(tmp_path / "out" / f"svamp{end}") for end in (".csv", "_items.csv.gz"))
    assert table["lr"].fillna(0).tolist() == [0, *[1e-3] * 3, *[6.25e-5] * 3]
    assert set(table["n_seeds"]) == {1, 2}
    assert len(items) == len(items.drop_duplicates(["recipe", "lr", "seed", "problem_id"])) == 9 * (1 + 2 * 3 * 2)


def test_tables_are_written_of_what_the_store_holds_without_any_training(qwen, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_DATA", "")  # which it sets
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(9)]
    sets = [
        f"svamp_{of}" for of in ("test", *(f"llama_level{n}" for n in range(1, 5)), "chatgpt_level1", "chatgpt_level6")
    ]
    for name in sets:
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"response": f"It is {row['answer']}."} for row in rows])
    of = ["--student", qwen, "--traces", str(tmp_path), "--out", str(tmp_path / "out"), "--families", "long"]
    of += ["--lr", "1e-3", "--seeds", "1", "--stages", "levels", "--stored-only"]
    epochs = []
    stored = {"Llama level 1", "Llama level 3", "Llama share 0.2", "GPT-4o level 6"}

    def run_arm(arm, own, stored_only):
        assert stored_only
        epochs.append(own.epochs)
        made = answers(arm.recipe, 9, 0.5).query("seed == 0").drop(columns=["student", "seed"])
        return SimpleNamespace(items=made.assign(answer="1")) if arm.recipe in stored else None

    monkeypatch.setattr(laptop, "run_arm", run_arm)
    with pytest.raises(SystemExit, match="levels, Llama level 2, seed 0: not in the store"):
        laptop.main(of)
    assert set(pd.read_csv(tmp_path / "out" / "levels.csv")["recipe"]) == stored
    assert list(pd.read_csv(tmp_path / "out" / "levels_gaps.csv")["control"]) == ["Llama level 3", "Llama share 0.2"]
    assert set(epochs) == {2}
    with pytest.raises(SystemExit, match="levels, Llama level 2, seed 0: not in the store"):
        laptop.main([*of, "--epochs", "1"])  # beside those of the scale's epochs
    assert epochs[-1] == 1
    tables = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"levels.csv", "levels_epochs1.csv", "levels_epochs1_gaps.csv", "levels_epochs1_items.csv.gz"} < tables
    other = copytree(qwen, tmp_path / Path(qwen).name)  # another student of the same name
    (other / "chat_template.jinja").write_text((other / "chat_template.jinja").read_text() + "{# #}")
    with pytest.raises(SystemExit, match=r"out is of another student \(toy-qwen\), or this from another place"):
        laptop.main(["--student", str(other), *of[2:]])
    write_jsonl(tmp_path / "svamp_llama_level2.jsonl", [row | {"response": f"{row['answer']}."} for row in rows])
    with pytest.raises(SystemExit, match=r"out is of svamp_llama_level2\.jsonl of other content: give another"):
        laptop.main(of)
    with pytest.raises(SystemExit, match="epochs is 0: it is a whole number, at least 1"):
        laptop.main([*of, "--epochs", "0"])
    with pytest.raises(SystemExit, match="--stored-only trains nothing, and the stage rates does"):
        laptop.main([*of, "--stages", "rates"])


def choose_rates(student: str, folder: Path, rate: str, out: Path | None = None) -> None:
    of = ["--student", student, "--traces", str(folder), "--out", str(out or folder / "out"), "--families", "long"]
    how = ["--stages", "rates", "--rate-seeds", "1", "--rates", rate, "--workers", "1", "--seeds", "1"]
    laptop.main([*of, *how])
