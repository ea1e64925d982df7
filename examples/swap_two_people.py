"""Let two people of two photographs wear each other's clothes.

python examples/swap_two_people.py runs/demo/dgnet first.jpg second.jpg swapped.png
"""

import sys
from pathlib import Path

from dgnet_gen.model import DGNet
from dgnet_gen.visualise import enlarged, swap_grid
from reid_eval.errors import user_errors
from reid_eval.files import save_image


def main(run: str, first: str, second: str, out: str) -> None:
    model = DGNet.load(run)
    people = [Path(first), Path(second)]
    save_image(out, enlarged(swap_grid(model, structures=people, appearances=people), 3))
    print(f"{out}: poses down the left, clothes across the top")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    with user_errors():
        main(*sys.argv[1:])
