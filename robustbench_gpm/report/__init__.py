"""Pictures drawn from records alone: accuracy against budget, and what attacks did to images."""

from .animation import draw_animation
from .clips import draw_clip_animation, draw_clips
from .curves import draw_curves
from .deformations import draw_deformations
from .examples import draw_examples

__all__ = [
    "draw_animation",
    "draw_clip_animation",
    "draw_clips",
    "draw_curves",
    "draw_deformations",
    "draw_examples",
]
