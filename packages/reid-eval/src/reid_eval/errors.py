"""The one exception family, and its way to the terminal.

Whatever a user can cause derives from `ReidError`; its message is one line that names the thing, what was found,
what was expected and what to do. The command line prints it and leaves with the error's exit code; a traceback
therefore means a bug of ours.

    with user_errors():
        features = ReidFeatures.load(file)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
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


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: what the system says of a file, or the first line of the error's text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MemoryError):
        return str(error) or "more memory needed than there is"
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def printable(text: str) -> str:
    """A text as one line that changes nothing on a terminal: control characters and broken bytes are escaped."""
    return "".join(
        char if char.isprintable() or char == " " else char.encode("unicode_escape").decode()
        for char in " ".join(text.splitlines())
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors a user can mend into one line on stderr and the right exit code.

    Signals that ask to stop leave with exit code 75, also where a command saves nothing on the way: what it writes is
    whole or absent.
    """
    from reid_eval.stopping import handling, interrupt

    if sys.stderr is None:  # closed by whoever started the command: 2>&-
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    _log_to_stderr()
    try:
        with handling(interrupt):
            yield
    except ReidError as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _leave(f"{str(error) or 'interrupted'}: nothing is half written; run the same command again", Stopped.exit_code)
    except MemoryError as error:
        _leave(f"out of memory ({reason_of(error)}); close other programs, or give the command less at a time", 1)
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the output has left; click ends quietly
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _leave(f"{where}the disk is full; nothing that existed was changed; free some space and run again", 1)
        if error.errno == errno.EFBIG:
            _leave(f"{where}larger than files may be here (ulimit -f); nothing that existed was changed", 1)
        if error.filename is None:
            if isinstance(error, FileNotFoundError) and _folder_is_gone():
                _leave("the folder that this was started in is gone; change to one that is there and run again", 1)
            raise
        _leave(f"{where}{reason_of(error)}", 1)
    except RuntimeError as error:
        if any(words in str(error) for words in _NO_MEMORY):
            _leave(f"out of memory ({reason_of(error)}); close other programs, or ask for smaller sizes", 1)
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which is not imported for its name alone
            raise
        _leave(f"out of memory on the device ({reason_of(error)}); lower the batch size, or use precision=bf16", 1)


_NO_MEMORY = ("DefaultCPUAllocator", "Storage size calculation overflowed")
"""what torch says, in an error of no class of its own, when the processor's memory does not hold what is asked for"""


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _leave(message: str, exit_code: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        click.echo(f"error: {printable(message)}", err=True)
    sys.exit(exit_code)


class _Remarks(logging.Handler):
    """Remarks of the libraries on stderr, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            click.echo(printable(record.getMessage()), err=True)


def _log_to_stderr() -> None:
    """Show warnings of our packages, unless the program that we are part of shows them its own way."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_Remarks(logging.WARNING))
