"""How long the consumers of a CTA take for one stage: what the machine code of the main loops says.

Counts are those of tests/golden/sass (nvcc 13.0.88, sm_90a). Three bounds, the largest counts: issue slots
and the integer pipe, which all warps share, and the time of one warp by itself, which more warps shorten. A
warp alone pays the fixed stalls that the compiler wrote into the control codes, and every scoreboard wait in
full: an upper bound, since instructions between a load and its use hide part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilecc.sim.costs import Costs


@dataclass(frozen=True)
class LoopCode:
    """Lane instructions per weight, all and of the integer pipe; per warp and weight the stall clocks and the
    scoreboard waits."""

    issue: float
    integer: float
    stalls: float
    waits: float


LOOPS = ("ideal", "sass", "exposed")
"""ideal: consumers never limit. sass: issue slots and the integer pipe, the rate that the counts of the
machine code model, and two passed waits per stage. exposed: also what one warp by itself waits."""

CODE: dict[str, LoopCode] = {
    "bf16": LoopCode(0.641, 0.164, 336 / 4096, 18 / 4096),
    "f32": LoopCode(6.969, 3.828, 865 / 2048, 25 / 2048),
    "fp8_block": LoopCode(1.797, 1.266, 429 / 4096, 19 / 4096),
    "mxfp4": LoopCode(2.039, 1.227, 416 / 4096, 20 / 4096),
}


def stage_seconds(format: str, weights: float, warps: float, costs: Costs, loops: str) -> float:
    """Time of `warps` consumer warps for a stage of `weights` weights; `loops` is one of LOOPS."""
    if loops == "ideal":
        return 0.0
    code = CODE[format]
    clocks = weights * max(code.issue / costs.issue, code.integer / costs.integer)
    if loops == "exposed":
        clocks = max(clocks, weights / warps * (code.stalls + code.waits * costs.scoreboard))
    return clocks / costs.clock + 2 * costs.mbarrier_passed
