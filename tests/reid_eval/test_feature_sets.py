import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from reid_eval.feature_sets import FeatureSet, FeatureSetError, frechet_of_sets, is_statistics_file
from reid_eval.frechet import frechet_distance
from reid_eval.set_results import fid_result


def vectors(seed: int = 0, count: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def made(seed: int = 0, **changes) -> FeatureSet:
    features = vectors(seed)
    known = {
        "extractor": "mean colour",
        "name": "mean_colour",
        "features": features,
        "files": tuple(f"{number}.png" for number in range(len(features))),
        "pictures": {"folder": "real", "images": len(features), "fingerprint": "0" * 16, "codecs": {"PNG": 30}},
        "weights": {"colour": "ab" * 32},
    }
    return FeatureSet(**{**known, **changes})


def moments(seed: int = 0) -> dict[str, np.ndarray]:
    return {"mu": vectors(seed).mean(axis=0), "sigma": np.cov(vectors(seed), rowvar=False)}


def test_a_file_gives_back_what_was_saved(tmp_path):
    made().save(tmp_path / "real.npz")
    found = FeatureSet.load(tmp_path / "real.npz")
    assert (found.extractor, found.name, found.weights, found.pictures) == (
        made().extractor,
        made().name,
        made().weights,
        made().pictures,
    )
    np.testing.assert_array_equal(found.features, made().features)
    np.testing.assert_array_equal(found.covariance, made().covariance)
    assert is_statistics_file(tmp_path / "real.npz")


def test_an_array_that_nobody_needs_condemns_no_file(tmp_path):
    np.savez(tmp_path / "a.npz", **moments(), names=np.array([{"an": "object"}, None], dtype=object))
    found = FeatureSet.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.mean, moments()["mu"])
    assert not is_statistics_file(tmp_path / "a.npz")


def test_a_file_of_version_0_1_is_read(tmp_path):
    card = {"extractor": "e", "name": "inception", "quotable": True, "pictures": {"folder": "real", "images": 30}}
    own = made()
    arrays = {"mu": own.mean, "sigma": own.covariance, "features": own.features, "files": np.array(own.files)}
    np.savez(tmp_path / "old.npz", **arrays, format=1, card=json.dumps({**card, "reid_eval": "0.1.0"}))
    found = FeatureSet.load(tmp_path / "old.npz")
    assert (found.count, found.weights, found.extractor) == (30, {}, "e")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigma": None}, "holds mu; expected mu and sigma"),
        ({"mu": np.zeros(5)}, "mu of shape (5,) and sigma of (6, 6) do not belong together"),
        ({"mu": np.zeros((1, 6))}, "do not belong together"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "do not belong together"),
        ({"sigma": np.eye(6) + 0j}, "sigma of type complex128, expected real numbers"),
        ({"sigma": np.full((6, 6), "1")}, "sigma of type <U1, expected real numbers"),
        ({"sigma": np.full((6, 6), np.nan)}, "sigma holds values that are not finite"),
        ({"mu": np.array([None] * 6)}, "Python objects"),
        ({"card": "{}"}, "format missing beside card, mu, sigma"),
        ({"card": "{}", "format": 1}, "cannot be read ('extractor')"),
        ({"card": "[" * 5000, "format": 1}, "nested too deeply"),
        ({"card": "{}", "format": 7}, "statistics format 7, expected 1"),
        ({"card": "{}", "format": np.zeros(2)}, "cannot be read"),
    ],
)
def test_statistics_that_cannot_be_used_are_explained_in_one_line(tmp_path, change, words):
    arrays = {name: value for name, value in {**moments(), **change}.items() if value is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(FeatureSetError, match=r"bad\.npz: ") as refusal:
        FeatureSet.load(tmp_path / "bad.npz")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("extractor", 3),
        ("name", "../x"),
        ("quotable", "no"),
        ("pictures", [1]),
        ("pictures", {"folder": "real", "images": -1}),
        ("pictures", {"folder": "real", "images": "many"}),
        ("pictures", {"folder": "real", "codecs": {"PNG": "all"}}),
        ("pictures", {"folder": 7}),
        ("weights", {"a": 1}),
    ],
)
def test_a_card_with_odd_values_is_refused(tmp_path, key, value):
    made().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        arrays = dict(stored)
    card = json.loads(str(arrays["card"]))
    np.savez(tmp_path / "b.npz", **{**arrays, "card": json.dumps({**card, key: value})})
    with pytest.raises(FeatureSetError, match=r"b\.npz: .*make it again with reid-eval stats"):
        FeatureSet.load(tmp_path / "b.npz")


@pytest.mark.parametrize("which", ["features", "mu", "sigma", "files"])
def test_arrays_that_do_not_belong_together_are_refused(tmp_path, which):
    made().save(tmp_path / "a.npz")
    made(seed=1).save(tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as first, np.load(tmp_path / "b.npz") as second:
        other = second[which] if which != "files" else second[which][:-1]
        np.savez(tmp_path / "c.npz", **{**dict(first), which: other})
    with pytest.raises(FeatureSetError, match=r"not those of the features beside them|names of files"):
        FeatureSet.load(tmp_path / "c.npz")


def test_one_turned_bit_anywhere_is_noticed_or_changes_nothing(tmp_path):
    whole = made()
    whole.save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    rng = np.random.default_rng(0)
    noticed = []
    for place in rng.integers(0, 8 * len(content), 300):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << (place % 8)
        (tmp_path / "b.npz").write_bytes(changed)
        try:
            found = FeatureSet.load(tmp_path / "b.npz")
        except FeatureSetError as error:
            noticed.append(str(error))
        else:
            np.testing.assert_array_equal(found.features, whole.features)
            np.testing.assert_array_equal(found.covariance, whole.covariance)
            assert (found.extractor, found.pictures) == (whole.extractor, whole.pictures)
    assert len(noticed) > 250
    assert not any("\n" in line for line in noticed)


def test_what_would_unpack_to_far_more_than_its_file_is_refused_before_it_takes_memory(tmp_path):
    size = 6000  # 288 MB of zeros
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("mu", (size,)), ("sigma", (size, size))):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w") as member:
                member.write(head.getvalue())
                for _ in range(shape[0]):
                    member.write(bytes(8 * (size if len(shape) == 2 else 1)))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with pytest.raises(FeatureSetError, match="would unpack to 274 MiB"):
        FeatureSet.load(tmp_path / "bomb.npz")


def test_numbers_of_few_bits_are_remarked_beside_the_distance(tmp_path):
    for name, seed, kind in (("a", 0, "f2"), ("b", 1, "f8")):
        np.savez(tmp_path / f"{name}.npz", **{key: value.astype(kind) for key, value in moments(seed).items()})
    result = fid_result(FeatureSet.load(tmp_path / "a.npz"), FeatureSet.load(tmp_path / "b.npz"))
    expected = frechet_distance(*moments(0).values(), *moments(1).values())
    assert result.value == pytest.approx(expected, rel=1e-2)
    assert f"{tmp_path / 'a.npz'}: mu and sigma are kept in 16 bits." in result.made_by["remarks"]
    assert not any("b.npz: mu" in remark for remark in result.made_by["remarks"])


def test_weights_of_another_content_are_another_extractor():
    other = made(seed=1, weights={"colour": "ab" * 31 + "ac"})
    with pytest.raises(FeatureSetError, match=f"made with different weights: colour, SHA-256 {'ab' * 32} against"):
        frechet_of_sets(made(), other)
    result = fid_result(made(), made(seed=1))
    assert result.made_by["how"]["weights"] == {"colour": "ab" * 32}


def test_a_file_that_is_no_archive_or_no_file_is_one_line(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "renamed.npz")
    (tmp_path / "folder.npz").mkdir()
    for name, words in {"renamed": "not a zip file", "folder": "is a folder", "absent": "no such file"}.items():
        with pytest.raises(
            FeatureSetError, match=rf"{name}\.npz: .*expected a folder of pictures, or a statistics"
        ) as one:
            FeatureSet.load(Path(tmp_path / f"{name}.npz"))
        assert words in str(one.value)
