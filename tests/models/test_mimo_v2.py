"""The MiMo-V2 definition: official names, cached decode against whole sequences, rounding points, tracing."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tilecc.diag import TileccError
from tilecc.models import mimo_tiny
from tilecc.models.mimo_v2 import MiMoV2, decode_step
from tilecc.models.reference import reference_generate, reference_logits, reference_run
from tilecc.weights.checkpoint import Checkpoint, random_checkpoint

from .helpers import OTHER, TINY


def model(tmp_path: Path, config: dict[str, Any], rounding: str = "f32", seed: int = 0) -> MiMoV2:
    made = decode_step(config).load(random_checkpoint(tmp_path / "ckpt", config, seed))
    made.rounding = rounding
    return made


def tokens(config: dict[str, Any], count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, config["vocab_size"], count))


def official_names(config: dict[str, Any]) -> set[str]:
    """The listing of the official checkpoint, written out from design page "mimo" 3.1 and 3.4."""
    names = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    for i in range(config["num_hidden_layers"]):
        base = f"model.layers.{i}."
        names |= {base + "input_layernorm.weight", base + "post_attention_layernorm.weight"}
        names |= {base + "self_attn.qkv_proj.weight", base + "self_attn.qkv_proj.weight_scale_inv"}
        names.add(base + "self_attn.o_proj.weight")
        if config["hybrid_layer_pattern"][i] == 1:
            names.add(base + "self_attn.attention_sink_bias")
        if config["moe_layer_freq"][i] == 0:
            for part in ("gate", "up", "down"):
                names |= {f"{base}mlp.{part}_proj.weight", f"{base}mlp.{part}_proj.weight_scale_inv"}
            continue
        names |= {base + "mlp.gate.weight", base + "mlp.gate.e_score_correction_bias"}
        for e in range(config["n_routed_experts"]):
            for part in ("gate", "up", "down"):
                one = f"{base}mlp.experts.{e}.{part}_proj.weight"
                names |= {one, one + "_scale"}
    return names


def test_spec_names_exactly_the_official_tensors() -> None:
    with torch.device("meta"):
        spec = decode_step().checkpoint_spec()
    listed = [stored.name for param in spec.values() for stored in param.stored()]
    assert max(Counter(listed).values()) == 1
    assert set(listed) == official_names(TINY)


def test_spec_covers_every_parameter_with_its_shape() -> None:
    for config in (TINY, OTHER):
        with torch.device("meta"):
            step = decode_step(config)
        spec = step.checkpoint_spec()
        shapes = {name: tuple(p.shape) for name, p in step.named_parameters()}
        assert {name: param.stacked_shape for name, param in spec.items()} == shapes


def test_tiny_has_the_traps_of_the_large_model() -> None:
    """Irregular pattern, chunks whose scale blocks straddle K and V, partial rotation, dense first layer."""
    config = decode_step().config
    assert [i for i, layer in enumerate(config.layers) if not layer.window] == [0, 3, 7]
    assert all(layer.sink == bool(layer.window) for layer in config.layers)
    layer = config.layers[1]
    rows = layer.qkv_rows // layer.chunks
    k_end = rows - layer.kv_heads // layer.chunks * layer.v_head_dim
    assert (layer.chunks, rows, layer.rotary_dim) == (4, 176, 16)
    assert 128 < k_end < rows, "the second scale block of a chunk holds K and V rows"
    assert [layer.moe for layer in config.layers] == [False] + [True] * 7


@pytest.mark.parametrize("config", [TINY, OTHER], ids=["tiny", "other"])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_cached_decode_equals_the_whole_sequence(tmp_path: Path, config: dict[str, Any], rows: int) -> None:
    """70 positions (windows 32 and 5 slide) in steps of 1, 3 and 8 rows, in float32.

    The two paths share the operators but neither attention nor cache; 1e-5 is ten times what the order of
    float32 sums gives. A flipped expert would be off by more than 1e-2.
    """
    step = model(tmp_path, config)
    ids = tokens(config, 70)
    with torch.no_grad():
        whole = step.sequence_logits(ids[None])[0].numpy()
    cached = reference_run(step, None, ids.tolist(), "f32", rows=rows).logits
    assert np.abs(whole).max() > 1
    assert np.abs(cached - whole).max() <= 1e-5 * np.abs(whole).max()


def test_two_sequences_in_one_step_equal_two_runs(tmp_path: Path) -> None:
    """Rows of different sequences share a step: same logits as alone, whatever the columns."""
    step = model(tmp_path, OTHER)
    a, b = tokens(OTHER, 12, 1).tolist(), tokens(OTHER, 12, 2).tolist()
    caches = step.caches("cpu", 3, 12)
    seen: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    with torch.no_grad():
        for p in range(0, 12, 2):
            rows = [(b[p], p, 0), (a[p], p, 2), (b[p + 1], p + 1, 0), (a[p + 1], p + 1, 2)]
            logits, _ = step(*torch.tensor(rows).T, *caches)
            seen["b"] += [logits[0], logits[2]]
            seen["a"] += [logits[1], logits[3]]
    for name, ids in (("a", a), ("b", b)):
        alone = reference_logits(step, None, ids, "f32")
        assert np.abs(torch.stack(seen[name]).numpy() - alone).max() <= 1e-5 * np.abs(alone).max()
    assert all(not cache[1].any() for cache in caches), "sequence 1 was never written"


def test_next_token_is_the_lowest_argmax(tmp_path: Path) -> None:
    step = model(tmp_path, OTHER)
    step.lm_head.weight[50] = step.lm_head.weight[7]
    ids = tokens(OTHER, 8)
    logits, following = step(
        ids, torch.arange(8), torch.zeros(8, dtype=torch.int64), *step.caches("cpu", 1, 8)
    )
    assert torch.equal(logits[:, 7], logits[:, 50])
    wanted = [row.index(max(row)) for row in logits.tolist()]
    assert following.tolist() == wanted


def test_rounding_makes_every_hand_over_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 mode what reaches caches, projections and experts is representable in bf16; in f32 mode it is
    not.

    With the same experts imposed the two modes differ by a few bf16 roundings (2^-9 each), not more.
    """
    step = model(tmp_path, TINY)
    ids = tokens(TINY, 24).tolist()
    inputs: list[torch.Tensor] = []
    linear = torch.nn.functional.linear

    def spy(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        inputs.append(x)
        return linear(x, w)

    monkeypatch.setattr("tilecc.models.mimo_v2.F.linear", spy)
    exact = reference_run(step, None, ids, "f32")
    assert not any(torch.equal(x, x.bfloat16().float()) for x in inputs)
    inputs.clear()
    force = {(i, p): exact.experts[i][p].tolist() for i in exact.experts for p in range(24)}
    rounded = reference_run(step, None, ids, "bf16", force)
    assert inputs and all(torch.equal(x, x.bfloat16().float()) for x in inputs)
    error = np.abs(rounded.logits - exact.logits).max() / np.abs(exact.logits).max()
    assert 1e-4 < error < 2.5e-2


def test_reference_records_and_imposes_experts(tmp_path: Path) -> None:
    step = model(tmp_path, OTHER)
    ids = tokens(OTHER, 6).tolist()
    free = reference_run(step, None, ids, "f32")
    assert set(free.experts) == {0, 2, 3} and free.scores[0].shape == (6, 5)
    for layer, used in free.experts.items():
        best = np.argsort(-free.scores[layer], axis=-1, kind="stable")[:, :3]
        assert (used == best).all()
        assert (free.selection_margin(layer) >= 0).all()
    rejected = sorted(set(range(5)) - set(free.experts[2][3].tolist()))
    chosen = [rejected[0], *free.experts[2][3][:2].tolist()]
    forced = reference_run(step, None, ids, "f32", {(2, 3): chosen})
    assert forced.experts[2][3].tolist() == chosen and (forced.own_experts[2][3] == free.experts[2][3]).all()
    assert (forced.logits[:3] == free.logits[:3]).all()
    assert np.abs(forced.logits[3] - free.logits[3]).max() > 1e-3
    with pytest.raises(ValueError, match="3 experts"):
        reference_run(step, None, ids, "f32", {(2, 3): [1, 1, 2]})
    assert step.choose is None


def test_generate_is_the_argmax_of_teacher_forced_logits(tmp_path: Path) -> None:
    step = model(tmp_path, OTHER)
    prompt = tokens(OTHER, 9).tolist()
    made = reference_generate(step, None, prompt, 7, "f32")
    logits = reference_logits(step, None, prompt + made, "f32")
    assert made == logits[8:15].argmax(-1).tolist()
    assert reference_generate(step, None, prompt, 7, "f32", stop=[made[2]]) == made[: made.index(made[2]) + 1]


@pytest.mark.parametrize("config", [TINY, OTHER], ids=["tiny", "other"])
def test_traces_on_the_meta_device(config: dict[str, Any]) -> None:
    """No weights, no Python control flow on values, one node per operator; rows may be dynamic."""
    began = time.monotonic()
    with torch.device("meta"):
        step = decode_step(config)
        one = torch.zeros(8, dtype=torch.int64)
    caches = step.caches("meta", 4, 128)
    shapes: dict[str, Any] = {name: {0: torch.export.Dim.DYNAMIC} for name in ("tokens", "positions", "seqs")}
    shapes["caches"] = tuple({} for _ in caches)
    program = torch.export.export(step, (one, one.clone(), one.clone(), *caches), dynamic_shapes=shapes)
    names = Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")
    layers, sparse = len(step.config.layers), sum(layer.moe for layer in step.config.layers)
    assert names["tilecc.attend.default"] == layers == names["tilecc.split_qkv.default"]
    assert names["tilecc.rope.default"] == 2 * layers and names["tilecc.rms_norm.default"] == 2 * layers + 1
    assert names["tilecc.experts.default"] == names["tilecc.route.default"] == sparse
    # Per layer: two norms, q, k, v, o, two residual sums; hidden of dense layers; the final norm.
    assert names["tilecc.round.default"] == 8 * layers + (layers - sparse) + 1
    assert time.monotonic() - began < 30


def test_load_reports_every_problem(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "ckpt", OTHER)
    with pytest.raises(TileccError) as caught:
        decode_step({**OTHER, "vocab_size": 98}).load(folder)
    assert [d.code for d in caught.value.diagnostics] == ["TC0303", "TC0303"]


def test_default_config_is_the_committed_one() -> None:
    assert mimo_tiny.default_config() == TINY == Checkpoint(mimo_tiny.CHECKPOINT).config
    with torch.device("meta"):
        assert decode_step().config == mimo_tiny.decode_step().config
