"""Time and memory of ranking and re-ranking, beside the ways they are usually written.

    .venv/bin/python benchmarks/rank.py                    # everything but large, small: some seconds
    .venv/bin/python benchmarks/rank.py --size market      # as large as Market-1501: minutes, and more than 8 GB
    .venv/bin/python benchmarks/rank.py matrix features --size market
    .venv/bin/python benchmarks/rank.py large --size msmt17     # re-ranked within 8 GiB: long
    .venv/bin/python benchmarks/rank.py large --size million    # 10,000 x 1,000,000 from a mapped file of 2 GB
    .venv/bin/python benchmarks/rank.py --size tiny             # to try the script itself

Each way runs in a process of its own on the same made-up crowd, so its peak memory is its own; what two ways found has
to agree. Ratios are of processor time, within one run; times of different machines cannot be compared.

The compiled evaluators of torchreid and fast-reid are one program: argsort of all rows, then a compiled loop down each.
If its module can be imported (`rank_cy`, built from the package fastreid and put on PYTHONPATH) it is measured; the
same steps written here in C are, where there is a compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from originals import tell
from processor import tell as tell_processor

from reid_eval.distances import unit_length
from reid_eval.features import ReidFeatures
from reid_eval.neighbours import MatrixDistances
from reid_eval.ranking import plan_memory, rank, rank_distances
from reid_eval.rerank import RerankParams, reranked_blocks

Prepare = Callable[["Crowd"], Any]
Work = Callable[[Any], Any]

PARTS = ("matrix", "features", "rerank", "given", "large")
NUM_DIMENSIONS = 128  # vectors of networks do not fill their length either
PARAMS = RerankParams(k1=20, k2=6, lambda_=0.3)
MAX_MEMORY = {"msmt17": 8 * 2**30, "million": 2**30}


@dataclass(frozen=True)
class Crowd:
    """A made-up test set: how many of each kind, how long the vectors, and how far people scatter.

    Junk crops and distractors are among the gallery. Infinite noise: nobody resembles himself.
    """

    num_query: int
    num_gallery: int
    num_people: int
    num_cameras: int
    length: int
    num_distractors: int = 0
    num_junk: int = 0
    noise: float = 1.3
    mapped: bool = False

    def without_junk(self) -> Crowd:
        return replace(self, num_gallery=self.num_gallery - self.num_junk, num_junk=0)


SIZES = {
    "tiny": Crowd(40, 240, 10, 4, 64, num_distractors=20, num_junk=20),
    "small": Crowd(400, 2400, 50, 6, 512, num_distractors=200, num_junk=200),
    "market": Crowd(3368, 19732, 750, 6, 2048, num_distractors=2798, num_junk=3819),
    "msmt17": Crowd(11659, 82161, 3060, 15, 2048),
    "million": Crowd(10000, 1000000, 10000, 20, 512, noise=1.0, mapped=True),
}


def crowd(what: Crowd) -> ReidFeatures:
    """Unit vectors around one centre per person; distractors and junk crops are alone."""
    rng = np.random.default_rng(0)
    num = what.num_query + what.num_gallery
    pids = rng.integers(1, what.num_people + 1, num)
    others = what.num_query + rng.permutation(what.num_gallery)[: what.num_distractors + what.num_junk]
    pids[others[: what.num_distractors]], pids[others[what.num_distractors :]] = 0, -1
    centres = rng.standard_normal((what.num_people + 2, NUM_DIMENSIONS), dtype=np.float32)
    centres[[0, -1]] = 0
    spread = rng.standard_normal((NUM_DIMENSIONS, what.length), dtype=np.float32)
    if what.mapped:
        points = np.lib.format.open_memmap(
            Path(os.environ["CROWD_FOLDER"]) / "points.npy", "w+", np.float32, (num, what.length)
        )
    else:
        points = np.empty((num, what.length), dtype=np.float32)
    for start in range(0, num, 1000):
        some = rng.standard_normal((len(pids[start : start + 1000]), NUM_DIMENSIONS), dtype=np.float32)
        if np.isfinite(what.noise):
            some = centres[pids[start : start + 1000]] + np.float32(what.noise) * some
        points[start : start + 1000] = unit_length(some @ spread)
    splits = np.repeat(["query", "gallery"], [what.num_query, what.num_gallery])
    return ReidFeatures(points, pids, rng.integers(1, what.num_cameras + 1, num), splits, splits)


# --- from distances to numbers --------------------------------------------------------------------------------------


def distances_and_labels(what: Crowd) -> list[np.ndarray]:
    features = crowd(what)
    query, gallery = features.query, features.gallery
    return [2 - 2 * (query.features @ gallery.features.T), query.pids, query.camids, gallery.pids, gallery.camids]


def count(inputs: list[np.ndarray]) -> Any:
    """Ours: the right answers' places by counting."""
    distances, q_pids, q_camids, g_pids, g_camids = inputs
    return rank_distances(distances, q_pids=q_pids, q_camids=q_camids, g_pids=g_pids, g_camids=g_camids).map_hits


def sort_and_loop_as_published(inputs: list[np.ndarray]) -> Any:
    """The compiled evaluator of fast-reid and torchreid."""
    import rank_cy

    distances, q_pids, q_camids, g_pids, g_camids = inputs
    return np.asarray(rank_cy.evaluate_cy(distances, q_pids, g_pids, q_camids, g_camids, 50)[1], dtype=float).mean()


def sort_and_loop_in_c(inputs: list[np.ndarray]) -> Any:
    """The same steps, but for copies that it does without."""
    loop = ctypes.CDLL(str(Path(os.environ["CROWD_FOLDER"]) / "loop.so")).evaluate
    loop.restype = ctypes.c_double
    distances, *labels = inputs
    arrays = [np.argsort(distances, axis=1), *labels, np.zeros(50), np.zeros(len(distances))]
    return loop(*map(ctypes.c_int64, distances.shape), *(ctypes.c_void_p(array.ctypes.data) for array in arrays))


_LOOP = """
#include <stdint.h>
double evaluate(int64_t num_query, int64_t num_gallery, const int64_t *order, const int64_t *q_pids,
                const int64_t *q_camids, const int64_t *g_pids, const int64_t *g_camids, double *cmc, double *inp) {
    double total = 0;
    int64_t valid = 0;
    for (int64_t q = 0; q < num_query; q++) {
        int64_t place = 0, hits = 0;
        double precisions = 0;
        for (int64_t i = 0; i < num_gallery; i++) {
            int64_t g = order[q * num_gallery + i];
            if (g_pids[g] == q_pids[q]) {
                if (g_camids[g] == q_camids[q]) continue;
                hits++;
                precisions += hits / (place + 1.0);
                inp[q] = hits / (place + 1.0);
                if (hits == 1) for (int64_t k = place; k < 50; k++) cmc[k] += 1;
            }
            place++;
        }
        if (hits) { valid++; total += precisions / hits; }
    }
    return total / valid;
}
"""


# --- from vectors to numbers ----------------------------------------------------------------------------------------


def rank_features(features: ReidFeatures) -> Any:
    """Ours from the vectors, nothing known before."""
    return rank(features).map_hits


def rank_and_rerank_features(features: ReidFeatures) -> Any:
    """Ours from the vectors to plain and re-ranked numbers, without a matrix of queries and gallery."""
    report = rank(features, rerank=PARAMS)
    assert report.reranked is not None
    return np.array([report.map_hits, report.reranked.map_hits])


def multiply_query_and_gallery(features: ReidFeatures) -> Any:
    """The product of queries and gallery alone, which nobody can avoid, a block at a time."""
    query, gallery = features.query.features, features.gallery.features
    rows = 1 + 2**27 // (4 * gallery.shape[1])
    for first in range(0, len(gallery), rows):
        _multiply(query, np.asarray(gallery[first : first + rows]))


def multiply_all_pairs(features: ReidFeatures) -> Any:
    """The product of all points with all points alone, a block at a time."""
    _multiply(features.features, features.features)


def _multiply(rows: np.ndarray, columns: np.ndarray) -> None:
    block = np.empty((256, len(columns)), dtype=np.float32)
    for start in range(0, len(rows), 256):
        some = rows[start : start + 256]
        np.matmul(some, columns.T, out=block[: len(some)])


# --- re-ranking -----------------------------------------------------------------------------------------------------


def rerank_plainly(features: ReidFeatures) -> Any:
    """As published, on matrices of all pairs, from the vectors; the re-ranked distances."""
    points = features.features
    return rerank_matrix_plainly((np.sqrt(np.maximum(2 - 2 * (points @ points.T), 0)), len(features.query)))


def rerank_features(features: ReidFeatures) -> Any:
    """Ours; the same distances."""
    from reid_eval.rerank import rerank

    return rerank(features.query.features, features.gallery.features, PARAMS)


def all_distances(what: Crowd) -> tuple[np.ndarray, int]:
    points = crowd(what).features
    return np.sqrt(np.maximum(2 - 2 * (points @ points.T), 0)), what.num_query


def rerank_matrix(inputs: tuple[np.ndarray, int]) -> Any:
    """Ours from distances that somebody else computed."""
    distances, num_query = inputs
    return np.concatenate(list(reranked_blocks(MatrixDistances(distances), num_query, PARAMS)))


def rerank_matrix_plainly(inputs: tuple[np.ndarray, int]) -> Any:
    """As published, from a matrix of all pairs."""
    distances, num_query = inputs
    original = distances * distances
    original /= original.max(axis=1, keepdims=True)
    nearest = np.argsort(original, axis=1).astype(np.int32)
    encoding = np.zeros_like(original)

    def mutual(point: int, k: int) -> np.ndarray:
        forward = nearest[point, : k + 1]
        return forward[np.where(nearest[forward, : k + 1] == point)[0]]

    half = round(PARAMS.k1 / 2)
    for point in range(len(original)):
        members = expanded = mutual(point, PARAMS.k1)
        for candidate in members:
            joining = mutual(candidate, half)
            if len(np.intersect1d(joining, members)) > 2 / 3 * len(joining):
                expanded = np.append(expanded, joining)
        expanded = np.unique(expanded)
        weights = np.exp(-original[point, expanded])
        encoding[point, expanded] = weights / weights.sum()
    original = original[:num_query]
    averaged = np.zeros_like(encoding)
    for point in range(len(encoding)):
        averaged[point] = encoding[nearest[point, : PARAMS.k2]].mean(axis=0)
    del encoding
    rows_with = [np.flatnonzero(column) for column in averaged.T]
    jaccard = np.empty_like(original)
    for point in range(num_query):
        shared = np.zeros(len(averaged), dtype=np.float32)
        for column in np.flatnonzero(averaged[point]):
            rows = rows_with[column]
            shared[rows] += np.minimum(averaged[point, column], averaged[rows, column])
        jaccard[point] = 1 - shared / (2 - shared)
    return ((1 - PARAMS.lambda_) * jaccard + PARAMS.lambda_ * original)[:, num_query:]


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    elapsed_s: float
    cpu_s: float  # of all threads; what else runs on the machine disturbs it little
    beyond_mib: float  # at the peak, beyond the inputs; Python and its packages count
    found: Any


def measure(prepare: Prepare, work: Work, what: Crowd, answer: Connection) -> None:
    inputs = prepare(what)
    arrays = [inputs.features] if isinstance(inputs, ReidFeatures) else [a for a in inputs if isinstance(a, np.ndarray)]
    peak_mib, done = [0.0], threading.Event()
    watch = threading.Thread(target=_watch, args=(peak_mib, done))
    watch.start()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    found = work(inputs)
    elapsed_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    done.set()
    watch.join()
    if not what.mapped:
        peak_mib[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
        peak_mib[0] -= sum(array.nbytes for array in arrays) / 2**20
    answer.send(Measured(elapsed_s, cpu_s, peak_mib[0], found))


def _watch(peak_mib: list[float], done: threading.Event) -> None:
    """Memory of the process's own, without what is mapped from files and can be dropped at any time."""
    while not done.wait(0.05):
        lines = Path("/proc/self/status").read_text().splitlines()
        own = next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
        peak_mib[0] = max(peak_mib[0], own / 1024)


def in_its_own_process(prepare: Prepare, work: Work, what: Crowd) -> Measured:
    """Run and print; the process is a fresh one."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(prepare, work, what, theirs))
    process.start()
    theirs.close()
    measured: Measured = ours.recv()
    process.join()
    print(f"  {work.__name__:<28}{measured.cpu_s:>10.2f} s of processor time in {measured.elapsed_s:.2f} s", end="")
    print(f"{measured.beyond_mib:>9.0f} MiB beyond the input", flush=True)
    return measured


def from_distances(what: Crowd) -> None:
    # The others know no junk; so that all do the same, its crops are distractors, and ours does its own rule last.
    all_wrong = replace(what, num_distractors=what.num_distractors + what.num_junk, num_junk=0)
    for kind, noise in (("a good model's vectors", what.noise), ("random vectors", np.inf)):
        print(f"distances to numbers, {kind}")
        one = replace(all_wrong, noise=noise)
        ours = in_its_own_process(distances_and_labels, count, one)
        print(f"    mAP (hits) {100 * ours.found:.2f}%")
        others = [sort_and_loop_as_published] if importlib.util.find_spec("rank_cy") else []
        if (Path(os.environ["CROWD_FOLDER"]) / "loop.so").exists():
            others.append(sort_and_loop_in_c)
        for other in others:
            theirs = in_its_own_process(distances_and_labels, other, one)
            assert abs(ours.found - theirs.found) < 1e-5, (ours.found, theirs.found)  # they sum in float32
            print(f"    ours is {theirs.cpu_s / ours.cpu_s:.1f} x as fast")
        if what.num_junk:
            print("  the same with junk left out")
            in_its_own_process(distances_and_labels, count, replace(what, noise=noise))


def beside_the_product(work: Work, product: Work, what: Crowd) -> Measured:
    ours = in_its_own_process(crowd, work, what)
    alone = in_its_own_process(crowd, product, what)
    print(f"    ours takes {ours.cpu_s / alone.cpu_s:.2f} x the time of the product", end="")
    print(f", {ours.elapsed_s / alone.elapsed_s:.2f} x by the clock")
    return ours


def from_features(what: Crowd) -> None:
    for kind, noise in (("a good model's vectors", what.noise), ("random vectors", np.inf)):
        print(f"vectors to numbers, {kind}")
        beside_the_product(rank_features, multiply_query_and_gallery, replace(what, noise=noise))


def reranked(what: Crowd) -> None:
    print("vectors to plain and re-ranked numbers")
    what = what.without_junk()
    beside_the_product(rank_and_rerank_features, multiply_all_pairs, what)
    print("vectors to re-ranked distances")
    compare(crowd, rerank_features, rerank_plainly, what)


def reranked_from_distances(what: Crowd) -> None:
    print("distances to re-ranked distances")
    compare(all_distances, rerank_matrix, rerank_matrix_plainly, what.without_junk())


def compare(
    prepare: Callable[[Crowd], Any], ours: Callable[[Any], Any], plain: Callable[[Any], Any], what: Crowd
) -> None:
    our, other = (in_its_own_process(prepare, way, what) for way in (ours, plain))
    # Products of vectors differ in the last bits, so here and there two neighbours change places.
    differing = np.mean(np.abs(our.found - other.found) > 1e-4)
    assert differing < 1e-3, differing
    print(f"    ours is {other.cpu_s / our.cpu_s:.1f} x as fast, ", end="")
    print(f"{other.elapsed_s / our.elapsed_s:.1f} x by the clock; ", end="")
    print(f"{100 * differing:.4f}% of the distances differ by more than 0.0001")


def large(what: Crowd, max_memory: int) -> None:
    print(f"large, within {max_memory / 2**30:g} GiB")
    if what.mapped:
        beside_the_product(rank_in_little_memory, multiply_query_and_gallery, what)
    else:
        beside_the_product(rank_and_rerank_in_8_gib, multiply_all_pairs, what)


def rank_and_rerank_in_8_gib(features: ReidFeatures) -> Any:
    """Ours, in blocks small enough."""
    limit = MAX_MEMORY["msmt17"]
    print(f"    {plan_memory(features, [PARAMS], max_memory=limit).to_text()}", flush=True)
    report = rank(features, rerank=PARAMS, max_memory=limit)
    assert report.reranked is not None
    return np.array([report.map_hits, report.reranked.map_hits])


def rank_in_little_memory(features: ReidFeatures) -> Any:
    """Ours from a mapped file, in blocks small enough."""
    limit = MAX_MEMORY["million"]
    print(f"    {plan_memory(features, max_memory=limit).to_text()}", flush=True)
    return rank(features, max_memory=limit).map_hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all but large")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="default: %(default)s")
    parser.add_argument("--noise", type=float, help="how far people scatter; default: 1.3, million 1.0")
    parser.add_argument("--length", type=int, help="numbers in a vector; default: 2048, small and million 512, tiny 64")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    parts = options.parts or PARTS[:-1]
    what = SIZES[options.size]
    what = replace(what, length=options.length or what.length, noise=options.noise or what.noise)
    if "large" in parts and options.size not in MAX_MEMORY:
        parser.error(f"large: expected --size {' or '.join(MAX_MEMORY)}")
    tell_processor()
    print(f"{what.num_query} queries x {what.num_gallery} gallery x {what.length} numbers")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CROWD_FOLDER"] = folder
        if "matrix" in parts:
            compile_loop(Path(folder))
            from_distances(what)
        if "features" in parts:
            from_features(what)
        if "rerank" in parts:
            reranked(what)
        if "given" in parts:
            reranked_from_distances(what)
        if "large" in parts:
            large(what, MAX_MEMORY[options.size])
    if options.size == "market":
        tell("re-ranked", "plain and", "features to")


def compile_loop(folder: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        print("no C compiler here, so the loop in C is not measured")
        return
    (folder / "loop.c").write_text(_LOOP)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", folder / "loop.so", folder / "loop.c"], check=True)


if __name__ == "__main__":
    main()
