"""Jobs in processes of this machine, one a core or a GPU."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from types import ModuleType

import psutil
import torch

from mixdistill.data import students
from mixdistill.study.jobs import End, Job, Progress, attempt

# Of a container: microseconds, and of how many; and bytes.
QUOTA, MEMORY = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/memory.max")


def n_cores() -> int:
    """The cores that this process may use: `taskset`, job schedulers and containers give fewer than there are."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such limits here, or "max"
        quota, period = map(int, QUOTA.read_text().split())
        n = max(1, min(n, quota // period))
    return n


def gpu_names() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (given or [str(number) for number in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


def in_processes(
    jobs: Sequence[Job], patient: bool, shown: Progress, workers: int | None = None
) -> Generator[End, None, None]:
    """Run the jobs in processes of this machine, and yield as they end.

    On GPUs every job gets a fresh process, which sees its own GPUs only: nothing stays in their memory. On a CPU a
    process, with one thread, goes on with the next job. A killed process fails its own job only.

    An interrupt, or closing this generator, ends the processes at once; so does the end of this process.
    """
    gpus = gpu_names() if workers is None else []
    places = gpus or [str(number) for number in range(workers or n_cores())]
    if not gpus and workers is None:
        most, there = max((job.memory for job in jobs), default=1), psutil.virtual_memory().available
        with suppress(OSError, ValueError):
            there = min(there, int(MEMORY.read_text()))
        if (n := max(1, there // most)) < len(places):
            told = f"one may take {most / 1e9:.1f} GB, and {there / 1e9:.1f} GB are free"
            shown.say(f"{n} in the place of {len(places)} at a time: {told}")
        places = places[:n]
    free, todo, others = [*places], [*jobs], set(multiprocessing.active_children())
    idle: list[ProcessPoolExecutor] = []
    at_work: dict[Future, tuple[Job, list[str], ProcessPoolExecutor]] = {}
    # A fork after torch was used may hang. On Linux the processes are forks of one that has only imported this package,
    # which takes seconds and is done once; where there is a GPU each is new, as CUDA does not survive a fork.
    server = sys.platform == "linux" and not (gpus or torch.cuda.is_available())
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload(["mixdistill.study.sweep"])
    try:
        while todo or at_work:
            for job in [*todo]:
                n = len(places) if job.wide else 1
                if n > len(free):
                    continue
                todo.remove(job)
                taken, free = free[:n], free[n:]
                future = None
                while future is None:
                    pool = idle.pop() if idle else ProcessPoolExecutor(1, context, _start, (not gpus, dict(os.environ)))
                    # A process may have been killed while it was idle.
                    with _as_workers_see_it(gpus and taken), suppress(BrokenProcessPool):
                        future = pool.submit(attempt, job, patient, shown.status(job))
                at_work[future] = job, taken, pool
            shown.at_work([job for job, *_ in at_work.values()])
            for future in wait(at_work, timeout=1, return_when=FIRST_COMPLETED).done:
                (job, taken, pool), error = at_work.pop(future), future.exception()
                free = sorted(free + taken, key=places.index)
                killed = isinstance(error, BrokenProcessPool)
                if gpus or killed:
                    pool.shutdown()
                else:
                    idle.append(pool)
                if killed:
                    error = RuntimeError("its process was killed, as systems do that run out of memory")
                yield job, "" if error else future.result(), error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        for pool in [*idle, *(pool for *_, pool in at_work.values())]:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _as_workers_see_it(gpus: Sequence[str]) -> Iterator[None]:
    """Processes that start in here see these GPUs, or all if there are none; they do not run the caller's script, so it
    needs no `__main__` guard, and ignore Ctrl-C, which is for this process (what is ignored when a process starts, it
    ignores too)."""
    main, in_main_thread = sys.modules["__main__"], threading.current_thread() is threading.main_thread()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    sys.modules["__main__"] = ModuleType("__main__")
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    if gpus:  # from the start, as CUDA reads it once
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if in_main_thread:
            signal.signal(signal.SIGINT, answer)
        if gpus:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            os.environ |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}


def _start(one_thread: bool, environment: dict[str, str]) -> None:
    """In a new process: how many threads it has, its parent's environment of now (but for what libraries read when they
    are imported), and an end to it when its parent is gone (a killed notebook)."""
    if one_thread:
        students.max_threads = 1
        os.environ.clear()
        os.environ.update(environment)
    parent = multiprocessing.parent_process()
    assert parent is not None  # `_start` is called in workers only

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
