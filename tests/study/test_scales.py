import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_jsonl

from mixdistill import check_parameters, get_scale
from mixdistill.data.mix import CONTROLS, RECIPES
from mixdistill.data.pocket.bases import LARGE, POCKET, POCKET_BASES
from mixdistill.data.student_files import REVISIONS
from mixdistill.study.scales import (
    SCALES,
    Arm,
    ProblemSet,
    Scale,
    TraceSet,
    alpha_arms,
    control_arms,
    gap_arms,
    recipe_arm,
    untouched_arms,
)

INJECTED = "# Parameters\nALPHAA = 0.3\nSCALE = 'smoke'\n"


@pytest.mark.parametrize("name", SCALES)
def test_every_student_gets_every_recipe_with_every_seed(name):
    scale = get_scale(name, 3)
    arms = gap_arms(scale)
    trained = [arm for arm in arms if arm.alpha is not None]
    assert len(set(trained)) == len(trained) == len(scale.students) * 3 * len(scale.recipes)
    assert [arm for arm in arms if arm.alpha is None] == untouched_arms(scale, scale.students)
    assert len(alpha_arms(scale, scale.alpha_student, scale.alphas)) == 3 * len(scale.alphas)


def test_seeds_are_spread_over_the_bases_of_a_pocket_student():
    pocket = get_scale("pocket")
    bases = POCKET_BASES["pocket/l"]
    met = [pocket.base(Arm("pocket/l", "short", 0.0, seed)) for seed in range(len(bases) + 2)]
    assert met == [*bases, *bases[:2]]
    assert [pocket.base(Arm("some/model", "short", 0.0, seed)) for seed in (0, 7)] == ["some/model"] * 2


def test_all_recipes_of_one_seed_start_from_one_base():
    scale = get_scale("pocket", 7)
    bases = {(arm.student, arm.seed): set() for arm in gap_arms(scale)}
    for arm in [*gap_arms(scale), *control_arms(scale), *alpha_arms(scale, scale.alpha_student, scale.alphas)]:
        bases[arm.student, arm.seed].add(scale.base(arm))
    assert {len(found) for found in bases.values()} == {1}


@pytest.mark.parametrize(("name", "n_seeds"), [("pocket", 1), ("pocket", 3), ("pocket", 9), ("gpu", 3)])
def test_every_base_that_a_seed_meets_is_evaluated_untouched_once(name, n_seeds):
    scale = get_scale(name, n_seeds)
    arms = untouched_arms(scale, scale.students)
    assert {arm.alpha for arm in arms} == {None}
    bases = [scale.base(arm) for arm in arms]
    assert len(set(bases)) == len(bases)
    assert set(bases) == {scale.base(arm) for arm in gap_arms(scale)}
    for student in scale.students:
        n_bases = len(POCKET_BASES[student]) if scale.pocket else 1
        assert [arm.student for arm in arms].count(student) == min(n_seeds, n_bases)


def test_the_large_pocket_scale_adds_students_and_changes_nothing_else():
    pocket, large = get_scale("pocket"), get_scale("pocket-large")
    assert large.students == (*POCKET, *LARGE)
    assert large.pocket
    assert replace(large, name="pocket", students=POCKET) == pocket


def test_controls_are_arms_of_the_pocket_world_only():
    pocket = get_scale("pocket", 3)
    arms = control_arms(pocket)
    assert len(set(arms)) == len(arms) == len(pocket.students) * 3 * len(CONTROLS)
    assert {(arm.recipe, arm.hard, arm.alpha) for arm in arms} == {
        ("unverified", "unverified", 1.0),
        ("confirmed", "confirmed", 1.0),
        ("shuffled", "shuffled", 1.0),
        ("direct", "direct", 1.0),
    }
    assert control_arms(get_scale("gpu")) == []


@pytest.mark.parametrize(("name", "recipes"), [("pocket", ["short", "long", "mix_long"]), ("gpu", [*RECIPES])])
def test_a_scale_has_the_recipes_for_which_it_has_traces(name, recipes):
    assert list(get_scale(name).recipes) == recipes


def test_the_paper_scale_has_the_ten_students_and_trains_all_weights_below_14b():
    paper, gpu = get_scale("paper"), get_scale("gpu")
    assert len(set(paper.students)) == 10
    assert set(paper.students) - set(paper.full) == {
        "Qwen/Qwen2.5-14B-Instruct",
        "Qwen/Qwen2.5-32B-Instruct",
        "meta-llama/Llama-3.3-70B-Instruct",
    }
    assert set(gpu.students) < set(paper.students)
    assert gpu.full == ()  # LoRA at every size: arms share their method
    with pytest.warns(UserWarning, match=r"'paper' trains all weights .* adapters of models/mine, which it"):
        own = get_scale("paper", students="models/mine,here/Qwen2.5-0.5B-Instruct,Qwen/Qwen2.5-14B-Instruct")
    assert own.full == ("here/Qwen2.5-0.5B-Instruct",)


@pytest.mark.parametrize("name", SCALES)
def test_every_hub_student_is_pinned_to_a_commit(name):
    students = [s for s in get_scale(name).students if not s.startswith("pocket/")]
    assert all(re.fullmatch("[0-9a-f]{40}", REVISIONS[student]) for student in students)
    assert len({REVISIONS[student] for student in students}) == len(students)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: get_scale("galaxy"),
            "scale is 'galaxy': use one of smoke, pocket, pocket-large, laptop, gpu, paper",
        ),
        (lambda: get_scale("pocket", -1), "n_seeds is -1: it is a whole number, at least 0"),
        (lambda: get_scale("pocket", 1.5), "n_seeds is 1.5"),
        (lambda: get_scale("pocket", True), "n_seeds is True"),
        (lambda: get_scale("pocket", students=("pocket/xs",)), "students is .*: it is a text"),
        (lambda: get_scale("pocket", students="pocket/m, pocket/m"), "students is .*: give each once"),
        (lambda: get_scale("pocket", students=", ,"), "one of students is ''"),
        (lambda: get_scale("laptop", benchmarks=("svamp",)), "benchmarks is .*: it is a text"),
        (lambda: get_scale("laptop", benchmarks="svamp, svamp"), "benchmarks is .*: give each once"),
        (lambda: get_scale("laptop", benchmarks="svamp,"), "one of benchmarks is ''"),
        (lambda: get_scale("laptop", benchmarks="gsm8"), "one of benchmarks is 'gsm8': use one of math, .*, svamp"),
        (lambda: get_scale("laptop", benchmarks="a.csv:Body"), "'a.csv:Body': name columns as in own.csv:Body\\+Q"),
        (lambda: get_scale("laptop", benchmarks="a.csv:Q:A:Drop"), "'a.csv:Q:A:Drop': name columns as in own.csv"),
        (lambda: get_scale("laptop", benchmarks="a.csv:Body+:Answer"), "one of question is ''"),
        (lambda: get_scale("laptop", benchmarks="svamp:Body:Answer"), "a benchmark with columns of its own"),
        (lambda: get_scale("pocket", benchmarks="pocket/all"), "one of benchmarks is 'pocket/all': use .* pocket/easy"),
        (
            lambda: recipe_arm("pocket/xs", "medium", 0),
            "recipe is 'medium': use one of short, long, mix_long, .*, unverified, confirmed, shuffled, direct",
        ),
    ],
)
def test_unknown_names_are_refused_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_benchmarks_take_the_place_of_the_scales_own(tmp_path, monkeypatch):
    assert get_scale("laptop", benchmarks=" svamp , mine/own.csv").benchmarks == ("svamp", "mine/own.csv")
    assert get_scale("pocket", benchmarks="pocket/hard").benchmarks == ("pocket/hard",)
    own = ProblemSet("own.csv", question=("Body", "Question"), answer="Answer")
    assert get_scale("laptop", benchmarks="svamp,own.csv: Body + Question:Answer").benchmarks == ("svamp", own)
    assert get_scale("pocket", benchmarks=" ") == get_scale("pocket")
    dropped = get_scale("laptop", benchmarks="own.csv:Body+Question:Answer:drop").benchmarks
    assert dropped == (replace(own, unusable="drop"),)
    assert get_scale("laptop", benchmarks="own.csv:Q:drop").benchmarks == (ProblemSet("own.csv", ("Q",), "drop"),)
    spaced = get_scale("laptop", benchmarks="own.csv : Body+Question : Answer : drop").benchmarks
    assert spaced == dropped
    named = str(write_jsonl(tmp_path / "a:b.jsonl", [{"question": "1 + 1?", "answer": "2"}]))
    assert get_scale("laptop", benchmarks=named).benchmarks == (named,)
    assert get_scale("laptop", benchmarks=f"{named}:Q:A").benchmarks == (ProblemSet(named, ("Q",), "A"),)
    assert get_scale("laptop", benchmarks=f"{named}:Q:A:drop").benchmarks[0].unusable == "drop"
    monkeypatch.setenv("MIXDISTILL_DATA", str(tmp_path))
    (tmp_path / "folder").mkdir()  # of files, without a mark of one in its name
    assert get_scale("laptop", benchmarks="folder").benchmarks == ("folder",)
    assert len({get_scale("laptop", benchmarks=name).figures_dir() for name in ("", "svamp", "gsm8k")}) == 3


def test_a_pocket_student_can_not_read_real_traces_or_problems():
    with pytest.raises(ValueError, match=r"has svamp_llama_level4\.jsonl, which pocket/xs"):
        get_scale("laptop", students="pocket/xs")
    with pytest.raises(ValueError, match="has svamp, which pocket/xs can not read"):
        replace(get_scale("smoke"), benchmarks=("pocket/easy", "svamp"))


def test_traces_and_tests_are_of_one_language(qwen, tmp_path):
    real = {"students": (qwen,), "alpha_student": qwen}
    words = {"long": TraceSet("l.jsonl", answer_format="gsm8k"), "short": TraceSet("s.jsonl", answer_format="gsm8k")}
    one_language = "give trace sets and benchmarks of one language"
    for benchmark in ("svamp", ProblemSet("own.csv")):  # the trace sets that were not given are the pocket world's
        with pytest.raises(ValueError, match=f"teaches in the pocket world's language .* and asks .*: {one_language}"):
            Scale(name="mine", benchmarks=(benchmark,), **real)
    with pytest.raises(ValueError, match=f"teaches in English .* and asks 'pocket/easy', .*: {one_language}"):
        Scale(name="mine", benchmarks=("pocket/easy",), **real, **words)
    Scale(name="mine", benchmarks=("pocket/easy",), **real)
    Scale(name="mine", benchmarks=("svamp", ProblemSet("own.csv")), **real, **words)
    replace(get_scale("smoke"), benchmarks=(ProblemSet("in_its_language.jsonl"),))


def test_a_student_or_a_test_in_two_spellings_is_one(qwen):
    with pytest.raises(ValueError, match=r"students is .*: give each once"):
        get_scale("laptop", students=f"{qwen},{qwen}/")


def test_students_take_the_place_of_the_scales_own():
    scale = get_scale("laptop", students="models/mine, ./other.gguf")
    assert scale.students == ("models/mine", "./other.gguf")
    assert scale.alpha_student == "models/mine"
    assert get_scale("pocket", 2, "pocket/xs,pocket/m").alpha_student == "pocket/xs"
    assert get_scale("pocket", students=" ") == get_scale("pocket")
    with pytest.warns(UserWarning, match="in the pocket world's language, which 'models/mine' has never read"):
        get_scale("pocket", students="models/mine")
    assert get_scale("laptop", students=Path("models/mine")).students == ("models/mine",)
    with pytest.raises(ValueError, match="one of students is 'pocket/xs-2': use one of pocket/xs"):
        get_scale("pocket", students="pocket/m, pocket/xs-2")


def test_a_scale_and_all_that_differs_from_it_have_figures_of_their_own_in_the_run_store(store):
    pocket = get_scale("pocket")
    assert get_scale("pocket", pocket.n_seeds).figures_dir() == pocket.figures_dir()
    one_seed = get_scale("pocket", 1)
    others = [
        one_seed.figures_dir(),
        pocket.figures_dir(),
        get_scale("smoke").figures_dir(),
        replace(one_seed, alpha_student="pocket/m").figures_dir(),
        replace(pocket, alpha_student="pocket/m").figures_dir(),
        pocket.figures_dir(ALPHA=0.3),
        replace(pocket, students=POCKET[:3]).figures_dir(),
        replace(pocket, students=POCKET[:4]).figures_dir(),
        get_scale("laptop", students="models/mine").figures_dir(),
        get_scale("laptop", students="models-mine").figures_dir(),
        replace(pocket, name="mine").figures_dir(),
    ]
    assert len(set(others)) == len(others)
    assert {folder.parent for folder in others} == {store / "figures"}
    assert others[0].name == "pocket_n_seeds=1"


def test_notebook_parameters_of_the_right_type_pass():
    check_parameters({"SCALE": "smoke", "ALPHA": 1, "In": ["", "x = 1"]}, SCALE=str, ALPHA=float)


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        (
            {"SCALE": "smoke", "ALPHA": 0.2, "In": ["", INJECTED]},
            "unknown notebook parameter ALPHAA: this notebook takes SCALE, ALPHA",
        ),
        ({"SCALE": "smoke", "ALPHA": "0.2", "In": []}, "ALPHA is '0.2', a str: give a float"),
        ({"SCALE": 3, "ALPHA": 0.2, "In": []}, "SCALE is 3, a int: give a str"),
        ({"SCALE": "smoke", "ALPHA": True, "In": []}, "ALPHA is True, a bool: give a float"),
    ],
)
def test_unknown_or_mistyped_notebook_parameters_are_refused(namespace, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(namespace, SCALE=str, ALPHA=float)
