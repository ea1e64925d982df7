"""The whole road at the smallest size: every artifact is there and names its maker, and nothing is done twice."""

import json
from pathlib import Path

import pytest

from pipelines.road import Road, ToyWorld, demo_road, walk
from reid_eval.errors import Stopped
from reid_eval.report import MetricResult

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = {
    "teacher": ("schedule.epochs=2", "schedule.warmup_epochs=0", "sampler.ids_per_batch=2", "network.width=4",
                "eval_every=2", "network.bottleneck=16"),
    "dgnet": ("max_iter=4", "batch_size=2", "networks.structure_dim=4", "networks.trunk_width=4", "networks.mlp_dim=8",
              "networks.discriminator_dim=4", "sample_every=2", "checkpoint_every=2", "log_every=1"),
}  # fmt: skip


def tiny_road(out: Path, **changes) -> Road:
    toy = ToyWorld(ids=12, cameras=2, per_camera=3, image_hw=(64, 32))
    return demo_road(out, CONFIGS, toy, overrides=TINY, device="cpu", **changes)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    road = tiny_road(tmp_path_factory.mktemp("road") / "demo")
    walk(road)
    return road


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


def test_every_number_names_its_protocol_and_its_maker(walked):
    for file in walked.metrics.iterdir():
        result = MetricResult.load(file)
        assert len(result.protocol) > 40
        assert any("reid_eval" in key or "dgnet_gen" in key for key in result.made_by)


def test_the_manifest_names_both_parents_checkpoint_and_seed(walked):
    header, *rows = [json.loads(line) for line in (walked.generated / "manifest.jsonl").read_text().splitlines()]
    assert {"checkpoint", "iteration", "seed", "index_fingerprint"} <= header.keys()
    assert all((walked.generated / row["file"]).is_file() for row in rows)
    assert all(row["file"].startswith(f"{row['appearance_pid']:04d}/") for row in rows)
    assert all(row["appearance_pid"] != row["structure_pid"] for row in rows)


def test_walking_again_changes_no_file(walked):
    before = modification_times(walked.out)
    walk(tiny_road(walked.out))
    assert modification_times(walked.out) == before


def test_a_walk_that_was_stopped_goes_on(tmp_path):
    with pytest.raises(Stopped, match="continue with --resume"):
        walk(tiny_road(tmp_path / "demo", max_hours=1e-9))
    assert not (tmp_path / "demo" / "stages" / "teacher.json").exists()
    walk(tiny_road(tmp_path / "demo"))
    assert (tmp_path / "demo" / "report.html").is_file()
