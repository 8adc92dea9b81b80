"""vLLM needs an NVIDIA GPU. Here a stand-in with its interface (as of 0.30) decodes with transformers, which tests what
is ours: what vLLM is asked for, and what becomes of its answers."""

import os
import shutil
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma3Config, MixtralConfig, Qwen2Config

from mixdistill import LoRA, Sampling, evaluate, finetune, load_problems, load_traces
from mixdistill.data.chat import prompt_ids
from mixdistill.data.students import load_tokenizer
from mixdistill.generation.vllm_engine import divides, open_vllm, why_not


@pytest.mark.parametrize(
    ("heads", "kv", "width", "fits"),
    [(14, 2, 4864, [1, 2]), (28, 4, 18944, [1, 2, 4]), (12, 2, 8960, [1, 2, 4]), (32, 8, 14336, [1, 2, 4, 8])],
    ids=["qwen2.5-0.5b", "qwen2.5-7b", "qwen2.5-1.5b", "llama-3.1-8b"],
)
def test_a_model_is_shared_out_to_as_many_gpus_as_its_heads_keys_and_widths_allow(heads, kv, width, fits):
    config = Qwen2Config(num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=width)
    assert [n for n in range(1, 9) if divides(n, config)] == fits


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool
    seed: int | None


@dataclass
class LLM:
    abort_last = False  # what a test sets

    model: str
    revision: str | None
    skip_tokenizer_init: bool
    dtype: str
    tensor_parallel_size: int
    max_model_len: int
    generation_config: str
    trust_remote_code: bool
    seed: int
    gpu_memory_utilization: float
    enable_lora: bool = False
    max_lora_rank: int = 16

    def generate(self, prompts, sampling_params, lora_request, use_tqdm):
        model = AutoModelForCausalLM.from_pretrained(self.model)
        assert (lora_request is not None) == self.enable_lora
        if lora_request:
            model = PeftModel.from_pretrained(model, lora_request.path)
            assert model.peft_config["default"].r <= self.max_lora_rank
        outputs = []
        for prompt, choice in zip(prompts, sampling_params, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            new = model.generate(
                input_ids=ids, max_new_tokens=choice.max_tokens, do_sample=False, eos_token_id=choice.stop_token_ids
            )[0, ids.shape[1] :].tolist()
            reason = "stop" if new[-1] in choice.stop_token_ids else "length"
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new), finish_reason=reason)]))
        if self.abort_last:
            outputs[-1].outputs[0].finish_reason = "abort"
        return outputs


@dataclass
class LoRARequest:
    name: str
    number: int
    path: str


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    package = ModuleType("vllm")
    package.__spec__ = SimpleNamespace(name="vllm")
    package.LLM, package.SamplingParams = LLM, SamplingParams
    inputs, request = ModuleType("vllm.inputs"), ModuleType("vllm.lora.request")
    inputs.TokensPrompt, request.LoRARequest = dict, LoRARequest
    modules = {
        "vllm": package,
        "vllm.inputs": inputs,
        "vllm.lora": ModuleType("vllm.lora"),
        "vllm.lora.request": request,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


COLUMNS = ["problem_id", "response", "answer", "correct", "finish_reason", "n_tokens", "loop"]


@pytest.mark.parametrize("lora", [LoRA(r=4), None])
def test_a_run_gives_the_same_items_as_with_transformers(qwen, math_traces, math_problems, lora, tmp_path, monkeypatch):
    train = load_traces(str(math_traces), columns={"question": "problem", "response": "solution"})
    run = finetune(qwen, train, lora=lora, lr=1e-2, epochs=10, batch_size=4, progress=False)
    problems = load_problems(str(math_problems), columns={"question": "problem"})
    static = evaluate(run, [problems], max_new_tokens=16, progress=False)
    (static.folder / "scores.json").unlink()
    static.folder.rename(tmp_path / "static")
    scores = evaluate(run, [problems], max_new_tokens=16, engine="vllm", progress=False)
    assert scores.items[COLUMNS].equals(static.items[COLUMNS])
    assert set(scores.items["engine"]) == {"vllm"}
    monkeypatch.delitem(sys.modules, "vllm")  # a laptop reads what a GPU has computed
    assert evaluate(run, [problems], max_new_tokens=16, stored_only=True).items.equals(scores.items)


def test_a_student_that_was_changed_is_no_base_of_an_adapter(qwen, math_traces, math_problems, tmp_path):
    mine = shutil.copytree(qwen, tmp_path / "mine")
    train = load_traces(str(math_traces), columns={"question": "problem", "response": "solution"})
    run = finetune(str(mine), train, lora=LoRA(r=4), epochs=1, progress=False)
    model = AutoModelForCausalLM.from_pretrained(mine)
    model.lm_head.weight.data += 1
    model.save_pretrained(mine)
    problems = load_problems(str(math_problems), columns={"question": "problem"})
    with pytest.raises(ValueError, match="is not what it was when the run"):
        evaluate(run, [problems], max_new_tokens=4, engine="vllm", progress=False)


def test_an_aborted_completion_is_an_error_and_not_a_missing_row(qwen, monkeypatch):
    monkeypatch.setattr(LLM, "abort_last", True)
    tokenizer, _, complete = open_vllm(qwen, None, None, 0)
    prompts = [prompt_ids(tokenizer, question, "math") for question in ("1?", "2?")]
    with pytest.raises(RuntimeError, match="vLLM aborted 1 of 2 completions"):
        complete(prompts, 4, Sampling())


def test_the_tokenizer_is_the_students_own(qwen):
    tokenizer, context, _ = open_vllm(qwen, None, None, 0)
    assert tokenizer.get_vocab() == load_tokenizer(qwen).get_vocab()
    assert context == 512


def test_it_starts_with_room_for_the_longest_answer_and_does_not_run_the_callers_script(qwen, monkeypatch):
    """Whole contexts of 131,072 tokens would not fit a card of 24 GB."""
    made, main = [], sys.modules["__main__"]
    init = LLM.__init__
    monkeypatch.setattr(
        LLM, "__init__", lambda self, **how: (made.append((how, sys.modules["__main__"])), init(self, **how))[1]
    )
    tokenizer, _, complete = open_vllm(qwen, None, None, 0)
    assert not made
    prompts = [prompt_ids(tokenizer, question, "math") for question in ("What is 1 plus 2?", "2?")]
    complete(prompts, 7, Sampling())
    complete(prompts[1:], 7, Sampling())
    ((how, seen),) = made
    assert how["max_model_len"] == len(prompts[0]) + 7
    assert seen is not main is sys.modules["__main__"]
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_an_engine_that_does_not_start_binds_no_evaluation_to_itself(qwen, math_problems, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("no room")

    problems = load_problems(str(math_problems), columns={"question": "problem"})
    with monkeypatch.context() as patch:
        patch.setattr(LLM, "__init__", full)
        with pytest.raises(RuntimeError, match="no room"):
            evaluate(qwen, [problems], max_new_tokens=4, engine="vllm", progress=False)
    scores = evaluate(qwen, [problems], max_new_tokens=4, engine="static", progress=False)
    assert set(scores.items["engine"]) == {"static"}


def test_what_vllm_would_read_otherwise_than_it_was_trained_is_for_static():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
    long = SimpleNamespace(rope_parameters=rope)
    long.get_text_config = lambda decoder: long
    assert "LongRoPE" in why_not("phi", long, 0)
    assert why_not("gemma", Gemma3Config(), 0) == "the text part of a multimodal student"
    assert why_not("moe", MixtralConfig(), 0) == ""
    assert "adapters of experts" in why_not("moe", MixtralConfig(), 16)
    assert why_not("model.gguf", Qwen2Config(), 0) == "a .gguf file"
    assert why_not("model", Qwen2Config(), 64) == ""


def test_a_rank_that_vllm_does_not_serve_is_refused(qwen, tmp_path):
    with pytest.raises(
        ValueError, match=r"does not serve an adapter of rank 1024 \(at most 512\): use engine='static'"
    ):
        open_vllm(qwen, None, tmp_path, 1024)


def test_every_completion_is_asked_for_with_its_own_seed(qwen, monkeypatch):
    seen = []
    generate = LLM.generate
    monkeypatch.setattr(
        LLM,
        "generate",
        lambda self, prompts, choices, **more: (seen.append(choices), generate(self, prompts, choices, **more))[1],
    )
    tokenizer, _, complete = open_vllm(qwen, None, None, 0)
    prompts = [prompt_ids(tokenizer, question, "math") for question in ("1?", "2?")]
    complete(prompts, 4, Sampling(1.0), [7, 8])
    complete(prompts, 4, Sampling())
    assert [[choice.seed for choice in choices] for choices in seen] == [[7, 8], [None, None]]
