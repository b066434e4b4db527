"""Schedule for the small model (models/mimo_tiny.py), any target. It is all hand-offs and few bytes, so it
takes what shortens the chain rather than what fills the memory system."""

from tilecc.schedules import Schedule, at_most


def schedule(s: Schedule) -> None:
    s.op("*", stage_bytes=at_most(16 * 1024), why="an op has a few stages: small ones start its MMAs earlier")
    s.op("o_proj", splits=1, why="256 columns: one pass of the consumers, nothing to add up after it")
    s.op("down", splits=1, why="as o_proj")
    s.op("attention", splits=at_most(4), why="a context of 256 positions has four chunks")
    s.ring("weights", depth=8, why="eight small stages hold the next op while this one computes")
