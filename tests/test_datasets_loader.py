"""Augmentation and the training loader."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import AUGMENTATIONS, Augmentation, Split, TrainLoader, prepared

NONE = Augmentation()


def noise_split(n: int, size: int = 8, first: int = 0) -> Split:
    stream = torch.Generator().manual_seed(1)
    images = torch.randint(1, 256, (n, 3, size, size), dtype=torch.uint8, generator=stream)
    return Split(images, torch.arange(n) % 3, torch.arange(first, first + n), ("a", "b", "c"))


def windows(image: torch.Tensor, size: int, mirror: bool) -> set[bytes]:
    """Every crop of this size, and its mirror image if asked."""
    places = range(image.shape[-1] - size + 1)
    crops = [image[:, i : i + size, j : j + size] for i in places for j in places]
    crops += [crop.flip(-1) for crop in crops] if mirror else []
    return {crop.contiguous().numpy().tobytes() for crop in crops}


def draws(name: str, size: int, image: torch.Tensor, n: int) -> set[bytes]:
    transform = AUGMENTATIONS[name](size, size).train
    assert transform is not None
    out = [transform(image) for _ in range(n)]
    assert all(o.shape == (3, size, size) and o.dtype == torch.uint8 for o in out)
    return {o.contiguous().numpy().tobytes() for o in out}


def test_crop_flip_draws_from_the_padded_windows():
    image = noise_split(1, 6).images[0]
    possible = windows(functional.pad(image, (4, 4, 4, 4)), 6, mirror=True)
    drawn = draws("crop_flip", 6, image, 400)
    assert drawn <= possible
    assert len(drawn) > 100  # of 162


def test_shift_draws_every_shift_and_no_mirror_image():
    image = noise_split(1, 8).images[0]
    possible = windows(functional.pad(image, (1, 1, 1, 1)), 8, mirror=False)
    assert draws("shift", 8, image, 200) == possible


def test_resize_crop_flip_draws_from_the_enlarged_windows():
    image = noise_split(1, 16).images[0]
    large = functional.interpolate(image[None].float(), (18, 18), mode="bilinear")[0]
    drawn = draws("resize_crop_flip", 16, image, 150)
    assert len(drawn) == 18  # 3 x 3 places, mirrored or not
    for data in drawn:
        crop = np.frombuffer(data, dtype=np.uint8).reshape(3, 16, 16).astype(np.float32)
        crops = [large[:, i : i + 16, j : j + 16] for i in range(3) for j in range(3)]
        near = [np.abs(c.numpy() - crop).max() for c in [*crops, *(c.flip(-1) for c in crops)]]
        assert min(near) <= 1.01  # one grey level, of rounding


def test_resize_crop_flip_is_evaluated_on_the_centre():
    split = noise_split(1030, 16)
    ready = prepared(split, AUGMENTATIONS["resize_crop_flip"](16, 16))
    large = functional.interpolate(split.images.float(), (18, 18), mode="bilinear")
    assert ready.images.dtype == torch.uint8
    assert (ready.images.float() - large[:, :, 1:17, 1:17]).abs().max() <= 1.01
    assert torch.equal(ready.index, split.index)


def test_imagenet_draws_parts():
    halves = torch.zeros(3, 16, 16, dtype=torch.uint8)
    halves[:, :, 8:] = 255
    means = {sum(data) for data in draws("imagenet", 16, halves, 50)}
    assert len(means) > 20


@pytest.mark.parametrize("name", ["none", "crop_flip", "shift", "imagenet"])
def test_without_evaluation_transform_a_split_is_itself(name):
    split = noise_split(3)
    assert prepared(split, AUGMENTATIONS[name](8, 8)) is split


def batches(loader: TrainLoader, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(loader.epoch(n))


def same(one, two) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True)
    )


def test_an_epoch_holds_every_sample_once():
    split = noise_split(23)
    epoch = batches(TrainLoader(split, 5, NONE, seed=0), 4)
    assert [len(y) for _, y in epoch] == [5, 5, 5, 5, 3]
    assert epoch[0][0].dtype == torch.float32
    seen = torch.cat([x for x, _ in epoch]).mul(255).round().to(torch.uint8)
    label_of = dict(zip(contents(split.images), split.labels.tolist(), strict=True))
    assert sorted(contents(seen)) == sorted(label_of)
    labels = torch.cat([y for _, y in epoch])
    assert [label_of[content] for content in contents(seen)] == labels.tolist()


def contents(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 1, [1, 1, 1]), (3, 9, [3])],
)
def test_a_single_sample_is_no_batch(n, batch_size, sizes):
    loader = TrainLoader(noise_split(n), batch_size, NONE, seed=0)
    assert [len(y) for _, y in loader.epoch(0)] == sizes
    assert len(loader) == len(sizes)


def test_the_one_left_out_changes():
    split = noise_split(9)
    loader = TrainLoader(split, 4, NONE, seed=0)
    missing = set()
    for n in range(20):
        seen = torch.cat([x for x, _ in loader.epoch(n)]).mul(255).round().to(torch.uint8)
        missing |= set(contents(split.images)) - set(contents(seen))
    assert len(missing) > 3


@pytest.mark.parametrize("name", ["none", "crop_flip"])
def test_workers_change_nothing(name):
    split, augmentation = noise_split(22), AUGMENTATIONS[name](8, 8)
    alone = TrainLoader(split, 4, augmentation, seed=3)
    helped = TrainLoader(split, 4, augmentation, seed=3, workers=2)
    assert len(helped) == len(alone) == 6
    for n in (0, 1, 5):
        assert same(batches(alone, n), batches(helped, n))
    next(iter(helped.epoch(6)))  # given up half-way
    assert same(batches(alone, 7), batches(helped, 7))


def test_epochs_and_seeds_differ_and_return():
    split, augmentation = noise_split(20), AUGMENTATIONS["crop_flip"](8, 8)
    loader = TrainLoader(split, 20, augmentation, seed=0)
    first, second = batches(loader, 0), batches(loader, 1)
    assert not torch.equal(first[0][1], second[0][1])
    assert not same(first, batches(TrainLoader(split, 20, augmentation, seed=1), 0))
    order = [batches(TrainLoader(split, 20, NONE, seed), 0)[0][0] for seed in (0, 1)]
    assert not torch.equal(*order)
    resumed = TrainLoader(split, 20, augmentation, seed=0)
    assert same(second, batches(resumed, 1))
    assert same(first, batches(resumed, 0))


def test_a_sample_s_augmentation_is_its_own():
    """It looks the same in whatever batch size and company, and other in another epoch."""
    split, augmentation = noise_split(20), AUGMENTATIONS["crop_flip"](8, 8)

    def looks(part: Split, batch_size: int, n: int) -> set[bytes]:
        loader = TrainLoader(part, batch_size, augmentation, seed=0)
        return {image.numpy().tobytes() for x, _ in loader.epoch(n) for image in x}

    whole = looks(split, 20, 2)
    assert looks(split, 6, 2) == whole
    assert looks(split.limit(8), 4, 2) < whole
    assert len(looks(split, 20, 3) & whole) < 5
    assert len(looks(noise_split(20, first=50), 20, 2) & whole) < 5  # the index counts, not the row


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_let_alone(workers):
    split, augmentation = noise_split(10), AUGMENTATIONS["crop_flip"](8, 8)
    loader = TrainLoader(split, 4, augmentation, seed=0, workers=workers)
    torch.manual_seed(1)
    reference = batches(loader, 0)
    loader = TrainLoader(split, 4, augmentation, seed=0, workers=workers)
    torch.manual_seed(2)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert same(batches(loader, 0), reference)
    for _ in loader.epoch(1):
        assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_wrong_use():
    with pytest.raises(UserError, match="batch size must be at least 1, not 0"):
        TrainLoader(noise_split(3), 0, NONE, seed=0)
    with pytest.raises(UserError, match="workers must be at least 0"):
        TrainLoader(noise_split(3), 2, NONE, seed=0, workers=-1)
    with pytest.raises(UserError, match=r"too few samples \(1\): train on 2"):
        TrainLoader(noise_split(1), 2, NONE, seed=0)
