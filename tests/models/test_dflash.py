"""The DFlash draft against its formula written again in numpy, whole and cut for several ranks; the published
one on meta tensors."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.graph_eval import Ranks
from tilecc.diag import TileccError
from tilecc.ir.graph import Graph
from tilecc.ir.graph_ops import DRAFT_OPS
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.verify import verify
from tilecc.models import dflash, dflash_tiny, mimo_tiny
from tilecc.models.dflash import DFlash
from tilecc.passes.context import PassContext
from tilecc.passes.pipeline import lower_to_tiles
from tilecc.passes.shard import shard
from tilecc.target import find_target
from tilecc.trace.capture import trace_model
from tilecc.weights.dflash_config import parse_dflash_config

MODELS = Path(__file__).resolve().parents[2] / "models"
RANKS = (1, 2, 4, 8)
BLOCK = 8
Array = np.ndarray[Any, Any]


@cache
def published() -> Graph:
    return trace_model(MODELS / "dflash.py")


def of_ranks(graph: Graph, ranks: int) -> Graph:
    made = shard(graph, PassContext(find_target("sm_90a"), 1024, 1, ranks))
    assert verify(made, GRAPH_RULES) == []
    return made


# ----------------------------------------------------------------------------------------- the published one


def test_the_published_draft_has_its_published_size() -> None:
    """2.768 G parameters of its own in bf16 (mimo.md 4.2); embedding and head are the target's."""
    graph = published()
    assert verify(graph, GRAPH_RULES) == []
    own = sum(int(np.prod(p.shape)) for p in graph.params if not p.shared)
    shared = {p.name: (p.source, p.shape) for p in graph.params if p.shared}
    table = (152576, 6144)
    assert shared == {
        "embed_tokens.weight": ("model.embed_tokens.weight", table),
        "lm_head.weight": ("lm_head.weight", table),
    }
    attention = 2 * 16384 * 6144 + 2 * 1024 * 6144 + 2 * 128 + 128
    layer = attention + 3 * 16384 * 6144 + 2 * 6144
    assert own == 5 * layer + 6144 * 30720 + 3 * 6144  # fc; hidden_norm, norm, mask embedding
    assert round(own / 1e9, 3) == 2.768
    assert {p.format for p in graph.params} == {"bf16"}
    inputs = {v.name: (v.dtype, v.shape) for v in graph.inputs}
    assert inputs["features"] == ("f32", ("T", 30720)) and inputs["ctx_positions"] == ("i64", ("T",))
    attends = [n for n in graph.nodes if n.op == "attend_block"]
    assert [(n.attrs["window_keys"], n.attrs["layer"]) for n in attends] == [(1024, i) for i in range(5)]


@pytest.mark.parametrize(
    ("op", "changes", "words"),
    [
        ("split_heads", {"attrs": {"heads": 7}}, "no 7 equal heads"),
        ("embed_masked", {"swap": ("mask_embedding", "layers.0.self_attn.q_norm.weight")}, "mask_embedding"),
        ("attend_block", {"swap": ("ctx_positions", "tokens_of_no_row")}, "which is not defined"),
        ("attend_block", {"attrs": {"window_keys": -1, "softmax_scale": 0.1, "layer": 0}}, "window_keys"),
        ("rms_norm", {"attrs": {"eps": 0.0}}, "eps must be positive"),
    ],
)
def test_the_rules_know_the_ops_of_the_draft(op: str, changes: dict[str, Any], words: str) -> None:
    graph = trace_model(MODELS / "dflash_tiny.py")
    assert {n.op for n in graph.nodes} >= set(DRAFT_OPS)
    node = next(n for n in graph.nodes if n.op == op)
    old, new = changes.get("swap", ("", ""))
    broken = dataclasses.replace(
        node,
        attrs=changes.get("attrs", node.attrs),
        inputs=tuple(new if name == old else name for name in node.inputs),
    )
    nodes = tuple(broken if n is node else n for n in graph.nodes)
    found = [d.message for d in verify(dataclasses.replace(graph, nodes=nodes), GRAPH_RULES)]
    assert any(words in message for message in found), found


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_share_the_bytes_and_exchange_what_they_must(ranks: int) -> None:
    graph = of_ranks(published(), ranks)
    matrices = {p.name: p for p in graph.params if len(p.shape) == 2 and p.name != "embed_tokens.weight"}
    whole = sum(int(np.prod(p.shape)) for p in published().params if p.name in matrices)
    assert sum(int(np.prod(p.shape)) for p in matrices.values()) * ranks == whole
    counts = {op: sum(n.op == op for n in graph.nodes) for op in ("all_reduce", "rank_part", "argmax_all")}
    many = ranks > 1
    assert counts == {"all_reduce": 11 * many, "rank_part": 1 * many, "argmax_all": 1 * many}
    assert matrices["fc.weight"].shape == (6144, 30720 // ranks)
    assert matrices["lm_head.weight"].shape == (152576 // ranks, 6144)
    assert {s.heads for s in graph.states} == {8 // ranks}
    assert Graph.from_text(graph.to_text()) == graph


def test_three_ranks_are_refused() -> None:
    with pytest.raises(TileccError) as caught:
        of_ranks(published(), 3)
    assert caught.value.diagnostics[0].code == "TC0224"


def test_passes_that_cannot_take_it_say_so() -> None:
    ctx = PassContext(find_target("sm_90a"), 1024, 1)
    for graph in (published(), trace_model(MODELS / "mimo_tiny.py", taps=(0,))):
        with pytest.raises(TileccError) as caught:
            lower_to_tiles(graph, ctx)
        (found,) = caught.value.diagnostics
        assert found.code == "TC0225" and found.span is not None and found.span.line > 0


# ------------------------------------------------------------------------------------------ the formula again


def rms(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x: Array, position: int, theta: float, rotary: int) -> Array:
    """NeoX pairs (j, j + rotary/2) of each head of x [heads, D]."""
    angle = position * theta ** (-np.arange(0, rotary, 2) / rotary)
    a, b = x[:, : rotary // 2], x[:, rotary // 2 : rotary]
    turned = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), x[:, rotary:]]
    return np.concatenate(turned, 1)


class Formula:
    """mimo.md 4.3 for one sequence in float64, without caches: the fused features of all committed tokens are
    kept, and every block is computed from them anew."""

    def __init__(self, module: DFlash) -> None:
        self.c = module.config
        self.w = {name: p.double().numpy() for name, p in module.named_parameters()}
        self.context: list[Array] = []

    def commit(self, features: Array) -> None:
        fused = features @ self.w["fc.weight"].T
        self.context += list(rms(fused, self.w["hidden_norm.weight"], self.c.eps))

    def keys(self, base: str, y: Array, position: int) -> tuple[Array, Array]:
        c, w = self.c, self.w
        k = (w[f"{base}.k_proj.weight"] @ y).reshape(c.kv_heads, c.head_dim)
        k = rotate(rms(k, w[f"{base}.k_norm.weight"], c.eps), position, c.theta, c.rotary_dim)
        return k, c.value_scale * (w[f"{base}.v_proj.weight"] @ y).reshape(c.kv_heads, c.v_head_dim)

    def block(self, tokens: list[int]) -> Array:
        """Logits of the rows of a block that starts after the committed tokens."""
        c, w, start = self.c, self.w, len(self.context)
        table = w["embed_tokens.weight"]
        x = np.stack([w["mask_embedding"] if t == c.mask_token else table[t] for t in tokens])
        for i in range(len(c.windows)):
            base, attn = f"layers.{i}", f"layers.{i}.self_attn"
            y = rms(x, w[f"{base}.input_layernorm.weight"], c.eps)
            past = [self.keys(attn, row, t) for t, row in enumerate(self.context)]
            own = [self.keys(attn, row, start + j) for j, row in enumerate(y)]
            out = []
            for j, row in enumerate(y):
                q = (w[f"{attn}.q_proj.weight"] @ row).reshape(c.heads, c.head_dim)
                q = rotate(rms(q, w[f"{attn}.q_norm.weight"], c.eps), start + j, c.theta, c.rotary_dim)
                seen = [kv for t, kv in enumerate(past) if start + j - t <= c.windows[i] - 1] + own
                heads = []
                for h in range(c.heads):
                    g = h * c.kv_heads // c.heads
                    scores = np.array([q[h] @ k[g] for k, _ in seen]) / np.sqrt(c.head_dim)
                    sink = w[f"{attn}.attention_sink_bias"][h]
                    weights = np.exp(scores) / (np.exp(scores).sum() + np.exp(sink))
                    heads.append(sum(p * v[g] for p, (_, v) in zip(weights, seen, strict=True)))
                out.append(w[f"{attn}.o_proj.weight"] @ np.concatenate(heads))
            x = x + np.stack(out)
            y = rms(x, w[f"{base}.post_attention_layernorm.weight"], c.eps)
            gate = y @ w[f"{base}.mlp.gate_proj.weight"].T
            hidden = gate / (1 + np.exp(-gate)) * (y @ w[f"{base}.mlp.up_proj.weight"].T)
            x = x + hidden @ w[f"{base}.mlp.down_proj.weight"].T
        logits: Array = rms(x, w["norm.weight"], c.eps) @ w["lm_head.weight"].T
        return logits


def small(kv_heads: int = 2, **inner: Any) -> dict[str, Any]:
    """The tiny draft with a vocabulary of 512; `inner` are keys of dflash_config."""
    config = dflash_tiny.default_config() | {"num_key_value_heads": kv_heads, "vocab_size": 512}
    config["dflash_config"] = config["dflash_config"] | {"mask_token_id": 511} | inner
    return config


def steps(module: DFlash) -> list[dict[str, torch.Tensor]]:
    """Inputs of steps of two sequences that grow by different numbers of accepted tokens, beyond the window
    of 24."""
    rng = np.random.default_rng(3)
    c, length, made = module.config, [0, 0], []
    # the rows of a step hold 4 of each sequence: a shorter block is still a block
    for accepted in ((4, 2), (4, 4), (1, 3), (4, 4), (4, 4), (2, 4), (4, 4), (4, 1), (3, 4), (4, 4)):
        features = rng.standard_normal((BLOCK, c.features)).astype(np.float32)
        where, positions, tokens = [], [], []
        for s in (0, 1):
            where += [length[s] + j if j < accepted[s] else -1 for j in range(4)]
            length[s] += accepted[s]
            positions += [length[s] + j for j in range(4)]
            tokens += [int(rng.integers(0, 500)), *[c.mask_token] * 3]
        inputs = {
            "tokens": torch.tensor(tokens),
            "positions": torch.tensor(positions),
            "seqs": torch.tensor([0] * 4 + [1] * 4),
            "features": torch.from_numpy(features).bfloat16().float(),
            "ctx_positions": torch.tensor(where),
        }
        made.append(inputs)
    return made


def wanted(module: DFlash) -> list[Array]:
    formulas = [Formula(module), Formula(module)]
    out = []
    for inputs in steps(module):
        rows = []
        for s, formula in enumerate(formulas):
            mine = (inputs["seqs"] == s) & (inputs["ctx_positions"] >= 0)
            formula.commit(inputs["features"][mine].double().numpy())
            rows.append(formula.block(inputs["tokens"][inputs["seqs"] == s].tolist()))
        out.append(np.concatenate(rows))
    return out


def eager(module: DFlash) -> list[Array]:
    caches = module.caches("cpu", 2, 128)
    return [module(*inputs.values(), *caches)[0].numpy() for inputs in steps(module)]


def worst(got: list[Array], want: list[Array]) -> float:
    top = max(float(np.abs(w).max()) for w in want)
    assert top > 1  # a model of zeros would agree with anything
    return max(float(np.abs(g - w).max()) for g, w in zip(got, want, strict=True)) / top


def test_the_step_is_the_formula() -> None:
    """Float32 against float64: 2e-5 of the largest logit is some hundred roundings. bf16 at the kernel's
    points: two layers cost what two layers of the target cost (docs/decisions.md), within 2.5e-2."""
    module = dflash.decode_step(small()).initialize(1)
    want = wanted(module)
    module.rounding = "f32"
    exact = worst(eager(module), want)
    module.rounding = "bf16"
    rounded = worst(eager(module), want)
    print(f"float32 {exact:.1e}, bf16 {rounded:.1e} of the largest logit")
    assert exact < 2e-5 and exact < rounded < 2.5e-2


@pytest.mark.parametrize("change", ["window", "sink", "mask", "scale", "norm", "theta"])
def test_every_feature_counts(change: str) -> None:
    """The formula with one feature taken out is far from the step: the comparison above would see it."""
    module = dflash.decode_step(small()).initialize(1)
    module.rounding = "f32"
    got = eager(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        if change == "window":
            other.config = parse_dflash_config(small(swa_window_size=23))
        elif change == "sink":
            for layer in other.layers:
                layer.self_attn.attention_sink_bias.fill_(-1e9)
        elif change == "mask":
            other.mask_embedding.copy_(other.embed_tokens.weight[511])
        elif change == "scale":
            for layer in other.layers:
                layer.self_attn.v_proj.weight.mul_(1 / 0.612)
        elif change == "norm":
            for layer in other.layers:
                layer.self_attn.k_norm.weight.fill_(1)
        elif change == "theta":
            other.config = dataclasses.replace(other.config, theta=5e6)
        else:
            raise AssertionError(change)
    assert worst(got, wanted(other)) > 1e-3


def test_the_block_is_bidirectional() -> None:
    """The first row of a block depends on the rows after it."""
    module = dflash.decode_step(small()).initialize(1)
    caches = module.caches("cpu", 2, 128)
    first = steps(module)[0]
    other = {**first, "tokens": first["tokens"].clone()}
    other["tokens"][3] = 7
    logits = [module(*inputs.values(), *caches)[0] for inputs in (first, other)]
    assert not torch.equal(logits[0][0], logits[1][0])
    assert torch.equal(logits[0][4:], logits[1][4:])  # the other sequence


@pytest.mark.parametrize("ranks", RANKS)
def test_the_graph_of_any_number_of_ranks_is_the_step(ranks: int) -> None:
    """One rank: equal bits. Several: sums in another order and terms rounded to bf16, as the kernel does."""
    config = small(kv_heads=8)
    module = dflash.decode_step(config).initialize(2)
    graph = of_ranks(trace_model(MODELS / "dflash_tiny.py", config), ranks)
    group = Ranks(graph, module, 2, 128)
    want = eager(module)
    got: list[Array] = []
    for inputs in steps(module):
        outputs = group.step(inputs)
        tokens = [o[1] for o in outputs]
        assert all(torch.equal(t, tokens[0]) for t in tokens)
        logits = torch.cat([o[0] for o in outputs], -1)
        assert torch.equal(tokens[0], logits.argmax(-1))
        got.append(logits.numpy())
    if ranks == 1:
        assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
    else:
        # each of fc, o_proj and down rounds `ranks` terms to bf16: 2^-9 of a term each, and what that flips
        assert 0 < worst(got, want) < 2.5e-2


# ---------------------------------------------------------------------------------------- taps of the target


def test_taps_are_the_residual_stream() -> None:
    """The last tap through final norm and head gives the logits; a tap in the middle is the last tap of a
    model that ends there."""
    config = mimo_tiny.default_config()
    target = mimo_tiny.decode_step().load(mimo_tiny.CHECKPOINT)
    layers = int(config["num_hidden_layers"])
    middle = layers // 2
    rows = [torch.arange(5, 13), torch.arange(8), torch.zeros(8, dtype=torch.int64)]
    target.taps = (0, middle, layers - 1)
    logits, _, first, mid, last = target(*rows, *target.caches("cpu", 1, 16))
    normed = torch.ops.tilecc.rms_norm(last, target.model.norm.weight, target.config.eps)
    assert torch.equal(target.lm_head(torch.ops.tilecc.round(normed)), logits)
    shorter = mimo_tiny.decode_step(config | {"num_hidden_layers": middle + 1})
    kept = {n: p for n, p in target.state_dict().items() if n in shorter.state_dict()}
    shorter.load_state_dict(kept, assign=True)
    shorter.taps = (middle, 0)
    _, _, mid_again, first_again = shorter(*rows, *shorter.caches("cpu", 1, 16))
    assert torch.equal(mid, mid_again) and torch.equal(first, first_again)
    assert not torch.equal(first, mid)


def test_taps_are_outputs_of_the_target_graph() -> None:
    taps = tuple(dflash_tiny.default_config()["dflash_config"]["target_layer_ids"])
    graph = trace_model(MODELS / "mimo_tiny.py", taps=taps)
    assert verify(graph, GRAPH_RULES) == [] and len(graph.outputs) == 2 + len(taps)
    producers = graph.producers()
    assert [producers[t].op for t in graph.outputs[2:]] == ["round"] * len(taps)
    layers = [producers[t].loc.module.split(".")[2] for t in graph.outputs[2:]]
    assert layers == [str(t) for t in taps]
    for ranks in (1, 2):
        assert len(of_ranks(graph, ranks).outputs) == 2 + len(taps)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("outer", "inner", "parts"),
    [
        ({}, {"swa_window_size": None}, ["`swa_window_size`"]),
        ({}, {"mask_token_idd": 3}, ["unknown key `mask_token_idd`", "did you mean `mask_token_id`?"]),
        ({}, {"target_layer_ids": [0, 99]}, ["`target_layer_ids` is `[0, 99]`", "0 to"]),
        ({}, {"mask_token_id": 512}, ["the vocabulary has 512 entries"]),
        ({}, {"block_size": 1}, ["`block_size` is `1`"]),
        ({"architectures": ["DFlash2DraftModel"]}, {}, ["DFlash2DraftModel"]),
        ({"is_causal": True}, {}, ["causal inside the block"]),
        ({"layer_types": ["sliding_attention"]}, {}, ["`layer_types`"]),
        ({"num_attention_heads": 7}, {}, ["must be a multiple"]),
        ({"head_dim": 30}, {}, ["rotary dimensions"]),
        ({"num_attention_heads": 7, "block_size": 4}, {"swa_window_size": 0}, ["multiple", "`block_size`"]),
    ],
)
def test_bad_configurations(outer: dict[str, Any], inner: dict[str, Any], parts: list[str]) -> None:
    config = small() | outer
    config["dflash_config"] = config["dflash_config"] | inner
    with pytest.raises(TileccError) as caught:
        dflash.decode_step(config)
    assert {d.code for d in caught.value.diagnostics} == {"TC0107"}
    text = " ".join(d.message + " " + " ".join(d.help) for d in caught.value.diagnostics)
    assert all(part in text for part in parts), text


def test_taps_that_do_not_exist() -> None:
    for file, taps in (("mimo_tiny.py", (0, 99)), ("mimo_tiny.py", (1, 1)), ("dflash_tiny.py", (0,))):
        with pytest.raises(TileccError) as caught:
            trace_model(MODELS / file, taps=taps)
        (found,) = caught.value.diagnostics
        assert found.code == "TC0707" and found.help
