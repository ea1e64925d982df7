import json
from pathlib import Path

import mpmath
import numpy as np
import pytest

from reid_eval import frechet as module
from reid_eval.frechet import ImageStats, StatisticsError, frechet, frechet_distance, frechet_distance_of_features

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


# --- covariances that are none, or are one but for rounding -----------------------------------------------------------


def sparse_sets() -> list[np.ndarray]:
    """Features as networks give them: none below 0, and most directions with hardly any variance."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64)) * (1.0 + np.arange(64)) ** -2
    return [np.maximum(rng.normal(size=(80, 64)) @ mix.T + shift, 0) for shift in (0, 0.1)]


def kept_as(kind: str, sets: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """Mean and covariance of both sets, kept as some programs keep them."""
    found = [(side.mean(axis=0), np.cov(side, rowvar=False)) for side in sets or sparse_sets()]
    return [part.astype(kind) for side in found for part in side]


def distance_by_eigenvalues(mean1, cov1, mean2, cov2) -> float:
    """With negative eigenvalues of the covariances counted as 0, by roots of the matrices."""
    roots = []
    for cov in (cov1, cov2):
        values, vectors = np.linalg.eigh(cov.astype(np.float64))
        roots.append(vectors * np.sqrt(np.where(values > 0, values, 0)) @ vectors.T)
    trace = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    gap = mean1.astype(np.float64) - mean2.astype(np.float64)
    return gap @ gap + np.trace(cov1.astype(np.float64)) + np.trace(cov2.astype(np.float64)) - 2 * trace


@pytest.mark.parametrize(("kind", "close"), [("f8", 1e-9), ("f4", 1e-5), ("f2", 0.1)])
def test_statistics_kept_in_few_bits_give_about_the_number_and_a_remark(kind, close):
    true, kept = kept_as("f8"), kept_as(kind)
    found = frechet(*kept, names=("a.npz", "b.npz"))
    assert found.value == pytest.approx(distance_by_eigenvalues(*kept), rel=1e-9)
    assert found.value == pytest.approx(distance_by_eigenvalues(*true), rel=close)
    if kind == "f2":
        assert [remark.split(":")[0] for remark in found.remarks] == ["a.npz", "b.npz"]
        assert "negative, down to -" in found.remarks[0]
        assert "rounding (16 bits)" in found.remarks[0]
    else:
        assert found.remarks == ()


def test_values_of_16_bits_are_known_as_such_in_a_file_of_64():
    kept = kept_as("f2")
    assert frechet(*(part.astype(np.float64) for part in kept)) == frechet(*kept)


def test_a_set_that_is_kept_in_16_bits_is_at_distance_0_from_itself_and_that_is_said():
    mean, cov, _, _ = kept_as("f2")
    found = frechet(mean, cov, mean, cov)
    assert (found.value, len(found.remarks)) == (0, 2)


def test_the_remarks_are_warnings_of_the_distance_alone(caplog):
    assert frechet_distance(*kept_as("f2")) == frechet(*kept_as("f2")).value
    assert caplog.text.count("eigenvalues of the covariance are negative") == 2


def with_smallest(cov: np.ndarray, value: float) -> np.ndarray:
    """A covariance with another smallest eigenvalue."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.array([value, *values[1:]])) @ vectors.T


def spoilt(kind: str) -> tuple[np.ndarray, np.ndarray]:
    mean, cov, _, _ = kept_as("f8")
    spread = cov.trace()
    match kind:
        case "negated":
            return mean, -cov
        case "lower half":
            return mean, np.tril(cov)
        case "complex":
            return mean, cov.astype(np.complex128)
        case "complex mean":
            return mean.astype(np.complex128), cov
        case "no diagonal":
            return mean, cov - np.diag(cov.diagonal())
        case "one negative variance":
            cov[5, 5] = -cov[5, 5]
        case "one negative variance in 16 bits":
            cov = cov.astype("f2").astype("f8")
            cov[5, 5] = -(2.0**-10)
        case "negative beyond rounding":
            cov = with_smallest(cov, -1e-9 * spread)
        case "negative beyond rounding in 16 bits":
            cov = with_smallest(cov, -5e-3 * spread).astype("f2")
        case "negative behind the last pivot":
            cov = np.diag([1.0, 0, 0])
            cov[1, 2] = cov[2, 1] = 0.5
            mean = np.zeros(3)
        case "not finite":
            cov[0, 1] = cov[1, 0] = np.nan
        case "texts":
            cov = cov.astype("U8")
        case "another shape":
            cov = cov[:-1]
    return mean, cov


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("negated", "a variance of -"),
        ("lower half", "not symmetric"),
        ("complex", "of type complex128, expected real numbers"),
        ("complex mean", "of type complex128, expected real numbers"),
        ("no diagonal", "not positive semidefinite, with eigenvalues from -"),
        ("one negative variance", "a variance of -"),
        ("one negative variance in 16 bits", "a variance of -"),
        ("negative beyond rounding", "not positive semidefinite"),
        ("negative beyond rounding in 16 bits", "not positive semidefinite"),
        ("negative behind the last pivot", "not positive semidefinite"),
        ("not finite", "not finite"),
        ("texts", "expected real numbers"),
        ("another shape", "a covariance of"),
    ],
)
def test_what_is_no_covariance_is_refused_by_name_and_never_the_best_score_there_is(kind, words):
    mean, cov = spoilt(kind)
    good = np.zeros(len(mean)), np.eye(len(mean))
    for sides, names in ((((mean, cov), good), ("bad.npz", "x")), ((good, (mean, cov)), ("x", "bad.npz"))):
        with pytest.raises(StatisticsError, match=r"bad\.npz: ") as refusal:
            frechet(*sides[0], *sides[1], names=names)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("seed", range(20))
def test_any_symmetric_matrix_gives_the_right_number_or_a_refusal(seed):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(12, rng.integers(1, 20)))
    cov = base @ base.T
    cov += np.diag(rng.normal(size=12)) * rng.choice([0, 1e-15, 1e-6, 1])
    other = np.eye(12)
    try:
        value = frechet_distance(np.zeros(12), cov, np.zeros(12), other)
    except StatisticsError:
        assert np.linalg.eigvalsh(cov)[0] < -1e-12
    else:
        assert np.linalg.eigvalsh(cov)[0] > -1e-9
        assert value == pytest.approx(distance_by_eigenvalues(np.zeros(12), cov, np.zeros(12), other), rel=1e-6)


@pytest.mark.parametrize("off", [1e-3, np.nan])
def test_a_distance_that_is_impossible_is_refused_and_never_0(monkeypatch, off):
    features = np.random.default_rng(0).normal(size=(20, 4))
    nuclear_norm = module._nuclear_norm
    monkeypatch.setattr(module, "_nuclear_norm", lambda matrix: nuclear_norm(matrix) * (1 + off))
    with pytest.raises(StatisticsError, match=r"impossible|too large"):
        distance(features, features)


def test_numbers_that_are_too_large_for_a_distance_are_refused():
    cov = np.diag([1e200, 1e200])
    with pytest.raises(StatisticsError, match="too large"):
        frechet_distance(np.zeros(2), cov, np.zeros(2), cov)
