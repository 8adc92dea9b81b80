"""The loss of a batch: the model's own cross-entropy of the supervised tokens."""

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from mixdistill.data.chat import Example
from mixdistill.data.students import Student
from mixdistill.finetuning.attention import VARLEN
from mixdistill.finetuning.batches import Batch, labels_of, pack, pad

# Positions whose logits are in memory at a time. On a CPU so few that they stay in its cache: half the time at the
# pocket vocabulary. On a GPU PyTorch's own choice.
CPU_CHUNK = 256


class ResponseLoss(torch.nn.Module):
    """A student and its loss in one module: FSDP2 acts on what a module's `forward` calls. With `half` it computes in
    bfloat16, whatever type its weights have."""

    def __init__(self, model: torch.nn.Module, half: bool = False) -> None:
        super().__init__()
        self.model = model
        self.half = half
        self.plain = has_plain_head(causal_model(model))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy of the batch's supervised tokens (stop tokens included, prompts not): a scalar, float32.

        Behind a plain head only positions that predict one get logits, and never all at a time: at a vocabulary of
        150,000 they would take most of the memory. Any other head (bias, scaling, soft cap) is the model's own code.
        """
        causal = causal_model(self.model)
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=self.half):
            if not self.plain:
                logits = causal(**batch.inputs, use_cache=False).logits
                return F.cross_entropy(logits.flatten(0, 1)[batch.predicts].float(), batch.labels, reduction="sum")
            hidden = causal.base_model(**batch.inputs, use_cache=False).last_hidden_state
        return self.head_loss(hidden.flatten(0, 1)[batch.predicts], batch.labels)

    def head_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed cross-entropy of a plain head.

        Arguments:
            hidden: [positions, width], behind the last layer.
            labels: [positions].
        """
        weight = causal_model(self.model).get_output_embeddings().weight
        if self.half:
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
        half = hidden.dtype != torch.float32
        if half and not hidden.is_cuda:  # where the function below takes twice the time in bfloat16
            chunks = zip(hidden.split(CPU_CHUNK), labels.split(CPU_CHUNK), strict=True)
            return sum(F.cross_entropy(F.linear(rows, weight).float(), ids, reduction="sum") for rows, ids in chunks)
        chunking = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=None if hidden.is_cuda else CPU_CHUNK)
        # In bfloat16 the sum is taken here: the function's own would be in that type, which has three digits.
        reduction = "none" if half else "sum"
        return F.linear_cross_entropy(hidden, weight, labels, reduction=reduction, options=chunking).float().sum()


@torch.no_grad()
def has_plain_head(causal: PreTrainedModel) -> bool:
    """Whether the logits are a product with the head's weights and nothing else: seen on zeros and on large values that
    take the place of what the last layer gives."""
    body, head = causal.base_model, causal.get_output_embeddings()
    if body is causal:  # Llama 4 does not name its layers as others do
        return False
    large = torch.linspace(-1000, 1000, head.weight.shape[1], dtype=head.weight.dtype, device=head.weight.device)
    rows = torch.stack([torch.zeros_like(large), large])

    def replaced(_: torch.nn.Module, inputs: object, outputs: ModelOutput) -> ModelOutput:
        outputs.last_hidden_state = rows[None]
        return outputs

    batch = pad([Example([0, 0], n_prompt=1)], 0)
    hook = body.register_forward_hook(replaced)
    logits = causal(**batch.to(rows.device).inputs, use_cache=False).logits[0]
    hook.remove()
    same = torch.allclose(logits.float(), F.linear(rows, head.weight).float(), rtol=1e-2)  # Mamba's are float32 already
    return same and getattr(head, "bias", None) is None


def check_loss(student: Student, loss_of: ResponseLoss) -> None:
    """Compare our loss and its gradient with those of the model's own `forward(labels=...)`, on two short examples.
    Raises ValueError if they differ by more than rounding, or if one of them can not be computed."""
    causal = causal_model(loss_of.model)
    attention, vocabulary = causal.config._attn_implementation, len(causal.get_input_embeddings().weight)
    examples = [Example([(7 * i + 3) % vocabulary for i in range(n)], n_prompt=3) for n in (12, 8)]
    try:
        causal.set_attn_implementation("sdpa" if attention == VARLEN else attention)
        own = _measured(loss_of, sum(_own_loss(causal, example, loss_of.half) for example in examples))
        ours = [_measured(loss_of, loss_of(pad(examples, 0).to(causal.device)))]
        causal.set_attn_implementation(attention)
        if attention == VARLEN and causal.device.type == "cuda":
            ours.append(_measured(loss_of, loss_of(pack(examples).to(causal.device))))
    except (AttributeError, TypeError, KeyError, NotImplementedError) as error:
        what = f"the loss of {student.name!r} can not be computed ({type(causal).__name__}: {error})"
        raise ValueError(f"{what}: use a decoder-only student") from error
    loss_tolerance, norm_tolerance = (2e-2, 5e-2) if loss_of.half else (1e-5, 1e-3)
    for loss, norm in ours:
        if not (abs(loss - own[0]) <= loss_tolerance * own[0] and abs(norm - own[1]) <= norm_tolerance * own[1]):
            what = f"the loss of {student.name!r} and its gradient's norm are {loss} and {norm}, its own are {own}"
            raise ValueError(f"{what} ({type(causal).__name__}): this student can not be trained here, use another")


def _own_loss(causal: PreTrainedModel, example: Example, half: bool) -> torch.Tensor:
    """The sum over the supervised tokens by the model's own `forward`."""
    ids, labels = torch.tensor([[example.input_ids], [labels_of(example)]], device=causal.device)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
        mean = causal(input_ids=ids, labels=labels, use_cache=False).loss
    return mean.float() * (len(example.input_ids) - example.n_prompt)


def _measured(model: torch.nn.Module, loss: torch.Tensor) -> tuple[float, float]:
    """Loss, and norm of its gradient."""
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return loss.item(), torch.nn.utils.get_total_norm([g for g in gradients if g is not None]).item()


def causal_model(model: torch.nn.Module) -> PreTrainedModel:
    """The causal language model, without the adapters' wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
