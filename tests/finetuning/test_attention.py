"""Which attention trains on which device. That packed examples stay apart in it is for every family in
`test_families`."""

import pytest
import torch
from families import FAMILIES, model

from mixdistill import load_student
from mixdistill.data import students
from mixdistill.data.chat import Example
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
    alone |= {"bloom", "mamba2", "nemotron", "llama4"}
    assert {name for name, family in FAMILIES.items() if not can_pack(model(family, 320))} == alone


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
