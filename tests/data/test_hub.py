"""Loading from the Hub, and what a user sees when it says no."""

import json
from pathlib import Path

from hub import COMMIT, jsonl, said, serve
from test_problems import PUBLISHED

from mixdistill.data.problems import BENCHMARKS, HUB


def data_set(name: str, rows: list[dict]) -> dict[str, bytes]:
    """The repository of a benchmark, laid out as published."""
    benchmark = BENCHMARKS[name]
    split = benchmark.hub_split or "test"
    card = (
        f"---\nconfigs:\n- config_name: {benchmark.config or 'default'}\n"
        f"  data_files:\n  - split: {split}\n    path: data/{split}.jsonl\n---\n"
    )
    return {"README.md": card.encode(), f"data/{split}.jsonl": jsonl(rows)}


def test_benchmarks_data_sets_and_models_of_the_hub(tmp_path):
    """In one process, as each takes seconds to import the package."""
    repos = {repo: data_set(name, [PUBLISHED[name][0]]) for name, (repo, _) in HUB.items()}
    repos["open/data"] = {"test.jsonl": jsonl([{"question": "1+1?", "answer": 2.0}])}
    with serve(repos) as address:
        text = said(
            tmp_path,
            *(f"print(load_problems({name!r})[0])" for name in HUB),
            "print(load_problems('open/data'))",
            "load_problems('open/data', columns={'answer': 'gold'})",
            "load_student('gated/model')",
            "load_student('nobody/nothing')",
            "load_traces('nobody/no-traces')",
            HF_ENDPOINT=address,
        ).splitlines()
    for name, line in zip(HUB, text[: len(HUB)], strict=True):
        answer, level, subject = PUBLISHED[name][1]
        assert line.startswith(f"Problem(id='{name}/test/")
        assert f"question='1+1?', answer={answer!r}, level={level!r}" in line
        assert f"subject={subject!r}" in line
        # At its pinned commit.
        (owner, repo), revision = HUB[name][0].split("/"), HUB[name][1]
        kept = [path.parts for split in ("test", "train") for path in tmp_path.rglob(f"{split}.jsonl")]
        assert any(f"datasets--{owner}--{repo}" in parts and revision in parts for parts in kept)
    right, wrong, gated, missing, no_data = text[len(HUB) :]
    assert "Problem(id='open/data/0', question='1+1?', answer='2.0'" in right
    assert "refused: 'open/data' has no column 'gold', only question, answer" in wrong
    assert "refused: cannot load the student 'gated/model'" in gated
    assert "restricted" in gated or "gated" in gated.split("(", 1)[1]
    assert "hf auth login" in gated
    assert "refused: cannot load the student 'nobody/nothing'" in missing
    assert "check name, network" in missing
    assert "refused: cannot load 'nobody/no-traces'" in no_data


def test_a_student_of_the_hub_is_loaded_at_the_commit_that_its_fingerprint_names(qwen, tmp_path):
    files = {path.name: path.read_bytes() for path in Path(qwen).iterdir()}
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}
    files |= {"config.json": json.dumps(config).encode(), "own.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode()}
    foreign = {"config.json": json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}).encode()}
    with serve({"toy/student": files, "toy/foreign": files | foreign}) as address:
        loaded, refused = said(
            tmp_path,
            "student = load_student('toy/student'); print(student.fingerprint, student.context, student.stop_tokens)",
            "load_student('toy/foreign')",
            HF_ENDPOINT=address,
        ).splitlines()
    assert loaded == f"hub:{COMMIT} 512 (2,)"
    assert "code of its own, which is never run here" in refused
    assert not (tmp_path / "ran").exists()


def test_an_offline_machine_says_so_for_models_and_benchmarks(tmp_path):
    model, data = said(
        tmp_path, "load_student('owner/model')", "load_problems('gsm8k')", HF_HUB_OFFLINE="1"
    ).splitlines()
    assert "refused: cannot load the student 'owner/model'" in model
    assert "refused: cannot load 'openai/gsm8k'" in data
    assert "$MIXDISTILL_DATA" in data
    assert "network" in model
    assert "network" in data
