import base64
import io
import json
import math
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_eval.errors import OutputError
from reid_eval.files import ImageError
from reid_eval.report import (
    MetricResult,
    Picture,
    Report,
    ReportError,
    Timing,
    group_metrics,
    report_of_folder,
    write_report,
)


def result(name: str, value: float = 0.5, protocol: str = "", **changes) -> MetricResult:
    values = {"higher_is_better": True, "made_by": {"reid_eval": "0.1.0"}, **changes}
    return MetricResult(name, value, protocol=protocol or f"How {name} was measured.", **values)


def picture(file: Path, height: int = 8, width: int = 12) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    return file


class Page(HTMLParser):
    """What a browser would see: text, addresses, and whether every element is closed."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags, self.addresses, self.titles, self.words, self.open = [], [], [], [], []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.titles += [value for name, value in attrs if name == "title"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def written(tmp_path: Path, results=(), **changes) -> Page:
    values = {"title": "Title", "summary": "Summary.", "lead": None, "groups": group_metrics(results), **changes}
    return Page(write_report(tmp_path / "report.html", Report(**values)))


def test_a_metric_survives_its_file(tmp_path):
    kept = result("psnr", math.inf, unit="dB", made_by={"seed": 0, "inputs": {"real": "a"}})
    assert kept.save(tmp_path) == tmp_path / "psnr.json"
    assert MetricResult.load(tmp_path / "psnr.json") == kept


def test_a_metric_file_is_plain_json_whatever_made_it(tmp_path):
    file = result("a", np.float64(0.25), made_by={"folder": tmp_path, "seed": np.int64(3), "hw": (2, 1)}).save(tmp_path)
    values = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert (values["format"], values["value"]) == (1, 0.25)
    assert values["made_by"] == {"folder": str(tmp_path), "seed": 3, "hw": [2, 1]}


@pytest.mark.parametrize("name", ["", "mAP", "a/b", "../a", "a b"])
def test_a_metric_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValueError, match="lower case"):
        result(name)


def test_a_metric_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        result("a", math.nan)


FILE = '{"format": 1, "name": "a", "value": 0.5, "higher_is_better": true, "protocol": "p", "made_by": {}, "unit": ""}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a metric file"),
        ("[1, 2]", "expected a metric file"),
        ("3", "expected a metric file"),
        ("[" * 100_000, "nested too deeply"),
        (FILE.replace("0.5", "1" + "0" * 400), "int too large"),
        (FILE.replace("0.5", "true"), "value missing or wrong"),
        (FILE.replace("{}", '{"a":' * 99 + "1" + "}" * 99), "nested more than 32 deep"),
        ('{"format": 1, "name": "a"}', "value, higher_is_better, protocol, made_by missing or wrong"),
        (FILE.replace("{}", "[1]"), "made_by missing or wrong"),
        (FILE.replace('"p"', "3"), "protocol missing or wrong"),
        (FILE.replace("0.5", '"half"'), "could not convert"),
        (FILE.replace("0.5", "NaN"), "not a number"),
        (FILE.replace('"unit"', '"units"'), "units missing or wrong"),
        (b"\xff\xff", "no text in UTF-8"),
        ('{"format": 9, "name": "a"}', "metric format 9, expected 1"),
        (None, "no such file; expected a metric file"),
    ],
    ids=[
        "empty",
        "list",
        "number",
        "deep",
        "huge",
        "truth",
        "deep-maker",
        "incomplete",
        "made_by",
        "protocol",
        "value",
        "nan",
        "unknown",
        "binary",
        "newer",
        "missing",
    ],
)
def test_a_wrong_metric_file_is_named(tmp_path, text, message):
    file = tmp_path / "a.json"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ReportError, match=rf"a\.json: .*{message}|a\.json: {message}"):
        MetricResult.load(file)


def test_plain_and_reranked_stand_side_by_side():
    results = [
        result("rank1_rerank", 0.9),
        result("map_hits", 0.5),
        result("rank1", 0.7),
        result("map_hits_rerank", 0.6),
    ]
    (group,) = group_metrics(results)
    assert group.columns == ("plain", "re-ranked")
    assert [(row.label, [cell.value for cell in row.results]) for row in group.rows] == [
        ("mAP (hits)", [0.5, 0.6]),
        ("rank-1", [0.7, 0.9]),
    ]


def test_rank_10_is_not_a_variant_of_rank_1():
    (group,) = group_metrics([result("rank1"), result("rank10")])
    assert [row.label for row in group.rows] == ["rank-1", "rank-10"]


def test_a_variant_nobody_thought_of_becomes_a_column():
    (group,) = group_metrics([result("ssim_of_pairs"), result("ssim_of_pairs_mine"), result("psnr_of_pairs")])
    assert group.columns == ("generated", "mine")
    assert [[cell and cell.name for cell in row.results] for row in group.rows] == [
        ["ssim_of_pairs", "ssim_of_pairs_mine"],
        ["psnr_of_pairs", None],
    ]


def test_measures_of_sets_stand_side_by_side_by_the_features_they_were_made_in():
    names = ["fid_inception", "kid_inception", "fid_reid", "identity_top1_reid", "density_resnet50_subsets"]
    (group,) = group_metrics(map(result, names))
    assert group.columns == ("Inception", "re-ID", "resnet50 subsets")
    cells = {row.label: [cell and cell.name for cell in row.results] for row in group.rows}
    assert cells["Fréchet distance"] == ["fid_inception", "fid_reid", None]
    assert cells["density"] == [None, None, "density_resnet50_subsets"]
    assert len(group.results) == len(names)


def test_every_measure_of_pictures_has_a_label():
    sets = ("fid", "kid", "precision", "recall", "density", "coverage", "identity_top1", "identity_similarity")
    pairs = ("ssim_within_identity_real", "dssim_lab_within_identity_dgnet", "lpips_vgg_within_identity")
    pairs += ("ssim_of_pairs", "psnr_of_pairs", "lpips_alex_of_pairs_demo", "lpips_squeeze_of_pairs")
    groups = group_metrics([*(result(f"{name}_reid") for name in (*sets, "identity_margin")), *map(result, pairs)])
    assert len(groups) == 3
    assert "Other measures" not in [group.title for group in groups]


def test_no_result_is_lost_or_shown_twice():
    names = ["map_hits", "my_metric", "fid_inception", "swap_truth_psnr_db", "swap_truth_psnr_db_structure_unchanged"]
    shown = [kept.name for group in group_metrics(map(result, names)) for kept in group.results]
    assert sorted(shown) == sorted(names)
    assert shown[-1] == "my_metric"


def test_the_page_needs_nothing_but_itself(tmp_path):
    lead = Picture(picture(tmp_path / "swap.png"), "Swaps", row_axis="structure", column_axis="appearance")
    page = written(tmp_path, [result("map_hits")], lead=lead, pictures=[Picture(lead.file, "Again")])
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(page.addresses) == 2
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http" not in (tmp_path / "report.html").read_text().replace("<!doctype html>", "")


@pytest.mark.parametrize(("suffix", "kind"), [("png", "png"), ("jpg", "jpeg"), ("webp", "png"), ("bmp", "png")])
def test_a_picture_is_inside_the_page_pixel_for_pixel(tmp_path, suffix, kind):
    file = picture(tmp_path / f"sheet.{suffix}")
    page = written(tmp_path, pictures=[Picture(file, "Sheet")])
    head, data = page.addresses[0].split(",")
    assert head == f"data:image/{kind};base64"
    inlined = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert np.array_equal(np.asarray(inlined), np.asarray(Image.open(file).convert("RGB")))


def test_every_number_stands_with_its_protocol_and_its_maker(tmp_path):
    results = [
        result("map_hits", 0.4567, "Mean precision at each hit. 5 queries.", made_by={"features": {"hash": "abc123"}}),
        result("fid_reid", 18.239, "In the features of a re-ID run.", higher_is_better=False),
        result("swap_truth_gain_db", 2.5, "gain in PSNR", unit="dB"),
        result("my_own", 3.0, "My own measure."),
    ]
    page = written(tmp_path, results)
    for words in (
        "45.7",
        "18.24",
        "+2.50 dB",
        "5 queries.",
        "In the features of a re-ID run.",
        "Gain in PSNR.",
        "My own",
    ):
        assert words in page.text
    for words in ("features.hash abc123", "map_hits", "fid_reid"):
        assert words in page.text
    assert "map_hits = 0.4567" in page.titles


def test_a_sentence_that_several_results_share_is_said_once(tmp_path):
    names = [("map_hits", "Hits."), ("map_hits_rerank", "Re-ranked with k1=20. Hits."), ("rank1", "First place.")]
    names += [("rank1_rerank", "Re-ranked with k1=20. First place.")]
    text = written(tmp_path, [result(name, 0.5, f"{words} 96 queries.") for name, words in names]).text
    for label, sentence in (
        ("mAP (hits):", "Hits."),
        ("rank-1:", "First place."),
        ("re-ranked:", "Re-ranked with k1=20."),
        ("", "96 queries."),
    ):
        assert text.count(sentence) == 1
        assert f"{label} {sentence}" in text


def test_a_sentence_about_one_cell_names_row_and_column(tmp_path):
    names = ["ssim_within_identity", "ssim_within_identity_real", "lpips_alex_within_identity"]
    text = written(tmp_path, [result(name, 0.5, f"Only {name}.") for name in names]).text
    assert "SSIM within an identity, real: Only ssim_within_identity_real." in text


def test_a_demonstration_is_marked_as_never_to_be_quoted(tmp_path):
    assert not result("fid_random_demo").quotable
    assert "0.25 never to be quoted" in written(tmp_path, [result("fid_random_demo", 0.25), result("fid_reid")]).text
    assert "never to be quoted" not in written(tmp_path, [result("fid_inception")]).text


def test_an_interval_stands_below_its_value(tmp_path):
    kid = result("kid_reid", 0.25, made_by={"interval": [-0.125, 0.625]})
    assert "0.25 -0.125 to 0.625" in written(tmp_path, [kid]).text


def test_nothing_that_was_measured_can_become_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    changes = {"title": evil, "summary": evil, "settings": {evil: evil, "b": {evil: evil}}, "provenance": {evil: evil}}
    page = written(
        tmp_path, [result("a", protocol=evil, made_by={evil: evil})], timings=[Timing(evil, 1, evil)], **changes
    )
    assert "script" not in page.tags
    assert page.text.count("alert(1)") >= 10


def test_settings_provenance_and_stages_are_told(tmp_path):
    page = written(
        tmp_path,
        settings={"dgnet": {"optim": {"lr": 1e-4, "betas": [0, 0.99]}}, "re-ID": "seed: 7"},
        provenance={"data": {"images": 12}},
        timings=[Timing("train", 75, "400 iterations"), Timing("prepare", 0.25), Timing("all", 7200)],
    )
    for words in ("optim.lr 0.0001", "optim.betas 0, 0.99", "seed: 7", "data.images 12", "400 iterations 1 min 15 s"):
        assert words in page.text
    for words in ("0 s", "2 h 00 min", "2 h 01 min"):
        assert words in page.text


def test_the_axes_of_the_lead_picture_are_named(tmp_path):
    lead = Picture(
        picture(tmp_path / "a.png"),
        "Swaps",
        "Made by run 7.",
        row_axis="structure (pose)",
        column_axis="appearance (clothes)",
    )
    text = written(tmp_path, lead=lead).text
    assert "appearance (clothes) structure (pose) Swaps. Made by run 7." in text


@pytest.mark.parametrize(("width", "place"), [(16, "wide"), (6, "beside")])
def test_a_wide_lead_picture_stands_above_the_numbers_and_a_tall_one_beside_them(tmp_path, width, place):
    lead = Picture(picture(tmp_path / "swap.png", height=8, width=width), "Swaps")
    written(tmp_path, [result("map_hits")], lead=lead)
    assert f'<div class="first {place}"' in (tmp_path / "report.html").read_text()


def test_the_same_report_gives_the_same_bytes(tmp_path):
    report = Report("T", "S", Picture(picture(tmp_path / "a.png"), "A"), group_metrics([result("map_hits")]))
    first, second = (write_report(tmp_path / name / "report.html", report) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".json").read_bytes() == second.with_suffix(".json").read_bytes()


def test_the_numbers_lie_beside_the_page_at_full_precision(tmp_path):
    lead = Picture(picture(tmp_path / "a.png"), "A")
    written(tmp_path, [result("map_hits", 1 / 3), result("psnr", math.inf)], lead=lead, timings=[Timing("t", 1.5)])
    values = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert [(metric["name"], float(metric["value"])) for metric in values["metrics"]] == [
        ("map_hits", 1 / 3),
        ("psnr", math.inf),
    ]
    assert values["metrics"][0]["made_by"] == {"reid_eval": "0.1.0"}
    assert len(values["pictures"][0]["sha256"]) == 64
    assert values["timings"] == [{"stage": "t", "elapsed_s": 1.5, "summary": ""}]


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\nhalf"], ids=["missing", "empty", "cut off"])
def test_a_picture_that_cannot_be_shown_is_named_and_the_old_report_stays(tmp_path, content):
    written(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    file = tmp_path / "sheet.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ImageError, match=r"sheet\.png"):
        written(tmp_path, pictures=[Picture(file, "Sheet")])
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_folder_is_collected_with_the_newest_samples_and_the_settings(tmp_path):
    result("map_hits").save(tmp_path / "metrics")
    result("rank1").save(tmp_path / "metrics")
    picture(tmp_path / "pictures" / "truth.png")
    picture(tmp_path / "dgnet" / "samples" / "swap_00000100.png")
    picture(tmp_path / "dgnet" / "samples" / "swap_00000200.png")
    picture(tmp_path / "data" / "train_all" / "0001" / "0001_c1.png")  # a photograph, not for the report
    (tmp_path / "dgnet" / "config.yaml").write_text("seed: 7\n")
    report = report_of_folder(tmp_path, title="Mine")
    assert (report.title, report.lead.title, report.lead.file.name) == ("Mine", "Swap", "swap_00000200.png")
    assert report.lead.column_axis == "appearance (clothes)"
    assert [shown.title for shown in report.pictures] == ["Truth"]
    assert [kept.name for kept in report.results] == ["map_hits", "rank1"]
    assert report.settings == {"dgnet/config.yaml": "seed: 7\n"}
    assert "2 measurements and 2 pictures" in Page(write_report(tmp_path / "report.html", report)).text


def test_metrics_of_different_runs_never_share_a_table(tmp_path):
    result("map_hits", 0.1).save(tmp_path / "a" / "metrics")
    result("map_hits", 0.2).save(tmp_path / "b" / "metrics")
    groups = report_of_folder(tmp_path).groups
    assert [(group.title, group.results[0].value) for group in groups] == [
        ("Finding people, in percent (a)", 0.1),
        ("Finding people, in percent (b)", 0.2),
    ]


def test_a_folder_with_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"no metrics/\*\.json and no pictures"):
        report_of_folder(tmp_path)


@pytest.mark.parametrize(("name", "words"), [("absent", "no such folder"), ("file", "is a file")])
def test_what_is_no_folder_is_named(tmp_path, name, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=f"{name}: {words}; expected the folder of a run"):
        report_of_folder(tmp_path / name)


def test_settings_that_are_no_text_are_named(tmp_path):
    result("map_hits").save(tmp_path / "metrics")
    (tmp_path / "config.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(ReportError, match=r"config\.yaml: no text in UTF-8"):
        report_of_folder(tmp_path)


@pytest.mark.parametrize(("name", "words"), [("a.json", "ends in .html or .htm"), (".", "is a folder")])
def test_a_page_has_a_file_of_its_own(tmp_path, name, words):
    with pytest.raises(OutputError, match=words):
        write_report(tmp_path / name, Report("T", "S", None, []))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_metric_file_stops_the_collection(tmp_path):
    result("map_hits").save(tmp_path / "metrics").write_text('{"format"')
    with pytest.raises(ReportError, match=r"map_hits\.json: cannot be read .* expected a metric file"):
        report_of_folder(tmp_path)


def test_diversity_has_no_arrow_and_stands_beside_that_of_real_pictures(tmp_path):
    results = [
        result("ssim_within_identity", 0.289, higher_is_better=False),
        result("ssim_within_identity_real", 0.279, higher_is_better=False),
        result("psnr_of_pairs", 20.0),
    ]
    page = written(tmp_path, results)
    assert (page.titles.count("higher is better"), page.titles.count("lower is better")) == (1, 0)
    assert "0.289 +0.01 from real 0.279" in page.text


def test_a_measure_of_which_neither_is_better_is_kept_so(tmp_path):
    file = result("variety", higher_is_better=None).save(tmp_path)
    assert MetricResult.load(file).higher_is_better is None
    assert "↑" not in written(tmp_path, [MetricResult.load(file)]).text.split("Written by")[0]


def test_the_columns_of_alpha_are_called_by_it():
    names = ["map_hits_alpha_0", "map_hits_alpha_0_5_rerank", "map_hits_alpha_minus_1", "map_hits"]
    (group,) = group_metrics([result(name) for name in names])
    assert group.columns == ("plain", "alpha 0", "alpha 0.5, re-ranked", "alpha -1")


def test_a_metric_file_replaces_an_earlier_one_and_nothing_else(tmp_path):
    result("a", 1.0).save(tmp_path)
    assert MetricResult.load(result("a", 2.0).save(tmp_path)).value == 2.0
    for text in ("my notes", '{"format": 1}', result("b").to_json()):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(OutputError, match=r"a\.json: exists and was not made by reid-eval"):
            result("a").save(tmp_path)
        assert (tmp_path / "a.json").read_text() == text
        result("a").save(tmp_path, overwrite=True)


def test_a_pipe_among_the_metrics_does_not_hang(tmp_path):
    (tmp_path / "metrics").mkdir()
    os.mkfifo(tmp_path / "metrics" / "a.json")
    with pytest.raises(ReportError, match=r"a\.json: is a pipe or a device"):
        report_of_folder(tmp_path)
