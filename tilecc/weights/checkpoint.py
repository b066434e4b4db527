"""Reading and writing checkpoints in the official safetensors layout, with errors that name tensor, limit and
fix.

Only headers are read until a tensor is asked for; then its bytes are mapped, not copied. A safetensors file
is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tilecc.diag import Diagnostic, Span, TileccError, error
from tilecc.diag.model import nearest
from tilecc.weights import formats
from tilecc.weights.mimo_config import parse_config, tensor_specs
from tilecc.weights.spec import ParamSpec, scale_name

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
"""Safetensors type names and their numpy types."""

_MAX_HEADER = 100 << 20
"""Headers above 100 MiB are refused, as the format's own readers do."""

_MAX_LISTED = 20
"""Diagnostics of one kind that are listed one by one; the rest is counted."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: ``offset`` bytes from the start of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """An opened checkpoint directory.

    Raises TileccError TC0301 (no checkpoint here) or TC0305 (damaged or truncated file) when opened.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise error(
                "TC0301", f"no checkpoint directory `{self.directory}`", help="give the folder of config.json"
            )
        self.config: dict[str, Any] = _read_json(self.directory / "config.json", "TC0301")
        self.entries: dict[str, TensorEntry] = {}
        self._maps: dict[Path, np.memmap[Any, np.dtype[np.uint8]]] = {}
        for file in self._files():
            self.entries.update(_read_header(file))

    def _files(self) -> list[Path]:
        index = self.directory / "model.safetensors.index.json"
        if not index.exists():
            files = sorted(self.directory.glob("*.safetensors"))
            if not files:
                raise error(
                    "TC0301",
                    f"no `*.safetensors` file in `{self.directory}`",
                    help="give the folder that holds config.json and the weights",
                )
            return files
        weight_map = _read_json(index, "TC0305").get("weight_map")
        if not isinstance(weight_map, dict):
            raise error(
                "TC0305", "the index has no `weight_map`", span=Span(str(index)), help="fetch the index again"
            )
        files = [self.directory / name for name in sorted(set(weight_map.values()))]
        missing = [file for file in files if not file.exists()]
        if missing:
            raise error(
                "TC0305",
                f"`{missing[0].name}` is named by the index but is not there",
                span=Span(str(index)),
                note=f"{len(missing)} of {len(files)} files are missing" if len(missing) > 1 else (),
                help="fetch the missing files",
            )
        return files

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self.entries)

    def tensor(self, name: str) -> Array:
        """The stored tensor (read-only view of the mapped file; bf16 and fp8 as ml_dtypes types). TC0302 if
        absent."""
        entry = self.entries.get(name)
        if entry is None:
            raise TileccError(self._missing(name))
        if entry.file not in self._maps:
            self._maps[entry.file] = np.memmap(entry.file, np.uint8, mode="r")
        raw = np.asarray(self._maps[entry.file])[entry.offset : entry.offset + entry.nbytes]
        return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def validate(self, spec: Mapping[str, ParamSpec]) -> list[Diagnostic]:
        """All findings against ``spec``: TC0302 missing, TC0303 misshapen, TC0304 mistyped, TC0306 unknown
        quantisation.

        Reads no tensor data. Tensors that ``spec`` does not mention (MTP layers, towers) are ignored.
        """
        found: list[Diagnostic] = []
        try:
            parse_config(self.config)
        except TileccError as problem:
            span = Span(str(self.directory / "config.json"))
            found += [
                Diagnostic(d.code, d.message, span, d.notes, d.help)
                for d in problem.diagnostics
                if d.code == "TC0306"
            ]
        for param in spec.values():
            for stored in param.stored():
                entry = self.entries.get(stored.name)
                if entry is None:
                    if not param.optional:
                        found.append(self._missing(stored.name))
                    continue
                span = Span(str(entry.file), label=stored.name)
                if entry.shape != stored.shape:
                    found.append(
                        Diagnostic(
                            "TC0303",
                            f"`{stored.name}` has shape {list(entry.shape)}, expected {list(stored.shape)}",
                            span,
                            (f"format {param.format}, logical shape {list(param.shape)}",),
                            ("use the config.json that belongs to this checkpoint",),
                        )
                    )
                if entry.dtype not in stored.dtypes:
                    wanted = " or ".join(stored.dtypes)
                    found.append(
                        Diagnostic(
                            "TC0304",
                            f"`{stored.name}` is {entry.dtype}, expected {wanted}",
                            span,
                            (f"the configuration makes this parameter {param.format}",),
                            (f"store it as {wanted}, or correct `quantization_config`",),
                        )
                    )
        return _shorten(found)

    def require(self, spec: Mapping[str, ParamSpec]) -> None:
        """Raise TileccError with everything :meth:`validate` finds."""
        found = self.validate(spec)
        if found:
            raise TileccError(found)

    def dequantize(self, name: str, spec: ParamSpec, chunks: int | None = None) -> formats.F32:
        """One source tensor as float32 of shape ``spec.shape``. ``chunks`` overrides ``spec.chunks``.

        Raises TC0302 for a missing tensor, TC0307 for an illegal scale, TC0308 for a NaN code; both name the
        position.
        """
        if spec.optional and name not in self.entries:
            return np.zeros(spec.shape, np.float32)
        codes = self.tensor(name)
        if spec.format in ("bf16", "f32"):
            return np.array(codes, np.float32)
        scales = self.tensor(scale_name(name, spec.format))
        self._check_scales(scale_name(name, spec.format), spec, scales)
        if spec.format == "mxfp4":
            return formats.mxfp4_dequantize(np.asarray(codes), np.asarray(scales))
        raw = codes.view(np.uint8)
        bad = raw & 0x7F == 0x7F
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            raise self._unusable(
                "TC0308",
                name,
                f"`{name}` holds `0x{raw[tuple(where)]:02x}`, the FP8 code of NaN, at {where}",
                f"{int(bad.sum())} of {bad.size} codes are NaN",
            )
        with np.errstate(over="ignore"):
            out = formats.fp8_block_dequantize(codes, scales, spec.chunks if chunks is None else chunks)
        bad = ~np.isfinite(out)
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            raise self._unusable(
                "TC0307",
                name,
                f"`{name}` overflows float32 at {where} when scaled",
                f"{int(bad.sum())} of {bad.size} weights overflow",
            )
        return out

    def _unusable(self, code: str, name: str, message: str, note: str) -> TileccError:
        span = Span(str(self.entries[name].file), label=name)
        return error(
            code, message, span=span, note=note, help="fetch the file again, or requantise the matrix"
        )

    def parameter(self, spec: ParamSpec) -> formats.F32:
        """A whole parameter as float32 of shape ``spec.stacked_shape``."""
        if not spec.experts:
            return self.dequantize(spec.source, spec)
        out = np.empty(spec.stacked_shape, np.float32)
        for e, name in enumerate(spec.names()):
            out[e] = self.dequantize(name, spec)
        return out

    def _check_scales(self, name: str, spec: ParamSpec, scales: Array) -> None:
        if spec.format == "mxfp4":
            bad = scales > formats.MXFP4_MAX_SCALE
            limit = f"0 to {formats.MXFP4_MAX_SCALE}"
        else:
            bad = ~np.isfinite(scales) | (scales < 0)
            limit = "finite and not negative"
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            raise self._unusable(
                "TC0307",
                name,
                f"`{name}` holds `{scales[tuple(where)]}` at {where}, but a scale must be {limit}",
                f"{int(bad.sum())} of {bad.size} scales are illegal",
            )

    def _missing(self, name: str) -> Diagnostic:
        return Diagnostic(
            "TC0302",
            f"the checkpoint has no tensor `{name}`",
            Span(str(self.directory), label=name),
            (f"it has {len(self.entries)} tensors",),
            tuple(
                h
                for h in (nearest(name, self.entries), "fetch the missing shard, or use the matching config")
                if h
            ),
        )


def _shorten(found: list[Diagnostic]) -> list[Diagnostic]:
    """Keep the first findings of each code; a wrong config would otherwise list every expert."""
    kept: list[Diagnostic] = []
    for code in sorted({d.code for d in found}):
        same = [d for d in found if d.code == code]
        kept += same[:_MAX_LISTED]
        if len(same) > _MAX_LISTED:
            last = kept.pop()
            more = f"and {len(same) - _MAX_LISTED} more tensors with this error"
            kept.append(Diagnostic(last.code, last.message, last.span, (*last.notes, more), last.help))
    return kept


def _read_json(file: Path, code: str) -> dict[str, Any]:
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(
            code, f"no `{file.name}` in `{file.parent}`", help="fetch the whole checkpoint folder"
        ) from None
    except (OSError, ValueError) as problem:
        raise error(
            "TC0305",
            f"`{file.name}` cannot be read: {problem}",
            span=Span(str(file)),
            help="fetch the file again",
        ) from None
    if not isinstance(parsed, dict):
        raise error(
            "TC0305", f"`{file.name}` is not a JSON object", span=Span(str(file)), help="fetch the file again"
        )
    return parsed


def _read_header(file: Path) -> dict[str, TensorEntry]:
    """Entries of one safetensors file; checks every offset against type, shape and file size."""

    def damaged(message: str, label: str = "") -> TileccError:
        return error("TC0305", message, span=Span(str(file), label=label), help="fetch the file again")

    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little") if len(head) == 8 else 0
        if not 2 <= length <= _MAX_HEADER or 8 + length > size:
            raise damaged(f"`{file.name}` of {size:,} bytes does not hold a safetensors header")
        try:
            header = json.loads(stream.read(length))
        except ValueError as problem:
            raise damaged(f"the header of `{file.name}` is not JSON: {problem}") from None
    if not isinstance(header, dict):
        raise damaged(f"the header of `{file.name}` is not a JSON object")
    entries: dict[str, TensorEntry] = {}
    for name, item in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(item["dtype"]), tuple(int(n) for n in item["shape"])
            start, end = (int(n) for n in item["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise damaged(f"`{name}` has a malformed header entry", name) from None
        if dtype not in DTYPES:
            raise error(
                "TC0304",
                f"`{name}` has the type `{dtype}`, which tilecc cannot read",
                span=Span(str(file), label=name),
                note=f"readable types: {', '.join(DTYPES)}",
                help="store the tensor as one of the readable types",
            )
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        if end - start != nbytes or start < 0:
            raise damaged(
                f"`{name}` has {end - start:,} bytes, but {dtype}{list(shape)} needs {nbytes:,}", name
            )
        if 8 + length + end > size:
            raise damaged(
                f"`{name}` ends at byte {8 + length + end:,}, but the file has {size:,} bytes", name
            )
        entries[name] = TensorEntry(file, dtype, shape, 8 + length + start, nbytes)
    return entries


# ---------------------------------------------------------------------------------------------------- writing


def encode(name: str, value: Array, spec: ParamSpec) -> dict[str, Array]:
    """The stored tensors of one float32 source tensor: codes and scales in the format of ``spec``."""
    value = np.asarray(value, np.float32)
    if tuple(value.shape) != spec.shape:
        raise ValueError(f"{name} has shape {value.shape}, its spec {spec.shape}")
    if spec.format == "bf16":
        return {name: value.astype(ml_dtypes.bfloat16)}
    if spec.format == "f32":
        return {name: value}
    quantize: Callable[[formats.F32], tuple[Array, Array]] = formats.mxfp4_quantize
    codes, scale = (
        formats.fp8_block_quantize(value, spec.chunks) if spec.format == "fp8_block" else quantize(value)
    )
    return {name: codes, scale_name(name, spec.format): scale}


def encode_parameters(values: Mapping[str, Array], specs: Mapping[str, ParamSpec]) -> dict[str, Array]:
    """Stored tensors of float32 parameters (stacked ones of shape ``stacked_shape``) keyed by parameter
    name."""
    stored: dict[str, Array] = {}
    for key, spec in specs.items():
        value = values[key]
        for e, name in enumerate(spec.names()):
            stored.update(encode(name, value[e] if spec.experts else value, spec))
    return stored


def write_checkpoint(directory: Path | str, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    """Write config.json, model.safetensors and its index; each file appears whole or not at all.

    ``tensors`` are in their stored types, for example from :func:`encode_parameters`. The same input gives
    the same bytes.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    type_names = {dtype: name for name, dtype in DTYPES.items()}
    # Widest elements first keeps every tensor aligned without padding, which the format forbids.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        value = tensors[name]
        header[name] = {
            "dtype": type_names[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blobs = (np.ascontiguousarray(tensors[name]).tobytes() for name in order)
    write_atomic(target / "model.safetensors", [len(text).to_bytes(8, "little"), text], blobs)
    index = {
        "metadata": {"total_size": offset},
        "weight_map": {name: "model.safetensors" for name in sorted(tensors)},
    }
    write_atomic(target / "model.safetensors.index.json", [(json.dumps(index, indent=1) + "\n").encode()])
    write_atomic(target / "config.json", [(json.dumps(config, indent=2) + "\n").encode()])


def write_atomic(file: Path, *parts: Iterable[bytes]) -> None:
    """Write bytes to a temporary name beside ``file`` and rename it."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            for part in parts:
                for piece in part:
                    stream.write(piece)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def random_checkpoint(directory: Path | str, config: Mapping[str, Any], seed: int = 0) -> Path:
    """Write a random checkpoint of any legal MiMo-V2 configuration in the official format; returns the
    directory.

    Weights are scaled by 1/sqrt(fan-in) so that activations stay near 1; router rows are spread and the
    correction bias is not zero, so that selection and weights differ; sinks are of the size of attention
    scores. Same seed, same bytes.
    Raises TileccError for an illegal configuration.
    """
    specs = tensor_specs(parse_config(config))
    stored: dict[str, Array] = {}
    for number, (key, spec) in enumerate(specs.items()):
        random = np.random.default_rng([seed, number])
        for name in spec.names():
            value = random.standard_normal(spec.shape, dtype=np.float32)
            if key.endswith("norm.weight"):
                value = 1 + np.float32(0.1) * value
            elif key.endswith("e_score_correction_bias"):
                value = np.float32(0.1) * value
            elif spec.shape[1:] and not key.endswith("embed_tokens.weight"):
                value = value * np.float32(spec.shape[1] ** -0.5)
            stored.update(encode(name, value, spec))
    write_checkpoint(directory, config, stored)
    return Path(directory)
