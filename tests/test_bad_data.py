"""Faults of masks, boxes and clips, as a user meets them: one sentence, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from spoilt_data import FAULTS, KINDS, Harm, drawn, xml

from robustbench_gpm import cli


def made(name: str, folder: Path) -> Path:
    root = folder / "data" / name
    root.mkdir(parents=True)
    KINDS[name].make(root)
    return root


def train(folder: Path, data_path: Path, flags: str) -> int:
    quick = ["--epochs", "1", "--batch_size", "2", "--device", "cpu"]
    where = ["--data_path", str(data_path), "--cache_dir", str(folder / "kept")]
    return cli.train([*flags.split(), *quick, *where, "--out", str(folder / "out")])


def sentence(capsys: pytest.CaptureFixture[str], prog: str = "main.py") -> str:
    """The one sentence that was said."""
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"{prog}: ")
    assert not said.out
    return line


@pytest.mark.parametrize("name", KINDS)
def test_sound_data_is_trained_on_and_attacked(name: str, tmp_path: Path) -> None:
    assert train(tmp_path, made(name, tmp_path), KINDS[name].flags) == 0
    attack = ["--attack", "pgd", "--budgets", "1/255", "--set", "steps=2", "--no_checks"]
    where = ["--cache_dir", str(tmp_path / "kept"), "--out", str(tmp_path / "found")]
    own = ["--checkpoint", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.evaluate([*own, *attack, *where]) == 0
    assert (tmp_path / "found" / "summary.json").exists()


@pytest.mark.parametrize(
    ("name", "harm", "file", "words"),
    [(name, *rest) for name, _, *rest in FAULTS],
    ids=[f"{name}: {what}" for name, what, *_ in FAULTS],
)
def test_a_fault_is_told_in_a_sentence_that_names_the_file(
    name: str,
    harm: Harm,
    file: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = made(name, tmp_path)
    harm(root)
    assert train(tmp_path, root, KINDS[name].flags) == 2
    told = sentence(capsys)
    assert file in told
    assert words in told
    assert ": " in told.removeprefix("main.py: ")  # and what to do
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("camvid", "..", "holds no train, val or test folder"),
        ("camvid", "train", "holds no train, val or test folder"),
        ("voc_boxes", "..", "such as VOC2012, as --data_path"),
        ("voc_boxes", "JPEGImages", "such as VOC2012, as --data_path"),
        ("coco", "..", "holds no folder named annotations"),
        ("coco", "annotations", "holds no folder named annotations"),
        ("clips", "..", "but a data set, clips: give"),
        ("clips", "train/run", "holds no clips"),
        ("cholect45", "..", "holds no labels of CholecT45"),
        ("cholect45", "triplet", "holds no labels of CholecT45"),
        ("clips", "train/run/one/0.png", "is not a folder"),
        ("clips", "nowhere", "does not exist"),
    ],
)
def test_a_data_path_beside_the_data_is_told(
    name: str, place: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = made(name, tmp_path)
    assert train(tmp_path, root / place, KINDS[name].flags) == 2
    told = sentence(capsys)
    assert str((root / place).resolve()) in told
    assert words in told


@pytest.mark.parametrize("inside", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_a_data_path_inside_voc_downloads_nothing(
    inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / inside).mkdir(parents=True)
    assert train(tmp_path, tmp_path / inside, "--data_name voc") == 2
    assert "give the folder that holds VOCdevkit" in sentence(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--task detection --data_name camvid", "is for segmentation, not for detection"),
        ("--data_name camvid --model_name faster_rcnn_r18", "unknown segmentation model"),
        ("--data_name camvid --model_name timm:resnet18", "unknown segmentation model"),
        ("--data_name clips --model_name vgg11", "unknown video model"),
        ("--data_name cholect45 --model_name digits_detector", "unknown video model"),
        ("--data_name imagefolder", "holds no class folders"),
        ("--data_name cadis", "holds no folders named Video<number>"),
        ("--data_name ade20k", "check --data_path"),
        ("--data_name cityscapes", "unpack it there"),
    ],
)
def test_another_tasks_data_or_model_is_told(
    flags: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, made("camvid", tmp_path), flags) == 2
    assert words in sentence(capsys)


def test_an_image_without_boxes_is_background(tmp_path: Path) -> None:
    root = made("voc_boxes", tmp_path)
    empty = xml().partition("<object>")[0] + "</annotation>"
    for name in ("train1", "val1", "test1"):
        (root / "Annotations" / f"{name}.xml").write_text(empty)
    assert train(tmp_path, root, KINDS["voc_boxes"].flags) == 0


def test_evaluation_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, checkpoint = made("camvid", tmp_path), tmp_path / "out"
    assert train(tmp_path, root, KINDS["camvid"].flags) == 0
    boxes = made("voc_boxes", tmp_path)
    usual = ["--attack", "pgd", "--device", "cpu", "--cache_dir", str(tmp_path / "kept")]
    usual += ["--out", str(tmp_path / "found")]
    own = ["--checkpoint", str(checkpoint)]
    other = ["--data_name", "voc_boxes", "--data_path", str(boxes)]
    bare = ["--model", "digits_segmenter", "--data_name", "camvid", "--data_path", str(root)]
    drawn("testannot/a.png", (9, 9), 1)(root)
    for flags, words in (
        (own, "testannot/a.png is 9x9"),
        ([*own, *other], "out is for segmentation, and --data_name voc_boxes for detection"),
        ([*own, "--task", "detection"], "out is for segmentation, not for detection"),
        ([*own, "--task", "detectoin"], "did you mean 'detection'"),
        ([*bare, "--task", "video"], "digits_segmenter is for segmentation, not for video"),
        ([*own, "--data_path", str(root / "train")], "holds no train, val or test folder"),
    ):
        capsys.readouterr()
        assert cli.evaluate([*flags, *usual]) == 2
        assert words in sentence(capsys, "evaluate.py")
