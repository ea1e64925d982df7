import json
import zipfile

import numpy as np
import pytest

from reid_eval.features import FeatureFileError, ReidFeatures


def some_features(**changes):
    columns = {
        "features": np.arange(12, dtype=np.float32).reshape(4, 3),
        "pids": [7, 7, -1, 0],
        "camids": [1, 2, 2, -1],
        "splits": ["query", "gallery", "gallery", "gallery"],
        "paths": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
        "meta": {"extractor": "baseline", "seed": 3},
    }
    return ReidFeatures(**{**columns, **changes})


def test_a_saved_file_comes_back_whole(tmp_path):
    features = some_features()
    features.save(tmp_path / "f.npz")
    back = ReidFeatures.load(tmp_path / "f.npz")
    for name in ("features", "pids", "camids", "splits", "paths"):
        np.testing.assert_array_equal(getattr(back, name), getattr(features, name))
        assert getattr(back, name).dtype == getattr(features, name).dtype
    assert (back.meta, back.fingerprint) == (features.meta, features.fingerprint)


def test_equal_features_give_equal_bytes(tmp_path):
    some_features().save(tmp_path / "a.npz")
    some_features().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_query_and_gallery_are_rows_of_their_split_in_file_order():
    features = some_features(splits=["gallery", "query", "multi-query", "gallery"])
    assert features.query.paths.tolist() == ["b.jpg"]
    assert features.gallery.paths.tolist() == ["a.jpg", "d.jpg"]
    assert features.gallery.features[:, 0].tolist() == [0, 9]
    assert len(features.split("train")) == 0


def test_a_run_of_rows_shares_its_memory():
    features = some_features()
    assert np.shares_memory(features.gallery.features, features.features)


def test_the_fingerprint_follows_the_numbers_and_not_the_names():
    plain = some_features().fingerprint
    assert some_features(paths=["x", "y", "z", "w"], meta={}).fingerprint == plain
    assert some_features(camids=[1, 2, 3, -1]).fingerprint != plain
    assert some_features(splits=["gallery", "query", "gallery", "gallery"]).fingerprint != plain


def test_half_characters_in_texts_are_no_reason_to_fail(tmp_path):
    odd = some_features(paths=["\ud800", "\udc80", "c", "d"], splits=["\ud800", "query", "gallery", "gallery"])
    assert odd.fingerprint != some_features().fingerprint
    odd.save(tmp_path / "f.npz")
    assert ReidFeatures.load(tmp_path / "f.npz").paths.tolist() == odd.paths.tolist()


def test_labels_of_any_integer_kind_become_int64():
    features = some_features(
        camids=np.array([1, 2, 2, 4], dtype=np.uint8), pids=np.array([7, 7, -1, 0], dtype=np.int16)
    )
    assert (features.pids.dtype, features.camids.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pids": [7, 7, -1]}, ["pids 3", "features 4"]),
        ({"features": np.zeros(4)}, ["(4,)", "expected numbers of shape (N, D)"]),
        ({"features": np.zeros((4, 0))}, ["D = 0"]),
        ({"features": [[1.0], [np.nan], [np.inf], [0.0]]}, ["2 of 4", "row 1 (b.jpg)", "finite"]),
        ({"features": [[1e300], [0.0], [0.0], [0.0]]}, ["1 of 4", "row 0 (a.jpg)"]),
        ({"pids": [7, -3, 0, 0]}, ["pids", "-3 in row 1"]),
        ({"camids": [1.0, 2.0, 3.0, 4.0]}, ["camids", "float64", "whole numbers"]),
        ({"pids": np.array([7, 2**63 + 5, 0, 0], np.uint64)}, ["pids", f"{2**63 + 5} in row 1", "64 bits"]),
        ({"splits": np.array([1, 2, 3, 4])}, ["splits", "texts"]),
        ({"meta": [1]}, ["meta", "[1]", "JSON object"]),
    ],
    ids=[
        "lengths",
        "one-dimension",
        "no-entries",
        "not-finite",
        "too-large",
        "below-minus-1",
        "float-cameras",
        "beyond-64-bits",
        "splits",
        "meta",
    ],
)
def test_wrong_arrays_are_refused_with_the_array_and_the_row(changes, words):
    with pytest.raises(FeatureFileError) as error:
        some_features(**changes)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def saved_arrays(tmp_path, **changes):
    some_features().save(tmp_path / "f.npz")
    arrays = {**np.load(tmp_path / "f.npz"), **changes}
    np.savez(tmp_path / "f.npz", **{name: value for name, value in arrays.items() if value is not None})
    return tmp_path / "f.npz"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, ["format 2", "reads format 1"]),
        ({"pids": None, "meta": None}, ["pids, meta missing", "found camids"]),
        ({"meta": "{"}, ["expected the meta of a feature file in JSON"]),
        ({"meta": "[" * 100_000}, ["nested too deeply", "in JSON"]),
        ({"meta": "null"}, ["meta", "found None", "JSON object"]),
        ({"format": None, **{f"part{number}": 0 for number in range(20)}}, ["found camids", "and 18 more"]),
        ({"features": np.full((4, 3), np.nan)}, ["4 of 4", "NaN"]),
        ({"paths": np.array([object()] * 4)}, ["Python objects, which are never read"]),
        ({"pids": np.arange(5)}, ["found lengths features 4, pids 5"]),
    ],
    ids=["format", "missing", "meta", "deep-meta", "no-mapping", "many-others", "nan", "pickled", "lengths"],
)
def test_a_file_of_the_wrong_content_is_refused_by_name(tmp_path, changes, words):
    file = saved_arrays(tmp_path, **changes)
    with pytest.raises(FeatureFileError) as error:
        ReidFeatures.load(file)
    for word in (str(file), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept_share", [0.01, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, kept_share):
    some_features().save(tmp_path / "f.npz")
    content = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "f.npz").write_bytes(content[: int(len(content) * kept_share)])
    with pytest.raises(FeatureFileError, match=r"not a feature file|cannot be read"):
        ReidFeatures.load(tmp_path / "f.npz")


def test_a_flipped_bit_is_noticed(tmp_path):
    some_features().save(tmp_path / "f.npz")
    content = bytearray((tmp_path / "f.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        start = archive.getinfo("features.npy").header_offset
    content[start + 200] ^= 1
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(FeatureFileError, match=r"cannot be read .*CRC"):
        ReidFeatures.load(tmp_path / "f.npz")


def test_lengths_are_compared_before_the_vectors_are_read(tmp_path):
    long = np.random.default_rng(0).normal(size=(4, 5000)).astype(np.float32)
    file = saved_arrays(tmp_path, features=long, pids=np.arange(5))
    content = bytearray(file.read_bytes())
    content[content.index(long.tobytes()) + long.nbytes - 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(FeatureFileError, match="found lengths features 4, pids 5"):
        ReidFeatures.load(file)


@pytest.mark.parametrize("byte", [8, 10, 6], ids=["method", "method-high", "flags"])
def test_a_damaged_zip_header_is_refused(tmp_path, byte):
    some_features().save(tmp_path / "f.npz")
    content = bytearray((tmp_path / "f.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + byte] ^= 0xFF  # in the first entry of the table at the end
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(FeatureFileError, match="cannot be read"):
        ReidFeatures.load(tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"hello", "begins with b'hell'"), (json.dumps({"a": 1}).encode(), "begins with")],
    ids=["empty", "text", "json"],
)
def test_other_files_are_no_feature_files(tmp_path, content, words):
    (tmp_path / "notes.npz").write_bytes(content)
    with pytest.raises(FeatureFileError, match=f"not a feature file: it {words}"):
        ReidFeatures.load(tmp_path / "notes.npz")


def test_a_zip_of_other_things_under_the_right_names_is_no_feature_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for name in ("format", "features", "pids", "camids", "splits", "paths", "meta"):
            archive.writestr(name, "text")
    with pytest.raises(FeatureFileError, match="found no named arrays"):
        ReidFeatures.load(tmp_path / "f.npz")


def test_a_single_array_and_a_folder_and_nothing_are_no_feature_files(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(FeatureFileError, match="not a feature file"):
        ReidFeatures.load(tmp_path / "one.npy")
    with pytest.raises(FeatureFileError, match="is a folder"):
        ReidFeatures.load(tmp_path)
    with pytest.raises(FeatureFileError, match="no such file; expected a feature file"):
        ReidFeatures.load(tmp_path / "absent.npz")
