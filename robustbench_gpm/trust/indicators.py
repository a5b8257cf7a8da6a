"""Beside the attacks: signs that gradients are masked, so that an attack's survivors prove little.

Carlini et al. 2019 (arXiv 1902.06705, section 5) list most of them; each is measured on some images
that are right when clean, with attacks far too short for a verdict but long enough for a doubt. A
graded prediction falls by the share of its clean score that an attack takes away.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..attacks.fgsm import FGSM
from ..attacks.pgd import PGD
from ..attacks.smoothed import SmoothedPGD
from ..attacks.square import Square
from ..attacks.threats import THREATS
from ..core import Samples, frozen
from .flags import Flag, raised
from .outputs import FLOAT_NOISE, Connected, disagreement, random_state_kept
from .probes import no_gradient
from .views import ClassView, View

# On honest networks (natural, gradient-penalised, adversarially trained) at eleven budgets of both
# norms no image lacked a gradient or failed to rise, and other attacks gained one image of 64.
SHARE = 0.05  # of the images: as many wrong verdicts change a robust accuracy by as much
FALLS = 0.1  # of the images: twice that, since one bad step near the image's edge is no sign
UNFINISHED = 0.1  # PGD's hundred steps honestly gain up to 6 points over its twenty (l2, measured)
CHANCE = 4  # images: a count below 4 lies within two standard errors (its root, twice) of none

LEAST = 0.1  # of a score, for an image to be right enough to lose something
DOWN = 0.95  # of the clean score, taken away: little is left that another attack could take

QUERIES = 180  # random search fools half of what is to be fooled in digits by then

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Signs:
    """What was seen of each of n images: which have no gradient, whose loss a PGD run does not
    raise, and on which `blind` random search takes more than gradients do, (n,) bool; how far each
    falls to the other probes, (n,) in [0,1], `smooth` beyond those before it.
    """

    flat: Tensor
    sunk: Tensor
    pgd: Tensor
    fgsm: Tensor
    longer: Tensor
    smooth: Tensor
    blind: Tensor
    unbounded: Tensor

    @classmethod
    def joined(cls, parts: list[Signs]) -> Signs:
        """The signs of several batches as those of one."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def indicators(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    budget: float,
    norm: Norm = "linf",
    samples: Samples | None = None,
    view: View | None = None,
    batch_size: int = 64,
) -> list[Flag]:
    """The flags that images x (B,C,H,W) in [0,1] with labels y (B,...) raise at one budget.

    Images that are wrong when clean are left out; 64 to 128 of the others tell enough, and with 4
    or fewer only `randomised_outputs` can be told. `view` is the task's (default: of classes). An
    image costs at most about 400 forward and 200 backward passes, which `samples` books.
    """
    samples, view = samples or Samples(range(len(x))), view or ClassView()
    if len(x) == 0:
        return []
    probed, parts, unsteady = Connected(model), [], 0.0
    with random_state_kept(x.device), frozen(probed):
        for rows in torch.split(torch.arange(len(x)), batch_size):
            here, images, labels = samples.select(rows), x[rows.to(x.device)], y[rows.to(y.device)]
            unsteady = max(unsteady, _unsteady(probed, view, images, labels, here))
            _, score = view.judge(probed, images, labels, here)
            right = score >= LEAST
            if bool(right.any()):
                probing = _Probing(probed, norm, view, here.select(right), score[right])
                parts.append(probing.signs(images[right], labels[right], budget))
    flags = raised("randomised_outputs", unsteady, FLOAT_NOISE)
    return flags + (_told(Signs.joined(parts), view.standing) if parts else [])


def _told(signs: Signs, standing: float) -> list[Flag]:
    """What the signs of n images amount to; `standing` may stand an attack without a bound."""
    n = len(signs.flat)
    least = max(SHARE, CHANCE / n)
    white_box = _share(signs.pgd.maximum(signs.longer))
    return [
        *raised("zero_gradients", _share(signs.flat), least),
        *raised("loss_does_not_rise", _share(signs.sunk), max(FALLS, CHANCE / n)),
        *raised("fgsm_beats_pgd", _share(signs.fgsm) - _share(signs.pgd), least),
        *raised("more_steps_still_help", white_box - _share(signs.pgd), UNFINISHED + CHANCE / n),
        *raised("transfer_beats_white_box", _share(signs.smooth), least),
        *raised("black_box_beats_white_box", _share(signs.blind), least),
        *raised("unbounded_attack_fails", _share(1 - signs.unbounded), max(standing, CHANCE / n)),
    ]


@dataclass(frozen=True)
class _Probing:
    """The probes on one batch of images that are right when clean, with their clean scores (n,)."""

    model: nn.Module
    norm: Norm
    view: View
    samples: Samples
    clean: Tensor

    def signs(self, x: Tensor, y: Tensor, budget: float) -> Signs:
        """Every probe, the expensive ones only on whom the others leave standing."""
        model, norm, view = self.model, self.norm, self.view
        flat = no_gradient(model, x, y, view.loss_of("cross_entropy"), self.samples)
        before, _ = view.judge(model, x, y, self.samples)
        everyone = torch.ones_like(flat)
        pgd, after = self._run(PGD(norm), x, y, budget, everyone)
        fgsm, once = self._run(FGSM(norm), x, y, budget, everyone)
        more = (pgd < DOWN) & ~flat
        longer, later = self._run(PGD(norm, steps=100), x, y, budget, more)
        white_box = pgd.maximum(fgsm).maximum(longer)
        nearest = after.maximum(once).maximum(later)
        left = white_box < DOWN

        def beyond(attack: Attack) -> Tensor:
            """How much more of the score it takes, and not by chance: the loss is higher too."""
            fallen, reached = self._run(attack, x, y, budget, left)
            return (fallen - white_box).clamp_min(0) * ~(reached <= nearest)

        # Made on a smooth surrogate: the model averaged over noise.
        smooth = beyond(SmoothedPGD(norm, steps=10, step_size=0.25, draws=6))
        blind = beyond(Square(norm, queries=QUERIES)) > view.material
        # The whole of [0,1]^n lies within this distance of any of its points.
        whole = float(THREATS[norm].size(torch.ones_like(x[:1])))
        unbounded, _ = self._run(PGD(norm), x, y, whole, everyone)
        return Signs(flat, after <= before, pgd, fgsm, longer, smooth, blind, unbounded)

    def _run(
        self, attack: Attack, x: Tensor, y: Tensor, budget: float, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How far the attack brings the chosen down, (n,) in [0,1], and how near to an error."""
        fallen, reached = torch.zeros_like(self.clean), torch.full_like(x[:, 0, 0, 0], -torch.inf)
        if bool(chosen.any()):
            part, loss = self.samples.select(chosen), self.view.loss_of(attack.loss_name)
            x, y = x[chosen], y[chosen]
            found = attack(self.model, x, y, budget=budget, loss=loss, samples=part)
            nearness, score = self.view.judge(self.model, found, y, part)
            fallen[chosen] = (1 - score / self.clean[chosen]).clamp(0, 1)
            reached[chosen] = nearness.to(reached.dtype)
        return fallen, reached


def _unsteady(model: nn.Module, view: View, x: Tensor, y: Tensor, samples: Samples) -> float:
    """How far two passes over the same images differ."""
    with torch.no_grad():
        outputs = [view.outputs(model, x, y) for _ in range(2)]
    samples.book(forwards=2)
    return disagreement(*outputs)


def _share(signs: Tensor) -> float:
    return float(signs.double().mean())
