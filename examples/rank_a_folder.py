"""Rank people in a dataset folder with a trained re-ID run, and print the first answers of a few queries.

python examples/rank_a_folder.py runs/demo/teacher runs/demo/data
"""

import sys

import numpy as np

from reid_eval.errors import user_errors
from reid_eval.ranking import rank
from reid_models.data.index import DatasetIndex
from reid_models.extraction import extract_features, load_embedder


def main(run: str, data: str) -> None:
    features = extract_features(load_embedder(run), DatasetIndex.open(data))
    print(rank(features).to_text())
    query, gallery = features.query, features.gallery
    for number in range(min(3, len(query))):
        nearest = np.argsort(-(gallery.features @ query.features[number]), kind="stable")[:5]
        answers = ", ".join(f"{gallery.paths[row]} (person {gallery.pids[row]})" for row in nearest)
        print(f"{query.paths[number]} (person {query.pids[number]}): {answers}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with user_errors():
        main(*sys.argv[1:])
