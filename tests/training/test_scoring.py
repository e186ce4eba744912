"""Evaluation sets under K runs: against one window at a time, alone against stacked, fused."""

import numpy as np
import pytest
import torch

from wesar_sweep.data.evaluation_sets import LoadedSet
from wesar_sweep.kernels import rope
from wesar_sweep.kernels.fused import attention, linear
from wesar_sweep.model.decoder import effective_weights, forward
from wesar_sweep.training import scoring
from wesar_sweep.training.scoring import DeviceWindows
from wesar_sweep.training.stack import Stack, StackTraits

METHODS = ("he", "wesar", "weight_norm", "scaled_embed", "embed_norm")
NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def made_up(kind: str, lengths, *, stride=None, seed=0) -> LoadedSet:
    """Documents of so many tokens, of which LAMBADA's last three are scored."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, 120, length).astype(np.uint8) for length in lengths]
    documents = [(t[:-3], t[-3:]) if kind == "lambada" else (NONE, t) for t in texts]
    return loaded(kind, documents, stride=stride)


def loaded(kind: str, documents, *, stride=None) -> LoadedSet:
    return LoadedSet(
        name="made_up", kind=kind, documents=tuple(documents), end_of_document=0, vocabulary=256,
        stride=stride, words=1, bytes=1, sha256="",
    )  # fmt: skip


SETS = [
    made_up("text", [3, 90, 17, 41, 64]),
    made_up("text", [3, 90, 41], stride=7),
    made_up("lambada", [5, 70, 9, 33, 12, 18]),
]


CPU = torch.device("cpu")


@pytest.fixture
def stack(study_of, runs_of, text):
    """A stack of runs of every switch, by their numbers."""

    def make(numbers=(0, 1, 2, 3, 4), *, shape=None, on=CPU, **options):
        study = study_of(model={"context": 40, **(shape or {})})
        cells = [{"method": m, "seed": n} for n, m in enumerate(METHODS)]
        runs = [runs_of(study, *cells)[n] for n in numbers]
        made = Stack(
            runs[0].architecture, slots=len(runs), traits=StackTraits.of(study, methods=METHODS),
            train_S=text.to(on), **options,
        )  # fmt: skip
        made.load_many(range(len(runs)), runs)
        return made

    return make


def one_at_a_time(stack: Stack, slot: int, windows) -> tuple[float, int]:
    """No padding, no batches, no pieces: each window by itself."""
    a = stack.architecture
    weights = effective_weights(stack.rows.effective_KP[slot : slot + 1], stack.rows.layout,
                                train=False)  # fmt: skip
    switches = stack.table.switches(torch.tensor([slot]), scale=True, normalise=True)
    rotation = rope.tables(a.context, a.head_width, device=stack.device)
    nll, exact = 0.0, 0
    for group in windows:
        for row, (length, scored) in enumerate(zip(group.length_W, group.scored_W, strict=True)):
            token_T = torch.from_numpy(group.token_WT[row, :length].astype(np.int64))
            logit_MV = forward(
                weights, token_T[None, None, :-1], architecture=a, rotation=rotation,
                switches=switches,
            )[0].double()[-scored:]  # fmt: skip
            target = token_T[-scored:]
            nll += float(torch.nn.functional.cross_entropy(logit_MV, target, reduction="sum"))
            exact += bool((logit_MV.argmax(dim=1) == target).all())
    return nll, exact


@pytest.mark.parametrize("found", SETS, ids=["disjoint", "overlapping", "last words"])
def test_padding_batches_and_pieces_change_nothing(stack, found, monkeypatch):
    made = stack(fused=False)
    windows = found.windows(40)
    if found.stride is None:
        assert len(windows) > 1, "windows of one padded length alone would prove nothing of padding"
    on_device = DeviceWindows.of(windows, device=CPU)
    whole = made.score(range(5), on_device)
    for slot in (0, 3):
        nll, exact = one_at_a_time(made, slot, windows)
        assert whole[slot].nll == pytest.approx(nll, rel=1e-5)
        assert whole[slot].exact == exact
    monkeypatch.setattr(scoring, "CPU_LOGITS", 5 * 256)
    pieces = made.score(range(5), on_device)
    assert [s.nll for s in pieces] == pytest.approx([s.nll for s in whole], rel=1e-6)
    assert [s.exact for s in pieces] == [s.exact for s in whole]


def test_a_document_is_exact_where_each_scored_token_is_the_likeliest(stack):
    made = stack(fused=False)
    run = made.rows.effective_KP
    # All hidden states alike, so that one token is the likeliest everywhere.
    weights = effective_weights(run, made.rows.layout, train=False)
    weights.norm_KD[:, -1] = 0
    weights.norm_KD[:, -1, 0] = 1
    weights.prediction_KVD[:] = 0
    given = np.array([5, 6], dtype=np.uint8)
    # Of equal logits the first counts as the likeliest, as argmax has it.
    exact, missed = np.array([0, 0], dtype=np.uint8), np.array([0, 9], dtype=np.uint8)
    found = loaded("lambada", [(given, exact), (given, missed), (given, exact)])
    scores = made.score([1, 2], DeviceWindows.of(found.windows(40), device=CPU))
    assert [score.exact for score in scores] == [2, 2]
    assert [score.nll for score in scores] == pytest.approx([6 * np.log(256)] * 2)


@pytest.mark.parametrize("found", SETS, ids=["disjoint", "overlapping", "last words"])
@pytest.mark.parametrize("most", [scoring.CPU_LOGITS, 7 * 256])
def test_stacked_and_alone_are_the_same_bits(stack, found, most, monkeypatch):
    monkeypatch.setattr(scoring, "CPU_LOGITS", most)
    windows = DeviceWindows.of(found.windows(40), device=CPU)
    together = stack(fused=False)
    # A dead neighbour must not show.
    together.rows.effective_KP[4] = float("nan")
    scores = together.score(range(5), windows)
    assert len({score.nll for score in scores}) == 5, "equal runs would prove nothing"
    assert np.isnan(scores[4].nll)
    assert together.score([3, 1], windows) == [scores[3], scores[1]]
    for number in range(4):
        assert stack([number], fused=False).score([0], windows) == [scores[number]]
    # The control: one bit of one weight is seen, and only in its run.
    row = together.rows.effective_KP
    last = together.rows.layout.effective_size - 1
    row[2, last] = torch.nextafter(row[2, last], torch.tensor(9.0))
    changed = together.score(range(5), windows)
    assert changed[2].nll != scores[2].nll
    assert [changed[n] for n in (0, 1, 3)] == [scores[n] for n in (0, 1, 3)]


@pytest.mark.parametrize("shape", [{}, {"width": 32, "heads": 2, "tied": True}])
@pytest.mark.parametrize("by_hand", [False, True])
def test_fused_equals_the_reference(stack, device, shape, by_hand, monkeypatch):
    """Float32: two padded lengths, rows of all windows, the products of narrow models and wide."""
    if by_hand:
        monkeypatch.setattr(linear, "supported", lambda *shape: True)
        monkeypatch.setattr(attention, "use_fused", lambda *shape: True)
    found = made_up("text", [3, 60, 17])
    windows = DeviceWindows.of(found.windows(40), device=device)
    plain, fused = (
        stack([0, 1, 4], shape=shape, on=device, fused=kind, capture=False)
        for kind in (False, True)
    )
    expected, got = plain.score([2, 0], windows), fused.score([2, 0], windows)
    # Float32 through two layers, sums in another order: 1e-6 in the interpreter.
    assert [s.nll for s in got] == pytest.approx([s.nll for s in expected], rel=1e-4)
    assert [s.exact for s in got] == [s.exact for s in expected]
