"""Under which protocol a training is evaluated, what warns beside its numbers, and what is said of them."""

from pathlib import Path

import numpy as np
import pytest

from reid_eval.features import ReidFeatures
from reid_eval.ranking import rank, rerank_params
from reid_models.config import ConfigError
from reid_models.data.index import DatasetIndex, ImageRecord
from reid_models.evaluation import Evaluation, scores_of, told


def data(*pictures):
    """Pictures as (file, identity, camera, split)."""
    return DatasetIndex(Path("/d"), "csv", tuple(ImageRecord(Path("/d") / name, *rest) for name, *rest in pictures))


ACROSS = data(("a", 1, 1, "query"), ("b", 1, 2, "gallery"), ("c", 2, 2, "gallery"))
ONE_CAMERA = data(("a", 1, 1, "query"), ("b", 1, 1, "gallery"), ("c", 2, 2, "gallery"))
UNKNOWN = data(("a", 1, -1, "query"), ("b", 1, -1, "gallery"))
STRANGERS = data(("a", 1, 1, "query"), ("b", 2, 2, "gallery"))
ZERO = data(("a", 0, 1, "query"), ("b", 0, 2, "gallery"))


@pytest.mark.parametrize(
    ("index", "asked", "protocol", "said"),
    [
        (ACROSS, "auto", "cross-camera", ""),
        (UNKNOWN, "auto", "no-camera", "no camera is known, so none is left out: the protocol is no-camera"),
        (ZERO, "auto", "cross-camera", ""),
        (ONE_CAMERA, "auto", "no-camera", "under another camera, so none is left out: the protocol is no-camera"),
        (ACROSS, "no-camera", "no-camera", ""),
        (ONE_CAMERA, "leave-one-out", "leave-one-out", ""),
        (data(("b", 2, 2, "gallery"), ("c", 2, 2, "gallery")), "leave-one-out", "leave-one-out", ""),
        (STRANGERS, "auto", None, "no query has its person in the gallery, so nothing is evaluated"),
        (data(("b", 2, 2, "gallery"), ("c", 2, 2, "gallery")), "auto", "leave-one-out", "no split query, so every"),
        (data(("a", 1, 1, "query")), "auto", None, "nobody in two pictures, so nothing is evaluated"),
        (data(("a", 1, 1, "train")), "cross-camera", None, "no query and gallery, so nothing is evaluated"),
        (data(("a", -1, 1, "query"), ("b", 1, 1, "query"), ("c", 1, 2, "gallery")), "auto", None, "junk (-1) among"),
    ],
)
def test_the_protocol_is_the_one_that_fits_or_that_is_asked_for(index, asked, protocol, said, caplog):
    evaluation = Evaluation.of(index, asked)
    assert (evaluation and evaluation.protocol) == protocol
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    ("index", "asked"),
    [(ONE_CAMERA, "cross-camera"), (STRANGERS, "no-camera"), (STRANGERS, "cross-camera"), (STRANGERS, "leave-one-out")],
)
def test_a_protocol_without_a_right_answer_is_refused_before_a_training(index, asked):
    with pytest.raises(ConfigError, match=f"eval_protocol: under {asked} no query of /d has a right answer"):
        Evaluation.of(index, asked)


@pytest.mark.parametrize(
    ("pictures", "asked", "selves"),
    [
        ([("a", 1, -1, "query"), ("a", 1, -1, "gallery"), ("b", 1, -1, "gallery")], "auto", 1),
        ([("a", 1, 1, "query"), ("a", 1, 2, "gallery")], "auto", 1),  # listed under two cameras
        ([("a", 1, 1, "query"), ("a", 1, 1, "gallery"), ("b", 1, 2, "gallery")], "auto", 0),  # left out by its camera
        ([("a", 1, 1, "query"), ("a", 1, 1, "gallery"), ("b", 1, 2, "gallery")], "no-camera", 1),
        ([("a", 1, 1, "query"), ("a", 2, 2, "gallery"), ("b", 1, 2, "gallery")], "auto", 0),  # a wrong answer there
        ([("a", 1, -1, "query"), ("b", 1, -1, "gallery")], "auto", 0),
        ([("x/../a", 1, -1, "query"), ("a", 1, -1, "gallery")], "auto", 1),
    ],
)
def test_queries_that_find_themselves_are_counted(pictures, asked, selves):
    assert Evaluation.of(data(*pictures), asked).num_selves == selves


class Embedder:
    """A picture's vector is its mean colour."""

    name, image_hw, num_features, fingerprint = "mean", (32, 16), 3, "mean"

    def embed(self, images):
        return images.mean((2, 3))

    def finish(self, vectors):
        return vectors


def test_an_evaluation_whose_queries_find_themselves_warns_beside_its_map(toy_index, caplog):
    queries = [record for record in toy_index if record.split == "query"]
    twice = [ImageRecord(record.path, record.pid, -1, split) for record in queries for split in ("query", "gallery")]
    evaluation = Evaluation.of(DatasetIndex(toy_index.root, "csv", tuple(twice)), "auto")
    report = evaluation.measure(Embedder(), rerank=False, num_workers=0)
    assert report.map_hits == pytest.approx(1, abs=0.5)
    assert f"{len(queries)} of {len(queries)} query pictures lie in the gallery too and find themselves" in caplog.text
    assert f"mAP {report.map_hits:.4f}" in caplog.text


def test_the_line_and_the_log_hold_what_was_measured():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 4)).astype(np.float32)
    splits, pids = np.array(["query"] * 8 + ["gallery"] * 22), generator.integers(1, 5, 30)
    features = ReidFeatures(vectors, pids, np.full(30, -1), splits, np.array([f"{n}.jpg" for n in range(30)]), {})
    report = rank(features, rerank=rerank_params(features))
    scores = scores_of(report)
    assert scores["eval_map_hits"] == report.map_hits
    assert scores["eval_map_hits_rerank"] == report.reranked.map_hits
    for k in (1, 3, 5, 10):
        assert (scores[f"eval_rank{k}"], scores[f"eval_rank{k}_rerank"]) == (
            report.cmc[k - 1],
            report.reranked.cmc[k - 1],
        )
    ranks = "/".join(f"{report.cmc[k - 1]:.4f}" for k in (1, 3, 5, 10))
    assert told(scores).startswith(f"mAP {report.map_hits:.4f}, rank-1/3/5/10 {ranks}; re-ranked mAP ")
    assert "re-ranked" not in told(scores_of(rank(features)))
