"""The Python mirrors of the launch ABI against the C header, compiled."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from tilecc.runtime.abi import MAX_ROWS, ROW, STATUS_WORDS, Params, pack_steps, step_type

HEADER = Path(__file__).parents[2] / "templates" / "include" / "tilecc_params.h"


def test_sizes_and_offsets_are_the_header_s(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler")
    fields = [f"tilecc_params.{name}" for name, _ in Params._fields_]
    fields += [f"tilecc_row.{name}" for name in ROW.names or ()] + [
        f"tilecc_step.{n}" for n in step_type().names or ()
    ]
    lines = ['#include "tilecc_params.h"', "#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    lines += [
        f'printf("%zu\\n", sizeof(struct {s}));' for s in ("tilecc_params", "tilecc_row", "tilecc_step")
    ]
    lines += ['printf("%d\\n%d\\n", TILECC_MAX_ROWS, TILECC_STATUS_WORDS);']
    lines += [f'printf("%zu\\n", offsetof(struct {f.replace(".", ", ")}));' for f in fields]
    (tmp_path / "a.c").write_text("\n".join([*lines, "return 0; }"]))
    command = [
        compiler,
        "-Wall",
        "-Werror",
        f"-I{HEADER.parent}",
        "-o",
        str(tmp_path / "a"),
        str(tmp_path / "a.c"),
    ]
    subprocess.run(command, check=True)
    found = [int(v) for v in subprocess.run([tmp_path / "a"], check=True, capture_output=True).stdout.split()]
    want = [ctypes.sizeof(Params), ROW.itemsize, step_type().itemsize, MAX_ROWS, STATUS_WORDS]
    want += [getattr(Params, name).offset for name, _ in Params._fields_]
    for dtype in (ROW, step_type()):
        want += [(dtype.fields or {})[name][1] for name in dtype.names or ()]
    assert found == want and step_type().itemsize == 144


def test_pack_steps() -> None:
    table = pack_steps([[(5, 3, 1)], [(7, 4, 0), (8, 5, 0)]])
    assert table["n_rows"].tolist() == [1, 2]
    words = table.view("<i4").reshape(2, 36)
    assert words[1, :12].tolist() == [2, 0, 0, 0, 7, 4, 0, 0, 8, 5, 0, 0] and not words[1, 12:].any()
