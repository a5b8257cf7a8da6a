"""What classes are drawn in: colours that stay apart without full colour vision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.colors import to_rgb

# Okabe and Ito (2008), as the curves, and then, one after another, the vivid colour furthest
# in CIELAB from all before it, from black, white and grey, as seen with full colour vision and
# without any one kind of cone (simulated as Machado, Oliveira and Fernandes 2009 do).
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#9600F0"),
    *("#00FF87", "#D2003C", "#9687FF", "#784BD2", "#87B45A", "#A50F87", "#B4E15A", "#96FFB4"),
    *("#B42D00", "#78D287", "#D20FB4", "#00783C"),
)
OTHERS = "#FFFFFF"  # classes for which there is no colour left
NOT_COUNTED = "#666666"
BACKGROUND = "background"  # a class of this name has no colour
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Classes:
    """Names (K,) of classes, and the colours of those that are shown."""

    names: Sequence[str]
    colours: Mapping[int, str]

    def name(self, kind: int, most: int = 22) -> str:
        """The class's name, cut to `most` letters; its number where it has no name."""
        name = self.names[kind] if kind < len(self.names) else str(kind)
        return name if len(name) <= most else name[: most - 1] + "…"

    def covers(self, kind: int) -> bool:
        """Whether the class is drawn at all: the background is not."""
        return self.name(kind) != BACKGROUND

    def colour(self, kind: int) -> Colour:
        """The class's colour, red, green and blue in [0,1]."""
        return to_rgb(self.colours.get(kind, OTHERS))


def coloured(names: Sequence[str], seen: Counter[int]) -> Classes:
    """Colours for the classes `seen` so often.

    Where all classes have a colour, each has its own in every figure. Otherwise those that are seen
    most have one in this figure, and the rest are white.
    """
    shown = [kind for kind in range(len(names)) if names[kind] != BACKGROUND]
    if len(shown) > len(PALETTE):
        often = sorted((k for k in shown if seen[k]), key=lambda k: (-seen[k], k))
        shown = sorted(often[: len(PALETTE)])
    return Classes(tuple(names), dict(zip(shown, PALETTE, strict=False)))


def readable_on(colour: Colour) -> str:
    """Black or white, whichever is read more easily on the colour (WCAG's relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"  # where both contrasts are the same
