"""Splits, orders and partings, and the digits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import AUGMENTATIONS, DATASETS, LoadOptions, Split, load_split
from robustbench_gpm.datasets.shuffle import fixed_order, hold_out, scramble

OPTIONS = LoadOptions(None, Path("unused"))


def some_split(n: int, first: int = 0) -> Split:
    index = torch.arange(first, first + n)
    images = (index[:, None, None, None] % 256).expand(n, 2, 3, 3).to(torch.uint8)
    return Split(images, index * 7 % 5, index, ("a", "b", "c", "d", "e"))


def test_scramble_is_splitmix64():
    # The first outputs of the authors' reference program for the seed 0.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert scramble(torch.arange(3)).tolist() == known


@given(st.integers(0, 2**40), st.lists(st.integers(-(2**63), 2**63), max_size=3))
def test_scramble_reads_places_not_rows(first, keys):
    places = torch.arange(first, first + 20)
    assert scramble(places, *keys)[7:].tolist() == scramble(places[7:], *keys).tolist()


def test_keys_give_other_orders():
    places = torch.arange(200)
    orders = {tuple(fixed_order(places, *k).tolist()) for k in [(), (0,), (1,), (0, 1), (1, 0)]}
    assert len(orders) == 5
    assert all(sorted(order) == places.tolist() for order in orders)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.floats(0, 0.99))
def test_hold_out_takes_its_share_of_each_class(labels, share):
    labels = torch.tensor(labels)
    held = hold_out(labels, share)
    assert torch.equal(held, hold_out(labels, share))
    for label in labels.unique():
        size = int((labels == label).sum())
        taken = int(held[labels == label].sum())
        assert taken < size
        if share > 0 and size > 1:
            assert taken >= 1
            assert abs(taken - share * size) <= 1
        else:
            assert taken == 0


def test_hold_out_is_no_block_of_the_order():
    rows = hold_out(torch.zeros(1000, dtype=torch.int64), 0.1).nonzero().flatten()
    assert len(rows) == 100
    assert 400 < rows.float().mean() < 600
    assert rows.diff().max() > 12  # not every tenth either


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_limit_is_a_prefix(a, b):
    a, b = sorted((a, b))
    small, large = some_split(50, 100).limit(a), some_split(50, 100).limit(b)
    assert len(small) == min(a, 50)
    assert torch.equal(small.index, large.index[:a])
    assert torch.equal(small.images, large.images[:a])
    assert torch.equal(small.images[:, 0, 0, 0].long(), small.index % 256)
    assert torch.equal(small.labels, small.index * 7 % 5)
    assert torch.equal(large.limit(a).index, small.index)


def test_limit_mixes_the_classes():
    labels = torch.arange(10).repeat_interleave(100)
    split = Split(torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), labels, torch.arange(1000), ())
    assert len(split.limit(100).labels.unique()) == 10
    assert not torch.equal(split.limit(1000).index, split.index)


def test_limit_of_nothing():
    with pytest.raises(UserError, match="a limit of 0 samples"):
        some_split(3).limit(0)


def test_fingerprint_sees_everything():
    split = some_split(3000)
    images, labels, index = (t.clone() for t in (split.images, split.labels, split.index))
    assert replace(split, images=images).fingerprint() == split.fingerprint()
    images[2999, 1, 2, 2] ^= 1
    labels[1500] += 1
    index[1500] += 1
    others = [
        replace(split, images=images),
        replace(split, labels=labels),
        replace(split, index=index),
        replace(split, classes=("a", "b", "c", "d", "f")),
        replace(split, images=split.images.reshape(3000, 3, 2, 3)),
        split.limit(3000),
    ]
    prints = {split.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(prints) == 7
    assert all(len(p) == 16 and int(p, 16) >= 0 for p in prints)


def test_batch_is_bytes_over_255():
    split = some_split(300)
    for rows in (slice(10, 14), torch.tensor([299, 0, 7])):
        x, y = split.batch(rows)
        assert x.dtype == torch.float32
        expected = split.images[rows].numpy().astype(np.float32) / np.float32(255)
        assert np.array_equal(x.numpy(), expected)
        assert torch.equal(y, split.labels[rows])
    assert split.images.dtype == torch.uint8


def test_a_split_is_consistent():
    with pytest.raises(ValueError, match="length"):
        replace(some_split(3), labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="uint8"):
        replace(some_split(3), images=torch.zeros(3, 1, 2, 2))


def test_digits_are_parted_without_leakage():
    parts = {name: load_split("digits", name, OPTIONS) for name in ("train", "validation", "test")}
    sizes = {name: len(part) for name, part in parts.items()}
    assert abs(sizes["train"] - 1197) <= 5
    assert abs(sizes["validation"] - 200) <= 5
    index = torch.cat([part.index for part in parts.values()])
    assert sorted(index.tolist()) == list(range(1797))
    images = torch.cat([part.images for part in parts.values()])
    assert len(torch.unique(images.flatten(1), dim=0)) == 1797
    whole = torch.from_numpy(load_digits().target).bincount() / 1797
    for part in parts.values():
        assert (part.labels.bincount() - whole * len(part)).abs().max() <= 1


def test_digits_are_those_of_the_source():
    split, source = load_split("digits", "test", OPTIONS), load_digits()
    assert split.images.shape[1:] == (1, 8, 8)
    assert split.images.max() == 255
    back = (split.images[:, 0].float() * 16 / 255).round()
    assert np.array_equal(back.numpy(), source.images[split.index.numpy()])
    assert np.array_equal(split.labels.numpy(), source.target[split.index.numpy()])
    assert split.classes == tuple("0123456789")


def test_digits_do_not_depend_on_options():
    other = LoadOptions(Path("nowhere"), Path("unused"), validation_share=0.5)
    one, two = (load_split("digits", "validation", o) for o in (OPTIONS, other))
    assert one.fingerprint() == two.fingerprint()
    x, _ = load_split("digits", "train", OPTIONS).batch(slice(None))
    spec = DATASETS["digits"]
    assert abs(x.mean() - spec.mean[0]) < 1e-3
    assert abs(x.std() - spec.std[0]) < 1e-3


@pytest.mark.parametrize("spec", DATASETS.values(), ids=lambda spec: spec.name)
def test_every_data_set_is_described(spec):
    assert DATASETS[spec.name] is spec
    assert spec.recipe.augment in AUGMENTATIONS
    assert len(spec.mean) == len(spec.std)
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    assert all(0 < milestone < spec.recipe.epochs for milestone in spec.recipe.milestones)
    assert bool(spec.recipe.milestones) == (spec.recipe.schedule == "multistep")


def test_wrong_names_and_values():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_split("cifar-10", "train", OPTIONS)
    with pytest.raises(UserError, match="unknown split 'val'"):
        load_split("digits", "val", OPTIONS)
    with pytest.raises(UserError, match="validation share"):
        LoadOptions(None, Path(), validation_share=1.0)
    with pytest.raises(UserError, match="at least 1 pixel"):
        LoadOptions(None, Path(), image_size=0)
    with pytest.raises(UserError, match="digits images are 8x8"):
        load_split("digits", "train", LoadOptions(None, Path(), image_size=32))
