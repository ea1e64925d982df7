"""The published program's files of vectors, as its own ranking reads them."""

import numpy as np
import pytest
from scipy.io import loadmat

from dgnet_gen.published_result import claim_results, save_results
from reid_eval.errors import OutputError
from reid_eval.features import ReidFeatures
from reid_eval.foreign import load_features


def features_of(splits):
    number = len(splits)
    vectors = np.random.default_rng(3).normal(size=(number, 6)).astype(np.float32)
    return ReidFeatures(
        vectors,
        np.arange(number) - 1,
        np.arange(number) % 3,
        np.array(splits),
        np.array([str(n) for n in range(number)]),
    )


def test_the_files_have_the_names_and_shapes_of_the_published_program(tmp_path):
    features = features_of(["query", "gallery", "gallery", "multi-query", "query"])
    files = save_results(tmp_path / "pytorch_result.mat", features)
    assert [file.name for file in files] == ["pytorch_result.mat", "multi_query.mat"]
    result, more = (
        {name: value for name, value in loadmat(file).items() if not name.startswith("__")} for file in files
    )
    assert set(result) == {"gallery_f", "gallery_label", "gallery_cam", "query_f", "query_label", "query_cam"}
    assert set(more) == {"mquery_f", "mquery_label", "mquery_cam"}
    np.testing.assert_array_equal(result["query_f"], features.features[[0, 4]])
    np.testing.assert_array_equal(result["gallery_label"][0], [0, 1])  # 1 x n: the program reads row 0
    np.testing.assert_array_equal(result["query_cam"][0], [0, 1])
    np.testing.assert_array_equal(more["mquery_f"], features.features[[3]])
    np.testing.assert_array_equal(load_features(files[0], multi_query=files[1]).pids, [-1, 3, 0, 1, 2])


def test_equal_vectors_are_equal_files_that_only_their_maker_replaces(tmp_path):
    for name in ("a.mat", "b.mat"):
        save_results(tmp_path / name, features_of(["query", "gallery"]))
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()
    assert claim_results(tmp_path / "a.mat", multi_query=False) == [tmp_path / "a.mat"]
    (tmp_path / "multi_query.mat").write_bytes(b"MATLAB 5.0 MAT-file, of somebody else")
    with pytest.raises(OutputError, match=r"multi_query\.mat: exists and was not made by"):
        claim_results(tmp_path / "a.mat", multi_query=True)
    with pytest.raises(OutputError, match=r"multi_query\.mat: the second file beside it has this name"):
        claim_results(tmp_path / "b" / ".." / "multi_query.mat", multi_query=True, overwrite=True)
