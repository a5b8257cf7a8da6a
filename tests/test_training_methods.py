"""Whole trainings with each objective that is put around another, through main.py's flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robustbench_gpm import cli
from robustbench_gpm.checkpoint import load, read_card
from robustbench_gpm.trainer import Averages, Trainer

QUICK = ["--limit", "60", "--epochs", "2", "--batch_size", "20", "--device", "cpu"]
# Flags that need no word in the folder's name.
UNNAMED = ("silu", "ema", "mixup", "clipped", "warm", "nesterov", "erased", "randaugmented")
DIFFERENCES = ["--penalty_mode", "finite_difference", "--difference_step", "0.05"]
METHODS = {
    "edge1": ["--edge_lamb", "1"],
    "sam0.05_fgr300": ["--fgr_lamb", "300", "--sam_rho", "0.05"],
    "gnp0.8r0.1": ["--gnp_alpha", "0.8"],
    "sagm0.05": ["--sagm_rho", "0.05"],
    "at-trades": ["--adversarial", "trades", "--adversarial_steps", "2"],
    "at-fgsm-rs": ["--adversarial", "fgsm-rs"],
    "at-free": ["--adversarial", "free", "--free_replays", "2"],
    "at-flow_awp0.01": ["--adversarial", "flow", "--awp_gamma", "0.01", "--adversarial_steps", "2"],
    "igr1_fd": ["--igr_lamb", "1", "--penalty_mode", "finite_difference"],
    "fgr300_fd": ["--fgr_lamb", "300", "--precision", "bf16", *DIFFERENCES],
    "igr1_lazy2": ["--igr_lamb", "1", "--penalty_mode", "lazy", "--lazy_steps", "2"],
    "silu": ["--activation", "silu"],
    "ema": ["--ema", "0.9"],
    "mixup": ["--mixup", "0.8"],
    "clipped": ["--clip_norm", "0.01"],
    "warm": ["--warmup_epochs", "1"],
    "nesterov": ["--nesterov"],
    "erased": ["--random_erasing", "1"],
    "randaugmented": ["--randaugment", "9"],
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "baseline"
    assert cli.train([*QUICK, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_each_trains_and_is_not_the_baseline(
    name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.train([*QUICK, *METHODS[name]]) == 0
    (folder,) = (tmp_path / "checkpoints").iterdir()
    label = "baseline" if name in UNNAMED else name
    assert folder.name == f"digits_cnn_{label}"
    ours, theirs = weights(folder), weights(plain)
    assert ours.keys() == theirs.keys()
    assert all(bool(tensor.isfinite().all()) for tensor in ours.values())
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours)
    card = read_card(folder)
    assert len(card.history) == (1 if name == "at-free" else 2)
    assert card.finished
    if name == "silu":
        modules = [type(module).__name__ for module in load(folder).model.modules()]
        assert "SiLU" in modules
        assert "ReLU" not in modules


RECIPE = ["--optimizer", "adamw", "--lr", "0.01", "--ema", "0.8", "--mixup", "0.8", "--cutmix", "1"]
RECIPE += ["--warmup_epochs", "2", "--randaugment", "5", "--random_erasing", "0.5"]


@pytest.mark.parametrize("asked", [METHODS["at-free"], RECIPE], ids=["free", "recipe"])
def test_a_training_goes_on_with_the_same_weights(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*QUICK[:2], "--epochs", "4", *QUICK[4:], *asked]
    assert cli.train([*flags, "--out", str(tmp_path / "whole")]) == 0
    save = Trainer._save

    def save_and_stop(trainer: Trainer, log: dict[str, float]) -> None:
        save(trainer, log)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", save_and_stop)
        assert cli.train([*flags, "--out", str(tmp_path / "cut")]) != 0
    assert len(read_card(tmp_path / "cut").history) == 1
    assert cli.train([*flags, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[key], other[key]) for key in one)


REFUSED: dict[str, tuple[list[str], str]] = {
    "two that move weights": (["--sam_rho", "0.1", "--sagm_rho", "0.1"], "ask for one of them"),
    "gnp and sam": (["--gnp_alpha", "0.8", "--sam_rho", "0.1"], "exclude each other"),
    "free by groups": (
        ["--adversarial", "free", "--sam_rho", "0.1", "--m_sharpness", "4"],
        "leave out --m_sharpness",
    ),
    "soft labels": (["--adversarial", "fab", "--mixup", "0.5"], "choose another attack"),
    "drop path": (["--drop_path", "0.1"], "--drop_path is for timm's networks"),
    "warm-up": (["--warmup_epochs", "2"], "warm up for fewer"),
    "second derivatives compiled": (
        ["--igr_lamb", "1", "--compile"],
        "take penalties by --penalty_mode finite_difference",
    ),
    "beta alone": (["--trades_beta", "3"], "needs --adversarial"),
    "activation": (["--activation", "rely"], "unknown activation 'rely': did you mean 'relu'?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_told(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = REFUSED[case]
    assert cli.train([*QUICK, *arguments]) == 2
    error = capsys.readouterr().err.strip().rpartition("\n")[2]
    assert words in error
    assert error.startswith("main.py: ")


def test_what_is_logged_now_and_then_is_averaged_over_those_times() -> None:
    log = Averages(0)
    for number in range(4):
        extra = {"igr": torch.tensor(3.0)} if number % 2 == 0 else {}
        log.add(number, {"loss": torch.tensor(float(number)), **extra})
    assert log.means == {"loss": 1.5, "igr": 3.0}
