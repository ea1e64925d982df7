import json
from pathlib import Path

import numpy as np
import pytest

from reid_eval.errors import Stopped
from reid_eval.frechet import StatisticsError
from reid_eval.kid import kid, kid_subsets
from reid_eval.prdc import prdc
from reid_eval.stopping import stoppable

DATA = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())


@pytest.mark.parametrize("vector", DATA["kid"], ids=[vector["name"] for vector in DATA["kid"]])
def test_kid_is_that_of_the_formula_and_of_torch_fidelity(vector):
    x, y = (np.array(vector["input"][side], np.float32) for side in "xy")
    assert kid(x, y).value == pytest.approx(vector["expected"]["full_sample_unbiased"]["kid"], rel=1e-12)
    expected = vector["expected"]["torch_fidelity"]
    subsets, size = vector["input"]["subsets"], vector["input"]["subset_size"]
    mean, deviation = kid_subsets(x, y, subsets=subsets, subset_size=size)
    assert mean == pytest.approx(expected["mean"], abs=1e-6)  # theirs is float32
    assert deviation == pytest.approx(expected["std"], abs=1e-6)


def test_kid_holds_the_true_value_in_its_interval_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    apart, alike = 0, 0
    for _ in range(200):
        x, y, z = rng.normal(size=(40, 2)), rng.normal(size=(50, 2)) + 0.7, rng.normal(size=(50, 2))
        far, near = kid(x, y), kid(x, z)
        alike += near.low <= 0 <= near.high
        apart += far.value > 0
    assert alike >= 185
    assert apart >= 185


def test_the_order_of_the_vectors_does_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(35, 4)) * 1.2
    assert kid(x[::-1], y[::-1]).value == pytest.approx(kid(x, y).value, rel=1e-10)
    assert prdc(x[::-1], y[::-1]) == prdc(x, y)


@pytest.mark.parametrize("vector", DATA["prdc"], ids=[vector["name"] for vector in DATA["prdc"]])
def test_precision_recall_density_and_coverage_are_those_of_the_programs(vector):
    real, fake = (np.array(vector["input"][side]) for side in ("real", "fake"))
    found = prdc(real, fake, k=vector["input"]["k"], density_k=vector["input"]["k"])
    closed, open_ = vector["expected"]["torch_fidelity"], vector["expected"]["prdc"]
    assert (found.precision, found.recall) == pytest.approx((closed["precision"], closed["recall"]))
    assert (found.density, found.coverage) == pytest.approx((open_["density"], open_["coverage"]))


def test_dropping_a_kind_of_picture_costs_recall_and_coverage_but_not_precision():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [20, 0]])
    real = np.concatenate([centre + rng.normal(size=(50, 2)) for centre in centres])
    whole = np.concatenate([centre + rng.normal(size=(50, 2)) for centre in centres])
    half = centres[0] + rng.normal(size=(100, 2))
    assert prdc(real, half).recall < 0.6 < 0.8 < prdc(real, whole).recall
    assert prdc(real, half).coverage < 0.6 < 0.8 < prdc(real, whole).coverage
    assert prdc(real, half).precision > 0.8


def test_too_few_vectors_and_unequal_lengths_are_refused():
    few, long = np.zeros((5, 3)), np.zeros((9, 4))
    with pytest.raises(StatisticsError, match=r"5 real pictures: .* need more than 5"):
        prdc(few, few)
    for measure in (kid, prdc, kid_subsets):
        with pytest.raises(StatisticsError, match="3 features against 4"):
            measure(np.zeros((9, 3)), long)
    with pytest.raises(StatisticsError, match="5 pictures for subsets of 1000"):
        kid_subsets(few, few)


@pytest.mark.parametrize("measure", [kid, prdc])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_no_numbers_are_refused_and_no_bad_score(measure, side):
    sides = [np.random.default_rng(seed).normal(size=(9, 4)) for seed in (0, 1)]
    sides[side][3, 2] = np.nan
    with pytest.raises(StatisticsError, match="not finite"):
        measure(*sides)


def test_as_many_subsets_as_anybody_asks_for_end_with_the_time_limit():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3))
    with stoppable(max_hours=0.1 / 3600), pytest.raises(Stopped, match="--max-hours"):
        kid_subsets(x, y, subsets=10**30, subset_size=4)
    for measure in (kid, prdc):
        with stoppable(max_hours=0), pytest.raises(Stopped, match="--max-hours"):
            measure(x, y)
