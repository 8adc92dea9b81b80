"""The notebooks at the scale of real models: everything comes from a Hub, here a small one with toys under the real
names.
"""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import REPO, SHAPE, write_jsonl
from datasets import concatenate_datasets
from hub import environment, jsonl, serve
from test_hub import data_set
from transformers import Qwen2Config, Qwen2ForCausalLM

from mixdistill import finetune, get_scale, load_traces
from mixdistill.data.problems import HUB

# With the smallest and the largest student: others add time and no code.
STUDENTS = ",".join(get_scale("gpu").students[:: len(get_scale("gpu").students) - 1])
# In a process of its own, as the Hub's address is read when its client is imported.
RUN = f"""
from in_process import ipython, run_in
given = {{"SCALE": "gpu", "STUDENTS": "{STUDENTS}"}}
with ipython() as shell:
    for name in ("01_traces", "02_learnability_gap", "03_mix_distillation", "06_teacher_gap"):
        print("".join(written.stdout for written in run_in(shell, name, given | {{"SEEDS": 1}})))
"""


BENCHMARK_ROWS = {
    "math500": [
        {"problem": f"What is {n} plus 20?", "answer": str(n + 20), "level": 1, "unique_id": f"test/{n}.json"}
        for n in range(4)
    ],
    "gsm8k": [{"question": f"What is {n} plus 30?", "answer": f"It is {n + 30}.\n#### {n + 30}"} for n in range(4)],
    "amc23": [{"id": n, "question": f"What is {n} plus 40?", "answer": n + 40.0} for n in range(4)],
    "aime24": [{"id": n, "problem": f"What is {n} plus 30?", "answer": f"0{n + 30}"} for n in range(4)],
    "olympiadbench": [
        {"id": n, "question": f"What is {n} plus 50?", "final_answer": [f"${n + 50}$"]} for n in range(4)
    ],
}


def trace_rows(end: str) -> list[dict]:
    return [{"problem": f"What is {n} plus 30?", "solution": f"{end}It is \\boxed{{{n + 30}}}."} for n in range(12)]


@pytest.fixture
def toy(bpe_tokenizer, tmp_path) -> dict[str, bytes]:
    """The files of a small Qwen2 with a real context that has learnt to box an answer and stop, whatever it is
    asked.
    """
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(bpe_tokenizer), **SHAPE | {"max_position_embeddings": 32_768})
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "raw")
    bpe_tokenizer.save_pretrained(tmp_path / "raw")
    file = write_jsonl(tmp_path / "first.jsonl", trace_rows(""))
    answer_formats = [
        load_traces(str(file), columns={"question": "problem", "response": "solution"}, answer_format=k)
        for k in ("math", "gsm8k")
    ]
    train = concatenate_datasets(answer_formats)
    run = finetune(str(tmp_path / "raw"), train, lora=None, lr=3e-3, epochs=25, batch_size=8, progress=False)
    return {path.name: path.read_bytes() for path in (run.folder / "model").iterdir()}


def test_the_notebooks_run_at_the_gpu_scale(toy, tmp_path):
    scale = get_scale("gpu")
    repos = dict.fromkeys(scale.students, toy)
    for part, start in (("long", "Wait. 1 2 3. "), ("short", ""), ("large", "So: "), ("small", "")):
        repos[getattr(scale, part).source] = {"data.jsonl": jsonl(trace_rows(start))}
    for name in scale.benchmarks:
        repos[HUB[name][0]] = data_set(name, BENCHMARK_ROWS[name])
    figures = get_scale("gpu", 1, STUDENTS).figures_dir()
    with serve(repos) as address:
        paths = os.pathsep.join([str(REPO), str(REPO / "tests")])
        variables = environment(tmp_path, HF_ENDPOINT=address, MIXDISTILL_RUNS=str(tmp_path / "runs"), PYTHONPATH=paths)
        done = subprocess.run([sys.executable, "-c", RUN], env=variables, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    gaps = pd.read_csv(figures / "data" / "gaps.csv").set_index("contrast")
    assert set(gaps.index) >= {"long-short", "mix_long-best", "large_teacher-small_teacher", "mix_large-best"}
    assert set(gaps["student"]) == {scale.students[0], scale.students[-1]}
    assert (gaps["n_problems"] == 20).all()
    by_benchmark = pd.read_csv(figures / "data" / "gaps_by_benchmark.csv")
    assert set(by_benchmark["benchmark"]) == set(scale.benchmarks)
    assert {path.name for path in figures.glob("*.png")} == {
        "01_trace_lengths.png",
        "02_learnability_gap.png",
        "06_teacher_gap.png",
        "02_paper_table1.png",
        "03_mix_distillation.png",
        "03_every_student.png",
    }
    assert "pocket/" not in done.stdout
