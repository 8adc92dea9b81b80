import pandas as pd
import pytest

from mixdistill.results import figures as plots


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", tmp_path)
    return tmp_path


def test_every_committed_figure_is_redrawn_from_its_csv(figures, monkeypatch):
    names = {path.name for path in (plots.REPO / "figures").glob("*.png")}
    names = {name for name in names if not name.startswith("03_mix_distillation_")}  # of other students, by the reader
    (figures / "data").symlink_to(plots.REPO / "figures" / "data")
    drawn = plots.redraw()
    assert {path.rsplit("/", 1)[-1] for path in drawn} == names
    assert all(path.stat().st_size > 10_000 for path in figures.glob("*.png"))


def test_teachers_have_a_figure_where_a_scale_has_them(figures):
    (figures / "gpu" / "data").mkdir(parents=True)
    names = {"short": "small_teacher", "long": "large_teacher", "mix_long": "mix_large"}
    contrasts = {"long-short": "large_teacher-small_teacher", "mix_long-best": "mix_large-best"}
    for path in (plots.REPO / "figures" / "data").glob("*.csv"):
        table = pd.read_csv(path)
        if path.stem == "learnability_gap":
            table = pd.concat([table, table.replace({"recipe": names})])
        if path.stem == "gaps":
            table = pd.concat([table, table.replace({"contrast": contrasts})])
        table.to_csv(figures / "gpu" / "data" / path.name, index=False)
    assert any(path.endswith("02_teacher_gap.png") for path in plots.redraw("gpu"))


def test_without_data_the_reader_is_told_what_to_run(figures):
    with pytest.raises(ValueError, match=r"lacks alpha_sweep, .*: run make reproduce first"):
        plots.redraw()


def test_the_headline_figure_shows_all_recipes_with_error_bars_and_the_guess():
    accuracy = pd.read_csv(plots.REPO / "figures/data/learnability_gap.csv")
    gaps = pd.read_csv(plots.REPO / "figures/data/gaps.csv")
    figure = plots.learnability_gap(accuracy, gaps, guess=[-30, None, 0, 5, 20])
    left, right = figure.axes
    assert len(left.containers) == 4
    assert len(right.containers) == 2
    assert "your guess of long - short" in [text.get_text() for text in right.get_legend().get_texts()]
    caption = figure.texts[0].get_text()
    assert f"n = {accuracy['n_problems'].max()} test problems" in caption
