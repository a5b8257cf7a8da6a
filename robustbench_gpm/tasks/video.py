"""Video: one class a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .classification import Classification


@dataclass(frozen=True)
class Video(Classification):
    """Classification of clips, whose frames stand one after another as channels (B,T*C,H,W).

    So an attack on intensity changes every frame by itself, and one flow moves all frames alike.
    """

    name: ClassVar[str] = "video"
