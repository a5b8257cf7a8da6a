"""The attacks by name. Installed and imported as `robustbench_gpm.attacks`."""

from ..core import Table
from .base import Attack, FlowAttack
from .fgsm import FGSM
from .flow import FlowPGD
from .pgd import PGD
from .stadv import StAdv
from .stadv_lbfgs import StAdvLBFGS
from .threats import Threat

ATTACKS: Table[Attack] = Table(
    "attack",
    {
        "fgsm": FGSM(),
        "fgsm-l2": FGSM(norm="l2"),
        "pgd": PGD(),
        "pgd-l2": PGD(norm="l2"),
        "flow-pgd": FlowPGD(),
        "fgr": FlowPGD(steps=100, step_size=1 / 100),
        "stadv": StAdv(),
        "stadv-lbfgs": StAdvLBFGS(),
    },
)

__all__ = ["ATTACKS", "Attack", "FlowAttack", "Threat"]
