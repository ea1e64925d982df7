import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reid_eval.cli import main
from reid_eval.features import ReidFeatures
from reid_eval.ranking import contest, rank, rank_distances
from reid_eval.sheets import SheetError, choose_queries, draw_sheet, plot_curves, ranked_list

GREEN, RED, GREY = (0, 150, 60), (210, 30, 30), (150, 150, 150)


def line_features():
    """Two queries at 0; the gallery lies on a line: person 7 in the query's camera, a stranger, 7, junk, 8."""
    return ReidFeatures(
        features=np.array([[0.0], [0.0], [1], [2], [3], [4], [5]]),
        pids=[7, 8, 7, 3, 7, -1, 8],
        camids=[1, 1, 1, 2, 2, 2, 2],
        splits=["query"] * 2 + ["gallery"] * 5,
        paths=[f"{name}.png" for name in ("q7", "q8", "same", "stranger", "right", "junk", "eight")],
    )


def paint(folder, features):
    for number, path in enumerate(features.paths):
        Image.new("RGB", (20, 40), (10 * number, 0, 0)).save(folder / path)
    return folder


def test_a_list_holds_the_query_and_what_counts_in_order():
    who = contest(line_features(), metric="euclidean")
    found = ranked_list(who, 0, top=2)
    assert [(one.path, one.kind) for one in found] == [
        ("q7.png", "query"),
        ("same.png", "left out"),
        ("stranger.png", "wrong"),
        ("right.png", "right"),
    ]
    assert [one.distance for one in found] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("cosine", [0.2, 0.4, 1]), ("euclidean", [10**0.5, 20**0.5, 50**0.5]), ("dot", [20, 15, 0])],
)
def test_distances_are_told_as_people_expect_them(metric, expected):
    features = ReidFeatures(
        features=np.array([[5.0, 0], [4, 3], [0, 5], [3, 4]]),
        pids=[7, 7, 8, 7],
        camids=[1, 2, 2, 2],
        splits=["query"] + ["gallery"] * 3,
        paths=list("qabc"),
    )
    found = ranked_list(contest(features, metric=metric), 0, top=3)
    assert sorted(one.distance for one in found[1:]) == pytest.approx(sorted(expected))


def test_frames_are_green_red_and_grey(tmp_path):
    features = line_features()
    pixels = draw_sheet(ranked_list(contest(features, metric="euclidean"), 0, top=2), paint(tmp_path, features))
    frames = [tuple(pixels[8, 8 + 78 * number].tolist()) for number in range(4)]
    assert frames[1:] == [GREY, RED, GREEN]
    assert pixels[70, 6 + 78 * 3 + 36].tolist() == [40, 0, 0]  # the picture itself


def test_queries_are_chosen_by_precision_by_name_or_by_seed():
    features = line_features()
    report = rank(features, metric="euclidean")
    assert report.plain.ap_hits.tolist() == [1 / 2, 1 / 4]
    assert choose_queries(features, report, order="worst").tolist() == [1, 0]
    assert choose_queries(features, report, order="best", count=1).tolist() == [0]
    assert choose_queries(features, report, names=["q8.png"]).tolist() == [1]
    first, again = (choose_queries(features, report, order="random", count=1, seed=3) for _ in range(2))
    assert first.tolist() == again.tolist()
    with pytest.raises(SheetError, match=r"no query is called x\.png"):
        choose_queries(features, report, names=["x.png"])


def test_mean_precision_over_recall_is_that_of_the_definition():
    labels = {"q_pids": [7, 3], "q_camids": [1, 1], "g_pids": [7, 3, 7, 3], "g_camids": [2, 2, 2, 2]}
    scores = rank_distances(np.array([[1.0, 2, 3, 4], [1, 2, 3, 4]]), **labels)
    recall, precision = scores.precision_at_recall(5)
    assert recall.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # Places 1 and 3: precision 1, then 2/3. Places 2 and 4: 1/2, then 1/2.
    np.testing.assert_allclose(precision, [3 / 4, 3 / 4, 3 / 4, 7 / 12, 7 / 12])


@pytest.fixture
def painted(tmp_path):
    features = line_features()
    features.save(tmp_path / "f.npz")
    (tmp_path / "images").mkdir()
    paint(tmp_path / "images", features)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["rank", "--metric", "euclidean", *map(str, arguments)])


def test_the_command_draws_sheets_a_page_and_curves(painted):
    files = ["--features", painted / "f.npz", "--images", painted / "images"]
    result = run(*files, "--sheets", painted / "s", "--plot", painted / "c.svg")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in (painted / "s").iterdir()) == ["0000_q8.png", "0001_q7.png", "index.html"]
    page = (painted / "s" / "index.html").read_text()
    assert re.findall('src="([^"]*)"', page) == ["0000_q8.png", "0001_q7.png"]
    assert "<svg" in (painted / "c.svg").read_text()


def test_what_cannot_be_drawn_is_one_line(painted):
    files = ["--features", painted / "f.npz", "--images", painted / "images"]
    (painted / "images" / "right.png").unlink()
    result = run(*files, "--sheets", painted / "s")
    assert (result.exit_code, "right.png: no such image file" in result.stderr) == (1, True)
    assert not (painted / "s").exists()
    assert "needs --images" in run("--features", painted / "f.npz", "--sheets", painted / "t").output
    with pytest.raises(SheetError, match=r"written as \.png"):
        plot_curves(painted / "c.gif", rank(line_features(), metric="euclidean"))
