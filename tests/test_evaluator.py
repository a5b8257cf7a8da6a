"""The evaluator on models whose smallest fooling budgets are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from attack_stage import quick
from torch import Tensor, nn

from robustbench_gpm import evaluator as module
from robustbench_gpm.attacks import ATTACKS, Attack, Threat
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import Loss, Samples, UserError
from robustbench_gpm.datasets import Split
from robustbench_gpm.evaluator import Evaluator, Subject
from robustbench_gpm.records import Records
from robustbench_gpm.sweep import SCOUT, AttackPlan
from robustbench_gpm.tasks import Classification

HASHES: dict[str, object] = dict.fromkeys(("weights_hash", "data_hash", "configuration_hash"), "0")
BUDGETS = (0.05, 0.1, 0.2)
GREYS = torch.tensor([3, 80, 105, 115, 140, 160, 200, 250, 130], dtype=torch.uint8)
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0])  # the last one is wrong without any attack


class Brightness(nn.Module):
    """Class 1 where the image is brighter than a half, so a linf budget of |grey - .5| fools it."""

    def __init__(self, sharpness: float = 10.0) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, x: Tensor) -> Tensor:
        lead = self.sharpness * (x.flatten(1).mean(1) - 0.5)
        return torch.stack((-lead, lead), dim=1)


def split() -> Split:
    images = GREYS.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return Split(images, LABELS, torch.arange(len(LABELS)) + 100, ("dark", "bright"))


def subject(model: nn.Module | None = None) -> Subject:
    return Subject("brightness", model or Brightness(), split(), Classification(), HASHES)


def plan(attack: Attack | None = None) -> AttackPlan:
    return AttackPlan("pgd", attack or PGD(random_start=False), BUDGETS)


def measure(who: Subject, one: AttackPlan, **options: int) -> Records:
    running = Evaluator(who, torch.device("cpu"), **options)  # type: ignore[arg-type]
    running.attack(one)
    return running.records()


def evaluate(
    model: nn.Module | None = None, attack: Attack | None = None, size: int = 4
) -> Records:
    return measure(subject(model), plan(attack), batch_size=size)


def expected() -> np.ndarray:
    distance = (GREYS.double() / 255 - 0.5).abs().numpy()
    smallest = [min((b for b in BUDGETS if b > d), default=np.nan) for d in distance]
    smallest[-1] = 0.0
    return np.array(smallest)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_smallest_budgets_are_the_known_ones(size: int) -> None:
    records = evaluate(size=size)
    (pgd,) = records.attacks
    np.testing.assert_array_equal(pgd.smallest_budget, expected())
    assert pgd.broken_by[-1] == "clean"
    assert pgd.broken_by[0] is None
    assert pgd.broken_by[3] == SCOUT  # on a linear model one step does it
    assert records.index.tolist() == list(range(100, 109))


def test_nobody_left_ends_the_attack() -> None:
    (pgd,) = measure(subject(), AttackPlan("pgd", PGD(), (0.6, 0.8, 1.0))).attacks
    assert set(pgd.smallest_budget) == {0.0, 0.6}


def test_a_sample_withstands_one_attack_at_most() -> None:
    """What costs is to withstand, and a sample is done at the first budget where it does."""
    (pgd,) = evaluate().attacks
    steps = PGD().steps
    assert pgd.backwards[pgd.smallest_budget == 0].tolist() == [0]
    assert pgd.backwards[pgd.smallest_budget == BUDGETS[0]].max() <= 2
    assert pgd.backwards.max() < 2 * steps


def test_a_sweep_that_shares_nothing_pays_for_every_budget() -> None:
    running = Evaluator(subject(), torch.device("cpu"), shared=False)
    running.attack(plan(PGD(random_start=False, early_stop=False)))
    (pgd,) = running.records().attacks
    np.testing.assert_array_equal(pgd.smallest_budget, expected())
    assert set(pgd.backwards.tolist()) == {0, len(BUDGETS) * PGD().steps}
    assert set(pgd.broken_by) == {"clean", "pgd", None}


def test_the_book_holds_every_pass_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "copies", lambda model, sample: ([], {}))
    model = Brightness()
    passes = {"forwards": 0, "backwards": 0}

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes["forwards"] += len(inputs[0])
        if output.requires_grad:
            output.register_hook(lambda g: passes.update(backwards=passes["backwards"] + len(g)))

    model.register_forward_hook(count)
    running = Evaluator(subject(model), torch.device("cpu"), batch_size=4)
    passes.update(forwards=0, backwards=0)  # what came before belongs to no attack
    running.attack(plan())
    (pgd,) = running.records().attacks
    assert pgd.forwards.sum() == passes["forwards"]
    assert pgd.backwards.sum() == passes["backwards"]
    assert pgd.seconds.sum() > 0


def test_a_search_copy_that_lies_makes_nobody_robust(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that calls everything fooled stops every attack at once; the model itself decides."""
    liar = Brightness(-10.0)
    monkeypatch.setattr(module, "copies", lambda model, sample: ([liar], {}))
    (pgd,) = evaluate().attacks
    np.testing.assert_array_equal(pgd.smallest_budget, expected())


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(Brightness(), nn.Dropout()).train()
    evaluate(model)
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_dropout_and_training_mode_do_not_reach_the_verdict() -> None:
    (pgd,) = evaluate(nn.Sequential(Brightness(), nn.Dropout(0.9)).train()).attacks
    np.testing.assert_array_equal(pgd.smallest_budget, expected())


@dataclass(frozen=True)
class Overreaching(Attack):
    """Takes twice the budget it was given."""

    @property
    def threat(self) -> Threat:
        return ATTACKS["pgd"].threat

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        return (x + 2 * budget).clamp(0, 1)


def test_an_attack_outside_its_budget_is_caught() -> None:
    with pytest.raises(RuntimeError, match="Overreaching.* broke its word"):
        evaluate(attack=Overreaching())


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="brightness gives outputs that are NaN or infinite"):
        evaluate(Brightness(float("nan")))


@pytest.mark.parametrize("attack", ["pgd", "stadv"])
def test_examples_are_fooled_samples_whatever_the_batch(attack: str) -> None:
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) * 4
    images = (GREYS.view(-1, 1, 1, 1).float() * 0.7 + ramp).to(torch.uint8)
    shown = []
    for size in (2, 100):
        data = Split(images, LABELS, torch.arange(len(LABELS)), ("dark", "bright"))
        who = Subject("brightness", Brightness(), data, Classification(), HASHES)
        budgets = (0.05, 0.1, 0.2, 1.0)
        one = AttackPlan(attack, ATTACKS[attack], budgets)
        records = measure(who, one, batch_size=size, examples=2)
        for example in records.examples:
            row = records.index.tolist().index(example.index)
            assert example.prediction != example.label == example.clean_prediction
            assert records.attacks[0].smallest_budget[row] == example.budget
            assert (example.flow is not None) == (attack == "stadv")
        shown.append([(e.index, e.budget) for e in records.examples])
    assert shown[0] == shown[1]
    assert len(shown[0]) == len(set(shown[0])) >= 2


class Rows(nn.Module):
    """A linear model of so many classes; `folded` adds one that no image can ever come near."""

    def __init__(self, classes: int, *, folded: bool = False) -> None:
        super().__init__()
        weight = torch.randn(classes, 36, generator=torch.manual_seed(8))
        self.weight, self.folded = nn.Parameter(weight), folded

    def forward(self, x: Tensor) -> Tensor:
        logits = (x.flatten(1) - 0.5) @ self.weight.T
        return nn.functional.pad(logits, (0, 1), value=-1e4) if self.folded else logits

    def distances(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """To the nearest boundary, far from the edges of the unit cube; linf or l2, (B,)."""
        logits, weight = (x.flatten(1) - 0.5) @ self.weight.T, self.weight
        short = logits.gather(1, y[:, None]) - logits
        slope = (weight[y][:, None] - weight).norm(p=1 if norm == "linf" else 2, dim=2)
        return (short / slope).scatter(1, y[:, None], torch.inf).amin(1).detach()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("absent", [False, True])
def test_few_classes_absent_ones_and_folded_ones_are_no_trouble(
    classes: int, folded: bool, absent: bool, norm: str
) -> None:
    model = Rows(classes, folded=folded)
    noise = torch.randint(-30, 31, (16, 1, 6, 6), generator=torch.manual_seed(9))
    images = (128 + noise).to(torch.uint8)
    x = images.float() / 255
    y = model(x).argmax(1).detach()
    assert len(y.unique()) == classes
    here = y > 0 if absent else y >= 0
    images, x, y = images[here], x[here], y[here]
    away = model.distances(x, y, norm)
    ranked = away.sort().values
    gaps = (ranked[1:] / ranked[:-1]).argsort(descending=True)[:3].sort().values
    budgets = tuple((ranked[gaps] * ranked[gaps + 1]).sqrt().tolist())
    names = tuple("abcd"[: classes + folded])
    data = Split(images, y, torch.arange(len(y)), names)
    who = Subject("rows", model, data, Classification(), HASHES)
    name = "autoattack" if norm == "linf" else "autoattack-l2"
    one = AttackPlan(name, quick(ATTACKS[name]), budgets)
    wanted = [min((b for b in budgets if b >= d), default=np.nan) for d in away.tolist()]
    sizes = (1, 100) if classes == 2 else (100,)
    for size in sizes:
        (found,) = measure(who, one, batch_size=size).attacks
        np.testing.assert_array_equal(found.smallest_budget, wanted)
        members = {"apgd-ce", "apgd-t", "fab-t", "square", None}
        assert set(found.broken_by) <= members


@pytest.mark.parametrize("name", ["autoattack-l1", "autoattack-plus", "autoattack-rand", "fast"])
def test_two_classes_and_a_batch_of_one_suit_every_ensemble(name: str) -> None:
    attack = quick(ATTACKS[name])
    budgets = (3.0, 20.0) if attack.threat.name == "l1" else BUDGETS
    away = (GREYS.double() / 255 - 0.5).abs().numpy() * (16 if len(budgets) == 2 else 1)
    (found,) = measure(subject(), AttackPlan(name, attack, budgets), batch_size=1).attacks
    wanted = np.array([min((b for b in budgets if b > d), default=np.nan) for d in away])
    wanted[-1] = 0.0
    np.testing.assert_array_equal(found.smallest_budget, wanted)
