"""Fixtures: a run store of the test's own, and random-weight Qwen2 and Llama students with a real byte-level BPE
tokenizer.
"""

import gc
import os

gc.disable()  # until all is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network; read when transformers is imported
# One process of the tests a core, with all that it starts: threads that share cores wait for each other, and a sweep of
# a notebook starts a worker a core.
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mixdistill.study.scales import Scale, TraceSet, get_scale

gc.freeze()  # what is imported stays, and need not be searched again and again
gc.enable()

REPO = Path(__file__).parents[1]
SHARED_BENCHMARKS = REPO.parent / "shared" / "benchmarks"
SHARED_TRACES = SHARED_BENCHMARKS.with_name("traces")

# The part of Qwen2.5's template that matters here: a role header, and a newline after the stop token.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "What is 12 plus 30? It is \\boxed{42}.",
    "Solve the following math problem. Final Answer: \\boxed{7}",
    "user assistant",
]


# Files that take minutes: they come first, so that no process is left with them at the end.
FIRST = (
    *("test_notebooks.py", "test_reproduce.py", "test_faults.py", "test_gpu_scale.py", "test_cluster.py"),
    *("test_real_model.py", "test_grid.py", "test_gpus.py", "test_sweep.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a core; of two cores four, as a third of the time goes by in waiting for processes that start."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores, min(2 * cores, 4))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """Every test has a run store of its own."""
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def qwen(tmp_path_factory, bpe_tokenizer) -> str:
    """Folder of a random Qwen2 with tied embeddings and grouped-query attention."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(bpe_tokenizer), tie_word_embeddings=True, **SHAPE)
    return _save(Qwen2ForCausalLM(config), bpe_tokenizer, tmp_path_factory.mktemp("models") / "toy-qwen")


@pytest.fixture(scope="session")
def llama(tmp_path_factory, bpe_tokenizer) -> str:
    """Folder of a random Llama with a head of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(bpe_tokenizer), tie_word_embeddings=False, **SHAPE)
    return _save(LlamaForCausalLM(config), bpe_tokenizer, tmp_path_factory.mktemp("models") / "toy-llama")


def _save(model, tokenizer, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def math_traces(tmp_path) -> Path:
    """A JSONL file with the columns of the published trace sets."""
    rows = [{"problem": f"What is {n} plus 30?", "solution": f"It is \\boxed{{{n + 30}}}."} for n in range(12)]
    return write_jsonl(tmp_path / "traces.jsonl", rows)


@pytest.fixture
def math_problems(tmp_path) -> Path:
    rows = [{"problem": f"What is {n} plus 20?", "answer": str(n + 20)} for n in range(6)]
    return write_jsonl(tmp_path / "problems.jsonl", rows)


@pytest.fixture
def real_scale(qwen, llama, tmp_path) -> Scale:
    """The gpu scale with two random students, and short files of the published schemas in the place of its data
    sets.
    """
    questions = [f"What is {n} plus 30?" for n in range(12)]
    words = {"long": "Let me think. Wait, let me check. ", "short": "", "large": "We add. ", "small": "So "}
    files = {
        part: write_jsonl(
            tmp_path / f"{part}.jsonl",
            [{"problem": q, "solution": f"{text}It is \\boxed{{{n + 30}}}."} for n, q in enumerate(questions)],
        )
        for part, text in words.items()
    }
    tests = [{"question": f"What is {n} plus 20?", "answer": str(n + 20)} for n in range(5)]
    return replace(
        get_scale("gpu", 1),
        students=(qwen, llama),
        alpha_student=qwen,
        benchmarks=(str(write_jsonl(tmp_path / "test.jsonl", tests)),),
        max_tokens=256,
        max_new_tokens=12,
        **{part: TraceSet(str(file), question="problem", response="solution") for part, file in files.items()},
    )


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
