"""One training run on several GPUs: processes of `torchrun`, started from a notebook or by a cluster's own launcher."""

import json
import os
import subprocess
import sys
import warnings
from collections import deque
from pathlib import Path

from datasets import Dataset, load_from_disk

from mixdistill import runs

# `python -m mixdistill.finetuning.finetune` imports the package, and with it the module that is about to run.
warnings.filterwarnings(
    "ignore", message=".*mixdistill.finetuning.finetune.* found in sys.modules", category=RuntimeWarning
)


def save_arm(folder: Path, train: Dataset, arguments: dict) -> Path:
    """Write what `finetune` is called with, data included, for other processes; returns the path of `arm.json`.

    `accelerate launch -m mixdistill.finetuning.finetune FOLDER/arm.json` trains it; runs go to `$MIXDISTILL_RUNS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train").is_dir():
        runs.replace(folder / "train", lambda path: train.save_to_disk(path))
    runs.write_json(folder / "arm.json", arguments | {"train": "train"})
    return folder / "arm.json"


def load_arm(path: Path) -> tuple[Dataset, dict]:
    """Training data and arguments of an arm.

    Raises ValueError if the file is none, or its data is missing.
    """
    arguments = runs.read_json(path)
    if not isinstance(arguments, dict) or not {"student", "train"} <= arguments.keys():
        raise ValueError(
            f"{str(path)!r} is no arm: give the arm.json that finetune(..., gpus=2) or save_arm has written"
        )
    folder = path.parent / arguments.pop("train")
    if not folder.is_dir():
        raise ValueError(f"the training data {str(folder)!r} is missing: write the arm again")
    return load_from_disk(folder), arguments


def torchrun(arm: Path, processes: int) -> None:
    """Train an arm in so many processes of this machine, their output printed as it comes.

    Raises RuntimeError if they fail, with the last lines that they printed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(runs.REPO), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun would set it, and say so at length
    process = subprocess.Popen(
        [*command, "-m", "mixdistill.finetuning.finetune", str(arm)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    last: deque[str] = deque(maxlen=200)
    try:
        for line in process.stdout:
            last.append(line)
            print(line, end="", flush=True)
    finally:  # also where the notebook is interrupted
        process.terminate()
        process.wait()
        process.stdout.close()
    if process.returncode:
        said = [line.strip() for line in last if line.startswith("Error: ")]
        raise RuntimeError(
            f"training in {processes} processes failed: {said[0] if said else json.dumps(''.join(last)[-500:])}"
        )
