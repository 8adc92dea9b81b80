"""Loading a student: a pocket student, a model of the Hub, a local folder, or a `.gguf` file.

A student's own files say what it is. Where transformers cannot load it exactly so, it is refused with the reason,
before any work. No code that a student brings is ever run.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from mixdistill import arguments
from mixdistill.data.chat import stop_token_id
from mixdistill.data.gguf import from_header, gguf_tokenizer
from mixdistill.data.student_files import (
    fingerprint,
    loading,
    pretrained_files,
    refused,
    student_source,
)

# Below so many parameters a student computes in float32 on a GPU too, so that it learns what it learns on a CPU. There
# it computes on one thread: a second costs it more than it gives, and its sums come out the same on every run.
TINY = 10_000_000
max_threads = torch.get_num_threads()  # for larger models on a CPU; a sweep's workers lower it to 1

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
NO_LIMIT = 2**20  # the context of architectures without one, such as Mamba
PROBE = "Hello, it's 12+345 = 357.\n\n  The café's  price:\t$\\frac{1}{2}$ <b>naïve</b> 你好 def f(x):\n    return x"

_n_params: dict[str, int] = {}  # by configuration


@dataclass
class Student:
    """A loaded model with its tokenizer."""

    name: str
    fingerprint: str  # of all that the student's files say
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
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

    Raises:
        ValueError: no such student, weights missing or left over, no chat template or eos token, a model that is not a
            decoder-only language model of transformers, or files that do not agree with each other.
    """
    name = arguments.text("name", name)
    device = arguments.text("device", device, optional=True)
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}: give one of torch's, such as cpu or cuda") from error
    files = pretrained_files(name, revision)
    config, dtype = load_config(name, revision), student_dtype(name, revision)
    tokenizer = load_tokenizer(name, revision)
    stops = stop_tokens_of(name, tokenizer, revision)
    with loading(name, "weights"):
        model, report = AutoModelForCausalLM.from_pretrained(
            **files,
            config=config,
            dtype=dtype,
            use_safetensors=True,  # no pickle
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True) if "gguf_file" in files else None,
        )
    # transformers fills what is missing with random numbers and leaves out what is too much, and only logs it.
    for problem, keys in report.items():
        if keys:
            first = min(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            kind = problem.partition("_")[0]
            raise refused(name, f"its weights are not those of its configuration ({len(keys)} {kind}, such as {first})")
    cuda = torch.cuda.is_available()
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
    return Student(
        name=name,
        fingerprint=fingerprint(name, revision),
        model=model,
        tokenizer=tokenizer,
        context=context_of(model.config),
        stop_tokens=stops,
    )


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A student's tokenizer, padded on the left: as `tokenizer.json` says, whatever class is declared beside it.

    Raises ValueError if there is none, it gives other ids than that file, or it has no chat template or eos token.
    """
    files = pretrained_files(name, revision)
    with loading(name, "tokenizer"):
        file = _file(files, "tokenizer.json")
        if "gguf_file" in files:
            path = Path(student_source(name))
            tokenizer = from_header(path, "tokenizer", partial(gguf_tokenizer, path, str(name)))
        else:
            # AutoTokenizer 5.x takes the declared class, or the architecture's, which may split a text in another way.
            loader = PreTrainedTokenizerFast if file else AutoTokenizer
            tokenizer = loader.from_pretrained(**files, padding_side="left", trust_remote_code=False)
        ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        expected = Tokenizer.from_file(file).encode(PROBE, add_special_tokens=False).ids if file else ids
    if ids != expected:
        raise refused(
            name, "its tokenizer_config.json or special_tokens_map.json changes the ids of its tokenizer.json"
        )
    if not ids:
        raise refused(name, "it has no tokenizer: save one into its folder with tokenizer.save_pretrained")
    if not tokenizer.chat_template:
        raise refused(
            name,
            "its tokenizer has no chat template: take the Instruct version, or put a file chat_template.jinja into its "
            "local folder (beside a .gguf file)",
        )
    if tokenizer.eos_token_id is None:
        raise refused(name, "its tokenizer has no eos token: name one as eos_token in tokenizer_config.json")
    return tokenizer


def load_config(name: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """A student's configuration; no weight is read.

    Raises ValueError if there is none, or none of a decoder-only language model that can be trained.
    """
    files = pretrained_files(name, revision)
    with loading(name, "configuration"):
        read = partial(AutoConfig.from_pretrained, **files, trust_remote_code=False)
        gguf = "gguf_file" in files
        config = from_header(Path(student_source(name)), "configuration", read) if gguf else read()
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    text_config = config.get_text_config(decoder=True)
    if model_class is None or getattr(config, "is_encoder_decoder", False):
        raise refused(name, f"{config.model_type!r} is not a decoder-only language model: take one that is")
    if getattr(config, "quantization_config", None):
        raise refused(name, "its weights are quantized, and so cannot be trained: take the version that is not")
    if text_config is not config and model_class.config_class is not type(text_config):
        raise refused(name, f"{config.model_type!r} reads more than text: take a text-only model of its family")
    return config


def stop_tokens_of(
    name: str | Path, tokenizer: PreTrainedTokenizerBase, revision: str | None = None
) -> tuple[int, ...]:
    """All tokens that end an answer: of the chat template, the tokenizer, and the student's generation config."""
    files, config = pretrained_files(name, revision), load_config(name, revision)
    with loading(name, "chat template"):
        stops = {stop_token_id(tokenizer), tokenizer.eos_token_id}
    with loading(name, "generation_config.json"):
        file = _file(files, "generation_config.json")
        stated = json.loads(Path(file).read_text()) if file else config.get_text_config(decoder=True).to_dict()
        ids = stated.get("eos_token_id")
        stops |= {int(token) for token in (ids if isinstance(ids, list) else [ids]) if token is not None}
    return tuple(sorted(stops))


def context_of(config: PreTrainedConfig) -> int:
    """The longest row that a model can read, in tokens; `NO_LIMIT` where its architecture has none."""
    text_config = config.get_text_config(decoder=True)
    limits = [getattr(text_config, field, None) for field in CONTEXT_FIELDS]
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), NO_LIMIT)


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """A causal model's layers in their order, whatever its architecture calls them (`layers`, `h`, `blocks`)."""
    n = model.config.get_text_config(decoder=True).num_hidden_layers
    # Outer modules come first, so an inner list of the same length, such as a layer's experts, is not taken.
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == n)


def n_params(name: str | Path, revision: str | None = None) -> int:
    """Parameters of a student, counted on an empty model: no weight is read. Raises as `load_config` does."""
    config = load_config(name, revision)
    key = config.to_json_string(use_diff=False)
    if key not in _n_params:
        with loading(name, "configuration"), torch.device("meta"):
            _n_params[key] = AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters()
    return _n_params[key]


def _file(files: dict[str, str], name: str) -> str | None:
    """The path of a file of the student's, None where there is none; a `.gguf` file holds what it needs."""
    if "gguf_file" in files:
        return None
    where, commit = files["pretrained_model_name_or_path"], files.get("revision")
    return cached_file(where, name, revision=commit, _raise_exceptions_for_missing_entries=False)


def student_dtype(name: str | Path, revision: str | None = None) -> torch.dtype:
    """bfloat16 where it pays: on a GPU, and on a CPU with instructions for it; float32 elsewhere and for tiny students.

    It goes with the machine, as the kernels do, so no run's name holds it: what one machine has computed another reads.
    Manifests and completions say it. On a CPU the loss curve is float32's within the noise of a seed, a step takes half
    the time (`benchmarks/README.md`).
    """
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
