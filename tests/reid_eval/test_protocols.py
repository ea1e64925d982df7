import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from reid_eval.cli import main
from reid_eval.details import details_of
from reid_eval.distances import squared_distances, unit_length
from reid_eval.features import ReidFeatures
from reid_eval.neighbours import MatrixDistances
from reid_eval.ranking import (
    RankingError,
    plan_memory,
    pooled_queries,
    protocol_of,
    rank,
    rank_distances,
    rank_swept,
)
from reid_eval.rerank import RerankParams, params_grid, rerank, reranked_blocks
from reid_eval.scores import SingleShot

VECTORS = json.loads((Path(__file__).parent / "data" / "evaluation_vectors.json").read_text())
SMALL = RerankParams(k1=6, k2=3)


def crowd(seed=0, num_query=20, num_gallery=150, length=12, num_people=12):
    """Noisy vectors around one centre per person; with distractors, junk and unknown cameras."""
    rng = np.random.default_rng(seed)
    num = num_query + num_gallery
    pids = np.concatenate([rng.integers(1, num_people, num_query), rng.integers(-1, num_people, num_gallery)])
    return ReidFeatures(
        features=rng.normal(size=(num_people + 1, length))[pids] + rng.normal(size=(num, length)),
        pids=pids,
        camids=rng.integers(-1, 3, num),
        splits=["query"] * num_query + ["gallery"] * num_gallery,
        paths=[f"{row}.jpg" for row in range(num)],
    )


def changed(some, /, **columns):
    names = ("features", "pids", "camids", "splits", "paths")
    return ReidFeatures(**{**{name: getattr(some, name) for name in names}, **columns})


def ranked(distances, query, gallery):
    labels = {"q_pids": query.pids, "q_camids": query.camids, "g_pids": gallery.pids, "g_camids": gallery.camids}
    return rank_distances(distances, **labels)


def exact_distances(features):
    """Cosine distances of query and gallery, subtracted and squared in float64."""
    query, gallery = (
        part.features / np.linalg.norm(part.features.astype(float), axis=1, keepdims=True)
        for part in (features.query, features.gallery)
    )
    return ((query[:, None] - gallery[None]) ** 2).sum(axis=2)


# --- protocols ------------------------------------------------------------------------------------------------------


def test_without_cameras_every_picture_of_the_person_is_right():
    features = crowd()
    q, g = features.query, features.gallery
    expected = ranked(exact_distances(features), changed(q, camids=np.full(20, -1)), g)
    report = rank(features, protocol="no-camera")
    np.testing.assert_array_equal(report.plain.ap_hits, expected.ap_hits)
    assert report.plain.num_same_camera.sum() == 0
    assert (report.plain.num_good >= rank(features).plain.num_good).all()
    assert "no-camera" in report.protocol
    assert "camera is unknown" not in report.to_text()


def test_leaving_one_out_is_ranking_each_picture_against_all_others():
    features = crowd(num_query=3, num_gallery=40)
    report = rank(features, protocol="leave-one-out", rerank=SMALL)
    persons = np.flatnonzero(features.pids > 0)
    kept = np.flatnonzero(features.pids >= 0)
    assert report.query_rows.tolist() == persons.tolist()
    for query, row in enumerate(persons):
        others = features.rows(kept[kept != row])
        alone = changed(features.rows([row]), splits=["query"], camids=[1])
        both = ReidFeatures(
            *(np.concatenate([getattr(alone, name), getattr(others, name)]) for name in ("features", "pids", "camids")),
            ["query"] + ["gallery"] * len(others),
            [*alone.paths, *others.paths],
        )
        if not report.plain.valid[query]:
            continue
        expected = rank(both, protocol="no-camera")
        assert report.plain.ap_hits[query] == expected.plain.ap_hits[0]
        assert report.plain.first_hit[query] == expected.plain.first_hit[0]
    # All points, each once, are the same for every query, so lambda 1 is plain here too.
    plain_again = rank(features, protocol="leave-one-out", rerank=RerankParams(6, 3, 1.0)).reranked
    np.testing.assert_array_equal(plain_again.ap_hits, report.plain.ap_hits)
    assert not np.array_equal(report.reranked.ap_hits, report.plain.ap_hits)


def test_distractors_and_junk_ask_nothing_when_one_is_left_out():
    features = changed(crowd(), splits=["gallery"] * 170)
    report = rank(features, protocol="leave-one-out")
    assert len(report.query_rows) == (features.pids > 0).sum()
    assert report.num_gallery == (features.pids >= 0).sum()


@pytest.mark.parametrize("block_queries", [1, 3, 50])
def test_a_single_shot_stands_beside_the_full_match_and_knows_no_blocks(block_queries):
    report = rank(crowd(), single_shot=SingleShot(), rerank=SMALL, block_queries=block_queries)
    plain = rank(crowd(), rerank=SMALL)
    np.testing.assert_array_equal(report.plain.ap_hits, plain.plain.ap_hits)
    np.testing.assert_array_equal(report.cmc, plain.cmc)
    assert report.plain.single_shot_cmc[0] == pytest.approx(
        rank(crowd(), single_shot=SingleShot()).plain.single_shot_cmc[0]
    )
    # A gallery without most pictures holds fewer wrong ones before the first right one, but fewer right ones too.
    assert 0 < report.plain.single_shot_cmc[0] < report.plain.single_shot_cmc[5] <= 1
    assert "rank1_single_shot_rerank" in [result.name for result in report.metrics()]


# --- several pictures per query -------------------------------------------------------------------------------------


def multi_query_case():
    inputs = next(case for case in VECTORS["ranking_features"] if case["name"] == "multi_query_mean")
    parts = [("query", "query"), ("gallery", "gallery"), ("multi-query", "mquery")]
    columns = {
        name: np.concatenate([np.array(inputs["input"][f"{p}_{name}"]) for _, p in parts])
        for name in ("f", "label", "cam")
    }
    splits = np.repeat([split for split, _ in parts], [len(inputs["input"][f"{p}_f"]) for _, p in parts])
    return ReidFeatures(columns["f"], columns["label"], columns["cam"], splits, splits), inputs["expected"]


def test_pooled_queries_are_those_of_the_official_program():
    features, expected = multi_query_case()
    pooled, unpooled = pooled_queries(features, np.arange(2), metric="euclidean", how="mean")
    np.testing.assert_allclose(pooled, expected["multi"]["pooled"], rtol=1e-7)
    assert unpooled == 0
    q, g = features.query, features.gallery
    scores = ranked(-(pooled @ g.features.T), q, g)
    assert scores.ap_trapezoid.tolist() == expected["multi"]["ap"]
    assert scores.cmc_curve(5).tolist() == expected["multi"]["cmc"]


def test_multi_query_finds_what_the_query_alone_does_not():
    features, _ = multi_query_case()
    assert rank(features).cmc[0] == 0.5
    for how in ("mean", "max"):
        report = rank(features, multi_query=how)
        assert (report.cmc[0], report.multi_query, report.num_unpooled) == (1.0, how, 0)
        assert f"multi-query ({how}" in report.protocol


def test_pictures_of_another_camera_are_not_pooled_and_a_query_may_stand_alone():
    features, _ = multi_query_case()
    lone = changed(features, camids=np.where(features.splits == "multi-query", [9] * 10 + [1] * 2, features.camids))
    pooled, unpooled = pooled_queries(lone, np.arange(2), metric="euclidean", how="max")
    assert (pooled[1].tolist(), unpooled) == ([0, 0, 1], 0) or unpooled == 1
    with pytest.raises(RankingError, match="no pictures of split 'multi-query'"):
        rank(crowd(), multi_query="mean")
    with pytest.raises(RankingError, match="leave-one-out has single pictures"):
        rank(features, multi_query="mean", protocol="leave-one-out")


# --- distances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [0, -1])
def test_hamming_distance_counts_differing_bits(low):
    features = crowd(length=16)
    bits = features.features > 0
    codes = changed(features, features=np.where(bits, 1, low))
    differing = (bits[:20, None] != bits[None, 20:]).sum(axis=2)
    q, g = features.query, features.gallery
    expected = ranked(differing, q, g)
    report = rank(codes, metric="hamming", block_queries=3)
    np.testing.assert_array_equal(report.plain.ap_hits, expected.ap_hits)
    np.testing.assert_array_equal(report.plain.tied, expected.tied)
    assert expected.tied.any()
    assert "Hamming" in report.protocol


@pytest.mark.parametrize(("value", "words"), [(0.5, "found 0.5 in 3.jpg"), (-1, "found 0 and -1")])
def test_other_numbers_than_bits_are_refused_for_the_hamming_distance(value, words):
    bits = (crowd().features > 0).astype(np.float32)
    bits[3, 0] = value
    with pytest.raises(RankingError, match=words):
        rank(changed(crowd(), features=bits), metric="hamming")


def test_adding_a_distractor_again_never_raises_average_precision():
    features = crowd()
    before = rank(features).plain
    for row in np.flatnonzero(features.pids == 0)[:5]:
        twice = features.rows([*range(170), row])
        after = rank(twice).plain
        assert (after.ap_hits <= before.ap_hits)[before.valid].all()


def close_crowd():
    """Pictures so close beside their length that float32 products cannot tell who is nearest, and no person is near."""
    rng = np.random.default_rng(0)
    return changed(crowd(), features=rng.normal(size=600) + 1e-3 * rng.normal(size=(170, 600)))


def test_float32_products_decide_nothing():
    features = close_crowd()
    q, g = features.query, features.gallery
    exact = squared_distances(q.features, g.features)
    expected = ranked(exact, q, g)
    np.testing.assert_array_equal(rank(features, metric="euclidean").plain.places, expected.places)


# --- re-ranking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entering", "program"), [("quartic", "torchreid_default"), ("quartic", "layumi"), ("squared", "mgn")]
)
@pytest.mark.parametrize(
    "case", [case for case in VECTORS["reranking"] if case["name"] != "k1_larger_than_set"], ids=lambda c: c["name"]
)
def test_each_named_variant_is_that_of_its_program(case, entering, program):
    inputs = case["input"]
    params = RerankParams(inputs["k1"], inputs["k2"], inputs["lambda_value"], entering)
    matrix = MatrixDistances(np.array(inputs["euclidean"], dtype=np.float32))
    found = np.concatenate(list(reranked_blocks(matrix, inputs["num_query"], params)))
    # These programs start from similarities, so their distances already differ in the last bit.
    np.testing.assert_allclose(found, case["expected"][program]["final_dist"], atol=2e-6, rtol=0)


def test_a_sweep_gives_what_each_setting_gives_alone():
    grid = params_grid(RerankParams(6, 3, 0.3), {"k1": [4, 9], "lambda": [0.0, 0.5]})
    assert [(p.k1, p.k2, p.lambda_) for p in grid] == [(4, 3, 0.0), (4, 3, 0.5), (9, 3, 0.0), (9, 3, 0.5)]
    grid.append(RerankParams(9, 1, 0.5, "raw"))
    report, swept = rank_swept(crowd(), grid)
    for params, scores in zip(grid, swept, strict=True):
        alone = rank(crowd(), rerank=params)
        np.testing.assert_array_equal(scores.ap_hits, alone.reranked.ap_hits)
        np.testing.assert_array_equal(report.plain.ap_hits, alone.plain.ap_hits)


@pytest.mark.parametrize("params", [SMALL, RerankParams(6, 3, 0.0), RerankParams(6, 1, 0.9)], ids=str)
def test_reranked_places_are_those_of_the_exact_distances(params):
    features = crowd(length=700)
    query, gallery = (unit_length(part.features) for part in (features.query, features.gallery.rows(kept_of(features))))
    exact = rerank(query, gallery, params)
    q, g = features.query, features.gallery.rows(kept_of(features))
    expected = ranked(exact, q, g)
    found = rank(features, rerank=params, block_queries=7).reranked
    np.testing.assert_array_equal(found.places, expected.places)
    np.testing.assert_array_equal(found.tied, expected.tied)


def test_rough_products_decide_nothing_after_reranking_either():
    features = close_crowd()
    q, g = features.query, features.gallery.rows(kept_of(features))
    for params in (RerankParams(6, 3, 0.3), RerankParams(6, 3, 1.0)):
        expected = ranked(rerank(q.features, g.features, params), q, g)
        found = rank(features, rerank=params, metric="euclidean").reranked
        np.testing.assert_array_equal(found.places, expected.places)


def kept_of(features):
    return np.flatnonzero(features.gallery.pids != -1)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_memory_limit_makes_blocks_smaller_and_changes_no_number(monkeypatch):
    monkeypatch.setattr("reid_eval.ranking.num_side_by_side", lambda: 2)  # each thread has a block
    features = crowd(num_query=300, num_gallery=3000, length=64)
    max_memory = 240 * 2**20
    free, tight = plan_memory(features, [SMALL]), plan_memory(features, [SMALL], max_memory=max_memory)
    assert (free.block_queries, tight.block_queries < 256, tight.needed_bytes <= max_memory) == (256, True, True)
    one, other = rank(features, rerank=SMALL), rank(features, rerank=SMALL, max_memory=max_memory)
    np.testing.assert_array_equal(one.plain.ap_hits, other.plain.ap_hits)
    np.testing.assert_array_equal(one.reranked.ap_hits, other.reranked.ap_hits)


def test_a_limit_that_cannot_be_kept_says_what_is_needed():
    with pytest.raises(RankingError, match=r"needs about \d+ MiB even in small blocks .* the limit is 50 MiB"):
        rank(crowd(), max_memory=50 * 2**20)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd_file(tmp_path):
    crowd().save(tmp_path / "features.npz")
    return tmp_path / "features.npz"


def run(*arguments):
    return CliRunner().invoke(main, ["rank", *map(str, arguments)])


def test_memory_is_told_before_the_start_and_a_limit_is_a_number_with_a_letter(crowd_file):
    result = run("--features", crowd_file, "--max-memory", "8G")
    assert (result.exit_code, result.stderr.splitlines()[0].startswith("needs about")) == (0, True)
    assert run("--features", crowd_file, "--max-memory", "50M").exit_code == 1
    assert "such as 500M or 8G" in run("--features", crowd_file, "--max-memory", "much").output


def test_a_sweep_prints_a_line_per_setting_and_the_plain_numbers(crowd_file):
    arguments = ["--features", crowd_file, "--k2", 3, "--sweep", "k1=4,9", "--sweep", "lambda=0,0.5"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    lines = [line.split()[:4] for line in result.stdout.splitlines() if line.startswith("squared")]
    assert [line[1:] for line in lines] == [["4", "3", "0"], ["4", "3", "0.5"], ["9", "3", "0"], ["9", "3", "0.5"]]
    answer = json.loads(run(*arguments, "--json").stdout)
    assert answer["sweep"][3]["map_hits"] == rank(crowd(), rerank=RerankParams(9, 3, 0.5)).reranked.map_hits
    assert answer["plain"]["map_hits"] == rank(crowd()).map_hits
    assert "expected k1=, k2= or lambda=" in run("--features", crowd_file, "--sweep", "k3=1").output


def test_the_csv_has_a_line_per_query_whose_mean_is_the_report(crowd_file, tmp_path):
    result = run("--features", crowd_file, "--rerank", "--k1", 6, "--k2", 3, "--csv", tmp_path / "q.csv")
    assert result.exit_code == 0, result.output
    lines = list(csv.DictReader(io.StringIO((tmp_path / "q.csv").read_text())))
    report = rank(crowd(), rerank=SMALL)
    assert [line["path"] for line in lines] == [f"{row}.jpg" for row in range(20)]
    found = [float(line["ap_trapezoid_rerank"]) for line in lines if line["ap_trapezoid_rerank"]]
    assert np.mean(found) == pytest.approx(report.reranked.map_trapezoid, abs=1e-15)
    assert [int(line["right_answers"]) for line in lines] == report.plain.num_good.tolist()
    assert np.mean([int(line["first_hit_place"]) == 1 for line in lines if line["inp"]]) == report.cmc[0]


def test_the_card_says_how_the_numbers_come_about(crowd_file):
    card = json.loads(run("--features", crowd_file, "--card", "--protocol", "no-camera", "--repetitions", 3).stdout)
    assert "plain" not in card
    assert (card["protocol_name"], card["single_shot"]) == ("no-camera", {"repetitions": 3, "seed": 0})
    assert card["made_by"]["features"] == crowd().fingerprint
    assert {"numpy", "scipy", "python"} <= set(card["versions"])
    assert set(card["average_precision"]) == {"map_hits", "map_trapezoid"}


def test_details_name_cameras_people_and_pictures(crowd_file):
    result = run("--features", crowd_file, "--details")
    assert result.exit_code == 0, result.output
    for words in ("camera pairs", "worst queries", "people taken for each other", "labels to look at"):
        assert words in result.stdout
    found = json.loads(run("--features", crowd_file, "--details", "--json").stdout)["details"]
    expected = details_of(crowd(), rank(crowd()))
    assert (len(found["worst"]), found["worst"][0]["path"]) == (len(expected.worst), expected.worst[0].path)


def test_the_rule_for_ties_is_chosen_and_told(tmp_path):
    equal = changed(crowd(), features=np.eye(2)[np.arange(170) % 2])
    equal.save(tmp_path / "f.npz")
    found = {}
    for rule, words in (
        ("index", "in gallery order"),
        ("optimistic", "right images come first"),
        ("pessimistic", "wrong images"),
    ):
        answer = json.loads(run("--features", tmp_path / "f.npz", "--ties", rule, "--json").stdout)
        assert (answer["ties"], words in answer["protocol"]) == (rule, True)
        found[rule] = answer["plain"]["map_hits"]
    assert found["pessimistic"] < found["index"] < found["optimistic"]


def test_details_agree_with_a_slow_look_at_all_distances():
    features = crowd()
    report = rank(features)
    details = details_of(features, report)
    distances = exact_distances(features)
    q, g = features.query, features.gallery
    asked, right = {}, {}
    for row, pid, camid in zip(distances, q.pids, q.camids, strict=True):
        for other in {
            c for p, c in zip(g.pids, g.camids, strict=True) if p == pid and c != -1 and (c != camid or camid == -1)
        }:
            seen = [column for column in range(150) if g.camids[column] == other and g.pids[column] != -1]
            pair = (int(camid), int(other))
            asked[pair] = asked.get(pair, 0) + 1
            right[pair] = right.get(pair, 0) + (g.pids[min(seen, key=lambda column: row[column])] == pid)
    found = {
        (pair.query_camid, pair.gallery_camid): (pair.num_queries, pair.num_right) for pair in details.camera_pairs
    }
    assert found == {pair: (asked[pair], right[pair]) for pair in asked}
    assert details.worst[0].ap_hits == np.nanmin(report.plain.ap_hits)
    assert sum(pair.num_queries for pair in details.confused) == (report.plain.first_hit > 0).sum()


def test_a_swapped_label_is_the_first_likely_error():
    rng = np.random.default_rng(0)
    pids = np.tile(np.arange(1, 11), 3)
    vectors = rng.normal(size=(11, 20))[pids] + 0.1 * rng.normal(size=(30, 20))
    labels = pids.copy()
    labels[10] = 5  # a gallery picture of person 1
    features = ReidFeatures(
        vectors,
        labels,
        np.repeat([1, 2, 3], 10),
        ["query"] * 10 + ["gallery"] * 20,
        [f"{row}.jpg" for row in range(30)],
    )
    first = details_of(features, rank(features)).label_errors[0]
    assert (first.path, first.pid, first.other_path, first.other_pid) == ("0.jpg", 1, "10.jpg", 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": np.ones((170, 3))}, "all 1.. vectors are equal"),
        ({"pids": np.arange(1, 171)}, r"share 0 identities \(queries: 1, 2, 3"),
        (
            {
                "pids": np.ones(170, int),
                "camids": np.ones(170, int),
                "paths": [f"0001_c{row % 6 + 1}s1_{row}.jpg" for row in range(170)],
            },
            "cameras may be misread: 0001_c2s1_1.jpg has camera 2 in its name",
        ),
    ],
    ids=["constant", "strangers", "misread"],
)
def test_features_that_say_nothing_are_one_line_and_exit_code_1(tmp_path, changes, words):
    changed(crowd(), **changes).save(tmp_path / "f.npz")
    result = run("--features", tmp_path / "f.npz")
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (1, 1, "")
    with pytest.raises(RankingError, match=words):
        rank(changed(crowd(), **changes))


def test_people_who_are_all_different_leave_no_one_out():
    with pytest.raises(RankingError, match="no picture has a right answer"):
        rank(changed(crowd(), pids=np.arange(1, 171)), protocol="leave-one-out")


def test_a_query_in_the_gallery_is_told(crowd_file):
    features = crowd()
    copied = features.features.copy()
    mate = (
        20 + np.flatnonzero((features.pids[20:] == features.pids[0]) & (features.camids[20:] != features.camids[0]))[0]
    )
    copied[mate] = copied[0]
    report = rank(changed(features, features=copied))
    assert report.num_copies == 1
    assert "1 query has a right image at distance 0" in report.to_text()


@pytest.mark.parametrize(
    "files",
    [[], ["--query", "q.npy"], ["--features", "f.npz", "--query", "q.npy", "--gallery", "g.npy"]],
    ids=["none", "some", "both"],
)
def test_vectors_come_from_one_place(files):
    result = run(*files)
    assert (result.exit_code, "--query, --gallery and --labels together" in result.output) == (2, True)


def test_a_distractor_is_nobody_that_people_are_taken_for():
    rng = np.random.default_rng(0)
    pids = np.array([1, 2, 1, 2, 0, 0, 2])
    vectors = np.eye(4)[[0, 1, 0, 1, 0, 1, 0]] + 0.01 * rng.normal(size=(7, 4))
    vectors[4], vectors[5] = vectors[0], vectors[1]  # distractors stand where the queries do
    splits = ["query"] * 2 + ["gallery"] * 5
    some = ReidFeatures(vectors, pids, [1, 1, 2, 2, 2, 2, 2], splits, [f"{row}.jpg" for row in range(7)])
    details = details_of(some, rank(some))
    assert (details.confused, details.num_distracted, details.label_errors) == ([], 2, [])
    assert "a distractor (pid 0) comes first: 2" in details.to_text()
    person = changed(some, pids=np.array([1, 2, 1, 2, 3, 3, 2]))
    assert [(pair.pid, pair.taken_for) for pair in details_of(person, rank(person)).confused] == [(1, 3), (2, 3)]


def test_words_stand_for_people_and_cameras_in_details():
    some = crowd()
    names = {str(pid): f"person {pid}" for pid in range(13)}
    named = ReidFeatures(
        some.features,
        some.pids,
        some.camids,
        some.splits,
        some.paths,
        {"names": names, "camera_names": {"1": "door", "2": "yard"}},
    )
    plain, words = (details_of(each, rank(each)) for each in (some, named))
    assert [one.pid for one in words.worst] == [f"person {one.pid}" for one in plain.worst]
    pairs = [(pair.pid, pair.taken_for) for pair in plain.confused]
    assert [(pair.pid, pair.taken_for) for pair in words.confused] == [(names[str(a)], names[str(b)]) for a, b in pairs]
    assert {pair.query_camid for pair in words.camera_pairs} & {"door", "yard"}


def test_leave_one_out_takes_all_rows_where_there_are_no_splits():
    some = crowd()
    train = changed(some, splits=np.full(len(some), "train"))
    expected = rank(some, protocol="leave-one-out")  # distractors ask nothing there; here nobody is one
    found = rank(train, protocol="leave-one-out")
    people = some.pids > 0
    assert found.num_gallery == expected.num_gallery
    assert found.num_distractors == 0
    asked = people[found.query_rows]
    np.testing.assert_array_equal(found.plain.ap_hits[asked], expected.plain.ap_hits)
    with pytest.raises(RankingError, match="no query pictures; found splits train"):
        rank(train)


def slow_protocol(pids, camids, splits):
    """The same by looking at each pair of pictures."""
    rows = [row for row in range(len(pids)) if pids[row] >= 0]
    query, gallery = ([row for row in rows if splits[row] == name] for name in ("query", "gallery"))
    if not (query and gallery):
        alone = query or gallery
        zero_is_nobody = alone and not any(pids[row] == 0 for row in query)
        people = [pids[row] for row in alone or rows if pids[row] or not zero_is_nobody]
        return "leave-one-out" if len(people) > len(set(people)) else None
    pairs = [(q, g) for q in query for g in gallery if pids[q] == pids[g]]
    if not pairs:
        return None
    known = any(camids[row] != -1 for row in query + gallery)
    other = any(camids[q] == -1 or camids[g] == -1 or camids[q] != camids[g] for q, g in pairs)
    return "cross-camera" if known and other else "no-camera"


def test_the_protocol_that_fits_agrees_with_looking_at_every_pair():
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(600):
        size = rng.integers(1, 7)
        pids, camids = rng.integers(-1, 4, size), rng.integers(-1, rng.integers(0, 3), size)
        splits = rng.choice(rng.permutation(["query", "gallery", "train"])[: rng.integers(1, 4)], size)
        expected = slow_protocol(pids, camids, splits)
        assert protocol_of(pids, camids, splits)[0] == expected, (pids, camids, splits)
        found.add(expected)
    assert len(found) == 4


def test_features_of_one_camera_are_ranked_without_cameras_and_it_is_said(tmp_path):
    changed(crowd(), camids=np.ones(170, int)).save(tmp_path / "f.npz")
    result = CliRunner().invoke(main, ["rank", "--features", str(tmp_path / "f.npz")])
    assert result.exit_code == 0, result.output
    assert "under another camera, so none is left out: ranking by the protocol no-camera" in result.stderr
