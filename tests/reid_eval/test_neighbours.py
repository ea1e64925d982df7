import numpy as np
import pytest

from reid_eval import neighbours as module
from reid_eval.distances import squared_distances, unit_length
from reid_eval.neighbours import FeatureDistances, MatrixDistances


@pytest.fixture
def small_tiles(monkeypatch):
    """Many blocks, several tiles of each, and candidates thinned out many times, of few points."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(module, "_TILE_COLUMNS", 16)
    monkeypatch.setattr(module, "_SAMPLE", 10)
    monkeypatch.setattr(module, "_PENDING", 1)
    monkeypatch.setattr(module, "_TILE_ROWS", 7)


def crowd(num=90, length=12, people=6):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(people, length))[rng.integers(0, people, num)] + 0.3 * rng.normal(size=(num, length))
    ).astype(np.float32)


KINDS = {
    "people in any order": crowd(),
    "people one after the other": crowd()[np.argsort(crowd()[:, 0])],
    "each nearer than all before": np.geomspace(100, 1, 60)[:, None].astype(np.float32) * np.ones((1, 3), np.float32),
    "closer than float32 products can tell": (
        np.random.default_rng(1).normal(size=700) + 5e-3 * np.random.default_rng(0).normal(size=(80, 700))
    ).astype(np.float32),
    "each three times": np.repeat(crowd(30), 3, axis=0),
    "all equal": np.ones((40, 5), np.float32),
    "codes of bits": (crowd(70, 9) > 0).astype(np.float32),
    "unit vectors": unit_length(crowd(64, 300)),
    "as few as wanted": crowd(5),
}


def of_whole_matrix(distance_sq, count):
    nearest = np.argsort(distance_sq, axis=1, kind="stable")[:, :count]
    return nearest, np.take_along_axis(distance_sq, nearest, axis=1), distance_sq.max(axis=1)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("points", KINDS.values(), ids=KINDS)
@pytest.mark.usefixtures("small_tiles")
def test_neighbours_are_those_of_the_whole_matrix(points, count):
    nearest, distance_sq, farthest_sq = of_whole_matrix(squared_distances(points, points), count)
    found = FeatureDistances(points).neighbours(count)
    np.testing.assert_array_equal(found.nearest, nearest)
    # Vectors that are close beside their length lose digits of the float64 sum, so the last bit may differ.
    np.testing.assert_allclose(found.distance_sq, distance_sq, rtol=2e-7)
    np.testing.assert_allclose(found.farthest_sq, np.where(farthest_sq > 0, farthest_sq, 1), rtol=2e-7)
    assert found.nearest.dtype == np.int32
    assert found.distance_sq.dtype == found.farthest_sq.dtype == np.float32


@pytest.mark.usefixtures("small_tiles")
def test_those_of_a_matrix_are_of_its_columns_and_squared():
    distances = np.random.default_rng(0).random((50, 50)).astype(np.float32)
    nearest, distance_sq, farthest_sq = of_whole_matrix(np.square(distances.T), 4)
    found = MatrixDistances(distances).neighbours(4)
    np.testing.assert_array_equal(found.nearest, nearest)
    np.testing.assert_array_equal(found.distance_sq, distance_sq)
    np.testing.assert_array_equal(found.farthest_sq, farthest_sq)


def test_only_as_many_candidates_are_kept_as_may_count(monkeypatch):
    """Equal distances are settled on the way: their number does not grow with the square of the points."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 20)
    monkeypatch.setattr(module, "_TILE_COLUMNS", 50)
    most = []
    joined = module._Candidates._joined
    monkeypatch.setattr(
        module._Candidates, "_joined", lambda self: (found := joined(self), most.append(len(found[0])))[0]
    )
    points = np.ones((400, 3), np.float32)
    found = FeatureDistances(points).neighbours(3)
    np.testing.assert_array_equal(found.nearest, np.tile(np.arange(3), (400, 1)))
    assert max(most) < 400 * 60  # of 160,000 pairs
