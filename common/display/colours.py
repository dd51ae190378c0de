"""Okabe and Ito's colours (2008), told apart with any colour vision."""

from __future__ import annotations

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, GREY = "#cc79a7", "#56b4e9", "#7f8790"
INK, FAINT, PAPER = "#1f2a37", "#d9dee5", "#fefefe"

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
"""In the order in which lines of a chart take them."""
