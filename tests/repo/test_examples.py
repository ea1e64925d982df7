import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["rank_a_folder", "score_my_generator", "swap_two_people"])
def test_an_example_without_arguments_says_how_it_is_called(name):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (found.returncode, found.stdout) == (1, "")
    assert f"python examples/{name}.py " in found.stderr
    assert "Traceback" not in found.stderr
