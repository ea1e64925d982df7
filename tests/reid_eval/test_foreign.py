import os
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.io import savemat

from reid_eval.cli import main
from reid_eval.features import FeatureFileError, ReidFeatures
from reid_eval.foreign import load_features, load_features_and_labels, load_matrix_and_labels
from reid_eval.ranking import RankingError, rank
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
        (["query,,1,", *LINES], "line 2 names nobody"),
        (["query,1", *LINES], "line 2: too few values"),
    ],
    ids=["too-few", "split", "nobody", "short"],
)
def test_a_table_that_does_not_fit_names_the_line(tmp_path, lines, words):
    with pytest.raises(FeatureFileError, match=words):
        load_features_and_labels(*write_npy(tmp_path, lines))


def test_a_table_without_its_columns_is_refused(tmp_path):
    query, gallery, labels = write_npy(tmp_path, [])
    labels.write_text("pid,camera\n")
    with pytest.raises(FeatureFileError, match="no column split, found pid, camera"):
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
            return file, "cannot be read" if kind != "half-mat" else "damaged"
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


# --- what a file is, its content tells ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("f.mat", "f.MAT"),
        ("f.npz", "f.NPZ"),
        ("f.npz", "f.npy"),
        ("f.npz", "f.mat"),
        ("f.pt", "f.npz"),
        ("f.pth", "features"),
        ("f.mat", "f.npz"),
    ],
)
def test_a_file_under_another_suffix_is_read_all_the_same(tmp_path, written, named):
    write(tmp_path / written, OLD_NAMES).rename(tmp_path / named)
    np.testing.assert_array_equal(load_features(tmp_path / named).query.features, QUERY)


def test_an_array_under_the_wrong_suffix_is_told_what_it_is(tmp_path):
    np.save(tmp_path / "f.npy", QUERY)
    (tmp_path / "f.npy").rename(tmp_path / "f.npz")
    with pytest.raises(FeatureFileError, match=r"f\.npz: holds one array \(\.npy\) and no labels; give a table"):
        load_features(tmp_path / "f.npz")


@pytest.mark.parametrize("suffix", ["npz", "mat", "pt"])
def test_a_pipe_is_no_feature_file_and_does_not_hang(tmp_path, suffix):
    os.mkfifo(tmp_path / f"f.{suffix}")
    with pytest.raises(FeatureFileError, match="is a pipe or a device"):
        load_features(tmp_path / f"f.{suffix}")


# --- tensors and lists of any kind ----------------------------------------------------------------------------------


def tensors(**changes):
    return {**{name: torch.as_tensor(value) for name, value in OLD_NAMES.items()}, **changes}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [
        {"query_f": torch.tensor(QUERY).bfloat16()},
        {"query_f": torch.tensor(QUERY).half()},
        {"query_f": torch.tensor(QUERY).double().requires_grad_()},
        {"query_f": torch.nn.Parameter(torch.tensor(QUERY))},
        {"query_f": torch.tensor(QUERY).to(torch.float8_e4m3fn)},
        {"query_f": "quantised"},
        {"query_f": [torch.tensor(row) for row in QUERY]},
        {"query_label": [7, 8, 9], "query_cam": (1, 1, 2)},
        {"query_path": ["a", "b", "c"]},
        {"note": {"any": [1, None]}, "sparse": torch.eye(3).to_sparse()},
    ],
    ids=["bfloat16", "half", "gradient", "parameter", "float8", "quantised", "rows", "lists", "texts", "not-needed"],
)
def test_tensors_of_any_kind_are_read(tmp_path, changes):
    if changes.get("query_f") == "quantised":
        changes = {"query_f": torch.quantize_per_tensor(torch.tensor(QUERY), 0.01, 0, torch.qint8)}
    torch.save(tensors(**changes), tmp_path / "f.pt")
    found = load_features(tmp_path / "f.pt")
    assert np.abs(found.query.features - QUERY).max() < 0.2
    assert found.query.pids.tolist() == Q_PIDS.tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_f": torch.tensor(QUERY).to_sparse()}, r"sparse tensor .* save tensor.to_dense\(\)"),
        ({"query_f": torch.tensor(QUERY).cfloat()}, "complex64"),
        ({"query_f": torch.empty(3, 4, device="meta")}, "expected query_f of plain numbers"),
        ({"query_f": QUERY.tolist()}, "a list of other things than numbers or texts"),
        ({"query_label": {"a": 1}}, "found dict"),
        ({"query_f": torch.zeros(1).expand(200_000, 1024)}, "200000, 1024"),
        ({name: torch.zeros(1).expand(200_000, 1024) for name in ("query_f", "gallery_f")}
         | {name: torch.zeros(1).long().expand(200_000) for name in OLD_NAMES if not name.endswith("_f")},
         "query_f would unpack to 781 MiB"),
    ],
    ids=["sparse", "complex", "meta", "list-of-lists", "dictionary", "unlike", "expanded"],
)  # fmt: skip
def test_tensors_that_are_no_vectors_are_one_line(tmp_path, changes, words):
    torch.save(tensors(**changes), tmp_path / "f.pt")
    with pytest.raises(FeatureFileError, match=words) as error:
        load_features(tmp_path / "f.pt")
    assert "\n" not in str(error.value)


def test_a_flipped_bit_in_tensors_is_noticed(tmp_path):
    file = write(tmp_path / "f.pt", OLD_NAMES)
    content = bytearray(file.read_bytes())
    content[content.index(QUERY.tobytes()) + 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(FeatureFileError, match="the checksum of"):
        load_features(file)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_label": Q_PIDS * 1e300}, "the pids of split query are float64, expected whole numbers"),
        ({"query_label": Q_PIDS * np.nan}, "expected whole numbers"),
        ({"query_label": Q_PIDS * np.inf}, "expected whole numbers"),
        ({"gallery_cam": G_CAMIDS * -np.inf}, "expected whole numbers"),
        ({"query_cam": Q_CAMIDS[:2]}, "split query has 2 camids and 3 identities"),
        ({"query_path": np.array(["a.jpg"])}, "split query has 1 paths and 3 identities"),
        ({"query_label": Q_PIDS.astype(np.uint64) + np.uint64(2**63)}, "at most 64 bits"),
        ({"query_cam": np.array([1 + 1j] * 3)}, "camids of split query are complex128"),
        ({"query_f": QUERY[:, :, None]}, r"of shape \(3, 4, 1\), expected numbers"),
        ({"query_f": np.array([["a"] * 4] * 3)}, "<U1 of shape"),
    ],
)
def test_labels_that_are_none_are_one_line(tmp_path, changes, words):
    with pytest.raises(FeatureFileError, match=words):
        load_features(write(tmp_path / "f.npz", {**OLD_NAMES, **changes}))


def test_labels_are_compared_before_vectors_are_unpacked(tmp_path):
    many = np.zeros((200_000, 128), np.float32)
    np.savez_compressed(tmp_path / "f.npz", **{**OLD_NAMES, "query_f": many})
    with pytest.raises(FeatureFileError, match=r"split query has features of shape \(200000, 128\) and 3 identities"):
        load_features(tmp_path / "f.npz")


def test_an_array_that_nobody_needs_never_condemns_a_file(tmp_path):
    odd = np.array([{"a": 1}], dtype=object)
    found = load_features(write(tmp_path / "f.npz", {**OLD_NAMES, "note": odd}))
    np.testing.assert_array_equal(found.query.features, QUERY)


NAMES = ["Bob", "Anna Müller", "Zoë"]
PEOPLE = (
    [("Bob", 1), ("Anna Müller", 1), ("Zoë", 2)],
    [("Bob", 2), ("Anna Müller", 2), ("Zoë", 1), ("-1", 1), ("Bob", 3)],
)


def test_identities_may_be_words_in_arrays_and_only_minus_1_keeps_its_meaning(tmp_path):
    labels = {"query_label": np.array(NAMES), "gallery_label": np.array([*NAMES, "-1", "0"])}
    found = load_features(write(tmp_path / "f.npz", {**OLD_NAMES, **labels}))
    assert [found.name_of(pid) for pid in found.pids] == [*NAMES, *NAMES, -1, "0"]
    assert rank(found).num_junk == 1
    found.save(tmp_path / "ours.npz")
    assert ReidFeatures.load(tmp_path / "ours.npz").query.name_of(found.pids[0]) == "Bob"


def test_people_of_a_second_file_are_the_same_people(tmp_path):
    labels = {"query_label": np.array(NAMES), "gallery_label": np.array([*NAMES, "-1", "Bob"])}
    write(tmp_path / "f.npz", {**OLD_NAMES, **labels})
    more = {"mquery_f": GALLERY[:2], "mquery_label": np.array(["Zoë", "Aaron"]), "mquery_cam": np.array([2, 2])}
    np.savez(tmp_path / "m.npz", **more)
    found = load_features(tmp_path / "f.npz", multi_query=tmp_path / "m.npz")
    assert [found.name_of(pid) for pid in found.split("multi-query").pids] == ["Zoë", "Aaron"]
    assert found.name_of(found.query.pids[2]) == "Zoë"
    found.save(tmp_path / "ours.npz")
    again = load_features(tmp_path / "ours.npz", multi_query=tmp_path / "m.npz")
    assert [again.name_of(pid) for pid in again.query.pids] == NAMES


TABLES = {
    "plain": ("split,pid,camid,path", ",", "utf-8", "/"),
    "excel": ("Split;Person;Camera;Filename", ";", "utf-8-sig", "/"),
    "windows": ("SET\tID\tcam\timage", "\t", "utf-16", "\\"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_labels_is_read_whoever_wrote_it(tmp_path, kind):
    header, delimiter, encoding, slash = TABLES[kind]
    lines = [
        delimiter.join([split, name, str(camid), f"dir{slash}{number}.jpg"])
        for split, people in zip(("Query", "gallery"), PEOPLE, strict=True)
        for number, (name, camid) in enumerate(people)
    ]
    query, gallery, labels = write_npy(tmp_path, [])
    labels.write_bytes("\r\n".join([header, *lines]).encode(encoding))
    found = load_features_and_labels(query, gallery, labels)
    assert [found.name_of(pid) for pid in found.query.pids] == ["Bob", "Anna Müller", "Zoë"]
    assert found.camids.tolist() == [1, 1, 2, 2, 2, 1, 1, 3]
    assert found.paths.tolist()[:2] == ["dir/0.jpg", "dir/1.jpg"]
    assert found.gallery.pids[3] == -1


def one_matrix(folder, lines, vectors=None):
    np.save(folder / "m.npy", np.concatenate([QUERY, GALLERY]) if vectors is None else vectors)
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    return folder / "m.npy", folder / "people.csv"


def test_one_matrix_and_one_table_is_enough(tmp_path):
    lines = ["filename,person", *(f"{n}.jpg,{name}" for n, name in enumerate(["Bob", "Anna"] * 4))]
    found = load_matrix_and_labels(*one_matrix(tmp_path, lines))
    assert (set(found.splits), set(found.camids)) == ({"all"}, {-1})
    assert [found.name_of(pid) for pid in found.pids[:2]] == ["Bob", "Anna"]
    report = rank(found, protocol="leave-one-out")
    assert (report.num_valid_queries, report.num_gallery) == (8, 8)
    with pytest.raises(RankingError, match="without them rank by the protocol leave-one-out"):
        rank(found)


def test_identity_0_of_one_matrix_is_a_person(tmp_path):
    lines = ["pid", *("0" if n % 2 else "1" for n in range(8))]
    report = rank(load_matrix_and_labels(*one_matrix(tmp_path, lines)), protocol="leave-one-out")
    assert (report.num_valid_queries, report.num_distractors) == (8, 0)


def test_the_splits_of_one_table_are_ranked_as_always(tmp_path):
    splits = ["query"] * 3 + ["gallery"] * 5
    camids = [*Q_CAMIDS, *G_CAMIDS]
    rows = zip(splits, [*Q_PIDS, *G_PIDS], camids, strict=True)
    lines = ["split,pid,camid", *(",".join(map(str, row)) for row in rows)]
    found = load_matrix_and_labels(*one_matrix(tmp_path, lines))
    expected = load_features_and_labels(*write_npy(tmp_path, LINES))
    assert rank(found).map_hits == rank(expected).map_hits


def test_cameras_may_be_words_or_missing_here_and_there(tmp_path):
    lines = ["pid,camid", *(f"{n % 4},{('door', 'yard', '', '-1')[n // 2]}" for n in range(8))]
    found = load_matrix_and_labels(*one_matrix(tmp_path, lines))
    assert [found.camera_name(camid) for camid in found.camids] == ["door"] * 2 + ["yard"] * 2 + [-1] * 4


@pytest.mark.parametrize("suffix", ["npz", "pt", "mat"])
def test_the_only_matrix_of_another_file_will_do(tmp_path, suffix):
    vectors = np.concatenate([QUERY, GALLERY])
    match suffix:
        case "npz":
            np.savez(tmp_path / "m.npz", embeddings=vectors, epoch=3)
        case "pt":
            torch.save(torch.tensor(vectors), tmp_path / "m.pt")
        case "mat":
            savemat(tmp_path / "m.mat", {"embeddings": vectors})
    (tmp_path / "people.csv").write_text("pid\n" + "1\n2\n" * 4)
    found = load_matrix_and_labels(tmp_path / f"m.{suffix}", tmp_path / "people.csv")
    np.testing.assert_array_equal(found.features, vectors)


def test_a_table_of_another_length_is_refused(tmp_path):
    with pytest.raises(FeatureFileError, match=r"people\.csv: 2 lines, expected 8, as many as vectors in .*m\.npy"):
        load_matrix_and_labels(*one_matrix(tmp_path, ["pid", "1", "2"]))
    with pytest.raises(FeatureFileError, match="transposed"):
        load_matrix_and_labels(*one_matrix(tmp_path, ["pid", "1", "2", "1", "2"], vectors=np.ones((3, 4))))


def test_distances_in_place_of_vectors_are_told(tmp_path):
    points = np.concatenate([QUERY, GALLERY])
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    with pytest.raises(FeatureFileError, match=r"looks like distances .*rank_distances"):
        load_matrix_and_labels(*one_matrix(tmp_path, ["pid", *["1", "2"] * 4], distances))
    lines = ["pid,split", *["1,query"] * 3, *["1,gallery"] * 5]
    with pytest.raises(FeatureFileError, match=r"looks like distances .a row for each query"):
        load_matrix_and_labels(*one_matrix(tmp_path, lines, distances[:3, 3:]))


def test_words_may_be_stored_as_bytes(tmp_path):
    people = {
        "query_label": np.array([b"Anna", "Müller".encode(), b"Z"]),
        "gallery_label": np.array([b"Anna"] * 5),
    }
    found = load_features(write(tmp_path / "f.npz", {**OLD_NAMES, **people, "query_path": np.array([b"a.jpg"] * 3)}))
    assert [found.name_of(pid) for pid in found.query.pids] == ["Anna", "Müller", "Z"]
    assert found.query.paths[0] == "a.jpg"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_without_a_shape_is_one_line(tmp_path):
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(FeatureFileError, match="query_f of plain numbers"):
        load_features(write(tmp_path / "f.pt", {**OLD_NAMES, "query_f": ragged}))
