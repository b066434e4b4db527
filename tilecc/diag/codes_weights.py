"""TC03xx: checkpoint and weights."""

from __future__ import annotations

from tilecc.diag.entry import Entry

ENTRIES: dict[str, Entry] = {
    "TC0301": Entry(
        title="checkpoint not found",
        explanation="""
A checkpoint is a directory with `config.json` and either `model.safetensors.index.json` and its shards or
plain `*.safetensors` files.
""",
        wrong="tilecc run models/mimo_tiny.py --checkpoint . --prompt 'def '",
        right="tilecc run models/mimo_tiny.py --checkpoint models/mimo_tiny --prompt 'def '",
    ),
    "TC0302": Entry(
        title="checkpoint lacks a tensor",
        explanation="""
The model needs a tensor that no shard of the checkpoint contains. Names follow the official checkpoint; the
model's `checkpoint_spec()` lists them. Quantised matrices also need their scale tensor.
""",
        wrong="model.layers.1.mlp.experts.0.gate_proj.weight without its weight_scale",
        right="both tensors in the same checkpoint",
    ),
    "TC0303": Entry(
        title="tensor has the wrong shape",
        explanation="""
A tensor has another shape than the model's configuration implies. Either the checkpoint belongs to another
configuration, or a fused matrix was stored in another layout.
""",
        wrong="lm_head.weight [4096, 128] with hidden_size 256",
        right="lm_head.weight [4096, 256] with hidden_size 256",
    ),
    "TC0304": Entry(
        title="tensor has the wrong type",
        explanation="""
A tensor is stored in another data type than its format needs: bf16 as BF16, f32 as F32, fp8_block as F8_E4M3
with F32 scales, mxfp4 as U8 codes with U8 scales.
""",
        wrong="model.layers.0.self_attn.qkv_proj.weight as BF16",
        right="model.layers.0.self_attn.qkv_proj.weight as F8_E4M3 with weight_scale_inv as F32",
    ),
    "TC0305": Entry(
        title="checkpoint file is damaged",
        explanation="""
A safetensors file is shorter than its header says, or its header cannot be read. This is almost always an
interrupted download; fetch the file again.
""",
        wrong="model.safetensors of 1,048,576 bytes whose header describes 13,217,408 bytes",
        right="the whole file",
    ),
    "TC0306": Entry(
        title="unknown quantization_config",
        explanation="""
`quantization_config` of the checkpoint's `config.json` names a method that tilecc does not know, or one whose
parameters (block size, scale format) it does not support.
""",
        wrong='{"quantization_config": {"quant_method": "awq"}}',
        right='{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}',
    ),
    "TC0307": Entry(
        title="scale outside the legal range",
        explanation="""
A block scale is NaN, zero where it must not be, or so large that the product of code and scale cannot be
represented. The weight image takes MXFP4 scale bytes from 0 to 224, which is all
that the main loop decodes exactly, and FP8 scales below 2^104.
""",
        wrong="weight_scale byte 255 (NaN)",
        right="weight_scale bytes from 0 to 224",
    ),
    "TC0308": Entry(
        title="weight code is not a number",
        explanation="""
An FP8 matrix contains the code of NaN (0x7f or 0xff). One such weight turns every logit into NaN, so the
weight image refuses it and names the tensor and the position.
""",
        wrong="qkv_proj.weight with byte 0x7f at [12, 40]",
        right="qkv_proj.weight with finite E4M3 codes only",
    ),
}
