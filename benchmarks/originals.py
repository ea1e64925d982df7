"""What the original programs took, and ours at that time, so that a benchmark can say more than how it beats itself.

Measured with the programs themselves, changed only so far as to run on a CPU with today's libraries, and with results
compared: medians of runs that alternated, on the machine below. A way of doing it that we write flatters us.

    tell("MGN, training step")
"""

from __future__ import annotations

from typing import NamedTuple

MACHINE = "two quiet cores of an AMD EPYC (Zen 5: AVX-512 with bfloat16, no AMX), torch 2.14.1, two threads"


class Original(NamedTuple):
    """A piece of work; `ratio` is of `ours` to `took`."""

    work: str
    took: str
    ours: str
    ratio: str


ORIGINALS = (
    Original("DG-Net, training step, late, batch 4", "9.83 s, 6.0 GiB", "7.21 s, 3.7 GiB; bf16 5.44 s", "1.36; 1.81"),
    Original("DG-Net, every picture swapped once", "11.45 images/s", "19.1; `--half` 23.2", "1.67; 2.03"),
    Original("DG-Net, 16 structures x 16 appearances", "11.45 images/s", "45; `--half` 74", "3.9; 6.5"),
    Original("MGN, training step, batch 16", "4.09 s", "3.12 s; bf16 1.76 s", "1.31; 2.32"),
    Original(
        "MGN, features with mirror images", "3.74 images/s; without a graph 6.24", "8.6; `--half` 15.1", "2.3; 4.0"
    ),
    Original(
        "re-ranked distances, 3,368 x 15,913 x 2048",
        "43.8 s, 8.7 GiB; by fast-reid's faiss path 35.6 s",
        "6.1 s, 0.87 GiB",
        "7.2; 5.8",
    ),
    Original("plain and re-ranked numbers, likewise", "45.1 s", "5.95 s, 0.53 GiB", "7.6"),
    Original("features to plain numbers", "fast-reid, compiled: 3.06 s, 1.6 GiB", "0.87 s, 0.42 GiB", "3.5"),
    Original(
        "FID of two folders of 100 pictures",
        "pytorch-fid 29 s; torch-fidelity 22 s",
        "9.85 s; `--half` 6.7 s",
        "2.9; 2.25",
    ),
)


def tell(*begins: str) -> None:
    """Print what is known of the works that begin with one of some words."""
    print(f"the original programs, on {MACHINE}:")
    for original in ORIGINALS:
        if original.work.startswith(begins):
            print(f"  {original.work}: {original.took}; ours there {original.ours} ({original.ratio} x)")
