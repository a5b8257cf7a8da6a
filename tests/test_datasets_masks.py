"""Folders of images and masks: layouts, canvases, the cache, and every complaint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Cityscapes

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, SplitName, mask_files
from robustbench_gpm.datasets.cadis import cadis
from robustbench_gpm.datasets.canvas import GREY
from robustbench_gpm.datasets.masks import MaskSource, Split, load_masks
from robustbench_gpm.datasets.segmentation import SEGMENTATION
from robustbench_gpm.datasets.segmentation_folders import (
    CITYSCAPES_CLASSES,
    ade20k,
    camvid,
    cityscapes,
    voc,
)
from robustbench_gpm.masks import VOID

HEIGHT, WIDTH = 6, 8
Find = Callable[[LoadOptions], MaskSource]


def put(
    image: Path,
    mask: Path,
    values: list[int],
    size: tuple[int, int] = (HEIGHT, WIDTH),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """An image of noise and a mask of some of these values, as files; returns their numbers."""
    draw = np.random.default_rng([seed, *image.name.encode()])
    pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
    numbers = draw.choice(np.array(values, np.uint8), size)
    for path, array in ((image, pixels), (mask, numbers)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return pixels, numbers


def options(root: Path, **more: float) -> LoadOptions:
    return LoadOptions(root, root.parent / "kept", download=False, **more)  # type: ignore[arg-type]


def load(find: Find, root: Path, split: SplitName = "train", **more: float) -> Split:
    here = options(root, **more)
    return load_masks(find(here), split, here)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A CamVid of two images a split."""
    base = tmp_path / "camvid"
    for folder in ("train", "val", "test"):
        for name in ("a", "b"):
            put(
                base / folder / f"{name}.png", base / f"{folder}annot" / f"{name}.png", [*range(12)]
            )
    return base


# layouts


def test_camvid_comes_as_it_is_with_11_as_void(root: Path) -> None:
    pixels, numbers = put(root / "train" / "c.png", root / "trainannot" / "c.png", [*range(12)])
    split = load(camvid, root)
    assert split.images.shape == (3, 3, HEIGHT, WIDTH)
    assert split.labels.dtype == torch.uint8
    assert np.array_equal(split.images[2].permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(split.labels[2].numpy(), np.where(numbers == 11, VOID, numbers))
    assert len(split.classes) == 11
    assert split.index.tolist() == [0, 1, 2]
    assert len(load(camvid, root, "validation")) == len(load(camvid, root, "test")) == 2


def test_images_and_masks_pair_up_by_name_whatever_their_endings(root: Path) -> None:
    noise = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(root / "train" / "0.jpg")
    numbers = np.full((HEIGHT, WIDTH), 7, np.uint8)
    Image.fromarray(numbers).save(root / "trainannot" / "0.png")
    split = load(camvid, root)
    assert (split.images[0] == 0).all()
    assert (split.labels[0] == 7).all()


def test_voc_masks_are_indices_of_a_palette(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    names = [f"2007_{i:06}" for i in range(20)]
    for name in names:
        mask = base / "SegmentationClass" / f"{name}.png"
        _, numbers = put(base / "JPEGImages" / f"{name}.jpg", mask, [0, 20, 255])
        coloured = Image.fromarray(numbers, mode="P")
        coloured.putpalette([(7 * i) % 256 for i in range(768)])
        coloured.save(mask)
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:15]))
    (lists / "val.txt").write_text("\n".join(names[15:]))
    parts = {
        n: load(voc, tmp_path, n, validation_share=0.2) for n in ("train", "validation", "test")
    }
    assert [len(part) for part in parts.values()] == [12, 3, 5]
    assert sorted([*parts["train"].index.tolist(), *parts["validation"].index.tolist()]) == [
        *range(15)
    ]
    assert len(parts["test"].classes) == 21
    last = np.asarray(Image.open(base / "SegmentationClass" / f"{names[19]}.png"))
    assert set(np.unique(last)) == {0, 20, 255}
    assert np.array_equal(parts["test"].labels[4].numpy(), last)


def test_cityscapes_ids_become_train_ids(tmp_path: Path) -> None:
    for split, cities in (("train", ("ulm", "aachen")), ("val", ("bonn",))):
        for city in cities:
            stem = f"{city}_000000_000019"
            image = tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            mask = tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            put(image, mask, [*range(34)], (20, 40))
    found = load(cityscapes, tmp_path, "test")
    numbers = np.asarray(Image.open(mask))
    wanted = {c.id: c.train_id if c.train_id < 19 else VOID for c in Cityscapes.classes}
    expected = np.vectorize(wanted.__getitem__)(numbers)
    assert np.array_equal(found.labels[0].numpy(), expected)
    assert found.classes[0] == "road"
    assert found.classes[18] == CITYSCAPES_CLASSES[18] == "bicycle"
    train = load(cityscapes, tmp_path, validation_share=0)
    first = tmp_path / "leftImg8bit" / "train" / "aachen"
    pixels = np.asarray(Image.open(next(first.iterdir())))
    assert np.array_equal(train.images[0].permute(1, 2, 0).numpy(), pixels)  # aachen before ulm


@pytest.mark.parametrize("inside", [True, False])
def test_ade20k_counts_from_1_with_0_as_void(tmp_path: Path, inside: bool) -> None:
    base = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        for name in ("a", "b"):
            mask = base / "annotations" / part / f"{name}.png"
            _, numbers = put(base / "images" / part / f"{name}.jpg", mask, [0, 1, 150])
    found = load(ade20k, base if inside else tmp_path, "test")
    assert np.array_equal(found.labels[1].numpy(), (numbers.astype(int) - 1) % 256)
    assert (len(found.classes), found.classes[149]) == (150, "class 150")
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t.1\t2\t3\tthing {i}, it" for i in range(150))]
    (base / "objectInfo150.txt").write_text("\n".join(lines))
    assert load(ade20k, base, "test").classes[149] == "thing 149"


def test_cadis_is_parted_by_videos_and_its_instruments_are_one(tmp_path: Path) -> None:
    for video in (1, 2, 5, 7, 10, 25):
        folder = tmp_path / f"Video{video:02}"
        name = f"Video{video}_frame000090.png"
        _, numbers = put(folder / "Images" / name, folder / "Labels" / name, [*range(36)])
    train, validation, test = (load(cadis, tmp_path, n) for n in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (3, 2, 1)
    assert np.array_equal(train.labels[2].numpy(), np.minimum(numbers, 7))
    assert train.classes[0] == "pupil"
    assert train.classes[-1] == "instrument"


# canvases


def test_the_canvas_is_one_for_all_splits(root: Path) -> None:
    put(root / "test" / "tall.png", root / "testannot" / "tall.png", [1], (8, 6))
    for split in ("train", "validation", "test"):
        assert load(camvid, root, split, image_size=16).images.shape[2:] == (16, 16)


def test_letterboxes_are_grey_and_void(root: Path) -> None:
    put(root / "train" / "tall.png", root / "trainannot" / "tall.png", [3], (12, 4))
    put(root / "train" / "wide.png", root / "trainannot" / "wide.png", [4], (4, 12))
    split = load(camvid, root, image_size=24)
    tall, wide = split.labels[2], split.labels[3]
    assert (tall[:, 8:16] == 3).all()
    assert (wide[8:16] == 4).all()
    for mask, row in ((tall, 2), (wide, 3)):
        around = mask == VOID
        assert int(around.sum()) == 24 * 16
        assert (split.images[row][:, around] == GREY).all()
        assert (split.images[row][:, ~around] != GREY).float().mean() > 0.9


def test_images_are_resized_smoothly_and_masks_by_nearest_pixels(root: Path) -> None:
    half = load(camvid, root, image_size=HEIGHT // 2)
    image = Image.open(root / "train" / "a.png")
    smaller = image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BILINEAR)
    assert np.array_equal(half.images[0].permute(1, 2, 0).numpy(), np.asarray(smaller))
    twice = load(camvid, root, image_size=2 * HEIGHT)
    native = load(camvid, root)
    expected = native.labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(twice.labels, expected)
    # Every class of a smaller mask is one of the four at its place.
    blocks = native.labels.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    assert (blocks == half.labels[..., None]).any(-1).all()


# the cache


def test_a_second_start_opens_no_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {name: load(camvid, root, name) for name in ("train", "test")}

    def refuse(*_: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr(mask_files.Image, "open", refuse)
    for name, split in first.items():
        assert load(camvid, root, name).fingerprint() == split.fingerprint()
    with pytest.raises(AssertionError, match="opened again"):
        load(camvid, root, image_size=3)


@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_a_changed_file_is_seen(root: Path, folder: str) -> None:
    before = load(camvid, root).fingerprint()
    path = root / folder / "a.png"
    Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    assert load(camvid, root).fingerprint() != before


def test_writing_to_masks_leaves_the_cache_alone(root: Path) -> None:
    split = load(camvid, root)
    before = split.fingerprint()
    split.labels.zero_()
    assert load(camvid, root).fingerprint() == before


# complaints


def wrong_size(root: Path) -> Path:
    mask = root / "trainannot" / "b.png"
    Image.fromarray(np.zeros((WIDTH, HEIGHT), np.uint8)).save(mask)
    return mask


def unknown_class(root: Path) -> Path:
    mask = root / "trainannot" / "b.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 12, np.uint8)).save(mask)
    return mask


def in_colours(root: Path) -> Path:
    mask = root / "trainannot" / "b.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(mask)
    return mask


def torn_mask(root: Path) -> Path:
    mask = root / "trainannot" / "b.png"
    mask.write_bytes(mask.read_bytes()[:-30])
    return mask


def torn_image(root: Path) -> Path:
    image = root / "train" / "b.png"
    image.write_bytes(image.read_bytes()[:-30])
    return image


def no_image(root: Path) -> Path:
    image = root / "test" / "b.png"
    image.write_bytes(b"a letter")
    return image


def no_mask(root: Path) -> Path:
    (root / "trainannot" / "b.png").unlink()
    return root / "train" / "b.png"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (wrong_size, "is 6x8 and its image .* is 8x6"),
        (unknown_class, "holds the index 12, which is no class"),
        (in_colours, "holds RGB pixels"),
        (torn_mask, "cannot read the mask"),
        (torn_image, "cannot read the image"),
        (no_image, "cannot read the image"),
        (no_mask, "has no mask in"),
    ],
)
def test_a_bad_file_is_named_in_one_sentence(
    root: Path, harm: Callable[[Path], Path], message: str
) -> None:
    path = harm(root)
    with pytest.raises(UserError, match=message) as caught:
        load(camvid, root)
    told = str(caught.value)
    assert str(path) in told
    assert "\n" not in told
    assert not list((root.parent / "kept").glob(".*"))  # nothing half written


@pytest.mark.parametrize("find", [camvid, cityscapes, ade20k, cadis, voc])
def test_a_folder_that_is_something_else_is_refused(tmp_path: Path, find: Find) -> None:
    (tmp_path / "else").mkdir()
    with pytest.raises(UserError) as caught:
        find(options(tmp_path / "else"))
    assert str(tmp_path / "else") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("find", [camvid, cityscapes, ade20k, cadis])
def test_a_data_path_is_needed(tmp_path: Path, find: Find) -> None:
    with pytest.raises(UserError, match="--data_path"):
        find(LoadOptions(None, tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        find(LoadOptions(tmp_path / "no", tmp_path))


def test_a_split_that_is_not_there_is_refused(root: Path) -> None:
    for name in ("val", "valannot"):
        (root / name).rename(root / f"no{name}")
    assert len(load(camvid, root)) == 2
    with pytest.raises(UserError, match="no validation split of camvid, only train, test"):
        load(camvid, root, "validation")


def test_the_table_of_data_sets(root: Path) -> None:
    specs = {spec.name: spec for spec in SEGMENTATION}
    assert list(specs) == ["digit_scenes", "camvid", "voc", "cityscapes", "ade20k", "cadis"]
    assert all(spec.task == "segmentation" for spec in SEGMENTATION)
    split = specs["camvid"].load(options(root), "train")
    assert isinstance(split, Split)
    x, y = split.batch(torch.tensor([1]))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(y[0], split.labels[1].long())
