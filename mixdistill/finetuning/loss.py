"""The loss of a batch: cross-entropy of the supervised tokens, without logits for any other."""

import torch
from peft import PeftModel

from mixdistill.finetuning.batches import Batch

LOGITS_CHUNK = 1024  # positions whose logits are in memory at a time


class ResponseLoss(torch.nn.Module):
    """A student and its loss in one module: DDP and FSDP2 act on what a module's `forward` calls.

    With `half` it computes in bfloat16, whatever type its weights have.
    """

    def __init__(self, model: torch.nn.Module, half: bool = False) -> None:
        super().__init__()
        self.model = model
        self.half = half

    def forward(self, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy of the batch's supervised tokens (stop tokens included, prompts not); a scalar in float32.

        Only positions that predict one reach the head: at a vocabulary of 150,000 the others would cost most of the memory.
        """
        causal = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        packed = {}
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
        hidden, weight = hidden.flatten(0, 1)[batch.predicts], causal.get_output_embeddings().weight
        if self.half:
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
        return chunked_cross_entropy(hidden, weight, batch.labels)


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int = LOGITS_CHUNK
) -> torch.Tensor:
    """Summed cross-entropy of a linear head, never holding more than `chunk` rows of its logits; a scalar in float32.

    The gradients are computed chunk by chunk in the forward pass, as in Liger (arXiv 2410.10989, section 3.2); a frozen head
    gets none. `torch.nn.functional.linear_cross_entropy` (2.13) does the same, but returns the sum in the type of `hidden`:
    in bfloat16 the loss curve would have three digits.

    Arguments:
        hidden: [positions, width].
        weight: [vocabulary, width], in the type of `hidden`.
        labels: [positions].
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, chunk)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, chunk):
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        # A product of bfloat16 matrices is summed in float32; CUDA can hand it over without rounding it.
        precise = {"out_dtype": torch.float32} if hidden.is_cuda and hidden.dtype != torch.float32 else {}
        minus_one = total.new_full((1, 1), -1.0)
        for start in range(0, len(labels), chunk):
            rows, wanted = hidden[start : start + chunk], labels[start : start + chunk, None]
            log_probs = torch.mm(rows, weight.t(), **precise).float().log_softmax(-1)
            total -= log_probs.gather(1, wanted).sum()
            # The gradient of the logits, in their place: softmax - one-hot.
            grad = log_probs.exp_().scatter_add_(1, wanted, minus_one.expand_as(wanted)).to(hidden.dtype)
            torch.mm(grad, weight, out=grad_hidden[start : start + chunk])
            if grad_weight is not None:
                grad_weight += grad.t() @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_total):
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = grad_weight.mul(grad_total).to(ctx.weight_dtype)
        return grad_hidden.mul(grad_total.to(grad_hidden.dtype)), grad_weight, None, None
