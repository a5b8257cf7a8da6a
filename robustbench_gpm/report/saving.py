"""Figures to files: atomically, and the same bytes for the same figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..files import atomically, writable_folder

# No date and no version, so that the bytes tell of the records alone.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to `path` (.png at 200 dots an inch, or .pdf) and return the path."""
    kind = path.suffix[1:]
    writable_folder(path.parent, "--out")
    with atomically(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=200, metadata=_METADATA[kind])
    return path
