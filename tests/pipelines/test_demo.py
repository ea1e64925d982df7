"""The whole road at the smallest size: every artifact is there and names its maker, and nothing is done twice."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pipelines.road
from pipelines.road import ranking, walk, what_is_missing
from reid_eval.cards import missing_in_record
from reid_eval.errors import Stopped
from reid_eval.locks import BusyError, locked
from reid_eval.report import MetricResult
from reid_models.data.generated import read_manifest
from reid_models.data.index import DatasetIndex
from reid_models.runs import RunDir


def modification_times(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_report_is_one_file_that_needs_no_network(walked):
    page = walked.report.read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert "<script" not in page
    assert "<link" not in page


def test_the_report_shows_every_promised_number(walked):
    names = {entry.stem for entry in walked.metrics.iterdir()}
    assert {"map_hits", "map_trapezoid", "minp", "rank1", "rank3", "rank5", "rank10"} <= names
    assert {"map_hits_rerank", "rank1_rerank", "map_hits_untrained"} <= names
    assert {"fid_reid", "fid_random_demo", "ssim_within_identity", "ssim_within_identity_real"} <= names
    assert {"swap_truth_psnr_db", "swap_truth_gain_db", "swap_truth_psnr_db_structure_unchanged"} <= names


def test_the_generator_learns_from_the_teacher_where_it_is_asked_to(walked):
    run = RunDir.open(walked.dgnet_run, "dgnet")
    (teacher,) = run.made_by["teachers"]
    assert Path(teacher["file"]).is_relative_to(walked.teacher_run.resolve())
    assert "primary" in [line for line in run.read_log() if "total" in line][-1]


def test_every_number_names_its_protocol_and_its_maker(walked):
    for file in walked.metrics.iterdir():
        result = MetricResult.load(file)
        assert len(result.protocol) > 40
        assert missing_in_record(result) == []
        assert any("reid_eval" in key or "dgnet_gen" in key for key in result.made_by)


def test_the_manifest_names_both_parents_checkpoint_and_seed(walked):
    card, rows = read_manifest(walked.generated)
    assert {"checkpoint", "iteration", "seed", "index_fingerprint"} <= card.keys()
    assert rows
    assert all((walked.generated / row["file"]).is_file() for row in rows)
    assert all(row["file"].startswith(f"{row['appearance_pid']:04d}/") for row in rows)
    assert all(row["appearance_pid"] != row["structure_pid"] for row in rows)


def test_walking_again_changes_no_file(walked, make_tiny_road):
    before = modification_times(walked.out)
    walk(make_tiny_road(walked.out))
    assert modification_times(walked.out) == before


def test_a_walk_that_was_stopped_goes_on(tmp_path, make_tiny_road):
    with pytest.raises(Stopped, match="what is finished is kept; run the same command to go on"):
        walk(make_tiny_road(tmp_path / "demo", max_hours=1e-9))
    assert not (tmp_path / "demo" / "stages" / "draw.json").exists()
    walk(make_tiny_road(tmp_path / "demo"))
    assert (tmp_path / "demo" / "report.html").is_file()


@pytest.fixture
def copied(walked, tmp_path, make_tiny_road):
    """A copy of the finished walk that a test may spoil."""
    shutil.copytree(walked.out, tmp_path / "demo", symlinks=True)
    return make_tiny_road(tmp_path / "demo")


def stages_done_again(road, capsys) -> list[str]:
    capsys.readouterr()
    walk(road)
    return re.findall(r"^\[\d/\d\] (\w+): again", capsys.readouterr().err, re.MULTILINE)


def test_a_walk_may_be_moved(copied, capsys):
    assert stages_done_again(copied, capsys) == []


def test_replaced_query_pictures_are_measured_anew_and_nothing_is_trained_again(copied, capsys):
    other = sorted((copied.raw / "bounding_box_train").glob("*.jpg"))[0].read_bytes()
    for picture in (copied.raw / "query").glob("*.jpg"):
        before = picture.stat()
        picture.write_bytes(other)
        os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    before = MetricResult.load(copied.metrics / "map_hits.json").value
    assert stages_done_again(copied, capsys) == ["draw", "prepare", "evaluate", "report"]
    assert MetricResult.load(copied.metrics / "map_hits.json").value != before


def test_generated_pictures_that_are_gone_are_made_again_byte_for_byte(copied, capsys):
    gone = sorted(copied.generated.rglob("*.png"))[:10]
    contents = [file.read_bytes() for file in gone]
    for file in gone:
        file.unlink()
    assert stages_done_again(copied, capsys)[0] == "generate"
    assert [file.read_bytes() for file in gone] == contents


def test_a_measurement_that_is_gone_or_edited_is_made_again(copied, capsys):
    file = copied.metrics / "map_hits.json"
    content = file.read_bytes()
    file.unlink()
    assert "evaluate" in stages_done_again(copied, capsys)
    again = MetricResult.load(file)
    file.write_bytes(content.replace(b'"value": ', b'"value": 1'))
    assert "evaluate" in stages_done_again(copied, capsys)
    assert MetricResult.load(file) == again


def test_a_measurement_of_an_earlier_walk_is_not_reported(copied, capsys):
    result = MetricResult.load(copied.metrics / "fid_reid.json")
    dataclasses.replace(result, name="fid_of_other_settings", value=0.125).save(copied.metrics)
    copied.report.unlink()
    assert stages_done_again(copied, capsys) == ["report"]
    assert "fid_of_other_settings" not in copied.report.with_suffix(".json").read_text()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"grid": (2, 3)}, {"generate_count": 24}], ids=["seed", "grid", "number"]
)
def test_another_seed_grid_or_number_is_evaluated_anew(copied, capsys, change):
    road = dataclasses.replace(copied, **change)
    assert "evaluate" in stages_done_again(road, capsys)


def test_a_training_whose_checkpoints_are_gone_is_made_again(copied, capsys):
    shutil.rmtree(copied.teacher_run / "checkpoints")
    assert "teacher" in stages_done_again(copied, capsys)
    assert list((copied.teacher_run / "checkpoints").glob("*.pt"))


def test_changed_training_pictures_are_trained_on_anew_and_the_old_runs_are_kept(copied, capsys):
    picture = sorted((copied.raw / "bounding_box_train").glob("*.jpg"))[0]
    picture.write_bytes(sorted((copied.raw / "bounding_box_train").glob("*.jpg"))[1].read_bytes())
    again = stages_done_again(copied, capsys)
    assert again == ["draw", "prepare", "teacher", "dgnet", "generate", "evaluate", "report"]
    for folder in (copied.teacher_run, copied.dgnet_run, copied.generated):
        assert folder.with_name(f"{folder.name}.old-1").is_dir()
    assert stages_done_again(copied, capsys) == []


def of_one_camera(data: DatasetIndex) -> DatasetIndex:
    return data.subset(np.flatnonzero(data.camids == 1).tolist())


def of_training_alone(data: DatasetIndex) -> DatasetIndex:
    return data.split("train_all")


def of_gallery_alone(data: DatasetIndex) -> DatasetIndex:
    return data.subset([row for row, record in enumerate(data) if record.split != "query"])


@pytest.mark.parametrize(
    ("part", "name", "protocol", "said"),
    [
        (lambda data: data, "map_hits", "cross-camera", ""),
        (of_one_camera, "map_hits", "no-camera", "ranked by the protocol no-camera: no query has its person"),
        (of_training_alone, "map_hits_seen", "leave-one-out", "those whom the network was trained on. For others: "),
        (of_gallery_alone, "map_hits", "leave-one-out", "ranked by the protocol leave-one-out: no split query"),
    ],
)
def test_people_are_ranked_by_the_protocol_that_their_dataset_allows(copied, part, name, protocol, said):
    data = part(DatasetIndex.from_prepared(copied.prepared))
    results = {result.name: result for result in ranking(copied, data)}
    assert protocol in results[name].protocol
    assert {"map_hits", "map_hits_seen"} & results.keys() == {name}
    assert ("trained on these very pictures" in results[name].protocol) == name.endswith("_seen")
    assert results[name].made_by["how"]["protocol"] == protocol
    missing = what_is_missing(copied, data)
    assert said in missing
    assert bool(said) == bool(missing)


def test_what_cannot_be_ranked_is_said_with_the_command_that_measures_it(copied):
    train = DatasetIndex.from_prepared(copied.prepared).split("train_all")
    alone = train.subset([int(np.flatnonzero(train.pids == pid)[0]) for pid in np.unique(train.pids)])
    assert ranking(copied, alone) == []
    said = what_is_missing(copied, alone)
    assert "is not measured: no split query or gallery, and nobody in two pictures" in said
    assert f"reid-models extract --run {copied.teacher_run} --data DATASET" in said


def test_what_the_pipeline_made_is_made_again_if_it_is_damaged(copied, capsys):
    (copied.generated / "card.json").unlink()
    for file in (copied.metrics / "map_hits.json", copied.report, copied.pictures / "swap.png"):
        file.write_bytes(file.read_bytes()[:100])
    assert stages_done_again(copied, capsys) == ["generate", "evaluate", "report"]
    assert MetricResult.load(copied.metrics / "map_hits.json")
    (copied.prepared / "index.json").unlink()
    (copied.dgnet_run / "run.json").write_text("{")
    assert stages_done_again(copied, capsys)[:2] == ["prepare", "dgnet"]
    assert copied.dgnet_run.with_name("dgnet.old-1").is_dir()
    assert stages_done_again(copied, capsys) == []


LONG = {"generate": "generate", "extract_features": "evaluate", "fid": "evaluate", "swap_truth": "evaluate",
        "ssim_within_identity": "evaluate"}  # fmt: skip


def test_every_long_stage_hears_a_signal_and_goes_on(copied, monkeypatch):
    for file in (copied.generated / "manifest.csv", copied.metrics / "map_hits.json"):
        file.unlink()
    for name, stage in LONG.items():
        work = getattr(pipelines.road, name)

        def after_a_signal(*arguments, work=work, **options):
            os.kill(os.getpid(), signal.SIGHUP)
            return work(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(pipelines.road, name, after_a_signal)
            with pytest.raises(Stopped, match=f"SIGHUP.*, in stage {stage}; run the same command to go on"):
                walk(copied)
    walk(copied)
    assert not list(copied.teacher_run.glob("*.partial"))


def test_of_two_walks_at_once_the_second_is_refused(copied):
    with locked(copied.out / "stages", "python -m pipelines"), pytest.raises(BusyError, match="python -m pipelines"):
        walk(copied)


ROOT = Path(__file__).parents[2]


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_examples_run_on_what_the_road_made(walked, tmp_path):
    assert "mAP" in run_example("rank_a_folder.py", walked.teacher_run, walked.prepared)
    first, second, *_ = sorted((walked.raw / "query").glob("*.jpg"))
    run_example("swap_two_people.py", walked.dgnet_run, first, second, tmp_path / "swapped.png")
    assert (tmp_path / "swapped.png").is_file()
    scores = run_example("score_my_generator.py", walked.prepared / "train_all", walked.generated, walked.teacher_run)
    assert "fid_reid" in scores
    assert "diversity" in scores


def test_examples_are_short_enough_to_read():
    files = sorted((ROOT / "examples").glob("*.py"))
    assert len(files) == 3
    assert all(len(file.read_text().splitlines()) < 60 for file in files)
