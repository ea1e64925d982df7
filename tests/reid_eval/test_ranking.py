import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_eval.cli import main
from reid_eval.features import ReidFeatures
from reid_eval.ranking import RankingError, rank, rank_distances
from reid_eval.rerank import RerankParams

VECTORS = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())
RERANK_CARD = {"k1": 20, "k2": 6, "lambda": 0.3, "distance": "squared"}


# --- a second way to the same numbers -------------------------------------------------------------------------------


def slow_places(distances, q_pid, q_camid, g_pids, g_camids):
    """Walk one sorted row: the places of the right answers, from 0, junk not counted."""
    places, place = [], 0
    for _, g in sorted((distance, g) for g, distance in enumerate(distances)):
        if g_pids[g] == -1:
            continue
        if g_pids[g] == q_pid:
            if g_camids[g] == q_camid and q_camid != -1:
                continue
            places.append(place)
        place += 1
    return places


def slow_scores(distances, q_pids, q_camids, g_pids, g_camids):
    """Per query: (ap_hits, ap_trapezoid, inp, first hit), None where there is no right answer."""
    rows = []
    for distances_of_query, q_pid, q_camid in zip(distances, q_pids, q_camids, strict=True):
        places = slow_places(distances_of_query, q_pid, q_camid, g_pids, g_camids)
        n = len(places)
        if not n:
            rows.append(None)
            continue
        after = [(i + 1) / (place + 1) for i, place in enumerate(places)]
        before = [i / place if place else 1.0 for i, place in enumerate(places)]
        trapezoids = [(b + a) / 2 for b, a in zip(before, after, strict=True)]
        rows.append((sum(after) / n, sum(trapezoids) / n, n / (places[-1] + 1), places[0]))
    return rows


def ranked(distances, labels, **options):
    """Labels in the order of this file: identities and cameras of the queries, then of the gallery."""
    names = ("q_pids", "q_camids", "g_pids", "g_camids")
    return rank_distances(distances, **dict(zip(names, labels, strict=True)), **options)


def test_labels_of_given_distances_are_named_since_programs_disagree_about_their_order():
    with pytest.raises(TypeError):
        rank_distances(np.ones((1, 2)), [1], [1, 2], [1], [2, 2])


def random_labels(rng, num_query, num_gallery, num_people=6, num_cameras=3):
    return (
        rng.integers(1, num_people, num_query),
        rng.integers(-1, num_cameras, num_query),
        rng.integers(-1, num_people, num_gallery),
        rng.integers(-1, num_cameras, num_gallery),
    )


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("levels", [None, 4, 1], ids=["distinct", "many-ties", "all-equal"])
def test_counting_agrees_with_walking_a_sorted_list(seed, levels):
    rng = np.random.default_rng(seed)
    distances = rng.normal(size=(7, rng.integers(20, 60))).astype(np.float32)
    if levels is not None:
        distances = np.round(distances * levels / 4)
        distances = distances * 0 if levels == 1 else distances
    labels = random_labels(rng, *distances.shape)
    scores = ranked(distances, labels)
    for q, expected in enumerate(slow_scores(distances, *labels)):
        found = (scores.ap_hits[q], scores.ap_trapezoid[q], scores.inp[q], scores.first_hit[q])
        if expected is None:
            assert np.isnan(found[:3]).all()
            assert (found[3], scores.num_good[q], scores.valid[q]) == (-1, 0, False)
        else:
            assert found == pytest.approx(expected, abs=1e-14)
    assert scores.num_valid + scores.num_invalid == 7


@pytest.mark.parametrize("near", [0.02, 0.5, 1.0], ids=["picked-out", "between", "whole-row"])
@pytest.mark.parametrize("levels", [None, 300], ids=["distinct", "ties"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_long_rows_are_counted_the_same_way(near, levels, dtype):
    rng = np.random.default_rng(0)
    labels = random_labels(rng, 7, 900, num_people=60)
    distances = rng.random((7, 900))
    distances[labels[2] == labels[0][:, None]] *= near
    distances = (np.round(distances * levels) / levels if levels else distances).astype(dtype)
    before = distances.copy()
    scores = ranked(distances, labels)
    expected = [row or (np.nan,) * 3 + (-1,) for row in slow_scores(distances, *labels)]
    found = np.stack([scores.ap_hits, scores.ap_trapezoid, scores.inp, scores.first_hit], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_array_equal(distances, before)


def slow_places_of_ties(distances, labels, rule):
    """Places of all right answers if wrong ones at the same distance stand as the rule says."""
    found = []
    g_pids, g_camids = labels[2:]
    for row, pid, camid in zip(distances, *labels[:2], strict=True):
        kept = [g for g in range(len(row)) if g_pids[g] != -1 and not (g_pids[g] == pid and g_camids[g] == camid != -1)]
        right = g_pids == pid
        last = {"index": np.arange(len(row)), "optimistic": ~right, "pessimistic": right}[rule]
        order = sorted(kept, key=list(zip(row, last, strict=True)).__getitem__)
        found += [place for place, g in enumerate(order) if g_pids[g] == pid]
    return found


@st.composite
def ranked_sets(draw, levels=6):
    """Distances (Q, G) with ties, and labels in which some query has a right answer."""
    num_query, num_gallery = draw(st.integers(1, 4)), draw(st.integers(1, 40))

    def numbers(low, high, size):
        return np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)))

    distances = numbers(0, levels, num_query * num_gallery).reshape(num_query, num_gallery).astype(np.float32)
    q_pids, g_pids = numbers(1, 3, num_query), numbers(-1, 3, num_gallery)
    g_pids[0] = q_pids[0]
    q_camids, g_camids = numbers(-1, 2, num_query), numbers(-1, 2, num_gallery)
    g_camids[0] = 9
    return distances, (q_pids, q_camids, g_pids, g_camids)


laws = settings(max_examples=60, deadline=None, derandomize=True)


@laws
@given(ranked_sets(), st.sampled_from(["index", "optimistic", "pessimistic"]))
def test_law_ties_stand_as_their_rule_says(some, rule):
    distances, labels = some
    scores = ranked(distances, labels, ties=rule)
    assert scores.places.tolist() == slow_places_of_ties(distances, labels, rule)
    for query, tied in enumerate(scores.tied):
        mine = [[row] for row in (distances[query], labels[0][query], labels[1][query])]
        one = (np.array(mine[1]), np.array(mine[2]), *labels[2:])
        assert tied == (
            slow_places_of_ties(mine[0], one, "optimistic") != slow_places_of_ties(mine[0], one, "pessimistic")
        )


@laws
@given(ranked_sets(), st.randoms(use_true_random=False))
def test_law_permuting_the_gallery_changes_nothing_but_ties(some, random):
    distances, labels = some
    order = random.sample(range(distances.shape[1]), distances.shape[1])
    other = (*labels[:2], *(column[order] for column in labels[2:]))
    for rule in ("optimistic", "pessimistic"):
        one = ranked(distances, labels, ties=rule)
        assert ranked(distances[:, order], other, ties=rule).places.tolist() == one.places.tolist()


@laws
@given(ranked_sets(), st.data())
def test_law_one_more_distractor_never_raises_average_precision(some, data):
    distances, labels = some
    where = data.draw(st.integers(0, distances.shape[1] - 1))
    before = ranked(distances, labels)
    twice = np.concatenate([distances, distances[:, [where]]], axis=1)
    after = ranked(twice, [*labels[:2], np.append(labels[2], 0), np.append(labels[3], 1)])
    for name in ("ap_hits", "ap_trapezoid", "inp"):
        assert (getattr(after, name) <= getattr(before, name))[before.valid].all()
    assert (after.first_hit >= before.first_hit)[before.valid].all()


def case_arrays(case):
    inputs = case["input"]
    labels = [np.array(inputs[name]) for name in ("q_pids", "q_camids", "g_pids", "g_camids")]
    return np.array(inputs["distmat"], dtype=np.float32), labels


@pytest.mark.parametrize("case", VECTORS["ranking"], ids=lambda case: case["name"])
def test_published_programs_give_the_same_numbers(case):
    distances, labels = case_arrays(case)
    expected = case["expected"]
    if case["name"] == "no_valid_query":
        with pytest.raises(RankingError, match="no query has a right answer"):
            ranked(distances, labels)
        return
    scores = ranked(distances, labels)

    # The official program: equal bits. It divides by all queries, we by those with a right answer.
    official = expected["market_official"]
    official_ap = np.array([np.nan if ap is None else ap for ap in official["ap"]])
    np.testing.assert_array_equal(scores.ap_trapezoid, official_ap)
    assert np.add.accumulate(np.nan_to_num(scores.ap_trapezoid))[-1] / len(official_ap) == official["mAP"]
    length = len(official["cmc"])
    answered = np.round(scores.cmc_curve(length) * scores.num_valid).astype(np.float32)
    np.testing.assert_array_equal(answered / np.float32(len(official_ap)), np.array(official["cmc"], dtype=np.float32))
    if not scores.num_invalid:
        assert scores.map_trapezoid == official["mAP"]

    # The others know no junk, and one of them groups ties; where they fail, our rule holds.
    if case["name"] == "label_minus1_junk":
        return
    python, compiled = expected["torchreid_python"], expected["torchreid_cython"]
    if "mAP" in python:
        assert scores.map_hits == pytest.approx(python["mAP"], abs=1e-12)
        fastreid = expected["fastreid_python"]
        np.testing.assert_allclose(scores.ap_hits[scores.valid], fastreid["ap"], atol=1e-12, rtol=0)
        np.testing.assert_array_equal(scores.inp[scores.valid], fastreid["inp"])
        assert scores.minp == fastreid["mINP"]
    assert scores.map_hits == pytest.approx(compiled["mAP"], abs=1e-6)
    np.testing.assert_allclose(scores.cmc_curve(len(expected["mgn"]["cmc"])), expected["mgn"]["cmc"], atol=1e-12)
    if case["name"] != "ties":
        assert scores.map_hits == pytest.approx(expected["mgn"]["mAP"], abs=1e-12)


@pytest.mark.parametrize("case", VECTORS["ranking_features"], ids=lambda case: case["name"])
def test_dot_products_as_distances_give_the_official_numbers(case):
    inputs, expected = case["input"], case["expected"]["single"]
    products = np.array(inputs["query_f"], np.float32) @ np.array(inputs["gallery_f"], np.float32).T
    labels = [np.array(inputs[name]) for name in ("query_label", "query_cam", "gallery_label", "gallery_cam")]
    scores = ranked(-products, labels)
    assert scores.ap_trapezoid.tolist() == expected["ap"]
    assert scores.map_trapezoid == expected["mAP"]
    assert scores.cmc_curve(len(expected["cmc"])).tolist() == expected["cmc"]


def waves(numbers, shift):
    """Vectors that are easy to write down: sin(0.8 (a mod 6 + 1)(b + 1)) + 0.75 sin(2.3 a (b + 2) + shift)."""
    a, b = np.array(numbers)[:, None], np.arange(16)[None, :]
    return np.sin(0.8 * (a % 6 + 1) * (b + 1)) + 0.75 * np.sin(2.3 * a * (b + 2) + shift)


def wave_features():
    q, g = np.arange(6), np.arange(30)
    return ReidFeatures(
        features=np.concatenate([waves(q, 0.0), waves(g, 1.0)]),
        pids=np.concatenate([q, np.where(g < 24, g % 6, 99)]),
        camids=np.concatenate([np.ones(6, np.int64), 1 + g % 4]),
        splits=["query"] * 6 + ["gallery"] * 30,
        paths=[f"{row:02d}.jpg" for row in range(36)],
        meta={"extractor": "waves"},
    )


def test_the_written_down_example_gives_its_published_numbers():
    report = rank(wave_features(), rerank=RerankParams())
    assert report.map_hits == pytest.approx(0.9583333333, abs=1e-10)
    assert report.map_trapezoid == pytest.approx(0.95, abs=1e-10)
    assert report.reranked.map_hits == pytest.approx(0.9916666667, abs=1e-10)
    assert report.reranked.map_trapezoid == pytest.approx(0.990625, abs=1e-10)
    assert [report.plain.rank_at(k) for k in (1, 3, 5, 10)] == [1, 1, 1, 1]
    assert [report.reranked.rank_at(k) for k in (1, 3, 5, 10)] == [1, 1, 1, 1]
    assert report.num_distractors == 0  # somebody asks for person 0


# --- the rules, one by one ------------------------------------------------------------------------------------------


def toy_features(query, gallery, order, **changes):
    """One-dimensional features: (pid, camid) pairs, and the gallery rows from near to far, for every query."""
    positions = np.empty(len(gallery))
    positions[list(order)] = np.arange(1, len(gallery) + 1)
    pids, camids = np.array([*query, *gallery]).T
    return ReidFeatures(
        features=np.concatenate([np.zeros(len(query)), positions])[:, None],
        pids=pids,
        camids=camids,
        splits=["query"] * len(query) + ["gallery"] * len(gallery),
        paths=[f"{row}.jpg" for row in range(len(pids))],
        **changes,
    )


def test_hits_and_trapezoid_are_two_forms_of_average_precision():
    features = toy_features([(7, 1)], [(7, 2), (3, 1), (7, 3)], order=[0, 1, 2])
    report = rank(features, metric="euclidean")
    assert report.map_hits == pytest.approx((1 + 2 / 3) / 2)
    assert report.map_trapezoid == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert report.minp == pytest.approx(2 / 3)


def test_a_match_from_the_querys_own_camera_does_not_count():
    features = toy_features([(7, 1)], [(7, 1), (7, 2), (3, 1)], order=[0, 2, 1])
    report = rank(features, metric="euclidean")
    assert report.map_hits == pytest.approx(1 / 2)  # second place, after one wrong person
    assert report.plain.num_same_camera.tolist() == [1]
    assert report.cmc[:3].tolist() == [0, 1, 1]


def test_junk_is_left_out_and_a_distractor_is_wrong():
    gallery = [(-1, 2), (0, 2), (7, 2), (-1, 1)]
    report = rank(toy_features([(7, 1)], gallery, order=[0, 1, 2, 3]), metric="euclidean")
    assert report.map_hits == pytest.approx(1 / 2)
    assert (report.num_gallery, report.num_distractors, report.num_junk) == (2, 1, 2)


def test_a_query_without_a_right_answer_is_counted_and_left_out():
    features = toy_features([(7, 1), (9, 1), (3, 1)], [(7, 2), (3, 1)], order=[0, 1])
    report = rank(features, metric="euclidean")
    assert (report.num_valid_queries, report.num_invalid_queries, report.map_hits) == (1, 2, 1.0)
    assert "2 queries without a right image" in report.to_text()


def test_an_unknown_camera_equals_no_other_and_the_report_says_so():
    features = toy_features([(7, -1)], [(7, -1), (7, 1), (3, 2)], order=[0, 1, 2])
    report = rank(features, metric="euclidean")
    assert (report.plain.num_good.tolist(), report.map_hits) == ([2], 1.0)
    assert "The camera of 1 query and 1 gallery image is unknown" in report.to_text()
    known = rank(toy_features([(7, 1)], [(7, 2)], order=[0]), metric="euclidean")
    assert "unknown" not in known.to_text()


@pytest.mark.parametrize(
    ("gallery_pids", "expected"), [([7, 3], 1.0), ([3, 7], 0.5)], ids=["right-first", "wrong-first"]
)
def test_equally_far_pictures_keep_the_order_of_the_gallery(gallery_pids, expected):
    scores = ranked(np.zeros((1, 2)), ([7], [1], gallery_pids, [2, 2]))
    assert (scores.map_hits, scores.tied.tolist()) == (expected, [True])


def test_pictures_that_are_equal_tie_whatever_their_length():
    rng = np.random.default_rng(5)
    one = rng.normal(size=64).astype(np.float32)
    features = ReidFeatures(
        features=np.stack([rng.normal(size=64), one, one, one]),
        pids=[7, 3, 7, 3],
        camids=[1, 2, 2, 2],
        splits=["query", "gallery", "gallery", "gallery"],
        paths=["a", "b", "c", "d"],
    )
    report = rank(features)
    assert (report.map_hits, report.plain.tied.tolist()) == (0.5, [True])
    assert "1 query a right and a wrong image are equally far" in report.to_text()


def test_cosine_ignores_length_and_euclidean_does_not():
    features = ReidFeatures(
        features=[[1.0, 0.0], [9.0, 1.0], [1.0, 0.5]],
        pids=[7, 7, 3],
        camids=[1, 2, 2],
        splits=["query", "gallery", "gallery"],
        paths=["a", "b", "c"],
    )
    assert rank(features).map_hits == 1.0
    assert rank(features, metric="euclidean").map_hits == 0.5


@pytest.mark.parametrize("scale", [1e25, 1e-25], ids=["huge", "tiny"])
def test_the_scale_of_the_vectors_changes_nothing(scale):
    features = crowd(3)
    scaled = ReidFeatures(
        features.features.astype(float) * scale, features.pids, features.camids, features.splits, features.paths
    )
    params = RerankParams(k1=6, k2=3)
    report, other = (rank(some, metric="euclidean", rerank=params) for some in (features, scaled))
    np.testing.assert_array_equal(other.plain.ap_hits, report.plain.ap_hits)
    np.testing.assert_array_equal(other.reranked.ap_hits, report.reranked.ap_hits)


def test_the_match_curve_reaches_beyond_a_short_gallery_and_never_falls():
    scores = ranked(np.array([[0.1, 0.2, 0.3]]), ([7], [1], [3, 7, 4], [2, 2, 2]))
    assert scores.cmc_curve(5).tolist() == [0, 1, 1, 1, 1]
    assert (np.diff(scores.cmc) >= 0).all()
    assert scores.cmc_curve(1).tolist() == [0]  # the first hit lies just beyond the end


# --- laws -----------------------------------------------------------------------------------------------------------


def crowd(seed=0, num_query=20, num_gallery=150, length=12):
    """Noisy vectors around one centre per person; with distractors, junk and unknown cameras."""
    rng = np.random.default_rng(seed)
    num = num_query + num_gallery
    q_pids, q_camids, g_pids, g_camids = random_labels(rng, num_query, num_gallery, num_people=12)
    pids = np.concatenate([q_pids, g_pids])
    return ReidFeatures(
        features=rng.normal(size=(13, length))[pids] + rng.normal(size=(num, length)),
        pids=pids,
        camids=np.concatenate([q_camids, g_camids]),
        splits=["query"] * num_query + ["gallery"] * num_gallery,
        paths=[f"{row}.jpg" for row in range(num)],
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_shuffling_the_gallery_changes_nothing(metric, seed):
    features = crowd(seed)
    shuffled = features.rows(np.random.default_rng(seed).permutation(len(features)))
    by_name = np.argsort([int(name.split(".")[0]) for name in shuffled.query.paths])
    report = rank(features, metric=metric, rerank=RerankParams(k1=6, k2=3))
    other = rank(shuffled, metric=metric, rerank=RerankParams(k1=6, k2=3))
    np.testing.assert_array_equal(other.plain.ap_hits[by_name], report.plain.ap_hits)
    np.testing.assert_array_equal(other.plain.first_hit[by_name], report.plain.first_hit)
    # Sums of encodings run in the order of the points, so a near tie may turn.
    np.testing.assert_allclose(other.reranked.ap_hits[by_name], report.reranked.ap_hits, atol=0.02)


@pytest.mark.parametrize("block_queries", [1, 7, 20, 1000])
def test_the_size_of_a_block_changes_nothing(block_queries):
    report = rank(crowd(), rerank=RerankParams(k1=6, k2=3))
    other = rank(crowd(), rerank=RerankParams(k1=6, k2=3), block_queries=block_queries)
    np.testing.assert_array_equal(other.plain.ap_hits, report.plain.ap_hits)
    np.testing.assert_array_equal(other.reranked.ap_hits, report.reranked.ap_hits)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_reranking_with_lambda_1_is_the_plain_ranking(metric):
    report = rank(crowd(), rerank=RerankParams(k1=6, k2=3, lambda_=1.0), metric=metric)
    np.testing.assert_array_equal(report.reranked.ap_hits, report.plain.ap_hits)
    np.testing.assert_array_equal(report.reranked.first_hit, report.plain.first_hit)


def test_rank_agrees_with_ranking_float64_distances():
    features = crowd(4)
    query, gallery = (
        part.features / np.linalg.norm(part.features, axis=1, keepdims=True)
        for part in (features.query, features.gallery)
    )
    distances = np.linalg.norm(query[:, None].astype(float) - gallery[None].astype(float), axis=2)
    q, g = features.query, features.gallery
    np.testing.assert_array_equal(
        ranked(distances, (q.pids, q.camids, g.pids, g.camids)).ap_hits, rank(features).plain.ap_hits
    )


def test_the_largest_dot_product_comes_first_as_in_the_official_program():
    inputs = next(case for case in VECTORS["ranking_features"] if case["name"] == "unnormalised_dot")
    parts = ("query", "gallery")
    vectors, pids, camids = (
        np.concatenate([np.array(inputs["input"][f"{part}_{name}"]) for part in parts])
        for name in ("f", "label", "cam")
    )
    splits = np.repeat(parts, [len(inputs["input"][f"{part}_f"]) for part in parts])
    report = rank(ReidFeatures(vectors, pids, camids, splits, splits), metric="dot")
    expected = inputs["expected"]["single"]
    assert report.plain.ap_trapezoid.tolist() == expected["ap"]
    assert report.plain.cmc_curve(len(expected["cmc"])).tolist() == expected["cmc"]


@pytest.mark.parametrize("protocol", ["cross-camera", "leave-one-out"])
@pytest.mark.parametrize("scale", [1e-20, 1, 1e15])
def test_dot_products_rank_as_those_of_whole_numbers(protocol, scale):
    whole = np.round(4 * crowd(3).features * np.random.default_rng(0).integers(1, 6, (len(crowd(3)), 1)))
    features = with_vectors(crowd(3), whole * scale)
    report = rank(features, metric="dot", protocol=protocol, block_queries=7)
    q, g = features.query, features.gallery
    products = -whole @ whole.T  # many of them equal: ties are those of the products
    if protocol == "cross-camera":
        is_query = features.splits == "query"
        expected = ranked(products[is_query][:, ~is_query], (q.pids, q.camids, g.pids, g.camids))
        np.testing.assert_array_equal(report.plain.places, expected.places)
        assert expected.tied.any()
    else:
        kept = features.pids >= 0
        for query, row in enumerate(report.query_rows[:10]):
            others = np.flatnonzero(kept & (np.arange(len(kept)) != row))
            places = slow_places(products[row, others], features.pids[row], -1, features.pids[others], others)
            start = report.plain.num_good[:query].sum()
            assert report.plain.places[start : start + len(places)].tolist() == places


def test_dot_products_cannot_be_reranked():
    with pytest.raises(RankingError, match="use the metric cosine or euclidean"):
        rank(crowd(), metric="dot", rerank=RerankParams(6, 3))


def with_vectors(features, vectors):
    return ReidFeatures(vectors, features.pids, features.camids, features.splits, features.paths)


def test_packed_bits_rank_as_unpacked_ones():
    bits = np.random.default_rng(0).random((len(crowd()), 24)) < 0.5
    report = rank(with_vectors(crowd(), bits), metric="hamming", rerank=RerankParams(6, 3))
    packed = rank(with_vectors(crowd(), np.packbits(bits, axis=1)), metric="hamming-packed", rerank=RerankParams(6, 3))
    np.testing.assert_array_equal(packed.plain.places, report.plain.places)
    np.testing.assert_array_equal(packed.reranked.places, report.reranked.places)
    with pytest.raises(RankingError, match="holds other numbers than bytes"):
        rank(crowd(), metric="hamming-packed")


@pytest.mark.parametrize("value", [0, 0.3], ids=["zeros", "equal"])
def test_a_collapsed_network_is_refused_but_does_not_stop_a_training(value, caplog):
    collapsed = with_vectors(crowd(), np.full((len(crowd()), 5), value))
    with pytest.raises(RankingError, match=r"all \d+ vectors are equal"):
        rank(collapsed)
    report = rank(collapsed, even_if_collapsed=True, rerank=RerankParams(6, 3), ties="pessimistic")
    assert "ranking all the same: features: all" in caplog.text
    assert report.plain.tied[report.plain.valid].all()
    num_wrong = report.num_gallery - report.plain.num_good - report.plain.num_same_camera
    assert (report.plain.first_hit == num_wrong)[report.plain.valid].all()
    assert report.protocol.count("Of equal distances wrong images come first.") == 1


def test_junk_changes_neither_the_plain_nor_the_reranked_numbers():
    features = crowd(2)
    without = features.rows(np.flatnonzero((features.pids != -1) | (features.splits == "query")))
    report, other = rank(features, rerank=RerankParams(6, 3)), rank(without, rerank=RerankParams(6, 3))
    assert (report.num_junk > 0, other.num_junk) == (True, 0)
    np.testing.assert_array_equal(report.plain.ap_hits, other.plain.ap_hits)
    np.testing.assert_array_equal(report.reranked.ap_hits, other.reranked.ap_hits)


# --- what cannot be ranked ------------------------------------------------------------------------------------------


def test_nan_distances_are_refused():
    distances = np.ones((3, 2))
    distances[1, 1] = np.nan
    with pytest.raises(RankingError, match="1 rows hold NaN or infinite values, the first is row 1"):
        ranked(distances, ([1, 2, 3], [1, 1, 1], [1, 2], [2, 2]))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(RankingError, match=r"found shape \(1, 3\) with 1 and 2 identities"):
        ranked(np.ones((1, 3)), ([1], [1], [1, 2], [2, 2]))
    with pytest.raises(RankingError, match="1 and 1 cameras"):
        ranked(np.ones((1, 2)), ([1], [1], [1, 2], [2]))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (
            toy_features([(7, 1)], [(7, 1), (3, 1)], [0, 1]),
            "share 1 identity, all of them only in the query's own camera",
        ),
        (toy_features([(7, 1)], [(8, 2)], [0]), "share 0 identities"),
        (toy_features([(7, 1)], [(-1, 2)], [0]), "all 1 gallery pictures are junk"),
        (toy_features([(-1, 1)], [(7, 2)], [0]), "query row 0 has pid -1"),
        (toy_features([(7, 1)], [(7, 2)], [0]).query, "no gallery pictures; found splits query"),
        (toy_features([(7, 1)], [(7, 2)], [0]).gallery, "no query pictures"),
    ],
    ids=["one-camera", "strangers", "all-junk", "junk-query", "no-gallery", "no-query"],
)
def test_what_cannot_be_ranked_says_why(features, words):
    with pytest.raises(RankingError, match=words):
        rank(features, metric="euclidean")


def test_a_zero_vector_has_no_direction():
    with pytest.raises(RankingError, match=r"1 query vectors are zero, the first is 0\.jpg"):
        rank(toy_features([(7, 1)], [(7, 2)], [0]), metric="cosine")


def test_an_unknown_metric_is_refused():
    with pytest.raises(RankingError, match="expected 'cosine', 'euclidean', 'dot', 'hamming' or 'hamming-packed'"):
        rank(wave_features(), metric="manhattan")


# --- the report and the command -------------------------------------------------------------------------------------


@pytest.fixture
def wave_file(tmp_path):
    wave_features().save(tmp_path / "features.npz")
    return tmp_path / "features.npz"


def run(*arguments):
    return CliRunner().invoke(main, ["rank", *map(str, arguments)])


def test_the_command_prints_plain_and_reranked_side_by_side(wave_file):
    alone, both = run("--features", wave_file), run("--features", wave_file, "--rerank")
    assert (alone.exit_code, both.exit_code) == (0, 0)
    assert "mAP (hits)             95.83%\n" in alone.output
    assert "mAP (hits)             95.83%      99.17%\n" in both.output
    assert "k1=20, k2=6, lambda=0.3" in both.output


def test_the_json_is_one_object_of_fractions_with_their_protocol(wave_file):
    answer = json.loads(run("--features", wave_file, "--rerank", "--json").stdout)
    assert answer["plain"]["map_hits"] == pytest.approx(0.9583333333)
    assert answer["reranked"]["map_trapezoid"] == pytest.approx(0.990625)
    assert (len(answer["plain"]["cmc"]), answer["rerank"]) == (50, RERANK_CARD)
    assert {name: answer["queries"][name] for name in ("valid", "invalid", "unknown_camera")} == {
        "valid": 6,
        "invalid": 0,
        "unknown_camera": 0,
    }
    assert answer["made_by"]["extractor"] == "waves"


def test_every_number_becomes_a_metric_file_that_says_how_it_was_made(wave_file, tmp_path):
    result = run("--features", wave_file, "--rerank", "--k1", 6, "--k2", 3, "--out", tmp_path / "metrics")
    assert result.exit_code == 0, result.output
    names = ["map_hits", "map_trapezoid", "minp", "rank1", "rank3", "rank5", "rank10", "rank20"]
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "metrics").iterdir()}
    assert sorted(files) == sorted(names + [f"{name}_rerank" for name in names])
    assert f"wrote 16 metric files into {tmp_path / 'metrics'}" in result.stderr
    assert files["map_hits"]["value"] == pytest.approx(0.9583333333)
    assert "6 queries against 30 gallery images" in files["map_hits"]["protocol"]
    assert "k1=6, k2=3" in files["rank1_rerank"]["protocol"]
    assert "Re-ranked" not in files["rank1"]["protocol"]
    assert files["rank1_rerank"]["made_by"]["rerank"] == {**RERANK_CARD, "k1": 6, "k2": 3}
    assert files["rank1"]["made_by"]["features"] == wave_features().fingerprint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rerank", "--k1", "36"], "k1 = 36 is larger than the gallery of 30 pictures"),
        (["--rerank", "--k1", "3", "--k2", "5"], "k2 must lie between 1 and k1 + 1 = 4, got 5"),
        (["--rerank", "--lambda", "1.5"], "lambda must lie between 0 and 1, got 1.5"),
    ],
    ids=["k1", "k2", "lambda"],
)
def test_wrong_reranking_settings_are_one_line_and_exit_code_1(wave_file, arguments, words):
    result = run("--features", wave_file, *arguments)
    assert (result.exit_code, result.stderr.count("\n"), words in result.stderr) == (1, 1, True)


def test_rank_explains_a_file_that_holds_no_features(tmp_path):
    (tmp_path / "notes.npz").write_bytes(b"")
    result = run("--features", tmp_path / "notes.npz")
    assert (result.exit_code, "not a feature file" in result.stderr, result.stdout) == (1, True, "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_ends_with_an_example_that_names_real_options(flag):
    output = run(flag).output
    assert "  reid-eval rank runs/teacher/features.npz --rerank --out runs/teacher/metrics" in output
