"""Rules about who calls a primitive, and in which order: elected lane (3), converged collectives (4), waits
(5), proxy fences (6), bulk stores (7), wgmma accumulators (9).

They see one function at a time: what a call in between does is not followed, and values read from memory
count as equal in all lanes. The emulator's detectors decide the rest.
"""

from __future__ import annotations

import re

from tilecc.build.lint.source import Source
from tilecc.build.lint.structure import Control, Function

_COLLECTIVE = re.compile(
    r"(mma_|wgmma_|ldmatrix|stmatrix|shfl_|redux_|setmaxnreg_|bar_sync|bar_arrive|cta_sync|cluster_sync|cluster_arrive"
    r"|cluster_wait|syncwarp|ballot|all_lanes|any_lane|match_any|wg_)"
)
_LANE_0 = re.compile(
    r"(mbar_init|mbar_arrive|bulk_g2s|bulk_s2g|bulk_reduce|bulk_commit|bulk_wait|prefetch_l2|wait_ge|red_|st_release"
    r"|tma_load|tma_store|tma_reduce|atom_add)"
)
"""Primitives of the elected lane."""

_PUBLISHING = re.compile(r"(mbar_arrive|red_release|red_relaxed|st_release|bulk_s2g|bulk_reduce|tma_store)")
_STORE = re.compile(r"(sts|stg)(_?\w*)$")
_SYNC = re.compile(r"(syncwarp|bar_sync|cta_sync|cluster_sync|ballot|shfl_)")
_ASYNC_READ_SMEM = re.compile(r"(bulk_s2g|bulk_reduce|tma_store|tma_reduce|wgmma_(bf16|f16|fp8|mma))")
_SIGNAL = re.compile(r"(red_release|red_relaxed|st_release)")


def check_flow(source: Source) -> None:
    for f in source.structure.functions:
        lanes = Lanes(source, f)
        for i, name in source.calls(*f.body):
            controls = source.controls(f, i)
            if _COLLECTIVE.match(name):
                _check_converged(source, f, i, name, controls, lanes)
            if _LANE_0.match(name):
                _check_elected(source, i, name, controls)
            if name == "mbar_wait":
                _check_wait(source, i, controls, lanes)
        _check_order(source, f)
        _check_accumulators(source, f)


# ---- which lane ------------------------------------------------------------------------------------------


class Lanes:
    """Which names of a function visibly differ between lanes, at each place."""

    def __init__(self, source: Source, f: Function) -> None:
        self.source = source
        self.events: dict[str, list[tuple[int, bool, bool]]] = {}
        for begin, end in sorted(f.statements):
            for start, stop in _declarators(source, begin, end):
                self._assignment(start, stop, begin, start == begin)

    def _assignment(self, begin: int, end: int, statement: int, first: bool) -> None:
        source = self.source
        equals = next((i for i in range(begin, end) if source.text(i) in _ASSIGN), None)
        if (
            equals is None
            or source.tokens[equals - 1].kind != "word"
            or source.text(equals - 2) in (".", "->")
        ):
            return
        declares = source.text(equals) == "=" and (
            equals - begin > 1 if first else source.tokens[statement].kind == "word"
        )
        self.events.setdefault(source.text(equals - 1), []).append(
            (end, declares, self.depends(equals + 1, end, end))
        )

    def differs(self, name: str, at: int) -> bool:
        """True if ``name``, read at token ``at``, depends on the lane."""
        if name == "lane":
            return True
        state = False
        for index, declares, depends in self.events.get(name, []):
            if index > at:
                break
            state = depends if declares else state or depends
        return state

    def depends(self, begin: int, end: int, at: int) -> bool:
        """True if the expression depends on the lane, outside the arguments of calls."""
        source, i = self.source, begin
        while i < end:
            word = source.text(i)
            is_call = source.text(i + 1) == "(" and source.tokens[i].kind == "word"
            member = source.text(i - 1) in (".", "->") and word != "lane"
            if word == "elect" or (not member and (not is_call or word == "lane") and self.differs(word, at)):
                return True
            if is_call or (source.primitive(i) and source.text(i + 1) == "<"):
                opening = i + 1
                while source.text(opening) not in ("(", ""):
                    opening += 1
                i = source.structure.partner.get(opening, end)
            i += 1
        return False


_ASSIGN = ("=", "+=", "-=", "|=", "^=", "*=", "&=")


def _declarators(source: Source, begin: int, end: int) -> list[tuple[int, int]]:
    """Parts of a statement between its commas and semicolons, outside brackets."""
    parts, start, i = [], begin, begin
    while i < end:
        text = source.text(i)
        if text in ("(", "[", "{") and i in source.structure.partner:
            i = source.structure.partner[i]
        elif text in (",", ";"):
            parts.append((start, i))
            start = i + 1
        i += 1
    return [*parts, (start, end)]


def _single(source: Source, begin: int, end: int) -> bool:
    """True if a condition picks lane 0 alone: ``elect()``, or ``lane == 0`` joined to others by ``&&``."""
    words = source.structure.words(begin, end)
    if "||" in words:
        return False
    for i, word in enumerate(words):
        if word == "elect" and (i == 0 or words[i - 1] != "!") and not _negated(words, i):
            return True
        if word == "lane":
            rest = words[i + 1 :]
            rest = rest[2:] if rest[:2] == ["(", ")"] else rest
            if rest[:2] in (["==", "0"], ["==", "0u"]):
                return True
    return False


def _negated(words: list[str], i: int) -> bool:
    return words[max(i - 3, 0) : i][-3:] == ["!", "tk", "::"]


def _divergent(source: Source, control: Control, lanes: Lanes) -> bool:
    if control.constant:
        return False
    begin, end = control.begin, control.end
    if control.kind == "for":
        parts = [i for i in range(begin, end) if source.text(i) == ";"]
        if len(parts) == 2:
            begin, end = parts[0] + 1, parts[1]
    return lanes.depends(begin, end, control.end)


def _check_converged(
    source: Source, f: Function, i: int, name: str, controls: tuple[Control, ...], lanes: Lanes
) -> None:
    token = source.tokens[i]
    for control in controls:
        if _divergent(source, control, lanes):
            source.report(
                4, f"`{name}` under a condition that depends on the lane: all 32 lanes must call it", token
            )
            return
    # cond ? shfl(...) : x, and cond && shfl(...)
    start = max((begin for begin, end in f.statements if begin <= i < end), default=i)
    for j in range(i - 1, start - 1, -1):
        if source.text(j) in ("=", ";", "return", "{", ","):
            break
        if source.text(j) in ("?", "&&", "||"):
            k = j - 1
            while k > start and source.text(k - 1) not in ("=", "return", ",", "(", "{"):
                k -= 1
            if lanes.depends(k, j, j):
                source.report(4, f"`{name}` behind `{source.text(j)}` of a condition on the lane", token)
                return
    for begin, _ in f.statements:
        if begin >= i or source.text(begin) != "return":
            continue
        own = source.controls(f, begin)
        if any(_divergent(source, c, lanes) for c in own if c not in controls):
            source.report(4, f"`{name}` after some lanes may have returned", token)
            return


def _check_elected(source: Source, i: int, name: str, controls: tuple[Control, ...]) -> None:
    for control in controls:
        words = source.structure.words(control.begin, control.end)
        other = control.kind == "else" and _single(source, control.begin, control.end) and "&&" not in words
        for k, word in enumerate(words):
            rest = words[k + 1 :]
            rest = rest[2:] if rest[:2] == ["(", ")"] else rest
            compared = rest[1] if len(rest) > 1 and rest[0] == "==" and rest[1][:1].isdigit() else "0"
            if word == "lane" and compared.rstrip("uU") not in ("0", "0x0") and control.kind != "else":
                other = True
            if word == "lane" and rest[:2] in (["!=", "0"], ["!=", "0u"]) and control.kind != "else":
                other = True
            if (
                word == "elect"
                and ((k and words[k - 1] == "!") or _negated(words, k))
                and control.kind == "if"
            ):
                other = True
        if other:
            source.report(
                3,
                f"`{name}` acts in lane 0, but this branch leaves lane 0 out: the elected lane is lane 0",
                source.tokens[i],
            )
            return


def _check_wait(source: Source, i: int, controls: tuple[Control, ...], lanes: Lanes) -> None:
    token = source.tokens[i]
    for control in controls:
        partial = _divergent(source, control, lanes) and not _single(source, control.begin, control.end)
        if partial and control.kind in ("if", "while"):
            source.report(5, "`mbar_wait` by some lanes of a warp: all 32 wait, or lane 0 alone", token)
            return
    arguments = source.arguments(i)
    loops = [c for c in controls if c.kind in ("for", "while", "do")]
    if loops and len(arguments) > 1:
        begin, end = arguments[1]
        if end - begin == 1 and source.tokens[begin].kind == "number":
            source.report(
                5, "`mbar_wait` for a fixed parity in a loop: the phase follows the ring's counter", token
            )


# ---- in which order --------------------------------------------------------------------------------------


def _encloses(outer: tuple[Control, ...], inner: tuple[Control, ...]) -> bool:
    return inner[: len(outer)] == outer


def _check_order(source: Source, f: Function) -> None:
    """Straight-line order within a function: an event counts for later ones whose branch contains its own."""
    calls = list(source.calls(*f.body))
    for n, (i, name) in enumerate(calls):
        controls = source.controls(f, i)
        later = [(j, other) for j, other in calls[n + 1 :] if _encloses(controls, source.controls(f, j))]
        single = any(_single(source, c.begin, c.end) for c in controls)
        if _STORE.match(name) and not single:
            _follow(
                source,
                later,
                calls[n + 1 :],
                _PUBLISHING,
                _SYNC,
                3,
                f"`{name}` by all lanes, then `{{}}` by lane 0, without syncwarp() between",
            )
        if name.startswith("sts"):
            _follow(
                source,
                later,
                calls[n + 1 :],
                _ASYNC_READ_SMEM,
                re.compile("fence_proxy_async"),
                6,
                f"`{name}`, then `{{}}` reads shared memory through the async proxy:"
                " fence_proxy_async() is missing",
            )
        if name == "wait_ge":
            _follow(
                source,
                later,
                calls[n + 1 :],
                re.compile("bulk_g2s|tma_load"),
                re.compile("fence_proxy_async"),
                6,
                "`wait_ge`, then `{}` reads what others wrote: fence_proxy_async() is missing",
            )
        if re.match("bulk_s2g|bulk_reduce|tma_store|tma_reduce", name):
            _follow(
                source,
                later,
                calls[n + 1 :],
                _SIGNAL,
                re.compile("bulk_wait$"),
                7,
                f"`{name}`, then `{{}}`: bulk_wait<0> (not _read) must come before the release",
            )
            if not any(re.match("bulk_wait$|bulk_commit$", other) for _, other in calls[n + 1 :]):
                source.report(
                    7, f"`{name}` without bulk_commit and bulk_wait<0> in `{f.name}`", source.tokens[i]
                )


def _follow(
    source: Source,
    later: list[tuple[int, str]],
    all_later: list[tuple[int, str]],
    event: re.Pattern[str],
    cure: re.Pattern[str],
    rule: int,
    message: str,
) -> None:
    """Report the first ``event`` that comes before every ``cure``."""
    cured = min((j for j, name in all_later if cure.match(name)), default=len(source.tokens))
    for j, name in later:
        if event.match(name) and j < cured:
            source.report(rule, message.format(name), source.tokens[j])
            return


def _check_accumulators(source: Source, f: Function) -> None:
    """Accumulators of wgmma between issue and wait."""
    pending: dict[str, int] = {}
    calls = dict(source.calls(*f.body))
    inside = 0
    for i in range(*f.body):
        name = calls.get(i, "")
        if name.startswith("wgmma_wait"):
            pending.clear()
        elif re.match(r"wgmma_(?!fence|commit|wait|desc)", name):
            arguments = source.arguments(i)
            if not arguments:
                continue
            begin, end = arguments[0]
            words = source.structure.words(begin, end)
            if not words or not words[0].isidentifier() or "*" in words or "(" in words:
                source.report(
                    9, f"`{name}`: the accumulators are a local array, named directly", source.tokens[i]
                )
            else:
                pending[words[0]] = i
            inside = arguments[-1][1]
        elif i >= inside and source.text(i) in pending and source.text(i - 1) not in (".", "->", "::"):
            source.report(
                9,
                f"`{source.text(i)}` is used while wgmma may still write it: wgmma_wait first",
                source.tokens[i],
            )
            pending.pop(source.text(i))
