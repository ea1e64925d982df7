"""How long commands take before they do anything, and how long a plan of generation takes to draw.

    .venv/bin/python benchmarks/start.py                               # here
    .venv/bin/python benchmarks/start.py --beside ../before            # and in another checkout, the two in turns
    .venv/bin/python benchmarks/start.py --pictures 5000 --pairs 100000 # a plan of another size

Processor time of a process with all its children, medians of `--repeats`: on a machine that others use too the clock
says little. What both checkouts share, Python and PyTorch, is that of this interpreter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from processor import tell

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("reid-eval", "reid-models", "dgnet-gen")
MAIN = "import sys; from {}.cli import main; sys.argv[0] = {!r}; main()"
PLAN = """
import sys
from pathlib import Path
from dgnet_gen.generation_plan import plan_generation
from reid_models.data.index import DatasetIndex, ImageRecord
pictures, pairs = map(int, sys.argv[1:])
records = [ImageRecord(Path(f"/d/{row}.jpg"), row // 8 + 1, 1, "train_all") for row in range(pictures)]
print(len(plan_generation(DatasetIndex(Path("/d"), "market1501", tuple(records)), pairs)))
"""


def features(file: Path) -> None:
    """Few and short, so that ranking them is no work."""
    rng = np.random.default_rng(0)
    pids = np.arange(200) % 20 + 1
    parts = {"query": slice(0, 40), "gallery": slice(40, 200)}
    arrays: dict[str, np.ndarray] = {}
    for name, rows in parts.items():
        arrays[f"{name}_f"] = rng.normal(size=(200, 64)).astype(np.float32)[rows]
        arrays[f"{name}_label"], arrays[f"{name}_cam"] = pids[rows], (np.arange(200) // 20 % 6 + 1)[rows]
    np.savez(file, **arrays)


def processor_s(code: str, words: list[str], checkout: Path) -> float:
    """User and system time of a fresh interpreter; its children are counted when it has waited for them."""
    sources = os.pathsep.join(str(checkout / "packages" / package / "src") for package in PACKAGES)
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], env=os.environ | {"PYTHONPATH": sources}, stdout=null, stderr=null
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{checkout}: {' '.join(words)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="another checkout, such as an older one")
    parser.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=507, help="of a plan; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=20_000, help="of a plan; 0 for none; default: %(default)s")
    parser.add_argument("names", nargs="*", help="parts of names, such as rank: only what is called so")
    options = parser.parse_args()
    tell()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npz"
        features(file)
        work = {
            "reid-eval --help": (MAIN.format("reid_eval", "reid-eval"), ["--help"]),
            "reid-models --help": (MAIN.format("reid_models", "reid-models"), ["--help"]),
            "dgnet-gen --help": (MAIN.format("dgnet_gen", "dgnet-gen"), ["--help"]),
            "reid-eval rank, 40 x 160": (MAIN.format("reid_eval", "reid-eval"), ["rank", "--features", str(file)]),
            "import reid_models.networks": ("import reid_models.networks", []),
            "import dgnet_gen.training": ("import dgnet_gen.training", []),
        }
        if options.pairs:
            work[f"a plan, {options.pairs} of {options.pictures}"] = PLAN, [str(options.pictures), str(options.pairs)]
        checkouts = [ROOT, *([options.beside.resolve()] if options.beside else [])]
        print(
            f"{'processor time':<30}"
            + "".join(f"{name:>12}" for name in ("here", "beside", "")[: 1 + 2 * (len(checkouts) > 1)])
        )
        for name, (code, words) in work.items():
            if options.names and not any(part in name for part in options.names):
                continue
            for checkout in checkouts:  # not counted: files are read and compiled
                processor_s(code, words, checkout)
            rounds = [[processor_s(code, words, checkout) for checkout in checkouts] for _ in range(options.repeats)]
            took = [median(column) for column in zip(*rounds, strict=True)]
            ratio = f"{took[1] / took[0]:>11.2f}x" if len(took) > 1 else ""
            print(f"{name:<30}" + "".join(f"{seconds:>10.2f} s" for seconds in took) + ratio, flush=True)


if __name__ == "__main__":
    start_s = time.monotonic()
    main()
    print(f"in {time.monotonic() - start_s:.0f} s")
