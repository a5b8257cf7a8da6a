"""What pictures say of an example: its class, its attack, what the model made of it."""

from __future__ import annotations

from ..records import Example, Records

LETTERS = 26  # that fit above an image where there are four or five side by side
RIGHT, WRONG = "black", "#D55E00"  # Okabe and Ito's vermilion


def class_name(records: Records, index: int, most: int = 22) -> str:
    """The class's name, cut to `most` letters; its number where it has no name."""
    name = records.classes[index] if index < len(records.classes) else str(index)
    return name if len(name) <= most else name[: most - 1] + "…"


def attacked_with(records: Records, example: Example, most: int = 1000) -> str:
    """The attack and its budget, as in "stadv, 0.4 px".

    In lines of about `most` letters, so far as the attack is several, joined by a plus.
    """
    attack = records.attack(example.attack)
    text = f"{attack.name}, {attack.labels[attack.budgets.index(example.budget)]}"
    lines = [""]
    for number, part in enumerate(text.split("+")):
        joined = f"+{part}" if number else part
        if number and len(lines[-1] + joined) > most:
            lines.append("")
        lines[-1] += joined
    return "\n".join(lines)


def verdict(records: Records, example: Example, *, attacked: bool, most: int = 22) -> str:
    """What the model predicts before or after the attack, as in "wrong: five, 61%"."""
    prediction = example.prediction if attacked else example.clean_prediction
    confidence = example.confidence if attacked else example.clean_confidence
    word = "right" if prediction == example.label else "wrong"
    return f"{word}: {class_name(records, prediction, most)}, {100 * confidence:.0f}%"


def colour(example: Example, *, attacked: bool) -> str:
    """The colour that a prediction before or after the attack is written in."""
    prediction = example.prediction if attacked else example.clean_prediction
    return RIGHT if prediction == example.label else WRONG
