"""Pages that commands write parts of, each part between two comments that name its command."""

from __future__ import annotations

import subprocess
from pathlib import Path

from robustbench_gpm.files import write_text


def put_section(page: Path, command: str, text: str, *, title: str) -> Path:
    """Write `text` where `command` wrote before, or at the end of the page; returns the page."""
    begin, end = f"<!-- {command}: begin -->", f"<!-- {command}: end -->"
    whole = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n"
    before, _, rest = whole.partition(begin)
    _, _, after = rest.partition(end)
    written = f"{before.rstrip()}\n\n{begin}\n{text.strip()}\n{end}"
    write_text(page, written + (after or "\n"))
    return page


def commit() -> str:
    """What was measured: the short name of the commit that is checked out here."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout.strip()
