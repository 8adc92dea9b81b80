"""Low-rank adapters: put on a student, and trained fast on a CPU."""

import warnings
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from transformers.pytorch_utils import Conv1D

from mixdistill import arguments
from mixdistill.data.chat import stop_token_id
from mixdistill.data.students import Student

# A token's row of the head below this share of the median row was never trained: base models reserve such tokens.
UNTRAINED = 0.01


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all linear layers but the head.

    There is no dropout: what it drops would depend on how a step is cut into passes, and a run's name does not.

    Arguments:
        r: rank, at most the student's width.
        alpha: what B A is scaled with, times r; None takes 2 r.

    Raises ValueError if one is no whole number, below 1, or far above what is of use.
    """

    r: int = 16
    alpha: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "r", arguments.whole("r", self.r))
        object.__setattr__(self, "alpha", arguments.whole("alpha", self.alpha, high=10**6, optional=True))

    @property
    def scaled_alpha(self) -> int:
        return 2 * self.r if self.alpha is None else self.alpha


def trainable_model(student: Student, lora: LoRA | None, seed: int, fused: bool = True) -> torch.nn.Module:
    """The student with fresh adapters in float32, or with all its weights in float32 where `lora` is None.

    Warns if its stop token was never trained and is not going to be, or layers of experts get no adapter. Raises
    ValueError for a rank above its width.
    """
    torch.manual_seed(seed)
    if lora is None:
        return student.model.float().requires_grad_(True)
    width = student.model.config.get_text_config().hidden_size
    if lora.r > width:
        raise ValueError(f"r is {lora.r}: a LoRA of {student.name!r} has at most its width, {width}")
    stop, norms = stop_token_id(student.tokenizer), student.model.get_output_embeddings().weight.detach().norm(dim=1)
    if norms[stop] < UNTRAINED * norms.median():
        what = f"the weights of {student.name!r} for its stop token {student.tokenizer.decode([stop])!r}"
        why = "were never trained, and LoRA leaves them as they are, so it may never stop"
        warnings.warn(f"{what} {why}: use its Instruct version, or lora=None", stacklevel=2)
    excluded, n_weights = not_adapted(student.model), student.model.num_parameters()
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.scaled_alpha,
        target_modules="all-linear",
        exclude_modules=excluded or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in student.model.modules()),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(student.model, config)
    if bare := _without_adapter(model, excluded):
        share = sum(bare.values()) / n_weights
        what = f"{len(bare)} layers of {student.name!r}, such as {min(bare)}, with {share:.0%} of its weights"
        warnings.warn(f"peft gives no adapter to {what}: lora=None trains them", stacklevel=2)
    if fused:
        fuse(model)
    return model


def _without_adapter(model: PeftModel, excluded: list[str]) -> dict[str, int]:
    """Weights by layer of those that peft's `all-linear` leaves as they are beside experts (its issue 3711)."""
    own, left = model.get_base_model(), {}
    for name, module in own.named_modules():
        if ".lora_" in name or "base_layer" in name:
            continue
        if isinstance(module, torch.nn.Linear) and name not in excluded and module is not own.get_output_embeddings():
            left[name] = module.weight.numel()
        elif "expert" in name:
            left |= {f"{name}.{of}": one.numel() for of, one in module.named_parameters(recurse=False) if one.ndim == 3}
    return left


def not_adapted(model: torch.nn.Module) -> list[str]:
    """Names of the layers that look linear to peft, but in which an adapter would do nothing or another thing."""
    names = []
    for name, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):  # a kernel of Mamba reads these, and calls no layer
            names += [f"{name}.{part}" for part in ("x_proj", "dt_proj", "out_proj") if hasattr(module, part)]
        elif isinstance(module, torch.nn.Linear) and not _is_linear(module):
            names.append(name)
    return names


@torch.no_grad()
def _is_linear(layer: torch.nn.Linear) -> bool:
    """Whether a layer gives x W^T + bias: routers of experts derive from `Linear`, and choose too."""
    if type(layer) is torch.nn.Linear:
        return True
    x = layer.weight.new_ones(1, layer.in_features)
    try:
        return torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias))
    except (RuntimeError, TypeError, ValueError):  # another shape, or several outputs
        return False


def fuse(model: PeftModel) -> None:
    """Let adapted layers compute x W^T + s x A^T B^T in one product: peft's function up to rounding.

    On a CPU the many small operations of peft cost a pocket student more than their FLOPs. In bfloat16 peft adds
    x A^T B^T to an output that is rounded already: a first step of SmolLM2-135M then lowers its loss by .03 less than
    in float32.
    """
    for layer in model.modules():
        if isinstance(layer, Linear) and isinstance(layer.base_layer, torch.nn.Linear):  # no Conv1D
            layer.forward = partial(_fused_forward, layer)


def _fused_forward(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    # Looked up in every call: FSDP2 puts other parameters into a module than it had.
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight, bias, scaling = layer.base_layer.weight, layer.base_layer.bias, layer.scaling["default"]
    # In bfloat16 the sum would be rounded away; its gradient, a whole matrix, costs a wide layer more than it saves.
    if weight.dtype == torch.float32 and weight.numel() < 8 * a.shape[0] * sum(weight.shape):
        return F.linear(x, torch.addmm(weight, b, a, alpha=scaling), bias)
    rows = x.flatten(0, -2).to(weight.dtype)
    return _FusedUpdate.apply(rows, weight, bias, a, b, scaling).view(*x.shape[:-1], -1)


class _FusedUpdate(torch.autograd.Function):
    """[x, x A^T] [W, s B]^T + bias in the weight's type, with gradients for x, and for A and B in theirs."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling):
        a, b = a.to(x.dtype), b.to(x.dtype) * scaling
        low = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return F.linear(torch.cat([x, low], dim=1), torch.cat([weight, b], dim=1), bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight, a, b, low = ctx.saved_tensors
        grad_low = grad @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.cat([grad, grad_low], dim=1) @ torch.cat([weight, a])
        grad_a = (grad_low.t() @ x).float()
        grad_b = (grad.t() @ low).float() * ctx.scaling
        return grad_x, None, None, grad_a, grad_b, None
