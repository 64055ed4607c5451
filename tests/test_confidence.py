"""Curves equal scikit-learn's, the choice among them finds what is there, and files keep what they rest on."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.consensus.calibrators import METHODS, BaseRate, Histogram, Isotonic, Logistic
from qubic_lab.consensus.confidence import (
    Observation,
    SignalCurve,
    Signals,
    VoteCalibration,
    calibrate,
    confidence_of,
    judge_confidence,
    load_calibration,
    load_calibrations,
    log_loss,
    save_calibration,
)
from qubic_lab.consensus.voting import Ballot, decide
from qubic_lab.errors import InputError

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)

# 20 observations of two signals; all values named `scikit-learn` are of its version 1.9.1 on these.
SIGNALS_NS = np.array([[n / 20, (n * 7 % 20) / 20] for n in range(20)])
RIGHT_N = np.array([0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1], dtype=np.float64)


def test_isotonic_equals_scikit_learn_but_for_its_ends_may_fall_and_goes_on_beyond_its_values():
    sklearn = [0.0] * 2 + [1 / 3] * 3 + [0.5] * 6 + [2 / 3] * 3 + [1.0] * 6
    expected = np.clip(sklearn, 1 / 22, 21 / 22)
    for values in (SIGNALS_NS, 1 - SIGNALS_NS):
        assert Isotonic.fit(values, RIGHT_N)(values) == pytest.approx(expected)
    curve = Isotonic((0.2, 0.6), (0.3, 0.7))
    assert curve(np.array([[0.0], [0.4], [0.9]])) == pytest.approx([0.3, 0.5, 0.7])


def test_logistic_and_log_loss_equal_scikit_learn():
    """LogisticRegression(C=1) on scaled signals, each observation twice: right with Platt's target as its weight."""
    one = Logistic.fit(SIGNALS_NS[:, :1], RIGHT_N)
    assert (one.weights, one.intercept) == (pytest.approx((0.828791,), abs=2e-5), pytest.approx(0.458076, abs=2e-5))
    assert one(SIGNALS_NS[[0, 9, 19], :1]) == pytest.approx([0.287539, 0.59537, 0.860988], abs=2e-5)
    two = Logistic.fit(SIGNALS_NS, RIGHT_N)
    assert two.weights == pytest.approx((0.738682, 0.357387), abs=2e-5)
    assert two(SIGNALS_NS[[0, 9, 19]]) == pytest.approx([0.207628, 0.499897, 0.869938], abs=2e-5)
    assert log_loss(0.05 + 0.9 * SIGNALS_NS[:, 0], RIGHT_N) == pytest.approx(0.5421091098875904)


def test_histogram_by_hand():
    """Two bins of 10: 3 and 8 right; each with 4 observations of the overall (11 + 1) / 22 beside them."""
    values = np.repeat([[0.4], [0.8]], 10, axis=0)
    right = np.array([1] * 3 + [0] * 7 + [1] * 8 + [0] * 2, dtype=np.float64)
    curve = Histogram.fit(values, right)
    overall = 12 / 22
    expected = [(3 + 4 * overall) / 14, (8 + 4 * overall) / 14]
    assert curve(np.array([[0.4], [0.8]])) == pytest.approx(expected)
    assert curve(np.array([[0.0], [1.0]])) == pytest.approx(expected), "beyond them the nearest bin counts"


@pytest.mark.parametrize("right", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_no_curve_is_ever_certain(method: str, right: float):
    """All right or all wrong, even on one and the same signal."""
    signals = np.full((60, 0 if method == "base-rate" else 1), 0.8)
    (found,) = METHODS[method].fit(signals, np.full(60, right))(signals[:1])
    assert 0.0 < abs(found - (1 - right)) < 1.0
    assert abs(found - right) < 0.05


def test_signals_of_a_decision():
    decision = decide([Ballot("a", 1, 0.6), Ballot("b", 1, 0.2), Ballot("c", 0, 0.8), Ballot("d", None, 0.4)])
    signals = Signals.of(decision, [math.log(0.5)], [40], similarity=0.9)
    assert (signals.ballots, signals.vote_share, signals.margin) == (4, 0.5, 0.25)
    assert (signals.weight_share, signals.token_probability) == (pytest.approx(0.4), pytest.approx(0.5))
    assert (signals.similarity, signals.tokens) == (0.9, 40)
    assert Signals.of(decide([Ballot("a", None)])) == Signals(1, 0.0, 0.0, 0.0)


def observations(count: int = 400, seed: int = 0, by: str = "token_probability", logprobs: bool = True):
    """Votes of 5 whose winner is right with the square of one signal; the others say nothing."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        share, margin, weight, token = (float(each) for each in draw.random(4))
        signals = Signals(5, share, margin, weight, token if logprobs else None)
        found.append(Observation(f"q{number}", signals, bool(draw.random() < getattr(signals, by) ** 2)))
    return found


def calibrated(**of) -> VoteCalibration:
    return calibrate(observations(**of), "sha-of-model", "numeric", NOW)


def test_cross_validation_finds_the_signal_that_tells():
    for by in ("token_probability", "margin"):
        found = calibrated(by=by)
        assert by in found.probability.signals
        assert by in found.score.signals
        assert found.candidates[0].log_loss < min(c.log_loss for c in found.candidates if by not in c.signals) - 0.05
        assert [c.log_loss for c in found.candidates] == sorted(c.log_loss for c in found.candidates)


def test_where_no_signal_tells_none_is_believed_much():
    noise = [replace(each, right=number % 10 < 7) for number, each in enumerate(observations())]
    found = calibrate(noise, "m", "numeric", NOW)
    assert found.probability([each.signals for each in noise]) == pytest.approx(0.7, abs=0.1)


def test_probabilities_hold_on_other_questions():
    found, held_out = calibrated(count=2000), observations(count=2000, seed=1)
    probability = found.probability([each.signals for each in held_out])
    right = [each.right for each in held_out]
    report = judge_confidence(probability, right, resamples=200)
    assert report.ece < 0.04
    assert report.ece_interval[0] <= report.ece_if_calibrated_95
    assert report.brier < report.brier_parts.uncertainty
    assert report.aurc_interval[0] < report.aurc < report.aurc_interval[1] < 1 - report.accuracy
    assert report.brier_interval[0] < report.brier < report.brier_interval[1]
    assert sum(each.items for each in report.reliability) == report.items == 2000
    worse = judge_confidence(np.sqrt(probability), right, resamples=50)
    assert worse.ece_interval[0] > report.ece_interval[1]
    assert worse.aurc == pytest.approx(report.aurc), "order is all that coverage asks for"


def test_a_signal_that_is_not_known_throughout_is_not_used():
    candidates = calibrated(by="margin", logprobs=False).candidates
    assert all("token_probability" not in each.signals for each in candidates)
    unknown = [each.signals for each in observations(3, logprobs=False, by="margin")]
    with pytest.raises(InputError, match="the signal token_probability is not known for every vote"):
        calibrated().probability(unknown)


def test_folds_hold_out_whole_questions_in_whatever_order():
    """Copies of a question on both sides would make the sharpest curve the best one."""
    few = observations(200, by="margin")
    assert calibrate(few, "m", "numeric", NOW) == calibrate(few[::-1], "m", "numeric", NOW)
    draw = np.random.default_rng(0)
    copied = []
    for number in range(200):  # each question with its own value of a signal, and right or wrong by chance
        signals, right = Signals(5, number / 200, 0.5, 0.5), bool(draw.random() < 0.5)
        copied += [Observation(f"q{number}", signals, right)] * 10
    found = calibrate(copied, "m", "numeric", NOW)
    assert found.candidates[0].log_loss > 0.66, "nothing can be known, so log 2 is the best there is"
    assert (found.observations, found.questions) == (2000, 200)
    with pytest.raises(InputError, match="questions to calibrate on is 199: it must be at least 200"):
        calibrated(count=199)


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_comes_back_from_its_file_with_what_it_rests_on(tmp_path: Path, method: str):
    data = observations()
    made = calibrate(data, "sha-of-model", "numeric", NOW)
    assert (made.observations, made.questions, made.ballots) == (400, 400, (5,))
    assert made.right == sum(each.right for each in data)
    other = calibrate([replace(data[0], right=not data[0].right), *data[1:]], "sha-of-model", "numeric", NOW)
    assert made.data_sha256 != other.data_sha256
    signals = () if method == "base-rate" else ("margin",)
    curve = METHODS[method].fit(SIGNALS_NS[:, : len(signals)], RIGHT_N)
    made = replace(made, probability=SignalCurve(method, signals, curve))
    save_calibration(made, tmp_path / "new" / "numeric.json")
    assert load_calibrations(tmp_path / "new") == (made,)
    assert load_calibrations(tmp_path / "none") == ()


WRONG_CURVES: list[tuple[str, dict]] = [
    ("base-rate", {"probability": 1.0}),
    ("histogram", {"ends": [0.5], "probabilities": [0.5]}),
    ("isotonic", {"values": [0.5, 0.5], "probabilities": [0.2, 0.3]}),
    ("isotonic", {"values": [], "probabilities": []}),
    ("isotonic", {"values": [math.nan], "probabilities": [0.2]}),
    ("logistic", {"means": [0.0], "scales": [0.0], "weights": [1.0], "intercept": 0.0}),
    ("logistic", {"means": [0.0], "scales": [1.0], "weights": [1.0, 1.0], "intercept": 0.0}),
]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 1}, "unknown format 1: known: 2"),
        ({"probability": {"method": "platt"}}, "unknown calibration method 'platt'"),
        ({"probability": {"method": "base-rate"}}, "not the numbers of a base-rate curve"),
        ({"score": {"signals": ["vote_shar"]}}, "unknown signal 'vote_shar': did you mean 'vote_share'"),
        ({"score": {"signals": ["vote_share", "margin", "weight_share"]}}, "signals, not 3"),
        ({"probability": {"curve": None}}, "curve"),
        ({"observations": "many"}, "observations is 'many': it must be a whole number"),
        ({"made_utc": "yesterday"}, "made_utc is 'yesterday'"),
        ({"made_utc": "2026-03-02T12:00:00"}, "timezone"),
        ({"extra": 1}, "unknown name 'extra'"),
        *(({"score": {"method": method, "curve": curve}}, "curve: ") for method, curve in WRONG_CURVES),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, change: dict, problem: str):
    path = tmp_path / "numeric.json"
    save_calibration(calibrated(), path)
    content = json.loads(path.read_text())
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"numeric\.json is not a calibration: .*{problem}"):
        load_calibration(path)


def test_what_is_no_calibration_at_all_is_refused(tmp_path: Path):
    path = tmp_path / "numeric.json"
    for text in ("", "[1]", "{", "{}"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"numeric\.json is not a calibration"):
            load_calibration(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_calibration(tmp_path / "none.json")


def test_confidence_is_uncalibrated_unless_it_rests_on_such_votes():
    made = calibrated()
    signals = observations(1)[0].signals
    known = confidence_of(signals, "sha-of-model", "numeric", [made])
    assert known.probability == pytest.approx(float(made.probability([signals])[0]))
    assert "400 votes" in known.note
    assert known.level is made.levels([signals])[0]
    easy = [replace(each, right=each.signals.token_probability > 0.3) for each in observations()]
    clear = [calibrate(easy, "sha-of-model", "numeric", NOW)]
    sure = confidence_of(replace(signals, token_probability=0.999), "sha-of-model", "numeric", clear)
    assert sure.level is ConfidenceLevel.ANSWER
    assert sure.note.endswith("of votes at this level or a better one at most 15% are wrong")
    few, without = replace(signals, ballots=3), replace(signals, token_probability=None)
    for model, question_type, of, note in [
        ("another", "numeric", signals, "none for this model and numeric questions"),
        ("sha-of-model", "choice", signals, "none for this model and choice questions"),
        ("sha-of-model", "numeric", few, "fitted to votes of 5 ballots, not of 3"),
        ("sha-of-model", "numeric", without, "token_probability must be known"),
    ]:
        found = confidence_of(of, model, question_type, [made])
        assert (found.probability, found.note) == (None, f"uncalibrated: {note}")


def test_the_newest_calibration_counts():
    old = replace(calibrated(), probability=SignalCurve("base-rate", (), BaseRate(0.1)))
    base = SignalCurve("base-rate", (), BaseRate(0.9))
    new = replace(old, probability=base, made_utc=NOW + timedelta(minutes=30))
    signals = Signals(5, 1, 1, 1, 0.9)
    assert confidence_of(signals, "sha-of-model", "numeric", [new, old]).probability == pytest.approx(0.9)
