"""Two numbers are compared only if both say how they were made, and alike."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from reid_eval.cards import UnlikeError, compare, load_results, missing_in_record
from reid_eval.cli import main
from reid_eval.features import ReidFeatures
from reid_eval.ranking import rank
from reid_eval.report import MetricResult
from reid_eval.rerank import RerankParams
from reid_eval.scores import SingleShot


def crowd(seed=0, **changes):
    rng = np.random.default_rng(1)
    pids = np.arange(60) % 10 + 1
    columns = {
        "features": np.random.default_rng(seed).normal(size=(60, 8)),
        "pids": pids,
        "camids": rng.integers(1, 4, 60),
        "splits": ["query"] * 15 + ["gallery"] * 45,
        "paths": [f"test/{number}.jpg" for number in range(60)],
        "meta": {"flip": True},
        **changes,
    }
    return ReidFeatures(**columns)


def metrics(features, **how):
    params = how.pop("rerank", None)
    return rank(features, rerank=params, **how).metrics()


def one(results, name="map_hits"):
    return [result for result in results if result.name == name]


def test_only_the_vectors_may_differ():
    first, second = metrics(crowd()), metrics(crowd(seed=1))
    found = compare(first, second)
    assert [comparison.name for comparison in found] == [result.name for result in first]
    assert found[0].change == second[0].value - first[0].value


def test_rows_in_another_order_and_folders_are_the_same_data():
    order = np.random.default_rng(2).permutation(60)
    plain = crowd()
    other = ReidFeatures(
        plain.features[order],
        plain.pids[order],
        plain.camids[order],
        plain.splits[order],
        [f"/data/market/{path}" for path in plain.paths[order]],
    )
    compare(one(metrics(plain)), one(metrics(other)))


def test_junk_and_rows_that_are_not_ranked_are_no_part_of_the_data():
    plain = crowd()
    more = ReidFeatures(
        np.concatenate([plain.features, np.ones((2, 8))]),
        [*plain.pids, -1, 3],
        [*plain.camids, 1, 1],
        [*plain.splits, "gallery", "train"],
        [*plain.paths, "junk.jpg", "other.jpg"],
    )
    compare(one(metrics(plain)), one(metrics(more)))


def test_names_that_are_not_known_are_no_difference():
    unnamed = crowd(paths=[f"row {number}" for number in range(60)], meta={"picture_names": False})
    compare(one(metrics(crowd())), one(metrics(unnamed)))


def words_of(number):
    return {str(pid): f"person {pid + number}" for pid in range(1, 11)}


@pytest.mark.parametrize(
    ("other", "how", "words"),
    [
        (crowd(pids=np.arange(60) % 12 + 1), {}, "identities, cameras and splits of a ranking"),
        (crowd(camids=np.arange(60) % 4), {}, "identities, cameras and splits"),
        (crowd(splits=["query"] * 14 + ["gallery"] * 46), {}, "queries: 15 against 14"),
        (crowd(paths=[f"{number}.png" for number in range(60)]), {}, "file names of what was ranked"),
        (crowd(meta={"names": words_of(0)}), {}, "identities, cameras and splits"),
        (crowd(), {"protocol": "no-camera"}, "protocol: cross-camera against no-camera"),
        (crowd(), {"metric": "euclidean"}, "distance: cosine against euclidean"),
        (crowd(), {"ties": "optimistic"}, "ties: index against optimistic"),
        (crowd(meta={"flip": False}), {}, "flip: True against False"),
    ],
    ids=["people", "cameras", "splits", "names", "words", "protocol", "distance", "ties", "flip"],
)
def test_rankings_of_unlike_making_are_refused_with_what_differs(other, how, words):
    with pytest.raises(UnlikeError, match=f"map_hits: not comparable: .*{words}"):
        compare(one(metrics(crowd())), one(metrics(other, **how)))


def test_people_named_alike_are_the_same_whatever_their_numbers():
    first = crowd(meta={"names": words_of(0)})
    second = crowd(pids=11 - first.pids, meta={"names": {str(11 - pid): f"person {pid}" for pid in range(1, 11)}})
    compare(one(metrics(first)), one(metrics(second)))


def test_cameras_count_only_where_they_are_looked_at():
    other = crowd(camids=np.arange(60) % 4)
    compare(one(metrics(crowd(), protocol="no-camera")), one(metrics(other, protocol="no-camera")))


def test_reranking_and_single_shot_have_to_be_of_one_kind():
    first, second = (metrics(crowd(), rerank=RerankParams(k1=k1, k2=2)) for k1 in (5, 6))
    compare(one(first), one(second))
    with pytest.raises(UnlikeError, match=r"re-ranking: k1=5 .* against k1=6"):
        compare(one(first, "map_hits_rerank"), one(second, "map_hits_rerank"))
    first, second = (metrics(crowd(), single_shot=SingleShot(3, seed)) for seed in (0, 1))
    compare(one(first), one(second))
    with pytest.raises(UnlikeError, match=r"single shot: .*seed 0 against .*seed 1"):
        compare(one(first, "rank1_single_shot"), one(second, "rank1_single_shot"))


@pytest.mark.parametrize("name", ["map_hits", "map_trapezoid", "rank1", "minp", "map_hits_rerank"])
def test_every_number_of_a_ranking_has_a_complete_record(name):
    (result,) = one(metrics(crowd(), rerank=RerankParams(k1=5, k2=2)), name)
    assert missing_in_record(result) == []
    how = result.made_by["how"]
    needed = ["data", "queries", "gallery", "protocol", "distance", "ties", "multi-query", "re-ranking"]
    needed += ["average precision"] * name.startswith("map_")
    for key in needed:
        less = {**result.made_by, "how": {k: value for k, value in how.items() if k != key}}
        assert missing_in_record(MetricResult(name, 0.5, True, "", less)) == [key]


def test_an_old_file_without_a_record_is_refused_by_name_with_the_way_on(tmp_path):
    (result,) = one(metrics(crowd()))
    result.save(tmp_path / "new")
    old = {key: value for key, value in result.made_by.items() if key != "how"}
    MetricResult("map_hits", 0.5, True, result.protocol, old).save(tmp_path / "old")
    for names in (("old", "new"), ("new", "old"), ("old", "old")):
        said = CliRunner().invoke(main, ["diff", *(str(tmp_path / name / "map_hits.json") for name in names)])
        assert (said.exit_code, said.stderr.count("\n"), said.stdout) == (1, 1, "")
        file = tmp_path / "old" / "map_hits.json"
        assert f"{file}: map_hits does not say how it was made (its record missing)" in said.stderr
        assert "reid-eval rank FEATURES --out FOLDER" in said.stderr


PICTURES = {"how": {"features": "Inception"}, "real": {"fingerprint": "a", "images": 3}, "fake": {"images": 3}}


def fid(value=1.0, **made_by):
    return [MetricResult("fid_inception", value, False, "", {**PICTURES, **made_by})]


def test_generated_pictures_may_differ_and_lower_is_better():
    (found,) = compare(fid(2.0, fake={"images": 3, "fingerprint": "b"}), fid(1.5))
    assert found.to_text() == "fid_inception: 2.0000 -> 1.5000 (-0.5000, better)"


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        ({"real": {"fingerprint": "b", "images": 3}}, "content of the real pictures: a against b"),
        ({"fake": {"images": 4}}, "number of generated pictures: 3 against 4"),
        ({"how": {"features": "ResNet"}}, "features: Inception against ResNet"),
        ({"real": {"folder": "real", "images": 3}}, "content of the real pictures missing"),
        ({"fake": {}}, "number of the fake pictures missing"),
        ({"real": None, "fake": None}, "the pictures missing"),
        ({"how": {}}, "its record missing"),
        ({"how": "as always"}, "its record missing"),
        ({"how": None}, "its record missing"),
    ],
)
def test_pictures_of_unlike_or_unknown_making_are_refused(made_by, words):
    with pytest.raises(UnlikeError, match=words) as error:
        compare(fid(), fid(**made_by))
    assert "\n" not in str(error.value)


def test_equal_values_are_equal_even_infinite_ones():
    sides = {"how": {"measure": "PSNR"}, "first": {"images": 2}, "second": {"images": 2, "fingerprint": "a"}}
    psnr = [MetricResult("psnr_of_pairs", math.inf, True, "", sides, "dB")]
    assert compare(psnr, psnr)[0].to_text() == "psnr_of_pairs: inf -> inf dB (+0.0000, equal)"


def test_diversity_is_neither_better_nor_worse():
    made_by = {"how": {"measure": "SSIM"}, "pictures": {"images": 2}}
    first, second = ([MetricResult("ssim_within_identity", value, False, "", made_by)] for value in (0.2, 0.3))
    assert compare(first, second)[0].to_text() == "ssim_within_identity: 0.2000 -> 0.3000 (+0.1000, higher)"


@pytest.mark.parametrize("interval", [[1], ["a", "b"], {"low": 1}, [math.nan, 1], None, [[0], [1]], 3])
def test_an_interval_that_is_none_is_passed_over(interval):
    assert compare(fid(interval=interval), fid(interval=[0.0, 2.0]))[0].intervals_overlap is None


def test_a_unit_cannot_change_a_terminal():
    made = {**PICTURES}
    result = [MetricResult("fid_inception", 1.0, False, "", made, unit="\x1b[31mm")]
    assert "\x1b" not in compare(result, result)[0].to_text()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "{}", '{"metrics": 3}', '{"format": 1, "metrics": 3}', '{"format": 1, "metrics": [3]}',
        '{"format": 1, "metrics": [{"name": 1}]}', '{"format": 9, "metrics": []}', "[" * 100_000, "\x00",
    ],
)  # fmt: skip
def test_a_file_of_no_metrics_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    said = CliRunner().invoke(main, ["diff", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    assert (said.exit_code, said.stderr.count("\n"), "a.json" in said.stderr) == (1, 1, True)


def test_several_results_in_one_object_are_read(tmp_path):
    (result,) = fid()
    (tmp_path / "a.json").write_text(json.dumps({"format": 1, "metrics": [json.loads(result.to_json())]}))
    assert load_results(tmp_path / "a.json") == [result]
