"""Score pictures of any generator: how far from the real ones, and how varied within a person.

Both folders hold one folder per person. Without Inception weights the features are those of a trained re-ID run.

    python examples/score_my_generator.py real/ fake/ runs/demo/teacher
"""

import sys

from reid_eval.errors import user_errors
from reid_eval.extractors import extractor_from_name
from reid_eval.images import measure_images


def main(real: str, fake: str, run: str) -> None:
    extractor = extractor_from_name(f"reid:{run}")
    for result in measure_images(real, fake, metrics=["fid", "ssim"], extractor=extractor):
        print(f"{result.name}: {result.value:.4f}\n  {result.protocol}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    with user_errors():
        main(*sys.argv[1:])
