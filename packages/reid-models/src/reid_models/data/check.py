"""What a dataset should contain, what was found, and what to do about the difference.

    check = check_dataset("Market-1501-v15.09.15")
    print(check.to_text())
    check.can_train                # False when a finding is an error

Whether a training can start is judged in one place, `training_findings`, which `reid-models train` shows too. It looks
at names, numbers and sizes; `check_dataset` also compares with what was published and reads files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from reid_eval.errors import printable
from reid_eval.files import ImageError, Picture, read_picture
from reid_eval.progress import track
from reid_eval.ranking import ProtocolName, protocol_of
from reid_eval.stopping import check_stop
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
    names: dict[int, str] = field(default_factory=dict)
    """what people are called, by their numbers, where identities are words"""

    @property
    def can_train(self) -> bool:
        """Whether training could start."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_text(self) -> str:
        """Tables and findings for people."""
        of = f" ({self.dataset})" if self.dataset != self.layout else ""
        lines = [printable(f"{self.root}: {self.layout}{of}")]
        if self.names:
            called = [f"{pid} {name}" for pid, name in sorted(self.names.items())[:_NAMES_SHOWN]]
            more = f", ... ({len(self.names)} in all)" if len(self.names) > _NAMES_SHOWN else ""
            lines += [printable(f"people: {', '.join(called)}{more}")]
        lines += ["", *_split_table(self.splits), "", *_camera_table(self.splits)]
        if any(split.expected_images is not None for split in self.splits):
            agrees = all(split.agrees for split in self.splits)
            lines += ["", "all as published" if agrees else "found / published, where they differ"]
        for finding in self.findings:
            lines += ["", f"{finding.severity}: {printable(finding.what)}", f"  -> {printable(finding.remedy)}"]
            lines += [f"     {printable(example)}" for example in finding.examples]
        verdict = "training can start" if self.can_train else "training cannot start"
        return "\n".join([*lines, "", verdict])

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({**dataclasses.asdict(self), "can_train": self.can_train}, indent=2)


_NAMES_SHOWN = 8


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
    splits = tuple(_count(index, name, published.get(name)) for name in names)
    files = _Files(index)
    findings = [
        *_findings(index, dataset, files),
        *_published_findings(index, published, splits),
        *_content_findings(index, dataset, files, decode),
    ]
    root = index.root if isinstance(data, DatasetIndex) else data  # a table by its name
    return DatasetCheck(str(root), index.layout, dataset, splits, tuple(_worst_first(findings)), index.names)


def training_findings(index: DatasetIndex) -> list[Finding]:
    """What stands in the way of training on a dataset, or should be known before; the worst first.

    An error means that training cannot start. No file is read: names, numbers, and what the system says of the files.
    """
    return _worst_first(_findings(index, _dataset_of(index), _Files(index)))


def _worst_first(findings: Iterable[Finding]) -> list[Finding]:
    order: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def ranked_splits(index: DatasetIndex) -> tuple[str, ...]:
    """The splits whose pictures are ranked: query and gallery, as far as they are there, or else "train_all"."""
    return tuple(name for name in ("query", "gallery") if name in index.splits) or ("train_all",)


def fitting_protocol(index: DatasetIndex) -> tuple[ProtocolName | None, str]:
    """The protocol that `ranked_splits` can be ranked by, and why it is not cross-camera; None if there is none.

    It is what `reid-eval rank` takes for their features (see `reid_eval.ranking.protocol_of`).
    """
    splits = {*ranked_splits(index)}
    splits |= {"train", "val"} if "train_all" in splits else set()
    ranked = index.subset([row for row, record in enumerate(index) if record.split in splits])
    return protocol_of(ranked.pids, ranked.camids, np.array([record.split for record in ranked], np.str_))


def _cameras_of(records: Iterable[ImageRecord]) -> dict[int, set[int]]:
    cameras: dict[int, set[int]] = {}
    for record in records:
        cameras.setdefault(record.pid, set()).add(record.camid)
    return cameras


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


def _count(index: DatasetIndex, name: str, published: Published | None) -> SplitCount:
    split = index.split(name) if name in index.splits else index.subset([])
    cameras = Counter(int(camid) for camid in split.camids)
    return SplitCount(
        split=name,
        images=len(split),
        ids=split.num_ids,
        cameras=dict(sorted(cameras.items())),
        junk=int((split.pids == -1).sum()),
        distractors=int((split.pids == 0).sum()) if name == "gallery" and index.has_distractors else 0,
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


def _findings(index: DatasetIndex, dataset: str, files: _Files) -> Iterator[Finding]:
    if index.unparsed:
        yield Finding(
            "warning",
            f"{len(index.unparsed)} image names do not parse and are left out",
            "rename them as the layout demands (docs/data-and-files.md), or remove them",
            _names(index.unparsed),
        )
    if index.left_out:
        yield Finding(
            "note",
            f"{_count_of(index.left_out, 'folder')} with pictures {_are(index.left_out)} no part of this layout, and "
            "left out",
            "fine for backups and the like; pictures of the dataset belong where its layout has them",
            tuple(_relative(index, folder) for folder in index.left_out[:5]),
        )
    yield from _camera_findings(index, dataset)
    people = {name: _people(index, name) for name in index.splits}
    training = people.get("train", set()) | people.get("val", set())
    if not training:
        yield Finding("error", "no training images", "prepare or unpack the train split")
    elif len(training) == 1:
        yield Finding("error", "one identity to train on", "a classifier and a swap take at least two")
    else:
        yield from _identity_findings(index)
    test = people.get("query", set()) | people.get("gallery", set())
    if dataset != "msmt17" and (shared := sorted(training & test)):  # MSMT17 numbers its halves independently
        yield Finding(
            "warning",
            f"{len(shared)} identities are in training and test",
            "scores will flatter the network; split by identity",
            _people_named(index, shared),
        )
    yield from _evaluation_findings(index)
    yield from _file_findings(index, files)
    yield from _listing_findings(index, files)


def _camera_findings(index: DatasetIndex, dataset: str) -> Iterator[Finding]:
    cameras = {int(camid) for camid in index.camids if camid >= 0}
    if unknown := int((index.camids < 0).sum()):
        yield Finding(
            "warning",
            f"{unknown} images have no known camera",
            "training works, and ranking leaves out no matches of the same camera; if you know the cameras, "
            + (
                "add a column camid"
                if index.layout == "csv"
                else "call pictures 0002_c1_...jpg, or list them in a table"
            ),
        )
    training = {record.camid for record in index if record.split in ("train", "val")}
    if len(training) == 1 and training != {-1}:
        yield Finding(
            "warning",
            f"all training images are from one camera ({_camera(*training)})",
            "training works, but teaches nothing about changes of camera; add pictures of a second camera",
        )
    most = _CAMERAS.get(dataset)
    if most is not None and cameras and max(cameras) > most:
        yield Finding(
            "warning", f"camera {max(cameras)} in a dataset of {most} cameras", "check the names of its files"
        )


def _identity_findings(index: DatasetIndex) -> Iterator[Finding]:
    train = index.split("train_all")
    if junk := int((train.pids == -1).sum()):
        yield Finding(
            "warning",
            f"{junk} training images are junk (-1)",
            "they would be trained on as if they were one person; take them out of the training split",
        )
    images = Counter(int(pid) for pid in train.pids)
    if single := sorted(pid for pid, count in images.items() if count == 1):
        everyone = len(single) == len(images)
        yield Finding(
            "warning",
            f"{'all' if everyone else len(single)} training identities have one image",
            "nobody can be compared with another picture of themselves: add pictures, or train with "
            "sampler.kind=shuffled and loss.terms=CrossEntropy"
            if everyone
            else "they give no positive pair; add images or leave them out",
            _people_named(index, single),
        )
    one_camera = sorted(pid for pid, seen in _cameras_of(train).items() if len(seen) == 1 and images[pid] > 1)
    if one_camera and len({int(camid) for camid in train.camids}) > 1:
        yield Finding(
            "note",
            f"{len(one_camera)} training identities are seen by one camera",
            "they teach nothing about changes of camera",
            _people_named(index, one_camera),
        )


def _evaluation_findings(index: DatasetIndex) -> Iterator[Finding]:
    """Whether and how query and gallery can be ranked."""
    there = [name for name in ("query", "gallery") if name in index.splits]
    protocol, _ = fitting_protocol(index)
    if not there:
        yield Finding(
            "note",
            "no query and no gallery to evaluate on",
            "training works without; afterwards people are ranked among themselves by 'reid-models extract --run RUN "
            "--split train_all' and 'reid-eval rank --protocol leave-one-out'"
            if protocol
            else "training works without; nothing can be ranked, since nobody is there twice",
        )
    elif len(there) == 1:
        absent = "gallery" if there == ["query"] else "query"
        instead = (
            "its people can be ranked among themselves (eval_protocol=leave-one-out, reid-eval rank --protocol "
            "leave-one-out)"
            if protocol
            else "nothing can be ranked, since nobody is there twice"
        )
        yield Finding(
            "warning",
            f"a {there[0]} split but no {absent} split",
            f"{instead}; for a ranking across cameras put the pictures that ask into query, those that answer into "
            "gallery",
        )
        if index.layout == "prepared" and any(_top(index, record) == "test" for record in index):
            yield Finding("note", "the folder test is taken for the gallery", "split it into query and gallery")
    elif protocol is None:
        yield Finding(
            "error",
            "no query has its person in the gallery",
            "nothing can be ranked: are identities or splits mixed up?",
        )
    else:
        yield from _query_findings(index, protocol)


def _query_findings(index: DatasetIndex, protocol: ProtocolName) -> Iterator[Finding]:
    cameras = _cameras_of(record for record in index if record.split == "gallery")
    query = index.split("query")
    if junk := [record.path.name for record in query if record.pid == -1]:
        yield Finding(
            "warning",
            f"{len(junk)} queries are junk (-1)",
            "nobody can be found by them, and none is ranked beside them; take them out of the queries",
            tuple(junk[:5]),
        )
    # An unknown camera is nobody's own: it rules nothing out.
    lonely = [record for record in query if not cameras.get(record.pid, set()) - ({record.camid} - {-1})]
    if lonely:
        yield Finding(
            "warning",
            f"{len(lonely)} of {len(query)} queries have no match in another camera",
            "they are skipped when scoring"
            if protocol == "cross-camera"
            else "matches of the same camera count instead (eval_protocol: no-camera), so numbers cannot be compared "
            "with published ones; are cameras mixed up?",
            tuple(record.path.name for record in lonely[:5]),
        )


def _top(index: DatasetIndex, record: ImageRecord) -> str:
    """The folder of the dataset that a picture lies in."""
    return record.path.relative_to(index.root).parts[0] if record.path.is_relative_to(index.root) else ""


class _Files:
    """What the system says of an index's files: their sizes, which are missing or no files, and which are one."""

    def __init__(self, index: DatasetIndex) -> None:
        self.by_size: defaultdict[int, list[ImageRecord]] = defaultdict(list)
        self.missing: list[Path] = []
        self.irregular: list[Path] = []
        self.forbidden: list[Path] = []
        self.of_file: defaultdict[Hashable, list[ImageRecord]] = defaultdict(list)
        for record in index:
            check_stop()
            try:
                state = os.stat(record.path)
            except (OSError, ValueError):
                self.missing.append(record.path)
                continue
            if not stat.S_ISREG(state.st_mode):
                self.irregular.append(record.path)
                continue
            if not os.access(record.path, os.R_OK):
                self.forbidden.append(record.path)
            self.by_size[state.st_size].append(record)
            self.of_file[(state.st_dev, state.st_ino) if state.st_ino else record.path].append(record)


def _file_findings(index: DatasetIndex, files: _Files) -> Iterator[Finding]:
    """Files that cannot be the pictures they are called."""
    if dangling := [path for path in files.missing if path.is_symlink()]:
        yield Finding(
            "error",
            f"{len(dangling)} links lead nowhere: the raw pictures have moved or are gone",
            "run 'reid-models prepare' again: with --raw where they are now and the same --out, or, where some were "
            "removed, with another --out",
            tuple(f"{_relative(index, path)} -> {os.readlink(path)}" for path in dangling[:5]),
        )
    if absent := [path for path in files.missing if not path.is_symlink()]:
        yield Finding(
            "error",
            f"{len(absent)} listed files are not there",
            "unpack the images, or correct the list",
            _names(absent),
        )
    if files.irregular:
        yield Finding(
            "error",
            f"{len(files.irregular)} pictures are pipes, devices or folders",
            "remove them, or correct the list",
            _names(files.irregular),
        )
    if empty := files.by_size.get(0):
        paths = [record.path for record in empty]
        yield Finding("error", f"{len(empty)} files are empty", "unpack the archive again", _names(paths))
    if files.forbidden:
        yield Finding(
            "error",
            f"{len(files.forbidden)} images cannot be read",
            "give yourself permission, or remove them",
            _names(files.forbidden),
        )


def _listing_findings(index: DatasetIndex, files: _Files) -> Iterator[Finding]:
    """Pictures that are in the dataset more than once, by a list or by links."""
    several = [records for records in files.of_file.values() if len(records) > 1]
    contradicting = [records for records in several if len({record.pid for record in records}) > 1]
    if contradicting:
        yield Finding(
            "warning",
            f"{len(contradicting)} pictures are listed under several people",
            "at most one of them is right; correct the list",
            tuple(
                f"{_relative(index, records[0].path)}: "
                + " and ".join(_people_named(index, sorted({record.pid for record in records})))
                for records in contradicting[:5]
            ),
        )
    leaking = [
        records for records in several if _is_in(records, "train", "val") and _is_in(records, "query", "gallery")
    ]
    if leaking:
        yield Finding(
            "warning",
            f"{len(leaking)} pictures are in training and test",
            "scores will flatter the network; list each once",
            _same_file(index, leaking),
        )
    asking = [records for records in several if _is_in(records, "query") and _is_in(records, "gallery")]
    looks_at_cameras = fitting_protocol(index)[0] == "cross-camera"
    harmful = [records for records in asking if not looks_at_cameras or _finds_itself(records)]
    if harmful:
        yield Finding(
            "warning",
            f"{len(harmful)} queries are in the gallery themselves, and no camera leaves them out",
            "each finds itself first, so scores are far too good (mAP near 1); list a picture once, or give its camera",
            _same_file(index, harmful),
        )
    elif asking:
        yield Finding(
            "note",
            f"{len(asking)} queries are in the gallery too",
            "of the same person and camera, so they do not count",
            _same_file(index, asking),
        )
    told = {id(records) for records in (*contradicting, *leaking, *asking)}
    if again := [records for records in several if id(records) not in told]:
        yield Finding(
            "warning",
            f"{len(again)} pictures are listed more than once",
            "each counts as often as it is listed; list it once",
            _same_file(index, again),
        )


def _is_in(records: Sequence[ImageRecord], *splits: str) -> bool:
    return any(record.split in splits for record in records)


def _finds_itself(records: Sequence[ImageRecord]) -> bool:
    """Whether the rule of the same camera does not keep a picture in query and gallery from being its own answer."""
    asks = {(record.pid, record.camid) for record in records if record.split == "query"}
    answers = {(record.pid, record.camid) for record in records if record.split == "gallery"}
    return any(pid == other and (camid != camera or camid == -1) for pid, camid in asks for other, camera in answers)


def _same_file(index: DatasetIndex, groups: Sequence[Sequence[ImageRecord]]) -> tuple[str, ...]:
    """Files with where they are listed, for people to find them."""
    return tuple(
        f"{_relative(index, records[0].path)}: "
        + " and ".join(f"{index.name_of(record.pid)} in {record.split}" for record in records[:3])
        for records in groups[:5]
    )


def _content_findings(index: DatasetIndex, dataset: str, files: _Files, decode: bool) -> Iterator[Finding]:
    """What is found by reading files: all of them with `decode`, otherwise those of equal size."""
    unreadable: dict[Path, str] = {}
    copies = defaultdict(list)
    groups = [records for size, records in files.by_size.items() if size and len(records) > 1]
    for record in track([record for records in groups for record in records], "comparing files"):
        try:
            copies[hashlib.sha256(record.path.read_bytes()).digest()].append(record)
        except OSError:
            unreadable[record.path] = str(record.path)
    alike = [records for records in copies.values() if len(records) > 1]
    same = [records for records in alike if len({record.path.resolve() for record in records}) > 1]
    if dataset in _QUERY_IN_GALLERY:
        found = len(same)
        same = [records for records in same if {record.split for record in records} != {"query", "gallery"}]
        if found > len(same):
            yield Finding(
                "note",
                f"{found - len(same)} query images lie in the gallery too",
                "as this dataset is made; same camera, so they do not count",
            )
    if same:
        yield Finding(
            "warning",
            f"{len(same)} groups of byte-identical files",
            "remove all but one of each, above all across splits",
            tuple(" = ".join(_relative(index, record.path) for record in records[:3]) for records in same[:5]),
        )
    if decode:
        decoded = _Decoded()
        for record in track(index.records, "decoding"):
            decoded.add(record.path)
        unreadable |= decoded.unreadable
        yield from decoded.findings()
    known = {*files.missing, *files.irregular, *files.forbidden, *(record.path for record in files.by_size[0])}
    if others := [reason for path, reason in unreadable.items() if path not in known]:
        yield Finding(
            "error",
            f"{len(others)} images cannot be read",
            "restore them from the archive or give yourself permission, or remove them",
            tuple(others[:5]),
        )


class _Decoded:
    """What decoding every picture has shown."""

    def __init__(self) -> None:
        self.unreadable: dict[Path, str] = {}
        """why, by path"""
        self.codecs: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.rotated: list[Path] = []
        self.animated: list[Path] = []
        self.transparent: list[Path] = []

    def add(self, path: Path) -> None:
        """Decode one picture."""
        try:
            picture = read_picture(path)
        except ImageError as error:
            self.unreadable[path] = str(error)
            return
        self._count(path, picture)

    def _count(self, path: Path, picture: Picture) -> None:
        self.codecs[picture.codec] += 1
        self.modes[picture.mode] += 1
        for holds, paths in (
            (picture.is_rotated, self.rotated),
            (picture.is_animated, self.animated),
            (picture.is_transparent, self.transparent),
        ):
            if holds:
                paths.append(path)

    def findings(self) -> Iterator[Finding]:
        """What a reader of any result should know about the pictures."""
        if self.rotated:
            yield Finding(
                "warning",
                f"{len(self.rotated)} pictures ask for a rotation (Exif) that is not applied",
                "viewers turn them, training and evaluation do not; turn the pixels themselves",
                _names(self.rotated),
            )
        if self.animated:
            yield Finding(
                "note",
                f"{len(self.animated)} pictures are animations, of which the first frame counts",
                "save other frames as pictures of their own if they should count",
                _names(self.animated),
            )
        if self.transparent:
            yield Finding(
                "note",
                f"{len(self.transparent)} pictures have transparency, which is dropped",
                "paint them on the background that they should have",
                _names(self.transparent),
            )
        if others := {mode: count for mode, count in self.modes.items() if mode != "RGB"}:
            yield Finding(
                "note",
                f"{sum(others.values())} pictures are not RGB and are converted ({_counts(others)})",
                "CMYK becomes RGB without its colour profile; convert such pictures if their colours look wrong",
            )
        if len(self.codecs) > 1:
            yield Finding(
                "note",
                f"pictures of {len(self.codecs)} codecs ({_counts(self.codecs)})",
                "where people or splits differ in codec, a network may learn the codec",
            )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _people(index: DatasetIndex, split: str) -> set[int]:
    """The identities of a split that are people: no junk, no distractors."""
    lowest = 1 if index.has_distractors and split not in ("train", "val") else 0
    return {int(pid) for pid in index.split(split).pids if pid >= lowest}


def _people_named(index: DatasetIndex, pids: Sequence[int]) -> tuple[str, ...]:
    return tuple(index.name_of(pid) for pid in pids[:5])


def _count_of(things: Sequence[object], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) > 1 else ''}"


def _are(things: Sequence[object]) -> str:
    return "are" if len(things) > 1 else "is"


def _names(paths: tuple[Path, ...] | list[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths[:5])


def _relative(index: DatasetIndex, path: Path) -> str:
    return path.relative_to(index.root).as_posix() if path.is_relative_to(index.root) else str(path)


def _camera(camid: int) -> str:
    return f"c{camid}" if camid >= 0 else "unknown"
