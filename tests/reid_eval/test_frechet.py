import json
from pathlib import Path

import mpmath
import numpy as np
import pytest

from reid_eval.frechet import ImageStats, StatisticsError, frechet_distance, frechet_distance_of_features

DATA = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())
VECTORS = DATA["frechet"]


def stats_of(features: np.ndarray, batch_size: int = 1000) -> ImageStats:
    stats = ImageStats(features.shape[1])
    for start in range(0, len(features), batch_size):
        stats.update(features[start : start + batch_size])
    return stats


def distance(first: np.ndarray, second: np.ndarray) -> float:
    sides = stats_of(first), stats_of(second)
    return frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_distance_is_that_of_other_programs(vector):
    value = distance(np.array(vector["input"]["x"]), np.array(vector["input"]["y"]))
    assert value == pytest.approx(vector["expected"]["closed_form"]["fid"], abs=1e-12)
    # The published programs take a general matrix root, which loses digits when the covariance is singular.
    assert value == pytest.approx(vector["expected"]["pytorch_fid"]["fid"], abs=1e-6)


def test_diagonal_covariances_by_hand():
    vector = {name: np.array(value) for name, value in DATA["frechet_diagonal"].items() if name[:2] in ("mu", "si")}
    value = frechet_distance(vector["mu1"], vector["sigma1"], vector["mu2"], vector["sigma2"])
    assert value == pytest.approx(2**2 + 1**2 + (1 - 3) ** 2 + (2 - 4) ** 2)


def test_covariances_that_commute_have_a_closed_form():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    first, second = np.array([9.0, 4, 1, 0.25, 0, 0]), np.array([1.0, 4, 0, 16, 2, 0])
    covs = [rotation @ np.diag(values) @ rotation.T for values in (first, second)]
    expected = np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(np.zeros(6), covs[0], np.zeros(6), covs[1]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 40, 200])
def test_far_fewer_pictures_than_features_lose_no_digits(count):
    rng = np.random.default_rng(count)
    first, second = rng.normal(size=(count, 100)), 1.5 * rng.normal(size=(count + 3, 100)) + 0.2
    a, b = ((side - side.mean(axis=0)) / np.sqrt(len(side) - 1) for side in (first, second))
    trace_of_root = np.linalg.svd(a @ b.T, compute_uv=False).sum()  # from the samples, without any covariance
    means = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    assert distance(first, second) == pytest.approx(means + (a**2).sum() + (b**2).sum() - 2 * trace_of_root, rel=1e-10)


def test_directions_of_little_variance_count():
    first, second = np.diag([1.0, 1e-8]), np.diag([1.0, 4e-8])
    assert frechet_distance(np.zeros(2), first, np.zeros(2), second) == pytest.approx(1e-8, rel=1e-6)


def test_the_distance_is_symmetric():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 8)), rng.normal(size=(60, 8)) * 2
    assert distance(first, second) == pytest.approx(distance(second, first), rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_a_set_is_at_distance_0_from_itself_and_never_below(seed):
    features = np.random.default_rng(seed).normal(size=(20, 30))
    assert 0 <= distance(features, features[::-1]) < 1e-12


def test_directions_of_hardly_any_variance_cost_no_digits():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 30)) * np.repeat([1, 1e-3], [10, 20]) @ np.linalg.qr(rng.normal(size=(30, 30)))[0]
    moments = np.square(features.mean(axis=0)).sum() + features.var(axis=0, ddof=1).sum()
    assert frechet_distance_of_features(features, 2 * features) == pytest.approx(moments, rel=1e-13)


def test_pictures_that_are_all_alike_have_a_distance_too():
    assert distance(np.ones((5, 3)), np.ones((4, 3))) == 0


def test_a_shift_alone_costs_its_square():
    features = np.random.default_rng(0).normal(size=(30, 4))
    assert distance(features, features + np.array([3, 0, 4, 0])) == pytest.approx(25)


def test_sides_of_different_extractors_are_refused():
    with pytest.raises(StatisticsError, match="8 features against 4: expected one extractor"):
        distance(np.random.default_rng(0).normal(size=(9, 8)), np.random.default_rng(0).normal(size=(9, 4)))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_streaming_statistics_are_numpys(batch_size):
    features = np.random.default_rng(0).normal(loc=1e4, size=(100, 5)).astype(np.float32)  # far from 0: cancellation
    stats = stats_of(features, batch_size)
    assert stats.count == 100
    np.testing.assert_allclose(stats.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(stats.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(StatisticsError, match="not finite"):
        stats_of(np.array([[1.0, np.nan]]))


def exact_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The distance of two sets in 60 digits, by the roots of the eigenvalues of C1 C2, which need not be symmetric."""
    with mpmath.workdps(60):
        means, covs = [], []
        for side in (first, second):
            rows = mpmath.matrix(side.tolist())
            mean = [mpmath.fsum(rows[i, j] for i in range(rows.rows)) / rows.rows for j in range(rows.cols)]
            centred = mpmath.matrix(rows.rows, rows.cols)
            for i in range(rows.rows):
                for j in range(rows.cols):
                    centred[i, j] = rows[i, j] - mean[j]
            means.append(mean)
            covs.append(centred.T * centred / (rows.rows - 1))
        root = mpmath.eigsy(covs[0])
        half = root[1] * mpmath.diag([mpmath.sqrt(max(value, 0)) for value in root[0]]) * root[1].T
        values = mpmath.eigsy(half * covs[1] * half, eigvals_only=True)
        trace = mpmath.fsum(mpmath.sqrt(max(value, 0)) for value in values)
        gap = mpmath.fsum((a - b) ** 2 for a, b in zip(*means, strict=True))
        spread = mpmath.fsum(cov[i, i] for cov in covs for i in range(cov.rows))
        return float(gap + spread - 2 * trace)


@pytest.mark.parametrize(
    ("counts", "spread"),
    [((30, 40), 1.0), ((30, 40), 1e-6), ((5, 40), 1.0), ((4, 5), 1.0), ((30, 6), 1e-3)],
    ids=["full", "ill-conditioned", "one-singular", "both-singular", "other-singular"],
)
def test_both_ways_agree_with_sixty_digits(counts, spread):
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, spread, 8)
    first, second = (rng.normal(size=(count, 8)) * scale for count in counts)
    second = second @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + 0.1
    expected = exact_distance(first, second)
    assert distance(first, second) == pytest.approx(expected, rel=1e-7)  # zero eigenvalues of the covariances are 1e-16
    assert frechet_distance_of_features(first, second) == pytest.approx(
        expected, rel=1e-12 if min(counts) < 8 else 1e-7
    )


def test_few_vectors_need_no_covariance():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 40)), rng.normal(size=(60, 40))
    assert frechet_distance_of_features(first, second) == pytest.approx(distance(first, second), rel=1e-9)


@pytest.mark.parametrize(
    ("first", "words"), [(np.zeros((1, 9)), "1 pictures"), (np.full((4, 9), np.inf), "not finite")]
)
def test_sets_without_a_covariance_are_refused(first, words):
    with pytest.raises(StatisticsError, match=words):
        frechet_distance_of_features(first, np.ones((3, 9)))
