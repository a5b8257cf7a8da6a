"""The arithmetic and the losses of detectors against torchvision's, on the same inputs."""

from __future__ import annotations

import pytest
import torch
from detectors import LABELS, images, smooth, two_stage
from torch import Tensor, nn
from torchvision.models.detection import _utils as theirs
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from robustbench_gpm.models import ModelOptions
from robustbench_gpm.models.detection_backbone import anchor_sides
from robustbench_gpm.models.detection_boxes import (
    BACKGROUND,
    BETWEEN,
    anchor_grid,
    decode,
    encode,
    match,
)
from robustbench_gpm.models.detection_dense import retinanet_r18
from robustbench_gpm.models.detection_two_stage import Sampling


def test_codes_and_matches_are_torchvisions() -> None:
    boxes, anchors = LABELS[0, :2, :4].double(), some_anchors()
    pairs = boxes[torch.arange(len(anchors)) % 2]
    for weights in ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)):
        coder = theirs.BoxCoder(weights)
        offsets = encode(pairs, anchors, weights)
        torch.testing.assert_close(offsets, coder.encode_single(pairs, anchors))
        torch.testing.assert_close(decode(offsets, anchors, weights), pairs)
        far = 9 * torch.randn(len(anchors), 4).double()
        expected = coder.decode_single(far, anchors)
        torch.testing.assert_close(decode(far, anchors, weights), expected)
    overlap = box_iou(boxes, anchors)
    kinds = set()
    for low, high, rescue in ((0.3, 0.7, True), (0.5, 0.5, False), (0.2, 0.4, True)):
        mine = match(boxes, anchors, low, high, rescue=rescue)
        kinds |= set(mine.tolist())
        assert torch.equal(mine, theirs.Matcher(high, low, rescue)(overlap))
    assert kinds == {0, 1, BACKGROUND, BETWEEN}


def some_anchors() -> Tensor:
    return anchor_grid([(6, 6), (3, 3)], (4, 8), ((8.0, 10.0), (14.0, 17.0)), (0.5, 1.0, 2.0))


def test_anchors_are_torchvisions_but_for_rounding_and_half_a_cell() -> None:
    sizes, ratios = ((8.0, 10.0), (14.0, 17.0)), (0.5, 1.0, 2.0)
    generator = AnchorGenerator(sizes, (ratios, ratios))
    cells = [generator.generate_anchors(s, ratios, torch.float64) for s in sizes]
    mine = some_anchors()
    for start, stride, cell in ((0, 4, cells[0]), (6 * 6 * 6, 8, cells[1])):
        assert (mine[start : start + 6] - stride / 2 - cell).abs().max() <= 0.5 + 1e-9
    for other, shift in ((mine[6:12], [4.0, 0, 4, 0]), (mine[36:42], [0, 4.0, 0, 4])):
        torch.testing.assert_close(other, mine[:6] + torch.tensor(shift).double())


@pytest.mark.parametrize("size", [32, 240, 640])
def test_anchors_suit_the_canvas(size: int) -> None:
    sides = anchor_sides(size, 5)
    assert sides[0] == max(4, size / 20)
    assert list(sides) == sorted(sides)
    assert 0.75 * size <= sides[-1] <= size


def test_losses_of_the_dense_detector_are_torchvisions() -> None:
    """RetinaNet's own loss, on the same outputs, the same anchors and one image at a time."""
    options = ModelOptions(3, 2, 24, (0.0, 0.0), (1.0, 1.0))
    model, x = retinanet_r18(options).double().eval(), images()
    logits, offsets, anchors = model._looked_at(x)
    offsets = offsets + 0.3 * torch.randn_like(offsets)
    y = LABELS.double()
    head = model.head.both
    matcher = theirs.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    model._looked_at = lambda _: (logits, offsets, anchors)
    mine = model(x, y)
    for i in range(3):
        keep = y[i, :, 4] >= 0
        target = {"boxes": y[i, keep, :4], "labels": y[i, keep, 4].long()}
        background = torch.full((len(anchors),), -1)
        matched = matcher(box_iou(target["boxes"], anchors)) if keep.any() else background
        outputs = {"cls_logits": logits[i : i + 1], "bbox_regression": offsets[i : i + 1]}
        expected = head.classification_head.compute_loss([target], outputs, [matched])
        torch.testing.assert_close(mine["classification"][i], expected)
        ours = matched >= 0
        box = nn.functional.smooth_l1_loss(
            offsets[i][ours],
            theirs.BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(
                target["boxes"][matched[ours]], anchors[ours]
            ),
            beta=1 / 9,
            reduction="sum",
        ) / max(1, int(ours.sum()))
        torch.testing.assert_close(mine["box"][i], box)


def test_losses_of_both_stages_are_torchvisions() -> None:
    """Where everything counts, one image at a time: nothing is left to draw."""
    model, x, y = smooth(two_stage), images(), LABELS.double()
    model.sampling = Sampling(10_000, 10_000, 40, 20)
    maps, logits, offsets, anchors, proposals = model._proposed(x)
    mine = model(x, y)
    stage = RegionProposalNetwork(
        None, None, 0.7, 0.3, 10_000, 0.5, {"training": 9, "testing": 9}, {"training": 9}, 0.7
    )
    for i in range(2):  # torchvision's second stage wants boxes
        keep = y[i, :, 4] >= 0
        boxes, classes = y[i, keep, :4], y[i, keep, 4].long()
        labels, matched = stage.assign_targets_to_anchors([anchors], [{"boxes": boxes}])
        wanted = stage.box_coder.encode(matched, [anchors])
        labels = [label.double() for label in labels]
        objectness, first = stage.compute_loss(logits[i], offsets[i], labels, wanted)
        torch.testing.assert_close(mine["objectness"][i], objectness)

        candidates = torch.cat((boxes, proposals[i]))
        of = theirs.Matcher(0.5, 0.5)(box_iou(boxes, candidates))
        target = torch.where(of >= 0, classes[of.clamp(min=0)] + 1, 0)
        scores, shifts = model._look_at([m[i : i + 1] for m in maps], [candidates])
        code = theirs.BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(
            boxes[of.clamp(min=0)], candidates
        )
        expected, second = fastrcnn_loss(scores, shifts.flatten(1), [target], [code])
        torch.testing.assert_close(mine["classification"][i], expected)
        torch.testing.assert_close(mine["box"][i], first + second)
