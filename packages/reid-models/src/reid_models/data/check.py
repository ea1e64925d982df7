"""What a dataset should contain, what was found, and what to do about the difference.

check = check_dataset("Market-1501-v15.09.15")
print(check.to_text())
check.can_train        # False when a finding is an error
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reid_eval.files import ImageError, read_pixels
from reid_eval.progress import track
from reid_models.data.index import DatasetIndex

Severity = Literal["error", "warning", "note"]

# Published images and identities per split (docs/data-and-files.md names the sources); junk and distractors included.
PUBLISHED: dict[str, list[dict[str, tuple[int, int]]]] = {
    "market1501": [{"train": (12_936, 751), "query": (3_368, 750), "gallery": (19_732, 752)}],
    "dukemtmc": [{"train": (16_522, 702), "query": (2_228, 702), "gallery": (17_661, 1_110)}],
    "occluded-duke": [{"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)}],
    "msmt17": [{"train": (30_248, 1_041), "val": (2_373, 1_041), "query": (11_659, 3_060), "gallery": (82_161, 3_060)}],
    "cuhk03np": [
        {"train": (7_368, 767), "query": (1_400, 700), "gallery": (5_328, 700)},
        {"train": (7_365, 767), "query": (1_400, 700), "gallery": (5_332, 700)},
    ],
    "veri776": [{"train": (37_778, 576), "query": (1_678, 200), "gallery": (11_579, 200)}],
    "viper": [{"train": (632, 316), "query": (316, 316), "gallery": (316, 316)}],
}
_CAMERAS = {"market1501": 6, "dukemtmc": 8, "occluded-duke": 8, "msmt17": 15, "cuhk03np": 2, "veri776": 20, "viper": 2}
# Query pictures that are members of the gallery too, by the datasets' own construction.
_QUERY_IN_GALLERY = ("occluded-duke", "veri776")


@dataclass(frozen=True)
class Finding:
    """Something about the dataset that a user should know, and what to do."""

    severity: Severity
    what: str
    remedy: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitCount:
    """What one split holds, and what the published set holds (None where it is not known)."""

    split: str
    images: int
    ids: int
    cameras: dict[int, int]
    junk: int
    distractors: int
    expected_images: int | None = None
    expected_ids: int | None = None


@dataclass(frozen=True)
class DatasetCheck:
    """The result of a check."""

    root: str
    layout: str
    splits: tuple[SplitCount, ...]
    findings: tuple[Finding, ...]

    @property
    def can_train(self) -> bool:
        """Whether training could start."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_text(self) -> str:
        """Tables and findings for people."""
        lines = [f"{self.root}: {self.layout}", ""]
        lines.append(
            f"{'split':<12}{'images':>9}{'expected':>10}{'ids':>7}{'expected':>10}{'junk':>7}{'distract.':>11}"
        )
        for split in self.splits:
            expected = ["-" if value is None else f"{value}" for value in (split.expected_images, split.expected_ids)]
            lines.append(
                f"{split.split:<12}{split.images:>9}{expected[0]:>10}{split.ids:>7}{expected[1]:>10}"
                f"{split.junk:>7}{split.distractors:>11}"
            )
        lines.append("")
        for split in self.splits:
            cameras = "  ".join(f"{_camera(camid)}: {count}" for camid, count in split.cameras.items())
            lines.append(f"{split.split:<12}{cameras}")
        for finding in self.findings:
            lines += ["", f"{finding.severity}: {finding.what}", f"  -> {finding.remedy}"]
            lines += [f"     {example}" for example in finding.examples]
        verdict = "training can start" if self.can_train else "training cannot start"
        return "\n".join([*lines, "", verdict])

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({**dataclasses.asdict(self), "can_train": self.can_train}, indent=2)


def check_dataset(data: DatasetIndex | Path | str, *, layout: str = "auto", decode: bool = False) -> DatasetCheck:
    """Look for everything about a dataset that has cost people days.

    `decode` also reads every picture. Byte-identical files are found by size first, so only candidates are read.

    Raises:
        DatasetError: no known dataset.
    """
    index = data if isinstance(data, DatasetIndex) else DatasetIndex.open(data, layout)
    published = _published_for(index)
    splits = tuple(_count(index, name, published) for name in index.splits)
    findings = [*_structure_findings(index, published), *_file_findings(index, decode)]
    order: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return DatasetCheck(str(index.root), index.layout, splits, tuple(findings))


def _published_for(index: DatasetIndex) -> dict[str, tuple[int, int]]:
    """The published counts nearest to what was found; none for layouts without any."""
    variants = PUBLISHED.get(index.layout, [])
    found = Counter(record.split for record in index)
    return min(
        variants,
        key=lambda counts: sum(abs(found[split] - images) for split, (images, _) in counts.items()),
        default={},
    )


def _count(index: DatasetIndex, name: str, published: dict[str, tuple[int, int]]) -> SplitCount:
    split = index.split(name)
    images, ids = published.get(name, (None, None))
    cameras = Counter(int(camid) for camid in split.camids)
    return SplitCount(
        split=name,
        images=len(split),
        ids=split.num_ids,
        cameras=dict(sorted(cameras.items())),
        junk=int((split.pids == -1).sum()),
        distractors=int((split.pids == 0).sum()) if name == "gallery" and index.layout != "msmt17" else 0,
        expected_images=images,
        expected_ids=ids,
    )


def _structure_findings(index: DatasetIndex, published: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    if index.unparsed:
        yield Finding(
            "warning",
            f"{len(index.unparsed)} image names do not parse and are left out",
            "rename them as the layout demands, or remove them",
            _names(index.unparsed),
        )
    counts = Counter(record.split for record in index)
    differing = {split: images for split, (images, _) in published.items() if counts[split] != images}
    if differing:
        parts = ", ".join(f"{split} {counts[split]} instead of {images}" for split, images in differing.items())
        share = sum(counts.values()) / sum(images for images, _ in published.values())
        near = 0.9 < share < 1.1
        yield Finding(
            "warning" if near else "note",
            f"differs from the published full set: {parts}",
            "unpack the archive again: files are missing or too many"
            if near
            else "fine for a subset or a toy; numbers on it cannot be compared with published ones",
        )
    yield from _camera_findings(index)
    people: dict[str, set[int]] = {name: _people(index, name) for name in index.splits}
    training = people.get("train", set()) | people.get("val", set())
    if not training:
        yield Finding("error", "no training images", "prepare or unpack the train split")
    elif len(training) == 1:
        yield Finding("error", "one identity to train on", "a classifier and a swap take at least two")
    else:
        yield from _training_findings(index)
    test = people.get("query", set()) | people.get("gallery", set())
    if index.layout != "msmt17" and (shared := sorted(training & test)):  # MSMT17 numbers its halves independently
        yield Finding(
            "warning",
            f"{len(shared)} identities are in training and test",
            "scores will flatter the network; split by identity",
            tuple(str(pid) for pid in shared[:5]),
        )
    if "query" in people and "gallery" in people:
        yield from _query_findings(index)
    elif "query" in people or "gallery" in people:
        present, absent = ("query", "gallery") if "query" in people else ("gallery", "query")
        yield Finding("warning", f"a {present} split but no {absent} split", "nothing can be ranked; unpack both")


def _camera_findings(index: DatasetIndex) -> Iterator[Finding]:
    cameras = {int(camid) for camid in index.camids if camid > 0}
    if (index.camids < 0).any():
        yield Finding(
            "warning",
            f"{int((index.camids < 0).sum())} images have no camera in their name",
            "ranking will not leave out same-camera matches; rename as 0002_c1_...jpg or use a CSV",
        )
    elif len(cameras) == 1:
        yield Finding(
            "warning", "all images are from one camera", "cross-camera ranking has no valid query; add a second camera"
        )
    most = _CAMERAS.get(index.layout)
    if most is not None and cameras and max(cameras) > most:
        yield Finding(
            "warning", f"camera {max(cameras)} in a dataset of {most} cameras", "check the names of its files"
        )


def _training_findings(index: DatasetIndex) -> Iterator[Finding]:
    train = index.split("train_all")
    images = Counter(int(pid) for pid in train.pids)
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in train:
        cameras[record.pid].add(record.camid)
    if single := sorted(pid for pid, count in images.items() if count == 1):
        yield Finding(
            "warning",
            f"{len(single)} training identities have one image",
            "they give no positive pair; add images or leave them out",
            tuple(str(pid) for pid in single[:5]),
        )
    one_camera = sorted(pid for pid, seen in cameras.items() if len(seen) == 1 and images[pid] > 1)
    if one_camera and len({int(camid) for camid in index.camids}) > 1:
        yield Finding(
            "note",
            f"{len(one_camera)} training identities are seen by one camera",
            "they teach nothing about changes of camera",
            tuple(str(pid) for pid in one_camera[:5]),
        )


def _query_findings(index: DatasetIndex) -> Iterator[Finding]:
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in index.split("gallery"):
        cameras[record.pid].add(record.camid)
    known = (index.camids > 0).any()
    query = index.split("query")
    lonely = [
        record
        for record in query
        if not (cameras[record.pid] - ({record.camid} if known and record.camid > 0 else set()))
    ]
    if lonely:
        everyone = len(lonely) == len(query)
        yield Finding(
            "error" if everyone else "warning",
            f"{len(lonely)} of {len(query)} queries have no match in another camera",
            "nothing can be ranked: are cameras or splits mixed up?" if everyone else "they are skipped when scoring",
            tuple(record.path.name for record in lonely[:5]),
        )


def _file_findings(index: DatasetIndex, decode: bool) -> Iterator[Finding]:
    missing, by_size = [], defaultdict(list)
    for record in index:
        try:
            by_size[record.path.stat().st_size].append(record)
        except OSError:
            missing.append(record.path)
    if missing:
        yield Finding(
            "error",
            f"{len(missing)} listed files are not there",
            "unpack the images, or correct the list",
            _names(missing),
        )
    if empty := [record.path for record in by_size.pop(0, [])]:
        yield Finding("error", f"{len(empty)} files are empty", "unpack the archive again", _names(empty))
    copies = defaultdict(list)
    candidates = [record for records in by_size.values() if len(records) > 1 for record in records]
    for record in track(candidates, "comparing files"):
        copies[hashlib.sha256(record.path.read_bytes()).digest()].append(record)
    same = [records for records in copies.values() if len({record.path.resolve() for record in records}) > 1]
    if index.layout in _QUERY_IN_GALLERY:
        expected = [records for records in same if {record.split for record in records} == {"query", "gallery"}]
        if expected:
            yield Finding(
                "note",
                f"{len(expected)} query images lie in the gallery too",
                "as this dataset is made; same camera, so they do not count",
            )
        same = [records for records in same if records not in expected]
    if same:
        yield Finding(
            "warning",
            f"{len(same)} groups of byte-identical files",
            "remove all but one of each, above all across splits",
            tuple(" = ".join(_relative(index, record.path) for record in records[:3]) for records in same[:5]),
        )
    if decode:
        broken = []
        for record in track(index.records, "decoding"):
            try:
                read_pixels(record.path)
            except ImageError:
                broken.append(record.path)
        if broken:
            yield Finding(
                "error",
                f"{len(broken)} images cannot be read",
                "restore them from the archive, or remove them",
                _names(broken),
            )


def _people(index: DatasetIndex, split: str) -> set[int]:
    """The identities of a split that are people: no junk, no distractors."""
    lowest = 0 if index.layout == "msmt17" or split in ("train", "val") else 1
    return {int(pid) for pid in index.split(split).pids if pid >= lowest}


def _names(paths: tuple[Path, ...] | list[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths[:5])


def _relative(index: DatasetIndex, path: Path) -> str:
    return str(path.relative_to(index.root)) if path.is_relative_to(index.root) else str(path)


def _camera(camid: int) -> str:
    return f"c{camid}" if camid > 0 else "unknown"
