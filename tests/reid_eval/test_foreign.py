import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.io import savemat

from reid_eval.cli import main
from reid_eval.features import FeatureFileError, ReidFeatures
from reid_eval.foreign import load_features, load_features_and_labels
from reid_eval.ranking import rank
from reid_eval.rerank import RerankParams

RNG = np.random.default_rng(0)
QUERY, GALLERY = RNG.normal(size=(3, 4)).astype(np.float32), RNG.normal(size=(5, 4)).astype(np.float32)
Q_PIDS, Q_CAMIDS = np.array([7, 8, 9]), np.array([1, 1, 2])
G_PIDS, G_CAMIDS = np.array([7, 8, 9, -1, 0]), np.array([2, 2, 1, 1, 3])

OLD_NAMES = {
    "query_f": QUERY,
    "query_label": Q_PIDS,
    "query_cam": Q_CAMIDS,
    "gallery_f": GALLERY,
    "gallery_label": G_PIDS,
    "gallery_cam": G_CAMIDS,
}
SHORT_NAMES = {
    "qf": QUERY,
    "q_pids": Q_PIDS,
    "q_camids": Q_CAMIDS,
    "gf": GALLERY,
    "g_pids": G_PIDS,
    "g_camids": G_CAMIDS,
}
ONE_ARRAY = {
    "feats": np.concatenate([QUERY, GALLERY]),
    "pids": np.concatenate([Q_PIDS, G_PIDS]),
    "camids": np.concatenate([Q_CAMIDS, G_CAMIDS]),
    "num_query": 3,
}


def write(file, arrays):
    if file.suffix == ".mat":
        # As the old programs do: labels are rows, and cameras may be unsigned.
        savemat(file, {**arrays, "query_cam": Q_CAMIDS.astype(np.uint8)})
    elif file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        torch.save({name: torch.as_tensor(value) for name, value in arrays.items()}, file)
    return file


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("f.mat", OLD_NAMES),
        ("f.npz", OLD_NAMES),
        ("f.pt", OLD_NAMES),
        ("f.npz", SHORT_NAMES),
        ("f.pth", SHORT_NAMES),
        ("f.npz", ONE_ARRAY),
        ("f.pt", ONE_ARRAY),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_every_format_gives_the_same_features(tmp_path, name, arrays):
    found = load_features(write(tmp_path / name, arrays))
    np.testing.assert_array_equal(found.query.features, QUERY)
    np.testing.assert_array_equal(found.gallery.features, GALLERY)
    assert (found.query.pids.tolist(), found.query.camids.tolist()) == (Q_PIDS.tolist(), Q_CAMIDS.tolist())
    assert (found.gallery.pids.tolist(), found.gallery.camids.tolist()) == (G_PIDS.tolist(), G_CAMIDS.tolist())
    assert rank(found).num_junk == 1


def write_npy(folder, lines):
    np.save(folder / "q.npy", QUERY)
    np.save(folder / "g.npy", GALLERY)
    (folder / "l.csv").write_text("\n".join(["split,pid,camid,path", *lines]) + "\n")
    return folder / "q.npy", folder / "g.npy", folder / "l.csv"


LINES = [f"query,{pid},{camid},q{pid}.jpg" for pid, camid in zip(Q_PIDS, Q_CAMIDS, strict=True)]
LINES += [f"gallery,{pid},{camid}," for pid, camid in zip(G_PIDS, G_CAMIDS, strict=True)]


def test_arrays_and_a_table_give_the_same_features(tmp_path):
    found = load_features_and_labels(*write_npy(tmp_path, LINES))
    np.testing.assert_array_equal(found.features, np.concatenate([QUERY, GALLERY]))
    assert found.pids.tolist() == [*Q_PIDS, *G_PIDS]
    assert found.paths.tolist()[:4] == ["q7.jpg", "q8.jpg", "q9.jpg", "gallery 0"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_arrays_stay_in_their_files_and_rank_the_same(tmp_path, monkeypatch, dtype):
    from reid_eval import features as module

    query, gallery, labels = write_npy(tmp_path, LINES)
    for file, vectors in ((query, QUERY), (gallery, GALLERY)):
        np.save(file, vectors.astype(dtype))
    whole = load_features_and_labels(query, gallery, labels)
    monkeypatch.setattr(module, "_MAPPED_BYTES", 1)
    monkeypatch.setattr(module, "_FINGERPRINTED", 3)
    mapped = load_features_and_labels(query, gallery, labels)
    assert (module.is_mapped(mapped.features), module.is_mapped(whole.features)) == (True, False)
    assert mapped.fingerprint == whole.fingerprint
    for rows in (slice(1, 6), slice(3, 6), slice(0, 3), slice(4, 4), slice(6, 99), np.array([7, 0, 4]), 3):
        np.testing.assert_array_equal(mapped.features[rows], whole.features[rows])
    for metric in ("cosine", "euclidean", "dot"):
        one, other = (rank(some, metric=metric) for some in (whole, mapped))
        np.testing.assert_array_equal(other.plain.places, one.plain.places)
    reranked = [rank(some, rerank=RerankParams(3, 2)).reranked.map_hits for some in (whole, mapped)]
    assert reranked[0] == reranked[1]
    mapped.save(tmp_path / "f.npz")
    np.testing.assert_array_equal(ReidFeatures.load(tmp_path / "f.npz").features, whole.features)


def test_large_arrays_in_files_are_checked_too(tmp_path, monkeypatch):
    from reid_eval import features as module

    monkeypatch.setattr(module, "_MAPPED_BYTES", 1)
    query, gallery, labels = write_npy(tmp_path, LINES)
    np.save(gallery, np.where(np.arange(5)[:, None] == 3, 1e300, GALLERY.astype(float)))
    with pytest.raises(FeatureFileError, match="1 of 8 vectors hold NaN or infinite values, the first is row 6"):
        load_features_and_labels(query, gallery, labels)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (LINES[:-1], "4 lines of split gallery, expected 5"),
        (["train,1,1,", *LINES], "line 2 has split 'train'"),
        (["query,x,1,", *LINES], "line 2 has pid 'x'"),
    ],
    ids=["too-few", "split", "no-number"],
)
def test_a_table_that_does_not_fit_names_the_line(tmp_path, lines, words):
    with pytest.raises(FeatureFileError, match=words):
        load_features_and_labels(*write_npy(tmp_path, lines))


def test_a_table_without_its_columns_is_refused(tmp_path):
    query, gallery, labels = write_npy(tmp_path, [])
    labels.write_text("pid,camera\n")
    with pytest.raises(FeatureFileError, match="column split, camid missing, found pid, camera"):
        load_features_and_labels(query, gallery, labels)


def test_pictures_of_a_second_file_are_pooled_into_their_query(tmp_path):
    write(tmp_path / "f.mat", OLD_NAMES)
    more = {"mquery_f": GALLERY[:2], "mquery_label": [7, 7], "mquery_cam": [1, 1]}
    savemat(tmp_path / "m.mat", more)
    found = load_features(tmp_path / "f.mat", multi_query=tmp_path / "m.mat")
    np.testing.assert_array_equal(found.split("multi-query").features, GALLERY[:2])
    files = ["--features", str(tmp_path / "f.mat"), "--multi-query-features", str(tmp_path / "m.mat")]
    result = CliRunner().invoke(main, ["rank", *files, "--multi-query", "mean"])
    assert (result.exit_code, "multi-query (mean" in result.output) == (0, True), result.output
    assert "2 queries have no same-camera pictures" in result.output


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def damaged(folder, kind):
    """A file and what is said about it."""
    match kind:
        case "pickle-in-pt":
            torch.save({"query_f": Evil()}, folder / "f.pt")
            return folder / "f.pt", "pickled objects"
        case "bare-pickle":
            (folder / "f.pt").write_bytes(pickle.dumps({"query_f": Evil()}))
            return folder / "f.pt", "pickled objects"
        case "list-in-pt":
            torch.save([1, 2], folder / "f.pt")
            return folder / "f.pt", "found list, expected a dictionary"
        case "hdf5":
            (folder / "f.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
            return folder / "f.mat", "MATLAB 7.3"
        case "half-mat" | "half-npz" | "half-pt":
            file = write(folder / f"f.{kind[5:]}", OLD_NAMES)
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            return file, "damaged"
        case "empty-mat":
            (folder / "f.mat").touch()
            return folder / "f.mat", "is empty"
        case "absent":
            return folder / "f.mat", "no such file"
        case "suffix":
            (folder / "f.csv").touch()
            return folder / "f.csv", "not from .csv"
        case "missing":
            return write(folder / "f.npz", {"qf": QUERY, "x": 1}), "query_label, query_cam missing, found qf, x"
        case "transposed":
            return write(folder / "f.npz", {**SHORT_NAMES, "gf": GALLERY.T}), "they lie transposed"
        case "lengths":
            return write(folder / "f.npz", {**SHORT_NAMES, "q_pids": Q_PIDS[:2]}), "2 identities"
        case "depth":
            return write(folder / "f.npz", {**SHORT_NAMES, "qf": QUERY[:, :3]}), "query 3, gallery 4"
        case "fractions":
            return write(folder / "f.npz", {**SHORT_NAMES, "q_pids": Q_PIDS + 0.5}), "expected whole numbers"
        case "num-query":
            return write(folder / "f.npz", {**ONE_ARRAY, "num_query": 8}), "num_query is 8"
        case "nan":
            return write(folder / "f.npz", {**SHORT_NAMES, "qf": QUERY * np.nan}), "3 of 8 vectors hold NaN"


KINDS = ["pickle-in-pt", "bare-pickle", "list-in-pt", "hdf5", "half-mat", "half-npz", "half-pt", "empty-mat", "absent"]
KINDS += ["suffix", "missing", "transposed", "lengths", "depth", "fractions", "num-query", "nan"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_1(tmp_path, kind):
    file, words = damaged(tmp_path, kind)
    result = CliRunner().invoke(main, ["rank", "--features", str(file)])
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (1, 1, "")
    assert words in result.stderr
    assert str(file) in result.stderr


def test_bits_and_half_precision_are_features():
    columns = {"pids": [1, 1], "camids": [1, 2], "splits": ["query", "gallery"], "paths": ["a", "b"]}
    for dtype in (np.float16, np.float64, bool, np.uint8):
        found = ReidFeatures(features=np.array([[1, 0], [0, 1]], dtype=dtype), **columns)
        assert (found.features.dtype, found.features.tolist()) == (np.float32, [[1, 0], [0, 1]])


def test_a_large_feature_file_is_mapped_and_still_checked(tmp_path, monkeypatch):
    from reid_eval import features as module

    file = tmp_path / "f.npz"
    whole = load_features(write(tmp_path / "old.npz", OLD_NAMES))
    whole.save(file)
    assert not module.is_mapped(ReidFeatures.load(file).features)
    monkeypatch.setattr(module, "_MAPPED_BYTES", 1)
    mapped = ReidFeatures.load(file)
    assert module.is_mapped(mapped.features)
    assert (mapped.fingerprint, rank(mapped).map_hits) == (whole.fingerprint, rank(whole).map_hits)
    content = bytearray(file.read_bytes())
    content[content.index(QUERY.tobytes()) + 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(FeatureFileError, match="CRC"):
        ReidFeatures.load(file)
