"""Pictures drawn from records alone: accuracy against budget, and adversarial examples."""

from .curves import draw_curves
from .examples import draw_examples

__all__ = ["draw_curves", "draw_examples"]
