"""Whose an output is: what the same command made is replaced, an input never, anything else only when asked."""

import os

import numpy as np
import pytest

from reid_eval.errors import OutputError
from reid_eval.files import save_image, write_text
from reid_eval.outputs import begins_with, claim_file, claim_folder, is_made_by

MAKER = "reid-eval rank --plot"


def some_pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 12, 3), dtype=np.uint8)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def names_in(folder):
    return sorted(os.listdir(folder))


# --- files ----------------------------------------------------------------------------------------------------------


def test_an_absent_file_may_be_written(tmp_path):
    assert claim_file(tmp_path / "a" / "curves.png", MAKER) == tmp_path / "a" / "curves.png"
    assert names_in(tmp_path) == []


def test_a_command_whose_name_begins_alike_is_another(tmp_path):
    for maker, others in (
        ("dgnet-gen smooth-structure", ["dgnet-gen smooth"]),
        ("reid-eval rank --plot", ["reid-eval rank", "reid-eval rank --plots"]),
    ):
        save_image(tmp_path / "a.png", some_pixels(), maker=maker)
        assert is_made_by(tmp_path / "a.png", maker)
        assert not any(is_made_by(tmp_path / "a.png", other) for other in others)


def test_a_file_of_somebody_else_is_refused_unless_asked_for(tmp_path):
    file = tmp_path / "curves.png"
    file.write_text("thesis")
    with pytest.raises(OutputError, match="exists and was not made by reid-eval rank --plot; nothing was changed"):
        claim_file(file, MAKER)
    assert claim_file(file, MAKER, overwrite=True) == file
    assert file.read_text() == "thesis"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_is_known_as_the_commands_own(tmp_path, suffix):
    file = tmp_path / f"sheet.{suffix}"
    save_image(file, some_pixels(), maker="dgnet-gen swap")
    assert is_made_by(file, "dgnet-gen swap")
    assert claim_file(file, "dgnet-gen swap") == file
    with pytest.raises(OutputError, match="not made by dgnet-gen rainbow"):
        claim_file(file, "dgnet-gen rainbow")


def test_a_page_is_known_by_what_its_end_says_too(tmp_path):
    write_text(tmp_path / "page.html", "x" * (1 << 18) + f"<!-- made by {MAKER} -->")
    assert is_made_by(tmp_path / "page.html", MAKER)


def test_a_table_is_known_by_its_columns(tmp_path):
    (tmp_path / "ours.csv").write_text("query,ap\n1.jpg,0.5\n")
    (tmp_path / "theirs.csv").write_text("query,apple\n")
    assert begins_with(tmp_path / "ours.csv", "query,ap")
    assert not begins_with(tmp_path / "theirs.csv", "query,ap")
    assert not begins_with(tmp_path / "absent.csv", "query,ap")


@pytest.mark.parametrize("link", [False, True], ids=["itself", "a link to it"])
def test_an_input_is_never_replaced(tmp_path, link):
    file = out = tmp_path / "features.npz"
    file.write_bytes(b"hours of work")
    if link:
        out = tmp_path / "link.npz"
        out.symlink_to(file)
    with pytest.raises(OutputError, match="is read by this command"):
        claim_file(out, MAKER, is_ours=lambda _: True, inputs=[file], overwrite=True)


def test_a_file_in_a_folder_that_is_read_is_not_replaced_unless_it_is_ours(tmp_path):
    touch(tmp_path, "photos/1.jpg")
    with pytest.raises(OutputError, match="photos, which this command reads"):
        claim_file(tmp_path / "photos" / "1.jpg", MAKER, inputs=[tmp_path / "photos"], overwrite=True)
    assert claim_file(tmp_path / "photos" / "new.png", MAKER, inputs=[tmp_path / "photos"])


def test_a_name_has_to_end_in_one_of_the_suffixes(tmp_path):
    with pytest.raises(OutputError, match=r"a\.jpg: expected a name that ends in \.npz"):
        claim_file(tmp_path / "a.jpg", MAKER, suffixes=[".npz"])
    with pytest.raises(OutputError, match=r"ends in \.png, \.svg or \.pdf"):
        claim_file(tmp_path / "a.jpg", MAKER, suffixes=[".png", ".svg", ".pdf"], overwrite=True)
    assert claim_file(tmp_path / "A.NPZ", MAKER, suffixes=[".npz"])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        claim_file(tmp_path, MAKER, overwrite=True)


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    touch(tmp_path, "elsewhere/real.txt")
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "elsewhere" / "real.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "real.txt").read_text() == "new"


def test_a_pipe_or_a_device_is_no_output(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(OutputError, match="is a pipe or a device"):
            write_text(place, "text")


# --- folders --------------------------------------------------------------------------------------------------------


def claim(folder, inputs=()):
    return claim_folder(
        folder, "run.json", what="the run", is_ours=lambda marker: "ours" in marker.read_text(), inputs=inputs
    )


def test_a_new_an_empty_and_our_own_folder_can_be_claimed(tmp_path):
    folder = claim(tmp_path / "a" / "run")
    assert folder.is_dir()
    assert claim(folder) == folder
    touch(folder, "anything.txt")
    (folder / "run.json").write_text("ours")
    assert claim(str(folder)) == folder


def test_a_marker_of_somebody_else_does_not_make_a_folder_ours(tmp_path):
    (tmp_path / "run.json").write_text("theirs")
    with pytest.raises(OutputError, match=r"holds 1 other files or folders \(run\.json"):
        claim(tmp_path)
    assert (tmp_path / "run.json").read_text() == "theirs"


def test_hidden_files_do_not_make_a_folder_foreign(tmp_path):
    touch(tmp_path, ".DS_Store")
    claim(tmp_path)


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path):
    touch(tmp_path, "thesis.tex", "photos/1.jpg")
    with pytest.raises(OutputError) as error:
        claim(tmp_path)
    for words in (str(tmp_path), "holds 2 other files or folders (photos, ...)", "nothing was changed", "--out"):
        assert words in str(error.value)
    assert names_in(tmp_path) == ["photos", "thesis.tex"]


def test_a_file_cannot_be_claimed_as_a_folder(tmp_path):
    touch(tmp_path, "runs")
    with pytest.raises(OutputError, match="is a file; the run needs a folder"):
        claim(tmp_path / "runs")


def test_a_folder_that_is_read_is_no_place_to_write_into(tmp_path):
    with pytest.raises(OutputError, match="is read by this command"):
        claim(tmp_path, inputs=[tmp_path])


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    touch(tmp_path, "file")
    with pytest.raises(OutputError, match="could not be written"):
        claim(tmp_path / "file" / "run")


def test_a_place_below_a_file_is_refused_before_the_work(tmp_path):
    touch(tmp_path, "notes")
    with pytest.raises(OutputError, match=r"notes is not a folder"):
        claim_file(tmp_path / "notes" / "a.csv", MAKER)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that may not be written to")
def test_a_folder_that_may_not_be_written_to_is_refused_before_the_work(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"locked may not be written to"):
        claim_file(tmp_path / "locked" / "new" / "a.csv", MAKER)
