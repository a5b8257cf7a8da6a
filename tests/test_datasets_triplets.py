"""CholecT45's layout: clips that end at the labelled frame, folds, held-out videos, complaints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, Split
from robustbench_gpm.datasets.triplets import CHOLECT45, TEST_FOLD, load

SIDE = 8
VIDEOS = {1: 5, 2: 4, 4: 6, 5: 3, 111: 2}  # number, labelled frames; 2 is of the test fold


def hot(video: int, frame: int) -> list[int]:
    return [int((number + video * frame) % 7 == 0) for number in range(100)]


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "CholecT45"
    (root / "triplet").mkdir(parents=True)
    for video, count in VIDEOS.items():
        folder = root / "data" / f"VID{video:02}"
        folder.mkdir(parents=True)
        lines = []
        for frame in range(count):
            pixels = np.full((SIDE, 14, 3), 20 * frame, dtype=np.uint8)
            pixels[..., 0] = video
            Image.fromarray(pixels).save(folder / f"{frame:06}.png")
            lines.append(",".join(map(str, [frame, *hot(video, frame)])))
        (root / "triplet" / f"VID{video:02}.txt").write_text("\n".join(lines) + "\n")
    return root


def at(root: Path, split: str, frames: int = 3, share: float = 0.3) -> Split:
    options = LoadOptions(root, root.parent / "kept", SIDE, frames, share)
    return load(options, split)


def test_a_clip_ends_at_its_labelled_frame(root):
    split = at(root, "test")
    assert split.images.shape == (4, 9, SIDE, SIDE)
    clips = split.images.view(4, 3, 3, SIDE, SIDE)
    assert (clips[:, :, 0] == 2).all()
    times = clips[:, :, 1, 0, 0] // 20
    assert times.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert split.labels.dtype == torch.float32
    assert torch.equal(split.labels, torch.tensor([hot(2, t) for t in range(4)]).float())
    assert len(split.classes) == 100
    batch, labels = split.batch(torch.tensor([1, 3]))
    assert batch.shape == (2, 9, SIDE, SIDE)
    assert labels.shape == (2, 100)


def test_whole_videos_are_held_out(root):
    splits = [at(root, name) for name in ("train", "validation", "test")]
    videos = [set(split.images[:, 0, 0, 0].tolist()) for split in splits]
    assert videos[2] == {2}
    assert len(videos[1]) == 1
    assert videos[0] | videos[1] == {1, 4, 5, 111}
    assert not videos[0] & videos[1]
    places = [i for split in splits for i in split.index.tolist()]
    assert sorted(places) == list(range(sum(VIDEOS.values())))
    for split in splits:
        for clip, label in zip(split.images, split.labels, strict=True):
            expected = hot(int(clip[0, 0, 0]), int(clip[-1, 0, 0]) // 20)
            assert label.tolist() == expected


def test_the_published_test_fold():
    assert len(TEST_FOLD) == 9
    assert sum(TEST_FOLD) == 79 + 2 + 51 + 6 + 25 + 14 + 66 + 23 + 50
    assert CHOLECT45.name == "cholect45"


def test_triplets_are_named_where_their_names_are_there(root):
    assert at(root, "test").classes[7] == "triplet 7"
    (root / "dict").mkdir()
    names = [f"{number}:tool{number},cut,organ" for number in range(100)]
    (root / "dict" / "triplet.txt").write_text("\n".join(names))
    assert at(root, "test").classes[42] == "tool42,cut,organ"
    (root / "dict" / "triplet.txt").write_text("\n".join(names[:-1]))
    with pytest.raises(UserError, match="does not name triplet '99'"):
        at(root, "test")


def test_what_is_wrong_is_told_with_its_place(root):
    with pytest.raises(UserError, match="no videos for the validation split"):
        at(root, "validation", share=0.0)
    (root / "data" / "VID02" / "000002.png").unlink()
    with pytest.raises(UserError, match=r"VID02/000002.png .*not complete"):
        at(root, "test")
    labels = root / "triplet" / "VID02.txt"
    whole = labels.read_text()
    spoilt = ("", whole[:-3], whole.replace(",0", ",2", 1), whole.replace("1", "x"), "0,1\n")
    for wrong in spoilt:
        labels.write_text(wrong)
        with pytest.raises(UserError, match=r"VID02.txt is not a label file of CholecT45"):
            at(root, "test")
    for path in (root / "triplet").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no labels of CholecT45"):
        at(root, "test")
