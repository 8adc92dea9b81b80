"""One run in several processes, one a GPU: started by torchrun, in step with each other, with copies or shares of the
weights.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset, load_from_disk
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mixdistill import files, runs
from mixdistill.data.students import decoder_layers
from mixdistill.finetuning.loss import ResponseLoss
from mixdistill.finetuning.memory import Placement, recompute

MODULE = "mixdistill.finetuning.finetune"  # what each process runs


def to_launch(on: Placement) -> bool:
    """Whether the processes of a placement have yet to be started. Raises ValueError if this machine cannot give what
    it asks for.
    """
    n = torch.cuda.device_count()
    if on.gpus > max(n, world(), 1):
        raise ValueError(f"gpus is {on.gpus}, this machine has {n}: ask for at most that many")
    if on.shard and max(on.gpus, world()) == 1:
        raise ValueError("shard is True on 1 GPU: the weights are shared out over several, set gpus")
    if on.offload and n == 0:
        raise ValueError("offload is True: it moves activations off a GPU, and this machine has none")
    return on.gpus > 1 and world() == 1


def launch(train: Dataset, arguments: dict, processes: int) -> None:
    """Train an arm in so many processes of this machine, their output printed as it comes; no fork, as CUDA may be in
    use here.

    Raises RuntimeError if they fail, with what the first said.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(runs.REPO), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun would set it, and say so at length
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    last: deque[str] = deque(maxlen=200)
    with tempfile.TemporaryDirectory() as folder:
        arm = save_arm(Path(folder), train, arguments)
        with subprocess.Popen([*command, MODULE, str(arm)], env=environment, **pipes) as process:
            try:
                for line in process.stdout:
                    last.append(line)
                    print(line, end="", flush=True)
            finally:  # also where the notebook is interrupted
                process.terminate()
    if process.returncode:
        said = [line.strip() for line in last if line.startswith("Error: ")]
        raise RuntimeError(f"training in {processes} processes failed: {said[0] if said else ''.join(last)[-500:]!r}")


def save_arm(folder: Path, train: Dataset, arguments: dict) -> Path:
    """Write what `finetune` is called with, `lora` and `on` as dictionaries of their fields; returns the path of
    `arm.json`.

    `accelerate launch -m mixdistill.finetuning.finetune FOLDER/arm.json` trains it, on several machines if they share
    the folder and the run store.
    """
    train.save_to_disk(folder / "train")
    files.write_json(folder / "arm.json", arguments | {"train": "train"})
    return folder / "arm.json"


def load_arm(path: Path) -> tuple[Dataset, dict]:
    """Training data and arguments of an arm. Raises ValueError if the file is none."""
    arguments = files.read_json(path)
    if not {"student", "train"} <= arguments.keys():
        raise ValueError(f"{str(path)!r} is no arm: give the arm.json that save_arm has written")
    return load_from_disk(path.parent / arguments.pop("train")), arguments


def world() -> int:
    """How many processes torchrun or `accelerate launch` have started."""
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


def agreed(value: object) -> object:
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
    if world() == 1:
        return happened
    count = torch.tensor(int(happened))
    add_up([count])
    return bool(count)


@contextlib.contextmanager
def in_turn(one_at_a_time: bool) -> Iterator[None]:
    """Let the processes of a machine load one after the other: each holds the whole model until it has cut out its
    share.
    """
    before, turns = (int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    for _ in range(before if one_at_a_time else 0):
        in_any(False)
    yield
    for _ in range(turns - before if one_at_a_time else 0):
        in_any(False)


def once(run: runs.Run, work: Callable[[], dict]) -> None:
    """`runs.once` for all processes: the first holds the lock, and tells the others when there is work."""

    def together() -> dict:
        agreed(True)
        return work()

    if rank() == 0:
        runs.once(run.folder, "manifest.json", together)
        agreed(False)
    else:
        while agreed(None):
            work()


def place(loss_of: ResponseLoss, on: Placement) -> None:
    """Set up how the layers compute, and of sharded weights leave this process its share of each layer (FSDP2)."""
    recompute(loss_of.model, on)
    layers = decoder_layers(loss_of.model)
    for layer in layers if on.compile else ():
        layer.compile(dynamic=True)
    if not on.shard:
        return
    mesh = init_device_mesh(join().type, (world(),))
    # In bfloat16 weights travel as autocast would use them, gradients in full.
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in [*layers, loss_of]:
        fully_shard(module, mesh=mesh, mp_policy=mixed if loss_of.half else MixedPrecisionPolicy())
        module.set_gradient_divide_factor(1.0)  # the sum over the processes, not their mean,
        module.set_force_sum_reduction_for_comms(True)  # in a form that gloo knows too
