"""The loss module as one process, or several together, run it."""

import contextlib

import torch
from accelerate import PartialState
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mixdistill.data.students import decoder_layers
from mixdistill.finetuning.loss import ResponseLoss
from mixdistill.finetuning.memory import MemoryPlan


def prepared(
    model: torch.nn.Module, half: bool, plan: MemoryPlan, compile: bool, state: PartialState
) -> torch.nn.Module:
    """The loss module as its processes run it: alone, with DDP, or sharded (FSDP2)."""
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    if plan.checkpointing:
        causal.activation_checkpointing_enable({"use_reentrant": False}, offload=plan.offload)
    loss_of = ResponseLoss(model, half)
    # In bfloat16 weights travel as autocast would use them, gradients in full.
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = mixed if half else MixedPrecisionPolicy()
    for layer in decoder_layers(causal):
        if compile:
            layer.compile(dynamic=True)
        if plan.shard:
            fully_shard(layer, mp_policy=policy)
    if plan.shard:
        return fully_shard(loss_of, mp_policy=policy)
    if state.num_processes > 1:
        return DistributedDataParallel(loss_of, device_ids=[state.device] if state.device.type == "cuda" else None)
    return loss_of


def only_last_synchronised(loss_of: torch.nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """DDP adds up the processes' gradients once a step. FSDP2 does so in every pass, or each would hold them whole."""
    skip = isinstance(loss_of, DistributedDataParallel) and not last
    return loss_of.no_sync() if skip else contextlib.nullcontext()


def summed_over_processes(pairs: torch.Tensor, world: int) -> torch.Tensor:
    """Losses [steps, 0] summed; gradient norms [steps, 1] are the same in all processes."""
    if world > 1:
        losses = pairs[:, 0].contiguous()
        torch.distributed.all_reduce(losses)
        pairs[:, 0] = losses
    return pairs
