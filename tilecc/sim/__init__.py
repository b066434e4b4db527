"""Timing simulation of a Program (costs are modelled, not measured)."""
