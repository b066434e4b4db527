"""The static checker: looks for deadlocks, races and laps of a Program before anything is emitted."""

from tilecc.check.checker import Report, check

__all__ = ["Report", "check"]
