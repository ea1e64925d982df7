"""The three packages are released together: one version, exact pins between them."""

import importlib
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("reading pyproject.toml needs Python 3.11's tomllib", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[2]
PACKAGES = {"reid-eval": [], "reid-models": ["reid-eval"], "dgnet-gen": ["reid-models"]}


def project(name: str) -> dict:
    return tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())["project"]


def test_all_versions_agree():
    versions = {project(name)["version"] for name in PACKAGES}
    versions |= {importlib.import_module(name.replace("-", "_")).__version__ for name in PACKAGES}
    assert len(versions) == 1
    assert f"## {versions.pop()}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(("name", "siblings"), PACKAGES.items())
def test_siblings_are_pinned_exactly(name, siblings):
    pins = [item for item in project(name)["dependencies"] if item.startswith(("reid-", "dgnet-"))]
    assert pins == [f"{sibling}=={project(sibling)['version']}" for sibling in siblings]
