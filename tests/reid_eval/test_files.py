import contextlib
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from reid_eval.errors import OutputError
from reid_eval.files import (
    ImageError,
    atomic_path,
    describe_images,
    file_fingerprint,
    fingerprint,
    is_image_name,
    list_images,
    read_pixels,
    remove_abandoned,
    replace_link,
    save_image,
    short_name,
    write_text,
)


def some_pixels(height=24, width=12):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


# --- listing --------------------------------------------------------------------------------------------------------


def test_images_are_listed_in_sorted_order_of_their_relative_path(tmp_path):
    touch(tmp_path, "b/2.png", "b/10.JPG", "a-z/1.jpeg", "a/1.webp", "3.bmp")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["3.bmp", "a/1.webp", "a-z/1.jpeg", "b/10.JPG", "b/2.png"]
    assert [path.name for path in list_images(str(tmp_path), recursive=False)] == ["3.bmp"]


def test_whatever_pytorch_fid_lists_is_listed(tmp_path):
    from pytorch_fid.fid_score import IMAGE_EXTENSIONS

    touch(tmp_path, *(f"{number}.{suffix}" for number, suffix in enumerate(sorted(IMAGE_EXTENSIONS))), "film.GIF")
    assert len(list_images(tmp_path)) == len(IMAGE_EXTENSIONS) + 1


def test_hidden_files_and_folders_and_other_kinds_are_skipped(tmp_path):
    touch(tmp_path, ".DS_Store", "._1.jpg", ".cache/1.jpg", "Thumbs.db", "notes.txt", "1.jpg", "jpg")
    assert [path.name for path in list_images(tmp_path)] == ["1.jpg"]
    assert not is_image_name(".1.jpg")


def test_links_to_files_and_folders_are_followed(tmp_path):
    touch(tmp_path, "real/1.jpg")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "one.jpg").symlink_to(tmp_path / "real" / "1.jpg")
    assert len(list_images(tmp_path)) == 3


def test_an_absent_folder_is_an_error_and_an_empty_one_is_not(tmp_path):
    assert list_images(tmp_path) == []
    with pytest.raises(ImageError, match=r"absent: no such folder; expected a folder of images"):
        list_images(tmp_path / "absent")
    touch(tmp_path, "notes.txt")
    with pytest.raises(ImageError, match=r"notes\.txt: is a file; expected a folder of images"):
        list_images(tmp_path / "notes.txt")


@pytest.mark.parametrize("links", [{"a/up": ".."}, {"a/b": "../b", "b/a": "../a"}, {"a/self": "."}], ids=str)
def test_links_that_lead_back_are_refused_instead_of_counting_pictures_again_and_again(tmp_path, links):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    with pytest.raises(ImageError, match="a link to a folder that contains it"):
        list_images(tmp_path)


def test_a_folder_that_cannot_be_opened_is_an_error_and_not_an_empty_one(tmp_path, monkeypatch):
    touch(tmp_path, "0001/1.jpg", "0002/1.jpg")
    scandir = os.scandir

    def locked(folder):
        if str(folder).endswith("0002"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)  # root, who may run this, can open every folder
    with pytest.raises(ImageError, match=r"0002: could not be opened \(Permission denied\)"):
        list_images(tmp_path)


# --- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_picture_becomes_rgb_bytes(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.fromarray(some_pixels()).convert(mode).save(tmp_path / f"a.{suffix}")
    pixels = read_pixels(tmp_path / f"a.{suffix}")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (24, 12, 3))


@pytest.mark.parametrize(("kind", "mode"), [(np.uint16, "I;16"), (np.float32, "F")])
def test_grey_values_beyond_8_bits_are_refused_instead_of_clipped(tmp_path, kind, mode):
    Image.fromarray(np.array([[0, 255, 256, 30000]], kind)).save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match=f"a.png: grey values of mode {mode}, expected 8 bits per channel"):
        read_pixels(tmp_path / "a.png")


def test_a_png_gives_back_the_pixels_that_were_saved(tmp_path):
    save_image(tmp_path / "a.png", some_pixels())
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), some_pixels())


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept_share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_picture_is_an_error_that_names_it(tmp_path, suffix, kept_share):
    file = tmp_path / f"0002_c1s1_000451_03.{suffix}"
    save_image(file, some_pixels(128, 64))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept_share)])
    with pytest.raises(ImageError) as error:
        read_pixels(file)
    assert str(error.value).startswith(f"{file}: not a readable image")
    assert "restore or remove this file" in str(error.value)


def test_what_is_no_picture_is_an_error_that_names_it(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(ImageError, match=r"page\.jpg: not a readable image"):
        read_pixels(tmp_path / "page.jpg")
    with pytest.raises(ImageError, match=r"absent\.jpg: no such image file"):
        read_pixels(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="not a readable image"):
        read_pixels(tmp_path)


# --- writing --------------------------------------------------------------------------------------------------------


def names_in(folder):
    return sorted(os.listdir(folder))


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    with atomic_path(tmp_path / "new" / "out.txt") as part:
        part.write_text("whole")
        assert not (tmp_path / "new" / "out.txt").exists()
        assert list_images(part.parent) == []
    assert (tmp_path / "new" / "out.txt").read_text() == "whole"
    assert names_in(tmp_path / "new") == ["out.txt"]


def fail_halfway(file, failure):
    with atomic_path(file) as part:
        part.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_block_that_fails_leaves_the_old_file_and_no_traces(tmp_path, failure):
    write_text(tmp_path / "out.txt", "old")
    with pytest.raises(type(failure)):
        fail_halfway(tmp_path / "out.txt", failure)
    assert (names_in(tmp_path), (tmp_path / "out.txt").read_text()) == (["out.txt"], "old")


def test_a_full_disk_while_writing_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "out.txt", "old")
    full_disk = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError) as error:
        fail_halfway(tmp_path / "out.txt", full_disk)
    assert str(error.value).startswith(f"{tmp_path / 'out.txt'}: could not be written (No space left on device)")
    assert "free some space" in str(error.value)
    assert (names_in(tmp_path), (tmp_path / "out.txt").read_text()) == (["out.txt"], "old")


def test_a_folder_that_may_not_be_written_to_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def locked(**_):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/.out.txt.x.part")

    monkeypatch.setattr("tempfile.mkstemp", locked)
    with pytest.raises(OutputError) as error:
        write_text(tmp_path / "out.txt", "text")
    assert str(error.value).startswith(f"{tmp_path / 'out.txt'}: could not be written (Permission denied)")


def test_what_utf8_cannot_hold_is_escaped_as_json_would(tmp_path):
    write_text(tmp_path / "out.json", json.dumps(os.fsdecode(b"caf\xe9"), ensure_ascii=False))
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_the_very_end_keeps_the_old_file(tmp_path, monkeypatch, call, number):
    save_image(tmp_path / "out.png", some_pixels())
    before = (tmp_path / "out.png").read_bytes()

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match="nothing that existed was changed"):
        save_image(tmp_path / "out.png", some_pixels()[::-1])
    assert (names_in(tmp_path), (tmp_path / "out.png").read_bytes()) == (["out.png"], before)


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / "out.txt").mkdir()
    with pytest.raises(OutputError, match=r"out\.txt: could not be written"):
        write_text(tmp_path / "out.txt", "text")
    assert names_in(tmp_path) == ["out.txt"]


def test_a_written_file_can_be_read_by_whoever_the_umask_allows(tmp_path):
    write_text(tmp_path / "out.txt", "text")
    (tmp_path / "plain.txt").write_text("text")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out.txt", "plain.txt")]
    assert modes[0] == modes[1]


def test_an_image_is_written_in_the_format_of_its_suffix(tmp_path):
    for suffix, kind in {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}.items():
        save_image(tmp_path / f"a.{suffix}", some_pixels())
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert (image.format, image.size) == (kind, (12, 24))
    with pytest.raises(OutputError, match=r"not \.gif"):
        save_image(tmp_path / "a.gif", some_pixels())
    with pytest.raises(OutputError, match="not without suffix"):
        save_image(tmp_path / "a", some_pixels())


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_where_one_part_ends():
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint(["ab", "c"]) == fingerprint([b"ab", b"c"])
    assert len(fingerprint([])) == 16


def test_a_file_name_that_is_not_utf8_has_the_fingerprint_of_its_bytes():
    assert fingerprint([os.fsdecode(b"caf\xe9")]) == fingerprint([b"caf\xe9"])


def test_the_fingerprint_of_a_file_is_its_sha256(tmp_path):
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert file_fingerprint(tmp_path / "a") == hashlib.sha256(content).hexdigest()


# --- names and leftovers --------------------------------------------------------------------------------------------


def test_a_name_that_fits_stays_and_a_longer_one_stays_unique():
    assert short_name("a" * 251 + ".png") == "a" * 251 + ".png"
    long = ["ä" * 200 + end + ".png" for end in "xy"]
    made = [short_name(name) for name in long]
    assert made[0] != made[1]
    assert all(len(os.fsencode(name)) <= 255 and name.endswith(".png") for name in made)
    assert made == [short_name(name) for name in long]


def test_the_longest_name_there_is_can_be_written(tmp_path):
    write_text(tmp_path / ("n" * 251 + ".txt"), "text")
    assert len(names_in(tmp_path)[0]) == 255


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    code = "import os, sys\nfrom reid_eval.files import atomic_path\nwith atomic_path(sys.argv[1]):\n    os._exit(1)\n"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.npz")], check=False)
    touch(tmp_path, ".of-somebody.part", ".a.npz.1-00000000.of_another_machine.part", "b.part")
    with atomic_path(tmp_path / "c.npz") as ours:
        assert len(os.listdir(tmp_path)) == 5
        remove_abandoned(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted(
            [".a.npz.1-00000000.of_another_machine.part", ".of-somebody.part", "b.part", ours.name]
        )
    remove_abandoned(tmp_path / "absent")


# --- foreign pictures -----------------------------------------------------------------------------------------------


def test_a_pipe_and_a_device_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(ImageError, match="a folder, a pipe or a device"):
            read_pixels(tmp_path / name)
    assert describe_images(tmp_path, list_images(tmp_path))["images"] == 2


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "PCX", "TGA", "DDS", "JPEG2000", "SGI"])
def test_only_named_formats_are_decoded(tmp_path, kind):
    Image.fromarray(some_pixels()).save(tmp_path / "a.jpg", format=kind)
    with pytest.raises(ImageError, match="not a readable image"):
        read_pixels(tmp_path / "a.jpg")


def test_a_huge_picture_is_refused_by_its_header(tmp_path, monkeypatch):
    Image.new("1", (8000, 5000)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"8000 x 5000 pixels, expected at most 33,554,432 in all"):
        read_pixels(tmp_path / "a.png")
    monkeypatch.setenv("REID_MAX_PIXELS", "40000000")
    assert read_pixels(tmp_path / "a.png").shape == (5000, 8000, 3)
    monkeypatch.setenv("REID_MAX_PIXELS", "many")
    with pytest.raises(ImageError, match="REID_MAX_PIXELS=many: expected a number"):
        read_pixels(tmp_path / "a.png")


def test_a_gif_cut_off_anywhere_is_a_picture_or_an_error_of_ours(tmp_path):
    frames = [Image.fromarray(some_pixels()).rotate(angle) for angle in (0, 90, 180)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "a.gif").read_bytes()
    for length in range(len(content)):
        (tmp_path / "a.gif").write_bytes(content[:length])
        with contextlib.suppress(ImageError):
            assert read_pixels(tmp_path / "a.gif").shape[2] == 3


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".git", "lost+found", "#recycle"])
def test_what_a_system_keeps_for_itself_is_no_picture_of_a_folder(tmp_path, name):
    for folder in (tmp_path, tmp_path / name):
        folder.mkdir(exist_ok=True)
        (folder / "a.png").write_bytes(b"x")
    assert list_images(tmp_path) == [tmp_path / "a.png"]


def test_a_link_is_replaced_at_once_also_where_names_are_long(tmp_path):
    link = tmp_path / ("ü" * 120 + ".jpg")
    replace_link(link, "nowhere")
    (tmp_path / "a").write_bytes(b"a")
    replace_link(link, "a")
    assert (link.read_bytes(), os.readlink(link)) == (b"a", "a")
    (tmp_path / "b").write_bytes(b"b")
    replace_link(tmp_path / "b", "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {link.name: b"a", "a": b"a", "b": b"a"}


def test_a_link_that_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        replace_link(tmp_path / "folder", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
