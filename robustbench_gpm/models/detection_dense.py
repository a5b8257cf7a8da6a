"""One-stage detectors: each cell of feature maps classifies and shifts its own anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torchvision.models.detection.retinanet import RetinaNetHead

from .detection import Detector, map_shapes
from .detection_backbone import Pyramid, TwoCoarser, anchor_sides, nothing_in_place
from .detection_boxes import BETWEEN, anchor_grid, decode, detections, encode, match, split_labels
from .layers import conv_norm_relu, initialised
from .options import ModelOptions

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (arXiv 1708.02002, section 5.1)
BETA = 1 / 9  # where smooth l1 turns from quadratic to linear
FOREGROUND, CLEAR_BACKGROUND = 0.5, 0.4  # IoU with a box
LEAST_SCORE, OVERLAP = 0.05, 0.5
PRIOR = 0.01  # the score an untrained detector gives to everything
OCTAVE = tuple(2 ** (k / 3) for k in range(3))
RATIOS = (0.5, 1.0, 2.0)
SMALLEST_DIGITS = 16


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The focal loss of every logit, elementwise, for targets of 0 and 1 in its shape.

    -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017, arXiv 1708.02002, equation 5).
    """
    cross_entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    wrong = p + targets - 2 * p * targets  # 1 - p_t
    return (ALPHA * targets + (1 - ALPHA) * (1 - targets)) * wrong**GAMMA * cross_entropy


class DenseDetector(Detector):
    """A detector (RetinaNet, arXiv 1708.02002) of a backbone, a head and anchors.

    Its losses (see `Detector`): `classification`, the focal loss of all anchors over the number
    that stand for a box (at least 1), and `box`, smooth l1 of their offsets over the same number.
    """

    parts = ("classification", "box")

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        strides: Sequence[int],
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
    ) -> None:
        """`backbone` gives maps of these strides; `head` makes of them class logits (B,A,K) and
        offsets (B,A,4), the anchors in the order of `anchor_grid`.
        """
        super().__init__()
        self.backbone, self.head = backbone, head
        self.strides, self.sizes, self.ratios = tuple(strides), tuple(sizes), tuple(ratios)

    def losses(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, ...]]:
        """See `Detector.losses`."""
        logits, offsets, anchors = self._looked_at(x)
        return [_losses(*image, anchors) for image in zip(logits, offsets, y, strict=True)]

    def predictions(self, x: Tensor) -> list[Tensor]:
        """See `Detector.predictions`."""
        logits, offsets, anchors = self._looked_at(x)
        kinds = logits.shape[2]
        classes = torch.arange(kinds, device=x.device).repeat(len(anchors))
        boxes = decode(offsets, anchors).repeat_interleave(kinds, dim=1)
        scores, shape = logits.sigmoid().flatten(1), (x.shape[2], x.shape[3])
        return [
            detections(*image, classes, shape, least_score=LEAST_SCORE, overlap=OVERLAP)
            for image in zip(boxes, scores, strict=True)
        ]

    def _looked_at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B,A,K), offsets (B,A,4) and anchors (A,4)."""
        maps = self.backbone(x)
        logits, offsets = self.head(maps)
        anchors = anchor_grid(map_shapes(maps), self.strides, self.sizes, self.ratios)
        return logits, offsets, anchors.to(offsets)


def _losses(
    logits: Tensor, offsets: Tensor, labels: Tensor, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Classification and box loss of one image: (A,K), (A,4), (M,5) and (A,4) to scalars."""
    boxes, classes = split_labels(labels)
    matched = match(boxes, anchors, CLEAR_BACKGROUND, FOREGROUND, rescue=True)
    ours = (matched >= 0).nonzero().flatten()
    targets = torch.zeros_like(logits)
    targets[ours, classes[matched[ours]]] = 1
    count = max(1, len(ours))
    classification = focal_loss(logits, targets)[matched != BETWEEN].sum() / count
    wanted = encode(boxes[matched[ours]], anchors[ours])
    box = smooth_l1_loss(offsets[ours], wanted, beta=BETA, reduction="sum") / count
    return classification, box


class _TorchvisionHead(nn.Module):
    """torchvision's head of RetinaNet, which also keeps its two outputs apart."""

    def __init__(self, channels: int, anchors: int, classes: int) -> None:
        super().__init__()
        self.both = RetinaNetHead(channels, anchors, classes)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (B,A,K) and offsets (B,A,4) of maps (B,C,h,w)."""
        found = self.both(maps)
        return found["cls_logits"], found["bbox_regression"]


class SmallHead(nn.Module):
    """One convolution each for classes and offsets, shared by all levels."""

    def __init__(self, channels: int, anchors: int, classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(channels, anchors * classes, 3, padding=1)
        self.offsets = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        self.anchors = anchors
        for layer in (self.classes, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(cast(Tensor, layer.bias), 0)
        # So that the many background anchors do not drown the rest at first (section 4.1).
        nn.init.constant_(cast(Tensor, self.classes.bias), math.log(PRIOR / (1 - PRIOR)))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (B,A,K) and offsets (B,A,4) of maps (B,C,h,w)."""
        logits = [by_anchor(self.classes(m), self.anchors) for m in maps]
        offsets = [by_anchor(self.offsets(m), self.anchors) for m in maps]
        return torch.cat(logits, 1), torch.cat(offsets, 1)


def by_anchor(found: Tensor, anchors: int) -> Tensor:
    """A map (B, anchors * n, h, w) as rows (B, h * w * anchors, n), in the order of anchors."""
    b, _, height, width = found.shape
    apart = found.view(b, anchors, -1, height, width).permute(0, 3, 4, 1, 2)
    return apart.flatten(1, 3)


def retinanet_r18(options: ModelOptions) -> nn.Module:
    """RetinaNet (arXiv 1708.02002) on ResNet-18 with a pyramid: images (B,C,H,W), H the image size.

    Nine anchors a cell, of sizes that follow the canvas (`anchor_sides`). See `DenseDetector`.
    """
    backbone = Pyramid(options, 2, TwoCoarser(256))
    sides = anchor_sides(options.image_size, len(backbone.strides))
    sizes = [[side * octave for octave in OCTAVE] for side in sides]
    head = _TorchvisionHead(backbone.channels, len(OCTAVE) * len(RATIOS), options.classes)
    detector = DenseDetector(backbone, head, backbone.strides, sizes, RATIOS)
    return nothing_in_place(detector)


class _AsLevels(nn.Sequential):
    def forward(self, x: Tensor) -> list[Tensor]:
        """The one level of features, in a list."""
        features: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return [features]


def digits_detector(options: ModelOptions) -> nn.Module:
    """A small one-level detector for canvases of about 32 pixels, such as scenes of digits.

    Six convolutions at strides up to 4, and square anchors of 1/5 to 1/2 of the canvas; about
    155,000 weights for ten classes. See `DenseDetector`. Raises UserError below 16 pixels.
    """
    options.require_size(SMALLEST_DIGITS, "digits_detector")
    layers = [
        *conv_norm_relu(options.channels, 24),
        *conv_norm_relu(24, 32),
        nn.MaxPool2d(2),
        *conv_norm_relu(32, 48),
        *conv_norm_relu(48, 64),
        nn.MaxPool2d(2),
        *conv_norm_relu(64, 64),
        *conv_norm_relu(64, 64),
    ]
    sizes = [options.image_size * share for share in (0.2, 0.28, 0.38, 0.52)]
    body = initialised(_AsLevels(*layers))
    head = SmallHead(64, len(sizes), options.classes)
    return DenseDetector(body, head, (4,), (sizes,), (1.0,))
