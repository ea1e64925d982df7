"""Each promise in docs/data-and-files.md names a test that holds it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data-and-files.md").read_text(encoding="utf-8")
PROMISES = PAGE.partition("\n## Promises\n")[2].partition("\n## ")[0]
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PROMISES)


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_the_test_of_a_promise_is_there(file, test):
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert test in [part.name for part in tree.body if isinstance(part, ast.FunctionDef)]


def test_every_promise_names_its_test():
    rows = [row for row in PROMISES.splitlines() if row.startswith("| ") and not row.startswith("| promise")]
    assert len(rows) == len(NAMED) > 20
