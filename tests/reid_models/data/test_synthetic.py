"""The toy world: what is drawn is what the records say, and the layouts are those of the published datasets."""

import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reid_eval.errors import OutputError
from reid_eval.files import list_images, read_pixels, save_image
from reid_eval.locks import locked
from reid_models.cli import main
from reid_models.config import ConfigError
from reid_models.data.drawing import Appearance, Structure
from reid_models.data.index import DatasetIndex
from reid_models.data.places import PLACES
from reid_models.data.synthetic import (
    LAYOUTS,
    ToyWorldError,
    camera_world,
    clothes_distance,
    contact_sheet,
    draw,
    load_toy_records,
    make_toy_dataset,
    sample_appearance,
    sample_people,
    sample_structure,
)

SMALL = {"ids": 4, "cameras": 2, "per_camera": 3, "image_hw": (64, 32)}
RED, BLUE = (204, 40, 46), (38, 86, 196)


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return make_toy_dataset(tmp_path_factory.mktemp("toy") / "market", **SMALL)


@pytest.fixture
def structure() -> Structure:
    rng = np.random.default_rng(0)
    plain = sample_structure(rng, camera_world(0, 1)[0], "front")
    return replace(plain, brightness=1.0, warmth=0.0, blur=0.0, noise=0.0, turn=0.0)


@pytest.fixture
def appearance() -> Appearance:
    plain = sample_appearance(np.random.default_rng(0))
    return replace(
        plain, top=RED, top_pattern="plain", sleeves="long", bottom=BLUE, bottom_kind="trousers", bag_kind="none"
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two pictures differ, bool (H, W)."""
    return (a != b).any(axis=2)


# drawing


@pytest.mark.parametrize("image_hw", [(128, 64), (256, 128), (64, 32), (97, 41)])
def test_a_picture_has_the_size_asked_for(appearance, structure, image_hw):
    pixels = draw(appearance, structure, image_hw)
    assert (pixels.shape, pixels.dtype) == ((*image_hw, 3), np.uint8)


def test_one_pair_of_records_gives_one_picture(appearance, structure):
    noisy = replace(structure, noise=2.0, blur=0.4)
    np.testing.assert_array_equal(draw(appearance, noisy), draw(appearance, noisy))
    assert changed(draw(appearance, noisy), draw(appearance, replace(noisy, noise_seed=1))).mean() > 0.5


def test_a_large_picture_shows_what_a_small_one_shows(appearance, structure):
    small = draw(appearance, structure, (64, 32)).astype(float)
    large = draw(appearance, structure, (256, 128)).reshape(64, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 3  # the two sizes are supersampled on grids of their own


def test_another_appearance_leaves_the_place_as_it_was(structure):
    empty = draw(None, structure)
    rng = np.random.default_rng(1)
    looks = [replace(sample_appearance(rng), bottom_kind="trousers", bag_kind="none") for _ in range(4)]
    bodies = np.any([changed(draw(look, structure), empty) for look in looks], axis=0)
    assert 0.2 < bodies.mean() < 0.55
    # Hair and sleeves move the outline a little; beyond that, every pixel is the place's own.
    grown = np.asarray(Image.fromarray(bodies).convert("L").resize((64, 128))) > 0
    for look in looks:
        assert not (changed(draw(look, structure), draw(looks[0], structure)) & ~grown).any()


def test_a_top_of_another_colour_changes_only_the_top(appearance, structure):
    difference = changed(draw(appearance, structure), draw(replace(appearance, top=(44, 142, 72)), structure))
    rows = np.flatnonzero(difference.any(axis=1)) / 128
    assert 0.10 < rows.min() < 0.30 < rows.max() < 0.60


@pytest.mark.parametrize("view", ["front", "right", "back", "left"])
def test_the_clothes_have_their_colours_from_every_side(appearance, structure, view):
    body = replace(structure, view=view, phase=1.57, center_x=0.5, height=0.9, feet_y=0.96)
    top, bottom = draw(appearance, body)[42, 32].astype(int), draw(appearance, body)[70:85, 20:44].reshape(-1, 3)
    assert top[0] > 2 * top[1]
    assert top[0] > 2 * top[2]
    assert (bottom[:, 2].astype(int) > 2 * bottom[:, 0]).any()


def test_face_and_shirt_front_are_seen_from_the_front_only(appearance, structure):
    look = replace(appearance, top_pattern="print", top_second=(242, 204, 58), hair=(32, 26, 26), hair_style="short")

    def yellow(view: str) -> int:
        red, green, blue = np.moveaxis(draw(look, replace(structure, view=view))[25:60].astype(int), 2, 0)
        return int(((red > 150) & (green > 120) & (blue < 110)).sum())

    def dark_head(view: str) -> float:
        head = draw(look, replace(structure, view=view, center_x=0.5, height=0.9, feet_y=0.96))[12:20, 30:34]
        return float((head.mean(axis=2) < 60).mean())

    assert yellow("front") > 40
    assert yellow("back") == 0
    assert dark_head("back") > 0.9 > 0.5 > dark_head("front")


def test_left_mirrors_right(appearance, structure):
    even = replace(structure, light_from=0.0, center_x=0.5)
    look = replace(appearance, hair_style="short")
    right = draw(look, replace(even, view="right", phase=0.7))
    # Seen from the other side, the other leg is near.
    left = draw(look, replace(even, view="left", phase=0.7 + np.pi))
    body = changed(right, draw(None, even))
    mirrored = changed(left, draw(None, even))[:, ::-1]
    assert (body != mirrored).mean() < 0.03  # the rim of an antialiased outline


def test_the_legs_walk(appearance, structure):
    pictures = [draw(appearance, replace(structure, view="right", phase=phase)) for phase in (0.0, 1.57, 3.14)]
    knees = [changed(picture, draw(None, structure))[84:94].any(axis=0).sum() for picture in pictures]
    assert knees[1] > 1.2 * max(knees[0], knees[2])  # the stride is widest a quarter of the way


def test_a_camera_lends_its_light_to_all_it_sees(appearance, structure):
    plain = draw(appearance, structure).astype(float).mean(axis=(0, 1))
    warm = draw(appearance, replace(structure, brightness=0.9, warmth=0.05)).astype(float).mean(axis=(0, 1))
    np.testing.assert_allclose(warm / plain, 0.9 * np.array([1.05, 1, 0.95]), atol=0.01)  # rounding to whole levels
    sharp = np.abs(np.diff(draw(appearance, structure).astype(float), axis=0)).mean()
    soft = np.abs(np.diff(draw(appearance, replace(structure, blur=1.0)).astype(float), axis=0)).mean()
    assert soft < 0.9 * sharp
    lit = [draw(appearance, replace(structure, light_from=side, center_x=0.5)).astype(float) for side in (-1.0, 1.0)]
    body = slice(40, 60)
    assert lit[0][body, 20:32].mean() > lit[1][body, 20:32].mean()
    assert lit[0][body, 32:44].mean() < lit[1][body, 32:44].mean()


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_calm_and_slides_a_little(structure, place):
    here = replace(structure, place=place)
    pixels = draw(None, here).astype(float)
    assert 60 < pixels.mean() < 220
    assert pixels.std() < 60
    assert changed(draw(None, here), draw(None, replace(here, shift_x=here.shift_x + 0.04))).mean() > 0.02


def test_records_survive_their_plain_form():
    rng = np.random.default_rng(3)
    look = sample_appearance(rng)
    body = sample_structure(rng, camera_world(3, 2)[1])
    assert Appearance.from_dict(look.to_dict()) == look
    assert Structure.from_dict(body.to_dict()) == body


@pytest.mark.parametrize("count", [2, 30, 120])
def test_no_two_people_are_dressed_alike(count):
    people = sample_people(np.random.default_rng([0, 2]), count)
    nearest = min(clothes_distance(a, b) for i, a in enumerate(people) for b in people[:i])
    assert nearest > (100 if count <= 30 else 45)


def test_more_people_leave_the_first_ones_as_they_were():
    few, many = (sample_people(np.random.default_rng([0, 2]), count) for count in (5, 20))
    assert many[:5] == few


# datasets


def test_the_records_draw_the_files(market, tmp_path):
    records = load_toy_records(market)
    files = list_images(market)
    assert sorted(file.name for file in files) == records.names
    for file in files:
        drawn = draw(records.appearance(file.name), records.structure(file.name), records.image_hw)
        save_image(tmp_path / file.name, drawn, quality=95)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file


def test_a_second_run_writes_the_same_bytes_and_a_third_nothing(market, tmp_path):
    again = make_toy_dataset(tmp_path / "again", **SMALL)
    assert content(again) == content(market)
    times = {file: file.stat().st_mtime_ns for file in again.rglob("*")}
    make_toy_dataset(again, **SMALL)
    assert {file: file.stat().st_mtime_ns for file in again.rglob("*")} == times


def test_another_seed_is_another_world(market, tmp_path):
    other = make_toy_dataset(tmp_path / "other", **SMALL, seed=1)
    ours, theirs = load_toy_records(market), load_toy_records(other)
    assert ours.names == theirs.names
    assert all(ours.structure(name) != theirs.structure(name) for name in ours.names)


PATTERNS = {
    "market1501": r"(bounding_box_train|bounding_box_test|query)/(-1|\d{4})_c[1-6]s[1-6]_\d{6}_\d{2}\.jpg",
    "dukemtmc": r"(bounding_box_train|bounding_box_test|query)/\d{4}_c[1-8]_f\d{7}\.jpg",
    "msmt17": r"(train|test)/(\d{4})/\2_\d{3}_\d{2}_(0113|0114|0302|0303)(morning|noon|afternoon)_\d{4}_\d{1,2}\.jpg",
    "cuhk03np": r"(labeled|detected)/(bounding_box_train|bounding_box_test|query)/\d{4}_c[12]_\d+\.png",
    "folders": r"(\d{4})/\1_c\d+_f\d{7}\.jpg",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_have_the_published_names_and_splits(layout, tmp_path):
    out = make_toy_dataset(tmp_path / "raw", **{**SMALL, "image_hw": (16, 8)}, layout=layout)
    for file in list_images(out):
        name = file.relative_to(out).as_posix()
        assert re.fullmatch(PATTERNS[layout], name), name
    for root in [out / "labeled", out / "detected"] if layout == "cuhk03np" else [out]:
        index = DatasetIndex.open(root)
        assert (index.layout, index.unparsed) == (layout, ())
        if layout == "folders":
            assert (index.num_ids, len(index)) == (4, 24)
            continue
        queries = [(record.pid, record.camid) for record in index.split("query")]
        assert len(set(queries)) == len(queries) == 2 * 2  # one for each test person and camera
        assert set(index.split("query").pids) <= set(index.split("gallery").pids)
        if layout != "msmt17":  # which numbers train and test independently
            assert not set(index.split("train_all").pids) & set(index.split("gallery").pids)


def test_no_person_of_msmt17_is_in_both_halves_though_the_numbers_are(tmp_path):
    out = make_toy_dataset(tmp_path / "raw", **{**SMALL, "image_hw": (16, 8)}, layout="msmt17")
    index, records = DatasetIndex.open(out), load_toy_records(out)
    assert set(index.split("train").pids) == set(index.split("gallery").pids) == {0, 1}
    assert set(index.split("val").pids) == {0, 1}
    train = {records.appearance(record.path.name) for record in index.split("train_all")}
    test = {records.appearance(record.path.name) for record in index if record.split in ("query", "gallery")}
    assert len(train) == len(test) == 2
    assert not train & test


def test_two_digit_cameras(tmp_path):
    out = make_toy_dataset(tmp_path / "raw", ids=2, cameras=12, per_camera=1, layout="msmt17", image_hw=(16, 8))
    assert set(DatasetIndex.open(out).camids) == set(range(1, 13))


def test_a_person_wears_the_same_in_every_picture(market):
    records = load_toy_records(market)
    for record in DatasetIndex.open(market):
        if record.pid > 0:
            first = next(name for name in records.names if name.startswith(f"{record.pid:04d}_"))
            assert records.appearance(record.path.name) == records.appearance(first)


def test_markets_gallery_has_distractors_and_junk_boxes(market):
    records = load_toy_records(market)
    known = {records.appearance(name) for name in records.names if not name.startswith(("-1_", "0000_"))}
    distractors = [name for name in records.names if name.startswith("0000_")]
    looks = [records.appearance(name) for name in distractors]
    assert None in looks  # an empty window
    assert any(look is not None for look in looks)
    assert not known & {look for look in looks if look is not None}
    junk = [records.structure(name) for name in records.names if name.startswith("-1_")]
    assert any(body.height > 1.2 for body in junk)  # half a body
    assert any(body.center_x in (0.0, 1.0) for body in junk)  # beside it
    assert any(body.passer_by is not None for body in junk)  # two people


def test_a_run_that_is_killed_is_completed_by_the_next(tmp_path):
    arguments = {"ids": 6, "cameras": 3, "per_camera": 6, "image_hw": (128, 64)}
    code = f"from reid_models.data.synthetic import *; make_toy_dataset({str(tmp_path / 'cut')!r}, **{arguments})"
    run = subprocess.Popen([sys.executable, "-c", code])
    while len(list(tmp_path.glob("cut/*/*.jpg"))) < 5 and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    with pytest.raises(ToyWorldError, match=r"no toy\.json"):
        load_toy_records(tmp_path / "cut")
    make_toy_dataset(tmp_path / "cut", **arguments)
    whole = content(make_toy_dataset(tmp_path / "whole", **arguments))
    assert content(tmp_path / "cut") == whole


def test_a_missing_picture_is_drawn_again(tmp_path):
    out = make_toy_dataset(tmp_path / "toy", **SMALL)
    before = content(out)
    list_images(out)[3].unlink()
    make_toy_dataset(out, **SMALL)
    assert content(out) == before


def test_an_empty_picture_is_drawn_again(tmp_path):
    out = make_toy_dataset(tmp_path / "toy", **SMALL, layout="msmt17")
    before = content(out)
    list_images(out)[3].write_bytes(b"")
    (out / "list_query.txt").write_bytes(b"")
    (out / "list_train.txt").write_bytes(before["list_train.txt"][:-9])
    make_toy_dataset(out, **SMALL, layout="msmt17")
    assert content(out) == before


def draw_when_all_are_ready(out, seed, barrier):
    barrier.wait()
    try:
        make_toy_dataset(out, **{**SMALL, "seed": seed})
    except OutputError:
        raise SystemExit(1) from None


def test_of_two_worlds_drawn_into_one_folder_at_once_one_is_refused(tmp_path):
    alone = [content(make_toy_dataset(tmp_path / f"alone{seed}", **SMALL, seed=seed)) for seed in (0, 1)]
    forked = multiprocessing.get_context("fork")
    for _ in range(4):
        shutil.rmtree(tmp_path / "both", ignore_errors=True)
        barrier = forked.Barrier(2)
        both = [
            forked.Process(target=draw_when_all_are_ready, args=(tmp_path / "both", seed, barrier)) for seed in (0, 1)
        ]
        for process in both:
            process.start()
        for process in both:
            process.join()
        drawn = [seed for seed, process in enumerate(both) if process.exitcode == 0]
        assert len(drawn) == 1
        assert content(tmp_path / "both") == alone[drawn[0]]


def test_whoever_comes_second_is_told_who_draws_or_what_is_there(tmp_path):
    out = make_toy_dataset(tmp_path / "toy", **SMALL)
    before = content(out)
    with locked(out, "reid-models toy"):
        with pytest.raises(OutputError, match=r"reid-models toy \(process \d+ .*\) is writing here"):
            make_toy_dataset(out, **SMALL)
        with pytest.raises(OutputError, match=r"holds a toy dataset with seed 0 \(now 1\)"):
            make_toy_dataset(out, **SMALL, seed=1)
    assert content(out) == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_drawing_that_is_asked_to_stop_leaves_with_75_and_is_finished_by_the_same_command(
    tmp_path, monkeypatch, name
):
    arguments = ["toy", str(tmp_path / "toy"), "--ids", "4", "--cameras", "2", "--per-camera", "3"]
    arguments += ["--image-size", "64x32"]
    replace_file, calls = os.replace, itertools.count()

    def replace_and_send(*places):
        if next(calls) == 10:
            os.kill(os.getpid(), getattr(signal, name))
        return replace_file(*places)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_send)
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 75, result.output
    assert f"error: {name}: nothing is half written; run the same command to go on" in result.stderr
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert content(tmp_path / "toy") == content(make_toy_dataset(tmp_path / "whole", **SMALL))


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        make_toy_dataset(tmp_path, **SMALL)
    assert content(tmp_path) == {"thesis.txt": b"mine"}


def test_a_toy_dataset_of_other_arguments_is_refused_and_left_alone(market):
    before = content(market)
    with pytest.raises(OutputError, match=r"ids 4 \(now 6\)"):
        make_toy_dataset(market, **{**SMALL, "ids": 6})
    assert content(market) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ids": 1}, "ids 1"),
        ({"cameras": 0}, "cameras 0"),
        ({"cameras": 7}, "market1501 has 1 to 6"),
        ({"cameras": 3, "layout": "cuhk03np"}, "cuhk03np has 1 to 2"),
        ({"per_camera": 0}, "per-camera 0"),
        ({"cameras": 1, "per_camera": 1}, "no gallery"),
        ({"seed": -1}, "seed -1"),
        ({"layout": "market"}, "layout 'market'"),
        ({"image_hw": (4, 2)}, "image size 4x2"),
        ({"ids": 9000, "cameras": 6, "per_camera": 100}, "5400000 pictures"),
    ],
)
def test_arguments_that_make_no_dataset_are_named(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_toy_dataset(tmp_path / "toy", **{**SMALL, **wrong})
    assert not (tmp_path / "toy").exists()


def test_a_picture_of_another_dataset_has_no_records(market):
    with pytest.raises(ToyWorldError, match=r"9999_c1s1_000001_01\.jpg: not in"):
        load_toy_records(market).structure("9999_c1s1_000001_01.jpg")


def test_any_damage_of_the_records_is_one_line_or_changes_nothing(market, tmp_path):
    whole = (market / "toy.json").read_bytes()
    expected = json.loads(whole)
    rng, refused = random.Random(0), 0
    for number in range(120):
        position = rng.randrange(len(whole) if number % 2 else 400)
        damaged = whole[:position] + rng.choice([b"", b"[" * 5000, b"\0", rng.randbytes(3)]) + whole[position + 1 :]
        (tmp_path / "toy.json").write_bytes(damaged)
        try:
            records = load_toy_records(tmp_path)
        except ToyWorldError:
            refused += 1
        else:
            assert json.loads(damaged) == expected
            assert records.names == sorted(expected["images"])
    assert refused > 100


def test_records_of_an_earlier_version_have_no_seal_and_are_read(market, tmp_path):
    values = json.loads((market / "toy.json").read_text())
    del values["sha256"]
    (tmp_path / "toy.json").write_text(json.dumps(values))
    ours, theirs = load_toy_records(market), load_toy_records(tmp_path)
    assert all(ours.structure(name) == theirs.structure(name) for name in ours.names)


@pytest.mark.parametrize(
    "change",
    [{"images": []}, {"images": {"x": 1}}, {"made_of": 1}, {"made_of": {"image_hw": [1, 2, 3]}},
     {"made_of": {"image_hw": ["a", "b"]}}, {"format": "1"}, {"format": None}],
)  # fmt: skip
def test_records_of_odd_kinds_are_one_line(market, tmp_path, change):
    values = {**json.loads((market / "toy.json").read_text()), **change}
    del values["sha256"]
    (tmp_path / "toy.json").write_text(json.dumps(values))
    with pytest.raises(ToyWorldError, match=r"toy\.json: .*draw the dataset again"):
        load_toy_records(tmp_path)


@pytest.mark.parametrize("records", [{}, {"appearance": 3, "structure": []}, {"appearance": {}, "structure": {"x": 1}}])
def test_a_picture_of_odd_records_is_one_line(market, tmp_path, records):
    values = {**json.loads((market / "toy.json").read_text()), "images": {"x.jpg": records}}
    del values["sha256"]
    (tmp_path / "toy.json").write_text(json.dumps(values))
    loaded = load_toy_records(tmp_path)
    for ask in (loaded.appearance, loaded.structure):
        with pytest.raises(ToyWorldError, match=r"toy\.json: cannot be read"):
            ask("x.jpg")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1}'])
def test_damaged_records_are_named(tmp_path, text):
    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(ToyWorldError, match=r"toy\.json"):
        load_toy_records(tmp_path)


# the command


def test_the_command_draws_and_shows(tmp_path):
    arguments = ["toy", str(tmp_path / "toy"), "--ids", "2", "--cameras", "2", "--per-camera", "1"]
    arguments += ["--layout", "dukemtmc", "--image-size", "32x16", "--preview", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "4 pictures" in result.output
    assert read_pixels(list_images(tmp_path / "toy")[0]).shape == (32, 16, 3)
    sheet = read_pixels(tmp_path / "sheet.png")
    np.testing.assert_array_equal(sheet, contact_sheet(tmp_path / "toy"))
    assert sheet.shape == (2 * 64 + 4, 2 * 32 + 4, 3)  # two people in two pictures each, at twice their size, and gaps


def toy_command(out: Path, *more: str):
    arguments = ["toy", out, "--ids", "2", "--cameras", "2", "--per-camera", "1", "--layout", "dukemtmc"]
    return CliRunner().invoke(main, [*map(str, arguments), "--image-size", "32x16", *map(str, more)])


def test_a_preview_replaces_its_own_and_nothing_else_unasked(tmp_path):
    out, sheet = tmp_path / "toy", tmp_path / "sheet.png"
    sheet.write_bytes(b"mine")
    result = toy_command(out, "--preview", sheet)
    assert (result.exit_code, "was not made by reid-models toy" in result.stderr) == (1, True)
    assert content(tmp_path) == {"sheet.png": b"mine"}  # refused before anything was drawn
    assert toy_command(out, "--preview", sheet, "--overwrite").exit_code == 0
    made = sheet.read_bytes()
    assert toy_command(out, "--preview", sheet).exit_code == 0
    assert sheet.read_bytes() == made


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_preview_never_replaces_a_picture_of_the_dataset(tmp_path, more):
    picture = toy_command(tmp_path / "first").exit_code or list_images(tmp_path / "first")[0]
    there = tmp_path / "toy" / picture.relative_to(tmp_path / "first")
    result = toy_command(tmp_path / "toy", "--preview", there, *more)
    assert (result.exit_code, f"{there}: exists in {tmp_path / 'toy'}, which this command reads" in result.stderr) == (
        1,
        True,
    )
    assert there.read_bytes() == picture.read_bytes()


def test_a_preview_is_a_picture_that_can_say_who_made_it(tmp_path):
    result = toy_command(tmp_path / "toy", "--preview", tmp_path / "sheet.bmp")
    assert (result.exit_code, "a name that ends in .png, .jpg, .jpeg or .webp" in result.stderr) == (1, True)
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize("size", ["128", "64x", "axb", "128 x 64"])
def test_the_command_explains_an_image_size_it_cannot_read(tmp_path, size):
    result = CliRunner().invoke(main, ["toy", str(tmp_path / "toy"), "--image-size", size])
    assert (result.exit_code, "e.g. 128x64" in result.output) == (1, True)
    assert result.output.count("\n") == 1


def test_the_command_offers_every_layout():
    (option,) = [parameter for parameter in main.commands["toy"].params if parameter.name == "layout"]
    assert tuple(option.type.choices) == LAYOUTS
