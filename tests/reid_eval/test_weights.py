import argparse
import dataclasses
import hashlib
import json
import logging
import re
import tarfile
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from click.testing import CliRunner

from reid_eval import weights
from reid_eval.cli import main
from reid_eval.extractors import extractor_from_name
from reid_eval.files import file_fingerprint
from reid_eval.reading import sealed
from reid_eval.weights import (
    KNOWN,
    WeightFile,
    WeightFileError,
    cache_folder,
    find_weights,
    import_weights,
    locate,
    read_tensors,
    verify_weights,
    weights_status,
)


@pytest.fixture
def known(tmp_path, monkeypatch) -> WeightFile:
    """A known file of a few bytes, lying in a folder under another name."""
    (tmp_path / "downloads").mkdir()
    file = tmp_path / "downloads" / "renamed.pth"
    file.write_bytes(b"weights")
    made = WeightFile("inception", "net.pth", file_fingerprint(file)[:8], "7 bytes", "tests")
    monkeypatch.setattr(weights, "KNOWN", (made,))
    return made


def test_import_knows_a_file_by_its_content_and_it_is_found_then(tmp_path, known):
    ((found, file),) = import_weights(tmp_path / "downloads")
    assert (found, file.name, file.read_bytes()) == (known, "net.pth", b"weights")
    assert find_weights(known, offline=True) == file
    assert [status.state for status in weights_status(verify=True)] == ["prefix verified"]
    file.write_bytes(b"damaged")
    assert [status.state for status in weights_status(verify=True)] == ["damaged"]
    with pytest.raises(WeightFileError, match=r"damaged, or not net\.pth"):
        find_weights(known)


def test_a_folder_named_by_the_environment_comes_first(tmp_path, known, monkeypatch):
    (tmp_path / "downloads" / "renamed.pth").rename(tmp_path / "downloads" / "net.pth")
    monkeypatch.setenv("REID_WEIGHTS", str(tmp_path / "downloads"))
    assert find_weights(known) == tmp_path / "downloads" / "net.pth"


@pytest.mark.parametrize("way", ["option", "environment"])
def test_offline_nothing_is_fetched_and_file_size_and_checksum_are_named(known, monkeypatch, way):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    if way == "environment":
        monkeypatch.setenv("REID_OFFLINE", "1")
    with pytest.raises(WeightFileError) as refusal:
        find_weights(known, offline=way == "option")
    for words in ("net.pth", "7 bytes", known.sha256_start, "fetching is forbidden", "REID_WEIGHTS", "--weights FILE"):
        assert words in str(refusal.value)


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("invalid hash"), HTTPException("cut off")])
def test_weights_that_cannot_be_fetched_stop_with_the_remedy(monkeypatch, caplog, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fails)
    with caplog.at_level(logging.WARNING), pytest.raises(WeightFileError) as refusal:
        extractor_from_name("inception")
    assert "\n" not in str(refusal.value)
    for words in ("91 MiB", "6726825d", "https://", "--weights FILE"):
        assert words in str(refusal.value)
    assert "fetching" in caplog.text  # announced before it was tried


def test_a_named_file_that_is_not_there_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(WeightFileError, match=r"mine\.pth: no such file, expected pt_inception"):
        extractor_from_name("inception", weights=tmp_path / "mine.pth")


def test_a_folder_without_known_files_is_refused(tmp_path):
    with pytest.raises(WeightFileError, match=r"0 files \.pth or \.pt below it"):
        import_weights(tmp_path)
    with pytest.raises(WeightFileError, match="no such folder"):
        import_weights(tmp_path / "nowhere")


def test_known_files_say_their_checksum_in_their_name_where_they_have_one():
    for file in KNOWN:
        if "-" in file.file and file.name != "lpips-alex":
            assert file.file.endswith(f"-{file.sha256_start}.pth")


# --- whole checksums --------------------------------------------------------------------------------------------------


def test_the_whole_checksum_is_remembered_and_another_file_with_the_same_beginning_is_refused(tmp_path, known):
    file = tmp_path / "downloads" / "net.pth"
    file.write_bytes(b"weights")
    sha256 = verify_weights(known, file)
    assert verify_weights(known, file) == sha256 == file_fingerprint(file)
    record = cache_folder() / "weights" / "sha256.json"
    other = sha256[:8] + "0" * 56  # what nobody can make a file of, so the record is what differs here
    record.write_text(sealed({known.file: other}))
    with pytest.raises(WeightFileError, match=rf"net\.pth: SHA-256 {sha256} begins as published, but {other} was used"):
        verify_weights(known, file)
    assert [status.state for status in weights_status(verify=True)] == ["missing"]


def test_a_damaged_record_of_checksums_is_begun_again(tmp_path, known, caplog):
    file = tmp_path / "downloads" / "renamed.pth"
    verify_weights(known, file)
    record = cache_folder() / "weights" / "sha256.json"
    record.write_text(record.read_text().replace("net.pth", "nut.pth"))
    assert verify_weights(known, file) == file_fingerprint(file)
    assert "begun again: " in caplog.text
    assert "net.pth" in record.read_text()


def test_a_cache_that_cannot_be_written_costs_no_weights(tmp_path, known, monkeypatch):
    (tmp_path / "cache").write_text("mine")
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "downloads" / "renamed.pth"
    assert verify_weights(known, file) == file_fingerprint(file)


def test_only_a_checksum_that_is_published_whole_makes_a_file_whole(tmp_path, known, monkeypatch):
    file = tmp_path / "downloads" / "renamed.pth"
    whole = dataclasses.replace(known, sha256_start=file_fingerprint(file))
    monkeypatch.setattr(weights, "KNOWN", (whole,))
    import_weights(tmp_path / "downloads")
    (status,) = weights_status(verify=True)
    assert (status.state, status.sha256) == ("whole", file_fingerprint(file))


def test_list_and_verify_say_what_is_known(tmp_path, known):
    import_weights(tmp_path / "downloads")
    listed, verified = (CliRunner().invoke(main, ["weights", command, "--json"]) for command in ("list", "verify"))
    (first,), (second,) = (json.loads(result.stdout)["weights"] for result in (listed, verified))
    assert (first["state"], first["found_sha256"]) == ("unchecked", "")
    assert (second["state"], second["found_sha256"]) == ("prefix verified", hashlib.sha256(b"weights").hexdigest())
    assert second["found_sha256"] in CliRunner().invoke(main, ["weights", "verify"]).stdout
    Path(second["path"]).write_bytes(b"damaged")
    damaged = CliRunner().invoke(main, ["weights", "verify"])
    assert (damaged.exit_code, "net.pth: damaged" in damaged.stderr) == (1, True)


# --- where files lie --------------------------------------------------------------------------------------------------


def test_what_training_starts_from_is_listed_where_training_looks_for_it(tmp_path, monkeypatch):
    from reid_models.networks.resnet import make_trunk
    from reid_models.weights import WeightsError, load_trunk_weights

    (trunk,) = [file for file in KNOWN if file.purpose.endswith("network.weights=imagenet")]
    monkeypatch.setenv("REID_WEIGHTS", str(tmp_path))
    (tmp_path / trunk.file).write_bytes(b"where training does not look")
    assert locate(trunk) is None
    home = Path(torch.hub.get_dir()) / "checkpoints" / trunk.file
    home.parent.mkdir(parents=True)
    home.write_bytes(b"damaged")
    assert locate(trunk) == home
    with pytest.raises(WeightsError, match=re.escape(str(home))):
        load_trunk_weights(make_trunk("resnet50"), "imagenet")


def test_an_imported_file_that_training_starts_from_goes_to_where_training_looks(tmp_path, known, monkeypatch):
    monkeypatch.setattr(weights, "KNOWN", (dataclasses.replace(known, is_of_hub=True),))
    ((_, file),) = import_weights(tmp_path / "downloads")
    assert file == Path(torch.hub.get_dir()) / "checkpoints" / "net.pth"


@pytest.mark.parametrize(("named", "words"), [("file", "is a file"), ("nowhere", "no such folder")])
def test_folders_of_the_environment_that_are_none_are_remarked(tmp_path, known, monkeypatch, caplog, named, words):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("REID_WEIGHTS", str(tmp_path / named))
    with pytest.raises(WeightFileError):
        find_weights(known, offline=True)
    assert f"REID_WEIGHTS: {tmp_path / named}: {words}; expected folders of weight files" in caplog.text


def test_without_a_home_there_is_a_cache_folder_too(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("REID_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder().is_absolute()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_where_nothing_can_be_kept_a_file_is_fetched_for_this_time(known, monkeypatch, caplog, error):
    def fetch(address, file, hash_prefix):
        if Path(file).is_relative_to(cache_folder()):
            raise error
        Path(file).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    file = find_weights(known)
    assert (file.name, file.read_bytes()) == ("net.pth", b"weights")
    assert f"not kept for the next time: {cache_folder() / 'weights'}: {error.strerror.lower()}" in caplog.text


def test_one_unreadable_file_among_many_is_passed_over(tmp_path, known, monkeypatch, caplog):
    (tmp_path / "downloads" / "a.pth").write_bytes(b"closed")
    opened = weights.file_fingerprint

    def closed(file):
        if file.name == "a.pth":
            raise PermissionError(13, "Permission denied")
        return opened(file)

    monkeypatch.setattr(weights, "file_fingerprint", closed)
    assert len(import_weights(tmp_path / "downloads")) == 1
    assert "passed over: " in caplog.text


# --- what is in them --------------------------------------------------------------------------------------------------

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "arch": "resnet50"},
        {"epoch": 3, "model": {"state_dict": STATE}},
        {"net": STATE},
        {"state_dict_ema": STATE, "epoch": 3},
        {"model": STATE, "model_ema": {"conv.weight": torch.ones(2, 3)}, "epoch": 1},
        {f"_orig_mod.{name}": value for name, value in STATE.items()},
        {f"module.{name}": value for name, value in STATE.items()},
        {"state_dict": {f"module._orig_mod.{name}": value for name, value in STATE.items()}, "x": None},
        {name: torch.nn.Parameter(value) for name, value in STATE.items()},
    ],
)
@pytest.mark.parametrize("packed", [True, False], ids=["zip", "pickle"])
def test_tensors_are_found_under_the_names_and_entries_that_programs_give_them(tmp_path, content, packed):
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=packed)
    found = read_tensors(tmp_path / "w.pth")
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        assert torch.equal(found[name].detach(), value)


def odd_file(kind: str, file: Path) -> None:
    match kind:
        case "text":
            file.write_text("no weights")
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.mkdir()
        case "torchscript":
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
        case "tar":
            with tarfile.open(file, "w") as archive:
                archive.add(__file__, "storages")
        case "namespace":
            torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, file)
        case "list":
            torch.save([torch.zeros(2)], file)
        case "numbers":
            torch.save({"lr": 0.1, "conv.weight": torch.zeros(2)}, file)
        case "nothing":
            torch.save({}, file)
        case "sparse":
            torch.save({"conv.weight": torch.eye(3).to_sparse()}, file)
        case "quantised":
            torch.save({"conv.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, file)
        case "numbered":
            torch.save({1: torch.zeros(2)}, file)
        case "endless":
            content: dict = {"lr": 1}
            content["model"] = content
            torch.save(content, file)
        case "turned bit":
            torch.save(STATE, file)
            content = bytearray(file.read_bytes())
            content[content.index(torch.arange(6.0).numpy().tobytes()) + 9] ^= 4
            file.write_bytes(content)
        case "cut":
            torch.save(STATE, file)
            file.write_bytes(file.read_bytes()[:-300])


@pytest.mark.filterwarnings("ignore")  # of what PyTorch thinks of old kinds of files
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "expected a weight file"),
        ("empty", "expected a weight file"),
        ("folder", "is a folder"),
        ("torchscript", "a TorchScript program, expected a weight file"),
        ("tar", "a tar archive"),
        ("namespace", "holds more than tensors (argparse.Namespace), and such a file can run code"),
        ("list", "found list"),
        ("numbers", "found 'lr': float"),
        ("nothing", "found dict"),
        ("sparse", "torch.sparse_coo"),
        ("quantised", "torch.qint8"),
        ("numbered", "found '1'"),
        ("endless", "found 'lr': int"),
        ("turned bit", "the checksum of"),
        ("cut", "expected a weight file"),
    ],
)
def test_a_file_without_usable_tensors_is_one_line(tmp_path, kind, words):
    odd_file(kind, tmp_path / "w.pth")
    with pytest.raises(WeightFileError, match=r"w\.pth: ") as refusal:
        read_tensors(tmp_path / "w.pth")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
