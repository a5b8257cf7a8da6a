"""Families of flows against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_gpm.attacks.splines import ThinPlate
from robustbench_gpm.attacks.transforms import Affine, Family, Rigid, Scale
from robustbench_gpm.deformation import max_displacement, warp

FAMILIES: list[Family] = [Rigid(), Rigid(0.3, 100.0), Scale(), Affine(1.5), ThinPlate(3, 0.8)]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.manual_seed(seed)
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1


def some(family: Family, count: int = 6) -> Tensor:
    return noise(count, family.count)


def a_matrix(family: Family, p: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map of homogeneous centred places, as a textbook writes it."""
    if isinstance(family, Rigid):
        angle = p[2] * family.rotation * np.pi / 180
        right, down = p[0] * family.translation * width, p[1] * family.translation * height
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, -sin, right], [sin, cos, down]])
    if isinstance(family, Scale):
        zoom = family.most ** p[0] if p[0] > 0 else family.least ** -p[0]
        return np.array([[1 / zoom, 0, 0], [0, 1 / zoom, 0]])
    assert isinstance(family, Affine)
    a, b = 2 / (width - 1), 2 / (height - 1)
    rows = np.array([[a * p[1], b * p[2], p[0]], [a * p[4], b * p[5], p[3]]])
    return np.eye(2, 3) + family.reach * rows


@pytest.mark.parametrize("family", FAMILIES[:4], ids=str)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 12)])
def test_flows_follow_the_matrix_formula(family: Family, height: int, width: int) -> None:
    parameters = some(family)
    flow = family.flow(parameters, height, width).numpy()
    for p, one in zip(parameters.numpy(), flow, strict=True):
        matrix = a_matrix(family, p, height, width)
        for row in range(height):
            for column in range(width):
                place = np.array([column - (width - 1) / 2, row - (height - 1) / 2, 1])
                np.testing.assert_allclose(
                    one[:, row, column], matrix @ place - place[:2], atol=1e-12
                )


@every_family
def test_sizes_in_closed_form_are_those_of_the_flows(family: Family) -> None:
    for height, width in ((8, 8), (5, 12), (12, 5)):
        parameters = some(family, 50)
        expected = max_displacement(family.flow(parameters, height, width))
        torch.testing.assert_close(family.size(parameters, height, width), expected)
        inside = max_displacement(family.flow(some(family, 200), height, width)).max()
        if not isinstance(family, Affine | ThinPlate):  # whose signs do not all agree on a ray
            assert inside <= family.largest(height, width) * (1 + 1e-12)


@every_family
def test_parameters_of_zero_move_nothing_and_gradients_are_right(family: Family) -> None:
    none = torch.zeros(2, family.count, dtype=torch.float64)
    assert not family.flow(none, 6, 7).any()
    assert not family.size(none, 6, 7).any()
    parameters = some(family, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: family.flow(p, 6, 7), (parameters,))
    x = torch.rand(2, 1, 6, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: warp(x, family.flow(p, 6, 7)), (parameters,))


@pytest.mark.parametrize("side", [7, 8, 32])
def test_a_quarter_turn_is_rot90(side: int) -> None:
    x = torch.rand(2, 3, side, side)
    quarter = torch.tensor([[0, 0, 1.0], [0, 0, -1.0]], dtype=torch.float64)
    flow = Rigid(0.0, 90.0).flow(quarter, side, side)
    turned = warp(x, flow.float())
    assert torch.equal(turned[0], torch.rot90(x[0], 1, (1, 2)))
    assert torch.equal(turned[1], torch.rot90(x[1], -1, (1, 2)))
    torch.testing.assert_close(warp(x.double(), flow), turned.double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", [8, 32, 224])
def test_a_shift_by_a_pixel_moves_by_a_pixel(side: int) -> None:
    x = torch.rand(1, 1, side, side)
    family = Rigid(1 / side)
    shifts = torch.tensor([[1.0, 0, 0], [0, -1.0, 0]], dtype=torch.float64)
    flow = family.flow(shifts, side, side).float()
    right, up = warp(x.expand(2, -1, -1, -1), flow)
    assert torch.equal(right[:, :, :-1], x[0, :, :, 1:])
    assert torch.equal(up[:, 1:], x[0, :, :-1])
    assert max_displacement(flow).tolist() == [1, 1]


def test_a_zoom_enlarges() -> None:
    column = torch.arange(9.0).expand(1, 1, 9, 9) / 9
    zoomed = warp(column, Scale(0.5, 2.0).flow(torch.tensor([[1.0]]), 9, 9))
    torch.testing.assert_close(zoomed[0, 0, 0], (torch.arange(9.0) / 2 + 2) / 9)


def test_splines_interpolate_and_reproduce_affine_maps() -> None:
    height, width, points = 10, 7, 4  # control points at every third row and every second column
    family, plain = ThinPlate(points, 1.3), Affine(0.7)
    moves = some(family)
    flow = family.flow(moves, height, width)
    nodes = flow[:, :, ::3, ::2]
    torch.testing.assert_close(nodes, 1.3 * moves.view(-1, 2, points, points))
    wanted = plain.flow(some(plain), height, width)
    at_nodes = wanted[:, :, ::3, ::2].flatten(1) / 1.3
    torch.testing.assert_close(family.flow(at_nodes, height, width), wanted)
    # Bent as little as can be: any other flow through the nodes, as the bilinear one, bends more.
    straight = nn.functional.interpolate(
        nodes, (height, width), mode="bilinear", align_corners=True
    )
    assert (bend(flow) < bend(straight)).all()


def bend(flow: Tensor) -> Tensor:
    return sum(flow.diff(2, dim=d).square().flatten(1).sum(1) for d in (2, 3))


@settings(max_examples=30, deadline=None)
@given(
    p=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    translation=st.floats(0.01, 0.5),
    rotation=st.floats(1, 170),
    budget=st.floats(0, 4),
)
def test_a_rigid_flow_gives_its_parameters_back_and_stays_rigid_when_drawn_in(
    p: list[float], translation: float, rotation: float, budget: float
) -> None:
    family = Rigid(translation, rotation)
    parameters = torch.tensor([p], dtype=torch.float64)
    flow = family.flow(parameters, 6, 9)
    torch.testing.assert_close(family.recovered(flow), parameters, rtol=1e-9, atol=1e-9)
    drawn = family.smaller(flow, torch.tensor([budget], dtype=torch.float64))
    size, whole = float(max_displacement(drawn)), float(max_displacement(flow))
    assert size <= budget + 1e-12
    torch.testing.assert_close(family.flow(family.recovered(drawn), 6, 9), drawn)
    if whole <= budget:
        assert torch.equal(drawn, flow)
    elif rotation <= 90:  # beyond, a smaller turn may move a corner further
        assert size == pytest.approx(budget, abs=1e-9)
        share = family.recovered(drawn) / parameters
        moved = parameters.abs() > 1e-3
        torch.testing.assert_close(share[moved], share[moved][:1].expand(int(moved.sum())))


@every_family
def test_drawn_in_flows_fit_their_budgets(family: Family) -> None:
    flow = family.flow(some(family), 8, 8)
    budgets = torch.tensor([0.0, 0.1, 0.3, 0.5, 1.0, 100.0], dtype=torch.float64)
    drawn = family.smaller(flow, budgets)
    assert (max_displacement(drawn) <= budgets + 1e-12).all()
    assert not drawn[0].any()
    assert torch.equal(drawn[5], flow[5])


@settings(max_examples=25, deadline=None)
@given(budget=st.floats(0.01, 2), seed=st.integers(0, 99))
@pytest.mark.parametrize("family", [Rigid(), Affine(), ThinPlate(2)], ids=str)
def test_moves_are_cut_to_the_nearest_that_fit_together(
    family: Family, budget: float, seed: int
) -> None:
    """No other allowed point lies further towards where the moves were: that is nearest."""

    def size(moves: Tensor) -> Tensor:
        if isinstance(family, Rigid):
            return moves[:, :2].abs().amax(1) + moves[:, 2].abs()
        if isinstance(family, Affine):
            return moves.view(-1, 2, 3).abs().sum(2).amax(1)
        return moves.abs().amax(1)

    moves = 2 * noise(10, family.count, seed=seed)
    cut = family.together(moves, budget)
    assert (size(cut) <= budget * (1 + 1e-12)).all()
    assert torch.equal(cut[size(moves) <= budget], moves[size(moves) <= budget])
    others = noise(400, family.count, seed=seed + 1)
    others = torch.cat((others, others.sign(), others * (others.abs() > 0.7)))
    others = budget * others / size(others).clamp_min(1e-9)[:, None]
    towards = ((moves - cut)[:, None] * (others - cut[:, None])).sum(2)
    assert towards.max() <= 1e-9
