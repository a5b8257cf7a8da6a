"""A gallery of broken defences end to end: each is found out, and escalation brings it down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attack_stage import COUNT, a_net, the_data
from broken_defences import Noisy, with_winners
from test_attacks_table import passes_counted
from test_trust import BROKEN, BUDGET, CPU, HONEST, baseline, data, trained
from torch import nn

from robustbench_gpm.attacks import ATTACKS, Attack
from robustbench_gpm.attacks.apgd import APGD
from robustbench_gpm.attacks.ensemble import Ensemble
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.attacks.smoothed import SmoothedPGD
from robustbench_gpm.attacks.square import Square
from robustbench_gpm.core import Samples
from robustbench_gpm.escalation import escalated, remedies
from robustbench_gpm.evaluator import Evaluator, Subject
from robustbench_gpm.records import Records
from robustbench_gpm.sweep import AttackPlan
from robustbench_gpm.tasks import Classification
from robustbench_gpm.trust import ESCALATION, REMEDIES, Flag
from robustbench_gpm.trust.flags import MEANINGS, raised

HASHES: dict[str, object] = dict.fromkeys(("weights_hash", "data_hash", "configuration_hash"), "0")


def evaluated(
    model: nn.Module,
    budget: float = BUDGET,
    count: int = 100,
    attack: Attack | None = None,
    escalate: bool = True,
) -> Records:
    who = Subject("net", model, data().limit(count), Classification(), HASHES)
    running = Evaluator(who, CPU, checks=True, escalate=escalate)
    running.attack(AttackPlan("pgd", attack or PGD(), (budget,)))
    return running.records()


def robust(records: Records) -> float:
    (attack,) = records.attacks
    return float((records.right & ~attack.fooled()[-1]).mean())


def flag(name: str) -> Flag:
    return raised(name, 1.0, 0.0)[0]


DEFENCES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], float, int]] = {
    name: (lambda: trained(0.0), lambda made=made: made(trained(0.0)).eval(), BUDGET, 100)
    for name, (made, _) in BROKEN.items()
    if name != "jpeg"
}
DEFENCES["jpeg"] = (lambda: trained(0.0), lambda: BROKEN["jpeg"][0](trained(0.0)), BUDGET, 30)
DEFENCES["winners"] = (
    baseline,
    lambda: with_winners(baseline(), *data("train").batch(slice(None))),
    32 / 255,
    30,
)


@pytest.mark.parametrize("name", DEFENCES)
def test_a_broken_defence_is_flagged_and_brought_down(name: str) -> None:
    undefended, broken, budget, count = DEFENCES[name]
    honest = robust(evaluated(undefended(), budget, count, escalate=False))
    records = evaluated(broken(), budget, count)
    assert {flag["kind"] for flag in records.flags} == {"doubt"}
    assert robust(records) <= honest + 0.05
    assert records.provenance["escalated"]
    assert "pgd" in records.attacks[0].hyperparameters


@pytest.mark.parametrize("name", ["loud logits", "detached", "quantised", "backwards"])
def test_a_masked_gradient_survives_the_attack_alone_but_not_unflagged(name: str) -> None:
    records = evaluated(BROKEN[name][0](trained(0.0)).eval(), count=60, escalate=False)
    assert robust(records) > 0.5
    assert {flag.get("at") for flag in records.flags} == {"linf 51/255"}
    assert records.provenance["escalated"] == {}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_raises_no_flag_and_is_attacked_as_asked(name: str) -> None:
    count = 40 if name in ("baseline", "flow gradient") else 100
    records = evaluated(HONEST[name](), 16 / 255, count)
    assert records.flags == ()
    assert records.provenance["escalated"] == {}
    assert records.attacks[0].hyperparameters == repr(PGD())


def test_the_records_say_what_was_added_why_and_who_broke_what() -> None:
    records = evaluated(BROKEN["loud logits"][0](trained(0.0)), count=40)
    (attack,) = records.attacks
    assert attack.name == "pgd"
    assert attack.hyperparameters.startswith("Escalated(members=(('pgd', PGD(")
    assert "('logit_scale_free_loss', APGD(" in attack.hyperparameters
    assert "logit_scale_free_loss" in attack.broken_by
    told = records.provenance["escalated"]
    assert isinstance(told, dict)
    assert told["pgd"]["attack"] == repr(PGD())
    assert set(told["pgd"]["because_of"]) == {flag["name"] for flag in records.flags}


def test_every_remedy_is_an_attack_of_the_same_norm() -> None:
    flags = [flag(name) for name in MEANINGS]
    for norm in ("linf", "l2"):
        found = escalated(PGD(norm), flags, "pgd")
        assert isinstance(found, Ensemble)
        assert [name for name, _ in found.members] == ["eot", "pgd", "more_steps", *REMEDIES[2:]]
        members = dict(found.members)
        assert {attack.threat.name for attack in members.values()} == {norm}
        assert members["pgd"] == PGD(norm)
        assert members["more_steps"] == PGD(norm, steps=100)
        assert members["eot"] == APGD(norm, samples_per_gradient=20)
        assert members["logit_scale_free_loss"] == APGD(norm, loss="dlr")
        assert isinstance(members["black_box"], Square)
        assert isinstance(members["smoothed_gradient"], SmoothedPGD)


@pytest.mark.parametrize("name", MEANINGS)
def test_a_flag_adds_its_own_remedies_alone(name: str) -> None:
    found = escalated(PGD(), [flag(name)], "pgd")
    added = {member for member, _ in found.members} if isinstance(found, Ensemble) else {"pgd"}
    assert added == {"pgd", *ESCALATION[name]}
    assert set(remedies([flag(name)])) == set(ESCALATION[name])


def test_what_has_no_steps_gets_restarts_or_another_attack() -> None:
    def longer(attack: Attack) -> Attack:
        found = escalated(attack, [flag("more_steps_still_help")])
        assert isinstance(found, Ensemble)
        return found.members[-1][1]

    assert longer(Square(restarts=2)) == Square(restarts=10)
    assert longer(ATTACKS["fgsm"]) == APGD(steps=500)
    assert longer(ATTACKS["autoattack"]) == APGD(steps=500)


def test_an_ensemble_keeps_its_members_and_gets_none_twice() -> None:
    flags = [flag("zero_gradients")]
    whole = ATTACKS["autoattack"]
    assert isinstance(whole, Ensemble)
    found = escalated(whole, flags)
    assert isinstance(found, Ensemble)
    assert found.members[: len(whole.members)] == whole.members
    assert escalated(found, flags) is found
    assert escalated(APGD(loss="dlr"), [flag("softmax_outputs")]) == APGD(loss="dlr")


def test_other_threats_and_no_flags_change_nothing() -> None:
    for name in ("stadv", "apgd-l1"):
        assert escalated(ATTACKS[name], [flag("zero_gradients")]) is ATTACKS[name]
    assert escalated(PGD(), []) == PGD()
    assert escalated(PGD(), [flag("classes")]) == PGD()


def test_what_scouts_for_the_attack_scouts_for_its_escalation() -> None:
    flags = [flag("randomised_outputs")]
    assert escalated(PGD("l2"), flags).scout == PGD("l2").scout
    assert escalated(Square(), flags).scout is None


def test_of_a_random_model_the_mean_gradient_finds_more() -> None:
    """An image that fooled once by luck must not be lost to those that would fool for good."""
    x, y = data().limit(60).batch(slice(None))
    model, flags = Noisy(trained(0.0), 0.3), [flag("randomised_outputs")]

    def right(attack: Attack) -> float:
        torch.manual_seed(0)
        images = attack(model, x, y, budget=0.1)
        with torch.no_grad():
            logits = torch.stack([model(images).softmax(1) for _ in range(50)]).mean(0)
        return float((logits.argmax(1) == y).double().mean())

    assert right(escalated(PGD(), flags)) < right(PGD()) - 0.05


def test_smoothed_ascent_costs_what_it_says_and_books_it() -> None:
    net = a_net()
    x, y = the_data(net)
    samples = Samples(range(COUNT))
    with passes_counted(net) as counted:
        SmoothedPGD(steps=7, draws=3)(net, x, y, budget=1e-6, samples=samples)
    assert samples.forwards.tolist() == [7 * (3 + 1)] * COUNT
    assert samples.backwards.tolist() == [7 * 3] * COUNT
    assert counted == {"forwards": 28 * COUNT, "backwards": 21 * COUNT}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_sees_the_slope_under_a_ripple(norm: str) -> None:
    x, y = data().limit(60).batch(slice(None))
    model = BROKEN["drowned"][0](trained(0.0)).eval()
    budget = 0.15 if norm == "linf" else 0.75

    def fooled(attack: Attack) -> int:
        return int((model(attack(model, x, y, budget=budget)).argmax(1) != y).sum())

    smooth = SmoothedPGD(norm, steps=20)  # type: ignore[arg-type]
    assert fooled(smooth) > fooled(replace(smooth, draws=1, noise=0.0)) + 5
