"""Damaged files of every kind that reid-eval reads: one line each, no traceback, bounded memory; the seed is fixed.

All of them are tried in one process of its own, whose memory is limited:

    python tests/reid_eval/test_damaged_files.py                 # as the test does
    python tests/reid_eval/test_damaged_files.py 500 7           # more files of each kind, another seed
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

PER_KIND = {"mat": 3, "packed.mat": 3, "page": 10}
PER_KIND_ELSE = 24


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory so")
def test_no_damage_ends_in_a_traceback_or_takes_all_memory():
    tried = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False)
    assert (tried.returncode, tried.stdout.splitlines()[-1:]) == (0, ["0 faults"]), tried.stdout + tried.stderr


# --- what is damaged ------------------------------------------------------------------------------------------------


def write_whole(folder: Path) -> dict[str, list[str]]:
    """A good file of each kind, and the command that reads it, whose argument {} is the file."""
    import torch
    from scipy.io import savemat

    from reid_eval.features import ReidFeatures
    from reid_eval.report import MetricResult

    rng = np.random.default_rng(0)
    pids, camids = np.arange(20) % 4 + 1, np.arange(20) % 3 + 1
    vectors = rng.normal(size=(20, 6)).astype(np.float32)
    splits = np.where(np.arange(20) < 6, "query", "gallery")
    features = ReidFeatures(vectors, pids, camids, splits, [f"{n}.jpg" for n in range(20)], {"a": [1, {"b": 2}]})
    features.save(folder / "ours.npz")
    arrays = {}
    for name, part in (("query", features.query), ("gallery", features.gallery)):
        arrays |= {f"{name}_f": part.features, f"{name}_label": part.pids, f"{name}_cam": part.camids}
    np.savez_compressed(folder / "theirs.npz", **arrays, gallery_path=np.array(["a"] * 14))
    savemat(folder / "f.mat", arrays)
    savemat(folder / "packed.mat", arrays, do_compression=True)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    torch.save({**tensors, "query_label": pids[:6].tolist()}, folder / "f.pt")
    torch.save(tensors, folder / "f.pth", _use_new_zipfile_serialization=False)
    np.save(folder / "m.npy", vectors)
    rows = [f"{n}.jpg;Ann {pid};{camid}" for n, (pid, camid) in enumerate(zip(pids, camids, strict=True))]
    (folder / "people.csv").write_text("\n".join(["filename;person;camera", *rows]), encoding="utf-16")
    MetricResult("fid_reid", 2.5, False, "How.", {"how": {"a": 1}, "interval": [1.0, 2.0]}).save(folder / "metrics")
    rank = ["rank", "{}"]
    return {
        "ours.npz": rank,
        "theirs.npz": rank,
        "f.mat": rank,
        "packed.mat": rank,
        "f.pt": rank,
        "f.pth": rank,
        "m.npy": ["rank", "{}", "--labels", str(folder / "people.csv")],
        "people.csv": ["rank", str(folder / "m.npy"), "--labels", "{}"],
        "metrics/fid_reid.json": ["diff", "{}", str(folder / "metrics" / "fid_reid.json")],
    }


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one thing wrong."""
    size = len(content)
    at, length = int(rng.integers(size)), int(rng.integers(1, 40))
    changed = bytearray(content)
    match int(rng.integers(7)):
        case 0:
            return content[:at]
        case 1:
            changed[at] ^= 1 << int(rng.integers(8))
        case 2:
            changed[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        case 3:
            del changed[at : at + length]
        case 4:
            changed[at:at] = changed[at : at + length]
        case 5:
            changed[at : at + length] = bytes(length)
        case _:
            words = [b"inf", b"NaN", b"-1", b"9" * 20, b"[" * 200, b'"', b"\xff\xfe", b"\n", b"(", b"{", b"|O", b"null"]
            changed[at : at + 2] = words[int(rng.integers(len(words)))]
    return bytes(changed)


def mend_checksums(content: bytes) -> bytes:
    """A zip whose members are as damaged, but whose checksums fit: what is behind them is met too."""
    import io
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except Exception:
        return content
    changed = bytearray(content)
    for entry in entries:
        header = entry.header_offset
        lengths = (int.from_bytes(changed[at : at + 2], "little") for at in (header + 26, header + 28))
        start = header + 30 + sum(lengths)
        packed = bytes(changed[start : start + entry.compress_size])
        try:
            whole = packed if entry.compress_type == zipfile.ZIP_STORED else zlib.decompress(packed, -15)
        except zlib.error:
            continue
        checksums = [place + 16 for place in found(changed, b"PK\x01\x02") if header_of(changed, place) == header]
        for place in (header + 14, *checksums):
            changed[place : place + 4] = zlib.crc32(whole).to_bytes(4, "little")
    return bytes(changed)


def found(content: bytearray, word: bytes) -> list[int]:
    places, at = [], content.find(word)
    while at >= 0:
        places.append(at)
        at = content.find(word, at + 1)
    return places


def header_of(content: bytearray, entry: int) -> int:
    """Where the member of an entry of a zip's table begins."""
    return int.from_bytes(content[entry + 42 : entry + 46], "little")


# --- and what comes of it -------------------------------------------------------------------------------------------


def limit_memory(spare: int) -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))


def fault_of(arguments: list[str]) -> str:
    """What is wrong with how a command ended; nothing if it ended well or with one line."""
    import traceback

    from click.testing import CliRunner

    from reid_eval.cli import main

    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "".join(traceback.format_exception(*result.exc_info))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if result.exit_code == 0 and not errors:
        return ""
    if result.exit_code == 1 and len(errors) == 1 and result.stderr.endswith(errors[0] + "\n"):
        return ""
    return f"exit {result.exit_code}: {result.output}"


def pages_of_a_damaged_folder(folder: Path, rng: np.random.Generator, number: int) -> list[str]:
    """Reports of a run's folder with one of its files damaged."""
    from PIL import Image

    from reid_eval.report import MetricResult

    run = folder / "run"
    MetricResult("fid_reid", 2.5, False, "How.", {"how": {"a": 1}, "interval": [1.0, 2.0]}).save(run / "metrics")
    for name in ("pictures/swap.png", "samples/a_1.jpg"):
        (run / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(run / name)
    (run / "config.yaml").write_text("seed: 1\n")
    faults = []
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for _ in range(number):
            file.write_bytes(damage(whole, rng))
            faults.append(fault_of(["report", str(run), "--out", str(folder / "page.html")]))
        file.write_bytes(whole)
    return faults


def main(per_kind: int, seed: int) -> int:
    import torch  # noqa: F401  # before memory is limited

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = write_whole(folder)
        for kind, arguments in commands.items():
            assert not (fault := fault_of([word.format(folder / kind) for word in arguments])), (kind, fault)
        limit_memory(1 << 30)
        faults = []
        for kind, arguments in commands.items():
            whole = (folder / kind).read_bytes()
            odd = folder / f"odd-{Path(kind).name}"
            for number in range(PER_KIND.get(kind.removeprefix("f."), per_kind)):
                content = damage(whole, rng)
                odd.write_bytes(mend_checksums(content) if number % 2 else content)
                if fault := fault_of([word.format(odd) for word in arguments]):
                    faults.append(json.dumps({"kind": kind, "number": number}) + "\n" + fault)
        faults += filter(None, pages_of_a_damaged_folder(folder, rng, max(1, per_kind // 8)))
    print("\n".join(faults))
    print(f"{len(faults)} faults")
    return min(len(faults), 1)


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in [*sys.argv[1:], *map(str, (PER_KIND_ELSE, 0)[len(sys.argv) - 1 :])])))
