"""Builds a package for CUDA: nvcc on the emitted kernel, the host launcher, one shared library.

``lib<name>.so`` holds the kernel for every target in one fat binary and a static CUDA runtime; it loads on a
machine without a driver. Objects are kept in a cache directory under the hash of everything that went in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tilecc.build.host import HOST_HEADERS, HOST_TEMPLATES, render_launcher, tvm_ffi_include
from tilecc.build.lint import check_edited
from tilecc.build.ptxas import KernelFacts, parse_ptxas
from tilecc.diag import Span, error
from tilecc.package import Manifest

COMMON = ["-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden,-fno-gnu-unique"]
FLAGS = [*COMMON, "-O3", "-lineinfo", "-Xptxas", "-v"]


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was built: one entry of ``kernels`` per ``__global__`` and target, ``seconds`` of this call."""

    library: str
    targets: list[str]
    kernels: list[KernelFacts]
    log: str
    compiler: str
    seconds: float
    cached: bool

    def problems(self) -> list[str]:
        """What a persistent kernel must not have: other than one ``__global__``, stack, spills."""
        found: list[str] = []
        for target in self.targets:
            mine = [k for k in self.kernels if k.target == target]
            if len(mine) != 1:
                found.append(f"{target}: {len(mine)} __global__ functions, one expected")
            for k in mine:
                if k.stack_bytes or k.spill_store_bytes or k.spill_load_bytes:
                    spills = f"{k.spill_store_bytes} + {k.spill_load_bytes} bytes spilled"
                    found.append(f"{target}: {k.name} has {k.stack_bytes} bytes of stack, {spills}")
        return found


def build_cuda(package_dir: Path | str, targets: list[str] | None = None) -> BuildReport:
    """Compile ``kernels/<name>.cu`` for ``targets`` (default: the package's own) into ``lib<name>.so``.

    Leaves ``build.log`` (all compiler output) and ``build.json`` (this report) beside it. Raises TC0501 (no
    nvcc), TC0502 (nvcc failed, with its first error and the log's path), TC0505 (no tvm-ffi headers), TC0506
    (unknown target).
    """
    began = time.perf_counter()
    package = Path(package_dir).resolve()
    manifest = Manifest.load(package)
    wanted = list(dict.fromkeys(targets or [manifest.target]))
    build = _start(package, package / "build.log")
    kernel, kernels, kernel_cached = _compile_kernel(build, manifest, wanted)
    include = package / "include"

    launcher = package / "host" / f"{manifest.name}_launcher.cc"
    launcher.parent.mkdir(exist_ok=True)
    _write_if_changed(launcher, render_launcher(manifest, wanted))
    for header in HOST_HEADERS:
        _write_if_changed(include / header, (HOST_TEMPLATES / header).read_text())
    host_flags = [*COMMON, "-O2", f"-I{include}", f"-I{tvm_ffi_include()}"]
    headers = [include / header for header in (*HOST_HEADERS, "tilecc_params.h")]
    host, _, host_cached = build.compile(launcher, host_flags, "host.o", [launcher, *headers])

    library = package / f"lib{manifest.name}.so"
    build.link([kernel, host], library)
    report = BuildReport(
        library=str(library),
        targets=wanted,
        kernels=kernels,
        log=str(build.log),
        compiler=build.version,
        seconds=time.perf_counter() - began,
        cached=kernel_cached and host_cached,
    )
    (package / "build.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def build_kernel_object(package_dir: Path | str, target: str) -> tuple[Path, list[KernelFacts], str]:
    """Compile the kernel alone for one target, or take it from the cache: (object, facts, nvcc version).

    Same flags as `build_cuda`, so a package built for this target alone costs nothing. Nothing is written
    into the package. Raises TC0501, TC0502, TC0506.
    """
    package = Path(package_dir).resolve()
    manifest = Manifest.load(package)
    build = _start(package, cache_dir() / f"{manifest.name}-{target}.log")
    kernel, kernels, _ = _compile_kernel(build, manifest, [target])
    return kernel, kernels, build.version


def _start(package: Path, log: Path) -> _Build:
    nvcc = find_nvcc()
    log.write_text("")
    return _Build(nvcc, nvcc_version(nvcc), package, log)


def _compile_kernel(
    build: _Build, manifest: Manifest, targets: list[str]
) -> tuple[Path, list[KernelFacts], bool]:
    """(object, facts in the order of the targets, was cached) of the emitted kernel."""
    check_edited(build.package, manifest)
    generate = [flag for target in targets for flag in ("-gencode", _gencode(target))]
    source, include = build.package / manifest.source, build.package / "include"
    flags = [*FLAGS, *generate, f"-I{include}"]
    kernel, text, cached = build.compile(source, flags, "kernel.o", [source, *sorted(include.glob("*.*h"))])
    kernels = parse_ptxas(text)
    if {k.target for k in kernels} != set(targets):
        # Two ptxas at once may mix their lines; one after the other they cannot.
        _, text, _ = build.compile(source, flags, "kernel.o", [], parallel=False)
        kernels = parse_ptxas(text)
    return kernel, sorted(kernels, key=lambda k: (targets.index(k.target), k.name)), cached


def find_nvcc() -> Path:
    """Return nvcc: TILECC_NVCC, then PATH, then the Python package nvidia-cuda-nvcc. Raises TC0501."""
    named = os.environ.get("TILECC_NVCC")
    if named:
        found = shutil.which(named)
        if found is None:
            raise error("TC0501", f"TILECC_NVCC names `{named}`, which is not an executable file")
        return Path(found)
    found = shutil.which("nvcc")
    if found is not None:
        return Path(found)
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for candidate in sorted(Path(root).glob("cu*/bin/nvcc")):
            if os.access(candidate, os.X_OK):
                return candidate
    raise error(
        "TC0501",
        "nvcc not found",
        note="looked in TILECC_NVCC, PATH and the Python package nvidia-cuda-nvcc",
        help="install the CUDA toolkit 12.8 or newer, or `pip install nvidia-cuda-nvcc nvidia-cuda-cccl`",
    )


def nvcc_version(nvcc: Path) -> str:
    """Return "13.0.88" of "Cuda compilation tools, release 13.0, V13.0.88"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\bV(\d[\d.]*)", text)
    return found.group(1) if found else "unknown"


def cache_dir() -> Path:
    """Return the cache directory for objects: TILECC_CACHE_DIR, else ~/.cache/tilecc; made if missing."""
    root = Path(os.environ.get("TILECC_CACHE_DIR") or Path.home() / ".cache" / "tilecc")
    path = root / "nvcc"
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass
class _Build:
    """One build: the compiler, where the package lies, and the log that every command goes to."""

    nvcc: Path
    version: str
    package: Path
    log: Path

    def compile(
        self, source: Path, flags: list[str], output: str, inputs: list[Path], parallel: bool = True
    ) -> tuple[Path, str, bool]:
        """Compile one file; return (object, its output, was cached). ``inputs`` = [] recompiles."""
        # The include path is the package's own; its files count, its place does not.
        stable = [f for f in flags if not f.startswith("-I")]
        digest = hashlib.sha256(repr([self.version, stable, output]).encode())
        for path in inputs:
            digest.update(repr((path.name, path.read_bytes())).encode())
        stem = cache_dir() / f"{source.stem}-{digest.hexdigest()[:24]}"
        kept, text = stem.with_suffix(f".{output}"), stem.with_suffix(f".{output}.log")
        if inputs and kept.is_file() and text.is_file():
            self._append(f"# {source.name}: {kept} (cached)\n{text.read_text()}")
            return kept, text.read_text(), True
        partial = stem.with_suffix(f".{os.getpid()}.partial.o")
        threads = ["-t", "2"] if parallel else []
        try:
            command = [str(self.nvcc), "-c", *threads, *flags, str(source), "-o", str(partial)]
            printed = self.run(command, source)
            text.write_text(printed)
            os.replace(partial, kept)
        finally:
            partial.unlink(missing_ok=True)
        return kept, printed, False

    def link(self, objects: list[Path], library: Path) -> None:
        """Link the library; it appears whole or not at all. Symbols of the CUDA runtime stay hidden."""
        partial = library.with_suffix(f".{os.getpid()}.partial.so")
        hide = ["-Xlinker", "--exclude-libs,ALL", "-Xlinker", f"-soname={library.name}"]
        inputs = [str(path) for path in objects]
        command = [str(self.nvcc), "-shared", "-cudart", "static", *hide, *inputs, "-o", str(partial)]
        try:
            self.run(command, library)
            os.replace(partial, library)
        finally:
            partial.unlink(missing_ok=True)

    def run(self, command: list[str], subject: Path) -> str:
        """Run a command, log it, return its output. Raises TC0502 with the first error."""
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.package
        )
        self._append(f"$ {' '.join(command)}\n{done.stdout}")
        if done.returncode != 0:
            raise _failed(done.stdout, subject, self.log, done.returncode)
        return done.stdout

    def _append(self, text: str) -> None:
        with self.log.open("a") as out:
            out.write(text)


def _failed(printed: str, subject: Path, log: Path, code: int) -> Exception:
    """The first line that is an error, with its place when the compiler names one."""
    lines = printed.splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"\b(error|fatal)\b", line)), None)
    line = lines[first].strip() if first is not None else f"exit status {code}, nothing printed"
    span = Span(str(subject))
    # "file(12): error: ..." of nvcc, "file:12:3: error: ..." of the host compiler.
    place = re.match(r"(?P<file>[^\s():]+)(?:\((?P<a>\d+)\)|:(?P<b>\d+)(?::\d+)?):\s*(?P<text>.*)", line)
    if place:
        span = Span(place["file"], int(place["a"] or place["b"]))
        line = place["text"]
    return error("TC0502", f"nvcc failed on `{subject.name}`: {line}", span=span, note=f"all messages: {log}")


def _gencode(target: str) -> str:
    found = re.fullmatch(r"sm_(\d{2,3}[af]?)", target)
    if found is None:
        raise error(
            "TC0506",
            f"nvcc has no target `{target}`",
            note="a target is sm_ and the compute capability, for example sm_90a (Hopper) or sm_100a (B200)",
        )
    return f"arch=compute_{found[1]},code=sm_{found[1]}"


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
