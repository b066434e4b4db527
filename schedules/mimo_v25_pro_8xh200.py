"""Schedule for MiMo-V2.5-Pro (models/mimo_v25_pro.py) on one node of eight H200, one rank per GPU.

Sizes are those of one rank: 16 query heads on one KV head, expert width 256, 384 m16 tiles of the residual.
Stages of 17 KiB for all ops, tried first, were modelled 0.4 % slower than those of up to 34 KiB that cost
chooses (4.85 against 4.83 ms for a step with 8 rows and loops at 100 %): they are not asked for.
"""

from tilecc.schedules import Schedule, at_least, at_most


def schedule(s: Schedule) -> None:
    s.only_for("sm_90a")
    # 1192 m16 tiles of the vocabulary: groups of two give 596 tasks, the busiest of 132 SMs streams 10 tiles
    # of 9.03 on average; groups of four would give it 12.
    s.op("head", group=at_most(2), why="10 tiles on the busiest SM, 12 with groups of four")
    # A row's 16 heads of one global layer are one unit of work per split: 2 x 64 tasks fill 132 SMs.
    s.op("attention", splits=at_most(64), why="two tasks per split fill 128 of 132 SMs")
    s.ring(
        "weights", depth=at_least(3), why="two stages requested while one is being read: 68 of 64 KiB needed"
    )
