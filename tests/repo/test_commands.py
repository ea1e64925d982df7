"""Every command explains itself with an example, quickly, and every documented command exists."""

import contextlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import rich_click as click
from click.testing import CliRunner

import dgnet_gen.cli
import pipelines.__main__
import reid_eval.cli
import reid_models.cli

ROOT = Path(__file__).parents[2]
GROUPS = {
    "reid-eval": reid_eval.cli.main,
    "reid-models": reid_models.cli.main,
    "dgnet-gen": dgnet_gen.cli.main,
    "python -m pipelines": pipelines.__main__.main,
}
COMMANDS = [(program, name) for program, group in GROUPS.items() for name in group.commands]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += sorted((ROOT / "packages").glob("*/README.md"))
_COMMAND_LINE = re.compile(r"^(?:\.venv/bin/)?((?:reid-eval|reid-models|dgnet-gen|python -m pipelines) [a-z].*)$", re.M)


def arguments_of(line: str) -> tuple[click.Command, list[str]]:
    """The click command of a documented line and its arguments."""
    program = next(name for name in GROUPS if line.startswith(f"{name} "))
    name, *arguments = shlex.split(line.removeprefix(program), comments=True)
    assert name in GROUPS[program].commands, f"{program} has no command {name!r}"
    return GROUPS[program].commands[name], arguments


def refuse_unknown_options(line: str) -> None:
    command, arguments = arguments_of(line)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    assert used <= known | {"--help"}, f"unknown options in: {line}"


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_help_ends_with_an_example_that_the_command_understands(program, name):
    result = CliRunner().invoke(GROUPS[program], [name, "--help"])
    assert result.exit_code == 0
    text = GROUPS[program].commands[name].help.replace("\\\n", " ")
    assert "Example" in text
    lines = [line.strip() for line in text.split("Example", 1)[1].splitlines() if line.strip().startswith(program)]
    assert lines
    for line in lines:
        refuse_unknown_options(line)


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_examples_stand_in_a_help_of_80_columns_as_they_are_written(program, name):
    shown = CliRunner().invoke(GROUPS[program], [name, "--help"], env={"COLUMNS": "80"}).output
    lines = [line.rstrip() for line in shown.splitlines()]
    _, title, examples = inspect.cleandoc(GROUPS[program].commands[name].help).partition("Example")
    assert title
    for example in examples.splitlines()[1:]:
        assert f" {example}".rstrip() in lines  # with its indentation, unbroken


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(file.relative_to(ROOT)) for file in DOCUMENTS])
def test_documented_command_lines_exist(document):
    text = document.read_text().replace("\\\n", " ")
    for line in _COMMAND_LINE.findall(text):
        refuse_unknown_options(line)


def test_command_lines_for_those_who_come_from_dgnet_are_understood_whole():
    text = (ROOT / "docs" / "from-dgnet.md").read_text().replace("\\\n", " ")
    lines = [
        *_COMMAND_LINE.findall(text),
        *re.findall(r"`((?:reid-eval|reid-models|dgnet-gen) [a-z][^`]* [^`]+)`", text),
    ]
    assert len(lines) > 25
    for line in lines:
        command, arguments = arguments_of(line)
        with contextlib.suppress(click.MissingParameter):  # a part of a line is spoken of
            command.make_context(line, arguments)  # UsageError: an option or a value that does not exist


_OF_TOOLS = ("output_folder", "input_folder", "config", "checkpoint_gen", "checkpoint_id", "batchsize", "a2b", "seed")
_OF_TOOLS += ("num_style", "synchronized", "output_only", "trainer")
OLD_OPTIONS = {
    "prepare-market.py": (),
    "train.py and tensorboard": ("config", "output_path", "name", "resume", "trainer", "gpu_ids", "logdir"),
    "The visual tools": _OF_TOOLS,
    "test_folder.py": (
        *("output_folder", "output_folder2", "input_folder", "name", "which_epoch", "batchsize", "a2b", "seed"),
        *("synchronized", "output_only", "trainer"),
    ),
    "test_2label.py and evaluate_gpu.py": (
        *("gpu_ids", "which_epoch", "test_dir", "name", "batchsize", "use_dense", "PCB", "multi"),
    ),
    "fid.py": ("inception", "gpu", "lowprofile"),
    "compute_market.py": ("dir",),
}


@pytest.mark.parametrize("script", OLD_OPTIONS)
def test_every_option_of_the_old_scripts_has_its_counterpart(script):
    text = (ROOT / "docs" / "from-dgnet.md").read_text()
    section = re.split(r"^##+ ", text.split(f"\n### {script}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    left = " ".join(row.split(" | ")[0] for row in section.splitlines() if row.startswith("| "))
    assert not [option for option in OLD_OPTIONS[script] if not re.search(rf"--{option}\b", left)]


@pytest.mark.parametrize("module", ["reid_eval.cli", "reid_models.cli", "dgnet_gen.cli"])
def test_help_does_not_wait_for_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(file.relative_to(ROOT)) for file in DOCUMENTS])
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
