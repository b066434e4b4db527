"""Reading, writing and validating checkpoints: round trips, and one error per kind of damage."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from tilecc.diag import Diagnostic, TileccError
from tilecc.weights import checkpoint as module
from tilecc.weights.checkpoint import Checkpoint, encode_parameters, random_checkpoint, write_checkpoint
from tilecc.weights.mimo_config import parse_config, tensor_specs
from tilecc.weights.spec import ParamSpec

CONFIG: dict[str, Any] = {
    "model_type": "mimo_v2",
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "hybrid_layer_pattern": [0, 1],
    "moe_layer_freq": [0, 1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "v_head_dim": 32,
    "sliding_window": 4,
    "add_swa_attention_sink_bias": True,
    "partial_rotary_factor": 0.334,
    "rope_theta": 10000,
    "swa_rope_theta": 10000,
    "layernorm_epsilon": 1e-5,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "store_dtype": "mxfp4",
    },
}
QKV = "model.layers.1.self_attn.qkv_proj.weight"
EXPERT = "model.layers.1.mlp.experts.2.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "ckpt", CONFIG, seed=5)


def stored(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    opened = Checkpoint(folder)
    return {name: np.array(opened.tensor(name)) for name in opened.names()}


def findings(folder: Path) -> list[Diagnostic]:
    return Checkpoint(folder).validate(tensor_specs(parse_config(CONFIG)))


def only(found: list[Diagnostic], code: str, *words: str) -> None:
    """Exactly one finding, of this code, that has a fix and whose text holds the words."""
    assert [d.code for d in found] == [code]
    assert found[0].help and found[0].span is not None
    text = " ".join(
        [found[0].message, found[0].span.file, found[0].span.label, *found[0].notes, *found[0].help]
    )
    for word in words:
        assert word in text, (word, text)


def raised(folder: Path) -> list[Diagnostic]:
    with pytest.raises(TileccError) as caught:
        Checkpoint(folder)
    return caught.value.diagnostics


def test_written_file_is_read_by_the_safetensors_library(folder: Path) -> None:
    """Names, shapes, types and bytes as another implementation of the format sees them."""
    pytest.importorskip("torch")
    ours = Checkpoint(folder)
    with safe_open(folder / "model.safetensors", "pt") as theirs:
        assert sorted(theirs.keys()) == ours.names()
        for name in ours.names():
            t = theirs.get_tensor(name)
            value = ours.tensor(name)
            assert tuple(t.shape) == value.shape
            same_bytes = t.contiguous().view(-1).view(__import__("torch").uint8).numpy().tobytes()
            assert same_bytes == value.tobytes(), name


def test_official_layout_of_the_random_checkpoint(folder: Path) -> None:
    """Chunked FP8 scales, BF16 o_proj, U8 experts with E8M0 scales, F32 router, BF16 sinks on sliding
    layers."""
    entries = {name: (e.dtype, e.shape) for name, e in Checkpoint(folder).entries.items()}
    rows = 4 * 48 + 2 * (48 + 32)  # 352: two chunks of 176 rows, two scale rows each
    assert entries[QKV] == ("F8_E4M3", (rows, 64))
    assert entries[QKV + "_scale_inv"] == ("F32", (4, 1))
    assert entries["model.layers.1.self_attn.o_proj.weight"] == ("BF16", (64, 128))
    assert entries[EXPERT] == ("U8", (64, 16))
    assert entries[EXPERT + "_scale"] == ("U8", (64, 1))
    assert entries["model.layers.1.mlp.gate.weight"] == ("F32", (3, 64))
    assert entries["model.layers.1.self_attn.attention_sink_bias"] == ("BF16", (4,))
    assert "model.layers.0.self_attn.attention_sink_bias" not in entries
    assert findings(folder) == []


def test_same_seed_same_bytes_and_another_seed_other_bytes(folder: Path, tmp_path: Path) -> None:
    for seed, same in ((5, True), (6, False)):
        other = random_checkpoint(tmp_path / str(seed), CONFIG, seed)
        a, b = ((d / "model.safetensors").read_bytes() for d in (folder, other))
        assert (a == b) is same


def test_values_survive_a_round_trip(tmp_path: Path) -> None:
    """Representable values come back equal, for every format and for stacked experts."""
    random = np.random.default_rng(0)
    specs = {
        "a": ParamSpec("a.weight", "bf16", (5, 7)),
        "b": ParamSpec("b.weight", "f32", (3,)),
        "c": ParamSpec("c.weight", "fp8_block", (12, 130), chunks=3),
        "d": ParamSpec("d.{e}.weight", "mxfp4", (4, 64), experts=2),
    }
    values: dict[str, Any] = {
        "a": random.integers(-128, 128, (5, 7)).astype(np.float32),
        "b": random.standard_normal(3).astype(np.float32),
        "c": random.integers(-8, 8, (12, 130)).astype(np.float32),
        "d": random.choice([-6, -1.5, 0, 0.5, 4, 6], (2, 4, 64)).astype(np.float32),
    }
    values["c"][:, 0] = values["c"][:, 129] = 448  # makes every block scale 1
    values["d"][..., ::32] = 6
    write_checkpoint(tmp_path, {}, encode_parameters(values, specs))
    opened = Checkpoint(tmp_path)
    for key, spec in specs.items():
        assert (opened.parameter(spec) == values[key]).all(), key
    assert opened.validate(specs) == []


def test_shards_are_found_through_the_index(folder: Path) -> None:
    tensors, names = stored(folder), Checkpoint(folder).names()
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        write_checkpoint(folder / "tmp", {}, {n: tensors[n] for n in part})
        (folder / "tmp" / "model.safetensors").rename(folder / f"part-{number}.safetensors")
        weight_map.update({n: f"part-{number}.safetensors" for n in part})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert findings(folder) == []
    assert (Checkpoint(folder).tensor(QKV).view(np.uint8) == tensors[QKV].view(np.uint8)).all()
    index.unlink()  # plain *.safetensors files without an index
    assert findings(folder) == []
    index.write_text(json.dumps({"weight_map": {**weight_map, "x": "part-7.safetensors"}}))
    only(raised(folder), "TC0305", "part-7.safetensors")


@pytest.mark.parametrize("name", [QKV, QKV + "_scale_inv", EXPERT, EXPERT + "_scale", "lm_head.weight"])
def test_missing_tensor(folder: Path, name: str) -> None:
    tensors = stored(folder)
    del tensors[name]
    write_checkpoint(folder, CONFIG, tensors)
    only(findings(folder), "TC0302", name)


def test_similar_name_is_suggested(folder: Path) -> None:
    tensors = stored(folder)
    tensors["lm_head.weights"] = tensors.pop("lm_head.weight")
    write_checkpoint(folder, CONFIG, tensors)
    only(findings(folder), "TC0302", "did you mean `lm_head.weights`?")


def test_misshapen_tensor_names_both_shapes(folder: Path) -> None:
    tensors = stored(folder)
    tensors[QKV + "_scale_inv"] = tensors[QKV + "_scale_inv"][:3]  # as if the blocks did not restart
    write_checkpoint(folder, CONFIG, tensors)
    only(findings(folder), "TC0303", QKV, "[3, 1]", "[4, 1]")


def test_mistyped_tensor_names_both_types(folder: Path) -> None:
    tensors = stored(folder)
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name].astype(np.float32)
    write_checkpoint(folder, CONFIG, tensors)
    only(findings(folder), "TC0304", name, "F32", "BF16")


def test_router_may_be_bf16_and_is_widened_exactly(folder: Path) -> None:
    tensors, name = stored(folder), "model.layers.1.mlp.gate.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    write_checkpoint(folder, CONFIG, tensors)
    spec = tensor_specs(parse_config(CONFIG))[name]
    assert findings(folder) == []
    assert (Checkpoint(folder).parameter(spec) == tensors[name].astype(np.float32)).all()


def test_extra_tensors_are_ignored(folder: Path) -> None:
    """MTP layers are present in official checkpoints without a configuration key."""
    tensors = stored(folder)
    tensors["model.mtp.layers.0.enorm.weight"] = np.zeros(64, ml_dtypes.bfloat16)
    write_checkpoint(folder, CONFIG, tensors)
    assert findings(folder) == []


def test_a_wrong_config_does_not_list_every_expert(folder: Path) -> None:
    config = {**copy.deepcopy(CONFIG), "n_routed_experts": 300}
    found = Checkpoint(folder).validate(tensor_specs(parse_config(config)))
    assert len(found) < 60 and any("more tensors" in note for d in found for note in d.notes)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1, -4000])
def test_truncated_file(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    only(raised(folder), "TC0305", "model.safetensors", "bytes")


def test_header_that_lies(folder: Path) -> None:
    """A size that does not fit shape and type, an entry without offsets, a header that is not JSON."""
    good = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    for change, words in (
        ({"shape": [1]}, ("bytes", "needs")),
        ({"data_offsets": None}, ("malformed",)),
    ):
        text = json.dumps({**header, QKV: {**header[QKV], **change}}).encode()
        data = len(text).to_bytes(8, "little") + text + good[8 + length :]
        (folder / "model.safetensors").write_bytes(data)
        only(raised(folder), "TC0305", QKV, *words)
    (folder / "model.safetensors").write_bytes(good[:8] + b"x" * length + good[8 + length :])
    only(raised(folder), "TC0305", "not JSON")
    text = json.dumps({**header, QKV: {**header[QKV], "dtype": "F4"}}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])
    only(raised(folder), "TC0304", QKV, "F4")


def test_no_checkpoint(tmp_path: Path) -> None:
    for prepare, words in (
        (lambda: None, ("nowhere",)),
        (lambda: (tmp_path / "nowhere").mkdir(), ("config.json",)),
        (lambda: (tmp_path / "nowhere" / "config.json").write_text("{}"), ("safetensors",)),
    ):
        prepare()
        with pytest.raises(TileccError) as caught:
            Checkpoint(tmp_path / "nowhere")
        (found,) = caught.value.diagnostics
        assert found.code == "TC0301" and found.help
        assert all(word in found.message for word in words)
    (tmp_path / "nowhere" / "config.json").write_text("[1]")
    only(raised(tmp_path / "nowhere"), "TC0305", "JSON object")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"quant_method": "awq"}, "awq"),
        ({"fmt": "e5m2"}, "e5m2"),
        ({"weight_block_size": [64, 64]}, "[64, 64]"),
        ({"store_dtype": "nvfp4"}, "nvfp4"),
        ({"mxfp4_block_size": 16}, "16"),
        ({"zero_point": True}, "zero_point"),
    ],
)
def test_unknown_quantization_config(folder: Path, change: dict[str, Any], word: str) -> None:
    config = {**CONFIG, "quantization_config": {**CONFIG["quantization_config"], **change}}
    (folder / "config.json").write_text(json.dumps(config))
    only(findings(folder), "TC0306", word, "config.json")


def test_illegal_scales(folder: Path) -> None:
    specs = tensor_specs(parse_config(CONFIG))
    for name, value, key in (
        (EXPERT + "_scale", 255, "model.layers.1.mlp.experts.down_proj"),
        (QKV + "_scale_inv", np.nan, QKV),
        (QKV + "_scale_inv", -1, QKV),
    ):
        tensors = stored(folder)
        tensors[name][1, 0] = value
        write_checkpoint(folder / "bad", CONFIG, tensors)
        with pytest.raises(TileccError) as caught:
            Checkpoint(folder / "bad").parameter(specs[key])
        only(caught.value.diagnostics, "TC0307", name, "[1, 0]")
    for byte, row, column in ((0x7F, 0, 0), (0xFF, 351, 63)):
        tensors = stored(folder)
        tensors[QKV].view(np.uint8)[row, column] = byte
        write_checkpoint(folder / "bad", CONFIG, tensors)
        with pytest.raises(TileccError) as caught:
            Checkpoint(folder / "bad").parameter(specs[QKV])
        only(caught.value.diagnostics, "TC0308", QKV, "NaN", f"0x{byte:02x}", f"[{row}, {column}]")
    tensors = stored(folder)
    tensors[QKV].view(np.uint8)[5, 6] = 0x7E  # 448
    tensors[QKV + "_scale_inv"][0, 0] = 3e38
    write_checkpoint(folder / "bad", CONFIG, tensors)
    with pytest.raises(TileccError) as caught:
        Checkpoint(folder / "bad").parameter(specs[QKV])
    only(caught.value.diagnostics, "TC0307", QKV, "overflows float32")


def test_interrupted_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def no_space(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module.os, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(folder, CONFIG, {"x": np.zeros(4, np.float32)})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
