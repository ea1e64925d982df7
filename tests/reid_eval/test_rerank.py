import json
from pathlib import Path

import numpy as np
import pytest

from reid_eval import rerank as module
from reid_eval.distances import ArrayVectors, paired_squared_distances, squared_distances, unit_length
from reid_eval.neighbours import FeatureDistances, MatrixDistances
from reid_eval.rerank import (
    RerankError,
    RerankParams,
    rerank,
    reranked_blocks,
    rough_swept_blocks,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())
CASES = [case for case in VECTORS["reranking"] if case["name"] != "k1_larger_than_set"]


def params_of(case):
    inputs = case["input"]
    return RerankParams(inputs["k1"], inputs["k2"], inputs["lambda_value"])


def matrix_of(case):
    return MatrixDistances(np.array(case["input"]["euclidean"], dtype=np.float32))


def rows_of(sparse):
    return {str(row): sorted(sparse[[row]].indices.tolist()) for row in range(sparse.shape[0])}


@pytest.mark.parametrize("block_rows", [1, 256])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_authors_program_gives_the_same_distances(case, block_rows):
    blocks = reranked_blocks(matrix_of(case), case["input"]["num_query"], params_of(case), block_rows=block_rows)
    found = np.concatenate(list(blocks))
    # Bit for bit on the machine of the vectors; exp may differ in its last bit elsewhere.
    np.testing.assert_allclose(found, case["expected"]["original"]["final_dist"], atol=2e-7, rtol=0)
    # MGN starts from similarities, so its distances already differ in their last bit.
    np.testing.assert_allclose(found, case["expected"]["mgn"]["final_dist"], atol=5e-7, rtol=0)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "V" in case["expected"]["original"]], ids=lambda c: c["name"]
)
def test_each_step_gives_the_authors_intermediate_result(case):
    expected, params = case["expected"]["original"], params_of(case)
    neighbours = matrix_of(case).neighbours(params.k1 + 1)
    assert neighbours.nearest.tolist() == [row[: params.k1 + 1] for row in expected["initial_rank"]]
    assert rows_of(module._mutual(neighbours.nearest)) == {
        row: sorted(members) for row, members in expected["R"].items()
    }
    expanded = module._expanded_reciprocal_sets(neighbours.nearest, params.k1)
    assert rows_of(expanded) == {row: sorted(members) for row, members in expected["R_star"].items()}
    encoding = module._encode(matrix_of(case), expanded, neighbours)
    np.testing.assert_allclose(encoding.todense(), expected["V"], atol=6e-8, rtol=0)
    if params.k2 > 1:
        mean = module._average_over(neighbours.nearest[:, : params.k2], encoding)
        np.testing.assert_allclose(mean.todense(), expected["V_after_expansion"], atol=6e-8, rtol=0)


def close_points(num=80, length=700):
    """Points so close beside their length that float32 products cannot tell who is nearest."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=length) + 5e-3 * rng.normal(size=(num, length))).astype(np.float32)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_a_rough_block_is_no_farther_off_than_it_says_and_knows_the_exact_values(lambda_):
    points, params = close_points(), RerankParams(6, 3, lambda_)
    exact = np.concatenate(list(reranked_blocks(FeatureDistances(points), 20, params)))
    off = []
    for number, (block,) in enumerate(rough_swept_blocks(FeatureDistances(points), 20, [params], block_rows=7)):
        here = exact[7 * number : 7 * number + 7]
        assert (np.abs(block.values - here) <= block.error[:, None]).all()
        off.append(np.abs(block.values - here).max())
        queries, columns = np.divmod(np.arange(here.size), 60)
        # The last bit, as above.
        np.testing.assert_allclose(block.exact(queries, columns).reshape(here.shape), here, rtol=0, atol=2e-7)
    assert (max(off) > 1e-5) == (lambda_ > 0)


def slow_rerank(distance_sq, num_query, params):
    """The algorithm as the paper tells it, on whole matrices, with sets and loops."""
    original = distance_sq / distance_sq.max(axis=1, keepdims=True)
    num_points = len(original)
    lists = [sorted(range(num_points), key=lambda j: (distance_sq[i, j], j)) for i in range(num_points)]

    def mutual(i, k):
        return {j for j in lists[i][: k + 1] if i in lists[j][: k + 1]}

    encoding = np.zeros((num_points, num_points))
    for i in range(num_points):
        members = mutual(i, params.k1)
        expanded = set(members)
        for j in members:
            candidates = mutual(j, round(params.k1 / 2))
            if len(candidates & members) > 2 / 3 * len(candidates):
                expanded |= candidates
        for j in expanded:
            encoding[i, j] = np.exp(-original[i, j])
        encoding[i] /= encoding[i].sum() or 1  # among duplicates a point may be missing from its own list
    if params.k2 > 1:
        encoding = np.stack([encoding[lists[i][: params.k2]].mean(axis=0) for i in range(num_points)])
    shared = np.minimum(encoding[:num_query, None], encoding[None, num_query:]).sum(axis=2)
    jaccard = 1 - shared / (2 - shared)
    return (1 - params.lambda_) * jaccard + params.lambda_ * original[:num_query, num_query:]


@pytest.mark.parametrize(
    "params",
    [RerankParams(), RerankParams(1, 1), RerankParams(3, 4, 0.0), RerankParams(11, 5, 0.7), RerankParams(59, 6)],
    ids=str,
)
def test_sparse_rows_agree_with_whole_matrices(params):
    rng = np.random.default_rng(1)
    points = (rng.normal(size=(8, 5))[rng.integers(0, 8, 60)] + 0.4 * rng.normal(size=(60, 5))).astype(np.float32)
    expected = slow_rerank(squared_distances(points, points).astype(np.float64), 13, params)
    np.testing.assert_allclose(rerank(points[:13], points[13:], params), expected, atol=5e-7)


@pytest.mark.parametrize(
    ("params", "first_row", "total"),
    [
        (RerankParams(20, 6), [0.05297286, 0.66831797, 0.61711894, 0.25497962], 92.0820707),
        (RerankParams(6, 3), [0.12426066, 0.90280315, 0.87955494, 0.59778633], 137.4703379),
        (RerankParams(20, 1), [0.17753812, 0.72497007, 0.73208345, 0.37775838], None),
    ],
    ids=str,
)
def test_the_written_down_example_gives_its_published_distances(params, first_row, total):
    a, b = np.arange(30)[:, None], np.arange(16)[None, :]
    query, gallery = (
        unit_length(np.sin(0.8 * (a % 6 + 1) * (b + 1)) + 0.75 * np.sin(2.3 * a * (b + 2) + shift)) for shift in (0, 1)
    )
    plain = np.sqrt(squared_distances(query[:1], gallery)[0])
    np.testing.assert_allclose(plain[:3], [0.70957899, 1.38838982, 1.40977054], atol=2e-7)
    found = rerank(query[:6], gallery, params)
    np.testing.assert_allclose(found[0, :4], first_row, atol=5e-7)
    if total is not None:
        assert found.sum(dtype=float) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("k2", [1, 2])
def test_duplicates_are_ordered_by_their_row_and_stay_finite(k2):
    points = np.repeat(np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32), 5, axis=0)
    params = RerankParams(k1=3, k2=k2)
    expected = slow_rerank(squared_distances(points, points).astype(np.float64), 4, params)
    np.testing.assert_allclose(rerank(points[:4], points[4:], params), expected, atol=5e-7)


def test_points_that_are_all_equal_are_all_at_distance_0():
    found = rerank(np.ones((1, 3), np.float32), np.ones((5, 3), np.float32), RerankParams(k1=5, k2=1))
    np.testing.assert_allclose(found, np.zeros((1, 5)), atol=2e-7)


def test_features_and_their_distance_matrix_give_the_same_result():
    points = unit_length(np.random.default_rng(3).normal(size=(40, 8)))
    params = RerankParams(k1=7, k2=3)
    matrix = np.sqrt(squared_distances(points, points).astype(np.float64))
    from_matrix = np.concatenate(list(reranked_blocks(MatrixDistances(matrix), 9, params)))
    # The root and its square do not give the last bit back.
    np.testing.assert_allclose(rerank(points[:9], points[9:], params), from_matrix, atol=1e-6)


def test_column_i_of_an_uneven_matrix_belongs_to_point_i():
    distances = MatrixDistances(np.array([[0.0, 2.0], [3.0, 0.0]]))
    assert distances.rows(np.array([0]), 0).tolist() == [[0.0, 9.0]]
    assert distances.pairs(np.array([1]), np.array([0])).tolist() == [4.0]


def test_too_few_pictures_are_refused_with_the_largest_k1_that_works():
    points = np.eye(8, dtype=np.float32)
    with pytest.raises(RerankError, match="found 8; use k1 = 7 or less"):
        rerank(points[:2], points[2:])
    assert rerank(points[:2], points[2:], RerankParams(k1=7)).shape == (2, 6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k1": 0}, "k1 must be at least 1, got 0"),
        ({"k2": 0}, "k2 must lie between 1 and k1"),
        ({"k1": 4, "k2": 6}, "k1 \\+ 1 = 5, got 6"),
        ({"lambda_": -0.1}, "between 0 and 1, got -0.1"),
        ({"lambda_": float("nan")}, "between 0 and 1, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(RerankError, match=words):
        RerankParams(**settings)


def test_halves_round_to_even_as_in_the_authors_program():
    assert [round(k1 / 2) for k1 in range(1, 11)] == [0, 1, 2, 2, 2, 3, 4, 4, 4, 5]


# --- distances ------------------------------------------------------------------------------------------------------


def test_distances_agree_with_subtracting_and_squaring():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 33)).astype(np.float32), rng.normal(size=(7, 33)).astype(np.float32)
    expected = ((x[:, None].astype(float) - y[None].astype(float)) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(x, y), expected, rtol=1e-7)


def test_pairs_and_blocks_and_rows_give_the_same_bits(monkeypatch):
    points = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    whole = squared_distances(points, points)
    first, second = np.divmod(np.arange(2500), 50)
    monkeypatch.setattr("reid_eval.distances._PAIRS", 7)
    pairs = paired_squared_distances(ArrayVectors(points), first, ArrayVectors(points), second)
    np.testing.assert_array_equal(pairs.reshape(50, 50), whole)
    monkeypatch.setattr("reid_eval.distances._COLUMNS", 7)
    np.testing.assert_array_equal(squared_distances(points, points), whole)
    np.testing.assert_array_equal(FeatureDistances(points).rows(np.array([3]), 0)[0], whole[3])


def test_equal_vectors_are_at_distance_0_however_long():
    points = np.random.default_rng(0).normal(size=(20, 2048)).astype(np.float32) * 1000
    distance_sq = squared_distances(points, points)
    assert (np.diag(distance_sq) == 0).all()
    assert (distance_sq[~np.eye(20, dtype=bool)] > 0).all()


def test_unit_length_leaves_a_zero_vector_alone():
    found = unit_length(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-7)
