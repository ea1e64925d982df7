"""What a dataset should contain, what was found, and what to do about the difference.

check = check_dataset("Market-1501-v15.09.15")
print(check.to_text())
check.can_train        # False when a finding is an error
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reid_eval.files import ImageError, read_pixels
from reid_eval.progress import track
from reid_eval.ranking import ProtocolName
from reid_models.data.index import SPLITS, DatasetIndex, ImageRecord, dataset_of_names

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Published:
    """What a split of the full set holds, junk and distractors included; `cameras` counts the images of c1, c2, ..."""

    images: int
    ids: int
    cameras: tuple[int, ...] = ()


# docs/data-and-files.md names the sources. Where a dataset has variants, the one nearest to what was found is meant.
PUBLISHED: dict[str, list[dict[str, Published]]] = {
    "market1501": [
        {
            "train": Published(12_936, 751, (2_017, 1_709, 2_707, 920, 2_338, 3_245)),
            "query": Published(3_368, 750, (668, 530, 717, 248, 622, 583)),
            "gallery": Published(19_732, 752, (3_156, 2_944, 3_803, 1_671, 3_814, 4_344)),
        }
    ],
    "dukemtmc": [
        {"train": Published(16_522, 702), "query": Published(2_228, 702), "gallery": Published(17_661, 1_110)}
    ],
    "occluded-duke": [
        {
            "train": Published(15_618, 702, (1_982, 3_009, 1_088, 1_395, 1_685, 3_700, 1_330, 1_429)),
            "query": Published(2_210, 519, (1_137, 215, 97, 164, 92, 314, 80, 111)),
            "gallery": Published(17_661, 1_110, (2_704, 2_798, 828, 1_139, 1_209, 3_308, 1_255, 4_420)),
        }
    ],
    "msmt17": [
        {
            "train": Published(30_248, 1_041, (4_504, 193, 416, 1_522, 3_967, 1_577, 3_216, 738, 1_316, 615, 2_931,
                                               1_254, 3_410, 3_533, 1_056)),
            "val": Published(2_373, 1_041, (406, 10, 38, 92, 329, 101, 237, 57, 80, 40, 223, 110, 225, 343, 82)),
            "query": Published(11_659, 3_060, (1_882, 78, 186, 480, 1_689, 524, 1_202, 302, 445, 294, 1_007, 381,
                                               1_246, 1_511, 432)),
            "gallery": Published(82_161, 3_060, (12_368, 613, 1_319, 3_440, 11_018, 4_159, 8_199, 2_235, 3_377, 1_958,
                                                 7_571, 3_136, 9_068, 10_310, 3_390)),
        }
    ],
    "cuhk03np": [
        {
            "train": Published(7_368, 767, (3_607, 3_761)),
            "query": Published(1_400, 700, (700, 700)),
            "gallery": Published(5_328, 700, (2_615, 2_713)),
        },
        {
            "train": Published(7_365, 767, (3_601, 3_764)),
            "query": Published(1_400, 700, (700, 700)),
            "gallery": Published(5_332, 700, (2_617, 2_715)),
        },
    ],
    "veri776": [{"train": Published(37_778, 576), "query": Published(1_678, 200), "gallery": Published(11_579, 200)}],
    "viper": [{"train": Published(632, 316), "query": Published(316, 316), "gallery": Published(316, 316)}],
}  # fmt: skip
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
    expected_cameras: dict[int, int] | None = None

    @property
    def agrees(self) -> bool:
        """Whether no count differs from a published one."""
        found = (self.images, self.ids, self.cameras)
        expected = (self.expected_images, self.expected_ids, self.expected_cameras)
        return all(published in (None, count) for count, published in zip(found, expected, strict=True))


@dataclass(frozen=True)
class DatasetCheck:
    """The result of a check. `dataset` is the layout itself or, of a prepared folder, the one its file names are of."""

    root: str
    layout: str
    dataset: str
    splits: tuple[SplitCount, ...]
    findings: tuple[Finding, ...]

    @property
    def can_train(self) -> bool:
        """Whether training could start."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_text(self) -> str:
        """Tables and findings for people."""
        of = f" ({self.dataset})" if self.dataset != self.layout else ""
        lines = [f"{self.root}: {self.layout}{of}", "", *_split_table(self.splits), "", *_camera_table(self.splits)]
        if any(split.expected_images is not None for split in self.splits):
            agrees = all(split.agrees for split in self.splits)
            lines += ["", "all as published" if agrees else "found / published, where they differ"]
        for finding in self.findings:
            lines += ["", f"{finding.severity}: {finding.what}", f"  -> {finding.remedy}"]
            lines += [f"     {example}" for example in finding.examples]
        verdict = "training can start" if self.can_train else "training cannot start"
        return "\n".join([*lines, "", verdict])

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({**dataclasses.asdict(self), "can_train": self.can_train}, indent=2)


def _split_table(splits: tuple[SplitCount, ...]) -> list[str]:
    rows = [
        (
            split.split,
            _of_expected(split.images, split.expected_images),
            _of_expected(split.ids, split.expected_ids),
            f"{split.junk:,}",
            f"{split.distractors:,}",
        )
        for split in splits
    ]
    return _table([("split", "images", "ids", "junk", "distractors"), *rows])


def _camera_table(splits: tuple[SplitCount, ...]) -> list[str]:
    """A row a camera, a column a split. Cameras without a picture share a line."""
    found = sorted({camid for split in splits for camid in split.cameras})
    rows = [
        (
            _camera(camid),
            *(_of_expected(split.cameras.get(camid, 0), (split.expected_cameras or {}).get(camid)) for split in splits),
        )
        for camid in found
    ]
    lines = _table([("camera", *(split.split for split in splits)), *rows])
    absent = sorted({camid for split in splits for camid in split.expected_cameras or {}} - set(found))
    return [*lines, f"no image of {', '.join(map(_camera, absent))}"] if absent else lines


def _of_expected(found: int, expected: int | None) -> str:
    """What was found; beside it what was expected, if that is known and another number."""
    return f"{found:,}" if expected in (None, found) else f"{found:,} / {expected:,}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns as wide as they need to be, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(
            cell.rjust(width) if position else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def check_dataset(data: DatasetIndex | Path | str, *, layout: str = "auto", decode: bool = False) -> DatasetCheck:
    """Look for everything about a dataset that has cost people days.

    `decode` also reads every picture. Byte-identical files are found by size first, so only candidates are read.

    Raises:
        DatasetError: no known dataset.
    """
    index = data if isinstance(data, DatasetIndex) else DatasetIndex.open(data, layout)
    dataset = _dataset_of(index)
    published = _published_for(index, dataset)
    names = [name for name in SPLITS if name in index.splits or name in published]
    splits = tuple(_count(index, dataset, name, published.get(name)) for name in names)
    findings = [
        *_structure_findings(index, dataset),
        *_published_findings(index, published, splits),
        *_file_findings(index, dataset, decode),
    ]
    order: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return DatasetCheck(str(index.root), index.layout, dataset, splits, tuple(findings))


def training_findings(index: DatasetIndex) -> list[Finding]:
    """What stands in the way of training on a dataset, or should be known before; no file is read."""
    findings = [
        dataclasses.replace(finding, severity="warning") if "queries have no match" in finding.what else finding
        for finding in _structure_findings(index, _dataset_of(index))
    ]
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def fitting_protocol(index: DatasetIndex) -> ProtocolName | None:
    """The protocol that query and gallery can be ranked by; None if there is nothing to rank."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in index:
        if record.split == "gallery":
            cameras[record.pid].add(record.camid)
    query = [record for record in index if record.split == "query" and record.pid in cameras]
    if not query:
        return None
    found = [cameras[record.pid] - ({record.camid} - {-1}) for record in query]
    return "cross-camera" if any(found) else "no-camera"


def _dataset_of(index: DatasetIndex) -> str:
    """Whose pictures these are: a prepared folder keeps the names, and with them what they mean."""
    return index.layout if index.layout != "prepared" else dataset_of_names(index) or index.layout


def _published_for(index: DatasetIndex, dataset: str) -> dict[str, Published]:
    """The published counts nearest to what was found; none for layouts without any."""
    found = Counter(record.split for record in index)
    published = min(
        PUBLISHED.get(dataset, []),
        key=lambda counts: sum(abs(found[split] - full.images) for split, full in counts.items()),
        default={},
    )
    if found["val"] and published and "val" not in published:  # prepared: one picture of each identity is held out
        train = published["train"]
        held_out = Published(train.ids, train.ids)
        return {**published, "train": Published(train.images - train.ids, train.ids), "val": held_out}
    return published


def _count(index: DatasetIndex, dataset: str, name: str, published: Published | None) -> SplitCount:
    split = index.split(name) if name in index.splits else index.subset([])
    cameras = Counter(int(camid) for camid in split.camids)
    return SplitCount(
        split=name,
        images=len(split),
        ids=split.num_ids,
        cameras=dict(sorted(cameras.items())),
        junk=int((split.pids == -1).sum()),
        distractors=int((split.pids == 0).sum()) if name == "gallery" and dataset != "msmt17" else 0,
        expected_images=published.images if published else None,
        expected_ids=published.ids if published else None,
        expected_cameras=dict(enumerate(published.cameras, start=1)) if published and published.cameras else None,
    )


def _published_findings(
    index: DatasetIndex, published: dict[str, Published], splits: tuple[SplitCount, ...]
) -> Iterator[Finding]:
    """Splits and cameras that differ from the full set, nearly full splits apart from mere parts of one."""
    images = {split.split: split.images for split in splits}
    differing = {name: full.images for name, full in published.items() if images.get(name, 0) != full.images}
    near = {name for name, full in published.items() if 0.9 < images.get(name, 0) / full.images < 1.1}
    if few_off := {name: full for name, full in differing.items() if name in near}:
        yield Finding(
            "warning",
            f"nearly the published full set, but {_instead(images, few_off)}",
            "unpack the archive again: files are missing or too many",
        )
    if parts := {name: full for name, full in differing.items() if name not in near}:
        yield Finding(
            "note",
            f"not the published full set: {_instead(images, parts)}",
            "fine for a subset or a toy; numbers on it cannot be compared with published ones",
        )
    cameras_off = [
        f"{split.split} {_camera(camid)}: {split.cameras.get(camid, 0):,} instead of {expected.get(camid, 0):,}"
        for split in splits
        if split.split in near and (expected := split.expected_cameras)
        for camid in sorted({*expected, *split.cameras})
        if split.cameras.get(camid, 0) != expected.get(camid, 0)
    ]
    if cameras_off:
        yield Finding(
            "warning",
            f"{len(cameras_off)} cameras hold another number of images than published",
            "look there for what is missing, too many or renamed; unpacking the archive again mends it",
            tuple(cameras_off),
        )


def _instead(found: dict[str, int], expected: dict[str, int]) -> str:
    return ", ".join(f"{name} {found.get(name, 0):,} instead of {images:,}" for name, images in expected.items())


def _structure_findings(index: DatasetIndex, dataset: str) -> Iterator[Finding]:
    if index.unparsed:
        yield Finding(
            "warning",
            f"{len(index.unparsed)} image names do not parse and are left out",
            "rename them as the layout demands (docs/data-and-files.md), or remove them",
            _names(index.unparsed),
        )
    yield from _camera_findings(index, dataset)
    people = {name: _people(index, dataset, name) for name in index.splits}
    training = people.get("train", set()) | people.get("val", set())
    if not training:
        yield Finding("error", "no training images", "prepare or unpack the train split")
    elif len(training) == 1:
        yield Finding("error", "one identity to train on", "a classifier and a swap take at least two")
    else:
        yield from _training_findings(index)
    test = people.get("query", set()) | people.get("gallery", set())
    if dataset != "msmt17" and (shared := sorted(training & test)):  # MSMT17 numbers its halves independently
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


def _camera_findings(index: DatasetIndex, dataset: str) -> Iterator[Finding]:
    cameras = {int(camid) for camid in index.camids if camid >= 0}
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
    most = _CAMERAS.get(dataset)
    if most is not None and cameras and max(cameras) > most:
        yield Finding(
            "warning", f"camera {max(cameras)} in a dataset of {most} cameras", "check the names of its files"
        )


def _training_findings(index: DatasetIndex) -> Iterator[Finding]:
    train = index.split("train_all")
    if junk := int((train.pids == -1).sum()):
        yield Finding(
            "warning",
            f"{junk} training images are junk (-1)",
            "they would be trained on as if they were one person; take them out of the training split",
        )
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
    query = index.split("query")
    # An unknown camera is nobody's own: it rules nothing out.
    lonely = [record for record in query if not cameras[record.pid] - ({record.camid} - {-1})]
    if lonely:
        everyone = len(lonely) == len(query)
        yield Finding(
            "error" if everyone else "warning",
            f"{len(lonely)} of {len(query)} queries have no match in another camera",
            "nothing can be ranked: are cameras or splits mixed up?" if everyone else "they are skipped when scoring",
            tuple(record.path.name for record in lonely[:5]),
        )


def _file_findings(index: DatasetIndex, dataset: str, decode: bool) -> Iterator[Finding]:
    missing: list[Path] = []
    unreadable: list[Path] = []
    by_size: defaultdict[int, list[ImageRecord]] = defaultdict(list)
    for record in index:
        try:
            by_size[record.path.stat().st_size].append(record)
        except OSError:
            missing.append(record.path)
    if dangling := [path for path in missing if path.is_symlink()]:
        yield Finding(
            "error",
            f"{len(dangling)} links lead nowhere: the raw pictures have moved",
            "run 'reid-models prepare' again, with --raw where they are now and the same --out",
            tuple(f"{_relative(index, path)} -> {os.readlink(path)}" for path in dangling[:5]),
        )
    if absent := [path for path in missing if not path.is_symlink()]:
        yield Finding(
            "error",
            f"{len(absent)} listed files are not there",
            "unpack the images, or correct the list",
            _names(absent),
        )
    if empty := [record.path for record in by_size.pop(0, [])]:
        yield Finding("error", f"{len(empty)} files are empty", "unpack the archive again", _names(empty))
    copies = defaultdict(list)
    candidates = [record for records in by_size.values() if len(records) > 1 for record in records]
    for record in track(candidates, "comparing files"):
        try:
            copies[hashlib.sha256(record.path.read_bytes()).digest()].append(record)
        except OSError:
            unreadable.append(record.path)
    alike = [records for records in copies.values() if len(records) > 1]
    same = [records for records in alike if len({record.path.resolve() for record in records}) > 1]
    if dataset in _QUERY_IN_GALLERY:
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
        unreadable = [record.path for record in track(index.records, "decoding") if not _can_be_decoded(record.path)]
    if unreadable:
        yield Finding(
            "error",
            f"{len(unreadable)} images cannot be read",
            "restore them from the archive or give yourself permission, or remove them",
            _names(unreadable),
        )


def _can_be_decoded(path: Path) -> bool:
    try:
        read_pixels(path)
    except ImageError:
        return False
    return True


def _people(index: DatasetIndex, dataset: str, split: str) -> set[int]:
    """The identities of a split that are people: no junk, no distractors."""
    lowest = 0 if dataset == "msmt17" or split in ("train", "val") else 1
    return {int(pid) for pid in index.split(split).pids if pid >= lowest}


def _names(paths: tuple[Path, ...] | list[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths[:5])


def _relative(index: DatasetIndex, path: Path) -> str:
    return path.relative_to(index.root).as_posix() if path.is_relative_to(index.root) else str(path)


def _camera(camid: int) -> str:
    return f"c{camid}" if camid >= 0 else "unknown"
