"""Boxes on canvases, the layouts of VOC and COCO, and every complaint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, Split, boxes, canvas, coco, voc
from robustbench_gpm.datasets.boxes import Box, checked

Boxes = list[tuple[str, tuple[float, float, float, float]]]
CELL: Boxes = [("cell", (3, 2, 8, 10))]  # of VOC's pixels; edges 2, 1, 8, 10


def picture(place: Path, size: tuple[int, int] = (16, 12), spot: tuple[int, ...] = ()) -> None:
    """A black PNG with a white rectangle at the edges `spot`."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    if spot:
        pixels[spot[1] : spot[3], spot[0] : spot[2]] = 255
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(place)


def xml(found: Boxes, size: tuple[int, int] = (16, 12), difficult: int = 0) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in found
    )
    width, height = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )


def annotated(
    root: Path, name: str, found: Boxes, size: tuple[int, int] = (16, 12), difficult: int = 0
) -> None:
    spot = tuple(int(e) - int(i < 2) for i, e in enumerate(found[0][1])) if found else ()
    picture(root / "JPEGImages" / f"{name}.png", size, spot)
    place = root / "Annotations" / f"{name}.xml"
    place.parent.mkdir(exist_ok=True)
    place.write_text(xml(found, size, difficult))


def lists(root: Path, **names: list[str]) -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in names.items():
        (folder / f"{name}.txt").write_text("\n".join(images) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "cells"
    annotated(root, "a", [*CELL, ("body", (1, 1, 16, 12))])
    annotated(root, "b", [("cell", (5, 5, 6, 6))])
    annotated(root, "c", [])
    annotated(root, "d", CELL)
    lists(root, train=["a", "b"], val=["c"], test=["d"])
    return root


def load(
    root: Path, split: str = "train", size: int | None = None, kind: object = voc, **options: object
) -> Split:
    return kind.load(LoadOptions(root, root.parent / "kept", image_size=size, **options), split)


def rows(split: Split, image: int) -> list[list[float]]:
    return [row for row in split.labels[image].tolist() if row[4] != -1]


def test_boxes_and_images_arrive_as_they_are(root: Path) -> None:
    train = load(root)
    assert train.classes == ("body", "cell")
    assert train.images.shape == (2, 3, 12, 16)
    assert rows(train, 0) == [[2, 1, 8, 10, 1], [0, 0, 16, 12, 0]]
    assert rows(train, 1) == [[4, 4, 6, 6, 1]]
    assert train.labels.dtype == torch.float32
    white = torch.zeros(12, 16, dtype=torch.uint8)
    white[1:10, 2:8] = 255
    assert torch.equal(train.images[0], white.expand(3, 12, 16))
    for split, names in (("validation", 1), ("test", 1)):
        other = load(root, split)
        assert len(other) == names
        assert other.labels.shape[1:] == train.labels.shape[1:]  # one number of rows a data set
    assert rows(load(root, "validation"), 0) == []
    assert rows(load(root, "test"), 0) == [[2, 1, 8, 10, 1]]


def test_a_canvas_of_another_height_scales_boxes_along(root: Path) -> None:
    train = load(root, size=6)
    assert train.images.shape == (2, 3, 6, 8)
    assert rows(train, 0) == [[1, 0.5, 4, 5, 1], [0, 0, 8, 6, 0]]


def test_images_of_other_shapes_are_letterboxed(root: Path) -> None:
    annotated(root, "b", [("cell", (1, 1, 10, 40))], (10, 40))
    train = load(root, size=20)
    assert train.images.shape == (2, 3, 20, 20)
    assert rows(train, 1) == [[7.5 - 0.5, 0, 12, 20, 1]]
    assert (train.images[1, :, :, 7:12] == 255).all()
    assert (train.images[1, :, :, :7] == canvas.GREY).all()
    assert (train.images[1, :, :, 12:] == canvas.GREY).all()
    assert load(root).images.shape == (2, 3, 40, 40)  # by default the longest side


def test_difficult_objects_are_told_apart_and_are_no_targets(root: Path) -> None:
    annotated(root, "a", [*CELL, ("body", (1, 1, 16, 12))], difficult=1)
    annotated(root, "b", [("cell", (5, 5, 6, 6)), ("body", (1, 1, 2, 2))])
    assert [row[4] for row in rows(load(root), 0)] == [-3, -2]


def test_without_val_or_with_trainval_validation_is_held_out(root: Path) -> None:
    (root / "ImageSets/Main/val.txt").unlink()
    (root / "ImageSets/Main/train.txt").unlink()
    for i in range(10):
        annotated(root, f"t{i}", [("cell", (i + 1, 1, i + 2, 2)), ("body", (1, 1, 2, 2))])
    lists(root, trainval=[f"t{i}" for i in range(10)])
    train = load(root, validation_share=0.3)
    validation = load(root, "validation", validation_share=0.3)
    assert len(train) == 7
    assert len(validation) == 3
    places = {int(row) for split in (train, validation) for row in split.labels[:, 0, 0]}
    assert places == set(range(10))
    assert sorted([*train.index.tolist(), *validation.index.tolist()]) == list(range(10))
    assert train.labels[:, 0, 0].tolist() == train.index.tolist()


def test_val_is_the_test_split_where_there_is_none(root: Path) -> None:
    (root / "ImageSets/Main/test.txt").unlink()
    lists(root, val=["d"])
    assert rows(load(root, "test"), 0) == [[2, 1, 8, 10, 1]]
    assert len(load(root, validation_share=0.5)) == 1


def test_decoding_happens_once_and_again_when_a_file_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(root)
    opened: list[Path] = []
    real = boxes.open_rgb
    monkeypatch.setattr(boxes, "open_rgb", lambda path: opened.append(path) or real(path))
    assert torch.equal(load(root).images, first.images)
    assert not opened
    picture(root / "JPEGImages" / "a.png", spot=(0, 0, 16, 12))
    assert (load(root).images[0] == 255).all()
    assert len(opened) == 2


Break = Callable[[Path], object]


def rewrite(found: Boxes, size: tuple[int, int] = (16, 12)) -> Break:
    return lambda root: (root / "Annotations/a.xml").write_text(xml(found, size))


BILLION = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>'
VOC_FAULTS: dict[str, tuple[Break, str, str]] = {
    "outside": (rewrite([("cell", (3, 2, 18, 10))]), "a.xml", "outside its image of 16x12"),
    "reversed": (rewrite([("cell", (9, 2, 3, 10))]), "a.xml", "empty or reversed"),
    "not finite": (rewrite([("cell", (float("nan"), 2, 3, 10))]), "a.xml", "empty or reversed"),
    "no number": (lambda r: (r / "Annotations/a.xml").write_text("<a/>"), "a.xml", "number"),
    "no xml": (lambda r: (r / "Annotations/a.xml").write_text("<a"), "a.xml", "cannot read"),
    "entities": (lambda r: (r / "Annotations/a.xml").write_text(BILLION), "a.xml", "entities"),
    "a file": (lambda r: (r / "Annotations/a.xml").write_text(OUTSIDE), "a.xml", "entities"),
    "no annotation": (lambda r: (r / "Annotations/a.xml").unlink(), "a.xml", "no annotation"),
    "no image": (lambda r: (r / "JPEGImages/a.png").unlink(), "a.xml", "not in"),
    "bad image": (lambda r: (r / "JPEGImages/a.png").write_bytes(b"?"), "a.png", "cannot read"),
    "other size": (rewrite(CELL, (32, 24)), "a.xml", "says that a.png is 32x24, and it is 16x12"),
    "other class": (
        lambda r: (r / "classes.txt").write_text("cell\n"),
        "a.xml",
        "unknown class 'body'",
    ),
    "no list": (lambda r: (r / "ImageSets/Main/train.txt").unlink(), "Main", "no train.txt"),
    "a path": (lambda r: lists(r, train=["../a"]), "train.txt", "no name of an image"),
    "unknown in test": (
        lambda r: annotated(r, "d", [("nucleus", (1, 1, 3, 3))]),
        "d.xml",
        "unknown class 'nucleus'",
    ),
}


@pytest.mark.parametrize(("fault", "file", "words"), VOC_FAULTS.values(), ids=VOC_FAULTS.keys())
def test_voc_faults_are_told_in_a_sentence(root: Path, fault: Break, file: str, words: str) -> None:
    fault(root)
    with pytest.raises(UserError) as told:
        load(root)
    message = str(told.value)
    assert file in message
    assert words in message
    assert "\n" not in message


def test_a_box_may_leave_its_image_by_a_pixel_and_is_cut() -> None:
    box = checked(Box(-1, 0, 17, 12, "cell"), 16, 12, Path("a"))
    assert box == Box(0, 0, 16, 12, "cell")
    with pytest.raises(UserError, match="outside"):
        checked(Box(16.2, 0, 16.9, 12, "cell"), 16, 12, Path("a"))


@pytest.mark.parametrize("place", [None, "nowhere"])
@pytest.mark.parametrize("kind", [voc, coco])
def test_a_folder_is_needed(tmp_path: Path, place: str | None, kind: object) -> None:
    path = None if place is None else tmp_path / place
    with pytest.raises(UserError, match="data"):
        kind.load(LoadOptions(path, tmp_path), "train")


# COCO --------------------------------------------------------------------------------------------


def note(image: int, category: int, bbox: list[float], **more: object) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


@pytest.fixture
def described() -> dict[str, list[dict[str, object]]]:
    return {
        "images": [
            {"id": 70, "file_name": "p.png", "width": 16, "height": 12},
            {"id": 9, "file_name": "q.png", "width": 16, "height": 12},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            note(70, 18, [1, 2, 4.5, 6]),
            note(70, 3, [0, 0, 16, 12], iscrowd=1),
            note(70, 3, [8, 2, 8, 3], iscrowd=0),
        ],
    }


def written(root: Path, described: object, name: str = "instances_train2017") -> Path:
    folder = root / name.removeprefix("instances_")
    for file in ("p.png", "q.png"):
        picture(folder / file, spot=(1, 2, 5, 8))
    place = root / "annotations" / f"{name}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(described if isinstance(described, str) else json.dumps(described))
    return place


def test_coco_is_read_with_its_categories_in_order(tmp_path: Path, described: dict) -> None:
    root = tmp_path / "coco"
    written(root, described)
    written(root, described, "val")
    train = load(root, kind=coco, validation_share=0)
    assert train.classes == ("car", "dog")
    assert train.images.shape == (2, 3, 12, 16)
    assert rows(train, 0) == [[1, 2, 5.5, 8, 1], [8, 2, 16, 5, 0]]  # and no crowd
    assert rows(train, 1) == []
    assert train.images[0, 0, 2:8, 1:5].min() == 255
    assert rows(load(root, "test", kind=coco), 0) == rows(train, 0)


def change(part: str, **values: object) -> Callable[[dict], object]:
    return lambda described: described[part][0].update(values)


COCO_FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "outside": (change("annotations", bbox=[10, 2, 9, 3]), "outside its image of 16x12"),
    "empty": (change("annotations", bbox=[10, 2, 0, 3]), "empty or reversed"),
    "infinite": (change("annotations", bbox=[1, 2, float("inf"), 3]), "without finite edges"),
    "three numbers": (change("annotations", bbox=[1, 2, 3]), "gives [1, 2, 3] for a box of p.png"),
    "category": (change("annotations", category_id=4), "unknown category 4"),
    "image": (change("annotations", image_id=4), "image 4, which it does not list"),
    "size": (change("images", width=15), "says that p.png is 15x12, and it is 16x12"),
    "no size": (lambda d: d["images"][0].pop("width"), "not in the format"),
    "no file": (change("images", file_name="r.png"), "r.png, which cannot be read"),
    "elsewhere": (change("images", file_name="../r.png"), "leaves"),
    "no part": (lambda d: d.pop("categories"), "not in the format"),
    "twice": (change("categories", name="car"), "a name of its own"),
}


@pytest.mark.parametrize(("fault", "words"), COCO_FAULTS.values(), ids=COCO_FAULTS.keys())
def test_coco_faults_are_told_in_a_sentence(
    tmp_path: Path, described: dict, fault: Callable[[dict], object], words: str
) -> None:
    written(tmp_path, described, "test")
    fault(described)
    place = written(tmp_path, described)
    with pytest.raises(UserError) as told:
        load(tmp_path, kind=coco, validation_share=0)
    message = str(told.value)
    assert words in message
    assert place.name in message
    assert "\n" not in message


def test_coco_files_that_are_no_json_or_differ_are_told(tmp_path: Path, described: dict) -> None:
    written(tmp_path, described, "test")
    written(tmp_path, "{", "train")
    with pytest.raises(UserError, match=r"cannot read the annotations .*train\.json"):
        load(tmp_path, kind=coco)
    described["categories"][0]["name"] = "cat"
    written(tmp_path, described, "train")
    with pytest.raises(UserError, match="other categories"):
        load(tmp_path, kind=coco)
    (tmp_path / "annotations/train.json").unlink()
    with pytest.raises(UserError, match=r"no train\.json"):
        load(tmp_path, kind=coco)
