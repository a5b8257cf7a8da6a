"""Every task from flags to figures, on its embedded data: train, attack, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustbench_gpm import cli
from robustbench_gpm.checkpoint import read_card
from robustbench_gpm.datasets import DATASETS, EMBEDDED
from robustbench_gpm.graded import read
from robustbench_gpm.models import TABLES
from robustbench_gpm.tasks import TASKS

QUICK = ["--limit", "24", "--epochs", "1", "--batch_size", "8", "--device", "cpu"]
ATTACKED = ["--attack", "pgd", "flow-pgd", "--budgets", "pgd=8/255,32/255", "flow-pgd=0.5"]
ATTACKED += ["--set", "pgd.steps=3", "flow-pgd.steps=3", "--limit", "6", "--device", "cpu"]


def test_every_task_has_data_and_models() -> None:
    assert set(EMBEDDED) <= set(TASKS)
    for spec in DATASETS.values():
        assert spec.task in TASKS
        if not spec.default_model.startswith("torchvision:"):
            assert spec.default_model in TABLES[spec.task]


@pytest.mark.parametrize("task", EMBEDDED)
def test_a_task_is_trained_and_attacked(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--fgr_lamb", "10", "--sam_rho", "0.05"]
    assert cli.train([*(["--task", task] if task else []), *QUICK, *flags]) == 0
    (folder,) = (tmp_path / "checkpoints").iterdir()
    card = read_card(folder)
    assert card.task == task
    assert card.data_name == EMBEDDED[task]
    assert set(card.history[0]) >= {"loss", "fgr", f"validation_{TASKS[task].metric}"}
    assert cli.evaluate(["--task", task, *ATTACKED, "--out", "found"]) == 0
    told = capsys.readouterr().out
    for name in ("curve.png", "records.parquet", "summary.json"):
        assert (tmp_path / "found" / name).exists()
    summary = json.loads((tmp_path / "found/summary.json").read_text())
    assert set(summary["curves"]) == {"pgd", "flow-pgd"}
    if TASKS[task].graded:
        records = read(tmp_path / "found")
        assert records.metric == TASKS[task].metric
        assert len(records.index) == 6
        assert (tmp_path / "found/examples.png").exists()
        assert f"under pgd, {records.metric} in %" in told


REFUSED: dict[str, tuple[list[str], str]] = {
    "another task's data": (["--task", "video", "--data_name", "digits"], "choose from"),
    "no such task": (["--task", "segmentaton"], "did you mean 'segmentation'?"),
    "no data for it": (["--task", "multilabel"], "needs a data set"),
    "mixing": (["--task", "detection", "--mixup", "0.5"], "is for classification, not for"),
    "randaugment": (["--task", "video", "--randaugment", "9"], "is for classification, not for"),
    "edges": (["--task", "segmentation", "--edge_lamb", "1"], "is for classification"),
    "trades": (["--task", "segmentation", "--adversarial", "trades"], "is for classification"),
    "fab": (["--task", "segmentation", "--adversarial", "fab"], "choose another attack"),
    "segpgd": (["--task", "segmentation", "--adversarial", "segpgd"], "without a loss of its own"),
    "a classifier": (["--task", "detection", "--model_name", "vgg11"], "unknown detector"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_task_has_no_use_for_is_told(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = REFUSED[case]
    assert cli.train([*QUICK, *arguments]) == 2
    error = capsys.readouterr().err.strip().rpartition("\n")[2]
    assert words in error
    assert error.startswith("main.py: ")


def test_labels_of_classes_cannot_move_and_tasks_are_not_mixed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for task in ("classification", "segmentation"):
        assert cli.train(["--task", task, *QUICK, "--out", task]) == 0
    for flags, words in (
        (["classification", "--labels", "move"], "is for masks and boxes"),
        (["classification", "segmentation"], "one task at a time"),
    ):
        capsys.readouterr()
        assert cli.evaluate(["--limit", "4", "--attack", "pgd", "--checkpoint", *flags]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--attack", "fast"], "choose an attack that raises a loss"),
        (["--escalate"], "--escalate is for tasks with one class a sample"),
        (["--no_shared_work"], "--no_shared_work is for tasks with one class a sample"),
    ],
)
def test_what_graded_tasks_cannot_be_evaluated_by_is_told(
    flags: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.train(["--task", "segmentation", *QUICK]) == 0
    capsys.readouterr()
    assert cli.evaluate(["--limit", "4", "--attack", "pgd", *flags]) == 2
    assert words in capsys.readouterr().err


def test_losses_suited_to_the_task_are_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def evaluate(task: str, *flags: str) -> tuple[int, str]:
        capsys.readouterr()
        data = EMBEDDED[task]
        given = ["--model", DATASETS[data].default_model, "--data_name", data, "--limit", "4"]
        given += ["--device", "cpu", "--out", f"of_{task}"]
        code = cli.evaluate([*given, "--attack", *flags])
        return code, capsys.readouterr().err.strip().rpartition("\n")[2]

    def raised(task: str) -> dict[str, str]:
        told = json.loads((tmp_path / f"of_{task}/summary.json").read_text())["curves"]
        return {
            name: re.findall("loss='(.*?)'", c["hyperparameters"])[0] for name, c in told.items()
        }

    refused = (
        ("segmentation", ["pgd", "--set", "loss=vanishing"], "cross_entropy, masked_cross_entropy"),
        ("detection", ["segpgd"], "total, classification, objectness, box, vanishing, fabrication"),
        ("detection", ["pgd", "--set", "loss=objectness"], "it has classification, box"),
        ("video", ["pgd", "--set", "loss=segpgd"], "cross_entropy, margin, dlr"),
    )
    for task, flags, words in refused:
        code, error = evaluate(task, *flags)
        assert code == 2
        assert words in error
        assert error.startswith("evaluate.py: ")
        assert not (tmp_path / f"of_{task}/records.parquet").exists()
    quick = ["--set", "steps=2", "queries=3", "--budgets", "0.1"]
    assert evaluate("segmentation", "segpgd", "flow-segpgd", "square", *quick)[0] == 0
    assert raised("segmentation") == {
        "segpgd": "segpgd",
        "flow-segpgd": "segpgd",
        "square": "cross_entropy",
    }
    flags = ["--set", "steps=2", "pgd.loss=vanishing", "--budgets", "0.1"]
    assert evaluate("detection", "pgd", "flow-pgd", *flags)[0] == 0
    assert raised("detection") == {"pgd": "vanishing", "flow-pgd": "total"}
