"""The attacks by name. Installed and imported as `robustbench_gpm.attacks`."""

from typing import get_args

from ..core import Table
from .adef import ADef
from .any_loss import raises_any_loss
from .apgd import APGD, TargetedAPGD
from .autoattack import VERSIONS, Norm
from .base import Attack, FlowAttack
from .carlini_wagner import CarliniWagner
from .ddn import DDN
from .deepfool import DeepFool
from .elastic import Elastic
from .exhaustive import RotateTranslate, RotateTranslateRandom, Zoom
from .fab import FAB, TargetedFAB
from .fast_verdict import FastVerdict
from .fgsm import FGSM
from .flow import FlowPGD
from .flow_apgd import FlowAPGD
from .flow_vertex import FlowVertex
from .fmn import FMN
from .minimum_norm import MinimumNormAttack
from .parametric import AffineAscent, RigidAscent, SplineAscent
from .pgd import PGD
from .smoothed import SmoothedPGD
from .square import Square
from .stadv import StAdv
from .stadv_lbfgs import StAdvLBFGS
from .temporal import FlowClipPGD, SharedPGD
from .threats import Threat
from .union import Composed, Union

NORMS: tuple[Norm, ...] = get_args(Norm)
AIMS = ("vanishing", "fabrication")  # of objects


def _suffix(norm: str) -> str:
    """What stands behind a name for a norm other than linf: pgd, pgd-l2."""
    return "" if norm == "linf" else f"-{norm}"


ATTACKS: Table[Attack] = Table(
    "attack",
    {
        "fgsm": FGSM(),
        "fgsm-l2": FGSM(norm="l2"),
        "pgd": PGD(),
        "pgd-l2": PGD(norm="l2"),
        **{f"apgd{_suffix(n)}": APGD(n) for n in NORMS},
        **{f"apgd-dlr{_suffix(n)}": APGD(n, loss="dlr") for n in NORMS},
        **{f"apgd-t{_suffix(n)}": TargetedAPGD(n) for n in NORMS},
        **{f"fab{_suffix(n)}": FAB(n) for n in NORMS},
        **{f"fab-t{_suffix(n)}": TargetedFAB(n) for n in NORMS},
        **{f"square{_suffix(n)}": Square(n) for n in NORMS},
        **{f"fast{_suffix(n)}": FastVerdict(n) for n in NORMS},
        **{f"{name}{_suffix(n)}": make(n) for name, make in VERSIONS.items() for n in NORMS},
        "segpgd": PGD(loss="segpgd"),
        "flow-segpgd": FlowPGD(loss="segpgd"),
        **{f"pgd-{aim}": PGD(loss=aim) for aim in AIMS},
        **{f"flow-pgd-{aim}": FlowPGD(loss=aim) for aim in AIMS},
        "shared-pgd": SharedPGD(),
        "shared-pgd-l2": SharedPGD(norm="l2"),
        "flow-clip-pgd": FlowClipPGD(),
        "smoothed-pgd": SmoothedPGD("linf"),
        "smoothed-pgd-l2": SmoothedPGD("l2"),
        "deepfool": DeepFool("linf"),
        "deepfool-l2": DeepFool("l2"),
        **{f"fmn{_suffix(n)}": FMN(n) for n in NORMS},
        "fmn-l0": FMN("l0"),
        "ddn-l2": DDN(),
        "cw-l2": CarliniWagner(),
        "flow-pgd": FlowPGD(),
        "flow-pgd-l2": FlowPGD(norm="l2"),
        "flow-apgd": FlowAPGD(),
        "flow-apgd-l2": FlowAPGD(norm="l2"),
        "flow-vertex": FlowVertex(),
        "fgr": FlowPGD(steps=100, step_size=1 / 100, rule="fixed"),
        "adef": ADef(),
        "adef-linf": ADef(norm="linf"),
        "adef-rough": ADef(norm="linf", sigma=0.0),
        "stadv": StAdv(),
        "stadv-smooth": StAdv(polish=50),
        "stadv-tau": StAdv(steps=100, over="tau"),
        "stadv-lbfgs": StAdvLBFGS(),
        "stadv-lbfgs-tau": StAdvLBFGS(over="tau"),
        "rotate-translate": RotateTranslate(),
        "rotate-translate-random": RotateTranslateRandom(),
        "rotate-translate-first-order": RigidAscent(),
        "scale": Zoom(),
        "affine": AffineAscent(),
        "tps": SplineAscent(),
        "elastic": Elastic(),
        "union": Union((("pgd", PGD()), ("flow-pgd", FlowPGD())), (8 / 255, 1.0)),
        "composed": Composed(("flow-pgd", FlowPGD()), ("pgd", PGD()), (1.0, 8 / 255)),
    },
    also=(
        "union:<attack>@<budget>+<attack>@<budget>, composed:<attack>@<budget>+<attack>@<budget>, "
        "torchattacks:<class>, foolbox:<class>"
    ),
)

__all__ = ["ATTACKS", "Attack", "FlowAttack", "MinimumNormAttack", "Threat", "raises_any_loss"]
