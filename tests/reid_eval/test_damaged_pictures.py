"""Damaged pictures, statistics, pairs, weight files and kept answers: one line each, or the number without them.

As in test_damaged_files, all are tried in one process of its own, whose memory is limited, with a fixed seed:

    python tests/reid_eval/test_damaged_pictures.py              # as the test does
    python tests/reid_eval/test_damaged_pictures.py 300 7        # more files of each kind, another seed
"""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

PER_KIND = 24
FORMATS = {
    "a.png": {},
    "b.png": {"save_all": True},
    "a.jpg": {"quality": 90},
    "b.jpg": {"progressive": True},
    "a.gif": {"save_all": True},
    "a.webp": {"lossless": True},
    "b.webp": {"save_all": True},
    "a.bmp": {},
    "a.tif": {"compression": "tiff_lzw"},
    "b.tif": {"compression": "jpeg"},
    "a.ppm": {},
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory so")
def test_no_damage_to_what_is_measured_ends_in_a_traceback_or_takes_all_memory():
    tried = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=250, check=False)
    assert (tried.returncode, tried.stdout.splitlines()[-1:]) == (0, ["0 faults"]), tried.stdout + tried.stderr


def picture(name: str, rng: np.random.Generator) -> bytes:
    """A whole picture file in the format of its name."""
    from PIL import Image

    frames = [Image.fromarray(rng.integers(0, 256, (24, 12, 3), dtype=np.uint8)) for _ in range(3)]
    options = dict(FORMATS[name])
    more = {"append_images": frames[1:]} if options.get("save_all") else {}
    stream = io.BytesIO()
    frames[0].save(stream, format=Image.registered_extensions()[Path(name).suffix], **options, **more)
    return stream.getvalue()


def faults_of_pictures(folder: Path, per_kind: int, rng: np.random.Generator) -> list[str]:
    """Whole pictures beside damaged ones of every format: the number is there, and is that of what could be read."""
    real, fake = folder / "real" / "1", folder / "fake" / "1"
    for side in (real, fake):
        side.mkdir(parents=True)
        for name in FORMATS:
            (side / name).write_bytes(picture(name, rng))
    faults = []
    for name in FORMATS:
        for number in range(per_kind):
            content = damaged.damage(picture(name, rng), rng)
            (fake / f"{number}-{name}").write_bytes(content)
    for arguments in (
        ["fid", "--extractor", "random"],
        ["ssim"],
        ["images", "--metrics", "kid", "--extractor", "random"],
    ):
        sides = [str(fake.parent)] if arguments[0] == "ssim" else [str(real.parent), str(fake.parent)]
        faults.append(damaged.fault_of([arguments[0], *sides, *arguments[1:], "--no-cache"]))
    return faults


def faults_of_files(folder: Path, per_kind: int, rng: np.random.Generator) -> list[str]:
    """Statistics of both kinds, tables of pairs in both dialects, and weight files in both."""
    import torch

    from reid_eval.weights import WeightFileError, read_tensors

    real, fake = str(folder / "real"), str(folder / "fake")
    fid = ["fid", "--extractor", "random", "--no-cache"]
    assert not damaged.fault_of(["stats", real, str(folder / "ours.npz"), *fid[1:]])
    with np.load(folder / "ours.npz") as stored:
        np.savez_compressed(folder / "theirs.npz", mu=stored["mu"].astype("f2"), sigma=stored["sigma"].astype("f2"))
    rows = [f"1/{name}" for name in FORMATS]
    (folder / "a.csv").write_text("\n".join(["first,second", *(f"{row},{row}" for row in rows)]))
    (folder / "b.csv").write_text("\n".join(["Second;first", *(f'"{row}";{row}' for row in rows)]), encoding="utf-16")
    state = {"a.weight": torch.arange(12.0), "b": torch.zeros(3, dtype=torch.float16)}
    torch.save({"state_dict": state, "epoch": 1}, folder / "a.pth")
    torch.save(state, folder / "b.pth", _use_new_zipfile_serialization=False)

    def read(file: str) -> str:
        try:
            read_tensors(Path(file))
        except WeightFileError as error:
            return "" if "\n" not in str(error) else str(error)
        return ""

    kinds = {
        "ours.npz": lambda file: damaged.fault_of([*fid[:1], file, real, *fid[1:]]),
        "theirs.npz": lambda file: damaged.fault_of([*fid[:1], real, file, *fid[1:]]),
        "a.csv": lambda file: damaged.fault_of(["ssim", real, real, "--no-cache", "--pairs-file", file]),
        "b.csv": lambda file: damaged.fault_of(["ssim", fake, real, "--no-cache", "--pairs-file", file]),
        "a.pth": read,
        "b.pth": read,
    }
    faults = []
    for kind, fault_of in kinds.items():
        whole = (folder / kind).read_bytes()
        odd = folder / f"odd-{kind}"
        for number in range(per_kind):
            content = damaged.damage(whole, rng)
            odd.write_bytes(damaged.mend_checksums(content) if number % 2 else content)
            if fault := fault_of(str(odd)):
                faults.append(f"{kind}, number {number}: {fault}")
    return faults


def faults_of_what_is_kept(folder: Path, per_kind: int, rng: np.random.Generator) -> list[str]:
    """Whatever is damaged in the cache, the answer is the same."""
    from click.testing import CliRunner

    from reid_eval.cli import main

    cache = folder / "cache"
    os.environ["REID_CACHE"] = str(cache)
    arguments = ["kid", str(folder / "real"), str(folder / "real"), "--extractor", "random", "--json"]
    expected = CliRunner().invoke(main, arguments).stdout
    faults = []
    for number in range(per_kind):
        for file in sorted(path for path in cache.rglob("*") if path.is_file()):
            if number % 2 or file.suffix == ".json":
                file.write_bytes(damaged.damage(file.read_bytes(), rng))
        found = CliRunner().invoke(main, arguments)
        if found.exit_code or found.stdout != expected:
            faults.append(f"cache, number {number}: {found.output}")
    return faults


def main(per_kind: int, seed: int) -> int:
    import torch  # before memory is limited

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["REID_CACHE"] = str(folder / "cache")
        torch.nn.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 1, 1))
        damaged.limit_memory(1 << 30)
        faults = list(filter(None, faults_of_pictures(folder, per_kind, rng)))
        faults += faults_of_files(folder, per_kind, rng)
        faults += faults_of_what_is_kept(folder, per_kind, rng)
    print("\n".join(faults))
    print(f"{len(faults)} faults")
    return min(len(faults), 1)


if __name__ == "__main__":
    import test_damaged_files as damaged  # beside this file

    sys.exit(main(*(int(word) for word in [*sys.argv[1:], *map(str, (PER_KIND, 0)[len(sys.argv) - 1 :])])))
