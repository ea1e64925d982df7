"""The commands rank and report: what they write and where, what they choose, what they say."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reid_eval.cli import main
from reid_eval.features import ReidFeatures
from reid_eval.locks import locked
from reid_eval.outputs import is_made_by
from reid_eval.ranking import metric_names
from reid_eval.report import MetricResult

NAMES = ["Bob", "Anna Müller", "=cmd|'/c calc'!A1", "-2+3"]


def crowd(**changes):
    rng = np.random.default_rng(0)
    pids = np.arange(24) % 4 + 1
    columns = {
        "features": rng.normal(size=(5, 6))[pids] + 0.8 * rng.normal(size=(24, 6)),
        "pids": pids,
        "camids": np.arange(24) % 3 + 1,
        "splits": ["query"] * 8 + ["gallery"] * 16,
        "paths": [f"{number}.png" for number in range(24)],
        **changes,
    }
    return ReidFeatures(**columns)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with features, pictures and a table, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    crowd().save("f.npz")
    Path("images").mkdir()
    for number in range(24):
        Image.new("RGB", (8, 16), (9 * number, 0, 0)).save(f"images/{number}.png")
    np.save("m.npy", crowd().features)
    Path("people.csv").write_text("filename,person\n" + "".join(f'{n}.png,"{NAMES[n % 4]}"\n' for n in range(24)))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["rank", *map(str, arguments)])


def content(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# --- outputs --------------------------------------------------------------------------------------------------------


EVERY_OUTPUT = ["--out", "metrics", "--csv", "q.csv", "--plot", "p.png", "--sheets", "s", "--images", "images"]


def test_outputs_of_the_same_command_are_replaced(work):
    for _ in range(2):
        result = run("f.npz", *EVERY_OUTPUT)
        assert result.exit_code == 0, result.output
    assert sorted(file.stem for file in Path("metrics").iterdir()) == sorted(
        metric_names(reranked=False, single_shot=False)
    )
    assert result.stderr.count("wrote") == 4


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_curves_say_who_made_them(work, suffix):
    for _ in range(2):
        assert run("f.npz", "--plot", f"p{suffix}").exit_code == 0
    assert is_made_by(f"p{suffix}", "reid-eval rank --plot")


FOREIGN = {
    "table": ("--csv", "mine.csv", "a,b\n1,2\n"),
    "plot": ("--plot", "mine.png", "a drawing"),
    "metric": ("--out", "mine/map_hits.json", '{"my": "notes"}'),
    "another-metric": ("--out", "mine/map_hits.json", MetricResult("fid", 1.0, False, "", {}).to_json()),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_somebody_else_is_refused_before_the_work_and_replaced_when_asked(work, kind):
    option, name, text = FOREIGN[kind]
    file = Path(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    place = file.parent if option == "--out" else file
    before = content(work)
    result = run("f.npz", option, place)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"{name}: exists and was not made by reid-eval" in result.stderr
    assert "--overwrite" in result.stderr
    assert content(work) == before
    result = run("f.npz", option, place, "--overwrite")
    assert result.exit_code == 0, result.output
    assert file.read_bytes() != text.encode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["f.npz", "--csv", "f.npz"],
        ["f.npz", "--csv", "./images/../f.npz"],
        ["f.npz", "--csv", "link"],
        ["m.npy", "--labels", "people.csv", "--csv", "people.csv"],
        ["m.npy", "--labels", "people.csv", "--csv", "m.npy"],
        ["f.npz", "--images", "images", "--sheets", "s", "--plot", "images/3.png"],
        ["f.npz", "--images", "images", "--sheets", "images"],
        ["f.npz", "--images", "images", "--sheets", "s", "--csv", "images/3.png"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_what_is_read_is_never_written_to(work, arguments, overwrite):
    Path("link").symlink_to("f.npz")
    before = content(work)
    result = run(*arguments, *overwrite)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert content(work) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "people.csv"], "people.csv: is a file; expected a folder"),
        (["--csv", "people.csv/a.csv"], "people.csv is not a folder"),
        (["--csv", "images"], "images: is a folder"),
        (["--plot", "p.gif"], "expected a name that ends in .png, .svg or .pdf"),
        (["--plot", "a.png", "--csv", "a.png"], "two outputs of this command"),
        (["--sheets", "people.csv", "--images", "images"], "people.csv: is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(work, arguments, words):
    before = content(work)
    result = run("nowhere.npz", *arguments)  # which would be the second thing to say
    assert (result.exit_code, words in result.stderr, result.stderr.count("\n")) == (1, True, 1), result.stderr
    assert content(work) == before


def test_sheets_that_were_interrupted_are_made_again(work):
    (work / "images" / "20.png").write_bytes(b"no picture")
    result = run("f.npz", "--sheets", "s", "--images", "images", "--top", 16)
    assert (result.exit_code, "20.png: not a readable image" in result.stderr) == (1, True)
    assert "mAP" in result.stdout  # the numbers were not for nothing
    assert "Not finished" in Path("s/index.html").read_text()
    Image.new("RGB", (8, 16)).save("images/20.png")
    assert run("f.npz", "--sheets", "s", "--images", "images", "--top", 16).exit_code == 0
    assert "Not finished" not in Path("s/index.html").read_text()


def test_two_at_once_do_not_mix_their_metric_files(work):
    with locked("metrics/map_hits.json", "reid-eval rank --out"):
        result = run("f.npz", "--out", "metrics")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "map_hits.json: reid-eval rank --out (process" in result.stderr
    assert run("f.npz", "--out", "metrics").exit_code == 0


def test_sheets_of_long_names_are_drawn_and_stay_apart(work):
    names = ["x" * 250 + str(number % 10) + ".jpg" for number in range(24)]
    for name in set(names):
        Image.new("RGB", (8, 16)).save(f"images/{name}")
    crowd(paths=names).save("long.npz")
    assert run("long.npz", "--sheets", "s", "--images", "images").exit_code == 0
    sheets = [file.name for file in Path("s").iterdir() if file.suffix == ".png"]
    assert (len(sheets), max(map(len, sheets)) <= 255) == (8, True)
    page = Path("s/index.html").read_text()
    assert all(f'src="{name}"' in page for name in sheets)


def test_numbers_that_are_not_kept_are_told_how_to_be(work):
    assert "--out FOLDER/metrics" in run("f.npz").stderr
    assert "--out FOLDER/metrics" in run("f.npz", "--json").stderr
    assert "--out FOLDER/metrics" not in run("f.npz", "--out", "metrics").stderr
    assert "--out FOLDER/metrics" not in run("f.npz", "--card").stderr


# --- what people bring ----------------------------------------------------------------------------------------------


def test_one_matrix_and_one_table_are_ranked_each_picture_against_all_others(work):
    result = run("m.npy", "--labels", "people.csv", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["protocol_name"], answer["queries"]["valid"], answer["gallery"]["ranked"]) == (
        "leave-one-out",
        24,
        24,
    )
    assert "every picture is a query against all others: ranking by the protocol leave-one-out" in result.stderr


def test_people_are_called_by_their_names_everywhere(work):
    files = ["--csv", "q.csv", "--sheets", "s", "--images", "images", "--details"]
    result = run("m.npy", "--labels", "people.csv", *files)
    assert result.exit_code == 0, result.output
    assert re.search(r"pid (Bob|Anna Müller|=cmd|-2\+3)", result.stdout)
    assert not re.search(r"pid \d|\(\d\)|\d -> \d", result.stdout)
    assert "Bob, average precision" in Path("s/index.html").read_text()
    details = json.loads(run("m.npy", "--labels", "people.csv", "--details", "--json").stdout)["details"]
    assert {one["pid"] for one in details["worst"]} == set(NAMES)


def test_cells_of_a_table_do_not_become_formulas(work):
    crowd(paths=["@SUM(A1).png", "-1.png", "\tx.png", "+.png", "\r=1.png", *map(str, range(19))]).save("odd.npz")
    assert run("odd.npz", "--csv", "q.csv").exit_code == 0
    assert run("m.npy", "--labels", "people.csv", "--csv", "p.csv").exit_code == 0
    lines = [*Path("q.csv").read_text().splitlines()[1:6], *Path("p.csv").read_text().splitlines()[1:]]
    assert not any(cell.strip('"').startswith(("=", "+", "@", "\t")) for line in lines for cell in line.split(","))
    assert "'=cmd|'/c calc'!A1" in Path("p.csv").read_text()
    assert "'-2+3,-1" in Path("p.csv").read_text()  # the camera that is not known stays a number


def test_without_cameras_the_protocol_without_them_is_taken_and_said(work):
    crowd(camids=[-1] * 24).save("f.npz")
    result = run("f.npz", "--json")
    assert json.loads(result.stdout)["protocol_name"] == "no-camera"
    assert "no camera is known, so none is left out: ranking by the protocol no-camera" in result.stderr
    assert json.loads(run("f.npz", "--json", "--protocol", "cross-camera").stdout)["protocol_name"] == "cross-camera"
    assert (
        json.loads(run("f.npz", "--json").stdout)["plain"]
        == json.loads(run("f.npz", "--json", "--protocol", "cross-camera").stdout)["plain"]
    )


@pytest.mark.parametrize("split", ["train", "all", "val"])
def test_a_file_without_query_and_gallery_is_ranked_whatever_its_split(work, split):
    crowd(splits=[split] * 24).save("f.npz")
    answer = json.loads(run("f.npz", "--json").stdout)
    assert (answer["protocol_name"], answer["queries"]["valid"]) == ("leave-one-out", 24)


def test_pictures_of_nobody_say_what_is_missing(work):
    crowd(splits=["train"] * 24, pids=[-1] * 24).save("f.npz")
    result = run("f.npz")
    assert (result.exit_code, "all 24 pictures have pid -1" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which vectors? give FILE"),
        (["f.npz", "--features", "f.npz"], "are the same"),
        (["f.npz", "--query", "q.npy", "--gallery", "g.npy"], "give FILE, or --query"),
        (["--query", "q.npy", "--labels", "l.csv"], "give FILE, or --query"),
        (["--query", "q.npy", "--gallery", "g.npy"], "need --labels"),
        (["--labels", "l.csv"], "which vectors?"),
        (["f.npz", "--sheets", "s"], "--sheets needs --images"),
    ],
)
def test_vectors_are_named_in_one_way(work, arguments, words):
    result = run(*arguments)
    assert (result.exit_code, words in " ".join(result.stderr.replace("│", " ").split())) == (2, True), result.stderr


def test_names_of_files_change_nothing_on_a_terminal(work):
    crowd(paths=[f"\x1b[31m{number}.png" for number in range(24)]).save("f.npz")
    result = run("f.npz", "--details", "--csv", "\x1b[31m.csv")
    assert result.exit_code == 0
    assert "\x1b" not in result.output


# --- help -----------------------------------------------------------------------------------------------------------


def test_options_stand_in_groups_and_examples_keep_their_indentation(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = subprocess.run(
        [sys.executable, "-m", "reid_eval.cli", "rank", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"─ ([A-Z][\w-]+) ─", text) == ["Input", "Protocol", "Re-ranking", "Output", "Sheets"]
    assert max(map(len, text.splitlines())) <= 80
    examples = text.split("Examples:")[1].split("╭")[0].strip("\n ").splitlines()
    assert len(examples) == 4
    assert all(line.strip().startswith("reid-eval rank") for line in examples)
    assert "\n   reid-eval rank vectors.npy --labels people.csv" in text


# --- report ---------------------------------------------------------------------------------------------------------


def report(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_a_folder_with_vectors_and_no_numbers_says_how_to_measure(work):
    result = report(".")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "no metrics/*.json" in result.stderr
    Path("runs/teacher/samples").mkdir(parents=True)
    Path("f.npz").rename("runs/teacher/features.npz")
    Image.new("RGB", (8, 8)).save("runs/teacher/samples/swap_1.png")
    result = report("runs")
    assert (result.exit_code, Path("report.html").exists()) == (0, True)
    command = "reid-eval rank runs/teacher/features.npz --out runs/teacher/metrics"
    assert f"no metrics/*.json below runs. Measure first: {command}" in result.stderr
    assert command in Path("report.html").read_text()
    assert CliRunner().invoke(main, command.split()[1:]).exit_code == 0
    result = report("runs")
    assert (result.exit_code, "Measure first" in result.stderr) == (0, False)


def test_numbers_that_lie_beside_their_place_are_pointed_out(work):
    assert run("f.npz", "--out", "numbers").exit_code == 0
    assert "move numbers/map_hits.json and the like into numbers/metrics" in report("numbers").stderr


@pytest.mark.parametrize("out", ["run/config.yaml", "run/run.html", "run/page.txt", "run"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_a_report_replaces_nothing_of_what_it_collects(work, out, overwrite):
    assert run("f.npz", "--out", "run/metrics").exit_code == 0
    Path("run/config.yaml").write_text("seed: 1\n")
    Path("run/run.json").write_text('{"format": 1, "kind": "reid"}')
    before = content(work)
    result = report("run", "--out", out, *overwrite)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert content(work) == before


def test_a_report_replaces_an_earlier_one_and_a_foreign_page_only_when_asked(work):
    assert run("f.npz", "--out", "run/metrics").exit_code == 0
    for _ in range(2):
        assert report("run", "--out", "run/report.html").exit_code == 0
    Path("mine.html").write_text("my page")
    result = report("run", "--out", "mine.html")
    assert (result.exit_code, Path("mine.html").read_text()) == (1, "my page")
    assert not Path("mine.json").exists()
    assert report("run", "--out", "mine.html", "--overwrite").exit_code == 0
    Path("numbers.json").write_text('{"mine": 1}')
    assert report("run", "--out", "numbers.html").exit_code == 1
    assert not Path("numbers.html").exists()


def test_a_page_of_the_first_version_is_known_as_a_report(work):
    assert run("f.npz", "--out", "run/metrics").exit_code == 0
    Path("old.html").write_text("<html>\n<footer>Written by reid-eval 0.1.0. ...</footer>\n</html>")
    assert report("run", "--out", "old.html").exit_code == 0


def test_the_report_shows_how_each_number_was_made(work):
    assert run("f.npz", "--rerank", "--k1", 5, "--k2", 2, "--out", "run/metrics").exit_code == 0
    assert report("run").exit_code == 0
    page = Path("report.html").read_text()
    record = json.loads(Path("run/metrics/map_hits_rerank.json").read_text())["made_by"]["how"]
    for key, value in record.items():
        assert f'<th scope="row">how.{key}</th><td>{value}</td>' in page


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_ranking_that_is_told_to_stop_leaves_with_75_and_nothing_half_written(work, number):
    rng = np.random.default_rng(0)
    num = 12_000
    splits = np.where(np.arange(num) < 6000, "query", "gallery")
    labels = rng.integers(1, 100, num)
    ReidFeatures(rng.normal(size=(num, 256)), labels, np.arange(num) % 7, splits, splits).save("large.npz")
    arguments = [sys.executable, "-m", "reid_eval.cli", "rank", "large.npz", "--rerank", "--out", "metrics"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    while process.poll() is None and not Path("metrics").exists():  # it has begun to work
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, ""), err
    assert f"{number.name}: nothing is half written" in err
    assert "Traceback" not in err
    assert [file.name for file in Path("metrics").iterdir() if not file.name.startswith(".")] == []
