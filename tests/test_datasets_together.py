"""Augmentation that moves masks and boxes along with their images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from robustbench_gpm.datasets import AUGMENTATIONS, Split, TrainLoader
from robustbench_gpm.datasets.together import augmented
from robustbench_gpm.masks import VOID

SIDE = 16


def painted() -> tuple[Tensor, Tensor, Tensor]:
    """An image whose mask can be told from its colours, and a box around its bright part."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[3:9, 2:12] = 1
    mask[12:, :4] = VOID
    image = torch.where(mask == VOID, 90, 200 * mask)[None].to(torch.uint8)
    boxes = torch.tensor([[2.0, 3, 12, 9, 4], [-1, -1, -1, -1, -1]])
    return image, mask, boxes


def bounds(bright: Tensor) -> list[float]:
    rows, columns = bright.nonzero(as_tuple=True)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [float(edge) for edge in edges]


def test_masks_show_what_the_image_shows() -> None:
    image, mask, _ = painted()
    transform = AUGMENTATIONS["zoom_flip"](SIDE, SIDE).train
    assert transform is not None
    for seed in range(20):
        torch.manual_seed(seed)
        seen, moved = augmented(transform, image, mask)
        assert seen.shape == image.shape
        assert moved.dtype == torch.uint8
        assert set(moved.unique().tolist()) <= {0, 1, VOID}
        bright = seen[0] > 145
        assert float((bright == (moved == 1)).float().mean()) > 0.85


def test_boxes_frame_what_the_image_shows() -> None:
    image, _, boxes = painted()
    for transform in (v2.RandomHorizontalFlip(1.0), v2.Pad([3, 1, 0, 0]), v2.CenterCrop(12)):
        seen, moved = augmented(transform, image, boxes)
        assert moved[0].tolist() == [*bounds(seen[0] > 145), 4.0]
        assert moved[1].tolist() == [-1.0] * 5


def test_a_box_that_is_cut_off_is_no_label() -> None:
    image, _, boxes = painted()
    boxes[1] = torch.tensor([14.0, 14, 16, 16, 2])
    _, moved = augmented(v2.CenterCrop(10), image, boxes)
    assert moved[:, 4].tolist() == [4.0, -1.0]
    ignored = boxes.clone()
    ignored[0, 4] = -6
    _, moved = augmented(v2.RandomHorizontalFlip(1.0), image, ignored)
    assert sorted(moved[:, 4].tolist()) == [-6.0, 2.0]


def test_the_loader_s_labels_follow_and_repeat() -> None:
    image, mask, boxes = painted()
    for label, kind in ((mask, torch.int64), (boxes, torch.float32)):
        split = Split(image.repeat(6, 1, 1, 1), torch.stack([label] * 6), torch.arange(6), ("a",))
        augmentation = AUGMENTATIONS["flip"](SIDE, SIDE)
        first, again = (
            [(x, y) for x, y in TrainLoader(split, 3, augmentation, 0).epoch(1)] for _ in range(2)
        )
        turned = 0
        for (x, y), (same_x, same_y) in zip(first, again, strict=True):
            assert torch.equal(x, same_x)
            assert torch.equal(y, same_y)
            assert y.dtype == kind
            for seen, labels in zip(x, y, strict=True):
                bright = seen[0] > 145 / 255
                if kind == torch.int64:
                    assert torch.equal(bright, labels == 1)
                else:
                    assert labels[0, :4].tolist() == bounds(bright)
                turned += bounds(bright)[0] != 2.0
        assert 0 < turned < 6
