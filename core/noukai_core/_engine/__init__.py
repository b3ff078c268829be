"""Decisions over time, as generators of effects."""
