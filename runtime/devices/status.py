"""The status record that a kernel's watchdog leaves behind (templates/include/tk_prim.cuh)."""

from __future__ import annotations

from collections.abc import Sequence

STATUS_MAGIC = 0x7443C0DE
STATUS_CLAIMED = 0x7443C1A1

_KINDS = {1: "mbarrier at shared offset", 2: "counter at address ...", 3: "word at address ..."}


def describe_status(words: Sequence[int]) -> list[str]:
    """Return what the record says, one fact per line; empty when the watchdog did not write one.

    ``words``: the 64 words {magic, cta, role, op, layer, item, object, expected, seen, kind, warp}.
    """
    magic, cta, role, op, layer, item, where, expected, seen, kind, warp = (
        int(w) & 0xFFFFFFFF for w in words[:11]
    )
    if magic == STATUS_CLAIMED:
        return ["the watchdog of a wait expired, but its record is incomplete"]
    if magic != STATUS_MAGIC:
        return []
    what = "parity" if kind == 1 else "value"
    return [
        f"CTA {cta}, warp {warp}, role {role}, op {op}, layer {layer}, item {item}",
        f"waited for {_KINDS.get(kind, 'object')} 0x{where:x}: expected {what} {expected}, seen {seen}",
    ]
