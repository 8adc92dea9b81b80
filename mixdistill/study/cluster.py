"""Jobs in a Ray cluster, whose machines share the run store: `pip install -e '.[cluster]'`, docs/cluster.md."""

import importlib.util
import logging
import os
from collections.abc import Generator, Sequence
from pathlib import Path

import torch

from mixdistill.data import students
from mixdistill.runs import runs_dir
from mixdistill.study.jobs import End, Job, Progress, attempt

RETRIES = 3  # of a job whose machine or process was lost
SHARED = ("MIXDISTILL_RUNS", "MIXDISTILL_DATA")  # what the machines are told of this one's environment


def check_place(on: str) -> str:
    """Where jobs can run. Raises ValueError for another place, or for Ray where it is not installed."""
    if on not in ("local", "ray") and not (isinstance(on, str) and on.startswith("ray://")):
        raise ValueError(f"on is {on!r}: use local, ray (a cluster that this machine is in) or ray://HEAD:10001")
    if on != "local" and importlib.util.find_spec("ray") is None:
        raise ValueError(f"on is {on!r}, and Ray is not installed: pip install -e '.[cluster]'")
    return on


def in_ray(jobs: Sequence[Job], patient: bool, shown: Progress, address: str) -> Generator[End, None, None]:
    """Run each job as a task of a Ray cluster, with its cores, GPUs and memory, and yield as they end.

    A task whose machine or process is lost runs again, on another one. An interrupt ends all tasks.

    Arguments:
        address: `ray`: the cluster that this machine is in (or `$RAY_ADDRESS`), else one of this machine only;
            `ray://HEAD:10001`: from outside.
    """
    if not jobs:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody outside
    import ray  # optional, and slow to import

    ours = not ray.is_initialized()  # and no session of the caller's, which stays
    if ours:
        ray.init(None if address == "ray" else address, logging_level=logging.ERROR, log_to_driver=False)
    runs_dir().mkdir(parents=True, exist_ok=True)
    shared = {name: os.environ[name] for name in SHARED if name in os.environ} | {"MIXDISTILL_RUNS": str(runs_dir())}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = {name: max((has.get(name, 0) for has in machines), default=0) for name in ("CPU", "GPU", "memory")}
    n_cores, pending = int(sum(has.get("CPU", 0) for has in machines)), {}
    try:
        for job in jobs:
            gpus = largest["GPU"] if job.wide else min(1, largest["GPU"])
            cpus = largest["CPU"] if job.wide and not gpus else 1
            # What no machine has would be waited for without end.
            needs = {"num_gpus": gpus, "num_cpus": cpus, "memory": int(min(job.memory, largest["memory"]))}
            task = ray.remote(_task).options(name=job.name, max_retries=RETRIES, **needs)
            pending[task.remote(job, patient, shared)] = job
        while pending:
            shown.at_work([*pending.values()][:n_cores])  # tasks start in their order
            for done in ray.wait([*pending], timeout=1)[0]:
                job = pending.pop(done)
                try:
                    yield job, ray.get(done), None
                except ray.exceptions.RayTaskError as error:
                    yield job, "", error.cause
                except ray.exceptions.RayError as error:
                    yield job, "", RuntimeError(str(error).splitlines()[0])
    finally:
        for task in pending:
            ray.cancel(task, force=True)
        if ours:
            ray.shutdown()


def _task(job: Job, patient: bool, environment: dict[str, str]) -> str:
    """What a machine of the cluster does."""
    os.environ.update(environment)
    store = Path(environment["MIXDISTILL_RUNS"])
    if not store.is_dir():
        raise RuntimeError(f"this machine of the cluster has no folder {store}: all need the run store at one path")
    if not torch.cuda.is_available():
        students.max_threads = 1  # as in the processes of one machine
    return attempt(job, patient)
