"""How a command of `medmap-server` fails where a person can mend it: one sentence, exit code 1, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


@contextmanager
def sentences(*expected: type[Exception]) -> Iterator[None]:
    """What is expected to fail, and files that cannot be used, in one sentence. Raises typer.Exit then."""
    try:
        yield
    except expected as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename} cannot be used ({error.strerror}): choose another path")


def fail(sentence: str) -> NoReturn:
    """End the command with a sentence. Raises typer.Exit."""
    print(f"medmap-server: {sentence}", file=sys.stderr)
    raise typer.Exit(1)
