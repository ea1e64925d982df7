"""Vectors of a coarse and a fine part: the ranking is that of the published weighted score."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.io import savemat

from reid_eval.cli import main
from reid_eval.features import FeatureFileError, ReidFeatures
from reid_eval.parts import parts_of, weighted
from reid_eval.ranking import metric_names, rank, rank_distances


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def two_heads(num=40, length=6, seed=0):
    rng = np.random.default_rng(seed)
    pids = np.arange(num) % 8 + 1
    centres = rng.normal(size=(9, 2 * length))
    vectors = centres[pids] + 1.2 * rng.normal(size=(num, 2 * length))
    return unit(vectors[:, :length]), unit(vectors[:, length:]), pids


def features(coarse, fine, pids, **meta):
    splits = np.where(np.arange(len(pids)) < 12, "query", "gallery")
    camids = np.where(splits == "query", 1, 2)
    paths = [f"{number}.jpg" for number in range(len(pids))]
    return ReidFeatures(np.concatenate([coarse, fine], axis=1), pids, camids, splits, paths, meta)


@pytest.mark.parametrize("alpha", [0, 0.5, 2, -1])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_the_ranking_is_that_of_the_weighted_score(alpha, metric):
    coarse, fine, pids = two_heads()
    some = features(coarse, fine, pids)
    scores = fine @ fine.T if alpha == -1 else coarse @ coarse.T + alpha * (fine @ fine.T)  # only the query is weighted
    q, g = some.query, some.gallery
    labels = {"q_pids": q.pids, "q_camids": q.camids, "g_pids": g.pids, "g_camids": g.camids}
    expected = rank_distances(-scores[:12, 12:], **labels)
    found = rank(weighted(some, alpha), metric=metric)
    np.testing.assert_array_equal(found.plain.places, expected.places)
    assert (found.alpha, found.record()["alpha"]) == (alpha, alpha)


def test_parts_that_the_file_names_are_taken_whatever_their_length_and_weight():
    coarse, fine, pids = two_heads()
    meta = {"parts": {"coarse": [6, 12], "fine": [0, 6]}, "alpha": 0.25}
    stored = features(0.5 * fine, 3 * coarse, pids, **meta)
    expected = weighted(features(coarse, fine, pids), 0.5)
    np.testing.assert_allclose(weighted(stored, 0.5).features, expected.features, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected.features, axis=1), 1, atol=1e-6)


def test_halves_are_parts_only_where_each_has_length_1():
    coarse, fine, pids = two_heads()
    assert parts_of(features(coarse, fine, pids)) == {"coarse": slice(0, 6), "fine": slice(6, 12)}
    assert parts_of(features(coarse.astype(np.float16), fine, pids)) is not None
    whole = unit(np.concatenate([coarse, fine], axis=1))
    assert parts_of(features(whole[:, :6], whole[:, 6:], pids)) is None
    assert parts_of(features(coarse, fine[:, :5], pids)) is None


@pytest.mark.parametrize(
    ("some", "alpha", "words"),
    [
        (lambda c, f, p: features(2 * c, f, p), 0.5, "nor have halves of length 1"),
        (lambda c, f, p: features(c, f, p), -0.5, "expected 0 or more, or -1"),
        (lambda c, f, p: features(c, f, p), float("nan"), "expected 0 or more, or -1"),
        (lambda c, f, p: features(c, 0 * f, p, parts={"coarse": [0, 6], "fine": [6, 12]}), 0.5, "of 0.jpg is zero"),
        (lambda c, f, p: features(c, f, p, parts={"coarse": [0, 6], "fine": [6, 13]}), 0.5, "within 12 numbers"),
        (lambda c, f, p: features(c, f, p, parts={"coarse": [0, 6]}), 0.5, "expected {'coarse'"),
        (lambda c, f, p: features(c, f, p, parts=[[0, 6], [6, 12]]), 0.5, "expected {'coarse'"),
        (lambda c, f, p: features(c, f, p, parts={"coarse": "ab", "fine": None}), 0.5, "expected {'coarse'"),
    ],
    ids=["no-parts", "below-0", "nan", "zero", "beyond", "one", "list", "texts"],
)  # fmt: skip
def test_what_cannot_be_weighted_is_one_line(some, alpha, words):
    with pytest.raises(FeatureFileError, match=words) as error:
        weighted(some(*two_heads()), alpha)
    assert "\n" not in str(error.value)


def test_a_zero_part_that_does_not_count_is_no_matter():
    coarse, fine, pids = two_heads()
    meta = {"parts": {"coarse": [0, 6], "fine": [6, 12]}}
    found = weighted(features(coarse, 0 * fine, pids, **meta), 0)
    np.testing.assert_allclose(found.features, coarse, atol=1e-6)


@pytest.fixture
def published(tmp_path):
    """The .mat that the published evaluation hands over."""
    coarse, fine, pids = two_heads()
    some = features(coarse, fine, pids)
    arrays = {}
    for name, part in (("query", some.query), ("gallery", some.gallery)):
        arrays |= {f"{name}_f": part.features, f"{name}_label": part.pids, f"{name}_cam": part.camids}
    savemat(tmp_path / "pytorch_result.mat", arrays)
    return tmp_path / "pytorch_result.mat"


def run(*arguments):
    return CliRunner().invoke(main, ["rank", *map(str, arguments)])


def test_every_alpha_is_a_column_and_its_metrics_say_which(published, tmp_path):
    files = ["--out", tmp_path / "m", "--csv", tmp_path / "q.csv", "--plot", tmp_path / "p.png"]
    result = run(published, "--alpha", "0,0.5,-1", "--rerank", "--k1", 5, "--k2", 2, *files)
    assert result.exit_code == 0, result.output
    heads = result.stdout.splitlines()[:2]
    assert heads[0].split() == [
        "alpha",
        "0",
        "alpha",
        "0",
        "alpha",
        "0.5",
        "alpha",
        "0.5",
        "alpha",
        "-1",
        "alpha",
        "-1",
    ]
    assert heads[1].split() == ["plain", "re-ranked"] * 3
    assert max(map(len, result.stdout.splitlines()[:10])) <= 80
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "m").iterdir()}
    assert set(files) == set(metric_names((0, 0.5, -1), reranked=True, single_shot=False))
    for alpha, name in ((0, "alpha_0"), (0.5, "alpha_0_5"), (-1, "alpha_minus_1")):
        alone = json.loads(run(published, "--alpha", alpha, "--json").stdout)
        metric = files[f"map_hits_{name}"]
        assert metric["value"] == alone["plain"]["map_hits"]
        assert metric["made_by"]["how"]["alpha"] == alpha
    table = (tmp_path / "q.csv").read_text().splitlines()
    assert "ap_hits_alpha_0_5_rerank" in table[0]
    assert len(table) == 13


def test_published_vectors_without_a_weight_are_remarked_on(published):
    assert "--alpha 0,0.5,-1 weighs them as published" in run(published).stderr
    assert "weighs them" not in run(published, "--alpha", "0.5").stderr


@pytest.mark.parametrize("option", [["--details"], ["--card"], ["--sweep", "k1=5"], ["--sheets", "s", "--images", "i"]])
def test_what_is_about_one_ranking_takes_one_alpha(published, option):
    result = run(published, "--alpha", "0,0.5", *option)
    assert (result.exit_code, "one value of --alpha" in result.stderr) == (2, True)


@pytest.mark.parametrize("value", ["-2", "a", "0,", "nan", "inf", ""])
def test_an_alpha_that_is_none_is_wrong_usage(published, value):
    result = run(published, "--alpha", value)
    assert (result.exit_code, "expected numbers from 0 on" in " ".join(result.stderr.split())) == (2, True)
