"""Schedule for MiMo-V2.5-Pro (models/mimo_v25_pro.py) on one node of eight H200, one rank per GPU.

Sizes are those of one rank: 16 query heads on one KV head, expert width 256, 384 m16 tiles of the residual.
"""

from tilecc.schedules import Schedule, at_least, at_most


def schedule(s: Schedule) -> None:
    s.only_for("sm_90a")
    # A stage that is being read is not in flight. Eight stages of 17 KiB keep 119 of 136 KiB requested, four
    # of 34 KiB only 102; and the first MMA of an op waits for half as many bytes.
    s.op("*", stage_bytes=at_most(17 * 1024), why="7/8 of the ring in flight, not 3/4")
    s.ring("weights", depth=at_least(6), why="at least 64 KiB requested while two stages are being read")
    # 1192 m16 tiles of the vocabulary: groups of two give 596 tasks, the busiest of 132 SMs streams 10 tiles
    # of 9.03 on average; groups of four would give it 12.
    s.op("head", group=at_most(2), why="10 tiles on the busiest SM, 12 with groups of four")
    # A row's 16 heads of one global layer are one unit of work per split: 2 x 64 tasks fill 132 SMs.
    s.op("attention", splits=at_most(64), why="two tasks per split fill 128 of 132 SMs")
