"""The plan of a step: the fastest that fits, whatever is asked for kept, and all plans compute the same."""

import pytest
import torch
from transformers import Qwen2Config

from mixdistill import LoRA, finetune, load_traces
from mixdistill.finetuning.memory import (
    MemoryPlan,
    choose_memory_plan,
    estimate,
    is_out_of_memory,
    out_of_memory_advice,
)

GB = 10**9
QWEN_7B = Qwen2Config(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)


def plan_for(free: int, longest: int = 16_384, **settings) -> MemoryPlan:
    return choose_memory_plan(QWEN_7B, longest, free, **{"lora_rank": 16} | settings)


def test_less_memory_takes_more_frugal_plans():
    plans = [plan_for(free * GB, longest=4096) for free in (1000, 60, 24, 10)]
    assert plans[0] == MemoryPlan(16_384, why=plans[0].why)
    assert plans[1].micro_batch_tokens < plans[0].micro_batch_tokens or plans[1].checkpointing
    assert plans[2].checkpointing
    assert "DOES NOT FIT" in plans[3].why
    assert all(
        estimate(QWEN_7B, plan, 16) < 0.92 * free * GB for plan, free in zip(plans[:3], (1000, 60, 24), strict=True)
    )


def test_16k_tokens_of_7b_fit_80_gb_with_adapters():
    plan = plan_for(79 * GB)
    assert plan.micro_batch_tokens == 16_384
    assert "fits" in plan.why


def test_weights_are_shared_out_only_where_a_copy_does_not_fit():
    assert not plan_for(79 * GB, gpus=8).shard
    assert plan_for(60 * GB, gpus=8, lora_rank=None).shard


def test_what_is_asked_for_is_kept():
    plan = plan_for(1000 * GB, checkpointing=True, offload=True, micro_batch_tokens=20_000)
    assert (plan.checkpointing, plan.offload, plan.micro_batch_tokens) == (True, True, 20_000)
    assert not plan_for(10 * GB, checkpointing=False).checkpointing
    assert plan_for(1000 * GB, gpus=2, shard=True).shard
    assert plan_for(None, longest=300, micro_batch_tokens=100).micro_batch_tokens == 300  # no example is split


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match="offload moves what checkpointing keeps"):
        plan_for(80 * GB, offload=True, checkpointing=False)
    with pytest.raises(ValueError, match="offload moves activations off a GPU"):
        plan_for(None, offload=True)
    with pytest.raises(ValueError, match="shard is True with 1 GPU"):
        plan_for(80 * GB, shard=True)


def test_the_advice_goes_on_to_the_next_measure():
    plan = MemoryPlan(16_384)
    assert out_of_memory_advice(plan, 4000, 16_384, 1) == "lower micro_batch_tokens from 16384 to 8192"
    assert out_of_memory_advice(MemoryPlan(4500), 4000, 16_384, 1) == "lower micro_batch_tokens from 4500 to 4000"
    assert "checkpointing=True" in out_of_memory_advice(MemoryPlan(4000), 4000, 16_384, 1)
    assert "offload=True" in out_of_memory_advice(MemoryPlan(4000, True), 4000, 16_384, 1)
    assert "shard=True" in out_of_memory_advice(MemoryPlan(4000, True, True), 4000, 16_384, 8)
    assert "max_tokens from 16384 to 2000" in out_of_memory_advice(MemoryPlan(4000, True, True), 4000, 16_384, 1)


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize("plan", [{"checkpointing": True}, {"micro_batch_tokens": 90}, {"micro_batch_tokens": 5000}])
def test_every_plan_trains_the_same_student(monkeypatch, tmp_path, plan):
    settings = {"lora": LoRA(r=4), "epochs": 1, "batch_size": 8, "progress": False}
    train = load_traces("pocket/short", n=24)
    plain = finetune("pocket/xs", train, **settings)
    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "elsewhere"))
    other = finetune("pocket/xs", train, **settings, **plan)
    assert plan.items() <= other.manifest["memory_plan"].items()
    assert other.metrics()["loss"].to_list() == pytest.approx(plain.metrics()["loss"].to_list(), rel=1e-5)
