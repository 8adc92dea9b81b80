"""A Ray cluster of two machines, which are processes of this one."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import REPO

from mixdistill import get_scale
from mixdistill.study.grid import grid_arms
from mixdistill.study.sweep import run_arm

SMOKE = get_scale("smoke", 1)
GRID = {"STUDENT": ["pocket/xs"], "RECIPE": ["short", "long"], "SEED": [0, 1]}


@pytest.fixture
def cluster(monkeypatch):
    """One machine with a core, to which others are added."""
    pytest.importorskip("ray", reason="no Ray: pip install -e '.[cluster]'")
    # Ray puts sockets there, whose paths may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    # Ray's workers give way to all else, and other tests run beside this one.
    settings = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if own:  # a machine of Ray's is dozens of processes, which have a time to start in: they get all cores
        os.sched_setaffinity(0, range(os.cpu_count()))
    cluster = in_some_try(lambda: Cluster(initialize_head=True, head_node_args=machine()))
    yield cluster
    cluster.shutdown()
    if own:
        os.sched_setaffinity(0, own)
    shutil.rmtree(folder, ignore_errors=True)


def in_some_try(start):
    """Ray gives a machine 30 seconds to start, which a busy one may need more than."""
    for _ in range(5):
        before = set(psutil.Process().children(recursive=True))
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
        for left in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):
                left.kill()
    pytest.skip("Ray could not start within its 30 seconds: this machine is too busy")


def machine() -> dict[str, int]:
    """Its ports are given, as Ray looks for those that its processes choose for some seconds only."""
    ports = {}
    for name in ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port"):
        with socket.socket() as found:
            found.bind(("", 0))
            ports[name] = found.getsockname()[1]
    return {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False} | ports


def works_for(raylet: int, store: Path) -> bool:
    """Whether a process of this machine is in the middle of an arm."""
    for path in store.rglob(".lock"):
        with suppress(FileNotFoundError, IndexError, psutil.NoSuchProcess):  # it has ended meanwhile
            if raylet in [parent.pid for parent in psutil.Process(int(path.read_text().split()[1])).parents()]:
                return True
    return False


@pytest.mark.filterwarnings("default")
def test_a_machine_that_is_lost_costs_no_arm_and_changes_no_score(cluster, store, tmp_path):
    other, shared = in_some_try(lambda: cluster.add_node(**machine())), tmp_path / "shared"
    grid = [f"{name}={','.join(map(str, values))}" for name, values in GRID.items()]
    command = [sys.executable, "-m", "mixdistill", "sweep", "--scale", "smoke", "--grid", *grid, "--on", "ray"]
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "MIXDISTILL_RUNS": str(shared)}
    environment["PYTHONPATH"] = str(REPO)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    raylet = other.all_processes["raylet"][0].process.pid
    while not works_for(raylet, shared):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    cluster.remove_node(other, allow_graceful=False)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    table = pd.read_csv(said.strip().splitlines()[-1].removeprefix("Table: "))
    arms = grid_arms(GRID, SMOKE)
    assert table["accuracy"].tolist() == [run_arm(arm, SMOKE).accuracy for arm in arms]
    for path in store.rglob("generations.jsonl"):
        assert (shared / path.relative_to(store)).read_bytes() == path.read_bytes()
