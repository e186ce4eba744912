"""Fixtures of the configuration tests: a file in an empty folder, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wesar_sweep.config import Study, load_study
from wesar_sweep.errors import ConfigError

LONG_LISTS = {
    "{STUDY_KEYS}": (
        "name, title, question, space, replicates, first_seed, sampler, pruner, finishes, "
        "objectives, method, methods, model, training, data, evaluation, divergence, spikes, "
        "probes, keep_weights, retries"
    ),
    "{KNOBS}": (
        "method, width, depth, heads, context, ffn, ffn_width, position, tied, qk_norm, steps, "
        "batch, lr, schedule, warmup, final_lr_ratio, decay_fraction, sigma2, weight_decay, "
        "beta1, beta2, eps, clip, z_loss"
    ),
    "{TRAINING_KEYS}": (
        "steps, batch, lr, schedule, warmup, final_lr_ratio, decay_fraction, sigma2, "
        "weight_decay, beta1, beta2, eps, clip, z_loss, precision, deterministic"
    ),
    "{METHODS}": (
        "he, small, xavier, gpt2, wesar, weight_norm, sigma_reparam, residual_scaling, "
        "scaled_embed, embed_norm"
    ),
}
"""Lists that many errors name; the tests spell them once, here."""


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(in_tmp_path: Path) -> Callable[..., Study]:
    """Loads a text as study.yaml of the working directory."""

    def load_text(text: str, *overrides: str) -> Study:
        Path("study.yaml").write_text(text, encoding="utf-8")
        return load_study("study.yaml", overrides=overrides)

    return load_text


@pytest.fixture
def refusal(load: Callable[..., Study]) -> Callable[..., str]:
    """The error of a text that must be refused, long lists abbreviated to their names."""

    def refuse(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        said = str(caught.value)
        for name, names in LONG_LISTS.items():
            said = said.replace(names, name)
        return said

    return refuse
