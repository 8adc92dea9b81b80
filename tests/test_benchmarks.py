"""The benchmarks run as the README says, and end with what they promise."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPO


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


def test_decoding_beside_generate_says_the_same():
    table = pd.read_csv(REPO / "benchmarks" / "decode.csv")
    assert (table["answers_that_differ"] == 0).all()
    process = run("decode", "--student", "pocket/xs", "--rows", "6", "--new-tokens", "20", "--rounds", "1")
    assert process.returncode == 0, process.stderr
    assert "generate, static cache" in process.stdout
