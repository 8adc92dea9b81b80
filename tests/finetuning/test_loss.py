"""The loss is plain cross-entropy over response tokens, however its examples are put together."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from mixdistill import LoRA, load_student
from mixdistill.data import students
from mixdistill.data.chat import Example
from mixdistill.finetuning import loss as loss_module
from mixdistill.finetuning.batches import pack, pad
from mixdistill.finetuning.lora import fuse, trainable_model
from mixdistill.finetuning.loss import ResponseLoss, check_loss
from mixdistill.generation.decode import joint

EXAMPLES = [
    Example([5, 9, 30, 41, 7, 2], n_prompt=3),
    Example([8, 60, 11, 12, 13, 14, 15, 16, 17, 18, 2], n_prompt=1),
    Example([21, 22, 23, 2], n_prompt=2),
]


def gradients(model: torch.nn.Module, *batches) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = ResponseLoss(model)(batch)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal(left, right) -> None:
    assert left[0] == pytest.approx(right[0], rel=1e-6)
    assert left[1].keys() == right[1].keys()
    for name, gradient in right[1].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(left[1][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.fixture(params=["qwen", "llama"])
def name(request) -> str:
    return request.getfixturevalue(request.param)


def test_it_is_plain_cross_entropy_and_so_are_its_gradients(name):
    model = load_student(name).model.train()
    expected = 0.0
    for example in EXAMPLES:
        ids = torch.tensor([example.input_ids])
        losses = F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        expected += losses[example.n_prompt - 1 :].sum()
    model.zero_grad()
    expected.backward()
    plain = expected.item(), {key: p.grad.clone() for key, p in model.named_parameters()}
    assert_equal(gradients(model, pad(EXAMPLES, 0)), plain)
    assert_equal(gradients(model, pack(EXAMPLES)), plain)


def test_padded_rows_equal_single_examples_and_packed_ones(name):
    model = load_student(name).model.train()
    single = gradients(model, *(pad([example], 0) for example in EXAMPLES))
    assert_equal(gradients(model, pad(EXAMPLES, 0)), single)
    assert_equal(gradients(model, pack(EXAMPLES)), single)


def test_half_precision_changes_the_loss_by_rounding_only(name):
    model = load_student(name).model
    batch = pad(EXAMPLES, 0)
    full, half = ResponseLoss(model)(batch).item(), ResponseLoss(model, half=True)(batch).item()
    assert half != full
    assert half == pytest.approx(full, rel=2e-2)


def test_no_example_sees_its_neighbour(name):
    loss_of = ResponseLoss(load_student(name).model)
    silent = Example(EXAMPLES[0].input_ids, n_prompt=len(EXAMPLES[0].input_ids))
    other = Example([99, 98, 97, 96, 95, 94], n_prompt=6)
    alone = loss_of(pack([EXAMPLES[1]])).item()
    assert loss_of(pack([silent, EXAMPLES[1]])).item() == pytest.approx(alone, rel=1e-6)
    assert loss_of(pack([other, EXAMPLES[1], silent])).item() == pytest.approx(alone, rel=1e-6)


def test_fused_adapters_equal_those_of_peft(name):
    for r in (2, 32):  # past the matrix's gradient, and through it
        fused = trainable_model(load_student(name), LoRA(r=r), seed=3)
        plain = trainable_model(load_student(name), LoRA(r=r), seed=3, fused=False)
        with torch.no_grad():
            for model in (fused, plain):
                generator = torch.Generator().manual_seed(1)
                for p in model.parameters():
                    if p.requires_grad:
                        p.copy_(torch.randn(p.shape, generator=generator) / 4)
        assert_equal(gradients(fused, pad(EXAMPLES, 0)), gradients(plain, pad(EXAMPLES, 0)))


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
def test_a_loss_in_chunks_is_that_of_the_whole(name, lora, monkeypatch):
    model = trainable_model(load_student(name), lora, seed=0)
    monkeypatch.setattr(loss_module, "CPU_CHUNK", 1000)
    whole = gradients(model, pad(EXAMPLES, 0))
    monkeypatch.setattr(loss_module, "CPU_CHUNK", 4)
    chunked = gradients(model, pad(EXAMPLES, 0))
    assert chunked[0] == pytest.approx(whole[0], rel=1e-6)
    for key, gradient in whole[1].items():
        torch.testing.assert_close(chunked[1][key], gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_of_bfloat16_logits_is_summed_in_float32(qwen, monkeypatch):
    monkeypatch.setattr(students, "TINY", 0)  # or this toy would not compute in half precision
    model = load_student(qwen).model
    hidden, labels = torch.randn(3000, 32).bfloat16().to(model.device), torch.randint(50, (3000,)).to(model.device)
    loss = ResponseLoss(model, half=True).head_loss(hidden, labels)
    assert loss.dtype == torch.float32
    exact = F.cross_entropy(hidden.float() @ model.lm_head.weight.float().t(), labels, reduction="sum")
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)  # a sum in bfloat16 would be off by up to 4e-3


def test_a_student_whose_own_loss_is_another_is_refused(llama):
    for change in ({}, {"label_smoothing": 0.1}):
        student = load_student(llama)
        model = trainable_model(student, LoRA(r=2), seed=0)

        def own_loss(logits, labels, change=change, **_):
            return F.cross_entropy(logits[0, :-1], labels[0, 1:], **change)

        student.model.loss_function = own_loss
        if not change:
            check_loss(student, ResponseLoss(model))
            continue
        with pytest.raises(
            ValueError, match=r"its own are .* \(LlamaForCausalLM\): this student can not be trained here"
        ):
            check_loss(student, ResponseLoss(model))


def test_a_stop_token_that_was_never_trained_is_warned_of(llama):
    student = load_student(llama)
    with torch.no_grad():
        student.model.lm_head.weight[student.tokenizer.convert_tokens_to_ids("<|im_end|>")] = 1e-6
    with pytest.warns(UserWarning, match=r"stop token '<\|im_end\|>' were never trained, and LoRA leaves them"):
        trainable_model(student, LoRA(r=2), seed=0)


def test_the_check_leaves_the_model_as_it_was(llama):
    student = load_student(llama)
    model = trainable_model(student, LoRA(r=2), seed=0).train()
    attention = student.model.config._attn_implementation
    before = gradients(model, pad(EXAMPLES, 0))
    model.zero_grad()
    check_loss(student, ResponseLoss(model))
    assert model.training
    assert student.model.config._attn_implementation == attention
    assert all(p.grad is None for p in model.parameters())
    after = gradients(model, pad(EXAMPLES, 0))
    assert after[0] == before[0]
    assert all(torch.equal(after[1][key], gradient) for key, gradient in before[1].items())


def test_a_frozen_head_gets_no_gradient_and_a_batch_without_targets_a_loss_of_zero(name):
    model = trainable_model(load_student(name), LoRA(r=2), seed=0)
    total, adapters = gradients(model, pad([Example([1, 2], n_prompt=2)], 0))
    assert total == 0
    assert all((gradient == 0).all() for gradient in adapters.values())
    assert model.get_output_embeddings().weight.grad is None


@pytest.mark.parametrize("fused", [True, False])
def test_adapters_of_a_bfloat16_base_are_float32_and_get_the_gradients(name, fused):
    exact = gradients(with_adapters(load_student(name), fused=True), pad(EXAMPLES, 0))
    student = load_student(name)
    student.model.bfloat16()
    model = with_adapters(student, fused)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = gradients(model, pad(EXAMPLES, 0))
    assert loss == pytest.approx(exact[0], rel=0.02)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for part in ("lora_A", "lora_B"):
        ours, theirs = (
            torch.cat([gradient.flatten() for key, gradient in gradients_of.items() if part in key])
            for gradients_of in (found, exact[1])
        )
        assert F.cosine_similarity(ours, theirs, dim=0) > 0.99


def with_adapters(student, fused):
    """The student with adapters of which neither part is zero."""
    model = trainable_model(student, LoRA(r=2), seed=0, fused=fused)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_a_small_update_of_bfloat16_outputs_is_not_rounded_away_in_training_or_decoding():
    torch.manual_seed(0)
    wrapped = torch.nn.ModuleDict({"layer": torch.nn.Linear(64, 64, dtype=torch.bfloat16)})
    model = get_peft_model(wrapped, LoraConfig(target_modules=["layer"]))
    layer, x = model.base_model.model["layer"], torch.randn(512, 64).bfloat16()
    torch.nn.init.constant_(layer.lora_B["default"].weight, 3e-4)
    update = layer.lora_B["default"](layer.lora_A["default"](x.float())).detach()
    before = layer.base_layer(x)
    assert update.abs().mean() < 0.25 * 2**-8 * before.abs().mean()  # of the distance between two numbers
    fuse(model)
    for after in (layer(x), joint([layer], fold=False)(x)):
        kept = ((after - before).float() * update).sum().item() / update.square().sum().item()
        assert kept == pytest.approx(layer.scaling["default"], rel=0.15)
