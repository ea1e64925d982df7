"""Time and memory of ranking and re-ranking, beside the ways they are usually written.

Each way runs in a process of its own on the same made-up crowd, so its peak memory is its own; what two ways found has
to agree.

    .venv/bin/python benchmarks/ranking.py                  # some seconds
    .venv/bin/python benchmarks/ranking.py --size market    # a minute or more; --dense adds minutes and 12 GB
    .venv/bin/python benchmarks/ranking.py --size market --length 2048 --noise 1.5    # the vectors of a good ResNet-50
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from reid_eval.distances import squared_distances, unit_length
from reid_eval.features import ReidFeatures
from reid_eval.ranking import rank, rank_distances
from reid_eval.rerank import RerankParams, rerank

SIZES = {"small": (400, 2000, 50), "market": (3368, 15913, 750)}  # queries, gallery, people
NUM_CAMERAS = 6

Way = Callable[[ReidFeatures, ReidFeatures], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Crowd:
    """How large the made-up crowd is, how long its vectors, and how far people scatter around themselves."""

    size: str
    length: int
    noise: float


def crowd(what: Crowd) -> ReidFeatures:
    """Unit vectors around one centre per person; with much noise neighbours are often strangers."""
    num_query, num_gallery, num_people = SIZES[what.size]
    rng = np.random.default_rng(0)
    num = num_query + num_gallery
    pids = rng.integers(1, num_people + 1, num)
    centres = rng.standard_normal((num_people + 1, what.length), dtype=np.float32)
    points = centres[pids]
    for start in range(0, num, 1000):
        some = points[start : start + 1000]
        some += np.float32(what.noise) * rng.standard_normal(some.shape, dtype=np.float32)
        some[:] = unit_length(some)
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


def rank_features(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """Ours from the vectors, nothing known before. Returns seconds and mAP (trapezoid)."""
    features = _joined(query, gallery)
    start_s = time.perf_counter()
    found = rank(features).map_trapezoid
    return time.perf_counter() - start_s, np.array(found)


def multiply_query_and_gallery(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """The product of queries and gallery alone, which nobody can avoid, a block at a time."""
    return _multiply(query.features, gallery.features)


def rerank_sparsely(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """Ours. Returns seconds and the re-ranked distances (Q, G)."""
    start_s = time.perf_counter()
    found = rerank(query.features, gallery.features, RerankParams(k1=20, k2=6, lambda_=0.3))
    return time.perf_counter() - start_s, found


def rank_and_rerank_features(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """Ours from the vectors to plain and re-ranked numbers; no (Q, G) matrix either. Returns seconds and mAP."""
    features = _joined(query, gallery)
    start_s = time.perf_counter()
    report = rank(features, rerank=RerankParams(k1=20, k2=6, lambda_=0.3))
    assert report.reranked is not None
    return time.perf_counter() - start_s, np.array([report.map_trapezoid, report.reranked.map_trapezoid])


def multiply_all_pairs(query: ReidFeatures, gallery: ReidFeatures) -> tuple[float, np.ndarray]:
    """The product of all points with all points alone, a block at a time."""
    points = np.concatenate([query.features, gallery.features])
    return _multiply(points, points)


def _multiply(rows: np.ndarray, columns: np.ndarray) -> tuple[float, np.ndarray]:
    block = np.empty((256, len(columns)), dtype=np.float32)
    start_s = time.perf_counter()
    for start in range(0, len(rows), 256):
        some = rows[start : start + 256]
        np.matmul(some, columns.T, out=block[: len(some)])
    return time.perf_counter() - start_s, np.array(0.0)


def _joined(query: ReidFeatures, gallery: ReidFeatures) -> ReidFeatures:
    """The crowd's file again, of which both are views."""
    names = ("features", "pids", "camids", "splits", "paths")
    return ReidFeatures(*(np.concatenate([getattr(query, name), getattr(gallery, name)]) for name in names))


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


def measure(way: Way, what: Crowd, answer: Connection) -> None:
    people = crowd(what)
    elapsed_s, found = way(people.query, people.gallery)
    answer.send((elapsed_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, found))  # Linux counts in KB


def in_its_own_process(way: Way, what: Crowd) -> tuple[float, float, np.ndarray]:
    """Run, print and return seconds, peak memory in MB (inputs and Python included), and what was found."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(way, what, theirs))
    process.start()
    theirs.close()
    elapsed_s, peak_mb, found = ours.recv()
    process.join()
    print(f"{way.__name__:<28}{elapsed_s:>9.2f} s{peak_mb:>8.0f} MB at the peak", flush=True)
    return elapsed_s, peak_mb, found


def compare(our_way: Way, other_way: Way, what: Crowd, tolerance: float) -> None:
    our_s, our_mb, found = in_its_own_process(our_way, what)
    other_s, other_mb, expected = in_its_own_process(other_way, what)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    print(f"  the other way takes {other_s / our_s:.1f} x the time and {other_mb / our_mb:.1f} x the memory; ", end="")
    print(f"results agree to {np.abs(found - expected).max():.0e}")


def beside_the_product(our_way: Way, product: Way, what: Crowd) -> None:
    our_s, _, _ = in_its_own_process(our_way, what)
    product_s, _, _ = in_its_own_process(product, what)
    print(f"  ours takes {our_s / product_s:.1f} x the time of the product")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small", help="default: %(default)s")
    parser.add_argument("--length", type=int, default=512, help="numbers in a vector; default: %(default)s")
    parser.add_argument("--noise", type=float, default=2.5, help="how far people scatter; default: %(default)s")
    parser.add_argument("--dense", action="store_true", help="re-rank the dense way at market size too")
    options = parser.parse_args()
    what = Crowd(options.size, options.length, options.noise)
    num_query, num_gallery, _ = SIZES[what.size]
    print(f"{num_query} queries x {num_gallery} gallery x {what.length} numbers, noise {what.noise:g}, ", end="")
    print(f"{os.cpu_count()} CPUs")
    compare(rank_by_counting, rank_by_sorting, what, tolerance=1e-5)  # ties fall as argsort likes
    beside_the_product(rank_features, multiply_query_and_gallery, what)
    if what.size == "small" or options.dense:
        compare(rerank_sparsely, rerank_densely, what, tolerance=1e-5)  # float32 sums in another order
    beside_the_product(rank_and_rerank_features, multiply_all_pairs, what)


if __name__ == "__main__":
    main()
