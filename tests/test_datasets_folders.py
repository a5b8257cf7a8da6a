"""Class folders: layouts, splits, decoding, the cache, and every complaint."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, Split, cache, load_split

SIDE = 12


def fill(folder: Path, classes=("cat", "dog"), n=4, seed=0) -> None:
    """Class folders of random PNGs of SIDE x SIDE."""
    pixels = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            image = pixels.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / name / f"{i:03}.png")


def load(root: Path, split="train", size=SIDE, **options) -> Split:
    here = LoadOptions(root, root.parent / "kept", image_size=size, **options)
    return load_split("imagefolder", split, here)


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "data" / "train", n=20, seed=1)
    fill(tmp_path / "data" / "test", n=3, seed=2)
    return tmp_path / "data"


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse():
        def decoding(*args):
            raise AssertionError("decoded again")

        monkeypatch.setattr(cache, "decode", decoding)

    return refuse


def rows(*splits: Split) -> set[bytes]:
    return {image.numpy().tobytes() for split in splits for image in split.images}


def test_images_arrive_as_they_are(root):
    split = load(root, "test")
    assert split.classes == ("cat", "dog")
    assert split.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert split.images.dtype == torch.uint8
    for place, (name, i) in enumerate([("cat", 0), ("cat", 1), ("cat", 2), ("dog", 0)]):
        pixels = np.asarray(Image.open(root / "test" / name / f"{i:03}.png"))
        assert np.array_equal(split.images[place].permute(1, 2, 0).numpy(), pixels)


def test_validation_is_held_out_of_train(root):
    train, validation, test = (load(root, name) for name in ("train", "validation", "test"))
    assert train.labels.bincount().tolist() == [18, 18]
    assert validation.labels.bincount().tolist() == [2, 2]
    assert sorted([*train.index.tolist(), *validation.index.tolist()]) == list(range(40))
    assert len(rows(train, validation, test)) == 46
    more = load(root, "validation", validation_share=0.5)
    assert set(validation.index.tolist()) < set(more.index.tolist())


def test_val_folder_is_the_validation_split(root):
    fill(root / "val", n=2, seed=3)
    assert len(load(root, "train")) == 40
    assert len(load(root, "validation")) == 4
    assert len(load(root, "test")) == 6
    (root / "val").rename(root / "validation")
    assert len(load(root, "validation")) == 4


def test_val_serves_as_test_where_there_is_none(root):
    whole = load(root, "test")
    (root / "test").rename(root / "val")
    assert torch.equal(load(root, "test").images, whole.images)
    train, validation = load(root, "train"), load(root, "validation")
    assert (len(train), len(validation)) == (36, 4)
    assert not rows(validation) & rows(whole)


def test_test_alone_is_enough_to_evaluate(tmp_path):
    fill(tmp_path / "data" / "test")
    assert len(load(tmp_path / "data", "test")) == 8
    with pytest.raises(UserError, match="has no train folder beside test"):
        load(tmp_path / "data", "validation")


def test_class_folders_alone_are_split(tmp_path):
    fill(tmp_path / "data", classes=("a", "b", "c"), n=20)
    parts = [load(tmp_path / "data", name) for name in ("train", "validation", "test")]
    assert [part.labels.bincount().tolist() for part in parts] == [[14] * 3, [2] * 3, [4] * 3]
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(60))
    assert len(rows(*parts)) == 60


def test_every_kind_of_image_becomes_rgb(tmp_path):
    fill(tmp_path / "data" / "test", n=1)
    grey = Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE))
    for kind in ("L", "LA", "P", "RGBA"):
        grey.convert(kind).save(tmp_path / "data" / "test" / "cat" / f"{kind}.PNG")
    images = load(tmp_path / "data", "test").images
    assert images.shape == (6, 3, SIDE, SIDE)
    assert torch.equal(images[1:5], torch.from_numpy(np.array(grey)).expand(4, 3, SIDE, SIDE))


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (24, 24), (6, 10)])
def test_resize_and_crop_are_torchvision_s(tmp_path, shape):
    fill(tmp_path / "data" / "test", n=1)
    noise = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image.save(tmp_path / "data" / "test" / "cat" / "000.png")
    expected = functional.center_crop(functional.resize(image, SIDE, antialias=True), [SIDE, SIDE])
    ours = load(tmp_path / "data", "test").images[0]
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_image_size_is_224_by_default(tmp_path):
    fill(tmp_path / "data" / "test", n=1)
    assert load(tmp_path / "data", "test", size=None).images.shape == (2, 3, 224, 224)


def test_second_start_does_not_decode(root, no_decoding):
    first = {name: load(root, name) for name in ("train", "validation", "test")}
    no_decoding()
    for name, split in first.items():
        again = load(root, name)
        assert again.fingerprint() == split.fingerprint()
        assert torch.equal(again.images, split.images)


def test_the_cache_knows_a_folder_by_all_its_names(root, no_decoding, monkeypatch):
    load(root, "test")
    no_decoding()
    (root.parent / "link").symlink_to(root)
    load(root.parent / "link", "test")
    monkeypatch.chdir(root)
    load_split("imagefolder", "test", LoadOptions(Path(), Path("../kept"), image_size=SIDE))


def test_writing_to_images_leaves_the_cache_alone(root):
    split = load(root, "test")
    before = split.fingerprint()
    split.images.zero_()
    assert load(root, "test").fingerprint() == before


@pytest.mark.parametrize("change", ["content", "size", "time", "name", "more", "fewer"])
def test_a_change_in_the_folder_is_seen(root, no_decoding, change):
    load(root, "test")
    no_decoding()
    file = root / "test" / "cat" / "001.png"
    if change == "content":
        Image.new("RGB", (SIDE, SIDE)).save(file)
    elif change == "size":
        modified = file.stat().st_mtime_ns
        file.write_bytes(file.read_bytes() + b"0")
        os.utime(file, ns=(modified, modified))
    elif change == "time":
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))
    elif change == "name":
        file.rename(file.with_name("001b.png"))
    elif change == "more":
        (root / "test" / "dog" / "new.png").write_bytes(file.read_bytes())
    else:
        file.unlink()
    with pytest.raises(AssertionError, match="decoded again"):
        load(root, "test")


def test_another_size_is_decoded_anew(root):
    assert load(root, "test").images.shape[-1] == SIDE
    assert load(root, "test", size=SIDE * 2).images.shape[-1] == SIDE * 2


def test_nothing_half_written_stays(root):
    (root / "train" / "dog" / "019.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the image .*019\.png .*mend or remove it"):
        load(root, "train", validation_share=0)
    assert list((root.parent / "kept").iterdir()) == []


def test_a_truncated_image_is_named(root):
    file = root / "test" / "dog" / "002.png"
    Image.effect_noise((SIDE, SIDE), 90).convert("RGB").save(file.with_suffix(".jpg"))
    whole = file.with_suffix(".jpg").read_bytes()
    file.with_suffix(".jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"002\.jpg"):
        load(root, "test")


def test_sixteen_bits_are_not_clipped(root):
    deep = np.full((SIDE, SIDE), 4000, dtype=np.uint16)
    Image.fromarray(deep).save(root / "test" / "cat" / "000.png")
    with pytest.raises(UserError, match=r"000\.png has more than 8 bits a channel"):
        load(root, "test")


@pytest.mark.parametrize("content", [b"", b"not numpy", None])
def test_a_damaged_cache_is_named(root, content):
    load(root, "test")
    (kept,) = (root.parent / "kept").iterdir()
    if content is None:
        np.save(kept, np.zeros((6, 3, SIDE, SIDE)))
    else:
        kept.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot use the cached images {kept}: delete"):
        load(root, "test")


def test_an_unwritable_cache_folder_is_named(root):
    (root.parent / "kept").write_text("a file in the way")
    with pytest.raises(UserError, match=r"kept \(.*\): give a writable folder with --cache_dir"):
        load(root, "test")


def test_a_full_disk_leaves_nothing(root, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    with pytest.raises(UserError, match=r"No space left on device.*--cache_dir"):
        load(root, "test")
    assert list((root.parent / "kept").iterdir()) == []


def test_no_data_path(tmp_path):
    with pytest.raises(UserError, match="give it with --data_path"):
        load_split("imagefolder", "train", LoadOptions(None, tmp_path))
    with pytest.raises(UserError, match="absent does not exist"):
        load(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        load(tmp_path / "file")


def test_no_class_folders(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"holds no class folders: put the images, or clips, in"):
        load(tmp_path / "data")
    (tmp_path / "data" / "train").mkdir()
    with pytest.raises(UserError, match=r"train holds no class folders"):
        load(tmp_path / "data")


def test_one_class(tmp_path):
    fill(tmp_path / "data" / "train", classes=("cat",))
    with pytest.raises(UserError, match=r"one class folder only \('cat'\)"):
        load(tmp_path / "data")


def test_a_class_without_images(root):
    (root / "train" / "emu").mkdir()
    (root / "train" / "emu" / "notes.txt").write_text("none yet")
    (root / "test" / "emu").mkdir()
    with pytest.raises(UserError, match=r"the class folder .*emu holds no images"):
        load(root)


def test_classes_that_differ(root):
    fill(root / "test", classes=("emu",))
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"class folders of .*test differ .*train .*'emu'"):
            load(root, split)


def test_two_validation_folders(root):
    fill(root / "val")
    fill(root / "validation")
    with pytest.raises(UserError, match="both val and validation"):
        load(root)


def test_train_without_test(root):
    (root / "test").rename(root.parent / "elsewhere")
    with pytest.raises(UserError, match="has no test folder beside train"):
        load(root, "test")


def test_no_validation_left(root):
    with pytest.raises(UserError, match="validation split of imagefolder is empty"):
        load(root, "validation", validation_share=0)


def test_hidden_files_and_folders_are_no_data(root):
    (root / "test" / ".ipynb_checkpoints").mkdir()
    (root / "test" / "cat" / "._000.png").write_bytes(b"left by a file manager")
    assert len(load(root, "test")) == 6
