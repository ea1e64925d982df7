"""The one exception family, and its way to the terminal.

Whatever a user can cause derives from `ReidError`; its message is one line that names the thing, what was found,
what was expected and what to do. The command line prints it and leaves with the error's exit code; a traceback
therefore means a bug of ours.

    with user_errors():
        features = ReidFeatures.load(file)
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


class ReidError(Exception):
    """Something a user can mend; the message says how."""

    exit_code = 1


class OutputError(ReidError):
    """An output could not be written where it was asked for; what was there before is untouched."""


class Stopped(ReidError):
    """Work was interrupted on purpose (signal or time limit), its state is saved and it can be resumed."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors a user can mend into one line on stderr and the right exit code."""
    try:
        yield
    except ReidError as error:
        _leave(str(error), error.exit_code)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            _leave(f"the disk is full{where}; nothing that existed was changed; free some space and run again", 1)
        if error.filename is not None:
            _leave(f"{error.filename}: {(error.strerror or str(error)).lower()}", 1)
        raise
    except KeyboardInterrupt:
        _leave("interrupted", 130)


def _leave(message: str, exit_code: int) -> None:
    # One line, even where a file name or another program's message holds more.
    click.echo(f"error: {' '.join(message.splitlines())}", err=True)
    sys.exit(exit_code)
