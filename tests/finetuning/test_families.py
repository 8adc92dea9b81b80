"""Real architectures with tiny random weights: each trains on its own loss, decodes as `generate` does, and is plain
peft.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, save
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mixdistill import LoRA, finetune, load_student, load_traces
from mixdistill.data.chat import Example, prompt_ids
from mixdistill.finetuning import attention
from mixdistill.finetuning.attention import VARLEN, can_pack
from mixdistill.finetuning.batches import pack, pad
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.finetuning.loss import ResponseLoss
from mixdistill.generation.generate import complete

EXAMPLES = [Example([(5 * i + 30) % 290 for i in range(23)], 3), Example([(7 * i + 9) % 290 for i in range(14)], 4)]


@pytest.fixture(scope="module", params=FAMILIES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory) -> str:
    return save(name, tmp_path_factory.mktemp("families"))


def own_loss(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """The sum over the supervised tokens, by the model's own `forward`."""
    labels = torch.tensor([example.input_ids])
    labels[0, : example.n_prompt] = -100
    loss = model(input_ids=torch.tensor([example.input_ids]), labels=labels, use_cache=False).loss
    return loss * (len(example.input_ids) - example.n_prompt)


def measured(model: torch.nn.Module, loss: torch.Tensor) -> tuple[float, float]:
    model.zero_grad()
    loss.backward()
    return loss.item(), torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()


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


def test_the_loss_is_the_models_own_padded_and_packed(folder, monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", in_segments)
    model = load_student(folder).model.train()  # and without dropout, whatever the configuration says
    own = measured(model, sum(own_loss(model, example) for example in EXAMPLES))
    loss_of = ResponseLoss(model)
    assert measured(model, loss_of(pad(EXAMPLES, 0))) == pytest.approx(own, rel=1e-5)
    if can_pack(model):
        model.set_attn_implementation(VARLEN)
        assert measured(model, loss_of(pack(EXAMPLES))) == pytest.approx(own, rel=1e-5)


def test_in_bfloat16_it_is_too_up_to_rounding(folder):
    model = load_student(folder).model.bfloat16()
    own = sum(own_loss(model, example) for example in EXAMPLES).item()
    assert ResponseLoss(model, half=True)(pad(EXAMPLES, 0)).item() == pytest.approx(own, rel=0.02)


def test_greedy_text_is_that_of_generate(folder):
    student = load_student(folder)
    prompts = [prompt_ids(student.tokenizer, question, "gsm8k") for question in ("What is 12?", "Let me think. So 7.")]
    for prompt, completion in zip(prompts, complete(student, prompts, 12), strict=True):
        # Without a cache: the plainest definition of greedy decoding.
        output = student.model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, use_cache=False
        )
        assert completion.response == student.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore:12 of 12 responses do not end the thought")
def test_a_trained_adapter_is_plain_peft_and_experts_without_one_are_said(name, folder, math_traces):
    traces = load_traces(str(math_traces), columns={"question": "problem", "response": "solution"})
    bare = name in ("granitemoehybrid", "gpt-oss", "nemotron3", "llama4")
    with pytest.warns(UserWarning, match=r"peft gives no adapter to \d .*experts") if bare else nullcontext():
        run = finetune(folder, traces, lora=LoRA(r=2), lr=1e-2, epochs=1, batch_size=6, progress=False)
    ours = load_trained(run).model.eval()
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([EXAMPLES[0].input_ids])
    with torch.no_grad():
        untouched = base(ids).logits
        plain = PeftModel.from_pretrained(base, run.folder / "adapter").eval()(ids).logits
        torch.testing.assert_close(plain, ours(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, untouched, atol=1e-3)
