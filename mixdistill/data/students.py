"""Loading a student: a pocket student, a model of the Hub, a local folder, or the student that a run has trained."""

import hashlib
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers import logging as transformers_logging
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from mixdistill.data.chat import stop_token_id
from mixdistill.data.pocket.bases import POCKET, base_folder

transformers_logging.disable_progress_bar()  # "Loading weights", once an arm, buries our own progress
# peft 0.21 reads an attribute that transformers 5.23 deprecates.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

# Below so many parameters a student computes in float32 on a GPU too, so that it learns what it learns on a CPU; and there on one thread, as
# a second costs it more than it gives, and its sums come out the same on every run.
TINY = 10_000_000
max_threads = torch.get_num_threads()  # for larger models on a CPU; a sweep's workers lower it to 1


@dataclass
class Student:
    """A loaded model with its tokenizer."""

    name: str
    fingerprint: str  # of the weights
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    context: int  # tokens
    stop_token: int

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_student(name: str, revision: str | None = None, device: str | None = None) -> Student:
    """Load a student onto the GPU in bfloat16 (a tiny one in float32) if there is one, else onto the CPU in float32.

    Arguments:
        name: `pocket/xs`, a Hub id such as `Qwen/Qwen2.5-0.5B-Instruct`, or a local folder in Hugging Face form.
        revision: commit of a Hub model.
        device: `cpu` to leave the weights there, in the type that they would have elsewhere.

    Raises:
        ValueError: no such student, no safetensors weights, or a tokenizer without chat template.
    """
    source = student_source(name)
    cuda = torch.cuda.is_available()
    try:
        tokenizer = load_tokenizer(source, revision)
        half = cuda and n_params(name, revision) >= TINY
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=torch.bfloat16 if half else torch.float32,
            use_safetensors=True,  # no pickle
        )
    except (OSError, ValueError) as error:
        raise ValueError(_cannot_load(name, error)) from error
    model.to(device or ("cuda" if cuda else "cpu")).eval()
    if not cuda:
        torch.set_num_threads(1 if model.num_parameters() < TINY else max_threads)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stop = stop_token_id(tokenizer)
    # The checkpoint's own sampling defaults (Qwen2.5: repetition_penalty 1.05) would change even greedy decoding.
    model.generation_config = GenerationConfig(
        eos_token_id=sorted({stop, tokenizer.eos_token_id}), pad_token_id=tokenizer.pad_token_id
    )
    return Student(
        name=name,
        fingerprint=fingerprint(name, revision),
        model=model,
        tokenizer=tokenizer,
        context=model.config.max_position_embeddings,
        stop_token=stop,
    )


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or Hub model."""
    declared = get_tokenizer_config(source, revision=revision).get("tokenizer_class")
    # AutoTokenizer 5.x takes Qwen2Tokenizer for every Qwen2 model, and that drops the words of any other vocabulary.
    generic = Path(source).is_dir() and declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    loader = PreTrainedTokenizerFast if generic else AutoTokenizer
    return loader.from_pretrained(source, revision=revision, padding_side="left")


def student_source(name: str) -> str:
    """What `from_pretrained` takes for this student: a local folder, or a Hub id."""
    if name.startswith("pocket/"):
        return str(base_folder(name))
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"the folder {name!r} holds no config.json: give a folder written by model.save_pretrained and tokenizer.save_pretrained"
            )
        return name
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"unknown student {name!r}: use one of {', '.join(POCKET)}, a Hub id as owner/name, or an existing local folder"
        )
    return name


@lru_cache(maxsize=64)
def fingerprint(name: str, revision: str | None = None) -> str:
    """What identifies a student's weights: the Hub commit, or a hash of a local folder's configuration and weights.

    A run depends on it, so a changed model never meets an old result.
    """
    source = student_source(name)
    if not Path(source).is_dir():
        try:
            config = cached_file(source, "config.json", revision=revision)
        except (OSError, ValueError) as error:
            raise ValueError(_cannot_load(name, error)) from error
        return f"hub:{Path(config).parent.name}"  # the cache keeps files in a folder named by the commit
    digest = hashlib.sha256()
    files = [path for path in Path(source).iterdir() if path.suffix in (".safetensors", ".jinja")]
    for path in [*sorted(files), Path(source, "config.json"), Path(source, "tokenizer.json")]:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:32]}"


@lru_cache(maxsize=64)
def n_params(name: str, revision: str | None = None) -> int:
    """Parameters of a student, counted on an empty model: no weight is read."""
    config = AutoConfig.from_pretrained(student_source(name), revision=revision)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def _cannot_load(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"cannot load the student {name!r} ({reason}): check the name, the network, that the model has safetensors weights, "
        "and for a gated model `hf auth login`; or give a local folder"
    )
