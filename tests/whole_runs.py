"""What the tests of cut-off and shared evaluations have in common: to run, and to compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from robustbench_gpm import cli

ROOT = Path(__file__).resolve().parent.parent
TRAINED = ROOT / "checkpoints/digits_baseline"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Evaluate in an empty folder: exit code, standard output, last line of the errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.evaluate([str(argument) for argument in arguments])
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, out, err.strip().replace("\r", "\n").rpartition("\n")[2]

    return call


def one_sentence(code: int, out: str, error: str, *words: str) -> None:
    """A refusal as the user sees it: exit code 2, and one line that says what to mend."""
    assert code == 2
    assert error.startswith("evaluate.py")
    assert "Traceback" not in out + error
    for word in words:
        assert word in error


def measured(folder: Path) -> dict[str, Any]:
    """Everything in a folder of results but what time it took."""
    summary = json.loads((folder / "summary.json").read_text())
    for cost in (summary["cost"], *summary["cost"]["by_attack"].values()):
        del cost["seconds"]
    rows = pq.read_table(folder / "records.parquet")
    timed = [name for name in rows.column_names if name.endswith("/seconds")]
    assert timed
    examples = pq.read_table(folder / "examples.parquet")
    return {
        "rows": rows.drop_columns(timed).to_pydict(),
        "examples": examples.to_pydict(),
        "about": json.loads(rows.schema.metadata[b"robustbench_gpm"]),
        "summary": summary,
        "files": sorted(path.name for path in folder.iterdir()),
    }


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = measured(one), measured(other)
    assert ours["rows"].keys() == theirs["rows"].keys()
    for key, value in ours.items():
        assert value == theirs[key], key
    assert ours["rows"]["index"]
    assert ours["examples"]["adversarial"]
