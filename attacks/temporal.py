"""Attacks on clips in which the frames are perturbed together: the same change, or flows alike.

A clip of T frames with C channels is an image of T*C channels, frame after frame; `frames` is T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from .any_loss import AnyLoss
from .ascent import ascend, in_turn
from .base import Attack
from .flow import FlowPGD
from .geometry import Radius, per_sample, random_point, shrink, steepest
from .perturbed import Perturbed
from .threats import FLOW, THREATS, Threat

TINY = 1e-30


@dataclass(frozen=True)
class SharedPGD(AnyLoss):
    """Steps of `step_size` budgets on one perturbation that is added to every frame of a clip.

    What is found is a perturbation (B,C,H,W), universal in time, inside the ball. Each frame is
    then clipped to [0,1] by itself, so that where a frame is too dark or too bright to be changed
    as the others are, and only there, its own change is smaller. Gradients are those of the clipped
    clip, summed over the frames; no pixel is taken beyond where all of its frames are clipped, from
    where no gradient would lead back. The budget bounds the change of the whole clip, as it does in
    `PGD`: in l2 each frame has the share 1/sqrt(T) of it. With one frame this is `PGD`.
    """

    frames: int = 1
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 20
    step_size: float = 0.125
    random_start: bool = True
    restarts: int = 1
    early_stop: bool = True

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    @property
    def scout(self) -> Attack:
        return replace(self, steps=1, step_size=1.0, random_start=False, restarts=1)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        radius = self._of_a_frame(budget)

        def step(x: Tensor, shared: Tensor, gradient: Tensor) -> Tensor:
            moved = shared + self.step_size * radius * steepest(gradient, self.norm)
            return self._inside(x, moved, radius)

        def search(random: bool, x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            start = torch.zeros_like(parted(x, self.frames)[:, 0])
            if random:
                start = random_point(start, radius, self.norm, samples)
            return ascend(
                model,
                x,
                y,
                self._inside(x, start, radius),
                loss,
                samples,
                steps=self.steps,
                render=self.render,
                step=step,
                early_stop=self.early_stop,
            )

        searches = [partial(search, self.random_start or n > 0) for n in range(self.restarts)]
        rest = torch.zeros_like(parted(x, self.frames)[:, 0])
        found = in_turn(searches, model, x, y, rest, loss, samples, render=self.render)
        return self.render(x, found)

    def render(self, x: Tensor, shared: Tensor) -> Tensor:
        """Clips x (B,T*C,H,W), each frame changed by `shared` (B,C,H,W), inside [0,1]."""
        clip = parted(x, self.frames) + shared.unsqueeze(1)
        # Not clamp, which lets no gradient through at 0 and 1 themselves, where many pixels are.
        clip = torch.where(clip < 0, 0.0, torch.where(clip > 1, 1.0, clip))
        return clip.flatten(1, 2)

    def drawn_in(self, x: Tensor, found: Perturbed, budgets: Radius) -> Perturbed:
        """Still one perturbation for all frames, of which the change of some shows it whole."""
        change = parted(found.change, self.frames)
        whole = change.abs().argmax(1, keepdim=True)
        shared = change.gather(1, whole).squeeze(1)
        return Perturbed.changed(
            x, self.render(x, shrink(shared, self._of_a_frame(budgets), self.norm))
        )

    def _of_a_frame(self, budget: Radius) -> Radius:
        return budget if self.norm == "linf" else budget / math.sqrt(self.frames)

    def _inside(self, x: Tensor, shared: Tensor, radius: Radius) -> Tensor:
        """The nearest perturbation of the ball, and no more than the frame with most room takes."""
        clip = parted(x, self.frames)
        shared = shrink(shared, radius, self.norm)
        return torch.maximum(torch.minimum(shared, 1 - clip.amin(1)), -clip.amax(1))


@dataclass(frozen=True)
class FlowClipPGD(FlowPGD):
    """`FlowPGD` with a flow for each frame of a clip, smooth in time: flows are (B,2T,H,W).

    The flow of frame t lies in channels 2t (to the right) and 2t + 1 (downwards). The budget is the
    furthest that any pixel of any frame moves along an axis. The flows are thought of as others,
    free in each frame, that are smoothed along time by a Gaussian of standard deviation
    `smoothness`, in frames, with weights that sum to 1 at every frame: a step is the sign of the
    loss's gradient in the free flows, smoothed, and scaled to the size of a step. With a smoothness
    of 0 each frame goes its own way; far above the number of frames (1e9, say) all move alike, as
    by `FlowPGD`. Flows are clipped to the budget, which takes neighbouring frames no further apart.
    """

    frames: int = 1
    smoothness: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "linf":
            raise UserError(f"{type(self).__name__}: norm must be linf, not '{self.norm}'")

    @property
    def threat(self) -> Threat:
        return FLOW

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def search(random: bool, x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            start = self._rest(x)
            if random:
                noise = random_point(start, budget, self.threat.name, samples)
                start = self.threat.size(noise).view(-1, 1, 1, 1) * self._smooth(noise)
            return self.climb(model, x, y, start, budget, loss, samples)

        searches = [partial(search, self.random_start or n > 0) for n in range(self.restarts)]
        rest = self._rest(x)
        return in_turn(searches, model, x, y, rest, loss, samples, render=self.render)

    def render(self, x: Tensor, flow: Tensor) -> Tensor:
        """Clips x (B,T*C,H,W), each frame warped by its own two channels of flow (B,2T,H,W)."""
        frames, flows = parted(x, self.frames), parted(flow, self.frames)
        warped = super().render(frames.flatten(0, 1), flows.flatten(0, 1))
        return warped.view(x.shape)

    def _rest(self, x: Tensor) -> Tensor:
        parted(x, self.frames)  # or there are no such frames
        return x.new_zeros(len(x), 2 * self.frames, *x.shape[2:])

    def _along(self, gradient: Tensor) -> Tensor:
        asked = _mixed(time_weights(self.frames, self.smoothness).T, gradient)
        return self._smooth(asked.sign())

    def _smooth(self, free: Tensor) -> Tensor:
        """Flows smoothed along time, of size 1; zero where they are zero."""
        smooth = _mixed(time_weights(self.frames, self.smoothness), free)
        return smooth / per_sample(self.threat.size(smooth).clamp_min(TINY), smooth)


def parted(x: Tensor, frames: int) -> Tensor:
    """Clips (B,T*C,H,W) as (B,T,C,H,W). Raises UserError where they do not have so many frames."""
    if x.shape[1] % frames:
        raise UserError(
            f"clips of {x.shape[1]} channels cannot be parted into {frames} frames: set the "
            f"attack's frames to those of the clips"
        )
    return x.reshape(len(x), frames, x.shape[1] // frames, *x.shape[2:])


def time_weights(frames: int, smoothness: float) -> Tensor:
    """What each frame (rows) takes of each other (columns): (T,T), float64, rows sum to 1.

    A Gaussian of standard deviation `smoothness`, in frames, cut off at the ends of the clip.
    """
    if smoothness == 0:
        return torch.eye(frames, dtype=torch.float64)
    places = torch.arange(frames, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / smoothness).square())
    return weights / weights.sum(1, keepdim=True)


def _mixed(weights: Tensor, flow: Tensor) -> Tensor:
    """Flows (B,2T,H,W) mixed over their frames by weights (T,T)."""
    flows = parted(flow, len(weights)).flatten(2)
    return (weights.to(flow) @ flows).view(flow.shape)
