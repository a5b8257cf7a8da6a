"""CIFAR from class folders and from torchvision's layout."""

import hashlib
import pickle
import shutil
import socket
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, cifar

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, Split, load_split

NAMES = tuple("abcdefghij")


def load(base: Path | None, split="train", name="cifar10", **options) -> Split:
    return load_split(name, split, LoadOptions(base, Path(base or ".") / "kept", **options))


def fill(folder: Path, names=NAMES, n=4, side=32) -> None:
    pixels = np.random.default_rng(len(str(folder)))
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = pixels.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{i}.png")


@pytest.fixture
def folders(tmp_path):
    fill(tmp_path / "cifar10" / "train")
    fill(tmp_path / "cifar10" / "test", n=1)
    return tmp_path


def entry(n: int, seed: int) -> dict[str, object]:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [i % 10 for i in range(n)]}


def unpack(base: Path) -> None:
    """A small CIFAR-10 in torchvision's own layout."""
    folder = base / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(entry(20, number)))
    (folder / "test_batch").write_bytes(pickle.dumps(entry(10, 6)))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(NAMES)}))


@pytest.fixture
def small_torchvision(tmp_path, monkeypatch):
    """torchvision's own code, told the checksums of the small files."""
    unpack(tmp_path / "source")

    def digest(name: str) -> str:
        file = tmp_path / "source" / CIFAR10.base_folder / name
        return hashlib.md5(file.read_bytes()).hexdigest()

    batches = [[f"data_batch_{i}", digest(f"data_batch_{i}")] for i in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", batches)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digest("test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digest("batches.meta")})
    return tmp_path / "source"


def offline(*args, **kwargs):
    raise urllib.error.URLError("no route to host")


def test_class_folders(folders):
    train, validation, test = (load(folders, s) for s in ("train", "validation", "test"))
    assert train.images.shape == (30, 3, 32, 32)
    assert validation.labels.bincount().tolist() == [1] * 10
    assert test.labels.tolist() == list(range(10))
    assert sorted(torch.cat([train.index, validation.index]).tolist()) == list(range(40))
    pixels = np.asarray(Image.open(folders / "cifar10" / "test" / "c" / "0.png"))
    assert np.array_equal(test.images[2].permute(1, 2, 0).numpy(), pixels)


def test_data_path_may_be_the_folder_itself(folders):
    inner = load(folders / "cifar10", "test")
    assert inner.fingerprint() == load(folders, "test").fingerprint()


def test_torchvision_layout(small_torchvision):
    train, validation, test = (load(small_torchvision, s) for s in ("train", "validation", "test"))
    assert train.labels.bincount().tolist() == [9] * 10
    assert validation.labels.bincount().tolist() == [1] * 10
    assert sorted(torch.cat([train.index, validation.index]).tolist()) == list(range(100))
    assert train.classes == NAMES
    source = np.concatenate([entry(20, number)["data"] for number in range(1, 6)])
    assert np.array_equal(validation.images.flatten(1).numpy(), source[validation.index.numpy()])
    assert np.array_equal(test.images.flatten(1).numpy(), entry(10, 6)["data"])
    assert test.images.is_contiguous()


def test_data_is_the_default_path(small_torchvision, monkeypatch):
    small_torchvision.rename(small_torchvision.with_name("data"))
    monkeypatch.chdir(small_torchvision.parent)
    assert len(load(None, "test", download=False)) == 10


def test_class_folders_take_precedence(small_torchvision):
    fill(small_torchvision / "cifar10" / "test", n=2)
    assert len(load(small_torchvision, "test")) == 20


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_foreign_pickle_is_never_opened(small_torchvision, tmp_path):
    folder = small_torchvision / CIFAR10.base_folder
    for name in ("test_batch", "data_batch_1"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        with pytest.raises(UserError, match=r"not intact.*downloading is off"):
            load(small_torchvision, "test", download=False)
    pickle.loads((folder / "test_batch").read_bytes())
    assert (tmp_path / "sprung").exists()  # the trap works; torchvision did not step in


def test_missing_data_is_downloaded(small_torchvision, tmp_path, monkeypatch, capsys):
    waits = []

    def download(url, root, **kwargs):
        waits.append(socket.getdefaulttimeout())
        print("progress")
        shutil.copytree(small_torchvision, root, dirs_exist_ok=True)

    monkeypatch.setattr(cifar, "download_and_extract_archive", download)
    assert len(load(tmp_path / "new", "test")) == 10
    assert len(load(tmp_path / "new", "train")) == 90
    assert len(waits) == 1
    assert waits[0] is not None
    assert socket.getdefaulttimeout() is None
    assert capsys.readouterr().out == ""


def test_a_failed_download_says_where_to_put_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "download_and_extract_archive", offline)
    with pytest.raises(UserError) as caught:
        load(tmp_path, "test", name="cifar100")
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert f"{tmp_path}/cifar100/{{train,test}}/<class>/*" in sentence
    assert f"{tmp_path}/{{train,test}}/<class>/*" in sentence
    assert f"{tmp_path}/cifar-100-python" in sentence
    assert "no route to host" in sentence
    assert "--data_path" in sentence
    assert socket.getdefaulttimeout() is None


def test_downloading_may_be_off(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("downloaded")

    monkeypatch.setattr(cifar, "download_and_extract_archive", never)
    with pytest.raises(UserError, match="downloading is off"):
        load(tmp_path, download=False)


def test_another_data_set_is_not_taken_for_cifar(folders):
    with pytest.raises(UserError, match="has 10 class folders where cifar100 has 100"):
        load(folders / "cifar10", name="cifar100")
    Image.new("RGB", (32, 33)).save(folders / "cifar10" / "test" / "a" / "0.png")
    with pytest.raises(UserError, match=r"0\.png is 32x33 where 32x32 is expected"):
        load(folders, "test")
    with pytest.raises(UserError, match="cifar10 images are 32x32"):
        load(folders, "test", image_size=64)


def test_data_path_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        load(tmp_path / "file")
