"""Moving digits: each clip is the digit moved as its class says, and nothing else decides it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, Split, digits
from robustbench_gpm.datasets.moving_digits import (
    DIRECTIONS,
    FRAMES,
    MOVING_DIGITS,
    NOISE,
    SIDE,
    load,
)

OPTIONS = LoadOptions(None, Path("unused"))
NAMES = ("train", "validation", "test")


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return {name: load(OPTIONS, name) for name in NAMES}


def test_each_clip_is_its_digit_on_its_way(splits):
    """Of all ways in all directions, the clip shows one alone, and that is its class."""
    steps = {
        (speed * right, speed * down): label
        for label, (right, down) in enumerate(DIRECTIONS.values())
        for speed in (1, 2)
    }
    for name, split in splits.items():
        source = digits.load(OPTIONS, name)
        assert torch.equal(split.index, source.index)
        seen = set()
        for row in range(0, len(split), 10):
            canvas = torch.zeros(SIDE, SIDE, dtype=torch.int64)
            canvas[:8, :8] = source.images[row, 0]
            shifts = [places(frame, canvas) for frame in split.images[row].long()]
            ways = [
                (step, (top, left))
                for top, left in shifts[0]
                for step in steps
                if all(
                    ((top + t * step[1]) % SIDE, (left + t * step[0]) % SIDE) in shifts[t]
                    for t in range(FRAMES)
                )
            ]
            assert {steps[step] for step, _ in ways} == {int(split.labels[row])}
            seen.add(ways[0])
        assert len({step for step, _ in seen}) > 8
        assert len({start for _, start in seen}) > 10


def places(frame: torch.Tensor, canvas: torch.Tensor) -> set[tuple[int, int]]:
    """Where the canvas, rolled there, is what the frame shows but for its noise."""
    shown = torch.stack([canvas.roll((i, j), (0, 1)) for i in range(SIDE) for j in range(SIDE)])
    fits = (frame >= shown) & (frame <= (shown + NOISE - 1).clamp(max=255))
    return {divmod(int(k), SIDE) for k in fits.flatten(1).all(1).nonzero()}


def test_splits_are_those_of_the_digits(splits):
    assert [len(splits[name]) for name in NAMES] == [1197, 199, 401]
    places = torch.cat([split.index for split in splits.values()])
    assert len(places.unique()) == 1797
    for split in splits.values():
        assert split.images.shape[1:] == (FRAMES, SIDE, SIDE)
        counts = split.labels.bincount(minlength=8) / len(split)
        assert (counts > 0.06).all()
        assert (counts < 0.19).all()


def independent(one: torch.Tensor, other: torch.Tensor, worst: float) -> bool:
    """Whether chi-square of two lists of classes is below its 0.1 % point."""
    table = torch.zeros(int(one.max()) + 1, int(other.max()) + 1)
    table.index_put_((one, other), torch.tensor(1.0), accumulate=True)
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    return float(((table - expected).square() / expected).sum()) < worst


def test_neither_the_digit_nor_any_one_frame_tells_the_class(splits):
    train = splits["train"]
    assert independent(digits.load(OPTIONS, "train").labels, train.labels, 103.4)  # 63 freedoms
    for t in (0, 2, FRAMES - 1):
        bright = train.images[:, t].float()
        quarter = (
            torch.stack([bright[:, i::4].sum((1, 2)) for i in range(4)], 1).argmax(1),
            bright.view(-1, 2, 10, 2, 10).sum((2, 4)).flatten(1).argmax(1),
        )
        for place in quarter:
            assert independent(place, train.labels, 46.8)  # 21 degrees of freedom


def test_the_same_every_time_and_nothing_global_is_touched(splits):
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert load(OPTIONS, "test").fingerprint() == splits["test"].fingerprint()
    torch.set_rng_state(state)
    noise = splits["train"].images[:, :, 0, 0].float()
    quiet = noise[(noise < NOISE).all(1)]
    assert abs(float(quiet.mean()) - (NOISE - 1) / 2) < 0.2
    assert float(torch.corrcoef(quiet.T).fill_diagonal_(0).abs().max()) < 0.15


def test_statistics_and_sizes(splits):
    x = splits["train"].images.double() / 255
    assert MOVING_DIGITS.mean == (pytest.approx(float(x.mean()), abs=2e-3),)
    assert MOVING_DIGITS.std == (pytest.approx(float(x.std()), abs=2e-3),)
    with pytest.raises(UserError, match="20x20"):
        load(LoadOptions(None, Path("unused"), image_size=32), "train")
