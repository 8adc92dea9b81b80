"""Low-rank adapters: put on a student, trained fast on a CPU, and merged into its weights again."""

import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear

from mixdistill import runs
from mixdistill.data.students import Student, load_student
from mixdistill.runs import Run

# peft 0.21 reads an attribute that transformers 5.23 deprecates; a reader can do nothing about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on all linear layers but the head: rank, alpha (None: 2r), dropout."""

    r: int = 16
    alpha: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA(r={self.r}, dropout={self.dropout}): r is at least 1, dropout in 0..1")

    @property
    def scaled_alpha(self) -> int:
        return 2 * self.r if self.alpha is None else self.alpha


def trainable_model(student: Student, lora: LoRA | None, seed: int) -> torch.nn.Module:
    """The student with fresh adapters in float32, or with all its weights in float32 where `lora` is None."""
    torch.manual_seed(seed)
    if lora is None:
        return student.model.float().requires_grad_(True)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.scaled_alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        exclude_modules=_past_adapters(student.model) or None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(student.model, config, autocast_adapter_dtype=True)
    if student.device.type == "cpu" and not lora.dropout and model.dtype == torch.float32:
        fuse(model)
    return model


def _past_adapters(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers whose weights a kernel reads without calling the layer: what Mamba layers end with."""
    mixers = [name for name, module in model.named_modules() if hasattr(module, "A_log") and hasattr(module, "D")]
    return [f"{name}.out_proj" for name in mixers]


def fuse(model: PeftModel) -> None:
    """Let adapted layers multiply once, by W + s B A, where peft multiplies by W, A and B in turn.

    The same function up to rounding, for float32 weights and no dropout. On a CPU the many small operations cost a pocket
    student more than their FLOPs (measured in `benchmarks/README.md`).
    """
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.forward = partial(_fused_forward, layer)


def _fused_forward(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    # Looked up in every call: FSDP2 puts other parameters into a module than it had.
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return _LowRankUpdate.apply(x, layer.base_layer.weight, layer.base_layer.bias, a, b, layer.scaling["default"])


class _LowRankUpdate(torch.autograd.Function):
    """x (W + s B A)^T + bias, with gradients for x, A and B."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling):
        merged = torch.addmm(weight, b, a, alpha=scaling)
        ctx.save_for_backward(x, merged, a, b)
        ctx.scaling = scaling
        return F.linear(x, merged, bias)

    @staticmethod
    def backward(ctx, grad):
        x, merged, a, b = ctx.saved_tensors
        grad_x = grad @ merged if ctx.needs_input_grad[0] else None
        grad, x = grad.flatten(0, -2), x.flatten(0, -2)
        (n_out, n_in), r = merged.shape, len(a)
        # Through the whole matrix's gradient, or past it: whichever takes fewer FLOPs, thin products counting half more.
        if n_out * n_in < 3 * r * (n_out + n_in):
            grad_merged = (grad.t() @ x).mul_(ctx.scaling)
            grad_a, grad_b = b.t() @ grad_merged, grad_merged @ a.t()
        else:
            grad_a = (grad @ (b * ctx.scaling)).t() @ x
            grad_b = grad.t() @ (x @ (a.t() * ctx.scaling))
        return grad_x, None, None, grad_a, grad_b, None


def merge(run: Run) -> Path:
    """Fold a run's adapter into its student's weights: `merged/` in the run's folder, a student like any other.

    The sum is taken in float32 and stored in the type of the student's own weights; tied embeddings stay tied.

    Raises ValueError if the run has no adapter.
    """
    if not run.trained or run.config["lora"] is None:
        raise ValueError(f"the run {run.folder.name!r} has no adapter: only runs of finetune with lora can be merged")
    target = run.folder / "merged"
    if not target.is_dir():
        student = load_student(run.student, run.config["revision"], device="cpu")
        stored = student.model.config.dtype or torch.float32
        adapted = PeftModel.from_pretrained(student.model.float(), run.folder / "adapter")
        merged = adapted.merge_and_unload().to(stored)

        def write(path: Path) -> None:
            merged.save_pretrained(path)
            student.tokenizer.save_pretrained(path)

        shutil.rmtree(target, ignore_errors=True)
        runs.replace(target, write)
    return target
