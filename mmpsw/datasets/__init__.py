"""Data sets that need no download."""
from .digits import generate

__all__ = ['generate']
