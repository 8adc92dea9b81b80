"""One run in several processes, one a GPU: started by torchrun's launcher, in step, with copies or shares of weights.

A script that calls `finetune` may itself run under `torchrun` or `accelerate launch`, on several machines if they share
the run store.
"""

import atexit
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mixdistill import runs
from mixdistill.data.students import decoder_layers
from mixdistill.finetuning.lora import LoRA
from mixdistill.finetuning.loss import ResponseLoss
from mixdistill.finetuning.memory import Placement

T = TypeVar("T")


def to_launch(on: Placement) -> bool:
    """Whether a placement's processes have yet to be started. Raises ValueError if it asks for more than there is."""
    n = torch.cuda.device_count()
    if on.gpus > max(n, world(), 1):
        raise ValueError(f"gpus is {on.gpus}, this machine has {n}: ask for at most that many")
    if on.shard and max(on.gpus, world()) == 1:
        raise ValueError("shard is True on 1 GPU: the weights are shared out over several, set gpus")
    return on.gpus > 1 and world() == 1


def launch(arguments: dict[str, Any], processes: int) -> None:
    """Call `finetune` in so many new processes of this machine; no fork, as CUDA may be in use here. Raises
    RuntimeError if they fail, with what the first said."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGHUP",  # and not Ctrl-C: the handlers stay when the processes are gone
    )
    with tempfile.TemporaryDirectory() as folder:
        write_arguments(Path(folder), arguments)
        (Path(folder) / "parent").write_text(str(os.getpid()))
        try:
            elastic_launch(config, sys.executable)("-m", "mixdistill.finetuning.gpus", folder)
        except ChildFailedError as error:
            said = error.get_first_failure()[1].message
            raise RuntimeError(f"training in {processes} processes failed: {said}") from error


@record
def main() -> None:
    """What each process that `launch` starts runs."""
    from mixdistill.finetuning.finetune import finetune  # which imports this module

    folder = Path(sys.argv[1])
    parent = int((folder / "parent").read_text())
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    finetune(**read_arguments(folder))
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is stored. An interpreter that ends by itself destroys the threads of gloo and Arrow, and now and then aborts
    # on one that still runs ("terminate called without an active exception"): the run would be called failed.
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone: nobody else would, and it would hold GPU and lock."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def write_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Put the arguments of `finetune` into a folder, for processes to come; no pickle, which could run anything."""
    arguments["train"].to_parquet(folder / "train.parquet")
    given = {name: value for name, value in arguments.items() if name != "train"}
    (folder / "arguments.json").write_text(json.dumps(given, default=asdict))


def read_arguments(folder: Path) -> dict[str, Any]:
    """What `write_arguments` has written."""
    train = Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(folder))
    given = json.loads((folder / "arguments.json").read_text())
    lora = LoRA(**given["lora"]) if given["lora"] else None
    return given | {"train": train, "lora": lora, "on": Placement(**given["on"])}


def world() -> int:
    """How many processes were started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


@lru_cache(maxsize=1)
def join() -> torch.device:
    """This process's device. The first call joins the processes, which wait for each other as long as it takes: another
    run may hold the lock, and a large student loads for long."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world() > 1:  # what lies on the CPU goes through gloo, and waits for no GPU
        dist.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo", timeout=timedelta(days=7))
        atexit.register(dist.destroy_process_group)
    return device


def agreed(value: Any) -> Any:
    """The first process's value, in all."""
    values = [value]
    if world() > 1:
        join()
        dist.broadcast_object_list(values, src=0)
    return values[0]


def add_up(tensors: Iterable[torch.Tensor]) -> None:
    """Put the sum over the processes in the place of each tensor, in all."""
    for tensor in tensors if world() > 1 else ():
        dist.all_reduce(tensor)


def in_any(happened: bool) -> bool:
    """Whether it has happened in one of the processes; all wait for the answer."""
    count = torch.tensor(int(happened))
    add_up([count])
    return bool(count)


def in_turn(load: Callable[[], T]) -> T:
    """What `load` returns, which the processes of a machine call one after the other."""
    for turn in range(int(os.environ["LOCAL_WORLD_SIZE"])):
        if turn == int(os.environ["LOCAL_RANK"]):
            loaded = load()
        in_any(False)  # waits
    return loaded


def once(run: runs.Run, work: Callable[[], dict[str, Any]]) -> None:
    """`runs.once` for all processes: the first holds the lock, and tells the others when there is work."""

    def together() -> dict[str, Any]:
        agreed(True)
        return work()

    if rank() == 0:
        runs.once(run.folder, "manifest.json", together)
        agreed(False)
    else:
        while agreed(None):
            work()


def shard(loss_of: ResponseLoss) -> None:
    """Leave this process its share of each layer's weights (FSDP2)."""
    mesh = init_device_mesh(join().type, (world(),))
    # In bfloat16 weights travel as autocast would use them, gradients in full.
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in [*decoder_layers(loss_of.model), loss_of]:
        fully_shard(module, mesh=mesh, mp_policy=mixed if loss_of.half else MixedPrecisionPolicy())
        module.set_gradient_divide_factor(1.0)  # the sum over the processes, not their mean,
        module.set_force_sum_reduction_for_comms(True)  # in a form that gloo knows too


if __name__ == "__main__":
    main()
