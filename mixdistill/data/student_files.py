"""Where a student's files are, what they say it is, and how whatever is wrong with them becomes one sentence."""

import hashlib
import importlib.util
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import logging as transformers_logging
from transformers.utils import cached_file

from mixdistill import arguments
from mixdistill.data.pocket.bases import POCKET, base_folder

# What a fingerprint covers. Pickled weights are never read, so they do not count.
WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
    ),
    *("*.model", "*.tiktoken", "tekken.json", "chat_template.*", "additional_chat_templates/*.jinja"),
)

# transformers builds a model under settings of the whole process (default dtype, log level), so threads take turns.
_one_at_a_time = threading.RLock()
_remembered: dict[tuple, Any] = {}


def student_source(name: str | Path) -> str:
    """Where a student is: a local folder, a `.gguf` file, or a Hub id. Raises ValueError if it is none of these."""
    name = arguments.text("name", name)
    if name.startswith("pocket/"):
        return str(base_folder(name))
    path = os.path.expanduser(name)
    if os.path.isfile(path) and path.endswith(".gguf"):
        if importlib.util.find_spec("gguf") is None:
            raise refused(name, "a .gguf file is read by the package gguf: pip install -e '.[gguf]'")
        return path
    if os.path.isdir(path):
        if not os.path.isfile(f"{path}/config.json"):
            raise ValueError(
                f"the folder {name!r} holds no config.json: give a folder written by model.save_pretrained and "
                "tokenizer.save_pretrained, or name the .gguf file in it"
            )
        if os.path.isfile(f"{path}/adapter_config.json"):
            raise refused(name, "the folder holds an adapter: a student is a whole model, so merge it into one first")
        return path
    if path.endswith(".gguf") or not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name):
        raise ValueError(
            f"unknown student {name!r}: use one of {', '.join(POCKET)}, a Hub id as owner/name, or an existing local "
            "folder or .gguf file"
        )
    return name


def fingerprint(name: str | Path, revision: str | None = None) -> str:
    """What identifies a student: the Hub commit, or a hash of what its files hold, wherever they lie.

    A run depends on it, so a changed model never meets an old result. A file is hashed again when it has changed.
    """
    files = pretrained_files(name, revision)
    source = Path(student_source(name))
    if "revision" in files:
        return f"hub:{files['revision']}"
    folder = source if source.is_dir() else source.parent
    patterns = (*WEIGHTS, *TOKENIZER) if source.is_dir() else TOKENIZER
    paths = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    if source.is_file():
        paths["model.gguf"] = source  # whatever it is called
    content = {file: once_per_content("sha256", path, lambda path=path: _sha256(path)) for file, path in paths.items()}
    generation = folder / "generation_config.json"
    if source.is_dir() and generation.is_file():  # of which only the stop tokens are used
        with loading(name, "generation_config.json"):
            content["eos_token_id"] = json.loads(generation.read_text()).get("eos_token_id")
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]}"


def pretrained_files(name: str | Path, revision: str | None) -> dict[str, str]:
    """A student's files, as arguments of `from_pretrained`."""
    source = Path(student_source(name))
    revision = arguments.text("revision", revision, optional=True)
    if revision is not None and source.exists():
        raise ValueError(f"revision is {revision!r}, but {str(name)!r} is not on the Hub: leave the revision away")
    if source.is_dir():
        return {"pretrained_model_name_or_path": str(source)}
    if source.is_file():
        return {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    return {"pretrained_model_name_or_path": str(source), "revision": _commit(str(source), revision)}


def once_per_content(what: str, path: Path, compute: Callable[[], Any]) -> Any:
    """`compute()`, remembered until the file changes."""
    stat = path.stat()
    key = (what, str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    if key not in _remembered:
        value = compute()
        if time.time() - stat.st_mtime < 2:  # it may be written again within one tick of the file system's clock
            return value
        _remembered[key] = value
    return _remembered[key]


@contextmanager
def loading(name: str | Path, what: str) -> Iterator[None]:
    """One thread at a time, without the bars and warnings of transformers.

    Whatever a stranger's files raise becomes a ValueError of one sentence.
    """
    with _one_at_a_time:
        bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError, Refused):
            raise
        except Exception as error:
            raise refused(name, _reason(name, what, error)) from error
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


class Refused(ValueError):
    """A student that is not taken: the sentence is for its reader."""


def refused(name: str | Path, reason: str) -> Refused:
    return Refused(f"cannot load the student {str(name)!r}: {reason}")


def _reason(name: str | Path, what: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which is never run here: take a student whose architecture transformers has"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
    if not isinstance(error, (OSError, ValueError)):
        said = f"{type(error).__name__}: {said}"
    if os.path.exists(os.path.expanduser(name)) or str(name).startswith("pocket/"):
        return f"its {what} cannot be used ({said})"
    return (
        f"its {what} cannot be used ({said}): check the name, the network, that it has safetensors weights, and for "
        "a gated model `hf auth login`; or give a local folder"
    )


@lru_cache(maxsize=64)
def _commit(hub_id: str, revision: str | None) -> str:
    """The commit that a name of the Hub means in this process, even if the name moves on meanwhile."""
    with loading(hub_id, "configuration"):
        config = cached_file(hub_id, "config.json", revision=revision)
    return Path(config).parent.name  # the cache keeps files in a folder named by the commit


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
