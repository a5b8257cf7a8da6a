"""Verdicts, quality and average precision by hand; mAP by torchmetrics."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_gpm.core import UserError
from robustbench_gpm.tasks.detection_metric import (
    RIGHT,
    UNCOUNTED,
    WRONG,
    average_precision,
    mean_average_precision,
    mean_quality,
    quality,
    verdicts,
)

SQUARE, OTHER, FAR = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 30.0, 10.0, 40.0)
HALF = (0.0, 0.0, 10.0, 5.0)  # half of SQUARE: an IoU of exactly 0.5


def rows(*found: tuple[tuple[float, ...], float, int], length: int = 6) -> Tensor:
    padded = torch.full((length, 6), -1.0)
    for place, (box, score, kind) in enumerate(found):
        padded[place] = torch.tensor([*box, score, kind])
    return padded


def labels(*there: tuple[tuple[float, ...], int], length: int = 4) -> Tensor:
    padded = torch.full((length, 5), -1.0)
    for place, (box, kind) in enumerate(there):
        padded[place] = torch.tensor([*box, kind])
    return padded


def told(found: Tensor, there: Tensor, count: int) -> list[int]:
    verdict = verdicts(found, there)
    assert (verdict[count:] == UNCOUNTED).all()
    return verdict[:count].tolist()


def test_the_likeliest_takes_the_object_and_the_second_is_wrong() -> None:
    found = rows((SQUARE, 0.6, 1), (HALF, 0.9, 1), (OTHER, 0.8, 1), (FAR, 0.7, 1))
    assert told(found, labels((SQUARE, 1), (OTHER, 0)), 4) == [WRONG, RIGHT, WRONG, WRONG]


def test_a_little_less_overlap_is_wrong() -> None:
    less = (0.0, 0.0, 10.0, 4.99)
    assert told(rows((less, 0.9, 1)), labels((SQUARE, 1)), 1) == [WRONG]


def test_ignored_objects_count_neither_way() -> None:
    there = labels((SQUARE, -2 - 1), (OTHER, 1))
    found = rows((SQUARE, 0.9, 1), (SQUARE, 0.8, 1), (OTHER, 0.7, 1), (SQUARE, 0.6, 0))
    assert told(found, there, 4) == [UNCOUNTED, UNCOUNTED, RIGHT, WRONG]
    assert quality(found[None], there[None]).item() == pytest.approx(2 / 3)
    assert quality(rows()[None], labels((SQUARE, -3))[None]).item() == 1


def test_quality_by_hand() -> None:
    there = labels((SQUARE, 0), (OTHER, 1), (FAR, 1))
    found = rows((SQUARE, 0.9, 0), (OTHER, 0.8, 0), (FAR, 0.5, 1), (FAR, 0.49, 0))
    # Of three objects and three predictions that count, two go together.
    assert quality(found[None], there[None]).item() == pytest.approx(4 / 6)
    batch = torch.stack((rows(), rows((SQUARE, 0.9, 0)), rows()))
    truth = torch.stack((labels(), labels(), labels((SQUARE, 0))))
    assert quality(batch, truth).tolist() == [1, 0, 0]
    assert quality(batch[:0], truth[:0]).shape == (0,)
    assert quality(batch[:, :0], truth).tolist() == [1, 1, 0]
    assert quality(batch, truth[:, :0]).tolist() == [1, 0, 1]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0.5, 1), st.integers(0, 1)),
        max_size=5,
    )
)
def test_quality_is_1_for_the_labels_themselves_and_else_at_most_1(
    found: list[tuple[int, int, float, int]],
) -> None:
    boxes = [((20.0 * i, 20.0 * j, 20.0 * i + 9, 20.0 * j + 9), s, k) for i, j, s, k in found]
    predictions = rows(*boxes)
    own = labels(*{(box, kind) for box, _, kind in boxes}, length=6)
    once = rows(*{(box, kind): (box, 0.9, kind) for box, _, kind in boxes}.values())
    assert quality(once[None], own[None]).item() == 1
    score = quality(predictions[None], own[None]).item()
    assert score == pytest.approx(
        2 * len(own[own[:, 4] >= 0]) / max(1, len(own[own[:, 4] >= 0]) + len(boxes)) if boxes else 1
    )


def test_an_unsure_detector_has_a_quality_too() -> None:
    """A box of score .34 counts at .05, .1, .2 and .3, and one that is wrong beside it halves."""
    there = labels((SQUARE, 1))
    right, wrong = (SQUARE, 0.34, 1), ((40.0, 40.0, 49.0, 49.0), 0.15, 1)
    assert quality(rows(right)[None], there[None]).item() == 0
    assert mean_quality(rows(right)[None], there[None]).item() == pytest.approx(0.4)
    both = mean_quality(rows(right, wrong)[None], there[None]).item()
    assert both == pytest.approx((2 * 2 / 3 + 2) / 10)
    assert mean_quality(rows((SQUARE, 0.95, 1))[None], there[None]).item() == 1


def test_average_precision_by_hand() -> None:
    """Class 0, three objects, in order of score right, wrong, right, and one is missed.

    Precision 1 up to recall 1/3 (0, .1, .2, .3), then 2/3 up to 2/3 (.4, .5, .6), then 0: the mean
    over eleven is (4 + 3 * 2/3) / 11 = 6/11. Class 1 is found at once, class 2 is not there, and
    class 3 is missed.
    """
    there = torch.stack((labels((SQUARE, 0), (OTHER, 1), (FAR, 3)), labels((SQUARE, 0), (FAR, 0))))
    found = torch.stack(
        (
            rows((SQUARE, 0.9, 0), (OTHER, 0.2, 1), (OTHER, 0.99, 2)),
            rows((OTHER, 0.8, 0), (FAR, 0.7, 0)),
        )
    )
    precision = average_precision(found, there, 4)
    expected = torch.tensor([6 / 11, 1, torch.nan, 0])
    torch.testing.assert_close(precision, expected, equal_nan=True)
    # An object that is to be ignored neither adds to the recall nor takes from the precision.
    there[1, 2] = torch.tensor([*OTHER, -2])
    changed = average_precision(found, there, 4)
    assert changed[0].item() == pytest.approx(7 / 11)  # right, right: precision 1 up to 2/3


def test_a_recall_that_is_reached_exactly_counts() -> None:
    """Of ten objects three are found: recalls 0, .1, .2 and .3, whatever 3/10 is in floats."""
    boxes = [(20.0 * i, 0.0, 20.0 * i + 9, 9.0) for i in range(10)]
    there = labels(*[(box, 0) for box in boxes], length=10)
    found = rows(*[(box, 0.9, 0) for box in boxes[:3]])
    assert average_precision(found[None], there[None], 1).item() == pytest.approx(4 / 11)


def test_map_is_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("faster_coco_eval")
    there = torch.stack((labels((SQUARE, 0), (OTHER, 1)), labels(), labels((FAR, -2))))
    found = torch.stack((rows((SQUARE, 0.9, 0), (OTHER, 0.8, 1)), rows(), rows((FAR, 0.7, 0))))
    assert mean_average_precision(found, there) == pytest.approx(
        {"map": 1, "map_50": 1, "map_75": 1}
    )
    shifted = found.clone()
    shifted[0, 0, :4] = torch.tensor([2.0, 0, 12, 10])  # IoU 8/12: right for .5, .55, .6 and .65
    values = mean_average_precision(shifted, there)
    assert values == pytest.approx({"map": 0.7, "map_50": 1, "map_75": 0.5}, abs=1e-6)
    wrong = found.clone()
    wrong[2, 0, 5] = 1  # no object of its class there, not even one to ignore
    assert mean_average_precision(wrong, there)["map"] == pytest.approx(1)  # but less likely
    wrong[2, 0, 4] = 0.95
    assert mean_average_precision(wrong, there)["map"] == pytest.approx(0.75, abs=1e-6)


def test_without_the_extra_map_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'robustbench_gpm\[detection\]'"):
        mean_average_precision(rows()[None], labels()[None])
