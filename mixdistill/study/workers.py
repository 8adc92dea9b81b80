"""Work in several processes of this machine, each with one thread."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import connection
from types import ModuleType
from typing import Any

import torch

from mixdistill.data import students

HEARTBEAT = 30  # seconds without an end until a line says what is at work
End = tuple[tuple, Any, BaseException | None]  # task, result or None, error or None


def n_cores() -> int:
    """The cores that this process may use (`taskset` and job schedulers give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_turn(work: Callable[..., Any], tasks: Sequence[tuple]) -> Iterator[End]:
    """`side_by_side` for GPUs: one task after the other in this process."""
    for task in tasks:
        try:
            yield task, work(*task), None
        except Exception as error:
            yield task, None, error
        gc.collect()
        torch.cuda.empty_cache()  # what this task's optimizer and cache held


def side_by_side(
    work: Callable[..., Any], tasks: Sequence[tuple], name: Callable[..., str], workers: int
) -> Iterator[End]:
    """Call `work(*task)` for every task in so many processes, and yield as they end; `name(*task)` is for people.

    An interrupt, or closing this generator, ends the processes at once; so does the end of this process.
    """
    started, context = time.monotonic(), multiprocessing.get_context("spawn")  # a fork after torch was used may hang
    with ProcessPoolExecutor(max(1, min(workers, len(tasks))), context, initializer=_start) as pool:
        others = set(multiprocessing.active_children())
        with _unseen_by_workers():
            futures = {pool.submit(work, *task): task for task in tasks}
        try:
            while futures:
                ended = wait(futures, timeout=HEARTBEAT, return_when=FIRST_COMPLETED).done
                for future in ended:
                    error = future.exception()
                    yield futures.pop(future), None if error else future.result(), error
                if not ended:
                    names = ", ".join(name(*task) for task in list(futures.values())[:workers])
                    print(f"    {time.monotonic() - started:.0f} s, at work: {names}", flush=True)
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _unseen_by_workers() -> Iterator[None]:
    """Processes that start in here do not run the caller's script, so it needs no `__main__` guard, and ignore Ctrl-C,
    which is for this process (what is ignored when a process starts, it ignores too)."""
    main, in_main_thread = sys.modules["__main__"], threading.current_thread() is threading.main_thread()
    sys.modules["__main__"] = ModuleType("__main__")
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if in_main_thread:
            signal.signal(signal.SIGINT, answer)


def _start() -> None:
    """One thread, and an end to this process when its parent is gone (a killed notebook)."""
    students.max_threads = 1
    parent = multiprocessing.parent_process()
    assert parent is not None  # `_start` is called in workers only

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
