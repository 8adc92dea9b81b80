import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from mixdistill.finetuning import memory_model as memory

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 500,
}
QWEN = Qwen2Config(num_key_value_heads=2, tie_word_embeddings=True, **SHAPE)
LLAMA = LlamaConfig(num_key_value_heads=4, tie_word_embeddings=False, **SHAPE)
CHUNK = 256


def trainable(config, lora_rank):
    """As `finetune` has it on CUDA: a frozen bfloat16 base with float32 adapters, or float32 weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if lora_rank else torch.float32)
    if not lora_rank:
        return model, model
    lora = LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora), model


def allocated_at_peak(config, tokens, lora_rank, checkpointing):
    """Bytes that a step of two accumulated forward passes holds at its peak, by the profiler's allocations."""
    model, causal = trainable(config, lora_rank)
    if checkpointing:
        causal.activation_checkpointing_enable()
        causal.enable_input_require_grads()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    ids = torch.randint(0, config.vocab_size, (1, tokens))

    def step():
        optimizer.zero_grad()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
                logits = causal.get_output_embeddings()(hidden[:, :CHUNK])
            loss = F.cross_entropy(logits.float().flatten(0, 1), ids[0, :CHUNK])
            del hidden, logits
            loss.backward()
            del loss
        optimizer.step()

    step()  # the optimizer's moments are there from now on
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0).max().item()
    standing = sum(p.numel() * p.element_size() for p in model.parameters())
    return held + standing + sum(2 * 4 * p.numel() for p in parameters)


@pytest.mark.parametrize("config", [QWEN, LLAMA], ids=["qwen2", "llama"])
@pytest.mark.parametrize("lora_rank", [8, None], ids=["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_training_memory_is_within_10_percent_of_what_a_step_allocates(config, lora_rank, checkpointing):
    estimate = memory.training_memory(config, 512, lora_rank=lora_rank, checkpointing=checkpointing, logits_chunk=CHUNK)
    real = allocated_at_peak(config, 512, lora_rank, checkpointing)
    assert estimate.total - memory.OVERHEAD == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("config", [QWEN, LLAMA], ids=["qwen2", "llama"])
@pytest.mark.parametrize("lora_rank", [8, None], ids=["lora", "full"])
def test_training_and_decoding_flops_are_those_that_pytorch_counts(config, lora_rank):
    model, _ = trainable(config, lora_rank)
    model.float()
    ids = torch.randint(0, config.vocab_size, (4, 24))
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=ids, use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    adapters = 2 * memory.n_lora_params(config, lora_rank) * ids.numel() if lora_rank else 0
    counted = forward.get_total_flops() - adapters
    assert memory.decoding_flops(config, [24] * 4) == pytest.approx(counted, rel=0.02)
    counted += backward.get_total_flops() - 2 * adapters
    # With LoRA nothing below the first layer's adapters needs a gradient, which the formula does not leave out.
    assert memory.training_flops(config, [24] * 4, lora=bool(lora_rank)) == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize("config", [QWEN, LLAMA], ids=["qwen2", "llama"])
def test_counts_equal_those_of_the_model_and_its_cache(config):
    model, causal = trainable(config, 8)
    size = memory.model_size(config)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.n_lora_params(config, 8) == adapters
    assert size.total == model.num_parameters() - adapters
    assert size.multiplied == size.total - (size.embedding if config is LLAMA else 0)
    cache = causal(input_ids=torch.zeros(3, 7, dtype=torch.long), use_cache=True).past_key_values
    stored = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert memory.inference_memory(config, 3, 7).kv_cache == stored


def test_shards_divide_what_stands_and_nothing_else():
    one, four = (memory.training_memory(QWEN, 512, lora_rank=None, shards=n) for n in (1, 4))
    assert four.optimizer == one.optimizer // 4
    assert four.gradients == one.gradients // 4
    assert four.activations == one.activations
    assert four.weights < one.weights
    assert memory.inference_memory(QWEN, 8, 64, shards=4).kv_cache == memory.inference_memory(QWEN, 8, 64).kv_cache // 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memory.training_memory(QWEN, 0, lora_rank=8), "tokens is 0: it is at least 1"),
        (lambda: memory.inference_memory(QWEN, 1, 1, shards=0), "shards is 0"),
        (
            lambda: memory.training_memory(GPT2Config(), 8, lora_rank=8),
            "type 'gpt2' has no num_key_value_heads, intermediate_size: .* such as Qwen2 and Llama",
        ),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
