"""One search that serves every budget: the known answers, at a bounded cost, and never softer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm import checkpoint
from robustbench_gpm import evaluator as module
from robustbench_gpm.attacks import ATTACKS, Attack, MinimumNormAttack, Threat
from robustbench_gpm.attacks.ensemble import Ensemble
from robustbench_gpm.attacks.geometry import shrink
from robustbench_gpm.attacks.perturbed import Perturbed
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.attacks.threats import THREATS
from robustbench_gpm.core import Loss, Samples
from robustbench_gpm.datasets import LoadOptions, Split, load_split
from robustbench_gpm.deformation import warp
from robustbench_gpm.evaluator import Evaluator, Subject
from robustbench_gpm.records import AttackColumns, Records
from robustbench_gpm.sweep import SCOUT, AttackPlan, Sweep
from robustbench_gpm.tasks import Classification
from robustbench_gpm.verdict import Verifier

HASHES: dict[str, object] = dict.fromkeys(("weights_hash", "data_hash", "configuration_hash"), "0")
ROOT = Path(__file__).resolve().parent.parent
COUNT = 10


class Linear(nn.Module):
    """Class 1 wherever <weight, x - 1/2> lies above `shift`."""

    def __init__(self, shift: float = 0.0, sign: float = 1.0) -> None:
        super().__init__()
        weight = torch.randn(1, 6, 6, generator=torch.manual_seed(5))
        self.weight, self.shift, self.sign = nn.Parameter(weight), shift, sign

    def forward(self, x: Tensor) -> Tensor:
        lead = self.sign * ((self.weight * (x - 0.5)).flatten(1).sum(1) - self.shift)
        return torch.stack((-lead, lead), dim=1)


def linear_split() -> Split:
    """Images ever further from the boundary of `Linear`, on both sides in turn."""
    weight = Linear().weight.detach()
    lengths = 0.012 * 1.3 ** torch.arange(COUNT)
    lengths[1::2] *= -1
    grey = torch.randint(-6, 7, (COUNT, 1, 6, 6), generator=torch.manual_seed(6)) / 255
    grey -= weight * (weight * grey).sum((1, 2, 3), keepdim=True) / (weight**2).sum()
    images = (255 * (0.5 + grey + lengths.view(-1, 1, 1, 1) * weight.sign())).round()
    assert images.min() > 0
    assert images.max() < 255
    return labelled(images.to(torch.uint8), (lengths > 0).long())


def labelled(images: Tensor, labels: Tensor) -> Split:
    return Split(images, labels, torch.arange(len(labels)) + 50, ("low", "high"))


def distances(split: Split, norm: str) -> np.ndarray:
    """How far every sample of `linear_split` is from the boundary, in the unit cube."""
    x, _ = split.batch(slice(None))
    weight = Linear().weight.detach()
    pull = (weight * (x - 0.5)).flatten(1).sum(1)
    slope = weight.flatten().abs()
    if norm in ("linf", "l2"):
        return (pull.abs() / slope.norm(p=1 if norm == "linf" else 2)).numpy()  # far from the edges
    # Of l1 and l0 the best is to move values to the edge of the cube, the most rewarding first.
    towards = -(weight * pull.sign().view(-1, 1, 1, 1)).sign()
    room = torch.where(towards > 0, 1 - x, x).flatten(1)
    reward = slope.expand_as(room) if norm == "l1" else slope * room
    order = reward.argsort(1, descending=True)
    gain = (slope * room).gather(1, order)
    short = (pull.abs()[:, None] - (gain.cumsum(1) - gain)).clamp_min(0)
    share = (short / gain).clamp_max(1)  # how much of each value's move is needed
    spent = share * room.gather(1, order) if norm == "l1" else share.ceil()
    return spent.sum(1).numpy()


def budgets_between(away: np.ndarray) -> tuple[float, ...]:
    """Budgets halfway between the distances of every other sample and the next."""
    ranked = np.sort(away)
    return tuple(float(b) for b in (ranked[1:-1:2] * ranked[2::2]) ** 0.5)


def expected(away: np.ndarray, budgets: tuple[float, ...]) -> np.ndarray:
    return np.array([min((b for b in budgets if b >= d), default=np.nan) for d in away])


class Column(nn.Module):
    """Class 1 where the pixel in the middle is brighter than 128/255."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 10 * (x[:, 0, 3, 3] - 128 / 255)
        return torch.stack((-lead, lead), dim=1)


OFFSETS = torch.tensor([2, -5, 9, -15, 24, -36])
STEP = 20  # grey levels a pixel: the sample of offset o is |o| / STEP pixels from the boundary
FLOWS = (0.2, 0.4, 0.6, 1.0, 1.5)


def ramps() -> Split:
    ramp = STEP * (torch.arange(7) - 3).view(1, 1, 1, 7).expand(-1, -1, 7, -1)
    return labelled((128 + ramp + OFFSETS.view(-1, 1, 1, 1)).to(torch.uint8), (OFFSETS > 0).long())


@dataclass(frozen=True)
class Watched(Attack):
    """An attack, and what became of whom at which budget: (index, budget, fooled)."""

    inner: Attack = field(default_factory=PGD)
    seen: list[tuple[int, float, bool]] = field(default_factory=list, repr=False)

    @property
    def threat(self) -> Threat:
        return self.inner.threat

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        images = self.inner.perturb(model, x, y, budget, loss, samples)
        _, fooled = loss.judged(model, images, y)
        who = zip(samples.index.tolist(), fooled.tolist(), strict=True)
        self.seen.extend((index, budget, hit) for index, hit in who)
        return images


@dataclass(frozen=True)
class Best(Attack):
    """What fools `Linear` best in any norm: the most rewarding values moved as far as they go."""

    norm: str = "l0"

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        weight = Linear().weight.detach()
        towards = weight.sign() * (1 - 2 * y).view(-1, 1, 1, 1)
        samples.book(forwards=1)
        if self.norm != "l0":
            direction = weight.abs() * towards if self.norm == "l2" else towards
            return (x + shrink(direction, budget, self.norm)).clamp(0, 1)
        edge = (towards > 0).to(x)
        gain = (weight * (edge - x)).abs().flatten(1)
        rank = gain.argsort(1, descending=True).argsort(1).view_as(x)
        return torch.where(rank < int(budget), edge, x)


def measure(model: nn.Module, split: Split, plan: AttackPlan, **options: Any) -> Records:
    who = Subject("model", model, split, Classification(), HASHES)
    running = Evaluator(who, torch.device("cpu"), **{"batch_size": 4, **options})
    running.attack(plan)
    return running.records()


def columns(model: nn.Module, split: Split, plan: AttackPlan, **options: Any) -> AttackColumns:
    return measure(model, split, plan, **options).attacks[0]


@pytest.mark.parametrize("name", ["pgd", "apgd", "pgd-l2", "apgd-l2", "apgd-l1", "best-l0"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_smallest_budgets_of_a_linear_model_are_found(name: str, shared: bool) -> None:
    attack = Best() if name == "best-l0" else ATTACKS[name]
    data = linear_split()
    away = distances(data, attack.threat.name)
    budgets = (1.0, 2.0, 3.0) if name == "best-l0" else budgets_between(away)
    found = columns(Linear(), data, AttackPlan(name, attack, budgets), shared=shared)
    np.testing.assert_array_equal(found.smallest_budget, expected(away, budgets))
    assert len(np.unique(found.smallest_budget[~np.isnan(found.smallest_budget)])) >= 3
    assert np.isnan(found.smallest_budget).any()


@pytest.mark.parametrize("name", ["flow-pgd", "stadv"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_smallest_flows_over_a_ramp_are_found(name: str, shared: bool) -> None:
    found = columns(Column(), ramps(), AttackPlan(name, ATTACKS[name], FLOWS), shared=shared)
    wanted = expected(OFFSETS.abs().numpy() / STEP, FLOWS)
    np.testing.assert_array_equal(found.smallest_budget, wanted)


@pytest.mark.parametrize(
    "inner", [Best("linf"), Best("l2"), Best("l1"), Best("l0"), ATTACKS["pgd"], ATTACKS["pgd-l2"]]
)
def test_a_sample_withstands_one_attack_at_most_and_is_asked_from_above(inner: Attack) -> None:
    attack, data = Watched(inner), linear_split()
    away = distances(data, inner.threat.name)
    budgets = (1.0, 2.0, 3.0) if inner == Best("l0") else budgets_between(away)
    columns(Linear(), data, AttackPlan("watched", attack, budgets))
    withstood = Counter(index for index, _, hit in attack.seen if not hit)
    assert set(withstood.values()) == {1}
    for index in data.index.tolist():
        asked = [budget for who, budget, _ in attack.seen if who == index]
        assert asked == sorted(set(asked), reverse=True)
        assert asked[0] == budgets[-1]
        if inner in (Best("linf"), Best("l2")):  # the best, drawn in, is the best of less
            assert len(asked) <= 2


def test_without_shared_work_everybody_is_asked_at_every_budget() -> None:
    attack, budgets = Watched(ATTACKS["pgd"]), (0.02, 0.1, 0.2)
    columns(Linear(), linear_split(), AttackPlan("watched", attack, budgets), shared=False)
    asked = Counter((index, budget) for index, budget, _ in attack.seen)
    assert set(asked.values()) == {1}
    assert len(asked) == COUNT * len(budgets)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0", "flow"])
def test_a_perturbation_is_drawn_in_by_each_samples_own_budget(norm: str) -> None:
    attack = ATTACKS["flow-pgd"] if norm == "flow" else Best(norm)
    x = torch.rand(3, 1, 6, 6, generator=torch.manual_seed(1))
    change = torch.randn(3, 2 if norm == "flow" else 1, 6, 6, generator=torch.manual_seed(2))
    limits = torch.tensor([3.0, 7.0, 1000.0]) if norm == "l0" else torch.tensor([0.1, 0.5, 1000.0])
    model = Linear()
    verifier, samples = Verifier(model, [], Classification()), Samples(range(3))
    images = warp(x, change).clamp(0, 1) if norm == "flow" else (x + change).clamp(0, 1)
    given = Perturbed.changed(x, images)
    if norm == "flow":
        given = Perturbed.moved(images, change)
    found = verifier._judged(attack, given, samples)
    drawn = verifier.drawn_in(attack, limits, x, found, samples)
    moved, reached = (p.flow if norm == "flow" else p.change for p in (given, drawn.found))
    wanted = shrink(moved, limits, norm)
    assert not torch.equal(wanted[:2], moved[:2])
    torch.testing.assert_close(reached, wanted, atol=1e-6, rtol=1e-5)
    images_wanted = warp(x, wanted) if norm == "flow" else x + wanted
    torch.testing.assert_close(drawn.found.images, images_wanted)
    assert (drawn.size <= limits * (1 + 1e-5)).all()
    torch.testing.assert_close(drawn.found.images[2], images[2])
    assert drawn.label.tolist() == model(drawn.found.images).argmax(1).tolist()
    assert samples.forwards.tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l0", "pgd", "apgd-l1", "flow-pgd", "stadv"])
def test_every_picture_fools_inside_its_budget(name: str) -> None:
    attack = Best(name) if name in THREATS else ATTACKS[name]
    flow = attack.threat.name == "flow"
    model, data = (Column(), ramps()) if flow else (Linear(), linear_split())
    budgets = FLOWS if flow else budgets_between(distances(data, attack.threat.name))
    budgets = (1.0, 2.0, 3.0) if name == "l0" else budgets
    records = measure(model, data, AttackPlan(name, attack, budgets), examples=100)
    assert len(records.examples) == np.isfinite(records.attacks[0].smallest_budget).sum() >= 4
    for shown in records.examples:
        clean, images = torch.from_numpy(shown.clean)[None], torch.from_numpy(shown.adversarial)
        change = torch.from_numpy(shown.flow)[None] if shown.flow is not None else images - clean
        assert float(attack.threat.size(change)) <= shown.budget * (1 + 1e-5) + 1e-5
        assert int(model(images[None]).argmax()) == shown.prediction != shown.label
        if flow:
            torch.testing.assert_close(warp(clean, change)[0], images, atol=1e-6, rtol=0)


NEAREST = [
    *("fab", "fab-l2", "fab-t-l1", "deepfool", "deepfool-l2", "fmn", "fmn-l2", "fmn-l1"),
    *("fmn-l0", "ddn-l2", "cw-l2"),
]


@pytest.mark.parametrize("name", NEAREST)
def test_one_search_for_the_nearest_gives_distances(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "copies", lambda model, sample: ([], {}))
    attack, asked = ATTACKS[name], list[int]()
    assert isinstance(attack, MinimumNormAttack)
    whole = type(attack).search

    def search(self: Any, *given: Any) -> Tensor:
        asked.extend(given[-1].index.tolist())
        return whole(self, *given)

    monkeypatch.setattr(type(attack), "search", search)
    data = linear_split()
    away = distances(data, attack.threat.name)
    top = 2.0 if name == "fmn-l0" else float(np.sort(away)[-2:].prod() ** 0.5)
    low = 1.0 if name == "fmn-l0" else top / 8
    found = columns(Linear(), data, AttackPlan(name, attack, (low, top)))
    assert asked == data.index.tolist()
    near = away <= top
    assert np.isnan(found.smallest_budget[~near]).all()
    assert (~near).any()
    measured = found.smallest_budget[near]
    np.testing.assert_allclose(measured, away[near], rtol=0.05)
    if name != "fmn-l0":
        assert (measured > away[near] * (1 - 1e-3)).all()
        assert not np.isin(measured, (low, top)).any()
    assert (found.fooled()[1] == near).all()


@pytest.mark.parametrize("name", ["pgd", "pgd-l2", "flow-pgd"])
def test_sharing_work_is_never_softer_on_a_trained_network(name: str, tmp_path: Path) -> None:
    """But for one sample of 64, for chance: PGD may fail at one budget and fool at a smaller one.

    A sample is done where it first withstands; attacked at every budget, it has further chances.
    """
    loaded = checkpoint.load(ROOT / "checkpoints/digits_baseline")
    data = load_split("digits", "test", LoadOptions(None, tmp_path)).limit(64)
    budgets = {"pgd": (0.04, 0.08, 0.12, 0.2), "pgd-l2": (0.2, 0.4, 0.6, 0.8)}
    plan = AttackPlan(name, ATTACKS[name], budgets.get(name, (0.05, 0.1, 0.2, 0.3)))
    shared, unshared = (
        columns(loaded.model, data, plan, shared=shared, batch_size=64) for shared in (True, False)
    )
    ours, theirs = (np.nan_to_num(c.smallest_budget, nan=9.0) for c in (shared, unshared))
    assert len(np.unique(theirs)) >= 4
    assert (ours > theirs).sum() <= 1
    assert shared.backwards.sum() < 0.6 * unshared.backwards.sum()


LIARS = {
    "calls the low ones fooled": [Linear(shift=-1.0)],
    "calls the high ones fooled": [Linear(shift=1.0)],
    "calls everything fooled": [Linear(sign=-1.0)],
    "one after the other": [Linear(shift=-1.0), Linear(shift=1.0)],
    "the faithful one last": [Linear(sign=-1.0), Linear()],
}


@pytest.mark.parametrize("which", LIARS)
@pytest.mark.parametrize("name", ["pgd", "pgd-l2", "apgd"])
def test_a_copy_that_lies_either_way_changes_no_verdict(
    which: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, data = ATTACKS[name], linear_split()
    away = distances(data, attack.threat.name)
    budgets = budgets_between(away)
    monkeypatch.setattr(module, "copies", lambda model, sample: (LIARS[which], {}))
    found = columns(Linear(), data, AttackPlan(name, attack, budgets))
    fooled = np.array([away <= budget for budget in budgets])
    np.testing.assert_array_equal(found.fooled(), fooled)


@dataclass(frozen=True)
class Idle(Attack):
    """Does nothing."""

    @property
    def threat(self) -> Threat:
        return THREATS["linf"]

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        return x


def test_broken_by_names_the_member_that_did_it() -> None:
    data = linear_split()
    away = distances(data, "linf")
    budgets = budgets_between(away)
    near = away <= budgets[-1]
    for members in (("weak", "strong"), ("strong", "weak")):
        parts = tuple((name, Idle() if name == "weak" else Best("linf")) for name in members)
        found = columns(Linear(), data, AttackPlan("both", Ensemble(parts), budgets))
        assert found.broken_by == ["strong" if hit else None for hit in near]
        np.testing.assert_array_equal(found.smallest_budget, expected(away, budgets))
    alone = columns(Linear(), data, AttackPlan("watched", Watched(), budgets))
    assert alone.broken_by == ["watched" if hit else None for hit in near]
    scouted = columns(Linear(), data, AttackPlan("pgd", PGD(), budgets))
    assert scouted.broken_by == [SCOUT if hit else None for hit in near]


def test_who_misses_by_far_is_not_attacked_on_and_who_has_no_gradient_is() -> None:
    """Of the mean grey only: to first order what an image misses is known, and exact."""

    class Step(nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, x: Tensor) -> Tensor:
            lead = self.slope * (x.flatten(1).mean(1) - 0.5) - float(self.slope == 0)
            return torch.stack((-lead, lead), dim=1)

    images = torch.tensor([100, 120], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    split = Split(
        images.contiguous(), torch.zeros(2, dtype=torch.int64), torch.arange(2), ("a", "b")
    )
    plan = AttackPlan("pgd", PGD(), (5 / 255,))
    for slope, gated, steps in (
        (4.0, True, [2, 22]),
        (4.0, False, [21, 21]),
        (0.0, True, [22, 22]),
    ):
        verifier = Verifier(Step(slope), [], Classification())
        sweep = Sweep(plan, verifier, split, torch.device("cpu"), seed=0, gated=gated)
        trails = sweep.run(torch.arange(2))
        # Steps of 5 grey levels from 100 and 120 to 127.5 leave 22.5 and 2.5: 4.5 and .5 budgets.
        assert [trail.backwards for trail in trails] == steps
