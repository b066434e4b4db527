"""Target machines as data: limits and costs, each with its source."""

from tilecc.target.costs import COST_FIELDS, Cost, show
from tilecc.target.table import TARGETS, SmRates, Target, find_target

__all__ = ["COST_FIELDS", "TARGETS", "Cost", "SmRates", "Target", "find_target", "show"]
