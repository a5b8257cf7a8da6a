"""The two commands as users run them: golden runs, resuming, and bad input in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from robustbench_gpm import cli
from robustbench_gpm.checkpoint import BEST, CARD, LAST, RESUME

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--limit", "300", "--epochs", "4", "--device", "cpu"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: exit code, standard output, last line of the errors."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        try:
            code = {"train": cli.train, "evaluate": cli.evaluate}[command](words)
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, out, err.strip().replace("\r", "\n").rpartition("\n")[2]

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small checkpoints: baseline and fgr."""
    folder = tmp_path_factory.mktemp("trained")
    assert cli.train([*QUICK, "--out", str(folder / "baseline")]) == 0
    assert cli.train([*QUICK, "--fgr_lamb", "300", "--out", str(folder / "fgr")]) == 0
    return folder


def weights(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_writes_a_checkpoint_that_says_what_it_is(trained: Path) -> None:
    card = json.loads((trained / "fgr" / CARD).read_text())
    assert card["data_name"] == "digits"
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert card["configuration"]["fgr_lamb"] == 300
    assert "FlowGradient(fgr_lamb=300.0" in card["objective"]
    assert card["finished"]
    assert len(card["history"]) == 4
    accuracies = [epoch["validation_accuracy"] for epoch in card["history"]]
    assert accuracies[card["best_epoch"] - 1] == max(accuracies)
    assert card["versions"]["torch"] == torch.__version__
    assert {path.name for path in (trained / "fgr").iterdir()} == {BEST, LAST, CARD, RESUME}


def test_the_penalty_is_felt(trained: Path, run: Run, tmp_path: Path) -> None:
    """A hundred million times the weight gives a smaller penalty, so the flag is not ignored."""
    assert run("train", *QUICK, "--fgr_lamb", "3e-6", "--out", "faint")[0] == 0
    faint, felt = (
        json.loads((folder / CARD).read_text())["history"][-1]["fgr"]
        for folder in (tmp_path / "faint", trained / "fgr")
    )
    assert felt < 0.9 * faint


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    assert run("train", *QUICK, "--out", "again", "--workers", 1)[0] == 0
    assert same(weights(tmp_path / "again"), weights(trained / "baseline"))
    assert run("train", *QUICK, "--out", "other", "--seed", 1)[0] == 0
    assert not same(weights(tmp_path / "other"), weights(trained / "baseline"))


def test_a_killed_training_resumes_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "main.py"), *QUICK, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    card = folder / CARD
    while process.poll() is None and not card.exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cli.train([*QUICK, "--out", str(folder), "--resume"]) == 0
    assert same(weights(folder), weights(trained / "baseline"))
    finished = json.loads(card.read_text())
    assert len(finished["history"]) == 4
    assert cli.train([*QUICK, "--out", str(folder), "--resume"]) == 0  # nothing is left to do
    assert json.loads(card.read_text()) == finished


def test_an_interrupted_training_keeps_its_epochs_and_exits_130(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_gpm.trainer import Trainer

    whole = Trainer._epoch

    def interrupted(self: Trainer, loader: object, epoch: int, progress: object) -> object:
        if epoch == 2:
            raise KeyboardInterrupt
        return whole(self, loader, epoch, progress)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", interrupted)
        code, _, error = run("train", *QUICK, "--out", "cut")
    assert code == 130
    assert "interrupted" in error
    assert len(json.loads((tmp_path / "cut" / CARD).read_text())["history"]) == 2
    code, _, error = run("train", *QUICK, "--out", "cut", "--resume", "--lr", "0.5")
    assert code == 2
    assert "cannot resume: --lr was 0.05 and is 0.5 now" in error
    assert run("train", *QUICK, "--out", "cut", "--resume")[0] == 0
    assert same(weights(tmp_path / "cut"), weights(trained / "baseline"))


def test_a_config_file_sets_flags_and_flags_override_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data_name: cifar10\nfgr_lamb: 300\nlr: 0.5\n")
    code, out, _ = run("train", "--config", "recipe.yaml", "--lr", "0.25", "--print_config")
    assert code == 0
    lines = out.splitlines()
    for line in ("data_name: cifar10", "model_name: vgg11", "fgr_lamb: 300.0", "lr: 0.25"):
        assert line in lines
    assert "epochs: 80" in lines  # the data set's recipe
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert run("train", "--config", recipe, "--print_config")[0] == 0


def test_a_second_training_takes_another_folder(run: Run, tmp_path: Path) -> None:
    quick = ["--limit", 100, "--epochs", 1]
    for _ in range(2):
        assert run("train", *quick, "--igr_lamb", "0.5", "--gpm_lamb", 2)[0] == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["digits_cnn_igr0.5_gpm2", "digits_cnn_igr0.5_gpm2-2"]


def test_evaluation_of_one_checkpoint(run: Run, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "fgr"
    code, out, _ = run(
        *("evaluate", "--checkpoint", checkpoint, "--attack", "pgd", "stadv", "--limit", 60),
        *("--budgets", "pgd=8/255,0.2", "stadv=0.1,0.4,5", "--out", "measured"),
    )
    assert code == 0
    assert "measured/curve.png" in out
    names = {path.name for path in (tmp_path / "measured").iterdir()}
    wanted = {"records.parquet", "examples.parquet", "summary.json", "curve.png", "curve.pdf"}
    assert names == wanted | {"examples.png", "deformations.png", "deformation.gif"}
    summary = json.loads((tmp_path / "measured/summary.json").read_text())
    assert summary["n"] == 60
    pgd, stadv = summary["curves"]["pgd"], summary["curves"]["stadv"]
    assert pgd["budgets"] == pytest.approx([8 / 255, 0.2])
    assert (pgd["threat"], stadv["threat"], stadv["unit"]) == ("linf", "flow", "pixels")
    for curve in (pgd, stadv):
        robust = [summary["clean_accuracy"], *curve["robust_accuracy"]]
        assert robust == sorted(robust, reverse=True)
        assert robust[-1] < robust[0]  # an attack that does nothing shows here
    assert summary["cost"]["backwards"] > 60
    assert summary["provenance"]["seed"] == 0
    table = pq.read_table(tmp_path / "measured/records.parquet")
    assert table.num_rows == 60
    fooled = np.array(table["stadv/fooled/5"])
    assert 1 - fooled.mean() == pytest.approx(stadv["robust_accuracy"][-1])


def test_several_checkpoints_share_one_figure(run: Run, trained: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        *("evaluate", "--checkpoint", trained / "baseline", trained / "fgr", "--attack", "fgsm"),
        *("--limit", 20, "--budgets", "0.1"),
    )
    assert code == 0
    folder = tmp_path / "results/baseline-vs-fgr"
    assert f"figure: {folder.relative_to(tmp_path)}/curve.png" in out
    assert (folder / "curve.png").stat().st_size > 5000
    assert (folder / "baseline/records.parquet").exists()
    assert (folder / "fgr/records.parquet").exists()


def test_an_evaluation_may_be_asked_for_in_a_file(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text("attack: [fgsm]\nbudgets: [8/255, 0.1]\nlimit: 20\n")
    code, _, error = run(
        *("evaluate", "--config", "asked.yaml", "--checkpoint", trained / "fgr", "--out", "asked")
    )
    assert code == 0, error
    summary = json.loads((tmp_path / "asked/summary.json").read_text())
    assert summary["curves"]["fgsm"]["budgets"] == pytest.approx([8 / 255, 0.1])


def test_the_newest_fitting_checkpoint_is_taken_and_named(run: Run, trained: Path) -> None:
    common = ["--checkpoints_dir", trained, "--attack", "fgsm", "--limit", 20, "--budgets", "0.1"]
    assert f"checkpoint: {trained / 'fgr'}" in run("evaluate", *common)[1]
    chosen = run("evaluate", *common, "--data_name", "digits", "--fgr_lamb", 0)[1]
    assert f"checkpoint: {trained / 'baseline'}" in chosen
    code, _, error = run("evaluate", *common, "--fgr_lamb", 7)
    assert code == 2
    assert "there is no checkpoint" in error
    assert "--fgr_lamb 7" in error


def test_batch_size_and_order_change_no_verdict(run: Run, trained: Path, tmp_path: Path) -> None:
    common = ["--checkpoint", trained / "baseline", "--attack", "pgd", "flow-pgd", "--limit", 40]
    common += ["--budgets", "pgd=0.1,0.2", "flow-pgd=0.1,0.2", "--no_checks", "--examples", 0]
    for size in (7, 40):
        assert run("evaluate", *common, "--batch_size", size, "--out", size)[0] == 0
    tables = [pq.read_table(tmp_path / f"{size}/records.parquet") for size in (7, 40)]
    for column in tables[0].column_names:
        if column != "clean_confidence" and not column.endswith("/seconds"):
            assert tables[0][column] == tables[1][column], column


def test_a_bare_model_with_weights_is_the_checkpoint_itself(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    """The same network by --model, --weights, --mean and --std gives the same curve."""
    card = json.loads((trained / "fgr" / CARD).read_text())
    common = ["--attack", "pgd", "--limit", 30, "--budgets", "0.1"]
    code, _, error = run(
        *("evaluate", *common, "--model", "digits_cnn", "--weights", trained / "fgr" / BEST),
        *("--mean", *card["model_options"]["mean"], "--std", *card["model_options"]["std"]),
        *("--data_name", "digits", "--out", "bare"),
    )
    assert code == 0, error
    assert run("evaluate", *common, "--checkpoint", trained / "fgr", "--out", "carded")[0] == 0
    bare, carded = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("bare", "carded")
    )
    assert bare["curves"] == carded["curves"]
    assert bare["provenance"]["weights_hash"] == carded["provenance"]["weights_hash"]


def test_the_papers_four_commands(run: Run, tmp_path: Path) -> None:
    """On a CIFAR-10 of a few images in class folders."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in "abcdefghij":
            folder = tmp_path / "data/cifar10" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    paper = ["--data_path", "data", "--data_name", "cifar10", "--model_name", "vgg11"]
    paper += ["--cache_dir", "cache"]
    for lamb in (300, 0):
        assert run("train", *paper, "--fgr_lamb", lamb, "--epochs", 1)[0] == 0
    for lamb, name in ((300, "fgr300"), (0, "baseline")):
        code, out, error = run(
            "evaluate", *paper, "--fgr_lamb", lamb, "--limit", 4, "--budgets", "0.1"
        )
        assert code == 0, error
        assert f"checkpoints/cifar10_vgg11_{name}" in out


def test_the_doors_are_scripts_and_a_console_command(tmp_path: Path) -> None:
    """In a checkout as it is, evaluate.py attacks a checkpoint that came with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    door = [sys.executable, str(ROOT / "evaluate.py"), "--attack", "stadv", "--limit", "20"]
    door += ["--data_name", "digits"]
    done = subprocess.run(
        [*door, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "checkpoint: checkpoints/digits_" in done.stdout
    assert done.stdout.splitlines()[-1] == f"figure: {tmp_path / 'out/curve.png'}"
    assert (tmp_path / "out/summary.json").exists()
    console = Path(sys.executable).parent / "robustbench-gpm"
    helped = subprocess.run(
        [console, "evaluate", "--help"], capture_output=True, text=True, check=True
    )
    assert "--budgets" in helped.stdout
    refused = subprocess.run([console, "attack"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    told = "robustbench-gpm: unknown command 'attack': use train, evaluate or merge\n"
    assert refused.stderr == told


TRAIN_ERRORS = {
    "unknown data": (["--data_name", "digit"], "unknown data set 'digit': did you mean 'digits'?"),
    "unknown model": (["--model_name", "vgg12"], "unknown model 'vgg12'"),
    "unknown flag": (["--fgr_lambda", "3"], "--fgr_lambda"),
    "unknown augmentation": (["--augment", "flop"], "unknown augmentation 'flop'"),
    "negative lambda": (["--fgr_lamb", "-1"], "--fgr_lamb must be at least 0, not -1"),
    "nan lambda": (["--fgr_lamb", "nan"], "--fgr_lamb: Expected a float. Got value: nan"),
    "no number": (["--epochs", "many"], "--epochs"),
    "zero epochs": (["--epochs", "0"], "--epochs must be at least 1, not 0"),
    "ratio": (["--gpm_use_ratio", "1.5"], "--gpm_use_ratio must be at most 1, not 1.5"),
    "choice": (["--precision", "fp8"], "--precision"),
    "missing config": (["--config", "none.yaml"], "none.yaml"),
    "missing data": (["--data_name", "imagefolder", "--data_path", "nowhere"], "nowhere"),
    "empty data": (["--data_name", "imagefolder", "--data_path", "empty"], "empty"),
    "no path": (["--data_name", "imagefolder"], "--data_path"),
    "unwritable": (["--out", "/proc/nothing"], "cannot write to the folder /proc/nothing"),
    "nothing to resume": (["--resume"], "nothing to resume"),
    "device": (["--device", "tpu"], "unknown device 'tpu'"),
    "diverging": (["--lr", "1e30", "--limit", "100", "--epochs", "2"], "lower --lr"),
}


@pytest.mark.parametrize("case", TRAIN_ERRORS)
def test_bad_input_to_training_is_one_sentence(case: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments, sentence = TRAIN_ERRORS[case]
    code, out, error = run("train", *arguments)
    assert code == 2
    assert sentence in error
    assert error.startswith("main.py: ")
    assert not list(tmp_path.glob("checkpoints/*"))  # a refused run leaves nothing behind
    assert "Traceback" not in out + error


def test_cuda_without_a_gpu(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in ("train", "evaluate"):
        code, _, error = run(command, "--device", "cuda")
        assert code == 2
        assert "no GPU is available" in error


EVALUATE_ERRORS = {
    "unknown attack": (["--attack", "pgdd"], "unknown attack 'pgdd': did you mean 'pgd'?"),
    "no attack": (["--attack"], "--attack"),
    "bad budget": (["--budgets", "eight"], "--budgets eight is not a number"),
    "grey levels": (["--attack", "pgd", "--budgets", "8"], "--budgets 8 must be above 0"),
    "negative budget": (["--attack", "pgd", "--budgets", "pgd=-1/255"], "must be above 0"),
    "twin budgets": (["--attack", "pgd", "--budgets", "8/255", "0.0313725"], "first six digits"),
    "model function": (["--model", "net.py", "--data_name", "digits"], "names no function"),
    "foreign budget": (["--budgets", "fgsmm=0.1"], "unknown attack 'fgsmm': did you mean 'fgsm'?"),
    "missing checkpoint": (["--checkpoint", "nowhere"], "there is no checkpoint at nowhere"),
    "limit": (["--limit", "0"], "--limit must be above 0, not 0"),
    "bare model": (["--model", "digits_cnn"], "--data_name"),
    "weights alone": (["--weights", "w.pt"], "--mean, --std and --activation go with --model"),
    "unknown split": (["--split", "all"], "--split"),
}


@pytest.mark.parametrize("case", EVALUATE_ERRORS)
def test_bad_input_to_evaluation_is_one_sentence(case: str, run: Run, trained: Path) -> None:
    arguments, sentence = EVALUATE_ERRORS[case]
    code, out, error = run("evaluate", "--checkpoints_dir", trained, *arguments)
    assert code == 2
    assert sentence in error
    assert error.startswith("evaluate.py: ")
    assert "Traceback" not in out + error


def damaged(trained: Path, folder: Path, how: str) -> Path:
    """A copy of a checkpoint with something wrong."""
    folder.mkdir()
    card = json.loads((trained / "fgr" / CARD).read_text())
    state = weights(trained / "fgr", BEST)
    if how == "classes":
        card["classes"] = card["classes"][:7]
        card["model_options"]["classes"] = 7
    if how == "nan":
        state = {
            name: t * float("nan") if t.is_floating_point() else t for name, t in state.items()
        }
    save_file(state, folder / BEST)
    (folder / CARD).write_text(json.dumps(card))
    if how == "truncated":
        (folder / BEST).write_bytes((folder / BEST).read_bytes()[:5000])
    if how == "no weights":
        (folder / BEST).unlink()
    if how == "card":
        (folder / CARD).write_text('{"model_name": "digi')
    return folder


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("classes", "10"),
        ("nan", "NaN"),
        ("truncated", "best.safetensors"),
        ("no weights", "best.safetensors"),
        ("card", "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    how: str, sentence: str, run: Run, trained: Path, tmp_path: Path
) -> None:
    code, out, error = run("evaluate", "--checkpoint", damaged(trained, tmp_path / "bad", how))
    assert code == 2
    assert sentence in error
    assert "Traceback" not in out + error


def test_a_checkpoint_refuses_the_images_of_another_data_set(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "pictures/test" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "one.png")
    code, _, error = run(
        *("evaluate", "--checkpoint", trained / "fgr", "--data_name", "imagefolder"),
        *("--data_path", "pictures", "--image_size", 16, "--cache_dir", "cache"),
    )
    assert code == 2
    assert "takes images of 1 channels and 8 pixels" in error
