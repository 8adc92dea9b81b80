"""Which attention trains on which device, and that packed examples stay apart in it."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, model

from mixdistill import load_student
from mixdistill.data import students
from mixdistill.data.chat import Example
from mixdistill.finetuning import attention
from mixdistill.finetuning.attention import VARLEN, attention_for, can_pack
from mixdistill.finetuning.batches import pack, pad
from mixdistill.finetuning.loss import ResponseLoss

EXAMPLES = [Example(list(range(5, 45)), 3), Example(list(range(60, 75)), 1), Example([9, 8, 7, 6], 2)]


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.float32)]
)
def test_on_a_cpu_and_in_full_precision_examples_are_padded_under_the_models_own_attention(qwen, device, dtype):
    model = load_student(qwen).model.to(dtype)
    assert attention_for(model, torch.device(device)) == "sdpa"


def test_students_with_more_than_plain_attention_are_not_packed():
    alone = {"gemma2", "gpt-oss", "granitemoehybrid", "lfm2", "falcon-h1", "nemotron3", "qwen3.5"}
    assert {name for name, family in FAMILIES.items() if not can_pack(model(family, 320))} == alone


def in_segments(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What PyTorch's kernel, which needs CUDA, computes: [tokens, heads, size]; each segment attends to itself."""
    parts = []
    for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        seen = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        seen = seen.triu(-window_size[0]) if window_size[0] >= 0 else seen
        q, k, v = (states[start:end].transpose(0, 1)[None] for states in (query, key, value))
        part = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "cohere2", "granite", "mistral", "phi3", "glm4"])
def test_packed_attention_gives_the_kernel_scale_window_and_groups_of_the_model(name, monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", in_segments)
    toy = model(FAMILIES[name], 320).eval()
    loss_of = ResponseLoss(toy)
    expected = loss_of(pad(EXAMPLES, 0)).item()
    toy.set_attn_implementation(VARLEN)
    assert loss_of(pack(EXAMPLES)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has variable-length attention on CUDA only")
@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_packed_attention_on_a_gpu_equals_padded(name, request, monkeypatch):
    def gradient(batch) -> tuple[float, torch.Tensor]:
        toy.zero_grad()
        loss = ResponseLoss(toy, half=True)(batch)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in toy.parameters()])

    monkeypatch.setattr(students, "TINY", 0)  # or this toy would not compute in half precision
    toy = load_student(request.getfixturevalue(name)).model
    loss, expected = gradient(pad(EXAMPLES, 0).to(toy.device))
    toy.set_attn_implementation(attention_for(toy, toy.device))
    assert toy.config._attn_implementation == VARLEN
    ours, found = gradient(pack(EXAMPLES).to(toy.device))
    assert ours == pytest.approx(loss, rel=1e-2)
    assert torch.nn.functional.cosine_similarity(found.float(), expected.float(), dim=0) > 0.99
