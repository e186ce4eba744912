"""All ops that `gpu_kernels.py` measures, by name, and at which shapes the decoder takes them."""

from __future__ import annotations

from collections.abc import Mapping

import contests_of_attention as attentions
import contests_of_products as products
import contests_of_rows as rows
import torch
from contest import Build
from gpu import Case

CONTESTS: Mapping[str, Build] = {
    "norm_qkv": products.norm_qkv,
    "norm_qkv_rotated": products.norm_qkv_rotated,
    "norm_up": products.norm_up,
    "linear_add": products.linear_add,
    "gelu_linear_add": products.gelu_linear_add,
    "gelu_gradients": products.gelu_gradients,
    "rms_norm": rows.rms_norm,
    "rope": rows.rope,
    "gelu": rows.gelu,
    "swiglu": rows.swiglu,
    "attention": attentions.attention,
    "rotated_attention": attentions.rotated_attention,
    "library_attention": attentions.library_attention,
    "cross_entropy": rows.cross_entropy,
    "linear_cross_entropy": rows.linear_cross_entropy,
    "embedding": rows.embedding,
    "data_order": rows.data_order,
    "optimizer": products.optimizer,
}


def takes(op: str, case: Case, dtype: torch.dtype) -> bool:
    """Whether the decoder takes the op at this shape; of some ops it depends on more than that."""
    from wesar_sweep.kernels.fused import attention as fused_attention
    from wesar_sweep.kernels.fused import gelu_gradients, linear
    from wesar_sweep.model.fused_decoder import FULL_LOGITS_VOCABULARY

    a = case.architecture
    if op in ("norm_qkv", "norm_qkv_rotated", "norm_up", "linear_add", "gelu_linear_add"):
        return linear.supported(a.width, a.ffn_width, dtype)
    if op == "gelu_gradients":
        narrow = linear.supported(a.width, a.ffn_width, dtype)
        return narrow and gelu_gradients.preferred(case.slots, a.ffn_width)
    if op in ("attention", "rotated_attention"):
        return fused_attention.use_fused(a.context, a.head_width, dtype)
    if op.endswith("cross_entropy"):
        return (op == "cross_entropy") == (a.vocabulary <= FULL_LOGITS_VOCABULARY)
    return True
