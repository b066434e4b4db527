"""Writes the IR before and after each pass into a folder, numbered, as the passes run: when one fails, its
input is there.

    02-fuse.before.txt  02-fuse.after.txt  03-tile.before.txt  ...  11-cuda.after.cu
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tilecc.diag import error
from tilecc.ir.graph import Graph
from tilecc.ir.program import Program
from tilecc.ir.tile import TileGraph
from tilecc.passes.pipeline import Watch


class Dump(Watch):
    """A folder of IR texts, made if need be; numbered files of an earlier dump are removed.

    Raises TileccError TC0703 if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                if old.name[:2].isdigit() and old.name.endswith((".before.txt", ".after.txt", ".after.cu")):
                    old.unlink()
        except OSError as reason:
            why = reason.strerror or str(reason)
            raise error(
                "TC0703", f"`--dump {folder}` cannot be written", note=why, help="choose another folder"
            ) from None

    def before(self, name: str, ir: Graph | TileGraph | Program) -> None:
        """Write the input of a pass."""
        self.number += 1
        self.write(f"{self.number:02}-{name}.before.txt", ir.to_text())

    def after(self, name: str, ir: Graph | TileGraph | Program) -> None:
        """Write the result of a pass."""
        self.write(f"{self.number:02}-{name}.after.txt", ir.to_text())

    def made(self, name: str, text: str, suffix: str = "txt") -> None:
        """Write what a phase without an IR before it made."""
        self.number += 1
        self.write(f"{self.number:02}-{name}.after.{suffix}", text)

    def write(self, name: str, text: str) -> None:
        """Write a file under a temporary name and rename it."""
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.folder / name)
