"""Build an emitted kernel for the CPU emulator with g++.

The emulator runtime (``templates/emulator``) is compiled once per set of device headers and kept in the
cache directory, so a kernel costs one translation unit and a link. Everything in the cache is named by a hash
of what it was made from, written under a temporary name and renamed: two processes may build at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tilecc.diag import Span, error

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
RUNTIME_SOURCES = TEMPLATES / "emulator"
DEVICE_HEADERS = TEMPLATES / "include"

# No contraction: the numbers must not depend on what the compiler fuses. No stack protector in
# code that switches stacks; no strict aliasing, because memory is moved as words.
COMMON_FLAGS = (
    "-std=c++20",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-fPIC",
    "-fvisibility=hidden",
)
OPTIMISE_FLAGS = ("-O2", "-fvect-cost-model=dynamic", "-march=native")
FLAGS_VARIABLE = "TILECC_EMULATOR_FLAGS"
"""Environment variable with further options of the host compiler, for sanitizers."""
KERNEL_FLAGS_VARIABLE = "TILECC_EMULATOR_KERNEL_FLAGS"
"""The same for the kernel alone, without the emulator's runtime: for coverage."""


def cache_dir() -> Path:
    """Return the build cache: ``$TILECC_CACHE_DIR`` or ``~/.cache/tilecc``."""
    configured = os.environ.get("TILECC_CACHE_DIR", "")
    return Path(configured) if configured else Path.home() / ".cache" / "tilecc"


@cache
def compiler() -> tuple[str, str]:
    """Return (path, version and native CPU line) of the host compiler. Raises TC0503 if there is none."""
    path = shutil.which(os.environ.get("TILECC_CXX") or os.environ.get("CXX") or "g++")
    if path is None:
        raise error(
            "TC0503",
            "no C++ compiler for the emulator",
            note="the emulator compiles the emitted kernel with g++ (12 or newer)",
            help="install g++, or set TILECC_CXX to a compiler that takes the options of g++",
        )
    # -march=native means different code on different machines that share a cache.
    query = [path, "-march=native", "-Q", "--help=target"]
    native = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return path, version.splitlines()[0] + hashlib.sha256(native.encode()).hexdigest() if version else native


def build_emulator_kernel(
    source: Path, include: Path, name: str, flags: Sequence[str] = OPTIMISE_FLAGS
) -> Path:
    """Compile kernel text ``source`` against the headers in ``include`` and the emulator runtime.

    ``name`` goes into the file name. Returns the shared library in the cache; a second call with the same
    inputs returns at once.

    Raises TC0503 without a compiler, TC0504 when the text does not compile, and TC0602 when ``include`` holds
    the emulated primitives of another version than the runtime.
    """
    library_flags = (*COMMON_FLAGS, *flags, *os.environ.get(FLAGS_VARIABLE, "").split())
    _check_primitives(include)
    headers = sorted(p for p in include.iterdir() if p.suffix in (".h", ".cuh"))
    # The runtime is compiled once for many kernels: what -O3 costs there, it gives back in every launch.
    runtime = _runtime_objects(include, tuple("-O3" if f == "-O2" else f for f in library_flags))
    # Reports name places relative to the package, wherever the library in the cache was first built from.
    folders = {str(source.parent): source.parent.name, str(include): include.name}
    kernel_flags = os.environ.get(KERNEL_FLAGS_VARIABLE, "").split()
    words = [*library_flags, *kernel_flags, compiler()[1], runtime[0].parent.name, *folders.values()]
    key = _digest([source, *headers], words)
    out = cache_dir() / "emulator" / f"{name}-{key}.so"
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".build-") as work:
        library = Path(work) / out.name
        # The dialect of the kernel is CUDA, but the host compiler must take it as C++.
        command = [compiler()[0], *library_flags, *kernel_flags, f"-I{include}", "-shared"]
        command += ["-x", "c++", str(source)]
        command += [f"-fmacro-prefix-map={path}={name}" for path, name in folders.items()]
        command += ["-x", "none", *map(str, runtime), "-o", str(library)]
        _run(command, source)
        os.replace(library, out)
    return out


def _check_primitives(include: Path) -> None:
    """The runtime is linked with what the emulated primitives of ``include`` expand to: both must be ours."""

    def version(folder: Path) -> str:
        return _digest(sorted(p for p in folder.iterdir() if p.name.startswith(("tk_emu", "tk_prim"))), [])

    if include.resolve() == DEVICE_HEADERS.resolve():
        return
    theirs, ours = version(include), version(DEVICE_HEADERS)
    if theirs != ours:
        raise error(
            "TC0602",
            f"the package has emulated primitives of version {theirs}, this tilecc has version {ours}",
            span=Span(str(include)),
            note="the version is a hash of tk_prim.cuh and tk_emu*: they belong to the emulator's runtime",
            help="compile the model again with the installed version",
        )


def _runtime_objects(include: Path, flags: Sequence[str]) -> list[Path]:
    """Return the object files of the runtime, compiled against the device headers in ``include``."""
    sources = sorted(RUNTIME_SOURCES.glob("*.cpp"))
    headers = sorted(RUNTIME_SOURCES.glob("*.h"))
    shared = sorted(p for p in include.iterdir() if p.name.startswith("tk_emu") or p.name == "tk_prim.cuh")
    key = _digest([*sources, *headers, *shared], [*flags, compiler()[1]])
    out = cache_dir() / "emulator" / f"runtime-{key}"
    objects = [out / f"{s.stem}.o" for s in sources]
    if out.is_dir():
        return objects
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".build-") as work:
        built = Path(work) / out.name
        built.mkdir()

        def compile_one(source: Path) -> None:
            command = [compiler()[0], *flags, f"-I{include}", f"-I{RUNTIME_SOURCES}", "-c", str(source)]
            _run([*command, "-o", str(built / f"{source.stem}.o")], source)

        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(compile_one, sources))
        try:
            os.rename(built, out)
        except OSError:
            if not out.is_dir():  # another process was first: its files are the same
                raise
    return objects


def _digest(files: Iterable[Path], words: Iterable[str]) -> str:
    """Hash file contents (with their names) and words; 16 hex digits."""
    h = hashlib.sha256()
    for word in words:
        h.update(word.encode() + b"\0")
    for file in files:
        h.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return h.hexdigest()[:16]


def _run(command: Sequence[str], source: Path) -> None:
    # A sanitizer that is preloaded into this process is not meant for the compiler.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return
    lines = done.stderr.strip().splitlines()
    raise error(
        "TC0504",
        f"the host compiler refuses `{source.name}` (exit status {done.returncode})",
        span=Span(str(source)),
        note=lines[:30],
        help="emitted text that was not edited should always compile: report it, with the file",
    )
