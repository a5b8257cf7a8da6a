"""Linearised boundaries: the step onto one beside scipy's optimum, and which is the nearest."""

from __future__ import annotations

import pytest
import torch
from attack_stage import a_net, the_data
from scipy.optimize import linprog, minimize
from test_attacks_oracles import noise
from torch import Tensor

from robustbench_gpm.attacks.hyperplane import dual_size, linearise, nearest_plane, to_hyperplane
from robustbench_gpm.attacks.threats import THREATS
from robustbench_gpm.core import Samples

every_norm = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def best_in_the_box(x: Tensor, normal: Tensor, gap: float, norm: str) -> float:
    """The least size of a d with <normal, d> = gap and x + d in [0,1], by scipy."""
    n = len(x)
    w, low, high = normal.numpy(), (-x).numpy(), (1 - x).numpy()
    if norm == "l2":
        start = to_hyperplane(x[None], normal[None], torch.tensor([gap]).double(), "linf")[0]
        plane = {"type": "eq", "fun": lambda d: (w * d).sum() - gap, "jac": lambda _: w}
        found = minimize(
            lambda d: (d**2).sum(),
            start.numpy(),
            jac=lambda d: 2 * d,
            bounds=list(zip(low, high, strict=True)),
            constraints=plane,
            method="SLSQP",
            options={"ftol": 1e-9, "maxiter": 500},
        )
        assert found.success
        return float(found.fun**0.5)
    # Linear programmes in (up, down, level): d = up - down, whose parts are all at least 0.
    ends = [(0, float(h)) for h in high] + [(0, float(-a)) for a in low] + [(0, None)]
    plane = [[*w, *-w, 0.0]]
    if norm == "l1":
        cost, above, limits = [1.0] * 2 * n + [0.0], None, None
    else:
        cost, limits = [0.0] * 2 * n + [1.0], [0.0] * 2 * n
        above = [[float(i == j) for i in range(2 * n)] + [-1.0] for j in range(2 * n)]
    found = linprog(cost, above, limits, plane, [gap], bounds=ends)
    assert found.success
    return float(found.fun)


@every_norm
def test_the_step_onto_a_hyperplane_is_the_smallest_inside_the_box(norm: str) -> None:
    torch.manual_seed(5)
    x = torch.rand(12, 9).double()
    x[::3, :4] = torch.randint(0, 2, (4, 4)).double()  # pixels at an end
    normal = torch.randn(12, 9).double() * torch.rand(12, 9).double() ** 2
    normal[::2, 3] = 0
    most = (normal * torch.where(normal > 0, 1 - x, -x)).sum(1)
    least = (normal * torch.where(normal > 0, -x, 1 - x)).sum(1)
    share = torch.linspace(0.02, 0.97, 12).double()
    gap = torch.where(torch.arange(12) % 2 == 0, share * most, share * least)
    d = to_hyperplane(x, normal, gap, norm)
    torch.testing.assert_close((normal * d).sum(1), gap)
    assert (x + d).min() >= -1e-12
    assert (x + d).max() <= 1 + 1e-12
    sizes = THREATS[norm].size(d)
    for i in range(12):
        best = best_in_the_box(x[i], normal[i], float(gap[i]), norm)
        assert float(sizes[i]) == pytest.approx(best, rel=1e-5)


@every_norm
def test_a_hyperplane_out_of_reach_is_met_half_way(norm: str) -> None:
    x = torch.tensor([[0.2, 0.5, 1.0], [0.2, 0.5, 1.0]]).double()
    normal = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]).double()
    d = to_hyperplane(x, normal, torch.tensor([50.0, 1.0]).double(), norm)
    torch.testing.assert_close(d, torch.tensor([[0.8, -0.5, 0.0], [0.0, 0.0, 0.0]]).double())


@every_norm
def test_steps_onto_hyperplanes_survive_tiny_and_huge_normals(norm: str) -> None:
    x, normal = torch.full((1, 50), 0.5), noise(1, 50).float()
    expected = to_hyperplane(x, normal, torch.tensor([0.3]), norm)
    for scale in (1e-30, 1e30):
        d = to_hyperplane(x, scale * normal, torch.tensor([0.3 * scale]), norm)
        torch.testing.assert_close(d, expected)


def test_the_nearest_plane_is_judged_by_the_dual_norm() -> None:
    gradients = torch.tensor([[[3.0, 4.0], [0.0, 6.0]]])
    for norm, sizes, nearest in (("linf", [7, 6], 0), ("l2", [5, 6], 1), ("l1", [4, 6], 1)):
        assert dual_size(gradients, norm).tolist() == [sizes]
        margin, normal = nearest_plane(torch.tensor([[-1.0, -1.0]]), gradients, norm)
        assert margin.tolist() == [-1]
        assert torch.equal(normal, gradients[:, nearest])


def test_margins_are_linearised_where_they_are() -> None:
    net = a_net()
    x, y = the_data(net)
    net.eval()
    classes = torch.stack(((y + 1) % 4, (y + 3) % 4), 1)
    samples = Samples(range(len(x)))
    fooled, margins, gradients = linearise(net, x, y, classes, samples)
    step = 1e-6 * noise(*x.shape)
    _, moved, _ = linearise(net, x + step, y, classes, samples)
    assert not fooled.any()
    assert (margins < 0).all()
    predicted = (gradients * step[:, None]).flatten(2).sum(2)
    torch.testing.assert_close(moved - margins, predicted, rtol=1e-4, atol=1e-12)
    assert samples.backwards.tolist() == [4] * len(x)
