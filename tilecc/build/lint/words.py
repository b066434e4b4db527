"""Rules that single words break: raw instructions (1), waiting by hand (2), hidden state (8), device-only C++
(10), flushing forms (11)."""

from __future__ import annotations

import re

from tilecc.build.lint.source import Source

_ASM = frozenset("asm __asm __asm__".split())
_CUDA_IDS = frozenset("threadIdx blockIdx blockDim gridDim warpSize".split())
_RAW_MEMORY = frozenset(
    "memcpy memset memmove __ldg __ldcg __ldca __ldcs __stcg __stcs __stwt atomicAdd atomicSub atomicMax"
    " atomicMin atomicExch atomicCAS atomicAnd atomicOr atomicXor atomicInc atomicDec".split()
)
_BUILTINS = re.compile(r"__builtin_(huge_valf?|inff?|nanf?|expect|unreachable|FILE|LINE)$")
_COMPILER = frozenset(
    "__CUDACC__ __cplusplus __VA_ARGS__ __LINE__ __FILE__ __COUNTER__ __has_include".split()
)
_CLOCKS = frozenset("clock clock64 global_timer globaltimer chrono clock_gettime gettimeofday rdtsc".split())
_QUALIFIERS = frozenset(
    "__global__ __device__ __host__ __forceinline__ __noinline__ __launch_bounds__".split()
)
_HEADERS = re.compile(
    r"[<\"](cuda|cooperative_groups|cooperative_groups/|mma\.h|nv/|cub/|cute/|thrust/|cutlass/)"
)
_DECODE = re.compile(r"decode|dequant|mxfp4|fp4|fp8|e2m1|e4m3|e5m2|e8m0|mma_pair", re.IGNORECASE)
_FLUSHING = frozenset("exp2_ rcp_ rsqrt_ lg2_ exp2 rcp rsqrt tanh_".split())
_LOADS = re.compile(r"(ld_acquire|ld_relaxed|ldg|lds|ldg_nc|ld_uniform)(_?\w*)$")


def check_words(source: Source) -> None:
    """Look at every token, also of macros."""
    all_tokens = [*source.tokens, *source.macros]
    for i, t in enumerate(all_tokens):
        if t.kind == "op" and t.text == "<<<":
            source.report(10, "a launch `<<<...>>>`: the runtime launches kernels", t)
        if t.kind != "word":
            continue
        word = t.text
        following = all_tokens[i + 1].text if i + 1 < len(all_tokens) else ""
        before = all_tokens[i - 1].text if i else ""
        if word in _ASM:
            source.report(1, "inline assembly outside the primitive header", t)
        elif word in _CUDA_IDS:
            source.report(1, f"`{word}`: use tk::lane(), warp(), cta(), ncta()", t)
        elif word in _RAW_MEMORY and following == "(":
            source.report(1, f"`{word}` reaches memory around the primitive header", t)
        elif word == "__shared__":
            source.report(8, "a `__shared__` declaration: shared memory is one arena of declared regions", t)
        elif word == "__device__" and before in (")", "]"):
            source.report(10, "a lambda marked `__device__`", t)
        elif word in ("__device__", "__managed__") and _declares_variable(source, i):
            source.report(8, f"a `{word}` variable: state lives in registers, shared memory or buffers", t)
        elif word == "__constant__":
            source.report(10, "`__constant__` memory: pass constants as parameters or constexpr", t)
        elif word in _QUALIFIERS:
            source.report(10, f"`{word}`: use TK_FN and TK_KERNEL, which both compilers know", t)
        elif word in ("cooperative_groups", "nvcuda", "cg") and following == "::":
            source.report(10, f"namespace `{word}`: g++ does not have it", t)
        elif word == "volatile" and before not in _ASM:
            source.report(2, "`volatile`: a wait is a blocking primitive, an access has declared order", t)
        elif word in _CLOCKS and (following == "(" or before == "::" or following == "::"):
            source.report(2, f"`{word}`: no logic may depend on a clock", t)
        elif word.startswith("__") and word[2:3].islower() and not _known(word):
            source.report(1, f"`{word}` is an intrinsic: only the primitive header may use them", t)
        elif "ftz" in word.lower().split("_"):
            source.report(11, f"`{word}` flushes subnormal numbers, which decoded weights have", t)
        if t.device_only and not t.directive:
            source.report(10, "text that only nvcc sees: the emulator would run another kernel", t)
            break
    for d in source.directives:
        if d.name == "include" and _HEADERS.search(d.text):
            source.report(10, f"`{d.text.strip()}`: the text must compile without CUDA's headers", d)
    _check_globals(source)
    _check_waiting(source)
    _check_flushing(source)


def _known(word: str) -> bool:
    return word in _COMPILER or _BUILTINS.match(word) is not None


def _declares_variable(source: Source, i: int) -> bool:
    """True if a declaration with this qualifier ends without a parameter list."""
    for t in source.tokens[i + 1 : i + 24]:
        if t.text in (";", "=", "{"):
            return True
        if t.text == "(":
            return False
    return False


_NOT_VARIABLES = frozenset(
    "constexpr using typedef struct class enum union template namespace static_assert friend extern"
    " __constant__ __device__ __managed__ __shared__".split()
)


def _check_globals(source: Source) -> None:
    s = source.structure
    for begin, end in s.declarations:
        words = s.words(begin, end)
        marks = [words.index(w) for w in ("=", "[", "{") if w in words]
        head = words[: min(marks)] if marks else words
        if not words or set(words) & _NOT_VARIABLES or "(" in head or words[0].startswith("TK_"):
            continue
        if source.tokens[begin].kind == "word" and len(head) >= 2 and "static" not in words:
            source.report(
                8,
                f"`{head[-1]}` is a global variable: kernel state must not outlive the CTA",
                source.tokens[begin],
            )
    for i, t in enumerate(source.tokens):
        if t.text not in ("static", "thread_local"):
            continue
        for u in source.tokens[i + 1 : i + 40]:
            if u.text in ("constexpr", "(") or u.text.startswith("TK_"):
                break
            if u.text in (";", "=", "{"):
                source.report(8, f"a `{t.text}` variable: kernel state must not outlive the CTA", t)
                break


def _check_waiting(source: Source) -> None:
    """Loops that poll memory."""
    for f in source.structure.functions:
        seen: set[int] = set()
        for i, name in source.calls(*f.body):
            loops = [c for c in source.controls(f, i) if c.kind in ("while", "do", "for")]
            if not _LOADS.match(name) and name != "nanosleep":
                continue
            for loop in loops:
                header = range(loop.begin, loop.end)
                polls = i in header and loop.kind != "for"
                polls = polls or (
                    loop.kind == "for" and i in header and _in_condition(source, loop.begin, loop.end, i)
                )
                endless = loop.kind == "for" and _condition(source, loop.begin, loop.end) == []
                fresh = loop.kind != "for" and _assigned(source, i) & set(
                    source.structure.words(loop.begin, loop.end)
                )
                acquiring = name in ("ld_acquire", "ld_relaxed", "nanosleep") and loop.kind != "for"
                if (polls or endless or fresh or acquiring) and loop.begin not in seen:
                    seen.add(loop.begin)
                    source.report(
                        2,
                        f"a loop that polls memory with `{name}`: wait with wait_ge, mbar_wait or poll_word",
                        source.tokens[i],
                    )


def _condition(source: Source, begin: int, end: int) -> list[int]:
    """Tokens between the semicolons of a ``for`` header; a range loop has none and counts as bounded."""
    parts = [i for i in range(begin, end) if source.text(i) == ";"]
    if len(parts) != 2:
        return [begin]
    return list(range(parts[0] + 1, parts[1]))


def _in_condition(source: Source, begin: int, end: int, i: int) -> bool:
    return i in _condition(source, begin, end)


def _assigned(source: Source, i: int) -> set[str]:
    """The variable that the statement of call ``i`` assigns, if any."""
    j = i
    while j > 0 and source.text(j) not in (";", "{", "}"):
        if source.text(j) == "=" and source.tokens[j - 1].kind == "word":
            return {source.text(j - 1)}
        j -= 1
    return set()


def _check_flushing(source: Source) -> None:
    for f in source.structure.functions:
        if not _DECODE.search(f.name):
            continue
        for i, name in source.calls(*f.body):
            if name in _FLUSHING:
                source.report(
                    11,
                    f"`{name}` in `{f.name}` flushes subnormal numbers, which decoded weights have",
                    source.tokens[i],
                )
