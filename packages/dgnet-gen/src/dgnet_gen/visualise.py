"""Sheets and moving pictures of what DG-Net does with any photographs.

    model = DGNet.load("runs/dgnet")
    sheet = swap(model, structures=["a.jpg"], appearances=["b.jpg", "c.jpg"])    # or rainbow, smooth
    save_image("swap.png", sheet.pixels())

`swap` has structures down and appearances across; `rainbow` gives the same people to both (Zheng et al. 2019, figure
1); `smooth` goes from one code to another, an appearance (figure 5) or a structure (figure 9); `one_by_one` writes all
with all, a file each. A `Sheet` becomes a picture with labels, or `frames` that `save_animation` shows one by one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgnet_gen.generation import PLAIN, Writing, generate
from dgnet_gen.generation_plan import GenerationPlan
from dgnet_gen.model import Codes, DGNet
from dgnet_gen.networks.decoder import mix
from reid_eval.errors import OutputError, printable
from reid_eval.files import atomic_path, made_by, read_pixels
from reid_models.data.index import DatasetError, DatasetIndex, ImageRecord, parse_name
from reid_models.data.transforms import eval_transform, resize_pixels, to_pixels

GAP_PX = 2
_LABEL_PX = 13
_FRAMES_PER_S = 10

InterpolationPath = Literal["spherical", "linear"]


@dataclass(frozen=True)
class Sheet:
    """Painted pictures in rows and columns, with the photographs they come from at the edges."""

    painted: np.ndarray
    """(R, C, H, W, 3) uint8 RGB"""
    left: np.ndarray
    """(R, H, W, 3) the photographs of the rows"""
    top: np.ndarray | None = None
    """(C, H, W, 3) those of the columns; None where columns have none"""
    right: np.ndarray | None = None
    """(R, H, W, 3) where the rows lead to; None where they lead nowhere"""
    title: str = ""
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def pixels(self, scale: int = 1, *, labels: bool = True) -> np.ndarray:
        """The sheet, uint8 RGB (H, W, 3), its pictures enlarged `scale` times, with labels around them."""
        rows, columns, height, width = (*self.painted.shape[:2], *(scale * size for size in self.painted.shape[2:4]))
        font = ImageFont.load_default()
        margin_left = margin_right = margin_top = 0
        if labels:
            margin_left = _widest(font, self.rows)
            margin_right = _widest(font, self.ends)
            margin_top = _LABEL_PX * (bool(self.title) + bool(self.columns))
        first_row = int(self.top is not None)
        shown_columns = 1 + columns + (self.right is not None)
        step_h, step_w = height + GAP_PX, width + GAP_PX
        body_h, body_w = (first_row + rows) * step_h - GAP_PX, shown_columns * step_w - GAP_PX
        title_w = round(font.getlength(self.title)) + 2 if labels else 0
        sheet = Image.new(
            "RGB", (max(margin_left + body_w + margin_right, title_w), margin_top + body_h), (255, 255, 255)
        )

        def put(pixels: np.ndarray, row: int, column: int) -> None:
            place = (margin_left + column * step_w, margin_top + row * step_h)
            sheet.paste(Image.fromarray(enlarged(pixels, scale)), place)

        for column in range(columns if self.top is not None else 0):
            assert self.top is not None
            put(self.top[column], 0, column + 1)
        for row in range(rows):
            put(self.left[row], first_row + row, 0)
            for column in range(columns):
                put(self.painted[row, column], first_row + row, column + 1)
            if self.right is not None:
                put(self.right[row], first_row + row, columns + 1)
        if labels:
            draw = ImageDraw.Draw(sheet)
            draw.text((1, 0), self.title, fill="black", font=font)
            for column, text in enumerate(self.columns):
                left = margin_left + (column + 1) * step_w
                draw.text((left, margin_top - _LABEL_PX), _fitting(font, text, width), fill="black", font=font)
            for row in range(rows):
                middle = margin_top + (first_row + row) * step_h + height // 2 - _LABEL_PX // 2
                if self.rows:
                    draw.text((1, middle), self.rows[row], fill="black", font=font)
                if self.ends:
                    draw.text((margin_left + body_w + 3, middle), self.ends[row], fill="black", font=font)
        return np.asarray(sheet)

    def frames(self, scale: int = 1) -> list[np.ndarray]:
        """The columns as a film, there and back: each frame (R H, k W, 3) has a row of the sheet above the other.

        Beside the painted picture stand the row's photograph and, where there is one, the photograph it leads to.
        """
        forward = range(self.painted.shape[1])
        frames = []
        for column in (*forward, *forward[-2:0:-1]):
            parts = [self.left, self.painted[:, column], *([] if self.right is None else [self.right])]
            stacked = [np.concatenate(list(part), axis=0) for part in parts]  # (R H, W, 3) each
            frames.append(enlarged(np.concatenate(stacked, axis=1), scale))
        return frames


def swap(
    model: DGNet, structures: Sequence[Path | str], appearances: Sequence[Path | str], *, batch_size: int = 32
) -> Sheet:
    """Everybody of `appearances` in every pose of `structures`; photographs of any size.

    Raises:
        ImageError: a file is no readable picture.
    """
    structure_images, appearance_images = _read(structures, model), _read(appearances, model)
    painted = _painted(model, model.structure(structure_images), model.appearance(appearance_images), batch_size)
    return Sheet(
        painted,
        to_pixels(structure_images),
        to_pixels(appearance_images),
        title="structures down, appearances across",
        rows=tuple(map(label_of, structures)),
        columns=tuple(map(label_of, appearances)),
    )


def rainbow(
    model: DGNet,
    pictures: Sequence[Path | str],
    *,
    rows: int | None = None,
    columns: int | None = None,
    batch_size: int = 32,
) -> Sheet:
    """The same pictures as structures across and as appearances down; the first `rows` and `columns` of them.

    So the diagonal shows everybody as they are, repainted (Zheng et al. 2019, figure 1).

    Raises:
        ImageError: a file is no readable picture.
    """
    images = _read(pictures, model)
    codes = model.encode(images)
    photographs, names = to_pixels(images), tuple(map(label_of, pictures))
    painted = _painted(model, codes.structure[:columns], codes.appearance[:rows], batch_size).swapaxes(0, 1)
    return Sheet(
        painted,
        photographs[:rows],
        photographs[:columns],
        title="appearances down, structures across",
        rows=names[:rows],
        columns=names[:columns],
    )


def smooth(
    model: DGNet,
    pictures: Sequence[Path | str],
    *,
    of: Literal["appearance", "structure"] = "appearance",
    steps: int = 11,
    path: InterpolationPath = "spherical",
    batch_size: int = 32,
) -> Sheet:
    """From every picture to the next, and from the last to the first, in `steps` pictures: one code moves, one stays.

    A row begins with its own two codes and ends with the next picture's appearance (or structure).

    Raises:
        ImageError: a file is no readable picture.
        DatasetError: fewer than two pictures, or steps.
    """
    if len(pictures) < 2 or steps < 2:
        raise DatasetError(f"{len(pictures)} pictures in {steps} steps: going from one to another takes at least 2")
    images = _read(pictures, model)
    codes = model.encode(images)
    shares = np.linspace(0, 1, steps).tolist()
    moving, staying = codes if of == "appearance" else (codes.structure, codes.appearance)
    rows = []
    for row in range(len(pictures)):
        end = (row + 1) % len(pictures)
        moved = torch.cat([interpolate(moving[[row]], moving[[end]], share, path) for share in shares])
        if of == "appearance":
            rows.append(_painted(model, staying[[row]], moved, batch_size)[0])
        else:
            rows.append(_painted(model, moved, staying[[row]], batch_size)[:, 0])
    names = tuple(map(label_of, pictures))
    photographs = to_pixels(images)
    kept = "structure" if of == "appearance" else "appearance"
    return Sheet(
        np.stack(rows),
        photographs,
        right=np.roll(photographs, -1, axis=0),
        title=f"{of} from left to right ({path}), {kept} kept",
        rows=names,
        columns=tuple(f"{share:.2g}" for share in shares),
        ends=(*names[1:], names[0]),
    )


def interpolate(first: Tensor, second: Tensor, share: float, path: InterpolationPath) -> Tensor:
    """Codes (B, ...) a `share` of the way from `first` to `second`.

    Linear: on the straight line. Spherical (Shoemake 1985): the direction turns at a steady angle, the length changes
    steadily; in high dimensions the straight line passes through codes that are too short.
    """
    if path == "linear":
        return torch.lerp(first, second, share)
    flat_a, flat_b = first.flatten(1), second.flatten(1)
    length_a, length_b = flat_a.norm(dim=1, keepdim=True), flat_b.norm(dim=1, keepdim=True)
    a, b = flat_a / length_a.clamp(min=1e-12), flat_b / length_b.clamp(min=1e-12)
    # By the chords: the arc cosine of a product near 1 has no digits left.
    angle = 2 * torch.atan2((a - b).norm(dim=1, keepdim=True), (a + b).norm(dim=1, keepdim=True))
    turned = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    straight = (angle < 1e-4) | (angle > torch.pi - 1e-4)  # the same direction, or opposite ones with no way between
    direction = torch.where(straight, torch.lerp(a, b, share), turned)
    return (direction * torch.lerp(length_a, length_b, share)).view_as(first)


def one_by_one(
    model: DGNet,
    structures: Sequence[Path | str],
    appearances: Sequence[Path | str],
    out: Path | str,
    *,
    writing: Writing = PLAIN,
) -> Path:
    """Every appearance in every structure, a file each, with a manifest; returns the manifest's path.

    Folders are identities as far as file names tell them, -1 where they do not.

    Raises:
        ImageError: a file is no readable picture.
        OutputError: `out` holds other files, or pictures of other photographs.
    """
    files = sorted({Path(os.path.abspath(path)) for path in (*structures, *appearances)})
    root = Path(os.path.commonpath([file.parent for file in files]))
    index = DatasetIndex(root, "images", tuple(ImageRecord(file, *_who(file), "images") for file in files))
    row_of = {file: row for row, file in enumerate(files)}
    down, across = (
        sorted({row_of[Path(os.path.abspath(path))] for path in paths}) for paths in (structures, appearances)
    )
    pairs = np.array([(structure, appearance) for structure in down for appearance in across], np.int32)
    return generate(model, GenerationPlan(index, pairs, "one-by-one", 0), out, writing=writing)


def save_animation(file: Path | str, frames: Sequence[np.ndarray], *, maker: str = "") -> None:
    """Write frames (uint8 RGB, (H, W, 3), all of a size) as an endless .gif or .webp, or as .mp4, ten a second.

    `maker`, a command, is written into the file, so that `reid_eval.outputs` knows it as that command's.

    Raises:
        OutputError: another suffix, no encoder for .mp4, or the file cannot be written.
    """
    suffix = Path(file).suffix.lower()
    duration_ms = 1000 // _FRAMES_PER_S
    if suffix == ".mp4":
        _save_mp4(file, frames, maker)
        return
    if suffix not in (".gif", ".webp"):
        raise OutputError(f"{file}: animations are written as .gif, .webp or .mp4, not {suffix or 'without suffix'}")
    first, *others = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"quality": 90} if suffix == ".webp" else {}
    if maker and suffix == ".webp":
        options["exif"] = made_by(maker)
    elif maker:
        options["comment"] = f"made by {maker}"
    with atomic_path(file) as part:
        first.save(
            part,
            format=suffix[1:].upper(),
            save_all=True,
            append_images=others,
            duration=duration_ms,
            loop=0,
            **options,
        )


def _save_mp4(file: Path | str, frames: Sequence[np.ndarray], maker: str) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise OutputError(
            f"{file}: MP4 needs an encoder; install imageio-ffmpeg (pip install 'dgnet-gen[video]'), or choose .gif or "
            ".webp"
        ) from None
    # H.264 wants even sides; the last row or column is repeated.
    height, width = (size + size % 2 for size in frames[0].shape[:2])
    with atomic_path(file) as part:
        writer = imageio_ffmpeg.write_frames(
            str(part),
            (width, height),
            fps=_FRAMES_PER_S,
            macro_block_size=1,
            output_params=[*(["-metadata", f"comment=made by {maker}"] if maker else []), "-f", "mp4"],
        )
        writer.send(None)
        for frame in frames:
            even = np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge")
            writer.send(np.ascontiguousarray(even))
        writer.close()


def swap_grid(
    model: DGNet, structures: Sequence[Path], appearances: Sequence[Path], *, batch_size: int = 32
) -> np.ndarray:
    """The sheet of `swap` without labels: uint8 RGB (H, W, 3); the corner is blank.

    Raises:
        ImageError: a file is no readable picture.
    """
    return swap(model, structures, appearances, batch_size=batch_size).pixels(labels=False)


def grid_of(
    model: DGNet,
    structure_images: Tensor,
    appearance_images: Tensor,
    structure: Tensor,
    appearance: Tensor,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """The same sheet from images (R, 3, H, W), (C, 3, H, W) and their codes."""
    painted = _painted(model, structure, appearance, batch_size)
    return Sheet(painted, to_pixels(structure_images), to_pixels(appearance_images)).pixels(labels=False)


def pick_people(
    index: DatasetIndex, rows: int, columns: int, *, seed: int = 0, pids: Sequence[int] = ()
) -> tuple[list[Path], list[Path]]:
    """Pictures of different people for a sheet: `rows` structures and `columns` appearances.

    One picture per person; people are repeated, with other pictures, only when there are too few. Junk and distractors
    are left out. `pids` picks the people, in that order, instead of the seed. Where nobody is known, any pictures are
    picked.

    Raises:
        DatasetError: a person of `pids` is not there, or a negative seed.
    """
    if seed < 0:
        raise DatasetError(f"seed {seed}: expected 0 or more")
    rng = np.random.default_rng([seed, 5])
    people = [pid for pid in index.labels if pid > 0]
    if unknown := [pid for pid in pids if pid not in index.labels]:
        raise DatasetError(
            f"{index.root}: no pictures of person {unknown[0]}; there are {_few([str(pid) for pid in people])}"
        )
    of_person = index.pids

    def pick(count: int) -> list[Path]:
        if not people:
            rounds = [rng.permutation(len(index)).tolist() for _ in range(-(-count // len(index)))]
            return [index[row].path for row in itertools.chain(*rounds)][:count]
        chosen: list[int] = []
        while len(chosen) < count:
            chosen += list(pids) or [int(pid) for pid in rng.permutation(people)]
        return [index[int(rng.choice(np.flatnonzero(of_person == pid)))].path for pid in chosen[:count]]

    return pick(rows), pick(columns)


def enlarged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """The same picture `factor` times as large, smoothly."""
    if factor == 1:
        return pixels
    return resize_pixels(pixels, (pixels.shape[0] * factor, pixels.shape[1] * factor))


def label_of(path: Path | str) -> str:
    """Who and which camera, where a file's name tells; its name otherwise."""
    path = Path(path)
    who = parse_name(path.name)
    return printable(path.stem) if who is None else f"{who.pid} c{who.camid}"


def _who(path: Path) -> tuple[int, int]:
    who = parse_name(path.name)
    return (-1, -1) if who is None else (who.pid, who.camid)


def _read(paths: Sequence[Path | str], model: DGNet) -> Tensor:
    return torch.stack([eval_transform(read_pixels(path), model.image_hw) for path in paths])


def _painted(model: DGNet, structure: Tensor, appearance: Tensor, batch_size: int) -> np.ndarray:
    """All pairs of structures (R, ...) and appearances (C, ...): pixels (R, C, H, W, 3)."""
    rows, columns = len(structure), len(appearance)
    appearances, structures = mix(appearance, structure)
    made = np.concatenate(list(_decoded(model, appearances, structures, batch_size)))
    return made.reshape(rows, columns, *made.shape[1:])


def _decoded(model: DGNet, appearances: Tensor, structures: Tensor, batch_size: int) -> Iterator[np.ndarray]:
    for codes in zip(appearances.split(batch_size), structures.split(batch_size), strict=True):
        yield to_pixels(model.decode(Codes(*codes)))


def _widest(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, texts: Sequence[str]) -> int:
    return max((round(font.getlength(text)) + 5 for text in texts), default=0)


def _fitting(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width_px: int) -> str:
    """The text's end, as far as it fits: the end of a file's name tells more than its beginning."""
    while len(text) > 1 and font.getlength(text) > width_px:
        text = text[1:]
    return text


def _few(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 12 else [*names[:12], "..."]) or "none"
