"""The fast verdict beside AutoAttack, and AutoAttack's versions beside each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attack_stage import fooled
from test_attacks_apgd import BUDGETS, Digits, digits
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.attacks.autoattack import standard
from robustbench_gpm.attacks.climb import Climbers, HalvingSteps
from robustbench_gpm.attacks.ensemble import Ensemble
from robustbench_gpm.attacks.fab import TargetedFAB
from robustbench_gpm.attacks.fast_verdict import FastVerdict, Phase
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.losses import LOSSES

__all__ = ["digits"]


def verdict(attack: FastVerdict | Ensemble, digits: Digits, budget: float) -> tuple[Tensor, int]:
    """Whom the attack fools, and the passes it takes."""
    net, x, y = digits
    samples = Samples(range(len(x)))
    images = attack(net, x, y, budget=budget, samples=samples)
    return fooled(net, images, y), int((samples.forwards + samples.backwards).sum())


@pytest.mark.parametrize(("norm", "share"), [("linf", 0.5), ("l2", 0.5)])
def test_as_strong_as_autoattack_for_a_tenth_of_its_passes(
    norm: str, share: float, digits: Digits
) -> None:
    slow = Ensemble(tuple(m for m in standard(norm).members))  # type: ignore[arg-type]
    fast_hits, fast_passes = verdict(FastVerdict(norm), digits, share * BUDGETS[norm])  # type: ignore[arg-type]
    slow_hits, slow_passes = verdict(slow, digits, share * BUDGETS[norm])
    assert 0 < slow_hits.sum() < len(slow_hits)
    assert fast_hits.sum() >= slow_hits.sum()
    assert fast_passes <= 0.1 * slow_passes


class Slope(nn.Module):
    """Two classes by the mean grey: to first order, and exactly, what an image misses is known."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1).mean(1) - 0.5
        return torch.stack((-lead, lead), dim=1)


def test_only_who_misses_little_is_spent_more_on() -> None:
    grey = torch.tensor([0.30, 0.39, 0.395, 0.4]).double()  # at a budget of 0.1: 1, .1, .05, 0 more
    x = grey.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    samples = Samples(range(4))
    phases = (Phase(0.5, targets=1, steps=7), Phase(0.07, targets=1, steps=11))
    attack = FastVerdict(steps=3, phases=phases, queries=30, queries_within=0.07)
    attack(Slope(), x, torch.zeros(4, dtype=torch.int64), budget=0.099, samples=samples)
    steps = samples.backwards - 3  # the opening's; a gate takes one each
    assert steps.tolist() == [3, 3 + 7, 3 + 7 + 11, 3 + 7 + 11]
    extra = samples.forwards - samples.backwards
    assert (extra[2:] >= extra[1] + 30).all()


def test_says_which_part_broke_a_sample(digits: Digits) -> None:
    net, x, y = digits
    samples = Samples(range(len(x)))
    images = FastVerdict()(net, x, y, budget=BUDGETS["linf"], samples=samples)
    by = [name is not None for name in samples.broken_by]
    assert by == fooled(net, images, y).tolist()
    assert set(samples.broken_by) - {None} <= {"apgd-ce", "apgd-t", "square"}


def test_phases_must_be_phases() -> None:
    with pytest.raises(UserError, match="phases must be a tuple of Phase"):
        FastVerdict(phases=(3,))  # type: ignore[arg-type]


def test_parity_reviews_the_first_step_against_zero() -> None:
    """The authors' code compares the first step's loss with a zero that nothing was written to."""
    for parity, rises in ((False, [1, 0, 0]), (True, [0, 1, 1])):
        start = torch.zeros(3, 1)
        inside = lambda _, p: p  # noqa: E731
        rule = HalvingSteps(start, 1.0, torch.sign, inside, steps=100, parity=parity)
        now = Climbers(start, torch.zeros(3), start)
        for done, seen in enumerate([[-2.0, 3.0, 1.0], [-1.0, 2.0, 1.0]]):
            nobody = torch.zeros(3, dtype=torch.bool)
            now.learn(torch.tensor(seen), nobody, torch.ones(3, 1))
            now.p = rule.advance(now, done)
        assert rule.rises.tolist() == rises


def test_parity_takes_fab_s_hyperplanes_where_the_walk_has_gone_back_to(digits: Digits) -> None:
    net, x, y = digits
    spent, found = [], []
    for parity in (False, True):
        samples = Samples(range(len(x)))
        attack = TargetedFAB(steps=10, targets=2, parity=parity)
        found.append(attack.nearest(net, x, y, samples=samples))
        spent.append(int(samples.forwards.max()))
    assert spent[1] - spent[0] == 2 * 10
    assert not torch.equal(*found)


def test_versions_hold_the_published_attacks() -> None:
    members = {name: [m for m, _ in ATTACKS[name].members] for name in ATTACKS if "autoatt" in name}  # type: ignore[attr-defined]
    assert members["autoattack"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert members["autoattack-plus-l2"][:3] == ["apgd-ce", "apgd-dlr", "fab"]
    assert members["autoattack-rand"] == ["apgd-ce", "apgd-dlr"]
    plain, parity = standard(), standard(parity=True)
    assert plain != parity
    assert (
        [replace(a, parity=True) for _, a in plain.members[:3]]
        == [  # type: ignore[call-arg]
            a for _, a in parity.members[:3]
        ]
    )
    assert LOSSES[plain.members[3][1].loss_name].name == "margin"  # type: ignore[attr-defined]
