"""The weight image: packers against an inverse written element by element, and against plain arithmetic."""

from __future__ import annotations

import ml_dtypes
import msgspec
import numpy as np
import pytest

from tilecc.diag import InternalError, TileccError
from tilecc.package import ImageEntry, Manifest
from tilecc.weights.image import build_image, pack_entry, unpack_matrix
from tilecc.weights.image_rows import scale_shape, source_rows
from tilecc.weights.layout import BLOCK_BYTES, entry_bytes, lay_out, matrix_entry, vector_entry

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FORMATS = ["bf16", "f32", "fp8_block", "mxfp4"]
# rows, cols: exact, short rows, short columns (whole MXFP4 groups), several blocks
SHAPES = [(16, 128), (40, 128), (24, 96), (152, 288), (8, 32)]
# chunks, heads, kv heads, head dim, v dim, rotary: the tiny model (scale blocks straddle K and V), the
# proportions of the Pro model (rotary 64 of 192), odd paddings everywhere, all rotated, nothing rotated
QKV = [
    (4, 8, 4, 48, 32, 16),
    (2, 4, 2, 192, 128, 64),
    (1, 3, 1, 20, 12, 12),
    (3, 6, 3, 24, 40, 24),
    (2, 2, 2, 40, 8, 0),
]


class Tensors:
    """A checkpoint in memory."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.by_name: dict[str, np.ndarray] = {}

    def tensor(self, name: str) -> np.ndarray:
        return self.by_name[name]

    def names(self) -> list[str]:
        return sorted(self.by_name)

    def fill(self, entry: ImageEntry) -> np.ndarray:
        """Invent the sources of a matrix entry; return what it means, f32[experts or 1, rows, cols]."""
        meaning = []
        for e in range(max(entry.experts, 1)):
            names = [s.replace("{e}", str(e)) for s in entry.sources]
            parts = [self._source(entry, name, entry.rows // len(names)) for name in names]
            meaning.append(np.concatenate(parts))
        return np.stack(meaning)

    def _source(self, entry: ImageEntry, name: str, rows: int) -> np.ndarray:
        shape, rng = (rows, entry.cols), self.rng
        if entry.format == "mxfp4":
            codes = rng.integers(0, 16, shape).astype(np.uint8)
            self.by_name[name] = codes[:, 0::2] | codes[:, 1::2] << 4
            scale = rng.integers(0, 225, (rows, entry.cols // 32)).astype(np.uint8)
            self.by_name[name.removesuffix(".weight") + ".weight_scale"] = scale
            return E2M1[codes] * np.exp2(scale.astype(np.float64) - 127).repeat(32, 1).astype(np.float32)
        if entry.format == "fp8_block":
            value = (rng.standard_normal(shape) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
            scale = rng.uniform(0.001, 2, scale_shape(entry)).astype(np.float32)
            self.by_name[name], self.by_name[name + "_scale_inv"] = value, scale
            per_row = np.stack([scale[self._scale_row(entry, n)] for n in range(rows)])
            return value.astype(np.float32) * per_row.repeat(128, 1)[:, : entry.cols]
        value = rng.standard_normal(shape).astype(np.float32)
        if entry.format == "bf16":
            value = value.astype(ml_dtypes.bfloat16)
        self.by_name[name] = value
        return value.astype(np.float32)

    @staticmethod
    def _scale_row(entry: ImageEntry, row: int) -> int:
        """mimo 3.3: row r of chunk c uses scale row c * ceil(rows per chunk / 128) + r div 128."""
        if entry.rule != "qkv":
            return row // 128
        per_chunk = entry.rows // int(entry.args["chunks"])
        return (row // per_chunk) * ((per_chunk + 127) // 128) + (row % per_chunk) // 128


def packed(entry: ImageEntry, tensors: Tensors) -> np.ndarray:
    # A buffer full of ones shows bytes that the packer forgot.
    out = np.full(entry.nbytes, 0xFF, np.uint8)
    pack_entry(entry, tensors, out)
    return out


def qkv_entry(format: str, chunks: int, heads: int, kv: int, dim: int, v_dim: int, rotary: int, cols: int):
    rows = (heads + kv) * dim + kv * v_dim
    return matrix_entry(
        "qkv",
        format,
        "qkv",
        ["a.qkv_proj.weight"],
        rows,
        cols,
        chunks=chunks,
        heads=heads,
        kv_heads=kv,
        head_dim=dim,
        v_head_dim=v_dim,
        rotary=rotary,
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows,cols", SHAPES)
def test_plain_matrix_comes_back_exactly(format: str, rows: int, cols: int) -> None:
    tensors = Tensors(rows * 1000 + cols)
    entry = matrix_entry("w", format, "plain", ["w.weight"], rows, cols)
    expected = tensors.fill(entry)
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(unpack_matrix(entry, packed(entry, tensors)), expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("width,cols,experts", [(16, 64, 3), (20, 160, 0), (136, 128, 0)])
def test_gate_up_with_experts_comes_back_exactly(format: str, width: int, cols: int, experts: int) -> None:
    tensors = Tensors(width)
    names = ["mlp.{e}.gate.weight", "mlp.{e}.up.weight"]
    entry = matrix_entry("gu", format, "gate_up", names, 2 * width, cols, experts)
    expected = tensors.fill(entry)
    np.testing.assert_array_equal(unpack_matrix(entry, packed(entry, tensors)), expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sizes", QKV)
def test_fused_qkv_comes_back_exactly(format: str, sizes: tuple[int, ...]) -> None:
    tensors = Tensors(sum(sizes))
    entry = qkv_entry(format, *sizes, cols=128 if sizes[3] > 100 else 160)
    expected = tensors.fill(entry)
    np.testing.assert_array_equal(unpack_matrix(entry, packed(entry, tensors)), expected)


def test_qkv_scale_blocks_straddle_k_and_v() -> None:
    """The case of the committed model must really contain the trap: one scale row serving K and V rows."""
    chunks, heads, kv, dim, _v_dim, _ = QKV[0]
    k_end = heads // chunks * dim + kv // chunks * dim
    assert k_end % 128 != 0 and (k_end - 1) // 128 == k_end // 128


def test_one_lane_holds_gate_and_up_of_one_neuron() -> None:
    """Accumulator rows g and g + 8 of a lane: element e0 is gate, e2 is up of the same neuron and column."""
    entry = matrix_entry("gu", "bf16", "gate_up", ["g.weight", "u.weight"], 32, 128)
    tensors = Tensors(1)
    tensors.fill(entry)
    lanes = packed(entry, tensors).view(ml_dtypes.bfloat16).reshape(2, 8, 32, 8)
    gate, up = tensors.by_name["g.weight"], tensors.by_name["u.weight"]
    # tile 1, step 3, lane 4 * 5 + 2: neuron 8 + 5, columns 48 + 4, 48 + 5 and eight further right
    assert lanes[1, 3, 22].tolist() == [
        *gate[13, 52:54].tolist(),
        *up[13, 52:54].tolist(),
        *gate[13, 60:62].tolist(),
        *up[13, 60:62].tolist(),
    ]


def test_rope_partners_are_eight_rows_apart() -> None:
    entry = qkv_entry("bf16", 2, 4, 2, 40, 16, 24, 128)
    _, row = source_rows(entry)
    # 24 rotated dims: two rope tiles of 8 + 4 pairs, one plain tile of 16 dims.
    first_head = row[: 3 * 16].reshape(3, 2, 8)
    assert first_head[0].tolist() == [list(range(0, 8)), list(range(12, 20))]
    assert first_head[1].tolist() == [[8, 9, 10, 11, -1, -1, -1, -1], [20, 21, 22, 23, -1, -1, -1, -1]]
    assert first_head[2].reshape(-1).tolist() == list(range(24, 40))


@pytest.mark.parametrize("format", FORMATS)
def test_padding_bytes_are_the_neutral_ones(format: str) -> None:
    tensors = Tensors(5)
    entry = matrix_entry("w", format, "plain", ["w.weight"], 8, 32)
    tensors.fill(entry)
    block = packed(entry, tensors)
    if format == "mxfp4":
        word = block[1024:].view("<u4").reshape(8, 2).T.reshape(16)  # [g][row half] -> rows
        word = (word << np.uint32(1) | word >> np.uint32(31)).byteswap()  # byte i: group i, + 30
        scale = word.view(np.uint8).reshape(16, 4) - 30
        assert (scale[8:] == 0x7F).all() and (scale[:, 1:] == 0x7F).all()
        np.testing.assert_array_equal(scale[:8, 0], tensors.by_name["w.weight_scale"][:, 0])
    if format == "fp8_block":
        scale = block[2048:].view(np.float32).reshape(8, 2).T.reshape(16) / 2.0**24
        assert (scale[8:] == 0).all() and (scale[:8] == tensors.by_name["w.weight_scale_inv"][0, 0]).all()


def test_vectors_and_embedding() -> None:
    rng = np.random.default_rng(3)
    tensors = Tensors(0)
    weight = rng.standard_normal((5, 144)).astype(ml_dtypes.bfloat16)
    bias = rng.standard_normal(6).astype(ml_dtypes.bfloat16)
    tensors.by_name.update({"embed": weight, "norm": weight[2], "sink": bias})

    def permuted(row: np.ndarray) -> np.ndarray:
        out = np.zeros(256, np.float32)
        for k in range(row.size):
            step, c = divmod(k, 16)
            out[step * 16 + (c % 8) // 2 * 4 + (c // 8) * 2 + c % 2] = row[k]
        return out

    norm = vector_entry("n", "norm", ["norm"], 1, 144)
    np.testing.assert_array_equal(
        packed(norm, tensors).view(ml_dtypes.bfloat16).astype(np.float32), permuted(weight[2])
    )
    embed = vector_entry("e", "embed", ["embed"], 5, 144)
    got = packed(embed, tensors).view(ml_dtypes.bfloat16).astype(np.float32).reshape(5, 256)
    np.testing.assert_array_equal(got, np.stack([permuted(row) for row in weight]))
    sink = vector_entry("s", "f32", ["sink"], 1, 6, fill=-1.0, pad_to=8)
    assert packed(sink, tensors).view(np.float32).tolist() == [*bias.astype(np.float32).tolist(), -1.0, -1.0]
    bias_less = vector_entry("b", "f32", ["missing"], 1, 3, fill=0.25, optional=1)
    assert packed(bias_less, tensors).view(np.float32).tolist() == [0.25] * 3
    with pytest.raises(KeyError):
        packed(vector_entry("b", "f32", ["missing"], 1, 3), tensors)
    constant = vector_entry("c", "f32", [], 1, 4, fill=0.5)
    assert packed(constant, tensors).view(np.float32).tolist() == [0.5] * 4


def test_rope_table_is_cos_and_sin_of_float32_angles() -> None:
    entry = vector_entry("r", "rope", [], 700, 8, theta=1e4)
    table = packed(entry, Tensors(0)).view(np.float32).reshape(700, 8, 2)
    for p, j in [(0, 0), (1, 3), (699, 0), (699, 7)]:
        angle = np.float32(p) * np.float32(10000.0 ** (-2 * j / 16))
        # Half an ulp of the rounding to float32.
        np.testing.assert_allclose(table[p, j], [np.cos(float(angle)), np.sin(float(angle))], atol=6e-8)


def refused(entry: ImageEntry, tensors: Tensors) -> tuple[str, str, str]:
    """(code, message, place) of the diagnostic."""
    with pytest.raises(TileccError) as caught:
        packed(entry, tensors)
    (found,) = caught.value.diagnostics
    assert found.span is not None and found.help
    return found.code, found.message, f"{found.span.file} {found.span.label}"


@pytest.mark.parametrize("byte", range(225, 256))
def test_unusable_scale_bytes_are_refused_with_name_and_position(byte: int) -> None:
    """Anywhere: in the second source of an interleaved matrix, of any expert, in the last group."""
    tensors = Tensors(9)
    names = ["mlp.{e}.gate.weight", "mlp.{e}.up.weight"]
    entry = matrix_entry("gu", "mxfp4", "gate_up", names, 48, 96, 3)
    tensors.fill(entry)
    packed(entry, tensors)  # nothing is wrong yet
    row, group = byte % 24, byte % 3
    tensors.by_name["mlp.2.up.weight_scale"][row, group] = byte
    code, message, place = refused(entry, tensors)
    assert (code, place) == ("TC0307", f"mlp.2.up.weight_scale [{row}, {group}]")
    assert "`mlp.2.up.weight_scale`" in message and f"`{byte}` at [{row}, {group}]" in message


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_nan_codes_are_refused_with_name_and_position(byte: int) -> None:
    """At every position of a fused matrix, in either half of a pair of columns."""
    tensors = Tensors(9)
    entry = qkv_entry("fp8_block", *QKV[2], cols=40)
    tensors.fill(entry)
    codes = tensors.by_name["a.qkv_proj.weight"].view(np.uint8)
    for row, column in np.ndindex(*codes.shape):
        if (row * 40 + column) % 41 and row not in (0, codes.shape[0] - 1):
            continue
        before, codes[row, column] = codes[row, column], byte
        code, message, place = refused(entry, tensors)
        assert (code, place) == ("TC0308", f"a.qkv_proj.weight [{row}, {column}]")
        assert f"at [{row}, {column}]" in message
        codes[row, column] = before
    packed(entry, tensors)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 2.0**104, 3e38])
def test_unusable_fp8_scales_are_refused_with_name_and_position(scale: float) -> None:
    tensors = Tensors(9)
    entry = matrix_entry("w", "fp8_block", "plain", ["w.weight"], 300, 200)
    tensors.fill(entry)
    tensors.by_name["w.weight_scale_inv"][2, 1] = scale
    code, message, place = refused(entry, tensors)
    assert (code, place) == ("TC0307", "w.weight_scale_inv [2, 1]") and "2^104" in message


def test_wrong_shape_and_type_are_refused() -> None:
    tensors = Tensors(2)
    entry = matrix_entry("w", "bf16", "plain", ["w.weight"], 16, 128)
    for value, code in [
        (np.zeros((16, 64), ml_dtypes.bfloat16), "TC0303"),
        (np.zeros((16, 128), "f4"), "TC0304"),
    ]:
        tensors.by_name["w.weight"] = value
        with pytest.raises(TileccError, match=code):
            packed(entry, tensors)


def test_layout_places_entries_on_256_bytes_and_build_fills_the_gaps() -> None:
    tensors = Tensors(4)
    entries = [
        vector_entry("norm", "norm", ["n"], 1, 16),
        matrix_entry("w", "mxfp4", "plain", ["w.weight"], 16, 32),
        vector_entry("c", "f32", [], 1, 3, fill=2.0),
    ]
    tensors.by_name["n"] = np.ones(16, ml_dtypes.bfloat16)
    tensors.fill(entries[1])
    placed, total = lay_out(entries)
    assert [e.offset for e in placed] == [0, 256, 256 + 1280] and total == 256 + 1280 + 256
    assert [e.nbytes for e in placed] == [256, BLOCK_BYTES["mxfp4"], 12]
    manifest = small_manifest(placed, total)
    out = np.full(total, 0xFF, np.uint8)
    build_image(manifest, tensors, out)
    assert (out[256 + 1088 : 1536] == 0).all() and (out[1536 + 12 :] == 0).all()
    assert out[1536:1548].view(np.float32).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(InternalError):
        build_image(manifest, tensors, out[:-1])


def test_entry_bytes_of_the_full_size_model() -> None:
    """One expert of MiMo-V2.5-Pro is 20,054,016 bytes in the checkpoint (mimo 1.3) and in the image."""
    up = matrix_entry("gu", "mxfp4", "gate_up", ["g", "u"], 4096, 6144, 1)
    down = matrix_entry("d", "mxfp4", "plain", ["d"], 6144, 2048, 1)
    assert entry_bytes(up) + entry_bytes(down) == 20_054_016
    qkv = qkv_entry("fp8_block", 8, 128, 8, 192, 128, 64, 6144)
    assert (qkv.rows, qkv.tiles, scale_shape(qkv)) == (27136, 27136 // 16, (216, 48))


def test_contradicting_numbers_are_internal_errors() -> None:
    with pytest.raises(InternalError):
        matrix_entry("w", "mxfp4", "plain", ["w"], 16, 48)
    with pytest.raises(InternalError):
        matrix_entry("w", "bf16", "gate_up", ["w"], 16, 32)
    with pytest.raises(InternalError):
        qkv_entry("bf16", 3, 4, 3, 16, 16, 8, 64)
    with pytest.raises(InternalError):
        lay_out([vector_entry("a", "norm", ["x"], 1, 8)] * 2)


def small_manifest(image: list[ImageEntry], total: int) -> Manifest:
    fields = {
        "name": "m",
        "model_file": "m.py",
        "target": "sm_90a",
        "tilecc_version": "0",
        "config": {},
        "kernel": "tilecc_m",
        "source": "kernels/m.cu",
        "image": [msgspec.to_builtins(e) for e in image],
        "image_bytes": total,
        "workspace": [],
    }
    numbers = ["threads", "smem_bytes", "default_grid", "max_context", "max_seqs", "vocab", "hidden"]
    numbers += ["workspace_bytes", "kv_bytes", "tables_bytes"]
    return msgspec.convert(fields | dict.fromkeys(numbers, 1), Manifest)
