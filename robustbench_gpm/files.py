"""Writing files so that a reader, or a kill, never meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .core import UserError


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place only if all went well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def writable_folder(path: Path, flag: str) -> Path:
    """Make the folder if need be, and try it. Raises UserError naming `flag` if it won't do."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write to the folder {path} ({reason}): choose another with {flag}"
        ) from None
    return path


def try_folder(path: Path, flag: str) -> Path:
    """Raise UserError naming `flag` if `path` can't be written to; a missing one stays so."""
    missing = not path.exists()
    writable_folder(path, flag)
    if missing:
        with suppress(OSError):  # another process may have found a use for it
            path.rmdir()
    return path


def safe_name(text: str) -> str:
    """`text` as a part of a file's name: what could mean something to a shell becomes a dash."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def free_folder(path: Path, *, latest: bool = False) -> Path:
    """`path`, or `path`-2, -3, ... where that is taken; with `latest`, the last one taken.

    An empty folder is free: a run that was refused may have left it.
    """
    number, folder, last = 1, path, path
    while folder.exists() and any(folder.iterdir()):
        number, last, folder = number + 1, folder, path.with_name(f"{path.name}-{number + 1}")
    return last if latest else folder
