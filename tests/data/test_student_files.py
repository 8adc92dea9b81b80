"""One name, one result: which changes of a student's folder, within one process, make another run and which do not."""

import shutil
from pathlib import Path

import families
import pytest
from conftest import write_jsonl

from mixdistill import LoRA, evaluate, finetune, load_problems, load_student, load_traces

TRACES = [{"question": f"What is {n} plus 30?", "response": f"It is {n + 30}. #### {n + 30}"} for n in range(4)]


@pytest.fixture
def data(tmp_path):
    """What is trained, and what is asked."""
    problems = write_jsonl(tmp_path / "test.jsonl", [{"question": "What is 1 plus 30?", "answer": "31"}])
    traces = load_traces(write_jsonl(tmp_path / "traces.jsonl", TRACES), answer_format="gsm8k")
    return traces, load_problems(problems, answer_format="gsm8k")


def stored(student, traces, **settings):
    return finetune(student, traces, lora=LoRA(r=2), epochs=1, progress=False, **settings)


def test_runs_and_evaluations_are_named_by_what_the_student_reads_not_by_the_switch(tmp_path, data):
    student, (traces, problems) = families.save("qwen3", tmp_path), data
    run = stored(student, traces)  # by itself, Qwen3 thinks
    assert stored(student, traces, thinking=True, stored_only=True).folder == run.folder
    assert stored(student, traces, thinking=False, stored_only=True) is None
    scores = evaluate(run, problems, max_new_tokens=4, progress=False)
    settings = {"max_new_tokens": 4, "progress": False, "stored_only": True}
    assert evaluate(run, problems, thinking=True, **settings).items.equals(scores.items)
    assert evaluate(run, problems, thinking=False, **settings) is None


def test_a_student_that_is_copied_or_moved_keeps_its_runs_and_a_changed_one_does_not(tmp_path, data):
    student, (traces, problems) = Path(families.save("qwen2.5", tmp_path)), data
    run = stored(student, traces)
    copied = shutil.copytree(student, tmp_path / "elsewhere" / "copied")
    moved = student.rename(tmp_path / "moved")
    runs = [stored(folder, traces, stored_only=True) for folder in (copied, moved)]
    assert [found.folder for found in runs] == [run.folder, run.folder]
    assert len(evaluate(runs[1], problems, max_new_tokens=4, progress=False).items) == 1

    template = moved / "chat_template.jinja"
    template.write_text("Be brief." + template.read_text())
    assert stored(moved, traces, stored_only=True) is None
    assert stored(copied, traces, stored_only=True).folder == run.folder
    with pytest.raises(ValueError, match=r"is not what it was when the run"):
        evaluate(runs[1], problems, max_new_tokens=5, progress=False)


def test_what_a_gguf_file_needs_is_said(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"its .* cannot be used .*: its files are damaged or incomplete"):
        load_student(tmp_path / "model.gguf")
    monkeypatch.setattr("mixdistill.data.student_files.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package gguf: pip install -e '\.\[gguf\]'"):
        load_student(tmp_path / "model.gguf")
