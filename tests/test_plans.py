"""What --attack, --set and --budgets ask for."""

from __future__ import annotations

from typing import Any

import pytest

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.stadv import StAdv
from robustbench_gpm.attacks.union import Union
from robustbench_gpm.config import EvaluateConfig
from robustbench_gpm.core import UserError
from robustbench_gpm.plans import Asked, asked_for
from robustbench_gpm.tasks import TASKS, Classification


def asked(*attack: str, **options: Any) -> dict[str, Asked]:
    return {each.name: each for each in asked_for(EvaluateConfig(attack=attack, **options))}


def test_an_option_reaches_every_attack_that_has_it_and_no_other() -> None:
    found = asked("pgd", "flow-pgd", "stadv", set=("padding=zeros", "stadv.tau=1/100", "steps=7"))
    assert found["pgd"].attack == type(ATTACKS["pgd"])(steps=7)  # type: ignore[call-arg]
    assert found["flow-pgd"].attack == FlowPGD(padding="zeros", steps=7)
    assert found["stadv"].attack == StAdv(padding="zeros", tau=0.01, steps=7)


def test_an_option_reaches_the_parts_of_a_union() -> None:
    name = "union:pgd@8/255+flow-pgd@1"
    union = asked(name, set=("padding=zeros", f"{name}.early_stop=false"))[name].attack
    assert isinstance(union, Union)
    flow = union.members[1][1]
    assert isinstance(flow, FlowPGD)
    assert (flow.padding, flow.early_stop) == ("zeros", False)
    assert "padding='zeros'" in repr(union)


def test_budgets_are_each_attacks_own_range_unless_given() -> None:
    found = asked("pgd", "flow-pgd", budgets=("pgd=8/255,2/255",))
    assert found["pgd"].plan(Classification(), 8, 8).budgets == (2 / 255, 8 / 255)
    own = found["flow-pgd"].plan(Classification(), 8, 8)
    assert own.budgets == ATTACKS["flow-pgd"].default_budgets(8, 8)
    everyone = asked("stadv", "flow-pgd", budgets=(0.5, "stadv=1"))
    assert everyone["stadv"].budgets == (0.5, 1.0)
    assert everyone["flow-pgd"].budgets == (0.5,)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("padding", "not of the form"),
        ("=3", "not of the form"),
        ("flow-pdg.steps=3", "not among the attacks"),
        ("queries=3", "no attack asked for has queries"),
        ("pgd.tau=3", "pgd has no tau"),
        ("steps=many", "steps must be a whole number, not 'many'"),
        ("steps=0", "steps must be at least 1"),
        ("stadv.tau=x", "tau must be a number, not 'x'"),
        ("flow-pgd.padding=white", "padding must be one of border"),
        ("flow-pgd.early_stop=maybe", "early_stop must be true or false"),
    ],
)
def test_what_no_attack_takes_is_told(item: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        asked("pgd", "flow-pgd", "stadv", set=(item,))


@pytest.mark.parametrize(
    ("task", "name", "usual", "chosen"),
    [
        ("segmentation", "square", "cross_entropy", "masked_cross_entropy"),
        ("detection", "flow-apgd", "total", "vanishing"),
        ("multilabel", "shared-pgd", "cross_entropy", "cross_entropy"),
        ("classification", "pgd", "usual", "dlr"),
        ("video", "stadv", "usual", "cross_entropy"),
    ],
)
def test_the_loss_raised_is_the_task_s_own_or_the_one_asked_for(
    task: str, name: str, usual: str, chosen: str
) -> None:
    for items, loss in (((), usual), ((f"loss={chosen}",), chosen)):
        attack: Any = asked(name, set=items)[name].plan(TASKS[task](), 8, 8).attack
        assert attack.loss == loss
        wanted = ATTACKS[name].usual_loss if loss == "usual" else loss
        assert attack.loss_name == wanted
        scout: Any = attack.scout
        assert scout is None or scout.loss == loss


def test_the_loss_reaches_the_parts_of_a_union() -> None:
    name = "union:square@8/255+flow-pgd@1"
    found: Any = asked(name)[name].plan(TASKS["detection"](), 8, 8)
    assert [part.loss for _, part in found.attack.members] == ["total", "total"]
    told: Any = asked(name, set=("loss=box",))[name].plan(TASKS["detection"](), 8, 8).attack
    assert [part.loss for _, part in told.members] == ["box", "box"]


@pytest.mark.parametrize(
    ("task", "name", "items", "words"),
    [
        ("classification", "segpgd", (), "classification has none: choose from cross_entropy, mar"),
        ("classification", "pgd", ("loss=dlr_targeted",), "has none"),  # its labels are pairs
        ("video", "pgd", ("loss=vanishing",), "video has none: choose from cross_entropy, margin"),
        ("segmentation", "apgd-dlr", (), "'dlr', and segmentation has none: choose from cross_ent"),
        ("segmentation", "union", ("loss=box",), "union is to raise a loss called 'box'"),
        ("detection", "flow-pgd", ("loss=segpgd",), "total, classification, objectness, box, van"),
        ("multilabel", "pgd-vanishing", (), "multilabel has none: choose from cross_entropy"),
        ("segmentation", "apgd", ("loss=segpgd",), "changes from step to step"),
        ("segmentation", "flow-segpgd", ("rule=halving",), "changes from step to step"),
        ("segmentation", "elastic", ("loss=segpgd",), "changes from step to step"),
    ],
)
def test_a_loss_that_the_task_has_not_got_is_told(
    task: str, name: str, items: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words) as told:
        asked(name, set=items)[name].plan(TASKS[task](), 8, 8)
    assert "\n" not in str(told.value)
