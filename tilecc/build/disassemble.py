"""Machine code of a package's kernel as text: nvcc (or its cache), cuobjdump, nvdisasm. No GPU, no driver."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tilecc.build.nvcc import build_kernel_object
from tilecc.build.ptxas import KernelFacts
from tilecc.build.sass import Listing, parse_sass
from tilecc.diag import Span, error


@dataclass(frozen=True)
class MachineCode:
    """The disassembled kernel of one target, with what ptxas said about it. `compiler` is nvcc's version."""

    target: str
    compiler: str
    facts: KernelFacts
    listing: Listing


def disassemble(package: Path, target: str) -> MachineCode:
    """Compile the kernel for `target` (from the cache where it can) and disassemble it with source lines.

    Raises TC0501, TC0502, TC0506 as the build does, TC0507 without disassembler, TC0508 when it fails.
    """
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    kernel, kernels, compiler = build_kernel_object(package, target)
    with tempfile.TemporaryDirectory(prefix="tilecc-sass-") as work:
        _run([str(cuobjdump), "-xelf", target, str(kernel.resolve())], Path(work))
        cubins = sorted(Path(work).glob("*.cubin"))
        if len(cubins) != 1:
            raise _unreadable(f"{len(cubins)} cubins for `{target}` in the object, one expected", kernel)
        text = _run([str(nvdisasm), "-c", "-hex", "-gi", cubins[0].name], Path(work))
    try:
        listings = parse_sass(text)
    except ValueError as reason:
        raise _unreadable(str(reason), kernel) from None
    facts = kernels[0]
    for listing in listings:
        if listing.name == facts.name:
            return MachineCode(target, compiler, facts, listing)
    raise _unreadable(f"no function `{facts.name}` among {[f.name for f in listings]}", kernel)


def find_tool(name: str) -> Path:
    """Return cuobjdump or nvdisasm: of the extra `toolchain`, else on PATH. Raises TC0507."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for candidate in sorted(Path(root).glob(f"cu*/bin/{name}"), reverse=True):
            if os.access(candidate, os.X_OK):
                return candidate
    found = shutil.which(name)
    if found is None:
        raise error(
            "TC0507",
            f"`{name}` not found",
            note="looked in the Python packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, then on PATH",
            help="pip install 'tilecc[toolchain]'",
        )
    return Path(found)


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise _unreadable(said or f"exit status {done.returncode}", command[0])
    return done.stdout


def _unreadable(why: str, subject: Path | str) -> Exception:
    name = Path(subject).name
    return error(
        "TC0508",
        f"the machine code could not be read: {why.splitlines()[0]}",
        span=Span(name),
        note=why.splitlines()[1:6],
        help="pip install 'tilecc[toolchain]'",
    )
