"""Mixup, CutMix, soft labels, RandAugment and erasing: what they make, and that they repeat."""

from __future__ import annotations

import pytest
import torch
from test_datasets_loader import noise_split
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import AUGMENTATIONS, Augmentation, Distortions, Mixing, TrainLoader

CLASSES = 3


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    return noise_split(n).batch(torch.arange(n))


def one_hot(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y, CLASSES).float()


def test_label_smoothing_is_torchs() -> None:
    x, y = batch()
    images, shares = Mixing(label_smoothing=0.1)(x, y, CLASSES)
    assert torch.equal(images, x)
    logits = torch.randn(len(y), CLASSES)
    torch.testing.assert_close(
        nn.functional.cross_entropy(logits, shares),
        nn.functional.cross_entropy(logits, y, label_smoothing=0.1),
    )


def test_mixup_mixes_images_and_labels_by_the_same_share() -> None:
    x, y = batch()
    torch.manual_seed(0)
    images, shares = Mixing(mixup=0.8)(x, y, CLASSES)
    other = x.roll(1, 0)
    own = ((images - other) / (x - other))[(x - other).abs() > 0.1]
    share = float(own.median())
    assert 0 < share < 1
    torch.testing.assert_close(own, torch.full_like(own, share), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shares, share * one_hot(y) + (1 - share) * one_hot(y.roll(1)))


def test_cutmix_pastes_a_box_of_the_labels_share() -> None:
    x, y = batch()
    boxes = 0
    for seed in range(8):
        torch.manual_seed(seed)
        images, shares = Mixing(cutmix=1.0)(x, y, CLASSES)
        pasted = (images != x).any(1)
        assert torch.equal(images, torch.where(pasted[:, None], x.roll(1, 0), x))
        area = pasted.float().mean((1, 2))
        expected = (1 - area[:, None]) * one_hot(y) + area[:, None] * one_hot(y.roll(1))
        torch.testing.assert_close(shares, expected)
        boxes += bool(pasted.any())
    assert boxes > 3


def test_of_two_mixers_either_is_taken() -> None:
    x, y = batch()
    blended = []
    for seed in range(12):
        torch.manual_seed(seed)
        images, _ = Mixing(mixup=1.0, cutmix=1.0)(x, y, CLASSES)
        blended.append(bool(((images != x) & (images != x.roll(1, 0))).any()))
    assert len(set(blended)) == 2


def test_batches_repeat_whatever_makes_them() -> None:
    split = noise_split(20)
    augmentation = Distortions(randaugment=9, random_erasing=0.5).after(
        AUGMENTATIONS["shift"](8, 8)
    )
    mixing = Mixing(mixup=0.8, cutmix=1.0, label_smoothing=0.1)

    def batches(seed: int, epoch: int, workers: int = 0) -> list[tuple[Tensor, Tensor]]:
        loader = TrainLoader(split, 8, augmentation, seed, workers, mixing)
        return [(x.clone(), y.clone()) for x, y in loader.epoch(epoch)]

    def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
        pairs = zip(one, other, strict=True)
        return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = batches(0, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(first, batches(0, 3))
    assert same(first, batches(0, 3, workers=1))
    assert not same(first, batches(0, 4))
    assert not same(first, batches(1, 3))
    for x, y in first:
        assert y.shape == (len(x), CLASSES)
        assert 0 <= float(x.min()) <= float(x.max()) <= 1
        torch.testing.assert_close(y.sum(1), torch.ones(len(y)))


def test_nothing_asked_leaves_labels_and_augmentation_as_they_are() -> None:
    plain = Augmentation()
    assert Distortions().after(plain) is plain
    assert not Mixing().soft
    ((_, y),) = TrainLoader(noise_split(6), 6, plain, 0).epoch(0)
    assert y.dtype == torch.int64


def test_erasing_puts_noise_in_a_rectangle_of_its_share() -> None:
    image = torch.full((3, 32, 32), 7, dtype=torch.uint8)
    erase = Distortions(random_erasing=1.0).after(Augmentation()).train
    assert erase is not None
    torch.manual_seed(0)
    for _ in range(20):
        erased = erase(image)
        rows, columns = (erased != image).any(0).nonzero(as_tuple=True)
        height, width = (int(r.max() - r.min()) + 1 for r in (rows, columns))
        assert 0.01 < height * width / 32**2 < 0.36
        inside = (erased != image).any(0)[rows.min() : rows.max() + 1]
        assert float(inside[:, columns.min() : columns.max() + 1].float().mean()) > 0.97
        assert len(erased.unique()) > 20
    never = Distortions(random_erasing=0.2).after(Augmentation()).train
    assert never is not None
    share = sum(bool((never(image) != image).any()) for _ in range(200)) / 200
    assert 0.1 < share < 0.32


def test_randaugment_distorts_by_its_magnitude() -> None:
    image = noise_split(1, 16).images[0]

    def distorted(magnitude: float) -> float:
        torch.manual_seed(0)
        transform = Distortions(randaugment=magnitude).after(Augmentation()).train
        assert transform is not None
        moved = [(transform(image).float() - image).abs().mean() for _ in range(150)]
        untouched = sum(float(m) == 0 for m in moved) / 150
        assert 0.15 < untouched < 0.6  # a quarter, and where nothing much happens
        return float(torch.stack(moved).mean())

    assert distorted(2) < distorted(9)


@pytest.mark.parametrize(
    ("kind", "flag", "value"),
    [
        (Mixing, "mixup", -1.0),
        (Mixing, "label_smoothing", 1.5),
        (Distortions, "randaugment", 11.0),
        (Distortions, "random_erasing", 2.0),
    ],
)
def test_numbers_out_of_range_are_told(kind: type, flag: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{flag} must be"):
        kind(**{flag: value})
