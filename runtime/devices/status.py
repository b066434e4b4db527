"""The status record that a kernel's watchdog leaves behind (templates/include/tk_prim.cuh)."""

from __future__ import annotations

from collections.abc import Sequence

from tilecc.package import Manifest, Names

STATUS_MAGIC = 0x7443C0DE
STATUS_CLAIMED = 0x7443C1A1

COUNTER_BYTES = 128
"""Distance of the counters in the workspace region "counters"."""

_MBARRIER, _COUNTER, _WORD = 1, 2, 3


def describe_status(words: Sequence[int], manifest: Manifest | None = None, workspace: int = 0) -> list[str]:
    """Return what the record says, one fact per line; empty when the watchdog did not write one.

    ``words``: the 64 words {magic, cta, role, op, layer, item, object, expected, seen, kind, warp}. With
    the ``manifest`` of the package and the address of its ``workspace``, roles, ops and objects go by name.
    """
    magic, cta, role, op, layer, item, where, expected, seen, kind, warp = (
        int(w) & 0xFFFFFFFF for w in words[:11]
    )
    if magic == STATUS_CLAIMED:
        return ["the watchdog of a wait expired, but its record is incomplete"]
    if magic != STATUS_MAGIC:
        return []
    names = manifest.names if manifest else Names()
    lines = [
        f"CTA {cta}, warp {warp}, {_named('role', names.roles, role)}, "
        f"{_named('op', names.ops, op)}, layer {layer}, item {item}",
    ]
    if kind == _MBARRIER:
        known = where % 8 == 0 and where // 8 < len(names.barriers)
        name = f"{names.barriers[where // 8]} " if known else ""
        return [*lines, f"waited for mbarrier {name}at shared offset {where}: parity {expected} never came"]
    place = _place(where, manifest, workspace) if manifest else ""
    what = {_COUNTER: "counter", _WORD: "word"}.get(kind, "object")
    text = f"waited for {what} {place}at address ...{where:08x}: expected {expected}, seen {seen}"
    if kind == _COUNTER:
        text += f", {(expected - seen) & 0xFFFFFFFF} short"
    if kind == _WORD:
        text = f"waited for {what} {place}at address ...{where:08x}: still the poison 0x{expected:08x}"
    return [*lines, text]


def _named(what: str, names: Sequence[str], number: int) -> str:
    return f"{what} {names[number]}" if number < len(names) else f"{what} {number}"


def _place(address: int, manifest: Manifest, workspace: int) -> str:
    """Name of the workspace region that holds an address of which the low half is known, or ""."""
    offset = (address - workspace) & 0xFFFFFFFF
    for region in manifest.workspace:
        if not region.offset <= offset < region.offset + region.nbytes:
            continue
        inside = offset - region.offset
        counters = manifest.names.counters
        if (
            region.name == "counters"
            and inside % COUNTER_BYTES == 0
            and inside // COUNTER_BYTES < len(counters)
        ):
            return f"of op {counters[inside // COUNTER_BYTES]} (workspace.{region.name} + {inside}) "
        return f"workspace.{region.name} + {inside} "
    return ""
