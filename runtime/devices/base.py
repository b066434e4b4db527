"""What a session needs of a device: memory under a name, and a way to launch the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tilecc.package import Region

Bytes = NDArray[np.uint8]
Access = Literal["read", "state", "scratch"]
"""How a kernel uses a buffer: it reads; it reads and writes what survives launches; it writes, then reads."""

Stats = dict[str, int | float]


@dataclass(frozen=True)
class Buffer:
    """Device memory. ``handle`` belongs to the device that made it; ``regions`` name its parts in reports."""

    name: str
    nbytes: int
    access: Access
    handle: Any = field(repr=False, compare=False)
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Launch:
    """The arguments of one kernel launch (struct tilecc_params without the status buffer)."""

    image: Buffer
    tables: Buffer
    kv: Buffer
    workspace: Buffer
    steps: Buffer
    tokens_out: Buffer
    logits: Buffer | None
    stop_ids: Buffer
    n_steps: int
    n_stop: int
    flags: int = 0


class Device(Protocol):
    """One machine that runs emitted kernels. Not thread-safe; launches are synchronous."""

    name: str
    grid: int
    note: str
    """What a speed measured on this device means; printed with every speed."""

    def host_array(self, nbytes: int) -> Bytes:
        """Return zeroed host memory that this device uploads from without a further copy where it can."""
        ...

    def upload(self, name: str, data: Bytes) -> Buffer:
        """Return a read-only buffer with ``data``, which must not change afterwards."""
        ...

    def alloc_zeroed(
        self, name: str, nbytes: int, access: Access = "state", regions: tuple[Region, ...] = ()
    ) -> Buffer:
        """Return zeroed memory."""
        ...

    def write(self, buffer: Buffer, data: NDArray[Any]) -> None:
        """Copy ``data`` to the start of ``buffer``."""
        ...

    def zero(self, buffer: Buffer) -> None:
        """Zero all of ``buffer``."""
        ...

    def download(self, buffer: Buffer, dtype: Any, count: int) -> NDArray[Any]:
        """Return a copy of the first ``count`` elements."""
        ...

    def launch(self, launch: Launch) -> Stats:
        """Run the kernel to its end. Raises TC0404 when it stopped without finishing."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...
