"""Time and memory of ranking and re-ranking, beside the ways they are usually written.

Each way runs in a process of its own on the same made-up crowd, so its peak memory is its own; what two ways found has
to agree.

    .venv/bin/python benchmarks/ranking.py                  # some seconds
    .venv/bin/python benchmarks/ranking.py --size market    # a minute or more; --dense adds minutes and 12 GB
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from reid_eval.distances import squared_distances, unit_length
from reid_eval.features import ReidFeatures
from reid_eval.ranking import rank_distances
from reid_eval.rerank import RerankParams, rerank

SIZES = {"small": (400, 2000, 50), "market": (3368, 15913, 750)}  # queries, gallery, people
NUM_FEATURES, NUM_CAMERAS = 512, 6

Way = Callable[[ReidFeatures, ReidFeatures], tuple[float, np.ndarray]]


def crowd(num_query: int, num_gallery: int, num_people: int) -> ReidFeatures:
    """Unit vectors around one centre per person, so noisy that neighbours are often strangers."""
    rng = np.random.default_rng(0)
    num = num_query + num_gallery
    pids = rng.integers(1, num_people + 1, num)
    centres = rng.normal(size=(num_people + 1, NUM_FEATURES)).astype(np.float32)
    points = unit_length(centres[pids] + 2.5 * rng.normal(size=(num, NUM_FEATURES)).astype(np.float32))
    splits = np.repeat(["query", "gallery"], [num_query, num_gallery])
    return ReidFeatures(points, pids, rng.integers(0, NUM_CAMERAS, num), splits, splits)


def rank_by_counting(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """Ours. Returns seconds, distances given, and mAP (trapezoid)."""
    distances = squared_distances(query.features, gallery.features)
    start_s = time.perf_counter()
    scores = rank_distances(distances, query.pids, query.camids, gallery.pids, gallery.camids)
    return time.perf_counter() - start_s, np.array(scores.map_trapezoid)


def rank_by_sorting(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """As scripts do it: argsort the gallery for each query, then look where the right ones are."""
    distances = squared_distances(query.features, gallery.features)
    start_s = time.perf_counter()
    found = []
    for row, pid, camid in zip(distances, query.pids, query.camids, strict=True):
        order = np.argsort(row)
        same = gallery.pids[order] == pid
        place = np.flatnonzero(same[~(same & (gallery.camids[order] == camid))])
        hit = np.arange(1, len(place) + 1)
        before = np.where(place > 0, (hit - 1) / np.maximum(place, 1), 1.0)
        found.append(((before + hit / (place + 1)) / 2).mean() if len(place) else np.nan)
    return time.perf_counter() - start_s, np.array(np.nanmean(found))


def rerank_sparsely(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """Ours. Returns seconds and the re-ranked distances (Q, G)."""
    start_s = time.perf_counter()
    found = rerank(query.features, gallery.features, RerankParams(k1=20, k2=6, lambda_=0.3))
    return time.perf_counter() - start_s, found


def rerank_densely(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """As the paper tells it, on matrices of all pairs, (Q + G) x (Q + G)."""
    points = np.concatenate([query.features, gallery.features])
    num_query = len(query)
    start_s = time.perf_counter()
    original = squared_distances(points, points)
    original /= original.max(axis=1, keepdims=True)
    nearest = np.argsort(original, axis=1)
    far, close = ([set(row[: k + 1].tolist()) for row in nearest] for k in (20, 10))
    encoding = np.zeros_like(original)
    for i in range(len(points)):
        members = {j for j in far[i] if i in far[j]}
        candidates = [{m for m in close[j] if j in close[m]} for j in members]
        joining = [some for some in candidates if 3 * len(some & members) > 2 * len(some)]
        columns = sorted(members.union(*joining))
        weights = np.exp(-original[i, columns])
        encoding[i, columns] = weights / weights.sum()
    encoding = np.stack([encoding[row[:6]].mean(axis=0) for row in nearest])
    shared = np.empty((num_query, len(gallery)), dtype=np.float32)
    for row in range(num_query):
        support = np.flatnonzero(encoding[row])
        shared[row] = np.minimum(encoding[row, support], encoding[num_query:, support]).sum(axis=1)
    found = 0.7 * (1 - shared / (2 - shared)) + 0.3 * original[:num_query, num_query:]
    return time.perf_counter() - start_s, found


def measure(way: Way, size: str, answer: Connection) -> None:
    people = crowd(*SIZES[size])
    elapsed_s, found = way(people.query, people.gallery)
    answer.send((elapsed_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, found))  # Linux counts in KB


def in_its_own_process(way: Way, size: str) -> tuple[float, float, np.ndarray]:
    """Run, print and return seconds, peak memory in MB (inputs and Python included), and what was found."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(way, size, theirs))
    process.start()
    theirs.close()
    elapsed_s, peak_mb, found = ours.recv()
    process.join()
    print(f"{way.__name__:<17}{elapsed_s:>9.2f} s{peak_mb:>8.0f} MB at the peak", flush=True)
    return elapsed_s, peak_mb, found


def compare(our_way: Way, other_way: Way, size: str, tolerance: float) -> None:
    our_s, our_mb, found = in_its_own_process(our_way, size)
    other_s, other_mb, expected = in_its_own_process(other_way, size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    print(f"  the other way takes {other_s / our_s:.1f} x the time and {other_mb / our_mb:.1f} x the memory; ", end="")
    print(f"results agree to {np.abs(found - expected).max():.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small", help="default: %(default)s")
    parser.add_argument("--dense", action="store_true", help="re-rank the dense way at market size too")
    options = parser.parse_args()
    num_query, num_gallery, _ = SIZES[options.size]
    print(f"{num_query} queries x {num_gallery} gallery x {NUM_FEATURES} numbers, {os.cpu_count()} CPUs")
    compare(rank_by_counting, rank_by_sorting, options.size, tolerance=1e-5)  # ties fall as argsort likes
    if options.size == "small" or options.dense:
        compare(rerank_sparsely, rerank_densely, options.size, tolerance=1e-5)  # float32 sums in another order
    else:
        in_its_own_process(rerank_sparsely, options.size)


if __name__ == "__main__":
    main()
