"""The commands of reid-eval: thin shells around the functions of this package.

Results go to stdout, progress and remarks to stderr. Heavy imports wait until a command runs, so `--help` is quick.
"""

from __future__ import annotations

import rich_click as click

from reid_eval import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reid-eval")
def main() -> None:
    """Measure person re-identification and person-image generation."""


if __name__ == "__main__":
    main()
