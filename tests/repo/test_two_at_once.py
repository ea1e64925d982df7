"""Every command that writes, started twice at once with one output: both are right, or the second is refused."""

import json
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch
from click.testing import CliRunner
from torchvision import models

import dgnet_gen.cli
import reid_eval.cli
import reid_models.cli
from reid_eval import weights
from reid_eval.cards import missing_in_record
from reid_eval.files import file_fingerprint, list_images
from reid_eval.report import MetricResult

GROUPS = {"reid-eval": reid_eval.cli.main, "reid-models": reid_models.cli.main, "dgnet-gen": dgnet_gen.cli.main}
# These write networks of published sizes alone, each behind one lock; their own tests hold it.
EXPORTS = {"reid-models export", "dgnet-gen export"}
READERS = {"reid-eval diff", "reid-eval weights list", "reid-models check", "reid-models inspect"}

REID = """
image_hw: [32, 16]
network: {trunk: small, width: 4, weights: none, bottleneck: 16}
sampler: {ids_per_batch: 2, images_per_id: 2}
schedule: {epochs: 2, warmup_epochs: 0}
num_workers: 0
"""
DGNET = """
networks: {image_hw: [32, 16], trunk: small, trunk_width: 2, bottleneck: 8, structure_dim: 2, n_res: 1, mlp_dim: 8,
  discriminator_dim: 2, discriminator_res: 1, num_scales: 1}
trunk_weights: none
weights: {teacher: 0}
batch_size: 2
max_iter: 3
pad_px: 1
num_workers: 0
checkpoint_every: 2
"""

# In a folder of its own that holds `given` (a link to what is read) the command writes to `out`, and nowhere else.
_RANDOM = "--extractor random --device cpu --batch-size 8"
_DGNET = "--run given/dgnet --data given/raw --device cpu"
CASES = {
    "reid-eval rank": "given/features.npz --out out/metrics --csv out/queries.csv --plot out/curves.png "
    "--sheets out/sheets --images given/raw",
    "reid-eval report": "given/measured --out out/page.html",
    "reid-eval fid": f"given/real given/real {_RANDOM} --out out --csv out/fid.csv",
    "reid-eval kid": f"given/real given/fake {_RANDOM} --out out --csv out/kid.csv",
    "reid-eval prdc": f"given/real given/fake {_RANDOM} --out out",
    "reid-eval ssim": "given/fake --pairs 2 --out out --csv out/ssim.csv",
    "reid-eval lpips": "given/pairs given/pairs --device cpu --any-weights --lpips-weights given/trunk.pth "
    "--heads given/heads.pth --out out",
    "reid-eval images": f"given/real given/fake {_RANDOM} --metrics fid,kid,ssim --pairs 2 --out out --csv out/all.csv",
    "reid-eval stats": f"given/real out/real.npz {_RANDOM}",
    "reid-eval weights fetch": "inception",
    "reid-eval weights import": "given/downloads",
    "reid-eval weights verify": "",
    "reid-models toy": "out/toy --ids 4 --cameras 2 --per-camera 2 --image-size 64x32 --preview out/toy.png",
    "reid-models prepare": "--raw given/raw --out out --copy",
    "reid-models train": "--config given/reid.yaml --data given/raw --out out --device cpu",
    "reid-models extract": "--run given/reid --data given/raw --out out/features.npz --workers 0 --device cpu",
    "dgnet-gen train": "--config given/dgnet.yaml --data given/raw --out out --device cpu",
    "dgnet-gen generate": f"{_DGNET} --count 6 --out out --out-by-structure out-by-structure",
    "dgnet-gen regenerate": "given/fake {picture} --run given/dgnet --data given/raw --device cpu --out out/again.png",
    "dgnet-gen test": f"{_DGNET} --out out --mat out/pytorch_result.mat",
    "dgnet-gen swap": f"{_DGNET} --rows 2 --cols 2 --out out/swap.png",
    "dgnet-gen rainbow": f"{_DGNET} --rows 2 --cols 2 --out out/rainbow.png",
    "dgnet-gen smooth": f"{_DGNET} --rows 2 --steps 2 --out out/smooth.png --animate out/smooth.gif",
    "dgnet-gen smooth-structure": f"{_DGNET} --rows 2 --steps 2 --out out/smooth.png --animate out/smooth.webp",
    "dgnet-gen one-by-one": f"{_DGNET} --rows 2 --cols 2 --out out",
    "dgnet-gen swap-truth": "given/fake --toy given/raw --out out/metrics --sheet out/truth.png",
}


def commands_of(name: str, group: click.Command) -> Iterator[str]:
    """The full names of all commands of a group, also those in groups within it."""
    for inner in getattr(group, "commands", {}).values():
        yield from commands_of(f"{name} {inner.name}", inner)
    if not hasattr(group, "commands"):
        yield name


def test_every_command_is_tried_or_known_to_write_nothing():
    known = [name for program, group in GROUPS.items() for name in commands_of(program, group)]
    assert sorted(known) == sorted([*CASES, *EXPORTS, *READERS])


class End(NamedTuple):
    exit_code: int
    stderr: str


def start(name: str, arguments: str, times: int = 1) -> list[End]:
    """Start a command so often at once, in processes of their own in the working folder, and wait for all of them."""
    context = multiprocessing.get_context("fork")  # everything is imported already
    together = context.Barrier(times)
    pipes = [context.Pipe(duplex=False) for _ in range(times)]
    words = [*name.split(" ")[1:], *arguments.split()]
    processes = [context.Process(target=_run, args=(GROUPS[name.split(" ")[0]], words, together, w)) for _, w in pipes]
    for process in processes:
        process.start()
    for _, writer in pipes:
        writer.close()
    ends = [End(*reader.recv()) for reader, _ in pipes]
    for process in processes:
        process.join()
    return ends


def _run(group: click.Group, words: list[str], together: threading.Barrier, answer) -> None:
    torch.set_num_threads(1)
    together.wait(60)
    result = CliRunner().invoke(group, words)
    failed = result.exception if result.exit_code and not isinstance(result.exception, SystemExit) else ""
    answer.send((result.exit_code, f"{result.stderr}{failed!r}" if failed else result.stderr))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the commands read; not to be written to."""
    root = tmp_path_factory.mktemp("given")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root.parent)
        at = root.name
        (root / "reid.yaml").write_text(REID)
        (root / "dgnet.yaml").write_text(DGNET)
        made = [
            ("reid-models toy", f"{at}/raw --ids 6 --cameras 2 --per-camera 2 --image-size 64x32"),
            ("reid-models train", f"--config {at}/reid.yaml --data {at}/raw --out {at}/reid --device cpu"),
            ("reid-models extract", f"--run {at}/reid --out {at}/features.npz --workers 0 --device cpu"),
            ("dgnet-gen train", f"--config {at}/dgnet.yaml --data {at}/raw --out {at}/dgnet --device cpu"),
            ("dgnet-gen generate", f"--run {at}/dgnet --count 12 --out {at}/fake --device cpu"),
            ("reid-eval rank", f"{at}/features.npz --out {at}/measured/metrics"),
        ]
        for name, arguments in made:
            ((code, stderr),) = start(name, arguments)
            assert code == 0, stderr
    (root / "real").symlink_to(root / "raw" / "bounding_box_train")
    (root / "pairs").mkdir()
    for picture in list_images(root / "real")[:1]:
        shutil.copy(picture, root / "pairs")
    generator = torch.Generator().manual_seed(0)
    trunk = {f"features.{name}": value for name, value in models.alexnet(weights=None).features.state_dict().items()}
    torch.save(
        {name: torch.randn(value.shape, generator=generator) / 20 for name, value in trunk.items()}, root / "trunk.pth"
    )
    channels = (64, 192, 384, 256, 256)
    heads = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for n, c in enumerate(channels)}
    torch.save(heads, root / "heads.pth")
    (root / "downloads").mkdir()
    (root / "downloads" / "renamed.pth").write_bytes(b"weights")
    return root


@pytest.fixture
def own_caches(given, tmp_path, monkeypatch):
    """Caches in the working folder, one small published file, and a net that gives it."""
    made = weights.WeightFile(
        "inception", "net.pth", file_fingerprint(given / "downloads" / "renamed.pth")[:8], "7 bytes", ""
    )
    monkeypatch.setattr(weights, "KNOWN", (made, *weights.KNOWN[1:]))

    def download(address: str, file: str, **_: object) -> None:
        shutil.copy(given / "downloads" / "renamed.pth", f"{file}.{os.getpid()}")
        os.replace(f"{file}.{os.getpid()}", file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setenv("REID_CACHE", "cache")
    monkeypatch.setenv("TORCH_HOME", "torch")


# What an output says of when and how quickly it was made, and where.
_OF_ITS_TIME = re.compile(
    r'"(created|began|ended|time|pid|host|\w*seconds|\w*_s|\w*_per_second|\w*memory\w*)": ?("[^"]*"|[\d.e+-]+)'
)


def written(folder: Path) -> dict[str, object]:
    """What lies below a folder: texts without times, lists of records in some order, and bytes of everything else."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_dir() or (name.startswith("cache/") and not name.startswith("cache/weights/")):
            continue
        if file.name.startswith("events.out.tfevents"):
            found["events"] = "of its time"
        elif file.suffix == ".pt":
            found[name] = hashes_of(file)
        elif file.suffix in (".json", ".jsonl", ".html"):
            found[name] = _OF_ITS_TIME.sub("", file.read_text())
        else:
            found[name] = sorted(file.read_bytes().split(b"\n"))
    return found


def hashes_of(file: Path) -> object:
    """The tensors of a checkpoint, whatever else it tells of its making."""
    found = torch.load(file, weights_only=True)
    return [value.tolist() for _, value in sorted(_tensors(found)) if value.numel() < 10_000]


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")


_BUSY = re.compile(
    r"error: .+: (reid-eval|reid-models|dgnet-gen) [\w. -]+ \(process \d+ on .+, since \d{4}-\d\d-\d\d "
    r"\d\d:\d\d:\d\d\) is writing here; .*"
)
_THERE_ALREADY = re.compile(r"error: .*(--reset|--overwrite|--resume).*")


@pytest.mark.parametrize("name", CASES)
def test_two_at_once_are_both_right_or_the_second_is_refused(name, given, own_caches, tmp_path, monkeypatch):
    picture = list_images(given / "fake")[0].relative_to(given / "fake").as_posix()
    arguments = CASES[name].replace("{picture}", picture)
    for folder in ("alone", "together"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "given").symlink_to(given)
    monkeypatch.chdir(tmp_path / "alone")
    assert [end for end in start(name, arguments) if end.exit_code] == []
    monkeypatch.chdir(tmp_path / "together")
    refused = [end for end in start(name, arguments, times=2) if end.exit_code]
    assert len(refused) < 2, refused
    for end in refused:
        line = end.stderr.splitlines()[-1]
        assert end.exit_code == 1
        assert _BUSY.fullmatch(line) or _THERE_ALREADY.fullmatch(line), end.stderr
    for file in tmp_path.glob("alone/out/**/*.json"):
        if "higher_is_better" in (said := json.loads(file.read_text())):  # a number: it says all of how it came about
            assert missing_in_record(MetricResult.from_json(said, file)) == [], file
    alone, together = written(tmp_path / "alone"), written(tmp_path / "together")
    assert sorted(together) == sorted(alone)
    assert [file for file in alone if together[file] != alone[file]] == []
