"""How long it takes to draw who meets whom in a generation: plans of a Market-1501 and of eight times as many pictures.

.venv/bin/python benchmarks/plans.py
.venv/bin/python benchmarks/plans.py --tiny                  # to try the script itself
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from processor import describe

from dgnet_gen.generation_plan import plan_generation
from reid_models.data.index import DatasetIndex, ImageRecord

SIZES = ((12_936, 751), (100_000, 5_000))
"""pictures and people"""


def index_of(pictures: int, people: int) -> DatasetIndex:
    """Pictures that nobody reads, of people of whom there are unequally many."""
    pids = np.sort(np.random.default_rng(0).integers(1, people + 1, pictures)).tolist()
    root = Path("/pictures")
    records = (ImageRecord(root / f"{pid:04d}_{row:06d}.jpg", pid, 1, "train") for row, pid in enumerate(pids))
    return DatasetIndex(root, "images", tuple(records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few pictures, which measure nothing")
    tiny = parser.parse_args().tiny
    print(describe())
    for pictures, people in ((60, 5), (200, 9)) if tiny else SIZES:
        index = index_of(pictures, people)
        for kind in ("published", "random"):
            for rounds in (1, 10):
                began_s = time.perf_counter()
                plan = plan_generation(index, rounds * pictures, kind=kind)
                seconds = time.perf_counter() - began_s
                print(f"{pictures:>8,} pictures, {kind:<10}{len(plan):>10,} pairs{seconds:8.2f} s", flush=True)


if __name__ == "__main__":
    main()
