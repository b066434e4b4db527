"""Target machines as data: limits and costs, each with its source."""

from tilecc.target.table import TARGETS, SmRates, Target, find_target

__all__ = ["TARGETS", "SmRates", "Target", "find_target"]
