import json
from pathlib import Path

import numpy as np
import pytest

from reid_eval.distances import (
    ArrayVectors,
    JoinedVectors,
    MetricVectors,
    rough_distances,
    rough_error,
    squared_distances,
    squared_lengths,
)
from reid_eval.places import PlaceCounts, right_answers
from reid_eval.scores import SingleShot, SingleShotCurves

VECTORS = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())


def labels(rng, num_query=9, num_gallery=70):
    return (
        rng.integers(1, 5, num_query),
        rng.integers(-1, 3, num_query),
        rng.integers(0, 5, num_gallery),
        rng.integers(-1, 3, num_gallery),
    )


def slow_places(distances, q_pid, q_camid, g_pids, g_camids):
    order = sorted(range(len(distances)), key=lambda g: (distances[g], g))
    kept = [g for g in order if not (g_pids[g] == q_pid and g_camids[g] == q_camid and q_camid != -1)]
    return [place for place, g in enumerate(kept) if g_pids[g] == q_pid]


@pytest.mark.parametrize("columns", [1, 7, 70])
@pytest.mark.parametrize("error", [0.0, 0.01, 10.0])
def test_rough_distances_in_any_blocks_give_the_places_of_exact_ones(columns, error):
    rng = np.random.default_rng(0)
    q_pids, q_camids, g_pids, g_camids = labels(rng)
    distances = np.round(rng.random((9, 70)), 1).astype(np.float32)  # many ties
    rough = (distances + 0.99 * error * (2 * rng.random(distances.shape) - 1)).astype(np.float32)
    answers = right_answers(q_pids, q_camids, g_pids, g_camids)
    counts = PlaceCounts(answers, distances[answers.query_of, answers.rows])
    for start in range(0, 70, columns):
        for query in (0, 4):
            stop = (4, 9)[query > 0]
            counts.add(
                rough[query:stop, start : start + columns] - np.float32(1),
                first_query=query,
                first_column=start,
                less=np.ones(stop - query),
                error=np.full(stop - query, error + 1e-6),
                exact=lambda queries, gallery: distances[queries, gallery],
            )
    expected = [slow_places(*line, g_pids, g_camids) for line in zip(distances, q_pids, q_camids, strict=True)]
    assert counts.places.tolist() == [place for places in expected for place in places]


@pytest.mark.parametrize("few", [0.0, 1.0])  # rows are sorted as a whole, or picked out
@pytest.mark.parametrize("columns", [1, 7, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_distances_in_any_blocks_give_the_same_places(monkeypatch, dtype, columns, few):
    monkeypatch.setattr("reid_eval.places._FEW", few)
    monkeypatch.setattr("reid_eval.places._ENTRIES", 150)
    rng = np.random.default_rng(1)
    q_pids, q_camids, g_pids, g_camids = labels(rng)
    distances = np.round(rng.random((9, 70)) - 0.5, 1).astype(dtype)  # many ties, and numbers of both signs
    answers = right_answers(q_pids, q_camids, g_pids, g_camids)
    counts = PlaceCounts(answers, distances[answers.query_of, answers.rows])
    for start in range(0, 70, columns):
        counts.add(distances[:, start : start + columns], first_column=start)
    expected = [slow_places(*line, g_pids, g_camids) for line in zip(distances, q_pids, q_camids, strict=True)]
    assert counts.places.tolist() == [place for places in expected for place in places]


@pytest.mark.parametrize("length", [3, 512, 1500])
def test_rough_distances_are_no_farther_off_than_they_say(length):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, length)).astype(np.float32)
    columns = (rng.normal(size=(90, length)) * rng.choice([1e-3, 1, 10], size=(90, 1))).astype(np.float32)
    rows_sq, columns_sq = squared_lengths(rows), squared_lengths(columns)
    found = rough_distances(rows, columns, columns_sq.astype(np.float32), np.empty((20, 90), np.float32))
    off = np.abs(found + rows_sq[:, None] - squared_distances(rows, columns))
    error = rough_error(rows_sq, columns_sq.max(), length)
    assert (off.max(axis=1) <= error).all()
    assert (off.max(axis=1) > error / 1000).any()  # it says something


def test_vectors_come_as_the_metric_compares_them():
    array = np.array([[3.0, 4.0], [0.0, -2.0], [1.0, 1.0], [-1.0, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(
        MetricVectors(array, np.array([1, 0]), "cosine").take(slice(0, 2)), [[0, -1], [0.6, 0.8]]
    )
    assert MetricVectors(array, np.arange(1, 4), "hamming").take(slice(1, 9)).tolist() == [[1, 1], [0, 1]]
    assert MetricVectors(array, np.arange(2), "euclidean", -1).take(np.array([0])).tolist() == [[1.5, 2]]
    joined = JoinedVectors(ArrayVectors(array[:1]), ArrayVectors(array[1:]))
    np.testing.assert_array_equal(joined.take(np.array([2, 0, 3])), array[[2, 0, 3]])
    np.testing.assert_array_equal(joined.take(slice(None)), array)


# --- one picture per identity ---------------------------------------------------------------------------------------


def curves_of(case, how):
    inputs = case["input"]
    q_pids, q_camids, g_pids, g_camids = (np.array(inputs[n]) for n in ("q_pids", "q_camids", "g_pids", "g_camids"))
    curves = SingleShotCurves(right_answers(q_pids, q_camids, g_pids, g_camids), g_pids, how)
    rows = np.array(inputs["distmat"])
    return np.mean([curves.curve(query, row) for query, row in enumerate(rows)], axis=0)[: inputs["max_rank"]]


@pytest.mark.parametrize("case", VECTORS["single_gallery_shot"], ids=lambda case: case["name"])
def test_the_expected_single_shot_curve_is_the_closed_form(case):
    np.testing.assert_allclose(curves_of(case, SingleShot()), case["expected"]["expectation"]["cmc"], atol=1e-12)


@pytest.mark.parametrize("case", VECTORS["single_gallery_shot"], ids=lambda case: case["name"])
def test_drawing_often_comes_near_the_programs_that_draw(case):
    found = curves_of(case, SingleShot(repetitions=20000, seed=1))
    # 40,000 draws there, 20,000 here: the deviation of a share of one half is 0.004.
    np.testing.assert_allclose(found, case["expected"]["torchreid_cuhk03_mean"]["cmc"], atol=0.015)
    np.testing.assert_array_equal(found, curves_of(case, SingleShot(repetitions=20000, seed=1)))
    assert (found != curves_of(case, SingleShot(repetitions=20000, seed=2))).any() or case["name"] == "one_image_per_id"


def test_expectation_and_draws_agree_where_pictures_are_equally_far():
    rng = np.random.default_rng(3)
    q_pids, q_camids, g_pids, g_camids = labels(rng, num_gallery=25)
    answers = right_answers(q_pids, q_camids, g_pids, g_camids)
    distances = np.round(rng.random((9, 25)), 1)
    expected, drawn = (SingleShotCurves(answers, g_pids, how) for how in (SingleShot(), SingleShot(5000)))
    for query, row in enumerate(distances):
        # 5,000 draws: five deviations of a share of one half.
        np.testing.assert_allclose(drawn.curve(query, row), expected.curve(query, row), atol=0.036)
