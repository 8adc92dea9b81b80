"""Every notebook runs alone, headless, at the smallest scale; and the committed ones are fit to be read."""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from shutil import copytree

import findings
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from conftest import REPO, write_jsonl
from in_process import ipython, run_in
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from publish import with_results
from scipy.stats import linregress
from scipy.stats import t as student_t

from mixdistill import load_student
from mixdistill.data.chat import render_traces
from mixdistill.finetuning.batches import pad
from mixdistill.finetuning.checkpoints import load_trained, merged
from mixdistill.results import stats
from mixdistill.study.reproduce import FURTHER, NOTEBOOKS
from mixdistill.study.scales import gap_arms, get_scale, recipe_arm
from mixdistill.study.stored import open_results
from mixdistill.study.sweep import sweep, trace_set, trained

FOLDER = REPO / "notebooks"


def test_the_list_of_notebooks_is_complete():
    assert sorted(NOTEBOOKS + FURTHER) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    with ipython() as made:
        yield made


@pytest.fixture(scope="module")
def gaps(tmp_path_factory) -> Path:
    """A store with the arms of notebook 02, which further notebooks show beside their own."""
    folder = tmp_path_factory.mktemp("gaps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXDISTILL_RUNS", str(folder))
        scale = get_scale("smoke", 1)
        sweep(gap_arms(scale), scale)
    return folder


@pytest.mark.parametrize("name", FURTHER)
def test_each_further_notebook_runs_alone(name, shell, gaps, store, tmp_path, monkeypatch):
    """The first with nothing stored; the others beside the arms of notebook 02, which takes less time."""
    if name != FURTHER[0]:
        copytree(gaps, store)
    monkeypatch.chdir(tmp_path)
    one_student = {"STUDENTS": "pocket/s"} if name in ("07_controls", "08_speaking_style") else {}
    seen = run_in(shell, name, {"SCALE": "smoke", "SEEDS": 1, **one_student})
    assert any("image/png" in (output.data or {}) for written in seen for output in written.outputs)
    # Outside of a kernel the bars of a notebook are text.
    assert not [written.stderr for written in seen if re.search("[Ww]arning|Error", written.stderr)]
    if name == "09_beyond_mix":
        assert_nearer_to_its_teacher(shell.user_ns)


def assert_nearer_to_its_teacher(of: dict) -> None:
    """On-policy distillation has brought the student nearer to its teacher, where it was asked by its own answers."""
    begun, made = of["trainings"]["mix, then on-policy", "pocket/xs", 0]
    teacher = load_trained(trained(recipe_arm(of["LARGE"], "mix_long", 0), of["scale"])).model
    before, after = load_student(merged(begun)), load_student(made.checked("student"))
    asked = render_traces(before.tokenizer, trace_set(of["scale"].short, 24, 0), before.context, "error")
    examples = of["sampled"](before, [one.input_ids[: one.n_prompt] for one in asked], list(range(len(asked))))
    batch = pad(examples, before.tokenizer.pad_token_id)
    with torch.no_grad():
        wanted, *own = (of["log_probabilities"](model, batch) for model in (teacher, before.model, after.model))
        far, near = (torch.nn.functional.kl_div(wanted, one, reduction="sum", log_target=True) for one in own)
        assert near < far
        torch.testing.assert_close(of["divergence"](before.model, teacher, batch), far)


@pytest.mark.parametrize("name", ["04_mechanism", "05_checks", "07_controls", "08_speaking_style", *FURTHER[-2:]])
def test_a_notebook_of_the_pocket_world_runs_nothing_of_real_models(name, shell, store):
    written = run_in(shell, name, {"SCALE": "gpu"})
    assert "this notebook is of the pocket world only, nothing is run below" in "".join(one.stdout for one in written)
    assert not list(store.rglob("*"))


@pytest.mark.parametrize("name", ["02_learnability_gap", "03_mix_distillation", "04_mechanism", "06_teacher_gap"])
def test_a_fresh_clone_shows_the_published_numbers_without_training(name, shell, store):
    run_in(shell, name, {})
    (data,) = store.glob("figures/*/data")
    tables = {path.name: path.read_text() for path in data.glob("*.csv")}
    assert tables
    assert tables == {table: (REPO / "figures" / "data" / table).read_text() for table in tables}
    assert not list(store.rglob("config.json"))


def test_the_laptop_scale_goes_through_the_same_notebooks(qwen, shell, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXDISTILL_DATA", str(tmp_path))
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(12)]
    for name in ("svamp", "gsm8k"):
        write_jsonl(tmp_path / f"{name}_test.jsonl", [row | {"answer": f"#### {row['answer']}"} for row in rows[8:]])
    for name, begin in (("llama_level1", ""), ("llama_level4", "Let me see. "), ("gpt35", "So: "), ("flant5large", "")):
        made = [row | {"response": f"{begin}It is {row['answer']}."} for row in rows[:8]]
        write_jsonl(tmp_path / f"svamp_{name}.jsonl", made)
    for name in ("02_learnability_gap", "06_teacher_gap"):
        run_in(shell, name, {"SCALE": "laptop", "SEEDS": 1, "STUDENTS": qwen})
    (data,) = store.glob("figures/laptop*/data")
    found = {path.stem for path in data.glob("*.csv")}
    assert found >= {"learnability_gap", "gaps", "teacher_accuracy", "teacher_gaps"}
    accuracy = pd.read_csv(data / "learnability_gap.csv")
    assert set(accuracy["recipe"]) == {"untouched", *get_scale("laptop").recipes}
    assert set(accuracy["n_problems"]) == {8}
    # Other tests, of the same students: a file of one's own in the place of GSM8K.
    trained = set(store.glob("*/manifest.json"))
    (tmp_path / "gsm8k_test.jsonl").unlink()
    others = [{"Body": "A box has 8 pens.", "Question": row["question"], "Answer": row["answer"]} for row in rows[9:]]
    write_jsonl(tmp_path / "own.jsonl", others)
    given = {"SCALE": "laptop", "SEEDS": 1, "STUDENTS": qwen, "BENCHMARKS": "svamp, own.jsonl:Body+Question:Answer"}
    run_in(shell, "02_learnability_gap", given)
    assert set(store.glob("*/manifest.json")) == trained
    (data,) = set(store.glob("figures/laptop*/data")) - {data}
    assert set(pd.read_csv(data / "gaps_by_benchmark.csv")["benchmark"]) == {"svamp", "own.jsonl"}


def test_the_committed_tables_have_the_promised_form():
    check_tables(REPO / "figures" / "data", n_students=5, n_seeds=6, n_problems=1020)


def check_tables(data: Path, n_students: int, n_seeds: int, n_problems: int) -> None:
    counts = ["ci_low", "ci_high", "n_problems", "n_seeds"]
    accuracy, gaps = pd.read_csv(data / "learnability_gap.csv"), pd.read_csv(data / "gaps.csv")
    assert set(accuracy) >= {"student", "params", "recipe", "accuracy", *counts}
    assert set(gaps) >= {"student", "params", "contrast", "delta", *counts}
    assert len(accuracy) == len(gaps) == 4 * n_students
    assert set(accuracy["recipe"]) == {"untouched", "short", "long", "mix_long"}
    assert set(gaps["contrast"]) == {"long-short", "mix_long-short", "mix_long-long", "mix_long-best"}
    assert accuracy["accuracy"].between(accuracy["ci_low"], accuracy["ci_high"]).all()
    assert gaps["delta"].between(gaps["ci_low"], gaps["ci_high"]).all()
    assert set(accuracy["n_problems"]) == set(gaps["n_problems"]) == {n_problems}
    assert set(gaps["n_seeds"]) == {n_seeds}
    # Both tables tell one story.
    wide = accuracy.pivot(index="student", columns="recipe", values="accuracy")
    for row in gaps[gaps["contrast"] == "long-short"].itertuples():
        assert row.delta == pytest.approx(wide.loc[row.student, "long"] - wide.loc[row.student, "short"], abs=1e-5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"SCALE": "galaxy"}, "scale is 'galaxy': use one of smoke, pocket"),
        (
            {"SCALE": "smoke", "ALPHAA": 0.3},
            "unknown notebook parameter ALPHAA: this notebook takes SCALE, SEEDS, STUDENTS, BENCHMARKS, RESULTS, ",
        ),
        ({"SCALE": "smoke", "ALPHA": "much"}, "ALPHA is 'much', a str: give a float"),
        ({"SCALE": "smoke", "ALPHA": 1.5}, "alphas is 1.5: it is a finite number, at least 0, at most 1"),
        ({"SCALE": "smoke", "STUDENT": "pocket/xxl"}, "unknown student 'pocket/xxl'"),
        ({"SCALE": "smoke", "RESULTS": "saved"}, "RESULTS is 'saved': use one of stored, live"),
        (
            {"SEEDS": 1, "RESULTS": "stored"},
            "what is stored is the scale 'pocket' as it is, and this has another n_seeds: set RESULTS",
        ),
        (
            {"RESULTS": "stored", "STUDENT": "pocket/m"},
            "lacks pocket/m alpha=0.1 seed 0 with a share of 0.1 of long traces: it has",
        ),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(parameters, message, store):
    """As papermill injects them, but in this process, as a kernel takes seconds to start."""
    notebook = parameterize_notebook(load_notebook_node(str(FOLDER / "03_mix_distillation.ipynb")), parameters)
    code = [re.sub("^%.*$", "", cell.source, flags=re.M) for cell in notebook.cells if cell.cell_type == "code"]
    with pytest.raises(ValueError, match=re.escape(message)):
        exec("\n".join(code[:6]), {"In": code})
    assert not store.exists() or not list(store.rglob("config.json"))


def test_papermill_ends_with_the_sentence_of_a_bad_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(
            FOLDER / "03_mix_distillation.ipynb", tmp_path / "out.ipynb", {"ALPHAA": 0.3}, progress_bar=False, cwd=REPO
        )
    assert "unknown notebook parameter ALPHAA: this notebook takes SCALE, SEEDS, STUDENTS" in error.value.evalue


@pytest.mark.parametrize("name", sorted(NOTEBOOKS + FURTHER))
def test_the_committed_notebooks_follow_the_rules(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    first, *code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert first.metadata.tags == ["parameters"]
    for line in first.source.splitlines():
        assert re.fullmatch(r"[A-Z]+: (str|int|float) = \S+  # .+", line), line
    declared = [line.split(":")[0] for line in first.source.splitlines()]
    check = next(cell.source for cell in code if "check_parameters" in cell.source)
    for parameter in declared:
        assert re.search(rf"check_parameters\(.*\b{parameter}=", check)
    header = notebook.cells[0].source
    assert all(
        word in header for word in ("What you will learn", "Prerequisites", "Time", "Hardware", "Reads", "Writes")
    )
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs, "commit the notebook with its outputs: make publish"
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"(?<![\w.])/(home|root|Users|work|tmp)/", text)


@pytest.mark.parametrize("name", FURTHER)
def test_batches_of_a_notebook_go_where_the_student_is(name):
    """As on a machine with a GPU, which the tests have not."""
    cells = [cell.source for cell in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
    for line in "\n".join(cells).splitlines():
        if re.search(r"= pad_sequence\(|\bpad\(|torch\.tensor\(\[", line):
            assert ".device" in line


def test_pages_show_the_committed_tables():
    for page in (REPO / "README.md", REPO / "docs" / "pocket-world.md"):
        assert with_results(page.read_text()) == page.read_text()
    assert findings.table() in (REPO / "FINDINGS.md").read_text()
    assert findings.asked_of_the_world() in (REPO / "docs" / "pocket-world.md").read_text()


# A number and its interval, as people write them: "+4.5 [+1.7, +7.2]", "66% [50, 79]".
INTERVAL = re.compile(r"([+-]?[\d.]+)%? (?:points )?\[([+-]?[\d.]+), ([+-]?[\d.]+)\]")


def intervals_of_tables() -> set[tuple[float, ...]]:
    """Every number with its interval in a committed table, in points to one decimal or none, and with signs turned."""
    found = set()
    for path in REPO.glob("figures/**/data/*.csv"):
        table = pd.read_csv(path).select_dtypes("number")
        for low in (name for name in table if "low" in name):
            ends = [low, low.replace("low", "high")]
            for name in table.columns.difference(ends):
                points = 100 * table[[name, *ends]].dropna().to_numpy()
                between = points[(points[:, 1] <= points[:, 0]) & (points[:, 0] <= points[:, 2])]
                found |= {tuple(row.round(n)) for row in between for n in (0, 1)}
    return found | {(-mean, -high, -low) for mean, low, high in found}


def words(path: Path) -> str:
    """What people have written on a page, or between the cells of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "FINDINGS.md", "docs/pocket-world.md", "docs/teaching.md"),
        *(f"notebooks/{name}.ipynb" for name in ("05_checks", "07_controls", "10_what_moves_the_gap")),
    ],
)
def test_every_interval_on_a_page_stands_in_a_committed_table(name):
    """The page about the world has others: answers to a reviewer, which are computed below, and an earlier study's;
    the table of findings has a difference of two rows of a table."""
    known, others = intervals_of_tables(), ""
    if name == "docs/pocket-world.md":
        others = (REPO / "docs" / "pocket-world-log.md").read_text() + " ".join(answers_to_a_reviewer())
    if name == "FINDINGS.md":
        others = findings.table()
    told = {found.group(): tuple(map(float, found.groups())) for found in INTERVAL.finditer(words(REPO / name))}
    assert told
    assert not [said for said, numbers in told.items() if numbers not in known and said not in others]


def test_the_log_tells_every_difference_on_real_weights():
    rows = pd.read_csv(REPO / "figures" / "laptop" / "data" / "svamp_gaps.csv")
    wanted = rows[rows["contrast"].str.contains("-best|-untouched|long-short|large_teacher-small_teacher")]
    wanted = pd.concat([wanted, pd.read_csv(REPO / "figures" / "laptop" / "data" / "levels_gaps.csv")])
    log = (REPO / "docs" / "real-log.md").read_text()
    assert not [f"{p} {i}" for p, i in zip(*stats.in_points(wanted), strict=True) if f"{p} {i}" not in log]


@lru_cache
def answers_to_a_reviewer() -> list[str]:
    """Numbers of docs/pocket-world.md that stand in no table."""
    told = []
    for file, contrast in (
        ("data/gaps.csv", "long-short"),
        ("data/teacher_gaps.csv", "large_teacher-small_teacher"),
        ("pocket-large/data/gaps.csv", "long-short"),
    ):
        rows = pd.read_csv(REPO / "figures" / file)
        rows = rows[rows["contrast"] == contrast]
        line = linregress(np.log10(rows["params"]), 100 * rows["delta"])
        half = student_t.ppf(0.975, len(rows) - 2) * line.stderr
        told.append(f"{line.slope:+.0f} [{line.slope - half:+.0f}, {line.slope + half:+.0f}]")
    bases = pd.read_csv(REPO / "figures" / "data" / "known_marks.csv").groupby("student", sort=False)["gap"]
    told += [f"{(of < 0).sum()} of {len(of)}" for _, of in bases]
    scale = get_scale("pocket")
    arms = [
        recipe_arm(f"pocket/{name}", recipe, seed)
        for name in ("xs", "s", "l")
        for recipe in ("unverified", "mix_long")
        for seed in range(scale.n_seeds)
    ]
    for _, own in open_results(scale, "stored").items(arms).groupby("student", sort=False):
        found = stats.gap(*(own[own["recipe"] == recipe] for recipe in ("unverified", "mix_long")))
        told.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in (found.mean, found.low, found.high))))
    return told


def test_a_reviewer_is_answered_with_numbers_of_the_committed_tables_and_answers():
    page = (REPO / "docs" / "pocket-world.md").read_text()
    assert not [number for number in answers_to_a_reviewer() if number not in page]


@pytest.mark.parametrize(
    "path", [*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *FOLDER.glob("*.ipynb")], ids=lambda path: path.name
)
def test_links_lead_to_a_file_of_the_repo_and_to_a_heading_in_it(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", words(path)):
        name, _, heading = link.partition("#")
        if not link.startswith("http"):
            target = path.parent / name if name else path
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
            assert not heading or heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
