"""Loading a student: a pocket student, a model of the Hub, a local folder, or a `.gguf` file.

A student's own files say what it is. Where transformers cannot load it exactly so, it is refused with the reason,
before any work. No code that a student brings is ever run.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

from mixdistill import arguments
from mixdistill.data.chat import stop_token_id
from mixdistill.data.gguf_files import gguf_tokenizer, scale_positions
from mixdistill.data.student_files import fingerprint, loading, refused, student_folder
from mixdistill.data.student_files import student_source as student_source

# Below so many parameters a student computes in float32 on a GPU too, so that it learns what it learns on a CPU. There
# it computes on one thread: a second costs it more than it gives, and its sums come out the same on every run.
TINY = 10_000_000
max_threads = torch.get_num_threads()  # for larger models on a CPU; a sweep's workers lower it to 1

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
NO_LIMIT = 2**20  # the context of architectures without one, such as Mamba
PROBE = "Hello, it's 12+345 = 357.\n\n  The café's  price:\t$\\frac{1}{2}$ <b>naïve</b> 你好 def f(x):\n    return x"


@dataclass
class Student:
    """A loaded model with its tokenizer."""

    name: str
    fingerprint: str  # of all that the student's files say
    model: torch.nn.Module
    tokenizer: Tokenizer
    context: int  # tokens
    stop_tokens: tuple[int, ...]  # an answer ends with any of them

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_student(name: str | Path, revision: str | None = None, device: str | None = None) -> Student:
    """Load a student onto the GPU if there is one, else onto the CPU, in the type that `student_dtype` says.

    On a CPU it sets the number of threads of the process: 1 for a tiny student, `max_threads` for a larger one.

    Arguments:
        name: `pocket/xs`, a Hub id such as `Qwen/Qwen2.5-0.5B-Instruct`, a local folder in Hugging Face form, or a
            `.gguf` file, which is dequantised. A base model gets a chat template by a file `chat_template.jinja` in the
            folder, or beside the `.gguf` file.
        revision: commit of a Hub model.
        device: `cpu` to leave the weights there, in the type that they would have elsewhere.

    Raises ValueError for no such student, weights missing or left over, no chat template or eos token, a model that is
    not a decoder-only language model of transformers, or files that do not agree with each other.
    """
    name = arguments.text("name", name)
    cuda = torch.cuda.is_available()
    device = arguments.choice("device", device, ("cpu", "cuda") if cuda else ("cpu",), optional=True)
    config, tokenizer = load_config(name, revision), load_tokenizer(name, revision)
    stops = stop_tokens_of(name, tokenizer, revision)
    folder, gguf = student_folder(name, revision, weights=True)
    with loading(name, "weights"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=gguf,
            quantization_config=transformers.GgufConfig(dequantize=True) if gguf else None,
            config=config,
            dtype=student_dtype(name, revision),
            use_safetensors=True,  # no pickle
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            trust_remote_code=False,
        )
    # transformers fills what is missing with random numbers and leaves out what is too much, and only logs it.
    for problem, keys in report.items():
        if keys:
            what = f"{len(keys)} {problem}, such as {min(map(str, keys))}"
            raise refused(name, f"its weights are not those of its configuration ({what})")
    model.to(device or ("cuda" if cuda else "cpu")).eval()
    if not cuda:
        torch.set_num_threads(1 if model.num_parameters() < TINY else max_threads)
    n_tokens = model.get_input_embeddings().weight.shape[0]
    if not set(stops) <= set(range(n_tokens)):
        raise refused(name, f"its stop tokens {stops} are not all among its {n_tokens} embeddings")
    _check_outputs(name, model, n_tokens)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= n_tokens:
        tokenizer.pad_token = tokenizer.eos_token
    # The checkpoint's own sampling defaults (Qwen2.5: repetition_penalty 1.05) would change even greedy decoding.
    model.generation_config = GenerationConfig(eos_token_id=list(stops), pad_token_id=tokenizer.pad_token_id)
    return Student(name, fingerprint(name, revision), model, tokenizer, context_of(config), stops)


def load_tokenizer(name: str | Path, revision: str | None = None) -> Tokenizer:
    """A student's tokenizer, padded on the left: as `tokenizer.json` says, whatever class is declared beside it. Raises
    ValueError if there is none, it gives other ids than that file, or it has no chat template or eos token."""
    folder, gguf = student_folder(name, revision)
    file = folder / "tokenizer.json"
    if not gguf and not file.is_file():
        raise refused(name, "it has no tokenizer.json: write one into its folder with tokenizer.save_pretrained")
    with loading(name, "tokenizer"):
        if gguf:
            tokenizer = gguf_tokenizer(name, folder / gguf)
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
            in_file = tokenizers.Tokenizer.from_file(str(file))
            in_file.no_truncation()
            in_file.no_padding()
            special = [token for token in tokenizer.all_special_tokens if in_file.token_to_id(token) is not None]
            probe = PROBE + "".join(special)
            expected = in_file.encode(probe, add_special_tokens=False).ids
            if tokenizer(probe, add_special_tokens=False)["input_ids"] != expected:
                raise refused(name, "its tokenizer_config.json changes the ids of its tokenizer.json")
    tokenizer.name_or_path, tokenizer.padding_side = str(name), "left"
    if not tokenizer.chat_template:
        what = "take the Instruct version, or put a file chat_template.jinja into its folder (beside a .gguf file)"
        raise refused(name, f"its tokenizer has no chat template: {what}")
    if tokenizer.eos_token_id is None:
        raise refused(name, "its tokenizer has no eos token: name one as eos_token in tokenizer_config.json")
    return tokenizer


def load_config(name: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """A student's configuration; no weight is read. Raises ValueError if there is none, or none of a decoder-only
    language model that can be trained."""
    return copy.deepcopy(_definition(str(name), revision, fingerprint(name, revision))[0])


def n_params(name: str | Path, revision: str | None = None) -> int:
    """Parameters of a student, counted on an empty model: no weight is read. Raises as `load_config` does."""
    return _definition(str(name), revision, fingerprint(name, revision))[1]


@lru_cache(maxsize=64)
def _definition(name: str, revision: str | None, fingerprint: str) -> tuple[PreTrainedConfig, int]:
    """Configuration and number of parameters, remembered until the fingerprint changes."""
    with loading(name, "configuration"):
        folder, gguf = student_folder(name, revision)
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=gguf, trust_remote_code=False)
        _drop_nothing(config)
        if gguf:
            scale_positions(name, folder / gguf, config)
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    text_config = config.get_text_config(decoder=True)
    if model_class is None or getattr(config, "is_encoder_decoder", False):
        raise refused(name, f"{config.model_type!r} is not a decoder-only language model: take one that is")
    if getattr(config, "quantization_config", None):
        raise refused(name, "its weights are quantized, and so cannot be trained: take the version that is not")
    if text_config is not config and model_class.config_class is not type(text_config):
        raise refused(name, f"{config.model_type!r} reads more than text: take a text-only model of its family")
    with loading(name, "configuration"), torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters()


def _drop_nothing(config: PreTrainedConfig) -> None:
    """Set all dropout, and the noise of routers, to 0: they would depend on how a step is cut into passes, and a run's
    name does not."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _drop_nothing(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)


def stop_tokens_of(name: str | Path, tokenizer: Tokenizer, revision: str | None = None) -> tuple[int, ...]:
    """All tokens that end an answer: of the chat template, the tokenizer, and the student's generation config."""
    stops = {stop_token_id(tokenizer), tokenizer.eos_token_id}
    folder, gguf = student_folder(name, revision)
    file = folder / "generation_config.json"
    stated = load_config(name, revision).get_text_config(decoder=True).to_dict()
    with loading(name, file.name):
        stated = json.loads(file.read_text()) if file.is_file() and not gguf else stated
        ids = stated.get("eos_token_id")
        stops |= {int(token) for token in (ids if isinstance(ids, list) else [ids]) if token is not None}
    return tuple(sorted(stops))


def context_of(config: PreTrainedConfig) -> int:
    """The longest row that a model can read, in tokens; `NO_LIMIT` where its architecture has none."""
    text_config = config.get_text_config(decoder=True)
    limits = [getattr(text_config, field, None) for field in CONTEXT_FIELDS]
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), NO_LIMIT)


def rope_boundary(config: PreTrainedConfig) -> int | None:
    """Tokens up to which a LongRoPE student (Phi-3.5, Phi-4-mini) reads positions otherwise than in longer rows: all
    rows of a call as its longest, so what is read together has to be on one side. None for other students."""
    text_config = config.get_text_config(decoder=True)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or text_config.original_max_position_embeddings


def check_ids(student: Student, rows: Sequence[Sequence[int]]) -> None:
    """Raise ValueError if a row holds a token that the student has no embedding of."""
    n, last = student.model.get_input_embeddings().weight.shape[0], max(map(max, filter(None, rows)), default=0)
    if last >= n:
        shown = arguments.shown(student.tokenizer.convert_ids_to_tokens(last))
        raise refused(student.name, f"a text has the token {shown} ({last}), and the weights are of {n} tokens only")


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """A causal model's layers in their order, whatever its architecture calls them (`layers`, `h`, `blocks`)."""
    n = model.config.get_text_config(decoder=True).num_hidden_layers
    # Outer modules come first, so an inner list of the same length, such as a layer's experts, is not taken.
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == n)


def student_dtype(name: str | Path, revision: str | None = None) -> torch.dtype:
    """bfloat16 where it pays: on a GPU, and on a CPU with instructions for it; float32 elsewhere and for tiny students.
    It goes with the machine, so no run's name holds it (`docs/real-models.md` has the measurements)."""
    cpu = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or cpu.get("avx512_bf16") or cpu.get("amx_bf16")
    return torch.bfloat16 if fast and n_params(name, revision) >= TINY else torch.float32


def _check_outputs(name: str, model: torch.nn.Module, n_tokens: int) -> None:
    """Raise ValueError if a later token changes the outputs of earlier ones, as in an encoder, or an output is NaN."""
    ids = torch.arange(8, device=model.device).repeat(2, 1) % n_tokens
    ids[1, -1] = 0
    with loading(name, "model"), torch.no_grad():
        first, second = model(input_ids=ids).logits[:, :-1].float()
    if not torch.isfinite(first).all():
        raise refused(name, "its weights give outputs that are not finite")
    if (first - second).abs().max() > (1e-5 if model.dtype == torch.float32 else 1e-2) * first.abs().max():
        raise refused(name, f"as {model.config.model_type!r} it reads the text to come: take a decoder-only model")
