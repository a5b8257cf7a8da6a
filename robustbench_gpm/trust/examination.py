"""Every check of one evaluation: before its attacks, and beside the first of each norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import Threat
from ..core import Samples, frozen
from ..datasets import Split
from .flags import Flag
from .indicators import LEAST, Norm, indicators
from .outputs import random_state_kept
from .preflight import preflight
from .views import View

NORMS: Mapping[str, Norm] = MappingProxyType({"linf": "linf", "l2": "l2"})
AT_ONCE = 64  # of them in a batch, unless the evaluation's own batches are smaller


@dataclass(frozen=True)
class Finding:
    """A flag, and where it went up: a norm and budget such as `linf 8/255`, or nowhere special."""

    flag: Flag
    at: str = ""


class Examination:
    """What the checks find out about a model on the whole of a split.

    Whatever part of the split is attacked, and in whatever batches, the same images are looked at,
    so that all shards of an evaluation raise the same flags.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        view: View,
        device: torch.device,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        """Make the checks that come before any attack. The model is left as it was."""
        self.model, self.split, self.view, self.device = model, split, view, device
        self.at_once, self.seed = min(batch_size, AT_ONCE), seed
        self.forwards = self.backwards = 0

        def count(_: nn.Module, inputs: tuple[Any, ...], __: object) -> None:
            self.forwards += len(inputs[0])

        counting = model.register_forward_hook(count)
        try:
            self._before = preflight(model, split, view, device, batch_size)
        finally:
            counting.remove()
        self.findings = [Finding(flag) for flag in self._before]
        self._beside: dict[str, list[Flag]] = {}
        self._rows: Tensor | None = None

    @property
    def cost(self) -> dict[str, int]:
        """Passes spent, each of one image. Seconds would differ where flags and verdicts do not."""
        return {"forwards": self.forwards, "backwards": self.backwards}

    def raised(self, name: str) -> bool:
        """Whether the flag of that name is up."""
        return any(finding.flag.name == name for finding in self.findings)

    def beside(self, searched: nn.Module, threat: Threat, budget: float) -> list[Flag]:
        """The flags that concern attacks of this threat on `searched`, the model or a copy of it.

        A norm's signs of masked gradients are looked for once, at the first budget asked for; there
        are none to look for in other threats than linf and l2, for which no flag is returned.
        """
        norm = NORMS.get(threat.name)
        if norm is None:
            return []
        if norm not in self._beside:
            known = {flag.name for flag in self._before}
            found = self._look(searched, norm, budget)
            self._beside[norm] = [flag for flag in found if flag.name not in known]
            at = f"{norm} {threat.label(budget)}"
            self.findings += [Finding(flag, at) for flag in self._beside[norm]]
        return [*self._before, *self._beside[norm]]

    def _look(self, searched: nn.Module, norm: Norm, budget: float) -> list[Flag]:
        rows = self._first_right()
        x, y = self.split.batch(rows)
        samples = Samples(self.split.index[rows], self.seed)
        flags = indicators(
            searched,
            x.to(self.device),
            y.to(self.device),
            budget=budget,
            norm=norm,
            samples=samples,
            view=self.view,
            batch_size=self.at_once,
        )
        self.forwards += int(samples.forwards.sum())
        self.backwards += int(samples.backwards.sum())
        return flags

    def _first_right(self) -> Tensor:
        """Rows of the first images that the model is right on."""
        if self._rows is None:
            found: list[Tensor] = []
            with random_state_kept(self.device), frozen(self.model):
                for rows in torch.split(torch.arange(len(self.split)), self.at_once):
                    x, y = self.split.batch(rows)
                    right, _ = self.view.right(self.model, x.to(self.device), y.to(self.device))
                    self.forwards += len(rows)
                    found.append(rows[right.cpu() >= LEAST])
                    if sum(map(len, found)) >= self.view.most:
                        break
            self._rows = torch.cat(found)[: self.view.most]
        return self._rows
