"""The published results that travel with the clone are those of the study, and only of it."""

from dataclasses import replace

import pandas as pd
import pytest
from publish import store_items

from mixdistill import get_scale, sweep
from mixdistill.study import stored
from mixdistill.study.plan import all_arms
from mixdistill.study.scales import alpha_arms
from mixdistill.study.stored import open_results

POCKET = get_scale("pocket")


def test_what_is_stored_is_what_the_sweep_gives(tmp_path, monkeypatch):
    scale = replace(
        get_scale("smoke", 1), students=("pocket/xs", "pocket/s"), n_problems=2, n_train=8, alphas=(0.0, 0.3)
    )
    monkeypatch.setattr(stored, "FILE", tmp_path / "items.parquet")
    store_items(scale, stored.FILE)
    arms = [*all_arms(scale), *alpha_arms(scale, "pocket/xs", [0, 0.3])]
    read = stored.Results(scale, tmp_path, stored=True).items(arms)
    pd.testing.assert_frame_equal(read, sweep(arms, scale))


def test_results_are_stored_ones_where_the_parameters_are_the_studys_own(store, monkeypatch):
    own = store / "figures" / "pocket_RESULTS=stored"  # what is published stays as it is
    assert (open_results(POCKET).stored, open_results(POCKET).folder) == (True, own)
    live = open_results(POCKET, "live")
    assert (live.stored, live.folder, live.swept) == (False, store / "figures" / "pocket", ("pocket/xs",))
    other = replace(POCKET, alpha_student="pocket/s")
    for results in (open_results(other), open_results(get_scale("pocket", 1)), open_results(POCKET, ALPHA=0.4)):
        assert not results.stored
    assert open_results(other, "stored").swept == ("pocket/xs", "pocket/s")
    monkeypatch.setattr(stored, "FILE", store / "none")
    assert not open_results(POCKET).stored


@pytest.mark.parametrize("scale", [get_scale("smoke"), get_scale("pocket", 2), replace(POCKET, epochs=1)])
def test_stored_results_of_another_study_are_refused(scale):
    with pytest.raises(ValueError, match=r"RESULTS is 'stored', and what is stored is the scale 'pocket'"):
        open_results(scale, "stored")


def test_a_file_that_is_gone_or_damaged_ends_in_one_sentence_that_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stored, "FILE", tmp_path / "items.parquet")
    advice = "items.parquet, or set RESULTS = 'live', which trains"
    with pytest.raises(ValueError, match=rf"\(it is not there\): git checkout .*{advice}"):
        open_results(POCKET, "stored")
    assert "there is no " in (open_results(POCKET) and capsys.readouterr().out)
    for content in (b"", b"PAR1 and no more"):
        stored.FILE.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read .*: git checkout .*{advice}") as caught:
            open_results(POCKET).items(all_arms(POCKET))
        assert "\n" not in str(caught.value)
