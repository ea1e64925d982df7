"""Images and files on disk: sorted listings, RGB decoding, complete-or-absent writes, hashes.

for path in list_images("query"):
    pixels = read_pixels(path)              # uint8, RGB, (H, W, 3)
with atomic_path(Path("out.npz")) as part:  # out.npz appears whole, or not at all
    part.write_bytes(...)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from reid_eval.errors import OutputError, ReidError

_EXIF_ORIENTATION, _EXIF_SOFTWARE = 0x0112, 0x0131
# What pytorch-fid lists (in any case of letters), GIF, and other names of JPEG and of PPM.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
# What lies beside pictures and is none; a suffix that is in neither list is worth a remark.
_TEXTS = ("csv", "htm", "html", "ini", "json", "jsonl", "log", "md", "rst", "tsv", "txt", "xml", "yaml", "yml")
_DATA = ("db", "h5", "hdf5", "lnk", "lock", "mat", "md5", "npy", "npz", "part", "pkl", "pt", "pth", "py", "sha256")
_OTHERS = ("avi", "doc", "docx", "gz", "mkv", "mov", "mp4", "pdf", "rar", "tar", "tgz", "webm", "xls", "xlsx", "zip")
_NO_PICTURES = frozenset(f".{suffix}" for suffix in (*_TEXTS, *_DATA, *_OTHERS))
# Pillow knows dozens of formats more. Some are read by other programs (EPS is run by Ghostscript), none holds people.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_MAX_PIXELS = 1 << 25
"""8K UHD (7680 x 4320) is below it, and no crop of a person comes near"""

# A picture that large is refused by its header, in one line.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Thumbnails and versions that NAS and desktop systems keep beside pictures.
_SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX", "System Volume Information", "lost+found"}
)


class ImageError(ReidError):
    """A file that should be a picture is not, or is damaged."""


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image; hidden files (`.DS_Store`, `._x.jpg`) are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name holds what a system keeps for itself: hidden ones, and thumbnails of a NAS."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def list_images(root: Path | str, *, recursive: bool = True) -> list[Path]:
    """All image files under `root`, in sorted order of their path relative to it.

    Links to files and folders are followed. Hidden files and folders, and those that a NAS or desktop keeps for itself
    (`@eaDir`), are skipped. An empty folder gives an empty list.

    Raises:
        ImageError: there is no such folder, one below it cannot be opened, or a link leads back to where it is.
    """
    root = Path(root)
    found = [path for path in _files_below(root, recursive) if is_image_name(path.name)]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def passed_over(root: Path | str) -> dict[str, int]:
    """How many files under `root` might be pictures, but are not by their suffix: a number for each suffix.

    Hidden ones and texts, tables and archives of numbers, which often lie beside pictures, do not count.

    Raises:
        ImageError: as `list_images`.
    """
    names = (path.name for path in _files_below(Path(root), recursive=True))
    suffixes = Counter(
        os.path.splitext(name)[1].lower() or "without a suffix"
        for name in names
        if not (name.startswith(".") or is_image_name(name) or _is_no_picture(name))
    )
    return dict(sorted(suffixes.items()))


def passed_over_text(where: Path | str, counts: Mapping[str, int]) -> str:
    """A sentence about what `passed_over` counted."""
    suffixes = ", ".join(f"{suffix}: {number}" for suffix, number in counts.items())
    return f"{sum(counts.values())} files in {where} passed over, by their suffixes no pictures ({suffixes})."


def _is_no_picture(name: str) -> bool:
    stem, suffix = os.path.splitext(name.lower())
    return suffix in _NO_PICTURES or stem in ("readme", "license", "licence", "notice", "copying")


def _files_below(root: Path, recursive: bool) -> Iterator[Path]:
    if not root.is_dir():
        found_instead = "is a file" if root.exists() else "no such folder"
        raise ImageError(f"{root}: {found_instead}; expected a folder of images")
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_unopened):
        subfolders[:] = [name for name in subfolders if not is_system_folder(name)] if recursive else []
        for name in subfolders:
            _refuse_link_to_itself(Path(folder, name))
        yield from (Path(folder, name) for name in names)


def _refuse_unopened(error: OSError) -> None:
    raise ImageError(
        f"{error.filename}: could not be opened ({error.strerror}); what lies in it would be missing"
    ) from None


def _refuse_link_to_itself(folder: Path) -> None:
    if folder.is_symlink() and folder.resolve() in {parent.resolve() for parent in folder.parents}:
        raise ImageError(f"{folder}: a link to a folder that contains it, so its images never end; remove the link")


@dataclass(frozen=True)
class Picture:
    """A decoded image file: its pixels (uint8, RGB, (H, W, 3)), and what was in the file that they do not show.

    `codec` and `mode` are Pillow's words (JPEG, PNG; RGB, L, RGBA, CMYK). Of an animation the pixels are the first
    frame; transparency is dropped, and a rotation that the file's Exif block asks for is not applied.
    """

    pixels: np.ndarray
    codec: str
    mode: str
    is_animated: bool
    is_rotated: bool
    is_transparent: bool


def read_picture(path: Path | str, *, before_decoding: Callable[[int], None] | None = None) -> Picture:
    """Decode one image file: a regular file of one of `IMAGE_FORMATS`, of at most `max_pixels()`.

    `before_decoding` is called with the number of pixels once it is known, and may wait for memory.

    Raises:
        ImageError: the file is missing, is no image, is cut off, is too large, or has more than 8 bits per channel.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end, a device might not
            raise ImageError(f"{path}: not a readable image (a folder, a pipe or a device); remove it")
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            _refuse_huge(path, image.size)
            if before_decoding is not None:
                before_decoding(image.size[0] * image.size[1])
            image.load()  # some of what a file says of itself stands behind its pixels
            mode, codec = image.mode, str(image.format)
            is_animated = bool(getattr(image, "is_animated", False))
            has_clear_colours = image.info.pop("transparency", None) is not None
            is_rotated = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION, 1) != 1
            pixels = np.asarray(image if mode == "RGB" else image.convert("RGB"))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        known = ", ".join(IMAGE_FORMATS)
        raise ImageError(
            f"{path}: not a readable image (of no known format: {known}); restore or remove this file"
        ) from None
    except Exception as error:  # decoders raise whatever damaged data makes of them
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise ImageError(f"{path}: not a readable image ({reason}); restore or remove this file") from None
    if mode.startswith(("I", "F")):  # converted to 8 bits they would be clipped at 255
        raise ImageError(f"{path}: grey values of mode {mode}, expected 8 bits per channel; convert this file")
    return Picture(pixels, codec, mode, is_animated, is_rotated, has_clear_colours or mode in ("RGBA", "LA", "PA"))


def max_pixels(usual: int = _MAX_PIXELS) -> int:
    """How many pixels a picture may have: $REID_MAX_PIXELS, by default 33.5 million, or what is `usual` for a purpose.

    Raises:
        ImageError: the variable holds no number.
    """
    chosen = os.environ.get("REID_MAX_PIXELS", "")
    if chosen and not (chosen.isdecimal() and int(chosen) > 0):
        raise ImageError(f"REID_MAX_PIXELS={chosen}: expected a number of pixels, such as {_MAX_PIXELS}")
    return int(chosen or usual)


def _refuse_huge(path: Path | str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > max_pixels():
        raise ImageError(
            f"{path}: {size[0]} x {size[1]} pixels, expected at most {max_pixels():,} in all; make it smaller, or set "
            "REID_MAX_PIXELS"
        )


def read_pixels(path: Path | str) -> np.ndarray:
    """Decode one image file to pixels: uint8, RGB, (H, W, 3), 0..255.

    Raises:
        ImageError: the file is missing, is no image, is cut off, is too large, or has more than 8 bits per channel.
    """
    return read_picture(path).pixels


@contextmanager
def atomic_path(file: Path | str, *, follow_link: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `file`; move it there when the block ends well, remove it when it does not.

    The data reaches the disk before the move, so after a crash `file` is the old one or the new one, never half.
    A link is followed, so that what it leads to is replaced and the link stays; without `follow_link` the link is.
    A full disk or a folder that cannot be written to raises `OutputError`; the previous `file` stays as it was.
    """
    file = Path(file)
    if follow_link and file.is_symlink():
        file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file() and not file.is_dir():
        raise OutputError(f"{file}: is a pipe or a device, expected the name of a file; choose another place")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name[:40]}.{_writer()}.", suffix=".part", dir=file.parent)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"{file}: {file.parent} is not a folder; choose another place") from None
    except OSError as error:
        raise _not_written(file, error) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o666 & ~_UMASK)
        os.replace(part, file)
    except OSError as error:
        raise _not_written(file, error) from error
    finally:
        part.unlink(missing_ok=True)


def replace_link(link: Path | str, to: str) -> None:
    """Make `link` a symbolic link to `to`, in place of what was there if anything was; there is never none meanwhile.

    Raises:
        OSError: links cannot be made there.
    """
    link = Path(link)
    part = link.with_name(f".{link.name[:40]}.{_writer()}.{secrets.token_hex(4)}.part")
    part.symlink_to(to)
    try:
        part.replace(link)
    except OSError:
        part.unlink()
        raise


_PART = re.compile(r"\..{0,40}\.(\d+)-([0-9a-f]{8})\.[a-z0-9_]+\.part", re.DOTALL)
_ABANDONED_AFTER_S = 24 * 3600.0


def _writer() -> str:
    """This process, in the name of what it has not finished writing."""
    return f"{os.getpid()}-{fingerprint([socket.gethostname()])[:8]}"


def remove_abandoned(folder: Path | str) -> None:
    """Remove what killed processes left half written in a folder: files of `atomic_path` whose process is gone.

    Those of a process that lives stay; those of another machine stay for a day. Nothing else is touched.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return
    here = fingerprint([socket.gethostname()])[:8]
    for name in names:
        if (match := _PART.fullmatch(name)) is None:
            continue
        part = Path(folder, name)
        with contextlib.suppress(OSError):
            if match[2] == here and sys.platform != "win32":
                abandoned = not _is_alive(int(match[1]))
            else:
                abandoned = time.time() - part.stat().st_mtime > _ABANDONED_AFTER_S
            if abandoned:
                part.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


_MAX_NAME_BYTES = 255


def short_name(name: str, limit: int = _MAX_NAME_BYTES) -> str:
    """A file name of at most `limit` bytes: itself, or its beginning, 16 hex digits of its hash, and its suffix.

    Different names stay different, and the same name always becomes the same.
    """
    if len(os.fsencode(name)) <= limit:
        return name
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > 16:
        stem, suffix = name, ""
    tail = f"~{fingerprint([name])}{suffix}"
    room = limit - len(os.fsencode(tail))
    return os.fsencode(stem)[:room].decode("utf-8", "ignore") + tail


def _not_written(file: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{file}: could not be written ({error.strerror or error}); "
        "nothing that existed was changed; free some space or choose another place and run again"
    )


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


def write_text(file: Path | str, text: str) -> None:
    """Write a text file, whole or not at all. What UTF-8 cannot hold (some file names) is escaped."""
    with atomic_path(file) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_image(file: Path | str, pixels: np.ndarray, *, quality: int = 95, maker: str = "") -> None:
    """Write pixels (uint8, RGB, (H, W, 3)) as the format of the file's suffix, whole or not at all.

    `maker`, a command, is written into the file (but not into a .bmp), so that `outputs` knows it as that command's.
    """
    suffix = Path(file).suffix.lower()
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}.get(suffix)
    if kind is None:
        raise OutputError(f"{file}: images are written as .png, .jpg, .webp or .bmp, not {suffix or 'without suffix'}")
    options: dict[str, object] = {"quality": quality} if kind in ("JPEG", "WEBP") else {}
    if maker:
        options["exif"] = made_by(maker)
    with atomic_path(file) as part:
        Image.fromarray(pixels).save(part, format=kind, **options)


def made_by(maker: str) -> Image.Exif:
    """The Exif block of a picture that says which command made it."""
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = f"made by {maker}"
    return exif


def fingerprint(
    parts: Iterable[bytes | memoryview | str | tuple[int, Iterable[memoryview]]], *, digits: int = 16
) -> str:
    """A short stable hash (16 hex digits of SHA-256) of a sequence of texts or byte strings.

    A byte string may come in pieces: its length, then the pieces. All `digits` of the hash are 64.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = _encoded(part) if isinstance(part, str) else part
        length, pieces = data if isinstance(data, tuple) else (len(data), [data])
        digest.update(length.to_bytes(8, "little"))
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()[:digits]


def _encoded(text: str) -> bytes:
    """Bytes of file names that are no UTF-8 arrive as surrogates and are those bytes again here."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # halves of characters, which no file name is made of
        return text.encode("utf-8", "surrogatepass")


def file_fingerprint(path: Path | str) -> str:
    """SHA-256 of a regular file's content, 64 hex digits."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_images(root: Path | str, paths: Iterable[Path]) -> dict[str, str | int]:
    """What a set of pictures below `root` was, for a metric's `made_by`: folder, number, hash of names and contents."""
    listed = list(paths)
    parts = (part for path in listed for part in (path.relative_to(root).as_posix(), _content_of(path)))
    return {"folder": str(root), "images": len(listed), "fingerprint": fingerprint(parts)}


def _content_of(path: Path) -> bytes | tuple[int, Iterator[memoryview]]:
    """A file's content, in blocks where it is large; of a broken link, a pipe, or what may not be read, nothing.

    Whoever decodes it will say so.
    """
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return b""
        return path.read_bytes() if state.st_size <= _BLOCK_BYTES else (state.st_size, _blocks_of(path))
    except OSError:
        return b""


_BLOCK_BYTES = 1 << 22


def _blocks_of(path: Path) -> Iterator[memoryview]:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield memoryview(block)
