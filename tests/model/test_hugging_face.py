"""Names and numbers of config.json; refusals. (Equal logits: tests/test_export_model.py.)"""

from dataclasses import replace

import pytest
import torch

from wesar_sweep.config.run import Architecture
from wesar_sweep.errors import ConfigError
from wesar_sweep.model.hugging_face import hugging_face_config, hugging_face_weights
from wesar_sweep.model.plain import PlainDecoder

SHAPE = Architecture(
    width=12, depth=2, heads=3, context=10, ffn="gelu", ffn_width=20, position="rope", tied=False,
    qk_norm=False, batch=2, vocabulary=32,
)  # fmt: skip


def folded_of(shape: Architecture) -> dict[str, torch.Tensor]:
    named = PlainDecoder(shape).named_parameters()
    return {name.removesuffix(".weight"): value.detach() for name, value in named}


@pytest.mark.parametrize(
    ("ffn", "qk_norm", "name", "activation"),
    [
        ("swiglu", False, "LlamaForCausalLM", "silu"),
        ("swiglu", True, "Qwen3ForCausalLM", "silu"),
        ("gelu", False, "ArceeForCausalLM", "gelu"),
        ("gelu", True, "ApertusForCausalLM", "gelu"),
    ],
)
def test_kinds(ffn: str, qk_norm: bool, name: str, activation: str) -> None:
    shape = replace(SHAPE, ffn=ffn, qk_norm=qk_norm)
    config = hugging_face_config(shape, end_of_document=7)
    assert config["architectures"] == [name]
    assert config["hidden_act"] == activation
    assert (config["hidden_size"], config["head_dim"], config["vocab_size"]) == (12, 4, 32)
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, 7)
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"] == 10_000.0
    weights = hugging_face_weights(folded_of(shape), architecture=shape)
    assert ("model.layers.1.mlp.gate_proj.weight" in weights) == (ffn == "swiglu")
    assert ("model.layers.1.self_attn.k_norm.weight" in weights) == qk_norm
    assert len(weights) == len(folded_of(shape))


def test_the_embeddings_switches_go_into_its_rows() -> None:
    folded = folded_of(SHAPE)
    scaled = hugging_face_weights(folded, architecture=SHAPE, embed_scale=3.0)
    normalised = hugging_face_weights(folded, architecture=SHAPE, embed_norm=True)
    assert torch.equal(scaled["model.embed_tokens.weight"], 3 * folded["e"])
    rms = normalised["model.embed_tokens.weight"].square().mean(dim=1).sqrt()
    torch.testing.assert_close(rms, torch.ones(32), rtol=1e-4, atol=0)
    for weights in (scaled, normalised):
        assert torch.equal(weights["lm_head.weight"], folded["p"]), "what predicts is left alone"


def test_no_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.position: a model without positions cannot be"):
        hugging_face_config(replace(SHAPE, position="none"))


@pytest.mark.parametrize(
    ("switch", "word"), [({"embed_norm": True}, "embed_norm"), ({"embed_scale": 2.0}, "scaled_em")]
)
def test_a_tied_embedding_with_a_switch_is_refused(switch: dict[str, float], word: str) -> None:
    tied = replace(SHAPE, tied=True)
    with pytest.raises(ConfigError, match=rf"model\.tied: a tied model with {word}"):
        hugging_face_weights(folded_of(tied), architecture=tied, **switch)
    assert "lm_head.weight" not in hugging_face_weights(folded_of(tied), architecture=tied)
