"""Train vision models with gradient penalties, and measure how robust they really are."""

__version__ = "0.1.0"
