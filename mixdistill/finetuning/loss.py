"""The loss of a batch: the model's own cross-entropy of the supervised tokens, without logits for any other."""

import warnings

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import MoeModelOutputWithPast

from mixdistill.data.chat import Example, stop_token_id
from mixdistill.data.students import Student
from mixdistill.finetuning.attention import packs
from mixdistill.finetuning.batches import Batch, pack, pad

LOGITS_CHUNK = 1024  # positions whose logits are in memory at a time
UNTRAINED = (
    0.01  # a token's row of the head below this share of the median row: base models leave such for reserved tokens
)


class ResponseLoss(torch.nn.Module):
    """A student and its loss in one module: DDP and FSDP2 act on what a module's `forward` calls.

    With `half` it computes in bfloat16, whatever type its weights have.
    """

    def __init__(self, model: torch.nn.Module, half: bool = False) -> None:
        super().__init__()
        self.model = model
        self.half = half
        self.plain = has_plain_head(_causal(model))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy of the batch's supervised tokens (stop tokens included, prompts not); a scalar in
        float32.

        Only positions that predict one reach the head: at a vocabulary of 150,000 the others would cost most of the
        memory.
        """
        causal, packed = _causal(self.model), {}
        if batch.cu_seqlens is not None:
            packed = {
                "position_ids": batch.position_ids,
                "cu_seq_lens_q": batch.cu_seqlens,
                "cu_seq_lens_k": batch.cu_seqlens,
                "max_length_q": batch.max_seqlen,
                "max_length_k": batch.max_seqlen,
            }
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.half):
            hidden = causal.base_model(input_ids=batch.input_ids, use_cache=False, **packed).last_hidden_state
        return self.head_loss(hidden.flatten(0, 1)[batch.predicts], batch.labels)

    def head_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed cross-entropy of rows behind the last layer, never with more than a chunk of their logits in memory.

        Arguments:
            hidden: [positions, width].
            labels: [positions].
        """
        causal = _causal(self.model)
        if self.plain and hidden.is_cuda and hasattr(F, "linear_cross_entropy"):  # torch 2.13
            weight = causal.get_output_embeddings().weight
            if self.half:
                hidden, weight = hidden.bfloat16(), weight.bfloat16()
            # The sum is taken here: the function's own would be in bfloat16, which has three digits.
            choice = torch.nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(hidden, weight, labels, reduction="none", options=choice).float().sum()

        def chunk_loss(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.half):
                head = causal.get_output_embeddings().weight
                logits = F.linear(rows, head) if self.plain else own_logits(causal, rows)
            return F.cross_entropy(logits.float(), wanted, reduction="sum")

        if len(labels) <= LOGITS_CHUNK:
            return chunk_loss(hidden, labels)
        chunks = zip(hidden.split(LOGITS_CHUNK), labels.split(LOGITS_CHUNK), strict=True)
        # Each chunk's logits are computed again in the backward pass instead of being kept.
        return sum(checkpoint(chunk_loss, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks)


def own_logits(causal: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits by the model's own `forward` behind its layers, with all that it does there: bias, scaling, soft cap.

    The layers are passed over: for this call they return `hidden`.

    Arguments:
        hidden: [positions, width].

    Returns: [positions, vocabulary].
    """
    body = causal.base_model
    before = vars(body).get("forward")
    body.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=hidden[None])
    try:
        positions = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return causal(input_ids=positions, use_cache=False).logits[0]
    finally:
        if before is None:
            del body.forward
        else:
            body.forward = before


@torch.no_grad()
def has_plain_head(causal: torch.nn.Module) -> bool:
    """Whether the logits are a product with the head's weights and nothing else, seen on zeros and on large values."""
    head = causal.get_output_embeddings()
    large = torch.linspace(-1000, 1000, head.weight.shape[1], dtype=head.weight.dtype, device=head.weight.device)
    rows = torch.stack([torch.zeros_like(large), large])
    same = torch.allclose(own_logits(causal, rows), F.linear(rows, head.weight), rtol=1e-2)
    return same and getattr(head, "bias", None) is None


def check_loss(student: Student, model: torch.nn.Module) -> None:
    """Compare our loss and its gradient with those of the model's own `forward(labels=...)`, once a student and
    process.

    Two short examples, padded, and packed where the model's attention packs; the model is left as it was.

    Arguments:
        model: the student as `trainable_model` gives it, before it is prepared for several processes.

    Warns if the student's stop token was never trained and is not going to be. Raises ValueError if the losses differ
    by more than rounding, or if one of them can not be computed.
    """
    causal, device = _causal(model), student.device
    attention, half = causal.config._attn_implementation, causal.dtype == torch.bfloat16
    key = (student.fingerprint, attention, device, isinstance(model, PeftModel))
    if key in _checked:
        return
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    examples = [Example([(7 * i + 3) % vocabulary for i in range(n)], n_prompt=3) for n in (12, 8)]
    training = model.training
    model.eval()
    try:
        causal.set_attn_implementation("sdpa" if causal._supports_sdpa else "eager")
        own = _measured(model, _own_loss(causal, examples, half))
        found = {"padded": _measured(model, ResponseLoss(model, half)(pad(examples, 0).to(device)))}
        causal.set_attn_implementation(attention)
        if packs(attention) and device.type == "cuda":
            found["packed"] = _measured(model, ResponseLoss(model, half)(pack(examples).to(device)))
    except (AttributeError, TypeError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"the loss of {student.name!r} can not be computed ({type(causal).__name__}: {error}): use a decoder-only "
            "student"
        ) from error
    finally:
        causal.set_attn_implementation(attention)
        model.train(training)
    tolerance = (2e-2, 5e-2) if half else (1e-5, 1e-3)
    for layout, pair in found.items():
        if not all(abs(a - b) <= rtol * b for a, b, rtol in zip(pair, own, tolerance, strict=True)):  # nor is NaN
            raise ValueError(
                f"the loss of {student.name!r} and its gradient's norm are {pair} on a {layout} batch, its own are "
                f"{own} ({type(causal).__name__}): this student can not be trained here, use another"
            )
    stop = stop_token_id(student.tokenizer)
    norms = causal.get_output_embeddings().weight.detach().float().norm(dim=1)
    if isinstance(model, PeftModel) and norms[stop] < UNTRAINED * norms.median():
        warnings.warn(
            f"the weights of {student.name!r} for its stop token {student.tokenizer.decode([stop])!r} were never "
            "trained, and LoRA leaves them as they are, so it may never stop: use its Instruct version, or lora=None",
            stacklevel=2,
        )
    _checked.add(key)


def _own_loss(causal: torch.nn.Module, examples: list[Example], half: bool) -> torch.Tensor:
    """The sum over all supervised tokens by the model's own `forward`, an example at a time."""
    device, losses = causal.device, []
    for example in examples:
        labels = torch.tensor([example.input_ids], device=device)
        ids, supervised = labels.clone(), torch.tensor([example.loss_mask], device=device)
        labels[~supervised] = -100
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses.append(causal(input_ids=ids, labels=labels, use_cache=False).loss.float() * supervised.sum())
    return torch.stack(losses).sum()


def _measured(model: torch.nn.Module, loss: torch.Tensor) -> tuple[float, float]:
    """Loss, and norm of its gradient."""
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return loss.item(), torch.nn.utils.get_total_norm([g for g in gradients if g is not None]).item()


_checked: set[tuple] = set()  # students whose loss was found right in this process


def _causal(model: torch.nn.Module) -> torch.nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model
