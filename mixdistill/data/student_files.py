"""Where a student's files are, what identifies them, and how whatever is wrong with them becomes one sentence."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import logging as transformers_logging

from mixdistill import arguments, files
from mixdistill.data.pocket.bases import POCKET, base_folder
from mixdistill.data.tables import of_pocket

# What a student is, of all that lies in its folder. Pickled weights are never read, so they do not count.
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
SETTINGS = ["config.json", "generation_config.json", "chat_template.*", "additional_chat_templates/*.jinja"]
SETTINGS += ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"]
# transformers builds a model under settings of the whole process (default dtype, log level), so threads take turns.
_one_at_a_time = threading.RLock()
CANNOT = "cannot load the student"
PICKLED = "it has no safetensors, and pickled weights are never read here, so convert it by save_pretrained"
# What is wrong, by what transformers says of it.
CAUSES = {
    "does not recognize this architecture|not supported yet": (
        "this version of transformers does not know its architecture, so take another student, or a newer transformers"
    ),
    "no file named [^ ]*model.safetensors": PICKLED,
    "trust_remote_code|custom code": (
        "it needs code of its own, which is never run here, so take an architecture of transformers"
    ),
}

# Commits of the students on the Hub, as many public projects have recorded them.
REVISIONS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "google/gemma-3-270m-it": "ac82b4e820549b854eebf28ce6dedaf9fdfa17b3",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "a10cc1512eabd3dde888204e902eca88bddb4951",
    "Qwen/Qwen2.5-0.5B-Instruct": "7ae557604adf67be50417f59c2c2f167def9a775",
    "Qwen/Qwen2.5-1.5B-Instruct": "989aa7980e4cf806f80c7fef2b1adb7bc71aa306",
    "Qwen/Qwen2.5-3B-Instruct": "aa8e72537993ba99e69dfaafa59ed015b17504d1",
    "Qwen/Qwen2.5-7B-Instruct": "a09a35458c702b33eeacc393d103063234e8bc28",
    "Qwen/Qwen2.5-14B-Instruct": "cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8",
    "Qwen/Qwen2.5-32B-Instruct": "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd",
    "meta-llama/Llama-3.2-1B-Instruct": "9213176726f574b556790deb65791e0c5aa438b6",
    "meta-llama/Llama-3.2-3B-Instruct": "0cb88a4f764b7a12671c53f0838cd831a0843b95",
    "meta-llama/Llama-3.1-8B-Instruct": "0e9e39f249a16976918f6564b8830bc894c89659",
    "meta-llama/Llama-3.3-70B-Instruct": "6f6073b423013f6a7d4d9f39144961bfbfbc386b",
}


def refused(name: str | Path, reason: str) -> ValueError:
    return ValueError(f"{CANNOT} {str(name)!r}: {reason}")


def student_source(name: str | Path) -> str:
    """Where a student is: a local folder, a `.gguf` file, or a Hub id. Raises ValueError if it is none of these."""
    name = arguments.text("name", name)
    if of_pocket(name):
        return str(base_folder(name))
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if os.path.exists(f"{path}/config.json") and not os.path.exists(f"{path}/adapter_config.json"):
            return path
        what = "the folder holds an adapter, or no config.json"
        raise refused(name, f"{what}: give a whole model as save_pretrained writes it, or name its .gguf file")
    if path.endswith(".gguf") and os.path.isfile(path):
        if find_spec("gguf") is None:
            raise refused(name, "a .gguf file needs the package gguf: pip install -e '.[gguf]'")
        return path
    if path.endswith(".gguf"):
        raise refused(name, "there is no such file (a relative path begins in the working folder)")
    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name):
        known = f"{', '.join(POCKET)}, a Hub id as owner/name, or an existing local folder or .gguf file"
        raise ValueError(f"unknown student {arguments.shown(name)}: use one of {known}")
    return name


def student_folder(name: str | Path, revision: str | None, weights: bool = False) -> tuple[Path, str | None]:
    """The local folder of a student, and the name of its `.gguf` file in it or None. A Hub model is downloaded, its
    weights if asked. Raises ValueError where that fails, and for a revision of others."""
    source = Path(student_source(name))
    revision = arguments.text("revision", revision, optional=True)
    if not source.exists():
        return _downloaded(str(source), revision, weights), None
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {str(name)!r} is not on the Hub: leave the revision away")
    return (source.parent, source.name) if source.is_file() else (source, None)


@lru_cache(maxsize=64)
def _downloaded(hub_id: str, revision: str | None, weights: bool) -> Path:
    """The folder, named by its commit: what the name means in this process, even if it moves on meanwhile."""
    if weights:
        revision = _downloaded(hub_id, revision, False).name
    patterns = {"allow_patterns": SETTINGS + WEIGHTS * weights, "ignore_patterns": "consolidated*"}  # a second copy
    with loading(hub_id, "repository"):
        return Path(snapshot_download(hub_id, revision=revision, **patterns))


def fingerprint(name: str | Path, revision: str | None = None) -> str:
    """What identifies a student: the Hub commit, or a hash of what its files hold, wherever they lie. A run depends on
    it, so a changed model never meets an old result."""
    folder, gguf = student_folder(name, revision)
    if not os.path.exists(student_source(name)):
        return f"hub:{folder.name}"
    found = {file.relative_to(folder).as_posix(): file for glob in SETTINGS + WEIGHTS for file in folder.glob(glob)}
    if gguf:
        found = {"model.gguf": folder / gguf, "chat_template.jinja": folder / "chat_template.jinja"}
    generation = found.pop("generation_config.json", None)
    content = {what: _digest(file) for what, file in found.items() if file.is_file()}
    if generation:
        with loading(name, generation.name):  # of which only the stop tokens are used
            content["eos_token_id"] = json.loads(generation.read_text()).get("eos_token_id")
    return f"sha256:{files.key(content)}"


def _digest(path: Path) -> str:
    stat = path.stat()
    # Two writes within one tick of the file system's clock look alike, so a young file is read again every time.
    young = time.time_ns() if time.time() - stat.st_mtime < 2 else 0
    return _remembered_digest(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, young)


@lru_cache(maxsize=1024)
def _remembered_digest(path: Path, *state: int) -> str:
    return files.digest(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and warnings of transformers; one thread at a time, as these are settings of the process."""
    with _one_at_a_time:
        bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


@contextmanager
def loading(name: str | Path, what: str) -> Iterator[None]:
    """Whatever a stranger's files raise becomes a ValueError of one sentence."""
    with quiet():
        try:
            yield
        except Exception as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or str(error).startswith(CANNOT):
                raise
            said = " ".join(f"{type(error).__name__}: {error}".split())
            advice = "its files are damaged or incomplete, so write or fetch them again"
            if not of_pocket(str(name)) and not os.path.exists(os.path.expanduser(name)):
                advice = "there is no such folder here; of the Hub, check name, network and, if gated, `hf auth login`"
            for words, cause in CAUSES.items():
                advice = cause if re.search(words, said) else advice
            raise refused(name, f"its {what} cannot be used ({said[:300]}): {advice}") from error
