"""Schedule for MiMo-V2.5-Pro (models/mimo_v25_pro.py) on one node of eight B200, one rank per GPU.

Sizes are those of one rank, as for the H200; 148 SMs, and 96 KiB per SM to keep requested.
"""

from tilecc.schedules import Schedule, at_least, at_most


def schedule(s: Schedule) -> None:
    s.only_for("sm_100a")
    # A stage that is being read is not in flight: three stages of 34 KiB keep 68 KiB requested, where 96 are
    # needed; seven of 17 KiB keep 102. The model, with its loaders that prefetch into L2, sees no difference
    # (3.60 ms for a step with 8 rows and loops at 100 %, either way).
    s.op(
        "*", stage_bytes=at_most(17 * 1024), why="six stages of 17 KiB in flight: 102 KiB, and 96 are needed"
    )
    s.ring("weights", depth=at_least(7), why="six stages requested while one is being read")
    # 64 distinct experts have 2048 m16 tiles of gate and up: in groups of two the busiest of 148 SMs streams
    # 14 tiles of 13.8 on average, in groups of eight 16. The activations that smaller groups load again come
    # from L2.
    s.op("experts_up", group=at_most(2), why="14 tiles on the busiest SM, 16 with groups of eight")
    s.op("head", group=at_most(2), why="10 tiles on the busiest SM, 12 with groups of four")
