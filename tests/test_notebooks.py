"""The notebooks are stored without outputs, and run from top to bottom on records alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_records import synthetic

from robustbench_gpm.records import write
from robustbench_gpm.summary import summarise

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert code_cells(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def execute(parameters: dict[str, str]) -> dict[str, list[nbformat.NotebookNode]]:
    """Run the notebook, some lines of it replaced; the outputs by cell."""
    notebook = nbformat.read(FOLDER / "01_accuracy_versus_budget.ipynb", as_version=4)
    for cell in notebook.cells:
        for line, other in parameters.items():
            cell.source = cell.source.replace(line, other)
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    return {cell.id: cell.outputs for cell in code_cells(notebook)}


def test_accuracy_versus_budget_measures_where_there_are_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # its processes, beside other tests
    outputs = execute({"EPOCHS = 40": "EPOCHS = 2", "LIMIT = 200": "LIMIT = 20"})
    table = "".join(output.text for output in outputs["table"])
    assert "baseline (20 images): clean accuracy" in table
    assert "flow_gradient (20 images): clean accuracy" in table
    assert (tmp_path / "notebook/flow_gradient/records.parquet").exists()
    assert (tmp_path / "figures/curve.png").exists()


def test_accuracy_versus_budget_runs_on_records_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [synthetic("baseline"), synthetic("penalised", seed=1)]
    for records in models:
        write(records, tmp_path / records.model)
    monkeypatch.setenv("RESULTS", str(tmp_path))
    outputs = execute({})
    assert ["image/png" in output.data for output in outputs["curves"]] == [True]
    assert ["image/png" in output.data for output in outputs["examples"]] == [True, True]
    kinds = [next(k for k in output.data if k.startswith("image")) for output in outputs["moved"]]
    assert kinds == ["image/png", "image/gif"] * 2
    table = "".join(output.text for output in outputs["table"])
    for records in models:
        summary = summarise(records)
        assert f"{records.model} (60 images): clean accuracy" in table
        assert f"{summary['clean_accuracy']:.1%}" in table
        for line in summary["curves"].values():  # type: ignore[attr-defined]
            assert all(f"{accuracy:6.1%}" in table for accuracy in line["robust_accuracy"])
    drawn = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("figures/**/*.p*"))
    assert drawn == [
        "figures/baseline/deformations.png",
        "figures/baseline/examples.png",
        "figures/curve.pdf",
        "figures/curve.png",
        "figures/penalised/deformations.png",
        "figures/penalised/examples.png",
    ]
