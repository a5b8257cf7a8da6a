"""Metrics out of confusion matrices: by hand, beside torchmetrics, and as properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_gpm.masks import VOID
from robustbench_gpm.tasks.segmentation_metric import (
    class_iou,
    confusion,
    image_iou,
    mean_iou,
    pixel_accuracy,
)


def drawn(seed: int, count: int = 3, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (count, 6, 7), generator=generator)
    predicted = torch.where(
        torch.rand(y.shape, generator=generator) < 0.6,
        y,
        torch.randint(0, classes, y.shape, generator=generator),
    )
    y[torch.rand(y.shape, generator=generator) < 0.2] = VOID
    return predicted, y


def test_by_hand() -> None:
    y = torch.tensor([[[0, 0, 1, VOID]], [[1, 1, VOID, VOID]]])
    predicted = torch.tensor([[[0, 1, 1, 2]], [[1, 0, 2, 0]]])
    found = confusion(predicted, y, 3)
    assert found.dtype == torch.int64
    assert found.tolist() == [
        [[1, 1, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 0], [0, 0, 0]],
    ]
    assert pixel_accuracy(found).tolist() == pytest.approx([2 / 3, 1 / 2])
    assert image_iou(found).tolist() == pytest.approx([1 / 2, (0 / 1 + 1 / 2) / 2])
    ious = class_iou(found.sum(0)).tolist()
    assert ious[:2] == pytest.approx([1 / 3, 2 / 4])
    assert math.isnan(ious[2])
    assert float(mean_iou(found)) == pytest.approx((1 / 3 + 1 / 2) / 2)


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_matrices_count_what_they_say(seed: int, classes: int) -> None:
    predicted, y = drawn(seed, classes=classes)
    found = confusion(predicted, y, classes)
    for sample in range(len(y)):
        for true in range(classes):
            for said in range(classes):
                count = int(((y[sample] == true) & (predicted[sample] == said)).sum())
                assert int(found[sample, true, said]) == count


@pytest.mark.parametrize("classes", [5, 9])  # of nine, four never occur
def test_mean_iou_is_torchmetrics_own(classes: int) -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    metric = classification.MulticlassJaccardIndex(num_classes=classes, ignore_index=VOID)
    parts = []
    for seed in range(4):
        predicted, y = drawn(seed)
        metric.update(predicted, y)
        parts.append(confusion(predicted, y, classes))
    assert float(mean_iou(torch.cat(parts))) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_image_iou_is_torchmetrics_own_of_each_image() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    predicted, y = drawn(5)
    for own, said, mask in zip(image_iou(confusion(predicted, y, 5)), predicted, y, strict=True):
        metric = classification.MulticlassJaccardIndex(num_classes=5, ignore_index=VOID)
        assert float(own) == pytest.approx(float(metric(said[None], mask[None])), rel=1e-6)


def test_accuracy_is_torchmetrics_own() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    predicted, y = drawn(6)
    for own, said, mask in zip(
        pixel_accuracy(confusion(predicted, y, 5)), predicted, y, strict=True
    ):
        metric = classification.MulticlassAccuracy(
            num_classes=5, ignore_index=VOID, average="micro"
        )
        assert float(own) == pytest.approx(float(metric(said[None], mask[None])), rel=1e-6)


def test_a_class_that_is_predicted_but_never_there_counts_as_nothing() -> None:
    y = torch.zeros(1, 1, 4, dtype=torch.long)
    predicted = torch.tensor([[[0, 0, 0, 1]]])
    assert float(mean_iou(confusion(predicted, y, 3))) == pytest.approx((3 / 4 + 0) / 2)


def test_perfect_and_void() -> None:
    predicted, y = drawn(7)
    y = torch.where(y == VOID, predicted, y)
    perfect = confusion(y, y, 5)
    assert float(mean_iou(perfect)) == 1
    assert image_iou(perfect).tolist() == [1, 1, 1]
    nothing = confusion(predicted, torch.full_like(y, VOID), 5)
    assert int(nothing.sum()) == 0
    assert image_iou(nothing).isnan().all()
    assert pixel_accuracy(nothing).isnan().all()
    assert mean_iou(nothing).isnan()


def test_bytes_do_as_well() -> None:
    predicted, y = drawn(8)
    bytes_ = confusion(predicted.to(torch.uint8), y.to(torch.uint8), 5)
    assert torch.equal(bytes_, confusion(predicted, y, 5))


def test_classes_there_are_not_are_refused() -> None:
    predicted, y = drawn(9)
    for said, mask in ((predicted, y), (predicted - 1, y)):
        with pytest.raises(ValueError, match=r"a class outside 0\.\."):
            confusion(said, mask, 4)
    with pytest.raises(ValueError, match="for masks"):
        confusion(predicted[:2], y, 5)
