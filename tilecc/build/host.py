"""Renders and compiles the host launcher of a package: tvm-ffi functions and a plain C interface.

The launcher is ordinary C++ and apart from the kernel, so a changed kernel does not pay for the tvm-ffi
headers and a changed launcher does not pay for ptxas.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import jinja2

from tilecc.diag import InternalError, error
from tilecc.package import Manifest
from tilecc.package.text import HOST_HEADERS as HOST_HEADERS
from tilecc.runtime.abi import STATUS_WORDS

HOST_TEMPLATES = Path(__file__).resolve().parents[1] / "templates" / "host"


def render_launcher(manifest: Manifest, targets: list[str]) -> str:
    """Return the C++ text of the launcher, with the package's sizes as constants."""
    if not re.fullmatch(r"[A-Za-z_]\w*", manifest.name):
        raise InternalError(f"package name {manifest.name!r} is not a C identifier")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HOST_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("launcher.cc.j2").render(
        name=manifest.name,
        kernel=manifest.kernel,
        targets=targets,
        status_words=STATUS_WORDS,
        **{
            field: getattr(manifest, field)
            for field in (
                "threads smem_bytes default_grid max_rows max_context max_seqs vocab hidden "
                "image_bytes tables_bytes kv_bytes workspace_bytes"
            ).split()
        },
    )


def tvm_ffi_include() -> Path:
    """Return the include directory of apache-tvm-ffi without importing it (its import loads torch).

    Raises TC0505 when the package is not installed.
    """
    spec = importlib.util.find_spec("tvm_ffi")
    if spec is None or not spec.submodule_search_locations:
        raise error(
            "TC0505",
            "the headers of apache-tvm-ffi are not installed",
            note="the host launcher of a package exports functions in the tvm-ffi ABI",
            help="pip install apache-tvm-ffi",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "include"
