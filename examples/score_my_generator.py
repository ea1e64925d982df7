"""Score pictures of any generator: how far from the real ones, and how varied within a person.

Both folders hold one folder per person. Without Inception weights the features are those of a trained re-ID run.

    python examples/score_my_generator.py real/ fake/ runs/demo/teacher
"""

import sys

from reid_eval.extractors import extractor_from_name
from reid_eval.images import fid
from reid_eval.pair_results import ssim_within_identity


def main(real: str, fake: str, run: str) -> None:
    results = [fid(real, fake, extractor_from_name(f"reid:{run}")), ssim_within_identity(fake)]
    for result in results:
        print(f"{result.name}: {result.value:.4f}\n  {result.protocol}")


if __name__ == "__main__":
    main(*sys.argv[1:])
