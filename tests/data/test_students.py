"""Which students load and how: names, weights, tokenizers, stop tokens, fingerprints; and why others are refused."""

import ast
import hashlib
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from conftest import REPO
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mixdistill import load_student
from mixdistill.data import students
from mixdistill.data.pocket import bases
from mixdistill.data.pocket.bases import BASE_SEEDS, GATED, LARGE, POCKET, POCKET_BASES, base_facts
from mixdistill.data.students import NO_LIMIT, decoder_layers, fingerprint, n_params, student_source


def test_the_first_base_carries_the_students_own_name():
    assert list(POCKET_BASES) == [*POCKET, *LARGE]
    assert all(names[0] == student for student, names in POCKET_BASES.items())
    assert all(base.startswith(f"{student}-") for student, names in POCKET_BASES.items() for base in names[1:])
    assert [len(names) for names in POCKET_BASES.values()] == [len(seeds) for seeds in BASE_SEEDS.values()]


@pytest.mark.parametrize(
    "name", ["pocket/huge", "pocket/xs-0", "pocket/xs-99", "pocket/xl-99", "pocket/xs-one", "pocket/"]
)
def test_unknown_bases_are_refused_with_the_students_that_there_are(name):
    with pytest.raises(ValueError, match=f"unknown student '{name}': the pocket world has pocket/xs, pocket/s, "):
        load_student(name)


@pytest.mark.parametrize(("name", "command"), [("pocket/m-2", "m --seed 2"), ("pocket/xl", "xl --seed 0")])
def test_a_base_whose_weights_are_not_here_is_refused_with_the_command_that_makes_it(
    name, command, tmp_path, monkeypatch
):
    monkeypatch.setattr(bases, "POCKET_DIR", tmp_path)
    with pytest.raises(
        ValueError, match=rf"weights of '{name}' are not in .* `python -m pretraining.pretrain {command}`"
    ):
        student_source(name)


@pytest.mark.parametrize(
    ("cuda", "cpu", "dtype"),
    [
        (False, {"avx2": True, "avx512_f": True}, torch.float32),
        (False, {"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        (False, {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        (True, {}, torch.bfloat16),
    ],
)
def test_larger_students_compute_in_bfloat16_where_the_machine_is_made_for_it(cuda, cpu, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert load_student("pocket/xs", device="cpu").model.dtype == torch.float32
    monkeypatch.setattr(students, "TINY", n_params("pocket/xs"))
    assert load_student("pocket/xs", device="cpu").model.dtype == dtype


def test_pocket_students_go_from_small_to_large():
    sizes = [n_params(name) for name in POCKET]
    assert sizes == sorted(set(sizes))


def test_the_facts_of_a_base_say_what_it_read_and_knew():
    facts = base_facts("pocket/xs")
    recipe = json.loads((bases.base_folder("pocket/xs") / "recipe.json").read_text())
    assert (facts["bases"], facts["pre-training tokens"]) == (6, recipe["tokens"])
    assert {*GATED, "mark", "rare"} <= facts.keys()
    assert not [key for key in facts if key.startswith("pocket/")]


def changed(folder: str, to: Path, file: str = "config.json", **fields) -> Path:
    """A copy of a student's folder, with other fields in one of its JSON files; `...` takes one away."""
    copy = shutil.copytree(folder, to / f"copy{len(list(to.iterdir()))}")
    path = copy / file
    content = (json.loads(path.read_text()) if path.is_file() else {}) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return copy


def with_tensors(folder: str, to: Path, edit: Callable[[dict], dict]) -> Path:
    copy = changed(folder, to)
    save_file(edit(load_file(copy / "model.safetensors")), copy / "model.safetensors", {"format": "pt"})
    return copy


def test_a_path_a_text_and_a_home_folder_name_the_same_student(qwen, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(qwen).parent))
    home = f"~/{Path(qwen).name}"
    assert fingerprint(qwen) == fingerprint(Path(qwen)) == fingerprint(home) == load_student(home).fingerprint
    assert load_student(Path(qwen)).name == qwen


@pytest.mark.parametrize(
    "name", [None, 3, b"x", "", "a\0b/c", "../x", "x/y/z", "http://a/b", "~/none", "no/model.gguf", "o/" + "x" * 5000]
)
def test_what_is_no_name_of_a_student_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown student|name is |there is no such file"):
        load_student(name)


def test_a_revision_is_for_the_hub(qwen):
    with pytest.raises(ValueError, match=r"revision is 'main', but .* is not on the Hub"):
        load_student(qwen, revision="main")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: {k: v for k, v in t.items() if "layers.1.mlp" not in k}, "3 missing"),
        (lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}, "1 missing"),
        (lambda t: {k: v for k, v in t.items() if "embed" not in k}, "1 missing"),
        (lambda t: {k: v for k, v in t.items() if "lm_head" not in k}, "1 missing"),
        (lambda t: {f"x.{k}": v for k, v in t.items()}, "missing"),
        (lambda t: t | {"model.layers.9.weight": torch.ones(3)}, r"1 unexpected_keys, .*layers\.9\.weight"),
        (lambda t: t | {"model.norm.weight": torch.ones(3)}, r"1 mismatched_keys, such as .*model\.norm\.weight"),
        (lambda t: t | {"model.norm.weight": torch.full((32,), torch.nan)}, "not finite"),
    ],
    ids=["mlp", "norm", "embedding", "head", "renamed", "too many", "shape", "nan"],
)
def test_a_checkpoint_that_is_not_the_models_is_refused(llama, tmp_path, edit, reason):
    with pytest.raises(ValueError, match=reason):
        load_student(with_tensors(llama, tmp_path, edit))


def test_a_tied_head_may_be_stored_or_not(qwen, tmp_path):
    stored = with_tensors(qwen, tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    ids = torch.arange(9)[None]
    assert torch.equal(load_student(stored).model(ids).logits, load_student(qwen).model(ids).logits)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("model.safetensors", b"x" * 99, "its weights cannot be used"),
        ("model.safetensors", b"", "its weights cannot be used"),
        ("model.safetensors", None, "its weights cannot be used .*safetensors"),
        ("config.json", b"{", "its configuration cannot be used"),
        ("config.json", b"[1]", "its configuration cannot be used"),
        ("config.json", b'{"student": "pocket/xs"}', "its configuration cannot be used"),
        ("tokenizer.json", b"{", "its tokenizer cannot be used"),
        ("tokenizer_config.json", b"[]", "its tokenizer cannot be used"),
        ("generation_config.json", b"[]", "its generation_config.json cannot be used"),
        ("chat_template.jinja", b"{% for m in %}", "chat template"),
        ("chat_template.jinja", b"{{ raise_exception('no') }}", "chat template"),
        ("chat_template.jinja", None, "no chat template: .* chat_template.jinja"),
        ("adapter_config.json", b"{}", "holds an adapter"),
    ],
)
def test_damaged_files_are_named(qwen, tmp_path, file, content, reason):
    folder = changed(qwen, tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"pickled weights are never read")
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        load_student(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        ("config.json", {"hidden_size": "abc"}, "configuration cannot be used .*hidden_size"),
        ("config.json", {"num_attention_heads": 0}, "cannot be used"),
        ("config.json", {"hidden_act": "nope"}, "cannot be used"),
        ("config.json", {"model_type": "nope"}, "configuration cannot be used .*nope"),
        ("config.json", {"vocab_size": 99}, "mismatched"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "weights are quantized"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "weights are quantized"),
        ("tokenizer_config.json", {"eos_token": ...}, "no eos token"),
        ("tokenizer_config.json", {"eos_token": "<new>"}, "not all among its"),
        ("generation_config.json", {"eos_token_id": [2, 10**6]}, "not all among its"),
        ("generation_config.json", {"eos_token_id": -1}, "not all among its"),
        ("generation_config.json", {"eos_token_id": "two"}, "generation_config.json cannot be used"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(qwen, tmp_path, file, fields, reason):
    with pytest.raises(ValueError, match=reason):
        load_student(changed(qwen, tmp_path, file, **fields))


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
SMALL |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def toy(folder: Path, tokenizer: PreTrainedTokenizerFast, model_type: str, **fields) -> Path:
    """A model of this architecture with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model_type", "fields", "context"),
    [
        ("gemma3_text", SMALL, 512),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "eos_token_id": 2}, 256),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 300}, 300),
        ("opt", ENCODER | {"ffn_dim": 64, "max_position_embeddings": 99, "word_embed_proj_dim": 32}, 99),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}, NO_LIMIT),
        ("mamba2", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1}, NO_LIMIT),
        ("falcon_h1", SMALL | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}, 512),
    ],
)
def test_any_decoder_is_loaded_with_its_context_and_layers(tmp_path, bpe_tokenizer, model_type, fields, context):
    student = load_student(toy(tmp_path / "m", bpe_tokenizer, model_type, **fields))
    assert student.context == context
    assert len(decoder_layers(student.model)) == 2
    assert n_params(student.name) == student.model.num_parameters()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_encoders_are_refused(tmp_path, bpe_tokenizer, model_type):
    with pytest.raises(ValueError, match=f"as '{model_type}' it reads the text to come"):
        load_student(toy(tmp_path / "m", bpe_tokenizer, model_type, **ENCODER))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("t5", "not a decoder-only"), ("bart", "not a decoder-only"), ("gemma3", "more than text")],
)
def test_models_of_other_kinds_are_refused_before_their_weights_are_read(qwen, tmp_path, model_type, reason):
    folder = changed(qwen, tmp_path)
    AutoConfig.for_model(model_type).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"'{model_type}'.* {reason}"):
        n_params(folder)


def test_code_of_a_students_own_is_neither_run_nor_asked_about(qwen, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    native = changed(
        changed(qwen, tmp_path, auto_map=own),
        tmp_path,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.T", None]},
    )
    foreign = changed(native, tmp_path, model_type="evil")
    for folder in (native, foreign):
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert load_student(native).stop_tokens == load_student(qwen).stop_tokens
    for asked in (load_student, n_params):
        with pytest.raises(ValueError, match="code of its own, which is never run here"):
            asked(foreign)
    assert not (tmp_path / "ran").exists()
    assert sys.stdin.read().count("y") == 9


def test_no_call_of_the_package_leaves_it_open_whether_foreign_code_runs():
    nodes = [node for file in REPO.glob("mixdistill/**/*.py") for node in ast.walk(ast.parse(file.read_text()))]
    calls = []
    for node in nodes:
        if isinstance(node, ast.Call):
            called = [
                ast.unparse(part) for part in (node.func, *node.args)
            ]  # the function, also in `partial(function, ...)`
            if any(re.search(r"\.from_(pretrained|config)$", name) for name in called if "Peft" not in name):
                calls.append(node)
    assert len(calls) > 4
    assert not [ast.unparse(call) for call in calls if "trust_remote_code=False" not in ast.unparse(call)]


@pytest.mark.parametrize(("stated", "stops"), [(1, (1, 2)), ([0, 1], (0, 1, 2)), (2, (2,)), (None, (2,))])
def test_every_stated_token_stops(qwen, tmp_path, stated, stops):
    student = load_student(changed(qwen, tmp_path, "generation_config.json", eos_token_id=stated))
    assert student.stop_tokens == tuple(student.model.generation_config.eos_token_id) == stops


@pytest.mark.parametrize("declared", ["Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer", "TokenizersBackend", None])
def test_the_tokenizer_is_that_of_tokenizer_json_whatever_class_is_declared(qwen, llama, tmp_path, declared):
    for student in (qwen, llama):
        folder = changed(student, tmp_path, "tokenizer_config.json", tokenizer_class=declared or ...)
        file = Tokenizer.from_file(str(folder / "tokenizer.json"))
        file.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()]
        )
        file.save(str(folder / "tokenizer.json"))
        text = "What is 12 plus 30? It is\n\n  \\boxed{42}."
        assert load_student(folder).tokenizer(text)["input_ids"] == file.encode(text).ids


PRICE = {"content": "price", "special": False, "lstrip": False, "rstrip": False, "normalized": False}
PRICE |= {"single_word": False}


@pytest.mark.parametrize("settings", [{"added_tokens_decoder": {"400": PRICE}}, {"split_special_tokens": True}])
def test_settings_that_change_the_ids_of_tokenizer_json_are_refused(qwen, tmp_path, settings):
    with pytest.raises(ValueError, match=r"changes the ids of its tokenizer\.json"):
        load_student(changed(qwen, tmp_path, "tokenizer_config.json", **settings))


def test_a_length_in_tokenizer_json_cuts_and_pads_nothing(qwen, tmp_path):
    folder = changed(qwen, tmp_path)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.enable_truncation(4)
    file.enable_padding(length=400)
    file.save(str(folder / "tokenizer.json"))
    text = "What is 12 plus 30? It is \\boxed{42}."
    assert load_student(folder).tokenizer(text)["input_ids"] == load_student(qwen).tokenizer(text)["input_ids"]


def test_the_same_files_are_the_same_student_wherever_they_lie(qwen, tmp_path):
    copy = changed(qwen, tmp_path)
    shutil.copy(Path(qwen, "config.json"), copy)
    (copy / "README.md").write_text("other words")
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    assert fingerprint(copy) == fingerprint(qwen)


@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_a_file_that_changes_makes_another_student_within_the_process(qwen, tmp_path, file):
    folder = changed(qwen, tmp_path)
    before = fingerprint(folder)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[::-1])  # of the same size
    assert fingerprint(folder) != before
    (folder / file).write_bytes(content)
    assert fingerprint(folder) == before


def test_stop_tokens_and_further_tokenizer_files_are_part_of_a_student_and_sampling_defaults_are_not(qwen, tmp_path):
    folder = changed(qwen, tmp_path)
    before = fingerprint(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.7}))
    assert fingerprint(folder) == before
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, 2]}))
    assert fingerprint(folder) != before
    for file in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"):
        (folder / file).write_text("{}")
        before, last = fingerprint(folder), before
        assert before != last


def test_a_large_file_is_hashed_once(qwen, tmp_path, monkeypatch):
    folder, hashed = changed(qwen, tmp_path), []
    for path in folder.iterdir():
        os.utime(path, (1, 1))  # long ago
    monkeypatch.setattr(
        hashlib,
        "file_digest",
        lambda file, kind, real=hashlib.file_digest: hashed.append(file.name) or real(file, kind),
    )
    assert fingerprint(folder) == fingerprint(folder)
    assert len(hashed) == len(set(hashed)) > 3


def test_threads_may_load_at_the_same_time(qwen, llama):
    with ThreadPoolExecutor(4) as pool:
        students = list(pool.map(load_student, [qwen, llama, "pocket/xs", qwen] * 3))
    alone = [load_student(name) for name in (qwen, llama, "pocket/xs", qwen)] * 3
    for student, other in zip(students, alone, strict=True):
        assert student.fingerprint == other.fingerprint
        for one, two in zip(student.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(one, two)


def test_loading_leaves_bars_warnings_and_random_numbers_as_they_were(qwen):
    before = transformers.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity(), warnings.filters[:]
    state = torch.get_rng_state()
    load_student(qwen)
    assert before == (
        transformers.logging.is_progress_bar_enabled(),
        transformers.logging.get_verbosity(),
        warnings.filters,
    )
    assert torch.equal(state, torch.get_rng_state())
