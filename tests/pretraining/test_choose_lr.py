"""The search for the pocket students' LoRA rates: how far it goes, and what it leaves of an earlier one."""

import math
import sys

import pandas as pd
import pytest

from pretraining import choose_lr


@pytest.mark.parametrize("best", [6e-4, 2.5e-3, 5e-3, 2e-2])
def test_the_search_goes_on_until_the_best_rate_is_inside_and_keeps_other_students(best, monkeypatch, tmp_path):
    def accuracies(student, lr):
        return {"student": student, "lr": lr, "short": 0.5, "mean": 1 - abs(math.log(lr / best))}

    monkeypatch.setattr(choose_lr, "mean_accuracies", accuracies)
    monkeypatch.setattr(choose_lr, "POCKET_DIR", tmp_path)
    for student in ("pocket/s", "pocket/xs", "pocket/xs"):
        monkeypatch.setattr(sys, "argv", ["choose_lr", student])
        choose_lr.main()

    search = pd.read_csv(tmp_path / "lr_search.csv")
    assert search["student"].drop_duplicates().tolist() == ["pocket/s", "pocket/xs"]
    for _, rows in search.groupby("student"):
        rates = rows["lr"].tolist()
        assert rates == sorted(set(rates))
        assert set(choose_lr.GRID) <= set(rates)
        assert min(rates) < rates[rows["mean"].argmax()] < max(rates)
