import logging
from http.client import HTTPException
from urllib.error import URLError

import pytest
import torch

from reid_eval import weights
from reid_eval.extractors import extractor_from_name
from reid_eval.files import file_fingerprint
from reid_eval.weights import KNOWN, WeightFile, WeightFileError, find_weights, import_weights, weights_status


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
    assert [status.state for status in weights_status(verify=True)] == ["whole"]
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
