"""The static checker: proves on a Program, before anything is emitted, that its synchronisation is sound."""

from tilecc.check.checker import Report, check

__all__ = ["Report", "check"]
