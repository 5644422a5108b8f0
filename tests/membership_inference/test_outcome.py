"""Numbers over all images against brute force, and what is said of single ones."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from fl_sim.errors import FlSimError
from fl_sim.membership_inference.base import MembershipSettings, Scores
from fl_sim.membership_inference.outcome import Membership
from fl_sim.membership_inference.roc import auc_error, auc_of


def _found(
    order: list[float] | np.ndarray, members: int, patients: list[str] | None = None
) -> Membership:
    values = np.asarray(order, dtype=np.float64)
    scores = Scores(values, 1 / (1 + np.exp(-values)))
    known = None if patients is None else np.array(patients)
    return Membership(MembershipSettings(), scores, members, known)


def _random(ties: bool) -> tuple[np.ndarray, int]:
    draw = np.random.default_rng(0)
    order = np.concatenate([draw.normal(0.7, 1, 300), draw.normal(0, 1, 500)])
    return (np.round(order) if ties else order), 300


@pytest.mark.parametrize("ties", [False, True])
def test_area_and_shares_are_those_of_the_roc_curve(ties: bool) -> None:
    order, members = _random(ties)
    found, truth = _found(order, members), np.arange(len(order)) < members
    assert found.auc == pytest.approx(roc_auc_score(truth, order))
    false, true, _ = roc_curve(truth, order, drop_intermediate=False)
    for rate in (0.0, 0.001, 0.01, 0.1, 0.5, 1.0):
        assert found.tpr(rate) == pytest.approx(true[false <= rate].max()), rate


def test_the_error_of_the_area_is_what_resampled_images_give() -> None:
    order, members = _random(ties=False)
    draw = np.random.default_rng(1)
    seen, fresh = order[:members], order[members:]
    resampled = [
        auc_of(draw.choice(seen, len(seen)), draw.choice(fresh, len(fresh))) for _ in range(800)
    ]
    assert auc_error(seen, fresh) == pytest.approx(np.std(resampled), rel=0.08)


def test_intervals_hold_what_they_are_about() -> None:
    found = _found(*_random(ties=False))
    assert found.auc_interval.low < found.auc < found.auc_interval.high <= 1
    low, high = found.tpr_interval(0.01)
    p, n, z = found.tpr(0.01), 300, 1.959963984540054
    middle, wide = p + z * z / (2 * n), 1 + z * z / n
    reach = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx(((middle - reach) / wide, (middle + reach) / wide))


def test_guessing_finds_the_rate_and_a_little_more_where_fresh_images_are_few() -> None:
    draw = np.random.default_rng(0)
    for fresh, rate in ((1000, 0.01), (50, 0.001), (50, 0.1)):
        found = [_found(draw.normal(size=200 + fresh), 200) for _ in range(400)]
        chance = found[0].chance(rate)
        assert np.mean([one.tpr(rate) for one in found]) == pytest.approx(chance, rel=0.15)
    assert _found(draw.normal(size=1200), 200).chance(0.01) == pytest.approx(0.01, rel=0.1)


def test_an_image_is_told_by_how_many_fresh_ones_stand_out_as_much() -> None:
    found = _found([5.0, 1.0, 3.0, 0.0, 2.0, 3.0], members=3)
    table = found.records
    assert table["record"].tolist() == [0, 2, 2, 1, 1, 0]
    assert table["member"].tolist() == [True, True, False, False, True, False]
    assert table["risk"].is_monotonic_decreasing
    members = table[table["member"]].set_index("record")["false_alarms"]
    assert members.to_dict() == {0: 1 / 4, 2: 2 / 4, 1: 3 / 4}
    fresh = table[~table["member"]].set_index("record")["false_alarms"]
    assert fresh.to_dict() == {2: 1 / 3, 1: 2 / 3, 0: 1.0}  # each among the two others
    assert table["found_at_1_percent"].tolist() == [True] + [False] * 5


def test_a_patient_has_the_risk_of_his_image_that_stands_out_most() -> None:
    patients = ["a", "b", "b", "c", "d", "d"]
    table = _found([5.0, 1.0, 3.0, 0.0, 2.0, 2.5], 3, patients).by_patient.set_index("patient")
    assert set(table.index) == {"a", "b"}  # who has images among the members
    assert table.loc["b", "images"] == 2
    assert table.loc["b", "risk"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert table.loc["a", "false_alarms"] == pytest.approx(1 / 4)
    assert table.loc["b", "false_alarms"] == pytest.approx(1 - (1 - 1 / 4) ** 2)
    with pytest.raises(FlSimError, match="No patient"):
        _ = _found([1.0, 0.0], 1).by_patient


def test_what_may_leave_names_no_image_and_no_patient(tmp_path: Path) -> None:
    secret = [f"patient-{number}" for number in range(800)]
    order, members = _random(ties=False)
    found = _found(order, members, secret)
    text = json.dumps(found.as_dict())
    assert "patient" not in text and "record" not in text and len(text) < 800
    assert str(order[0])[:8] not in text
    path = found.save_records(tmp_path / "records.csv")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().count("patient-") == 800


def test_what_has_no_members_or_no_others_is_refused() -> None:
    with pytest.raises(FlSimError, match="0 and 2"):
        _found([1.0, 2.0], 0)
    with pytest.raises(FlSimError, match="between 0 and 1"):
        _found([1.0, 2.0], 1).tpr(1.5)
