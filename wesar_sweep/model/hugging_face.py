"""A folded run as one of Hugging Face's stock models: which one, its config.json, its names.

=============  ========================  =====================================================
feed-forward   without qk_norm           with qk_norm
=============  ========================  =====================================================
swiglu         Llama                     Qwen3
gelu           Arcee, a Llama whose      Apertus, which normalises heads like Qwen3 and has no
               feed-forward has no gate  gate either
=============  ========================  =====================================================

All four agree with `model.decoder` in the rest: RMSNorm before each block and at the end, no
biases, rotary positions in halves (`rotate_half`), logits of attention divided by √E. What a method
does to the embedding output depends on the token alone, so it is folded into the embedding's rows;
with tied weights that would change the predictions too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wesar_sweep.config.run import Architecture
from wesar_sweep.errors import ConfigError, Problem
from wesar_sweep.kernels import rms_norm, rope

_KINDS = {
    ("swiglu", False): ("llama", "LlamaForCausalLM"),
    ("swiglu", True): ("qwen3", "Qwen3ForCausalLM"),
    ("gelu", False): ("arcee", "ArceeForCausalLM"),
    ("gelu", True): ("apertus", "ApertusForCausalLM"),
}
"""(feed-forward, qk_norm) -> ``model_type`` and class of transformers."""

_ACTIVATIONS = {"swiglu": "silu", "gelu": "gelu"}
"""Names of transformers; its ``gelu`` is the exact one, by the error function, as ours."""

_OUTSIDE = {"e": "model.embed_tokens", "p": "lm_head", "norm": "model.norm"}
_IN_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "norm_q": "self_attn.q_norm",
    "norm_k": "self_attn.k_norm",
    "u": "mlp.up_proj",
    "g": "mlp.gate_proj",
    "w": "mlp.down_proj",
    "norm_attention": "input_layernorm",
    "norm_feed_forward": "post_attention_layernorm",
}
"""Last part of a label (`model.fold`) -> name of the module in a layer."""
_APERTUS_NORMS = {
    "norm_attention": "attention_layernorm",
    "norm_feed_forward": "feedforward_layernorm",
}


def hugging_face_config(
    architecture: Architecture, *, end_of_document: int | None = None
) -> dict[str, Any]:
    """What config.json says of a model.

    Args:
        architecture: Its shape.
        end_of_document: Id of the token at which generation stops; None: at none.

    Raises:
        ConfigError: No stock model computes the same.
    """
    a = architecture
    if a.position != "rope":
        raise ConfigError(
            Problem(
                "a model without positions cannot be folded: all models of transformers that are "
                "otherwise alike rotate queries and keys",
                path="model.position",
                value=a.position,
                allowed="rope",
            )
        )
    model_type, name = _KINDS[a.ffn, a.qk_norm]
    return {
        "architectures": [name],
        "model_type": model_type,
        "vocab_size": a.vocabulary,
        "hidden_size": a.width,
        "intermediate_size": a.ffn_width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "head_dim": a.head_width,
        "hidden_act": _ACTIVATIONS[a.ffn],
        "max_position_embeddings": a.context,
        "rms_norm_eps": rms_norm.EPS,
        # As version 5 of transformers reads it, and as version 4 does.
        "rope_parameters": {"rope_type": "default", "rope_theta": rope.THETA},
        "rope_theta": rope.THETA,
        "rope_scaling": None,
        "tie_word_embeddings": a.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        # Else the classes' own defaults hold, which are ids of other tokenizers.
        "bos_token_id": None,
        "eos_token_id": end_of_document,
        "pad_token_id": None,
        "dtype": "float32",
    }


def hugging_face_weights(
    folded: Mapping[str, Tensor],
    *,
    architecture: Architecture,
    embed_scale: float = 1.0,
    embed_norm: bool = False,
) -> dict[str, Tensor]:
    """Folded weights under the names of transformers, the embedding's switches folded in too.

    Args:
        folded: Label -> tensor (`model.fold`).
        architecture: Shape of the model.
        embed_scale: Factor on the embedding output.
        embed_norm: Whether the embedding output is RMS-normalised, after the factor.

    Raises:
        ConfigError: The switches cannot be folded, since the weights are tied.
    """
    a = architecture
    if a.tied and (embed_norm or embed_scale != 1.0):
        raise ConfigError(
            Problem(
                f"a tied model with {'embed_norm' if embed_norm else 'scaled_embed'} cannot be "
                "folded: its one matrix embeds and predicts, and only what it embeds is changed",
                path="model.tied",
                value="true",
                allowed="false",
                hint="train it with model.tied=false",
            )
        )
    layer_names = _IN_LAYER | (_APERTUS_NORMS if _KINDS[a.ffn, a.qk_norm][0] == "apertus" else {})
    weights = {}
    for label, tensor in folded.items():
        above, _, last = label.rpartition(".")
        name = f"model.{above}.{layer_names[last]}" if above else _OUTSIDE[last]
        weights[f"{name}.weight"] = tensor
    embed_VD = folded["e"] * embed_scale if embed_scale != 1.0 else folded["e"]
    # What `model.decoder` does to the embedding output, in the same order.
    weights["model.embed_tokens.weight"] = rms_norm.reference(embed_VD) if embed_norm else embed_VD
    return weights
