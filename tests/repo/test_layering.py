"""The import rule: a package may import those to its left, never those to its right."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ("reid_eval", "reid_models", "dgnet_gen", "pipelines")
SOURCES = {
    "reid_eval": ROOT / "packages/reid-eval/src/reid_eval",
    "reid_models": ROOT / "packages/reid-models/src/reid_models",
    "dgnet_gen": ROOT / "packages/dgnet-gen/src/dgnet_gen",
    "pipelines": ROOT / "pipelines",
}


def imported_packages(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_those_to_its_left(package):
    to_the_right = set(ORDER[ORDER.index(package) + 1 :])
    files = sorted(SOURCES[package].rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): imported_packages(file.read_text()) & to_the_right for file in files}
    assert not {file: names for file, names in wrong.items() if names}


def test_the_rule_sees_imports_inside_functions():
    assert imported_packages("def f():\n    from dgnet_gen.model import DGNet\n") == {"dgnet_gen"}


def test_there_is_no_drawer_for_everything():
    names = {file.stem for source in SOURCES.values() for file in source.rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize("package", ORDER[:3])
def test_only_the_command_line_knows_click(package):
    allowed = {"cli.py", "cli_images.py", "errors.py"}
    users = {
        file.name
        for file in SOURCES[package].rglob("*.py")
        if imported_packages(file.read_text()) & {"click", "rich_click"}
    }
    assert users <= allowed


def test_only_checkpoints_and_weights_read_and_write_tensors_on_disk():
    allowed = {"checkpoints.py", "weights.py", "foreign.py"}
    users = set()
    for source in SOURCES.values():
        for file in source.rglob("*.py"):
            calls = (node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
            if any(
                isinstance(call, ast.Attribute)
                and call.attr in ("save", "load")
                and isinstance(call.value, ast.Name)
                and call.value.id == "torch"
                for call in calls
            ):
                users.add(file.name)
    assert users <= allowed
