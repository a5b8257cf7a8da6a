"""Which attacks raise whatever loss they are handed."""

from __future__ import annotations

from .apgd import APGD
from .base import Attack
from .elastic import Elastic
from .fgsm import FGSM
from .flow import FlowPGD
from .flow_apgd import FlowAPGD
from .flow_vertex import FlowVertex
from .parametric import FirstOrder
from .pgd import PGD
from .smoothed import SmoothedPGD
from .square import Square
from .stadv import StAdv

RAISE_ANY_LOSS = (
    *(PGD, APGD, FGSM, SmoothedPGD, Square),
    *(FlowPGD, FlowAPGD, FlowVertex, StAdv, FirstOrder, Elastic),
)


def raises_any_loss(attack: Attack) -> bool:
    """Whether an attack never looks at the labels itself: these may be anything the loss takes."""
    return isinstance(attack, RAISE_ANY_LOSS)
