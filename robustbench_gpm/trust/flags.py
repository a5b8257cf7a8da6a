"""What a check says when it has found something: a name, two numbers, what it means, what helps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

REMEDIES = ("more_steps", "eot", "logit_scale_free_loss", "black_box", "smoothed_gradient")


@dataclass(frozen=True)
class Flag:
    """A reason for doubt: `measured` went beyond `threshold`; `meaning` says what to do then."""

    name: str
    measured: float
    threshold: float
    meaning: str

    def as_dict(self, at: str = "") -> dict[str, object]:
        """The flag as plain values, which JSON can hold; `at` is the norm and budget, if any.

        `kind` is "doubt", or "note" for what casts no doubt on the result.
        """
        kind = "note" if self.name in NOTES else "doubt"
        place = {"at": at} if at else {}
        return {"kind": kind, **asdict(self), **place}


def raised(name: str, measured: float, threshold: float) -> list[Flag]:
    """The flag of that name where `measured` is above `threshold` or NaN, nothing elsewhere."""
    if measured <= threshold:
        return []
    # JSON has no NaN; what could not be measured is as bad as can be.
    number = 1.0 if math.isnan(measured) else float(measured)
    return [Flag(name, number, float(threshold), MEANINGS[name])]


def sentences(model: str, flags: Iterable[Mapping[str, object]]) -> list[str]:
    """What the command line says of a model's flags, as the records hold them, a line each."""
    told = []
    for flag in flags:
        where = ", ".join(str(word) for word in (model, flag.get("at")) if word)
        told.append(f"{flag.get('kind', 'doubt')}: {flag['name']} ({where}): {flag['meaning']}")
    return told


MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "input_range": (
            "The images hardly use the range [0,1]: half of them span less than a tenth of it. "
            "Check how they were scaled when they were stored; budgets mean nothing on them."
        ),
        "normalised_twice": (
            "The model is right far more often when its normalisation is undone beforehand, so it "
            "normalises twice. Leave out one of the two."
        ),
        "not_normalised": (
            "The model is right far more often when images are normalised beforehand, so it lacks "
            "its normalisation. Put it inside the model, in front of the network."
        ),
        "training_mode": (
            "The model was handed over in training mode, where its outputs are others. It is "
            "evaluated in evaluation mode; numbers measured elsewhere without eval() will differ."
        ),
        "batch_dependent": (
            "An image's outputs depend on the images beside it, for instance through statistics "
            "of the batch. Fix the statistics: no verdict on a single image holds as it is."
        ),
        "randomised_outputs": (
            "The same images twice give different outputs, so a gradient points at one draw and "
            "the verdict falls on another. Attack the average over many draws."
        ),
        "softmax_outputs": (
            "The model's outputs are probabilities, not logits: the loss takes a softmax of a "
            "softmax (or a sigmoid of a sigmoid) and its gradient vanishes. Take the last one off."
        ),
        "classes": (
            "The model's number of outputs is not the data set's number of classes. Give it a "
            "head with one output a class."
        ),
        "non_finite_logits": (
            "On some clean images the outputs are NaN or infinite, which no attack can raise and "
            "every comparison misjudges. Find the layer that overflows."
        ),
        "half_precision_drift": (
            "In bfloat16 more than one prediction in a hundred changes. This says nothing against "
            "the model: attacks on it must search in float32."
        ),
        "zero_gradients": (
            "The loss has no gradient at some images, so gradient attacks stand still there and "
            "their survivors prove nothing. Use a loss free of the logits' scale, and an attack "
            "without gradients."
        ),
        "loss_does_not_rise": (
            "Following the gradient does not bring some images nearer to an error. The gradient "
            "misleads: average it over noise, or attack without it."
        ),
        "transfer_beats_white_box": (
            "Images made on a smoothed copy of the model (gradients averaged over noise) fool it "
            "where its own gradients do not. Attack the smoothed gradient too."
        ),
        "black_box_beats_white_box": (
            "A random search fools images that gradients do not, which means that the gradients "
            "are masked. The lower, gradient-free number is nearer to the truth."
        ),
        "more_steps_still_help": (
            "A hundred steps fool clearly more than twenty: the attack has not converged. Raise "
            "the number of steps until the result stands still."
        ),
        "unbounded_attack_fails": (
            "Even with every image allowed the attack does not fool everything, so it is the "
            "attack that fails and not the budget. Believe no number at smaller budgets."
        ),
        "fgsm_beats_pgd": (
            "One step fools more than many do, which an honest loss surface does not allow. The "
            "gradient misleads close to the image: average it over noise, or take more restarts."
        ),
    }
)

# Flags that tell how to evaluate; they cast no doubt on the result of an evaluation that does so.
NOTES = frozenset({"training_mode", "half_precision_drift"})

# What to attack with when a flag is up; the flags of an empty tuple are for the user to mend.
ESCALATION: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(MEANINGS, ()),
        "randomised_outputs": ("eot",),
        "batch_dependent": ("black_box",),
        "softmax_outputs": ("logit_scale_free_loss",),
        "zero_gradients": ("logit_scale_free_loss", "black_box"),
        "loss_does_not_rise": ("logit_scale_free_loss", "smoothed_gradient", "black_box"),
        "transfer_beats_white_box": ("logit_scale_free_loss", "smoothed_gradient"),
        "black_box_beats_white_box": ("smoothed_gradient", "black_box"),
        "more_steps_still_help": ("more_steps",),
        "unbounded_attack_fails": ("logit_scale_free_loss", "smoothed_gradient", "black_box"),
        "fgsm_beats_pgd": ("more_steps", "smoothed_gradient"),
    }
)
