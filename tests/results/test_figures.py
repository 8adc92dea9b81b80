from pathlib import Path
from shutil import copytree

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conftest import REPO

from mixdistill.results import figures
from mixdistill.results.drawing import size_text
from mixdistill.results.redraw import redraw

FIGURES = REPO / "figures"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


COLUMNS = "student,params,contrast,delta,ci_low,ci_high,n_problems,n_seeds,n_bases"
TEXT_AMONG_NUMBERS = f"{COLUMNS}\ns,1,long-short,0,a,1,9,1,1\n"


@pytest.fixture
def folder(tmp_path):
    """The committed tables, without their figures."""
    copytree(FIGURES / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def accuracy():
    return pd.read_csv(FIGURES / "data/learnability_gap.csv")


@pytest.fixture
def gaps():
    return pd.read_csv(FIGURES / "data/gaps.csv")


def test_every_committed_figure_is_redrawn_from_its_csv(folder):
    drawn = redraw(folder)
    assert {path.rsplit("/", 1)[-1] for path in drawn} == {path.name for path in FIGURES.glob("*.png")}
    assert all(path.stat().st_size > 10_000 for path in folder.glob("*.png"))
    narrow, wide = (plt.imread(folder / f"02_learnability_gap{end}.png").shape for end in ("_narrow", ""))
    assert narrow[0] > narrow[1]
    assert wide[0] < wide[1]


def test_teachers_have_a_figure_where_a_scale_has_them(tmp_path, accuracy, gaps):
    recipes = {"short": "small_teacher", "long": "large_teacher", "mix_long": "mix_large"}
    contrasts = {"long-short": "large_teacher-small_teacher", "mix_long-best": "mix_large-best"}
    figures.save_table(accuracy.replace({"recipe": recipes}), tmp_path, "teacher_accuracy")
    figures.save_table(gaps.replace({"contrast": contrasts}), tmp_path, "teacher_gaps")
    assert redraw(tmp_path) == [str(tmp_path / "06_teacher_gap.png")]


def test_without_data_the_reader_is_told_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"data has the tables of no figure: mixdistill reproduce, with"):
        redraw(tmp_path)


def test_the_headline_figure_shows_all_recipes_with_error_bars_and_the_guess(accuracy, gaps):
    figure = figures.learnability_gap(accuracy, gaps, guess=[-30, None, 0, 5, 20])
    left, right = figure.axes
    assert len(left.containers) == 4
    assert len(right.containers) == 2
    assert "your guess of the gap" in [text.get_text() for text in right.get_legend().get_texts()]


def test_every_line_has_its_name_beside_it_and_no_two_names_overlap(gaps):
    (axes,) = figures.by_size(gaps, "mix").axes
    axes.figure.canvas.draw()
    names = [text for text in axes.texts if text.get_text()]
    assert [text.get_text()[2:] for text in names] == ["Mix-Long - long CoT", "Mix-Long - short CoT"]
    colors = {line[0].get_color() for line in axes.containers}
    assert {text.get_color() for text in names} == colors
    low, high = (text.get_window_extent() for text in names)
    assert low.y1 <= high.y0


def test_the_parts_of_the_mixs_gain_add_up_to_it(gaps):
    parts = pd.read_csv(FIGURES / "data" / "gain_parts.csv")
    of_mix = parts[parts["answers of"] == "the mix"].groupby("student", sort=False)["delta"].sum()
    gain = gaps[gaps["contrast"] == "mix_long-short"].set_index("student")["delta"]
    assert of_mix.to_dict() == pytest.approx(gain.to_dict(), abs=1e-5)


def test_a_curve_says_the_accuracy_of_the_marked_share_or_that_there_is_none():
    curves = pd.read_csv(FIGURES / "data/alpha_sweep.csv")
    row = curves.set_index("alpha").loc[0.4]
    (marked,), (unmarked,) = (figures.alpha_curve(curves, row["student"], alpha).axes for alpha in (0.4, 0.5))
    assert f"{row['accuracy']:.1%} [{row['ci_low']:.1%}, {row['ci_high']:.1%}]" in marked.get_title()
    assert unmarked.get_title().endswith("not trained at this share")


def test_a_scale_without_some_tables_has_the_figures_of_the_others(tmp_path):
    copytree(FIGURES / "pocket-large" / "data", tmp_path / "data")
    drawn = {Path(path).stem for path in redraw(tmp_path)}
    gap = {"02_learnability_gap", "02_learnability_gap_narrow"}
    assert drawn == gap | {"02_paper_table1", "03_every_student", "04_errors", "04_controls"}


def test_a_student_on_one_benchmark_has_a_row_a_recipe_in_the_words_of_all_figures(tmp_path):
    copytree(FIGURES / "laptop" / "data", tmp_path / "data")
    assert {"svamp", "svamp_narrow"} <= {Path(path).stem for path in redraw(tmp_path)}
    table = pd.read_csv(tmp_path / "data" / "svamp.csv")
    axes, _ = figures.recipes(table, pd.read_csv(tmp_path / "data" / "svamp_gaps.csv")).axes
    of = {"untouched": "untouched", "short": "short CoT", "long": "long CoT", "mix_long": "Mix-Long"}
    of |= {"small_teacher": "small teacher", "large_teacher": "large teacher", "mix_large": "Mix-Large"}
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == list(of.values())
    shown = [(round(line[0].get_ydata()[0]), line[0].get_xdata()[0]) for line in axes.containers]
    expected = zip(table["recipe"], table["accuracy"], strict=True)
    assert shown == [(labels.index(of[recipe]), value) for recipe, value in expected]


def test_learning_rates_stand_beside_each_other_and_all_but_the_first_are_hollow():
    table, gaps = (pd.read_csv(FIGURES / "laptop" / "data" / f"{name}.csv") for name in ("svamp", "svamp_gaps"))
    table, gaps = table[~(table["lr"] < 5e-4) & ~(table["lr"] > 5e-4)], gaps[gaps["lr"] == 5e-4]
    twice = [pd.concat([rows.assign(lr=rows["lr"] * 4), rows[rows["lr"].notna()]]) for rows in (table, gaps)]
    axes, _ = figures.recipes(*twice).axes
    ys = [line[0].get_ydata()[0] for line in axes.containers]
    assert len({round(y, 3) for y in ys}) == len(ys) == 7
    assert [line[0].get_markerfacecolor() == "white" for line in axes.containers] == [False] * 4 + [True] * 3
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "learning rate 0.002, seeds: 3",
        "learning rate 0.0005, seeds: 3",
    ]


@pytest.mark.parametrize(
    ("minus", "said"), [("short", "minus is 'short'"), ([], "number of"), (["x"], "one of minus is")]
)
def test_a_forest_takes_a_list_of_recipes_that_its_table_has(minus, said):
    with pytest.raises(ValueError, match=said):
        figures.forest(pd.read_csv(FIGURES / "data" / "rivals.csv"), minus)


def test_a_guess_that_is_no_number_is_refused(accuracy, gaps):
    with pytest.raises(ValueError, match="a guess is 'much': it is a finite number"):
        figures.learnability_gap(accuracy, gaps, guess=[1, 2, "much", 4, 5])


@pytest.mark.parametrize("guess", [[-30, -20], [0] * 6, []])
def test_another_number_of_guesses_than_students_is_refused(accuracy, gaps, guess):
    with pytest.raises(ValueError, match=rf"guess has {len(guess)} numbers: give 5, one a student, smallest first"):
        figures.learnability_gap(accuracy, gaps, guess)


@pytest.mark.parametrize(
    ("n_seeds", "n_bases", "said"),
    [
        (
            6,
            [3, 6, 3, 5, 3],
            "6 seeds on 3 to 6 bases a size; bars: 95% intervals over seeds, bases and problems",
        ),
        (6, [1, 3, 3, 3, 3], "over seeds, bases and problems, of sizes with one base over its seeds"),
        (3, [1] * 5, "3 seeds; bars: 95% intervals over seeds and problems, of one base a size"),
        (1, [1] * 5, "one seed; bars: 95% intervals over problems only, of one seed"),
    ],
)
def test_the_note_of_a_figure_claims_no_more_than_its_intervals_cover(accuracy, gaps, n_seeds, n_bases, said):
    of = dict(zip(gaps["student"].unique(), n_bases, strict=True))
    note = figures.learnability_gap(accuracy, gaps.assign(n_seeds=n_seeds, n_bases=gaps["student"].map(of))).texts[0]
    assert note.get_text().startswith(f"n = {gaps['n_problems'].max()} test problems, ")
    assert note.get_text().endswith(said)


def test_a_table_of_texts_breaks_lines_where_they_do_and_escapes_them():
    shown = figures.text_table(pd.DataFrame({"text": ["1 < 2 .\nso 3"]})).data
    assert ">1 &lt; 2 .<br>so 3<" in shown
    assert "\\n" not in shown


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"gaps.csv is no whole table \(No columns"),
        ("student,params\n", "gaps.csv is no whole table .*: git checkout it, or make it with RESULTS = 'live'"),
        ("student,params\ns,1\ns,", "gaps.csv is no whole table"),
        ("version https://git-lfs.github.com/spec/v1\nsize 5\n", "gaps.csv is no whole table"),
        ("student,params\ns,1\n", "and gaps: the table lacks contrast"),
        (TEXT_AMONG_NUMBERS, "and gaps: "),
    ],
)
def test_a_table_that_is_damaged_is_named(folder, content, said):
    (folder / "data" / "gaps.csv").write_text(content)
    with pytest.raises(ValueError, match=said):
        redraw(folder)


@pytest.mark.parametrize(
    ("params", "text"), [(37_184, "37k"), (2_860_000, "2.9M"), (134_515_008, "135M"), (494_032_768, "0.5B")]
)
def test_sizes_are_written_as_people_call_the_models(params, text):
    assert size_text(params) == text
