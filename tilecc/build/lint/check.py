"""The lint of a package: which texts it reads, what each rule is, and findings as diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tilecc.build.lint.flow import check_flow
from tilecc.build.lint.pointers import check_pointers
from tilecc.build.lint.source import Source
from tilecc.build.lint.words import check_words
from tilecc.diag import Diagnostic, Span, TileccError
from tilecc.package import Manifest, text_digest, text_files

RULES = {
    1: ("TC0921", "no assembly, intrinsic or raw dereference outside the primitive header"),
    2: ("TC0922", "every wait goes through a blocking primitive"),
    3: ("TC0923", "the elected lane is lane 0, after syncwarp()"),
    4: ("TC0924", "warp collectives in converged code only"),
    5: ("TC0925", "an mbarrier wait by all lanes or one, for the phase of a ring"),
    6: ("TC0926", "fence_proxy_async between generic writes and async reads"),
    7: ("TC0927", "bulk_wait<0> before the release"),
    8: ("TC0928", "kernel state in registers, locals and declared shared memory only"),
    9: ("TC0929", "wgmma accumulators stay where they are until the wait"),
    10: ("TC0930", "text that g++ and nvcc both compile"),
    11: ("TC0931", "no flushing forms where weights are decoded"),
}
"""Number -> (code, the rule in one line). Rule 11 belongs to the exact decodes of weights."""

_HELP = {
    1: "use the primitives of tk_prim.cuh; the emulator sees nothing else",
    2: "use wait_ge, mbar_wait or poll_word",
    3: "use elect(), and syncwarp() between the lanes' work and lane 0's",
    4: "call it outside the branch, and select the result",
    5: "wait outside the branch; take the parity from the ring's phase",
    6: "call fence_proxy_async() in the writing lanes, before they synchronise",
    7: "bulk_commit(); bulk_wait<0>(); then the release",
    8: "keep it in a local, in a declared region of shared memory, or in the workspace",
    9: "wgmma_wait<0>() before the array is touched",
    10: "keep to the C++ that both compilers take",
    11: "decode with exact integer and bf16 arithmetic",
}


def package_texts(package: Path, source: str) -> dict[Path, str]:
    """The texts of a package that the rules apply to: kernel and headers, not the primitive headers."""
    return {path: path.read_text(encoding="utf-8", errors="replace") for path in text_files(package, source)}


def lint_package(package: Path, source: str) -> list[Diagnostic]:
    """Lint the package in directory ``package`` whose kernel is the file ``source`` in it."""
    return lint_texts(package_texts(package, source))


def check_edited(package: Path, manifest: Manifest) -> None:
    """Raise the findings of the lint as one TileccError if the text is not the one that the compiler wrote.

    Text as it was written has been linted by tilecc's own tests.
    """
    try:
        written = text_digest(package, manifest.source) == manifest.text_sha256
    except OSError:
        return  # a missing file has its own error
    if written:
        return
    found = lint_package(package, manifest.source)
    if found:
        raise TileccError(found)


def lint_texts(texts: Mapping[Path, str] | Iterable[tuple[Path, str]]) -> list[Diagnostic]:
    """Return the violations in a set of texts that are compiled together, sorted by file and line.

    Words and structure are those of each text; which names hold addresses is taken from all of them.
    """
    sources = [Source.of(str(path), text) for path, text in dict(texts).items()]
    for source in sources:
        check_words(source)
        check_flow(source)
    check_pointers(sources)
    return [
        Diagnostic(
            RULES[f.rule][0],
            f"rule {f.rule}: {f.message}",
            Span(source.file, f.line, f.col),
            (f"rule {f.rule}: {RULES[f.rule][1]}",),
            (_HELP[f.rule],),
        )
        for source in sources
        for f in sorted(set(source.found), key=lambda f: (f.line, f.col, f.rule))
    ]
