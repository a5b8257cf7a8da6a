"""The core of benchmarks/pgd.py, on a stand-in for a trained model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

PLACE = Path(__file__).parent.parent / "benchmarks" / "pgd.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_pgd", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_everybody_attacks_the_same_model(benchmark: ModuleType) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    ).eval()
    x = torch.rand(21, 1, 8, 8)
    y = net(x).argmax(1)
    entrants = benchmark.contenders(0.02)
    results = benchmark.compare(net, x, y, entrants, batch_size=8, rounds=2)
    accuracies = [result.robust_accuracy for result in results.values()]
    assert min(accuracies) > 0
    assert max(accuracies) < 1
    assert max(accuracies) - min(accuracies) <= 2 / 21
    assert all(result.seconds > 0 for result in results.values())
    lines = benchmark.table(results).splitlines()
    assert [line[:17].strip() for line in lines] == ["", *entrants]
    assert "1.000" in next(line for line in lines if line.startswith("torchattacks"))


def test_a_missing_checkpoint_is_told_in_a_sentence(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--checkpoint", str(tmp_path / "absent")]) == 2
    assert "there is no checkpoint at" in capsys.readouterr().err
