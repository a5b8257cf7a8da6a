"""Who may import whom: the table of docs/architecture.md, held against the imports themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "robustbench_gpm"
ROW = re.compile(r"^\| `([\w/.]+)` \|.*\|([^|]*)\|$")


def table() -> dict[str, set[str]]:
    """part -> the parts of this package that it may import."""
    rows = {}
    for line in (ROOT / "docs/architecture.md").read_text().splitlines():
        if match := ROW.match(line):
            rows[match[1].rstrip("/")] = set(re.findall(r"`(\w+)`", match[2]))
    return rows


def sources() -> Iterator[tuple[str, str, Path]]:
    """(part, module name, file) of every file of the package."""
    for folder, prefix in ((ROOT / PACKAGE, PACKAGE), (ROOT / "attacks", f"{PACKAGE}.attacks")):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            if folder.name == PACKAGE and inside[0] == "attacks":
                continue  # the link to attacks/, which is walked under its own name
            names = [*prefix.split("."), *(part for part in inside if part != "__init__")]
            module = ".".join(names)
            yield (names[1] if len(names) > 1 else PACKAGE), module, path


def imported(module: str, path: Path) -> Iterator[str]:
    """Every module that a file names in an import, in full."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")
            above = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def parts_used(module: str, path: Path) -> set[str]:
    known = {part for part, _, _ in sources()}
    named = [name.split(".") for name in imported(module, path)]
    return {name[1] for name in named if name[0] == PACKAGE and len(name) > 1} & known


@pytest.mark.parametrize(("part", "module", "path"), [pytest.param(*s, id=s[1]) for s in sources()])
def test_imports_keep_to_the_table(part: str, module: str, path: Path) -> None:
    if part == PACKAGE:
        assert not parts_used(module, path)
        return
    allowed = table()
    assert part in allowed, f"docs/architecture.md has no row for {part}"
    assert parts_used(module, path) - {part} <= allowed[part]


def test_the_table_has_no_row_for_what_is_gone() -> None:
    assert set(table()) == {part for part, _, _ in sources()} - {PACKAGE}


def test_attacks_are_never_imported_by_their_folder_name() -> None:
    tested = [
        *ROOT.glob("*.py"),
        *(ROOT / "tests").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]
    own = [(module, path) for _, module, path in sources()]
    for module, path in [*own, *(("top", path) for path in tested)]:
        for name in imported(module, path):
            assert name.split(".")[0] != "attacks", path


def test_no_file_is_too_long() -> None:
    for _, _, path in sources():
        assert len(path.read_text().splitlines()) <= 320, path
