"""Pictures drawn from records alone: accuracy against budget, and what attacks did to images."""

from .animation import draw_animation
from .curves import draw_curves
from .deformations import draw_deformations
from .examples import draw_examples

__all__ = ["draw_animation", "draw_curves", "draw_deformations", "draw_examples"]
