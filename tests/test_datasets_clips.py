"""Clips in class folders: frames and videos, layouts, evenly spaced frames, cache, complaints."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, Split, clip_decode
from robustbench_gpm.datasets.clip_files import evenly, list_clips
from robustbench_gpm.datasets.clips import load as load_clips
from robustbench_gpm.datasets.decode import decode

SIDE = 12


def picture(level: int, red: int = 0) -> Image.Image:
    pixels = np.full((SIDE, SIDE, 3), level, dtype=np.uint8)
    pixels[..., 0] = red
    return Image.fromarray(pixels)


def frames(folder: Path, count: int, clip: int = 0) -> None:
    """A folder of PNGs, not padded with zeros: frame t is `10 t` bright, its red the clip's."""
    folder.mkdir(parents=True)
    for t in range(count):
        picture(10 * t, clip).save(folder / f"frame{t}.png")


def fill(folder: Path, classes=("run", "sit"), n=3, count=12, first=0) -> None:
    for label, name in enumerate(classes):
        for i in range(n):
            frames(folder / name / f"clip{i}", count, first + 100 * label + i)


def load(root: Path, split="train", length=4, size=SIDE, **more) -> Split:
    options = LoadOptions(root, root.parent / "kept", image_size=size, frames=length, **more)
    return load_clips(options, split)


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "data" / "train", n=10)
    fill(tmp_path / "data" / "test", n=2, first=50)
    return tmp_path / "data"


def test_evenly():
    assert evenly(12, 4) == [1, 4, 7, 10]
    assert evenly(5, 5) == [0, 1, 2, 3, 4]
    assert evenly(9, 1) == [4]
    for count in range(1, 40):
        for wanted in range(1, count + 1):
            places = evenly(count, wanted)
            assert len(set(places)) == wanted
            assert places[0] == (count // (2 * wanted))
            assert places[-1] < count
            steps = np.diff(places)
            assert wanted == 1 or steps.max() - steps.min() <= 1


def test_frames_lie_one_after_another(root):
    split = load(root, "test")
    assert split.classes == ("run", "sit")
    assert split.labels.tolist() == [0, 0, 1, 1]
    assert split.images.shape == (4, 12, SIDE, SIDE)
    clips = split.images.view(4, 4, 3, SIDE, SIDE)
    assert (clips[:, :, 0] == torch.tensor([50, 51, 150, 151]).view(4, 1, 1, 1)).all()
    # Frames 1, 4, 7 and 10 of 12: 10 comes after 9 and not after 1.
    assert (clips[:, :, 1:] == torch.tensor([10, 40, 70, 100]).view(1, 4, 1, 1, 1)).all()


def test_frames_are_resized_and_cut_as_images_are(tmp_path):
    folder = tmp_path / "data" / "train"
    for name in ("run", "sit"):
        (folder / name / "clip").mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name / "clip" / "0.png")
    split = load(tmp_path / "data", "train", length=1, size=8, validation_share=0.0)
    expected = decode(folder / "run" / "clip" / "0.png", 8, True)
    assert np.array_equal(split.images[0].numpy(), expected)


def test_validation_holds_out_whole_clips(root):
    train, validation = load(root, "train"), load(root, "validation", validation_share=0.3)
    assert train.labels.bincount().tolist() == [9, 9]
    assert validation.labels.bincount().tolist() == [3, 3]
    rest = load(root, "train", validation_share=0.3)
    reds = [split.images[:, 0, 0, 0].tolist() for split in (rest, validation)]
    assert sorted(reds[0] + reds[1]) == [*range(10), *range(100, 110)]
    assert sorted(rest.index.tolist() + validation.index.tolist()) == list(range(20))


def test_val_is_the_test_split_where_there_is_no_test(root):
    (root / "test").rename(root / "val")
    assert len(load(root, "test")) == 4
    assert len(load(root, "validation")) == 2
    fill(root / "test", n=1)
    assert len(load(root, "validation")) == 4
    assert len(load(root, "train")) == 20


def test_class_folders_alone_are_parted(root):
    splits = [load(root / "train", name) for name in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [14, 2, 4]
    assert sorted(i for split in splits for i in split.index.tolist()) == list(range(20))


def test_decoded_once_and_again_when_something_changed(root, monkeypatch):
    first = load(root, "test")
    opened = clip_decode.open_rgb
    monkeypatch.setattr(clip_decode, "open_rgb", lambda *_: pytest.fail("decoded again"))
    again = load(root, "test")
    assert torch.equal(first.images, again.images)
    monkeypatch.setattr(clip_decode, "open_rgb", opened)
    assert not torch.equal(load(root, "test", length=3).images[:, :6], first.images[:, :6])
    picture(200).save(root / "test" / "run" / "clip0" / "frame4.png")
    changed = load(root, "test").images[0]
    assert (changed[4:6] == 200).all()
    assert torch.equal(changed[6:], first.images[0, 6:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: shutil.rmtree(r / "test"), "has no test folder beside train"),
        (lambda r: shutil.rmtree(r / "test" / "sit"), "holds one class folder only"),
        (lambda r: [shutil.rmtree(p) for p in (r / "test" / "sit").iterdir()], "holds no clips"),
        (lambda r: (r / "test/sit/clip1/frame3.png").unlink(), r"clip1 has 11 frames, and 12 are"),
        (lambda r: (r / "test/sit/clip1/frame3.png").write_text("x"), r"image .*clip1/frame3.png"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(root, spoil, message):
    spoil(root)
    with pytest.raises(UserError, match=message):
        load(root, "test", length=12)


def test_no_folder_and_no_frames(tmp_path):
    with pytest.raises(UserError, match="--data_path .* does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="clips needs the folder"):
        load_clips(LoadOptions(None, tmp_path), "train")
    with pytest.raises(UserError, match="at least one frame"):
        load(tmp_path, length=0)


def ucf(root: Path) -> None:
    """Eight groups of two clips in two classes; two groups of each are test."""
    lists = {"train": [], "test": []}
    for name in ("Archery", "Bowling"):
        (root / "UCF-101" / name).mkdir(parents=True)
        for group in range(1, 9):
            for clip in (1, 2):
                file = f"{name}/v_{name}_g{group:02}_c{clip:02}.avi"
                (root / "UCF-101" / file).write_bytes(b"")
                lists["test" if group < 3 else "train"].append(file)
    (root / "ucfTrainTestlist").mkdir()
    lists["train"] = [f"{file} 1" for file in lists["train"]]
    for split, lines in lists.items():
        path = root / "ucfTrainTestlist" / f"{split}list01.txt"
        path.write_text("\r\n".join(lines) + "\n")


def test_ucf101_as_published(tmp_path):
    ucf(tmp_path)
    test = list_clips(tmp_path, "test", 0.3, 4)
    assert test.classes == ("Archery", "Bowling")
    assert test.labels.tolist() == [0] * 4 + [1] * 4
    assert all(clip.video and "_g0" in clip.path for clip in test.clips)
    parts = [list_clips(tmp_path, name, 0.3, 4) for name in ("train", "validation")]
    assert [len(part.clips) for part in parts] == [16, 8]
    groups = [{Path(clip.path).stem[:-4] for clip in part.clips} for part in parts]
    assert not groups[0] & groups[1]
    assert sorted(i for part in parts for i in part.index.tolist()) == list(range(24))
    (tmp_path / "UCF-101" / "Bowling" / "v_Bowling_g01_c01.avi").unlink()
    with pytest.raises(UserError, match=r"v_Bowling_g01_c01.avi .*not complete"):
        list_clips(tmp_path, "test", 0.3, 4)
    (tmp_path / "ucfTrainTestlist" / "testlist01.txt").write_text("Chess/v_Chess_g01_c01.avi")
    with pytest.raises(UserError, match="no class folder 'Chess'"):
        list_clips(tmp_path, "test", 0.3, 4)
    (tmp_path / "ucfTrainTestlist" / "testlist01.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*testlist01.txt"):
        list_clips(tmp_path, "test", 0.3, 4)


# Videos: what PyAV writes, it must read.


def film(path: Path, count: int, codec: str = "mpeg4", size=(64, 48)) -> None:
    """A video whose frame t is `6 t` bright all over, but for black bars that are cut off."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for t in range(count):
            pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
            pixels[:, 8:56] = 6 * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("suffix", "codec"), [("avi", "mpeg4"), ("mp4", "libx264"), ("webm", "libvpx-vp9")]
)
def test_videos_give_evenly_spaced_frames(tmp_path, suffix, codec):
    for name, count in (("run", 40), ("sit", 23)):
        film(tmp_path / "data" / "train" / name / f"clip.{suffix}", count, codec)
    split = load(tmp_path / "data", "train", length=5, validation_share=0.0)
    assert split.images.shape == (2, 15, SIDE, SIDE)
    levels = split.images[:, :, 2:-2, 2:-2].float().mean((2, 3)).view(2, 5, 3)
    for found, count in zip(levels, (40, 23), strict=True):
        expected = 6.0 * torch.tensor(evenly(count, 5)).view(5, 1)
        assert (found - expected).abs().max() < 3  # half a frame


def test_a_head_that_lies_about_the_length_does_no_harm(tmp_path, monkeypatch):
    film(tmp_path / "clip.avi", 30)
    honest = clip_decode._video_frames(str(tmp_path / "clip.avi"), 5, SIDE)
    for said in (0, 4, 29, 31, 500):
        monkeypatch.setattr(clip_decode, "_announced", lambda _, said=said: said)
        found = clip_decode._video_frames(str(tmp_path / "clip.avi"), 5, SIDE)
        assert all(np.array_equal(one, other) for one, other in zip(honest, found, strict=True))


def test_bad_videos_are_told_by_name(tmp_path):
    folder = tmp_path / "data" / "train"
    film(folder / "run" / "good.mp4", 9)
    film(folder / "sit" / "bad.mp4", 9)
    with pytest.raises(UserError, match=r"run/good.mp4 has 9 frames, and 10 are asked for"):
        load(tmp_path / "data", "train", length=10)
    bad = folder / "sit" / "bad.mp4"
    bad.write_bytes(bad.read_bytes()[:600])
    with pytest.raises(UserError, match=r"cannot read the video .*bad.mp4 .*mend or remove it"):
        load(tmp_path / "data", "train", validation_share=0.0)
    assert not list((tmp_path / "kept").glob("*"))
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the video .*bad.mp4"):
        load(tmp_path / "data", "train", validation_share=0.0)


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(clip_decode.importlib, "import_module", missing)
    for name in ("run", "sit"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        (tmp_path / "data" / "train" / name / "clip.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pip install 'robustbench_gpm\[video\]'"):
        load(tmp_path / "data", "train", validation_share=0.0)
