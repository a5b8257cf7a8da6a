"""Losses of detectors: which parts they are made of, which way attacks go, and who is fooled."""

from __future__ import annotations

import pytest
import torch
from detectors import LABELS, every, images, one_stage, smooth, two_stage
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import Samples, UserError, frozen
from robustbench_gpm.datasets import Split
from robustbench_gpm.evaluator import Subject
from robustbench_gpm.graded import GradedEvaluator
from robustbench_gpm.models import ModelOptions
from robustbench_gpm.models.detection_dense import digits_detector
from robustbench_gpm.sweep import AttackPlan
from robustbench_gpm.tasks import Detection
from robustbench_gpm.tasks.detection_losses import DETECTION_LOSSES, fooled


class Told(nn.Module):
    """A detector that says what it is told, and remembers the labels it was given."""

    def __init__(self, **losses: list[float]) -> None:
        super().__init__()
        self.losses, self.given = losses, []

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        if y is None:
            return torch.tensor([[[2.0, 3, 14, 15, 0.9, 1]], [[5, 4, 12, 17, 0.4, 2]]])
        self.given.append(y)
        return {part: torch.tensor(values) for part, values in self.losses.items()}


TWO = {"objectness": [1.0, 2.0], "classification": [10.0, 20.0], "box": [100.0, 200.0]}
ONE = {part: TWO[part] for part in ("classification", "box")}


@pytest.mark.parametrize(
    ("name", "losses", "expected"),
    [
        ("total", TWO, [111, 222]),
        ("total", ONE, [110, 220]),
        ("classification", TWO, [10, 20]),
        ("objectness", TWO, [1, 2]),
        ("box", ONE, [100, 200]),
        ("vanishing", TWO, [-11, -22]),
        ("vanishing", ONE, [-10, -20]),
        ("fabrication", TWO, [11, 22]),
        ("fabrication", ONE, [10, 20]),
    ],
)
def test_a_loss_is_its_parts(name: str, losses: dict, expected: list[float]) -> None:
    model, x, y = Told(**losses), images(2, torch.float32), LABELS[:2]
    loss = DETECTION_LOSSES[name]
    assert loss(model, x, y).tolist() == expected
    boxless = name in {"vanishing", "fabrication"}
    assert torch.equal(model.given[0], torch.full_like(y, -1) if boxless else y)
    values, broken = loss.judged(model, x, y)
    assert values.tolist() == expected
    # One of two boxes is found in the first image; in the second, the one there has a low score.
    assert broken.tolist() == [False, True]
    assert torch.equal(broken, fooled(model(x), y))


def test_a_loss_of_a_part_that_is_not_there_says_so() -> None:
    with pytest.raises(UserError, match="no objectness loss.*classification, box"):
        DETECTION_LOSSES["objectness"](Told(**ONE), images(2), LABELS[:2])
    with pytest.raises(UserError, match="no classification or objectness loss.*it has loss_box"):
        DETECTION_LOSSES["vanishing"](Told(loss_box=[1.0, 2.0]), images(2), LABELS[:2])


def test_vanishing_is_the_background_s_likelihood_at_every_anchor() -> None:
    """TOG on a detector without objectness: all anchors against no label, here by focal loss."""
    model, x = smooth(one_stage), images()
    logits = model._looked_at(x)[0]  # type: ignore[operator]
    p = logits.sigmoid()
    each = 0.75 * p**2 * -(1 - p).log()
    expected = each.sum((1, 2))
    for name, sign in (("vanishing", -1), ("fabrication", 1)):
        values = DETECTION_LOSSES[name](model, x, LABELS.double())
        torch.testing.assert_close(values, sign * expected)


def test_in_two_stages_it_is_that_of_the_likeliest_anchors_and_proposals() -> None:
    """Cross-entropies of both stages against the background, each the mean of what counts."""
    model, x = smooth(two_stage), images()
    maps, logits, _, _, proposals = model._proposed(x)  # type: ignore[operator]
    for place in range(len(x)):
        first = -(1 - logits[place].topk(24).values.sigmoid()).log().mean()
        of_one = [m[place : place + 1] for m in maps]
        second, _ = model._look_at(of_one, [proposals[place][:12]])  # type: ignore[operator]
        expected = first - second.log_softmax(1)[:, 0].mean()
        value = DETECTION_LOSSES["vanishing"](model, x, LABELS.double())[place]
        torch.testing.assert_close(-value, expected)


@every
@pytest.mark.parametrize("name", ["total", "vanishing", "fabrication"])
def test_every_image_has_its_own_loss_with_a_gradient(make, name: str) -> None:
    model, x = smooth(make), images().requires_grad_()
    values = DETECTION_LOSSES[name](model, x, LABELS.double())
    assert values.shape == (3,)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def squares(count: int) -> tuple[Tensor, Tensor]:
    corner = torch.randint(0, 20, (count, 2))
    x, y = 0.1 * torch.rand(count, 1, 32, 32), torch.zeros(count, 1, 5)
    for i, (left, top) in enumerate(corner.tolist()):
        x[i, 0, top : top + 11, left : left + 11] = 0.6
        y[i, 0] = torch.tensor([left, top, left + 11, top + 11, 0])
    return x, y


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = digits_detector(ModelOptions(1, 1, 32, (0.0,), (1.0,)))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        x, y = squares(16)
        optimiser.zero_grad()
        DETECTION_LOSSES["total"](model, x, y).mean().backward()
        optimiser.step()
    return model.eval()


def test_attacks_make_objects_vanish_and_appear(trained: nn.Module) -> None:
    x, y = squares(8)
    before = trained(x)
    assert not fooled(before, y).any()
    attack = PGD(steps=20, early_stop=False)
    counts, broken = {}, {}
    for name in ("vanishing", "fabrication", "total"):
        loss, samples = DETECTION_LOSSES[name], Samples(torch.arange(8))
        with frozen(trained):
            attacked = attack(trained, x, y, budget=0.5, loss=loss, samples=samples)
        found = trained(attacked)
        counts[name] = (found[..., 4] >= 0.5).sum(1).float().mean()
        broken[name] = fooled(found, y).float().mean()
    assert counts["vanishing"] == 0
    assert counts["fabrication"] >= 2  # where there is one square
    assert broken["vanishing"] == 1
    assert broken["total"] == 1


def test_so_do_the_table_s_attacks_in_an_evaluation(trained: nn.Module) -> None:
    x, y = squares(4)
    split = Split((255 * x).to(torch.uint8), y, torch.arange(4), ("square",))
    told: dict[str, object] = dict.fromkeys(
        ("weights_hash", "data_hash", "configuration_hash"), "x"
    )
    measuring = GradedEvaluator(
        Subject("squares", trained, split, Detection(), told), torch.device("cpu"), examples=4
    )
    assert (trained(split.batch(slice(None))[0])[..., 4] >= 0.5).sum(1).tolist() == [1] * 4
    confident = {}
    for name, budget in (
        ("pgd-vanishing", 0.4),
        ("pgd-fabrication", 0.5),
        ("flow-pgd-vanishing", 4.0),
    ):
        measuring.attack(AttackPlan(name, ATTACKS[name], (budget,)))
        attacked = [torch.from_numpy(picture.attacked) for picture in measuring.pictures[name]]
        confident[name] = float((torch.stack(attacked)[..., 4] >= 0.5).sum()) / 4
    assert confident["pgd-vanishing"] == 0
    assert confident["flow-pgd-vanishing"] < 1
    assert confident["pgd-fabrication"] > 1
