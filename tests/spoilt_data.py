"""Small sound data sets with masks, boxes and clips, and what can be wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 20, 16
Harm = Callable[[Path], object]


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), level: int | None = None) -> None:
    """An image of noise, or all of one level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels = noise if level is None else np.full(size[::-1], level, np.uint8)
    Image.fromarray(pixels).save(path)


def masked(root: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            picture(root / split / f"{name}.png")
            picture(root / f"{split}annot" / f"{name}.png", level=3)


def xml(box: str = "2,2,9,9", name: str = "cell", size: str = f"{WIDTH},{HEIGHT}") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box.split(","), strict=True)
    sides = zip(("width", "height"), size.split(","), strict=True)
    return (
        f"<annotation><size>{''.join(f'<{k}>{v}</{k}>' for k, v in sides)}</size><object>"
        f"<name>{name}</name><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in edges)}</bndbox>"
        f"</object></annotation>"
    )


def boxed(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (root / "Annotations").mkdir()
    for split in ("train", "val", "test"):
        (lists / f"{split}.txt").write_text(f"{split}1\n{split}2\n")
        for name in (f"{split}1", f"{split}2"):
            picture(root / "JPEGImages" / f"{name}.png")
            (root / "Annotations" / f"{name}.xml").write_text(xml())


def described(root: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            picture(root / split / f"{name}.png")
        sides = {"width": WIDTH, "height": HEIGHT}
        whole = {
            "images": [{"id": i, "file_name": f"{n}.png", **sides} for i, n in enumerate("ab")],
            "annotations": [
                {"image_id": i, "category_id": 7, "bbox": [2, 2, 5, 5]} for i in (0, 1)
            ],
            "categories": [{"id": 7, "name": "cell"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(whole))


def moving(root: Path) -> None:
    for split in ("train", "test"):
        for name in ("run", "sit"):
            for clip in ("one", "two"):
                for t in range(5):
                    picture(root / split / name / clip / f"{t}.png")


def triplets(root: Path) -> None:
    line = ",".join(str(int(number % 9 == 0)) for number in range(100))
    (root / "triplet").mkdir()
    for video in ("VID01", "VID02", "VID04"):
        for t in range(3):
            picture(root / "data" / video / f"{t:06}.png")
        lines = [f"{t},{line}" for t in range(3)]
        (root / "triplet" / f"{video}.txt").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Kind:
    """A data set: how it is made, and the flags that it is trained by."""

    make: Harm
    flags: str


KINDS = {
    "camvid": Kind(masked, "--task segmentation --data_name camvid --model_name digits_segmenter"),
    "voc_boxes": Kind(boxed, "--task detection --data_name voc_boxes --model_name digits_detector"),
    "coco": Kind(described, "--task detection --data_name coco --model_name digits_detector"),
    "clips": Kind(
        moving, "--task video --data_name clips --model_name clip_cnn --image_size 8 --frames 3"
    ),
    "cholect45": Kind(
        triplets,
        "--task multilabel --data_name cholect45 --model_name clip_cnn --image_size 8 --frames 2",
    ),
}


def write(path: str, text: str | bytes) -> Harm:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda root: (root / path).write_bytes(content)


def drawn(path: str, size: tuple[int, int] = (WIDTH, HEIGHT), level: int | None = None) -> Harm:
    return lambda root: picture(root / path, size, level)


def gone(path: str) -> Harm:
    return lambda root: (
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    )


def torn(path: str) -> Harm:
    def harm(root: Path) -> None:
        whole = (root / path).read_bytes()
        (root / path).write_bytes(whole[: len(whole) // 2])

    return harm


def coco(part: str, **values: object) -> Harm:
    """The first entry of a part of the training annotations, changed."""

    def harm(root: Path) -> None:
        place = root / "annotations" / "train.json"
        whole = json.loads(place.read_text())
        whole[part][0].update(values)
        place.write_text(json.dumps(whole))

    return harm


def emptied(part: str) -> Harm:
    def harm(root: Path) -> None:
        place = root / "annotations" / "train.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), part: []}))

    return harm


def no_boxes(root: Path) -> None:
    for place in (root / "Annotations").iterdir():
        place.write_text(f"<annotation>{xml().partition('<object>')[0][12:]}</annotation>")


def all_void(root: Path) -> None:
    for name in ("a", "b"):
        picture(root / "trainannot" / f"{name}.png", level=11)


def garbled_video(root: Path) -> None:
    shutil.rmtree(root / "train" / "run" / "one")
    (root / "train" / "run" / "one.avi").write_bytes(b"RIFF and then nothing")


def few_frames(root: Path) -> None:
    for t in (0, 2, 4):
        (root / "train" / "run" / "one" / f"{t}.png").unlink()


def no_clips(root: Path) -> None:
    for clip in ("one", "two"):
        shutil.rmtree(root / "train" / "run" / clip)


def second_line(root: Path) -> None:
    place = root / "triplet" / "VID01.txt"
    place.write_text(place.read_text() + place.read_text().split("\n")[0])


VIDEO = "triplet/VID01.txt"
# data set, what is wrong, how it becomes wrong, what the sentence names, and what it says
FAULTS: list[tuple[str, str, Harm, str, str]] = [
    ("camvid", "mask size", drawn("trainannot/a.png", (9, 9), 1), "trainannot/a.png", "is 9x9"),
    ("camvid", "class", drawn("trainannot/a.png", level=77), "trainannot/a.png", "the index 77"),
    ("camvid", "colours", drawn("trainannot/a.png"), "trainannot/a.png", "holds RGB pixels"),
    ("camvid", "all void", all_void, "camvid", "every pixel is void"),
    ("camvid", "no mask", gone("trainannot/a.png"), "train/a.png", "has no mask in"),
    ("camvid", "no image", gone("train/a.png"), "trainannot/a.png", "is of no image in"),
    ("camvid", "no image file", write("train/a.png", "?"), "train/a.png", "cannot read the image"),
    ("camvid", "torn image", torn("train/a.png"), "train/a.png", "cannot read the image"),
    ("camvid", "torn mask", torn("trainannot/a.png"), "trainannot/a.png", "the mask"),
    ("camvid", "no masks", gone("trainannot"), "trainannot", "check --data_path"),
    ("camvid", "no train", gone("train"), "camvid", "no train split of camvid, only validation"),
    ("camvid", "no val", gone("val"), "camvid", "add its images"),
    ("voc_boxes", "empty", write("Annotations/train1.xml", xml("5,2,4,9")), "train1.xml", "empty"),
    ("voc_boxes", "out", write("Annotations/train1.xml", xml("5,2,99,9")), "train1.xml", "outside"),
    ("voc_boxes", "nan", write("Annotations/train1.xml", xml("5,2,nan,9")), "train1.xml", "empty"),
    ("voc_boxes", "word", write("Annotations/train1.xml", xml("5,2,x,9")), "train1.xml", "'x'"),
    (
        *("voc_boxes", "unknown class", write("Annotations/test1.xml", xml(name="nucleus"))),
        *("test1.xml", "unknown class 'nucleus' (known by the training images: cell)"),
    ),
    ("voc_boxes", "torn xml", torn("Annotations/train1.xml"), "train1.xml", "cannot read"),
    ("voc_boxes", "no xml", gone("Annotations/train1.xml"), "train1.xml", "has no annotation"),
    ("voc_boxes", "no image", gone("JPEGImages/train1.png"), "train1.xml", "that is not in"),
    ("voc_boxes", "image", write("JPEGImages/train1.png", "?"), "train1.png", "cannot read"),
    (
        *("voc_boxes", "infinite size", write("Annotations/train1.xml", xml(size="inf,16"))),
        *("train1.xml", "a size of infx16"),
    ),
    (
        *("voc_boxes", "no size", write("Annotations/train1.xml", xml(size="nan,16"))),
        *("train1.xml", "a size of nanx16"),
    ),
    ("voc_boxes", "no boxes", no_boxes, "voc_boxes", "there is nothing to learn"),
    ("voc_boxes", "empty list", write("ImageSets/Main/val.txt", "\n"), "val.txt", "is empty"),
    ("voc_boxes", "no lists", gone("ImageSets"), "voc_boxes", "holds no ImageSets/Main"),
    ("coco", "torn json", torn("annotations/train.json"), "train.json", "cannot read"),
    ("coco", "no object", write("annotations/train.json", "[]"), "train.json", "not in the format"),
    ("coco", "empty", coco("annotations", bbox=[2, 2, 0, 5]), "train.json", "empty or reversed"),
    ("coco", "outside", coco("annotations", bbox=[2, 2, 99, 5]), "train.json", "outside"),
    (
        "coco",
        "no box",
        coco("annotations", bbox=None),
        "train.json",
        "gives None for a box",
    ),
    ("coco", "category", coco("annotations", category_id=1), "train.json", "unknown category 1"),
    ("coco", "unlisted", coco("annotations", image_id=9), "train.json", "list the image or remove"),
    ("coco", "no image", gone("train/a.png"), "train/a.png", "add the image"),
    ("coco", "image", write("train/a.png", "?"), "train/a.png", "cannot read the image"),
    ("coco", "size", coco("images", width=float("inf")), "train.json", "cannot read"),
    ("coco", "same id", coco("images", id=1), "train.json", "of an id of its own"),
    ("coco", "no boxes", emptied("annotations"), "coco", "there is nothing to learn"),
    ("coco", "no annotations", gone("annotations"), "coco", "no folder named annotations"),
    ("coco", "no train", gone("annotations/train.json"), "annotations", "has no train.json"),
    ("clips", "short clip", few_frames, "run/one", "has 2 frames, and 3 are asked for"),
    ("clips", "no clips", no_clips, "train/run", "fill it or remove it"),
    ("clips", "frame", write("train/run/one/2.png", "?"), "run/one/2.png", "cannot read the image"),
    ("clips", "sizes", drawn("train/run/one/2.png", (9, 9)), "run/one/2.png", "others of its clip"),
    ("clips", "video", garbled_video, "run/one.avi", "cannot read the video"),
    ("clips", "no train", gone("train"), "clips", "has no train folder beside test"),
    ("clips", "classes", gone("test/run"), "test", "holds one class folder only"),
    ("cholect45", "row", write(VIDEO, "0,1,0\n"), "VID01.txt", "is not a label file"),
    ("cholect45", "words", write(VIDEO, "a,b\n"), "VID01.txt", "is not a label file"),
    ("cholect45", "number", write(VIDEO, "9" * 30 + ",0" * 100), "VID01.txt", "not a label file"),
    ("cholect45", "twice", second_line, "VID01.txt", "labels frame 0 twice"),
    ("cholect45", "no frame", gone("data/VID01/000001.png"), "VID01/000001.png", "unpack it again"),
    ("cholect45", "no video", gone("data/VID01"), "VID01/000000.png", "unpack it again"),
    ("cholect45", "frame", write("data/VID01/000001.png", "?"), "000001.png", "cannot read"),
    ("cholect45", "no labels", gone("triplet"), "cholect45", "holds no labels of CholecT45"),
]
