"""Which attention trains on which device, and that ours is transformers' own."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from mixdistill import load_student
from mixdistill.data import students
from mixdistill.data.chat import Example
from mixdistill.finetuning.attention import CAUSAL, VARLEN, attention_for, choose_attention, packs
from mixdistill.finetuning.batches import pack, pad
from mixdistill.finetuning.loss import ResponseLoss

EXAMPLES = [Example(list(range(5, 45)), 3), Example(list(range(60, 75)), 1), Example([9, 8, 7, 6], 2)]


@pytest.mark.parametrize(
    ("device", "capability", "installed", "expected"),
    [
        ("cpu", None, (), CAUSAL),
        ("mps", None, (), CAUSAL),
        ("cuda", (7, 5), ("flash_attention_2",), CAUSAL),
        ("cuda", (8, 0), (), VARLEN),
        ("cuda", (9, 0), (), VARLEN),
        ("cuda", (8, 9), ("flash_attention_2", "flash_attention_3"), "flash_attention_2"),
        ("cuda", (9, 0), ("flash_attention_2", "flash_attention_3"), "flash_attention_3"),
        ("cuda", (10, 0), ("flash_attention_3",), VARLEN),
    ],
)
def test_the_attention_is_the_fastest_that_runs_on_the_device(device, capability, installed, expected):
    assert choose_attention(device, capability, installed) == expected
    assert packs(expected) is (expected != CAUSAL)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.float32)]
)
def test_on_a_cpu_and_in_full_precision_examples_are_padded(device, dtype):
    assert not packs(attention_for(torch.device(device), dtype))


def gradient(model: torch.nn.Module, batch, half: bool = False) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = ResponseLoss(model, half)(batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["qwen", "llama", "windowed"])
def test_padded_attention_equals_that_of_transformers(name, request):
    if name == "windowed":
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = MistralForCausalLM(MistralConfig(vocab_size=90, num_key_value_heads=2, sliding_window=8, **shape))
    else:
        model = load_student(request.getfixturevalue(name)).model
    batch = pad(EXAMPLES, 0)
    loss, expected = gradient(model, batch)
    model.set_attn_implementation(CAUSAL)
    ours, found = gradient(model, batch)
    assert ours == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has variable-length attention on CUDA only")
@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_packed_attention_on_a_gpu_equals_padded(name, request, monkeypatch):
    monkeypatch.setattr(students, "TINY", 0)  # or this toy would not compute in half precision
    model = load_student(request.getfixturevalue(name)).model
    device = model.device
    loss, expected = gradient(model, pad(EXAMPLES, 0).to(device), half=True)
    model.set_attn_implementation(attention_for(device, model.dtype))
    assert packs(model.config._attn_implementation)
    ours, found = gradient(model, pack(EXAMPLES).to(device), half=True)
    assert ours == pytest.approx(loss, rel=1e-2)
    assert torch.nn.functional.cosine_similarity(found.float(), expected.float(), dim=0) > 0.99
