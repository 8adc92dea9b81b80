import pytest

from mixdistill import get_scale, sweep
from mixdistill.scales import Arm, alpha_arms, gap_arms

SMOKE = get_scale("smoke", 1)


def test_a_sweep_trains_what_is_missing_once_and_then_only_reads(store, capfd):
    arms = [*gap_arms(SMOKE)[-3:], *alpha_arms(SMOKE, "pocket/s", (0.0, 1.0))]
    items = sweep(arms, SMOKE)
    assert "3 arms: 0 in the run store, 3 to run" in capfd.readouterr().out  # alpha=0 is short, alpha=1 is long
    assert len(items) == len(arms) * 24
    assert set(items["recipe"]) == {"short", "long", "mix_long", "alpha=0", "alpha=1"}
    scores = {path: path.read_bytes() for path in store.rglob("scores.json")}
    assert sweep(arms, SMOKE).equals(items)
    assert "3 in the run store, 0 to run" in capfd.readouterr().out
    assert {path: path.read_bytes() for path in store.rglob("scores.json")} == scores


def test_bad_arms_are_refused_before_anything_is_trained(store):
    good = Arm("pocket/xs", "short", 0.0, 0)
    for bad, message in (
        (Arm("pocket/huge", "short", 0.0, 0), "unknown student 'pocket/huge'"),
        (Arm("pocket/xs", "mix_long", 1.2, 0), "alpha is 1.2"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep([good, bad], SMOKE)
    assert not list(store.rglob("manifest.json"))


def test_a_failing_arm_costs_no_other(store, capfd):
    arms = [Arm("pocket/xs", "short", 0.0, seed) for seed in range(2)]
    from mixdistill.sweep import run_arm

    broken = run_arm(arms[0], SMOKE).folder.parents[1]
    (broken / "manifest.json").unlink()
    (broken / "config.json").write_text("{}")
    with pytest.raises(
        RuntimeError, match=r"1 of 2 arms failed; the first, pocket/xs short seed 0: .*was changed after"
    ):
        sweep(arms, SMOKE)
    assert run_arm(arms[1], SMOKE, stored_only=True) is not None
