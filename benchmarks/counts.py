"""How much work a training step is: FLOPs and bytes a token, counted from the shape alone.

Beside a measured speed stands what it would be at the measured ceilings of the device. Counted are
what the model must compute (no recomputation) and the tensors that kernels must read and write, in
bfloat16; what a cache saves or a poor kernel reads twice is not in the count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wesar_sweep.config.run import Architecture

BF16 = 2
"""Bytes an element."""

ONE_KERNEL_VOCABULARY = 256
"""Up to this one, if a power of two, narrow models' last norm, prediction and loss are one."""

FULL_LOGITS_VOCABULARY = 4096
"""As in `model.fused_decoder`."""

STATE_BYTES = 40
"""Bytes a parameter and step, whatever the batch: see `state_bytes_a_token`."""


def layer_matrix_parameters(a: Architecture) -> int:
    """Parameters of the matrices of one layer."""
    feed_forward = 3 if a.ffn == "swiglu" else 2
    return 4 * a.width**2 + feed_forward * a.width * a.ffn_width


def matrix_parameters(a: Architecture) -> int:
    """Parameters that each token is multiplied with: layers and prediction, no embedding."""
    return a.depth * layer_matrix_parameters(a) + a.vocabulary * a.width


def parameters(a: Architecture) -> int:
    """All that the optimizer passes over; gains and gates, a per mille or so, are left out."""
    return matrix_parameters(a) + (0 if a.tied else a.vocabulary * a.width)


def flops_a_token(a: Architecture) -> int:
    """Forward and backward pass: 6 a matrix parameter and 6·N·T·D of causal attention.

    Attention is 4·T·D forward (two products of T by E a head) and twice that backward, halved
    since half of the scores are masked.
    """
    return 6 * matrix_parameters(a) + 6 * a.depth * a.context * a.width


@dataclass(frozen=True, slots=True)
class Traffic:
    """Elements a token that the ops of a step read and write, by op."""

    layer: Mapping[str, float]
    """Of one layer."""
    ends: Mapping[str, float]
    """Of embedding, last norm, prediction and loss."""

    def bytes_a_token(self, a: Architecture) -> float:
        """In bfloat16."""
        return BF16 * (a.depth * sum(self.layer.values()) + sum(self.ends.values()))


def one_kernel_an_op(a: Architecture) -> Traffic:
    """Each op of the plain model reads its inputs and writes its output; nothing is fused."""
    D, F, V = a.width, a.ffn_width, a.vocabulary
    # SwiGLU has two inputs and one output, GELU one of each; so has their up projection.
    U = 2 * F if a.ffn == "swiglu" else F
    return Traffic(
        layer={
            "norms": 2 * 2 * D,
            "qkv": D + 3 * D,
            "rope": 4 * D,
            "attention": 4 * D,
            "o": 2 * D,
            "residual adds": 2 * 3 * D,
            "up": D + U,
            "activation": U + F,
            "down": F + D,
            "norms backward": 2 * 3 * D,
            "residual adds backward": 2 * 3 * D,
            "down backward": 2 * (F + D),
            "activation backward": F + 2 * U,
            "up backward": 2 * (U + D),
            "o backward": 2 * 2 * D,
            "attention backward": 8 * D,
            "rope backward": 4 * D,
            "qkv backward": 2 * 4 * D,
        },
        ends=_ends(D=D, V=V),
    )


def engine(a: Architecture, *, narrow: bool) -> Traffic:
    """What the passes of `model.fused_decoder` read and write, op by op, for many runs at once.

    Statistics of rows, parts of the gains' gradients and norms of the embedding output (which some
    methods have) are left out.

    Args:
        a: The shape.
        narrow: Whether norms, rotations, activations and residual adds are part of the products
            (`kernels.fused.linear.supported`); otherwise the products are cuBLAS's.
    """
    D, F = a.width, a.ffn_width
    U = 2 * F if a.ffn == "swiglu" else F
    layer: dict[str, float] = {
        "attention": 4 * D,
        # q, k, v, y, dy to dq, dk, dv.
        "attention backward": 5 * D + 3 * D,
        "o backward": 2 * D,
        "gradients of qkv, o": (3 * D + D) + 2 * D,
        **_rotation(a, narrow=narrow),
    }
    if narrow:
        layer |= {
            "norm and qkv": D + D + 3 * D,
            "o and add": 3 * D,
            "norm and up": D + D + U,
            "up and norm backward": U + 3 * D,
            "qkv and norm backward": 3 * D + 3 * D,
        }
    else:
        layer |= {
            "norms": 2 * 2 * D,
            # What is added, and the sum; the norm reads the rest.
            "adds": 2 * 2 * D,
            "qkv": D + 3 * D,
            "o": 2 * D,
            "up": D + U,
            "up backward": U + D,
            "qkv backward": 3 * D + D,
            "norms and adds backward": 2 * 4 * D,
        }
    if narrow and a.ffn == "gelu":
        layer |= {
            "activation, down and add": F + 2 * D,
            # dx, u, the product's input to du; the activation is made again and not written.
            "down and activation backward, gradients of down and up": 2 * D + 2 * F,
        }
    else:
        layer |= {
            "gradients of up, down": (U + D) + (D + F),
            "activation": U + F,
            "down and add" if narrow else "down": F + (2 * D if narrow else D),
            "down backward": D + F,
            # The activation was kept.
            "activation backward": F + 2 * U,
        }
    return Traffic(layer=layer, ends=_ends_of_engine(a, narrow=narrow))


def has_own_attention(a: Architecture) -> bool:
    """As `kernels.fused.attention.use_fused` says, in bfloat16."""
    return a.context <= 512 and a.head_width <= 128


def turns_inside(a: Architecture) -> bool:
    """Whether queries and keys are rotated, and other kernels may do it (`linear.turns`)."""
    power_of_two = a.head_width & (a.head_width - 1) == 0
    return a.position == "rope" and not a.qk_norm and power_of_two and a.head_width >= 16


def _rotation(a: Architecture, *, narrow: bool) -> dict[str, float]:
    """Head norms and rotation where they are apart, and copies of the library's gradients."""
    D, inside, own = a.width, turns_inside(a), has_own_attention(a)
    some = a.position == "rope" or a.qk_norm
    found: dict[str, float] = {}
    if some and not (inside and narrow):
        found["rope"] = 4 * D
    if some and not (inside and own):
        # A norm's gradient needs what was normed.
        found["rope backward"] = (6 if a.qk_norm else 4) * D
    if not own:
        found["gradients packed"] = 2 * D if some else 6 * D
    return found


def _ends(*, D: int, V: int) -> dict[str, float]:
    return {
        "embedding": 2 * D,
        "last norm": 2 * D,
        "prediction": D + V,
        "loss": V,
        "loss backward": 2 * V,
        "prediction backward": 2 * (V + D),
        "last norm backward": 3 * D,
        "embedding backward": D,
    }


def _ends_of_engine(a: Architecture, *, narrow: bool) -> dict[str, float]:
    D, V = a.width, a.vocabulary
    ends: dict[str, float] = {"embedding": 2 * D, "embedding backward": D}
    if narrow and V <= FULL_LOGITS_VOCABULARY:
        ends |= {
            "gradient of prediction": V + D,
            # No gradient reaches the stream past the last norm.
            "prediction and norm backward": V + 2 * D,
        }
        if V <= ONE_KERNEL_VOCABULARY and V & (V - 1) == 0:
            ends["norm, prediction and loss"] = D + D + V
        else:
            ends |= {"norm and prediction": D + D + V, "loss both ways": 2 * V}
        return ends
    # Of large vocabularies as many, a chunk of rows at a time.
    return ends | {
        "last norm": 2 * D,
        "prediction": D + V,
        "loss both ways": 2 * V,
        "prediction backward": 2 * (V + D),
        "last norm backward": 3 * D,
    }


def state_bytes_a_token(a: Architecture) -> float:
    """What a step moves of weights and optimizer state, spread over its tokens.

    A parameter: the effective weight read forward and backward, its gradient written (3 × 2);
    gradient and weight read for norm and gate (2 + 4); gradient read, weight and two moments read
    and written, effective weight written (2 + 3 × 8 + 2): 40 bytes.
    """
    return STATE_BYTES * parameters(a) / a.tokens_per_step


def floor_bytes_a_token(a: Architecture, traffic: Traffic) -> float:
    """Activations, weights and optimizer state together."""
    return traffic.bytes_a_token(a) + state_bytes_a_token(a)
