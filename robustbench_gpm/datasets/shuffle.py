"""Orders and partings that never change: hashes of a sample's place, not a generator's state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# What a hash is for; two uses of the same places must not share an order.
HOLD_OUT, LIMIT, EPOCH, AUGMENT, MIX = range(5)
SCENE, MOVE = 101, 102  # of what is drawn, not of its order

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def scramble(places: Tensor, *keys: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each place (N,), other for other keys; different places never collide.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) read at the given places: the same numbers on
    every machine and under every version of every library.
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mixed(state + np.array([key % 2**64], dtype=np.uint64) + _GOLDEN)
    counted = places.cpu().numpy().astype(np.uint64)
    return _mixed(state + (counted + np.uint64(1)) * _GOLDEN)


def fixed_order(places: Tensor, *keys: int) -> Tensor:
    """Rows (N,) of `places` in a shuffled order that the places and the keys alone decide."""
    return torch.from_numpy(np.argsort(scramble(places, *keys), kind="stable"))


def hold_out(labels: Tensor, share: float) -> Tensor:
    """Which samples to hold out: a mask (N,), the same share of each class.

    Depends on the order of the samples alone, never on a training seed. With a share above 0, a
    class of two or more images gives at least one and keeps at least one.
    """
    if share == 0:
        return torch.zeros(len(labels), dtype=torch.bool)
    keys = scramble(torch.arange(len(labels)), HOLD_OUT)
    order = np.lexsort((keys, labels.numpy()))  # class by class, shuffled within each
    _, starts, sizes = np.unique(labels.numpy()[order], return_index=True, return_counts=True)
    counts = np.minimum(np.maximum(1, np.rint(share * sizes)), sizes - 1)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    held = np.zeros(len(labels), dtype=np.bool_)
    held[order[rank < np.repeat(counts, sizes)]] = True
    return torch.from_numpy(held)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _FACTORS[0]
    state = (state ^ (state >> np.uint64(27))) * _FACTORS[1]
    mixed: npt.NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
