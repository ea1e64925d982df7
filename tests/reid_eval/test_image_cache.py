import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from reid_eval import files
from reid_eval.feature_sets import FeatureSet
from reid_eval.image_cache import ImageCache, Part
from reid_eval.one_pass import Met
from reid_eval.report import MetricResult

RESULTS = [
    MetricResult(
        "fid_reid", 0.4666812910206154, False, "How it was made, für Ä.", {"how": {"seed": 3}, "interval": [0.1, 2.0]}
    ),
    MetricResult("psnr_of_pairs", np.inf, True, "Equal.", {"reid_eval": "1"}, "dB"),
]
MET = Met("PNG", "RGB", "4x4", False, False, False)


def features(seed: int = 0) -> FeatureSet:
    vectors = np.random.default_rng(seed).normal(size=(9, 4)).astype(np.float32)
    pictures = {"folder": "real", "images": 9, "fingerprint": "f" * 16}
    return FeatureSet("mean colour", "mean_colour", features=vectors, files=tuple("abcdefghi"), pictures=pictures)


def damages(content: bytes, count: int) -> list[bytes]:
    """Turned bits, cut ends, other digits and letters, and lost pieces."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        changed, place = bytearray(content), int(rng.integers(len(content) - 1))
        match number % 4:
            case 0:
                changed[place] ^= 1 << int(rng.integers(8))
            case 1:
                del changed[place:]
            case 2:
                alike = {48 <= byte < 58: n for n, byte in enumerate(content) if n >= place}
                digit = alike.get(True, content.index(b"4"))
                changed[digit] = 48 + (changed[digit] - 47) % 10
            case 3:
                del changed[place : place + int(rng.integers(1, 30))]
        found.append(bytes(changed))
    return found


def test_answers_are_given_back_as_they_were_kept(tmp_path):
    cache = ImageCache(tmp_path)
    assert cache.answer("key") is None
    cache.keep_answer("key", RESULTS)
    assert cache.answer("key") == RESULTS


def test_sixty_damaged_answers_of_sixty_are_noticed(tmp_path, caplog):
    ImageCache(tmp_path).keep_answer("key", RESULTS)
    (file,) = (tmp_path / "answers").iterdir()
    content = file.read_bytes()
    for changed in damages(content, 60):
        file.write_bytes(changed)
        assert ImageCache(tmp_path).answer("key") is None
    assert caplog.text.count("measured again: ") == 60


def test_an_answer_to_another_question_and_edits_are_noticed(tmp_path):
    cache = ImageCache(tmp_path)
    cache.keep_answer("key", RESULTS)
    file = tmp_path / "answers" / "key.json"
    file.with_name("other.json").write_bytes(file.read_bytes())
    assert cache.answer("other") is None
    for change in (
        lambda values: values["results"][0].update(value=0.1),
        lambda values: values["results"].pop(),
        lambda values: values.pop("sha256"),
        lambda values: values.update(results={}),
    ):
        values = json.loads(file.read_text())
        change(values)
        (tmp_path / "answers" / "edited.json").write_text(json.dumps({**values, "key": "edited"}))
        assert cache.answer("edited") is None


def test_damaged_features_are_noticed_or_are_the_same(tmp_path):
    cache = ImageCache(tmp_path)
    cache.keep_features("key", features())
    (file,) = (tmp_path / "features").iterdir()
    content = file.read_bytes()
    noticed = 0
    for changed in damages(content, 60):
        file.write_bytes(changed)
        found = cache.features("key", "f" * 16)
        noticed += found is None
        if found is not None:
            np.testing.assert_array_equal(found.features, features().features)
            assert found.pictures == features().pictures
    assert noticed > 40


def test_features_of_other_pictures_are_not_believed(tmp_path):
    cache = ImageCache(tmp_path)
    cache.keep_features("key", features())
    assert cache.features("key", "f" * 16) is not None
    assert cache.features("key", "e" * 16) is None


def part(rows, count=3) -> Part:
    return Part(np.array(rows), np.ones((count, 4), np.float32), [MET] * count)


def test_a_part_is_given_back_and_is_gone_when_the_whole_is_kept(tmp_path):
    cache = ImageCache(tmp_path)
    assert cache.keep_part("key", part([0, 2, 5]))
    rows, vectors, met = cache.part("key", 9)
    assert (rows.tolist(), vectors.shape, met) == ([0, 2, 5], (3, 4), [MET] * 3)
    cache.keep_features("key", features())
    assert cache.part("key", 9) is None


@pytest.mark.parametrize("rows", [[0, 2, 9], [2, 0, 5], [0, 0, 5], [-1, 0, 5], [0, 2]])
def test_a_part_that_cannot_be_of_the_set_is_not_believed(tmp_path, rows):
    cache = ImageCache(tmp_path)
    cache.keep_part("key", part(rows))
    assert cache.part("key", 9) is None


def test_no_folder_keeps_nothing():
    cache = ImageCache(None)
    cache.keep_answer("key", RESULTS)
    cache.keep_features("key", features())
    assert not cache.keep_part("key", part([0, 1, 2]))
    assert (cache.answer("key"), cache.features("key", ""), cache.part("key", 9)) == (None, None, None)


def spoil(way: str, folder: Path, monkeypatch) -> Path:
    match way:
        case "a file in its place":
            folder.write_text("mine")
        case "below a file":
            folder.write_text("mine")
            return folder / "cache"
        case "a name that is too long":
            return folder / ("x" * 300)
        case "a full disk":

            def full(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(files.os, "fsync", full)
        case "read-only":

            def refused(*_, **__):
                raise PermissionError(errno.EACCES, "Permission denied")

            monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    return folder


@pytest.mark.parametrize(
    "way", ["a file in its place", "below a file", "a name that is too long", "a full disk", "read-only"]
)
def test_a_cache_that_cannot_be_written_is_one_warning_and_no_error(tmp_path, monkeypatch, caplog, way):
    cache = ImageCache(spoil(way, tmp_path / "cache", monkeypatch))
    cache.keep_features("key", features())
    cache.keep_answer("key", RESULTS)
    assert not cache.keep_part("key", part([0, 1, 2]))
    assert (cache.answer("key"), cache.features("key", "f" * 16)) == (None, None)
    assert caplog.text.count("nothing is kept for the next time, which changes no number") == 1


def test_several_may_use_a_cache_at_once(tmp_path):
    problems = []

    def work():
        cache = ImageCache(tmp_path)
        for _ in range(15):
            cache.keep_answer("key", RESULTS)
            cache.keep_features("key", features())
            if cache.answer("key") != RESULTS:
                problems.append("answer")
            if (found := cache.features("key", "f" * 16)) is None or (found.features != features().features).any():
                problems.append("features")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["key.json", "key.npz"]
