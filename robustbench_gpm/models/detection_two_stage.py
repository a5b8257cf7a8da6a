"""Faster R-CNN: boxes are proposed from the maps, then looked at one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import clip_boxes_to_image

from .detection import Detector, map_shapes
from .detection_backbone import Pyramid, anchor_sides, nothing_in_place, one_coarser
from .detection_boxes import (
    BACKGROUND,
    anchor_grid,
    decode,
    detections,
    encode,
    keep_apart,
    match,
    split_labels,
)
from .detection_dense import LEAST_SCORE, OVERLAP, RATIOS, by_anchor
from .detection_roi import roi_align
from .options import ModelOptions

BETA = 1 / 9  # where smooth l1 turns from quadratic to linear
CELLS = 7  # a side of what is read from a box
CODE = (10.0, 10.0, 5.0, 5.0)  # weights of a box's offsets in the second stage


@dataclass(frozen=True)
class Sampling:
    """How many anchors and proposals there are, and which of them the losses look at.

    Of an image's anchors `anchors` count, at most half of them for boxes (Ren et al. 2015, arXiv
    1506.01497, section 3.1.3); of its proposals and its boxes `proposals`, at most a quarter of
    them for boxes (Girshick 2015, arXiv 1504.08083, section 2.3). `before` proposals a level go
    into non-maximum suppression, the likeliest, and `after` come out.
    """

    anchors: int = 256
    proposals: int = 64
    before: int = 1000
    after: int = 300


class FasterRCNN(Detector):
    """Faster R-CNN (Ren et al. 2015) on a pyramid (Lin et al. 2017, arXiv 1612.03144).

    Its losses (see `Detector`): `objectness`, the mean cross-entropy of the anchors that count,
    `classification`, that of the proposals that count, and `box`, smooth l1 of the offsets of both
    stages, each over the number of what counts. Proposals, and what counts, are constants to the
    gradient.

    In training mode what counts is drawn by torch's generator of the images' device. In evaluation
    mode it is the likeliest, first: nothing is drawn, and an attack meets the very anchors that
    would report a box. No image's losses depend on another image, but for batch norms in training.
    """

    parts = ("objectness", "classification", "box")

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        classes: int,
        strides: Sequence[int],
        sides: Sequence[float],
        sampling: Sampling = Sampling(),
        hidden: int = 1024,
    ) -> None:
        """`backbone` gives maps of so many channels at these strides, the finest first.

        One anchor side a level. Boxes are read from all levels but the last.
        """
        super().__init__()
        self.backbone, self.strides, self.sampling = backbone, tuple(strides), sampling
        self.sides = tuple((side,) for side in sides)
        self.proposer = RPNHead(channels, len(RATIOS))
        inputs = channels * CELLS**2
        self.head = nn.Sequential(
            *(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.ReLU()),
        )
        self.predictor = FastRCNNPredictor(hidden, classes + 1)  # class 0 is the background

    def losses(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, ...]]:
        """See `Detector.losses`."""
        maps, logits, offsets, anchors, proposals = self._proposed(x)
        second = self._second_stage(maps, proposals, y)
        losses: list[tuple[Tensor, ...]] = []
        images = zip(logits, offsets, y, second, strict=True)
        for score, offset, labels, (classification, box) in images:
            objectness, first_box = self._first_stage(score, offset, labels, anchors)
            losses.append((objectness, classification, first_box + box))
        return losses

    def predictions(self, x: Tensor) -> list[Tensor]:
        """See `Detector.predictions`."""
        maps, *_, proposals = self._proposed(x)
        logits, offsets = self._look_at(maps, proposals)
        boxes = decode(offsets[:, 1:], torch.cat(proposals)[:, None], CODE).flatten(0, 1)
        scores = logits.softmax(1)[:, 1:]
        classes = torch.arange(scores.shape[1], device=x.device).repeat(len(scores))
        sizes, shape = [len(p) * scores.shape[1] for p in proposals], (x.shape[2], x.shape[3])
        parts = (torch.split(part, sizes) for part in (boxes, scores.flatten(), classes))
        return [
            detections(b, s, c, shape, least_score=LEAST_SCORE, overlap=OVERLAP)
            for b, s, c in zip(*parts, strict=True)
        ]

    def _proposed(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor, list[Tensor]]:
        """Maps, objectness logits (B,A), offsets (B,A,4), anchors (A,4), each image's proposals."""
        maps = self.backbone(x)
        found = self.proposer(maps)
        logits, offsets = (
            torch.cat([by_anchor(level, len(RATIOS)) for level in part], 1) for part in found
        )
        logits, shapes = logits.squeeze(2), map_shapes(maps)
        anchors = anchor_grid(shapes, self.strides, self.sides, RATIOS).to(offsets)
        levels = [len(RATIOS) * height * width for height, width in shapes]
        shape = (x.shape[2], x.shape[3])
        return maps, logits, offsets, anchors, self.propose(logits, offsets, anchors, levels, shape)

    @torch.no_grad()
    def propose(
        self,
        logits: Tensor,
        offsets: Tensor,
        anchors: Tensor,
        levels: Sequence[int],
        shape: tuple[int, int],
    ) -> list[Tensor]:
        """Boxes (n,4) of each image that may hold an object, the likeliest first, no graph.

        Out of logits (B,A), offsets (B,A,4) and anchors (A,4), of which each of `levels` has so
        many, on images of `shape` (H,W).
        """
        boxes = clip_boxes_to_image(decode(offsets, anchors), shape)
        numbers = torch.arange(len(levels), device=anchors.device)
        level = numbers.repeat_interleave(torch.tensor(levels, device=anchors.device))
        starts = [sum(levels[:place]) for place in range(len(levels))]
        chosen = []
        for scores, candidates in zip(logits, boxes, strict=True):
            likely = [
                start + part.topk(min(self.sampling.before, len(part))).indices
                for start, part in zip(starts, torch.split(scores, list(levels)), strict=True)
            ]
            rows = torch.cat(likely)
            kept = keep_apart(candidates[rows], scores[rows], level[rows], 0.7)
            chosen.append(candidates[rows][kept[: self.sampling.after]])
        return chosen

    def _first_stage(
        self, logits: Tensor, offsets: Tensor, labels: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss of one image: (A,), (A,4), (M,5) and (A,4) to scalars."""
        boxes, _ = split_labels(labels)
        matched = match(boxes, anchors, 0.3, 0.7, rescue=True)
        rank = torch.rand_like(logits) if self.training else logits.detach()
        ours, others = _sample(matched, rank, self.sampling.anchors, 0.5)
        count = max(1, len(ours) + len(others))
        rows = torch.cat((ours, others))
        target = (matched[rows] >= 0).to(logits.dtype)
        objectness = binary_cross_entropy_with_logits(logits[rows], target, reduction="sum")
        wanted = encode(boxes[matched[ours]], anchors[ours])
        box = smooth_l1_loss(offsets[ours], wanted, beta=BETA, reduction="sum")
        return objectness / count, box / count

    def _second_stage(
        self, maps: list[Tensor], proposals: list[Tensor], y: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Classification and box loss of each image, scalars."""
        drawn = [self._drawn(*image) for image in zip(proposals, y, strict=True)]
        sampled, targets, wanted = zip(*drawn, strict=True)
        logits, offsets = self._look_at(maps, list(sampled))
        sizes = [len(target) for target in targets]
        parts = torch.split(logits, sizes), torch.split(offsets, sizes), targets, wanted
        return [_of_proposals(*image) for image in zip(*parts, strict=True)]

    def _drawn(self, proposals: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What counts of one image: boxes (n,4), classes (n,), 0 the background, and offsets.

        Those that stand for one of the image's boxes come first, and only they have offsets. The
        image's own boxes are candidates too, the likeliest.
        """
        boxes, classes = split_labels(labels)
        candidates = torch.cat((boxes, proposals))
        matched = match(boxes, candidates, 0.5, 0.5)
        rank = torch.arange(len(candidates), 0, -1, device=boxes.device)
        if self.training:
            rank = torch.rand(len(candidates), device=boxes.device)
        ours, others = _sample(matched, rank, self.sampling.proposals, 0.25)
        target = torch.cat((1 + classes[matched[ours]], torch.zeros_like(others)))
        wanted = encode(boxes[matched[ours]], candidates[ours], CODE)
        return candidates[torch.cat((ours, others))], target, wanted

    def _look_at(self, maps: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (K,1+classes) and offsets (K,1+classes,4) of K boxes of all images."""
        image = torch.cat(
            [torch.full((len(b),), place, device=b.device) for place, b in enumerate(boxes)]
        )
        rows, maps = torch.cat(boxes), maps[:-1]
        level = self._level_of(rows, len(maps))
        read, order = [], []
        for place, (features, stride) in enumerate(zip(maps, self.strides, strict=False)):
            own = (level == place).nonzero().flatten()
            order.append(own)
            read.append(roi_align(features, rows[own], image[own], 1 / stride, CELLS))
        back = torch.cat(order).argsort()
        logits, offsets = self.predictor(self.head(torch.cat(read)[back]))
        return logits, offsets.view(*logits.shape, 4)

    def _level_of(self, boxes: Tensor, levels: int) -> Tensor:
        """The coarsest level (K,) on which boxes (K,4) still span 14 cells, or the finest.

        Two readings a cell of 7: equation 1 of arXiv 1612.03144, whose 224 pixels are 14 cells of
        stride 16.
        """
        side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).prod(1).sqrt()
        spans = torch.log2(side / (2 * CELLS * self.strides[0]))
        return (spans + 1e-6).floor().clamp(0, levels - 1).to(torch.int64)


def _sample(matched: Tensor, rank: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Rows that stand for a box, at most `share` of `count`, and background rows up to `count`.

    Those of highest `rank` (N,) first, each sort by itself.
    """
    ours, others = ((matched >= 0).nonzero().flatten(), (matched == BACKGROUND).nonzero().flatten())
    ours = ours[rank[ours].topk(min(math.floor(share * count), len(ours))).indices]
    return ours, others[rank[others].topk(min(count - len(ours), len(others))).indices]


def _of_proposals(
    logits: Tensor, offsets: Tensor, target: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of one image out of (n,K), (n,K,4), classes (n,) and the offsets of the boxes' own."""
    count = max(1, len(target))
    ours = torch.arange(len(wanted), device=target.device)  # they come first
    box = smooth_l1_loss(offsets[ours, target[ours]], wanted, beta=BETA, reduction="sum")
    return cross_entropy(logits, target, reduction="sum") / count, box / count


def faster_rcnn_r18(options: ModelOptions) -> nn.Module:
    """Faster R-CNN on ResNet-18 with a pyramid: images (B,C,H,W), H the image size, to boxes.

    Three anchors a cell, of sizes that follow the canvas (`anchor_sides`). See `FasterRCNN`.
    """
    backbone = Pyramid(options, 1, one_coarser())
    sides = anchor_sides(options.image_size, len(backbone.strides))
    detector = FasterRCNN(backbone, backbone.channels, options.classes, backbone.strides, sides)
    return nothing_in_place(detector)
