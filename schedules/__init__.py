"""Schedules: what a user pins or bounds of the compiler's choices, one Python file per model and machine.

A file defines `schedule(s: Schedule) -> None` and is given to `tilecc compile --schedule FILE`. This module
is the whole API; `tilecc passes --choices` lists what can be chosen.
"""

from tilecc.passes.schedule import (
    KNOBS,
    Between,
    Knob,
    OneOf,
    Schedule,
    at_least,
    at_most,
    between,
    one_of,
)

__all__ = ["KNOBS", "Between", "Knob", "OneOf", "Schedule", "at_least", "at_most", "between", "one_of"]
