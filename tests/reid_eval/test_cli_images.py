import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from skimage.metrics import structural_similarity

from reid_eval.cli import main
from reid_eval.feature_sets import FeatureSet
from reid_eval.inception import tensor_shapes
from reid_eval.locks import locked
from reid_eval.pair_results import ssim_within_identity
from reid_eval.report import MetricResult


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def people(tmp_path):
    """Two folders of two people with three pictures each."""
    rng = np.random.default_rng(0)
    for side in ("real", "fake"):
        for pid in ("0001", "0002"):
            (tmp_path / side / pid).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / side / pid / f"{pid}_c1_{number}.png")
    return tmp_path


def refusal(result: Result) -> str:
    """The one line an error must be."""
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_fid_prints_name_value_direction_and_protocol(people):
    result = invoke("fid", people / "real", people / "fake", "--extractor", "random")
    assert result.exit_code == 0
    head, protocol = result.stdout.splitlines()
    assert head.startswith("fid_random_demo: ")
    assert head.endswith("(lower is better)")
    assert "6 real, 6 generated" in protocol
    assert "never to be quoted" in protocol


def test_what_is_to_be_known_of_several_numbers_is_said_once_as_text_and_of_each_as_json(people, caplog):
    for file in (people / "fake").rglob("*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    arguments = ["images", people / "real", people / "fake", "--extractor", "random", "--metrics", "fid,kid,prdc"]
    remark = "The sides differ in codecs (PNG and BMP), which alone moves the value."
    lines = invoke(*arguments).stdout.splitlines()
    assert sum(remark in line for line in lines) == 1
    assert caplog.text == ""
    metrics = json.loads(invoke(*arguments, "--json", "--no-cache").stdout)["metrics"]
    assert [line.split(":")[0] for line in lines[: len(metrics)]] == [metric["name"] for metric in metrics]
    assert all(remark in metric["protocol"] and remark in metric["made_by"]["remarks"] for metric in metrics)
    assert caplog.text.count(remark) == 1  # for whoever keeps the JSON and reads the terminal


def test_fid_of_a_folder_against_itself_is_0(people):
    result = invoke("fid", people / "real", people / "real", "--extractor", "random", "--batch-size", 2, "--json")
    values = json.loads(result.stdout)
    assert (values["name"], values["higher_is_better"]) == ("fid_random_demo", False)
    assert values["value"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("command", ["fid", "ssim"])
def test_a_measurement_is_kept_where_it_was_asked_for(people, command):
    options = ["--extractor", "random"] if command == "fid" else []
    out = people / "metrics"
    second = [people / "fake"] if command == "fid" else []
    result = invoke(command, people / "real", *second, *options, "--out", out, "--json")
    assert result.exit_code == 0
    (file,) = out.iterdir()
    assert json.loads(result.stdout) == json.loads(file.read_text())
    assert f"wrote {file}" in result.stderr
    assert MetricResult.load(file).made_by["reid_eval"]


def test_ssim_of_one_folder_is_called_diversity(people):
    result = invoke("ssim", people / "real", "--pairs", 4, "--seed", 3)
    expected = ssim_within_identity(people / "real", pairs=4, seed=3)
    assert result.stdout.startswith(f"ssim_within_identity: {expected.value:.4f} (right is what real pictures have)")
    assert "diversity, not fidelity; lower is more varied" in result.stdout
    assert "is better" not in result.stdout
    assert expected.higher_is_better is None


def test_ssim_of_two_folders_is_called_fidelity(people):
    result = invoke("ssim", people / "real", people / "real")
    assert result.stdout.startswith("ssim_of_pairs: 1.0000 (higher is better)")
    assert "fidelity" in result.stdout


def test_report_collects_what_the_other_commands_wrote(people):
    invoke("fid", people / "real", people / "fake", "--extractor", "random", "--out", people / "runs" / "metrics")
    invoke("ssim", people / "fake", "--out", people / "runs" / "metrics")
    (people / "runs" / "pictures").mkdir()
    Image.new("RGB", (40, 20)).save(people / "runs" / "pictures" / "swap.png")
    result = invoke("report", people / "runs", "--out", people / "report.html", "--title", "My runs")
    assert result.exit_code == 0
    assert f"wrote {people / 'report.html'} and {people / 'report.json'}" in result.stderr
    page = (people / "report.html").read_text()
    for words in ("My runs", "structure (pose)", "SSIM within an identity", "never to be quoted"):
        assert words in page
    assert len(json.loads((people / "report.json").read_text())["metrics"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fid", "real", "nowhere"], "nowhere: no such folder"),
        (["fid", "real", "empty", "--extractor", "random"], "empty: 0 pictures below it"),
        (["fid", "real", "empty", "--weights", "mine.pth"], "empty: 0 pictures below it"),
        (["fid", "real", "fake", "--extractor", "resnet"], "expected one of inception, random"),
        (["fid", "real", "fake", "--weights", "mine.pth"], "mine.pth: no such file, expected pt_inception"),
        (["fid", "real", "fake", "--extractor", "reid:nowhere"], "nowhere"),
        (["ssim", "nowhere"], "nowhere: no such folder"),
        (["ssim", "empty"], "expected one folder per identity"),
        (["ssim", "real/0001", "real/0002"], "no relative path is in both"),
        (["report", "empty"], "no metrics/*.json"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["report", "real/0001/0001_c1_0.png"], "0001_c1_0.png: is a file"),
        (["report", "measured", "--out", "real"], "real: is a folder"),
        (["report", "measured", "--out", "."], ".: is a folder"),
        (["report", "measured", "--out", "numbers.json"], "numbers.json: expected a name that ends in .html"),
        (["report", "measured", "--out", "mine.txt/page.html"], "mine.txt is not a folder"),
        (["ssim", "small"], "1/b.png: pictures of 4x4 pixels: SSIM needs at least 7x7"),
        (["ssim", "x" * 300], "file name too long"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_line(people, monkeypatch, arguments, words):
    monkeypatch.chdir(people)
    Path("empty").mkdir()
    Path("mine.txt").write_text("mine")
    for name in "ab":
        Path("small/1").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(f"small/1/{name}.png")
    MetricResult("a", 1.0, True, "", {}).save("measured/metrics")
    assert words in refusal(invoke(*arguments))


def test_a_cut_off_picture_is_named_in_one_line(people):
    file = people / "fake" / "0002" / "0002_c1_1.png"
    file.write_bytes(file.read_bytes()[:70])
    assert "0002_c1_1.png: not a readable image" in refusal(invoke("ssim", people / "fake", "--strict"))
    left_out = invoke("ssim", people / "fake")
    assert left_out.exit_code == 0
    assert "pairs with an unreadable picture left out" in left_out.stdout


def test_an_out_that_is_a_file_is_refused_before_anything_is_measured(people, monkeypatch):
    monkeypatch.setattr("reid_eval.one_pass.read_picture", lambda *_, **__: pytest.fail("decoded"))
    (people / "notes.txt").write_text("mine")
    line = refusal(invoke("ssim", people / "real", "--out", people / "notes.txt"))
    assert "notes.txt: is a file; expected a folder for metric files" in line
    assert (people / "notes.txt").read_text() == "mine"


def test_a_report_that_cannot_be_written_leaves_nothing(people):
    MetricResult("a", 1.0, True, "", {}).save(people / "runs" / "metrics")
    assert "real: is a folder" in refusal(invoke("report", people / "runs", "--out", people / "real"))
    assert sorted(path.name for path in people.iterdir()) == ["fake", "real", "runs"]


def test_a_seed_below_0_is_wrong_usage(people):
    result = invoke("ssim", people / "real", "--seed", "-1")
    assert (result.exit_code, "-1 is not in the range" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ssim", "fake", "--pairs-file", "pairs.csv"],
        ["ssim", "fake", "real", "--seed", "1"],
        ["lpips", "fake", "--resize-pairs"],
        ["kid", "real", "fake", "--subset-size", "5"],
        ["images", "real", "fake", "--pairs-file", "pairs.csv"],
    ],
)
def test_an_option_that_would_change_nothing_is_wrong_usage(people, monkeypatch, arguments):
    monkeypatch.chdir(people)
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert next(word for word in arguments if word.startswith("--")) in result.stderr


@pytest.mark.parametrize("option", ["--features", "--out"])
def test_a_path_that_may_not_be_read_is_said_in_one_line_too(people, monkeypatch, option):
    monkeypatch.setattr("os.access", lambda *_, **__: False)  # what click asks; root may always read
    arguments = {"--features": people / "real", "--out": people, option: people}
    result = invoke("rank", *(item for pair in arguments.items() for item in pair))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("command", ["ssim", "fid", "report"])
def test_file_names_that_are_not_utf8_are_measured_like_others(people, command):
    folder = people / "real" / os.fsdecode(b"caf\xe9") / "pictures"
    folder.mkdir(parents=True)
    for source in (people / "real" / "0001").iterdir():
        shutil.copy(source, folder / os.fsdecode(b"caf\xe9" + os.fsencode(source.name)))
    arguments = {"fid": [people / "fake", "--extractor", "random"], "report": ["--out", people / "report.html"]}
    result = invoke(command, people / "real", *arguments.get(command, []))
    assert result.exit_code == 0, result.output


def test_everything_is_measured_in_one_pass_and_answered_from_the_cache_then(people, monkeypatch):
    arguments = ["images", people / "real", people / "fake", "--extractor", "random", "--metrics", "fid,kid,ssim,pairs"]
    first = invoke(*arguments, "--json", "--csv", people / "numbers.csv")
    names = [metric["name"] for metric in json.loads(first.stdout)["metrics"]]
    assert names[:2] == ["fid_random_demo", "kid_random_demo"]
    assert {"ssim_within_identity", "ssim_within_identity_real", "ssim_of_pairs", "psnr_of_pairs"} < set(names)
    assert len((people / "numbers.csv").read_text().splitlines()) == len(names) + 1
    monkeypatch.setattr("reid_eval.one_pass.read_picture", lambda path: pytest.fail("decoded"))
    assert invoke(*arguments, "--json").stdout == first.stdout
    alone = invoke("kid", people / "real", people / "fake", "--extractor", "random", "--json")
    assert json.loads(alone.stdout)["value"] == json.loads(first.stdout)["metrics"][1]["value"]


def test_without_folders_per_identity_ssim_is_left_out_unless_it_is_asked_for(people):
    flat = people / "flat"
    flat.mkdir()
    for path in (people / "fake").rglob("*.png"):
        path.rename(flat / path.name)
    result = invoke("images", people / "real", flat, "--extractor", "random")
    assert result.exit_code == 0
    assert f"ssim left out: {flat} has no folder per identity with two pictures in it" in result.stderr
    assert "fid_random" in result.stdout
    assert "ssim_within" not in result.stdout
    assert "expected one folder per identity" in refusal(
        invoke("images", people / "real", flat, "--extractor", "random", "--metrics", "ssim")
    )


def test_a_statistics_file_stands_for_its_folder_and_pytorch_fid_reads_it(people):
    file = people / "real.npz"
    assert invoke("stats", people / "real", file, "--extractor", "random").exit_code == 0
    options = ["--extractor", "random", "--json", "--no-cache"]
    by_file, by_folder = (invoke("fid", side, people / "fake", *options) for side in (file, people / "real"))
    assert json.loads(by_file.stdout)["value"] == pytest.approx(json.loads(by_folder.stdout)["value"], rel=1e-12)
    with np.load(file) as stored:
        assert (stored["mu"].shape, stored["sigma"].shape) == ((64,), (64, 64))
        np.savez(people / "bare.npz", mu=stored["mu"], sigma=stored["sigma"])
    bare = json.loads(invoke("fid", people / "bare.npz", people / "fake", *options).stdout)
    assert bare["value"] == pytest.approx(json.loads(by_folder.stdout)["value"], rel=1e-6)
    assert "taken on trust" in bare["protocol"]
    assert "KID needs the features" in refusal(
        invoke("kid", people / "bare.npz", people / "fake", "--extractor", "random")
    )


def test_statistics_of_another_extractor_are_refused(people):
    vectors = np.random.default_rng(0).normal(size=(6, 64))
    FeatureSet(extractor="another", name="another", features=vectors).save(people / "another.npz")
    line = refusal(invoke("fid", people / "another.npz", people / "fake", "--extractor", "random"))
    assert "another.npz: made by another; asked for was a small network" in line


@pytest.mark.parametrize("way", ["option", "environment"])
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["fid", "real", "fake"], "pt_inception-2015-12-05-6726825d.pth (91 MiB, SHA-256 6726825d...)"),
        (["images", "real", "fake", "--preset", "dgnet-paper"], "pt_inception-2015-12-05-6726825d.pth (91 MiB"),
        (["kid", "real", "fake", "--extractor", "torchvision:resnet50"], "resnet50-11ad3fa6.pth (98 MiB, SHA-256 11ad"),
        (["lpips", "fake"], "alexnet-owt-7be5be79.pth (233 MiB, SHA-256 7be5be79...)"),
        (["lpips", "fake", "real", "--net", "vgg"], "vgg16-397923af.pth (528 MiB, SHA-256 397923af...)"),
        (["weights", "fetch", "squeezenet1_1"], "squeezenet1_1-b8a52dc0.pth (4.7 MiB, SHA-256 b8a52dc0...)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_missing_weights_are_named_with_size_and_checksum_and_nothing_takes_their_place(
    people, monkeypatch, arguments, wanted, way
):
    monkeypatch.chdir(people)
    if way == "environment":
        monkeypatch.setenv("REID_OFFLINE", "1")
    line = refusal(invoke(*arguments, *(["--offline"] if way == "option" else [])))
    assert wanted in line
    assert "fetching is forbidden" in line


@pytest.fixture(scope="module")
def bright_inception(tmp_path_factory):
    """A file in the published format whose features grow with a picture's brightness."""
    state = {
        name: torch.tensor(1 / (shape[1:].numel() if len(shape) == 4 else 1)).expand(shape)
        for name, shape in ((name, torch.Size(shape)) for name, shape in tensor_shapes().items())
    }
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({name: value.long() if name.endswith("tracked") else value for name, value in state.items()}, file)
    return file


def test_the_dgnet_papers_preset_fixes_sets_pairs_rounds_and_sizes(people, bright_inception):
    weights = ["--weights", bright_inception, "--any-weights", "--device", "cpu", "--json"]
    answer = invoke("images", people / "real", people / "fake", "--preset", "dgnet-paper", *weights)
    metrics = {metric["name"]: metric for metric in json.loads(answer.stdout)["metrics"]}
    ssims = {"dssim_lab_within_identity_dgnet", "dssim_lab_within_identity_dgnet_real"}
    assert metrics.keys() == {"fid_inception_dgnet_demo"} | ssims
    alone = invoke("fid", people / "real", people / "fake", *weights, "--resize", "dgnet")
    fid = metrics["fid_inception_dgnet_demo"]
    assert fid["value"] == pytest.approx(json.loads(alone.stdout)["value"], rel=1e-9)
    assert fid["value"] > 0
    assert "bicubic to 256x128, then bilinear without half-pixel centres" in fid["protocol"]
    for name in ssims:
        assert metrics[name]["made_by"]["how"].items() >= {"pairs": 10, "rounds": 5, "seed": 10}.items()
    assert all("except that files are sorted" in metric["protocol"] for metric in metrics.values())


@pytest.mark.parametrize(
    "option", [["--resize", "clean"], ["--pairs", "3"], ["--seed", "1"], ["--extractor", "random"]]
)
def test_what_a_preset_fixes_cannot_be_given_beside_it(people, option):
    result = invoke("images", people / "real", people / "fake", "--preset", "dgnet-paper", *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"fixes {option[0]}" in result.stderr


def test_pairs_of_a_table_are_compared_whatever_they_are_called(people):
    real, fake = people / "real", people / "fake"
    rows = [("0001/0001_c1_0.png", "0002/0002_c1_1.png"), (str(fake / "0002" / "0002_c1_2.png"), "0001/0001_c1_0.png")]
    table = people / "pairs.csv"
    table.write_text("".join(",".join(row) + "\n" for row in [("first", "second"), *rows]))
    result = json.loads(invoke("ssim", fake, real, "--pairs-file", table, "--json").stdout)["metrics"][0]
    sides = [
        [np.asarray(Image.open(root / name)) for name, root in zip(row, (fake, real), strict=True)] for row in rows
    ]
    expected = np.mean([structural_similarity(*side, channel_axis=2, data_range=255) for side in sides])
    assert result["value"] == pytest.approx(expected, abs=1e-7)
    assert "2 pairs of pictures named in a table" in result["protocol"]
    table.write_text("".join(",".join(row) + "\n" for row in [("first", "second"), *rows[:1]]))  # not what is kept
    other = json.loads(invoke("ssim", fake, real, "--pairs-file", table, "--json").stdout)["metrics"][0]
    assert "1 pairs of pictures" in other["protocol"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "pairs.csv: no such file; expected a table (.csv) of pairs, first,second"),
        ("a,b\n1,2\n", "pairs.csv: no column first, second, found a, b; expected a table"),
        ("first,second\n", "pairs.csv: column names and no rows; expected a row per pair"),
        ("first,second\n0001/0001_c1_0.png,nobody.png\n", "pairs.csv, line 2: "),
        ("first,second\n0001/0001_c1_0.png\n", "pairs.csv, line 2: "),
    ],
    ids=["absent", "columns", "empty", "no-such-picture", "half-a-row"],
)
def test_a_table_of_pairs_that_cannot_be_used_is_explained(people, text, words):
    table = people / "pairs.csv"
    if text is not None:
        table.write_text(text)
    assert words in refusal(invoke("ssim", people / "fake", people / "real", "--pairs-file", table))


@pytest.mark.parametrize("write", ["mark", "semicolons", "utf-16", "windows"])
def test_tables_of_pairs_by_spreadsheets_and_by_windows_are_read(people, write):
    table, row = people / "pairs.csv", "0001/0001_c1_0.png"
    text = f"first,second\n{row},{row}\n"
    match write:
        case "mark":
            table.write_text(text, encoding="utf-8-sig")
        case "semicolons":
            table.write_text(text.replace(",", ";").replace("first", "First"))
        case "utf-16":
            table.write_text(text.replace(",", "\t"), encoding="utf-16")
        case "windows":
            table.write_bytes(text.replace("0001/", ".\\0001\\").replace("\n", "\r\n").encode())
    result = invoke("ssim", people / "real", people / "real", "--pairs-file", table)
    assert result.stdout.startswith("ssim_of_pairs: 1.0000"), result.output


def test_a_row_that_is_repeated_is_remarked(people, caplog):
    table = people / "pairs.csv"
    table.write_text("first,second\n" + "0001/0001_c1_0.png,0002/0002_c1_0.png\n" * 2)
    assert invoke("ssim", people / "real", people / "real", "--pairs-file", table).exit_code == 0
    assert "1 rows repeat a pair that stands above them" in caplog.text


def test_numbers_of_unlike_making_are_not_compared(people):
    files = []
    for seed in (0, 0, 1):
        out = people / f"out{len(files)}"
        invoke("ssim", people / "fake", "--seed", seed, "--out", out)
        files.append(out / "ssim_within_identity.json")
    assert "equal" in invoke("diff", files[0], files[1]).stdout
    assert "seed: 0 against 1" in refusal(invoke("diff", files[0], files[2]))


# --- whose outputs ----------------------------------------------------------------------------------------------------

FID = ["fid", "real", "fake", "--extractor", "random"]


@pytest.fixture
def here(people, monkeypatch):
    monkeypatch.chdir(people)
    return people


@pytest.mark.parametrize(
    ("arguments", "place", "words"),
    [
        ([*FID, "--csv", "notes.csv"], "notes.csv", "exists and was not made by reid-eval fid --csv"),
        ([*FID, "--csv", "real/0001/0001_c1_0.png"], "real/0001/0001_c1_0.png", "which this command reads"),
        ([*FID, "--out", "metrics"], "metrics/fid_random_demo.json", "exists and was not made by reid-eval"),
        (["stats", "real", "theirs.npz", "--extractor", "random"], "theirs.npz", "was not made by reid-eval stats"),
        (["stats", "real", "notes.csv", "--extractor", "random"], "notes.csv", "expected a name that ends in .npz"),
        (["ssim", "fake", "real", "--pairs-file", "p.csv", "--csv", "p.csv"], "p.csv", "is read by this command"),
        (["ssim", "fake", "--out", "fake"], "real/0001/0001_c1_0.png", "is read by this command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_somebody_else_made_and_what_is_read_is_refused_before_the_work(
    here, monkeypatch, arguments, place, words
):
    Path("metrics").mkdir()
    Path("metrics/fid_random_demo.json").write_text('{"theirs": 1}')
    Path("notes.csv").write_text("their,own\n")
    Path("p.csv").write_text("first,second\n0001/0001_c1_0.png,0001/0001_c1_0.png\n")
    np.savez("theirs.npz", weights=np.zeros(3))
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    monkeypatch.setattr("reid_eval.one_pass.read_picture", lambda *_, **__: pytest.fail("decoded"))
    line = refusal(invoke(*arguments))
    assert words in line
    assert Path(place).name in line or "fake" in line
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_with_overwrite_other_files_are_replaced_but_no_input(here):
    Path("notes.csv").write_text("their,own\n")
    np.savez("theirs.npz", weights=np.zeros(3))
    assert invoke(*FID, "--csv", "notes.csv", "--overwrite").exit_code == 0
    assert (
        Path("notes.csv").read_text().startswith("name,value,low,high,unit,higher_is_better,protocol\nfid_random_demo,")
    )
    assert invoke("stats", "real", "theirs.npz", "--extractor", "random", "--overwrite").exit_code == 0
    assert FeatureSet.load("theirs.npz").count == 6
    line = refusal(invoke(*FID, "--csv", "real/0001/0001_c1_0.png", "--overwrite"))
    assert "which this command reads" in line
    np.savez("real/theirs.npz", weights=np.zeros(3))
    line = refusal(invoke("stats", "real", "real/theirs.npz", "--extractor", "random", "--overwrite"))
    assert "which this command reads" in line


def test_earlier_outputs_of_the_same_command_are_replaced(here):
    for _ in range(2):
        result = invoke(*FID, "--csv", "new/n.csv", "--out", "new/metrics", "--no-cache")
        assert result.exit_code == 0, result.output
        assert invoke("stats", "real", "real.npz", "--extractor", "random").exit_code == 0
    assert sorted(path.name for path in Path("new").rglob("*")) == ["fid_random_demo.json", "metrics", "n.csv"]


def test_two_outputs_in_one_place_are_refused(here):
    line = refusal(invoke(*FID, "--csv", "m/fid_random_demo.json", "--out", "m"))
    assert "two outputs of this command" in line
    assert not Path("m").exists()


@pytest.mark.parametrize("arguments", [[*FID, "--out", "m"], [*FID, "--csv", "m/n.csv"], ["stats", "real", "m/s.npz"]])
def test_a_second_writer_is_told_who_writes_and_nothing_is_lost(here, arguments):
    file = Path("m") / {"--out": "fid_random_demo.json", "--csv": "n.csv"}.get(arguments[-2], "s.npz")
    extractor = [] if "--extractor" in arguments else ["--extractor", "random"]
    Path("m").mkdir()
    with locked(file, "reid-eval of somebody else"):
        line = refusal(invoke(*arguments, *extractor))
    assert "reid-eval of somebody else (process " in line
    assert invoke(*arguments, *extractor).exit_code == 0
    assert file.is_file()


def test_a_measurement_that_fails_leaves_no_new_folder(here):
    Path("fake/0001/0001_c1_0.png").write_bytes(b"damaged")
    refusal(invoke(*FID, "--strict", "--out", "a/b/metrics", "--csv", "c/d.csv"))
    assert not Path("a").exists()
    assert not Path("c").exists()


def test_cells_that_a_spreadsheet_would_run_are_defused(here):
    Path("=HYPERLINK(1)").mkdir()
    for name in ("real", "fake"):
        shutil.copytree(name, f"=HYPERLINK(1)/{name}")
    np.savez("=HYPERLINK(1)/bare.npz", mu=np.zeros(64), sigma=np.eye(64))
    invoke("fid", "=HYPERLINK(1)/bare.npz", "fake", "--extractor", "random", "--csv", "n.csv")
    rows = list(csv.reader(Path("n.csv").read_text().splitlines()))
    assert not any(cell.startswith(("=", "@")) for row in rows for cell in row)


def test_escape_codes_in_names_do_not_reach_the_terminal(here):
    odd = Path("fake") / "\x1b[31mred\n"
    Path("fake/0001").rename(odd)
    (odd / "a.avif").write_bytes(b"")
    np.savez("\x1b[2J.npz", mu=np.zeros(64), sigma=np.eye(64))
    for arguments in (
        ["fid", "\x1b[2J.npz", "fake", "--extractor", "random", "--out", "\x1b[1mm"],
        ["ssim", "fake", "--csv", "\x1b[1mm.csv"],
        ["ssim", str(odd), "--strict"],
    ):
        result = invoke(*arguments, "--no-cache")
        assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [FID, ["ssim", "fake"], ["images", "real", "fake", "--extractor", "random"]])
def test_whoever_keeps_nothing_is_told_how_to(here, arguments):
    last = invoke(*arguments).stderr.strip().splitlines()[-1]
    assert "--out FOLDER/metrics" in last
    assert "--out FOLDER/metrics" not in invoke(*arguments, "--csv", "n.csv").stderr


# --- which number -----------------------------------------------------------------------------------------------------


def test_the_number_of_compute_market_is_that_of_the_whole_preset_and_each_names_the_other(here):
    alone = invoke("ssim", "fake", "--preset", "dgnet-paper")
    whole = invoke("images", "real", "fake", "--preset", "dgnet-paper", "--metrics", "ssim", "--json")
    found = {metric["name"]: metric["value"] for metric in json.loads(whole.stdout)["metrics"]}
    assert alone.stdout.startswith(f"dssim_lab_within_identity_dgnet: {found['dssim_lab_within_identity_dgnet']:.4f} ")
    assert "what DG-Net's compute_market.py prints as SSIM" in alone.stdout
    other = invoke("ssim", "fake").stdout
    assert other.startswith("ssim_within_identity: ")
    assert "compute_market.py prints another number as SSIM: --preset dgnet-paper" in other


@pytest.mark.parametrize("extra", [["real"], ["--pairs", "3"], ["--seed", "1"]])
@pytest.mark.parametrize("command", ["ssim", "lpips"])
def test_the_preset_of_pairs_fixes_them_and_is_about_one_folder(here, command, extra):
    result = invoke(command, "fake", *extra, "--preset", "dgnet-paper")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--preset dgnet-paper" in result.stderr


def test_the_distance_to_real_pictures_stands_beside_a_diversity(here):
    lines = invoke("images", "real", "fake", "--metrics", "ssim").stdout.splitlines()
    values = [float(line.split()[1]) for line in lines[:2]]
    assert lines[0].startswith("ssim_within_identity: ")
    shown = float(lines[0].split("(")[1].split()[0])
    assert shown == pytest.approx(values[0] - values[1], abs=2e-4)
    assert "from that of real pictures, which is right" in lines[0]
    assert lines[1].endswith("(of real pictures)")


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [FID, ["images", "real", "fake", "--metrics", "ssim"], ["stats", "real", "s.npz"]]
)
def test_a_time_limit_leaves_with_75_and_writes_nothing(here, arguments):
    extractor = ["--extractor", "random"] if "stats" in arguments else []
    result = invoke(*arguments, *extractor, "--max-hours", "0")
    assert (result.exit_code, result.stdout) == (75, "")
    assert "--max-hours 0 reached" in result.stderr.strip().splitlines()[-1]
    assert not Path("s.npz").exists()


STOPPED = """
import os, signal, sys
from reid_eval import extractors
from reid_eval.cli import main
make = extractors.RandomExtractor.__call__
name = sys.argv.pop(1)
calls = []
def stops(self, pixels_batch):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), getattr(signal, name))
    return make(self, pixels_batch)
extractors.RandomExtractor.__call__ = stops
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_with_75_and_the_same_command_goes_on(here, name):
    arguments = [*FID, "--batch-size", "2", "--workers", "1"]
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED, name, *arguments], capture_output=True, text=True, check=False, timeout=200
    )
    assert (stopped.returncode, stopped.stdout) == (75, ""), stopped.stderr
    assert f"{name}: 6 features are kept in " in stopped.stderr
    again = invoke(*arguments)
    assert again.exit_code == 0
    assert again.stdout == invoke(*arguments, "--no-cache").stdout


def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_number(here, monkeypatch):
    expected = invoke(*FID, "--no-cache").stdout
    Path("file").write_text("mine")
    for place in ("file", "file/cache", "x" * 300):
        monkeypatch.setenv("REID_CACHE", place)
        result = invoke(*FID)
        assert (result.exit_code, result.stdout) == (0, expected)
    assert Path("file").read_text() == "mine"


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "fid",
        "kid",
        "prdc",
        "ssim",
        "lpips",
        "images",
        "stats",
        *(f"weights {one}" for one in ("list", "verify", "fetch", "import")),
    ],
)
def test_examples_in_help_keep_their_lines_at_80_columns(monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.rstrip() for line in invoke(*command.split(), "--help").stdout.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.strip() in ("Example:", "Examples:"))
    shown = lines[start + 1 : lines.index("", start + 1)]
    assert shown
    assert all(line.startswith(f"   reid-eval {command.split()[0]} ") for line in shown)
