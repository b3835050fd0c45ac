"""Proactive defenses: perturbations of photos that make a generator fail on them."""

from .base import Defense, sign_ascent
from .disrupting import Disrupting
from .noise import RandomNoise

__all__ = ["Defense", "Disrupting", "RandomNoise", "sign_ascent"]
