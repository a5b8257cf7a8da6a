"""The notebooks are stored without outputs, and run from top to bottom on records alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_records import synthetic

from robustbench_gpm.graded import read as read_graded
from robustbench_gpm.graded.summary import curve
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


def execute(
    parameters: dict[str, str], name: str = "01_accuracy_versus_budget"
) -> dict[str, list[nbformat.NotebookNode]]:
    """Run the notebook, some lines of it replaced; the outputs by cell."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    whole = "".join(cell.source for cell in notebook.cells)
    assert all(line in whole for line in parameters)
    for cell in notebook.cells:
        for line, other in parameters.items():
            cell.source = cell.source.replace(line, other)
    client = nbclient.NotebookClient(
        notebook, timeout=480, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
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


def test_tasks_are_measured_where_there_are_no_records_and_drawn_again_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = {"IMAGES = 2000": "IMAGES = 64", "LIMIT = 50": "LIMIT = 2", "EPOCHS = {": QUICK}
    once = execute(small, "02_tasks")
    figures = tmp_path / "tasks/figures"
    drawn = {path: path.read_bytes() for path in figures.rglob("*.png")}
    assert {str(path.relative_to(figures)) for path in drawn} >= {
        f"{task}/{name}.png"
        for task in ("segmentation", "detection", "video")
        for name in ("curve", "examples")
        if task != "video" or name == "curve"  # untrained, it may have nothing to be fooled about
    }
    for folder in (tmp_path / "tasks").glob("*/checkpoint"):
        shutil.rmtree(folder)  # the records are enough
    again = execute({}, "02_tasks")
    assert {path: path.read_bytes() for path in drawn} == drawn
    told = ["".join(output.text for output in outputs["table"]) for outputs in (once, again)]
    assert told[0] == told[1]
    for start in ("segmentation under flow-pgd, mIoU", "detection under pgd, mAP", "video under"):
        assert start in told[0]
    for task in ("segmentation", "detection"):
        measured = read_graded(tmp_path / "tasks" / task)
        for attack in measured.attacks:
            assert f"{100 * curve(measured, attack)[-1].value:.1f}" in told[0]
    assert ["image/png" in output.data for output in again["pictures"]] == [True, True]


QUICK = """EPOCHS = dict.fromkeys(("segmentation", "detection", "video"), 1)
EPOCHS | {"""
