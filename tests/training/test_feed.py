"""Tokens in host memory: read without a copy, and fed to the fused step as if they lay with it."""

import numpy as np
import pytest
import torch

from wesar_sweep.kernels import data_order
from wesar_sweep.kernels.fused import data_order as fused
from wesar_sweep.training.feed import Feed, as_tensor, is_fed, train_tokens
from wesar_sweep.training.stack import MOST_STEPS, Stack, StackTraits

WIDE = {np.uint8: torch.uint8, np.uint16: torch.uint16, np.uint32: torch.uint32}


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def mapped(tmp_path, text):
    """The text in 16 letters as a read-only memory map of a type, so short that epochs end."""

    def make(dtype=np.uint16, *, length=160):
        np.save(tmp_path / f"{np.dtype(dtype)}.npy", (text.numpy()[:length] % 16).astype(dtype))
        return np.load(tmp_path / f"{np.dtype(dtype)}.npy", mmap_mode="r")

    return make


@pytest.fixture
def warns_always():
    """Torch says the same thing again."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.parametrize(("dtype", "wanted"), WIDE.items())
def test_a_read_only_map_becomes_a_tensor_without_a_copy(mapped, dtype, wanted, warns_always):
    """And without a word: warnings are errors here."""
    tokens = mapped(dtype)
    assert not tokens.flags.writeable
    tensor = train_tokens(tokens, device=torch.device("cpu"))
    assert tensor.dtype == wanted and tensor.data_ptr() == tokens.ctypes.data
    assert tensor.long().tolist() == tokens.tolist()
    part = as_tensor(tokens[5:90])
    assert part.data_ptr() == tokens.ctypes.data + 5 * tokens.itemsize


def test_control_torch_would_warn(mapped, warns_always):
    with pytest.warns(UserWarning, match="not writable"):
        torch.from_numpy(mapped())


def test_who_is_fed(mapped, monkeypatch):
    tokens = mapped(np.uint16, length=1000)
    for free, fed in ((2000 * 8, False), (2000 * 8 - 1, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert is_fed(tokens, device=torch.device("cuda")) == fed
        assert not is_fed(tokens, device=torch.device("cpu")), "it reads them where they lie"


@pytest.fixture
def small(study_of):
    """A study as small as the interpreter wants it."""

    def make(**training):
        model = {"width": 8, "depth": 1, "heads": 1, "context": 6}
        data = {"source": "synthetic", "symbols": 16}
        return study_of(model=model, training={"batch": 2, **training}, data=data)

    return make


def life(study, runs, tokens, device, *, fed, micro_batches=1, capture=False, precision="fp32"):
    """Losses and probes of a stack in which runs come, go, are resumed, and slots are dropped."""
    stack = Stack(
        runs[0].architecture,
        slots=len(runs),
        traits=StackTraits.of(study, methods=["he"]),
        train_S=train_tokens(tokens, device=device, fed=fed),
        device=device,
        precision=precision,
        fused=True,
        capture=capture,
        micro_batches=micro_batches,
        fed=fed,
    )
    assert (stack.feed is not None) == fed
    if capture:
        stack.warm_up()
    stack.load_many(range(len(runs)), runs)
    found = [stack.train(1, probe_at=(0,)).read()]
    last = len(runs) - 1
    state = {name: value[0] for name, value in stack.state([last]).items()}
    # Another run in the last slot while the others go on; the first one back to where it stood.
    stack.load(last, runs[0])
    found.append(stack.train(1).read())
    stack.load(0, runs[last])
    stack.restore(0, state, steps_done=1)
    if last:
        stack.keep([last, 0])
    # Two blocks begun before the first is read, as the engine does.
    blocks = [stack.train(1, probe_at=(0,)), stack.train(1)]
    found += [block.read() for block in blocks]
    return found, stack


def assert_same(mine, theirs):
    for left, right in zip(mine, theirs, strict=True):
        for x, y in zip(left[:2], right[:2], strict=True):
            np.testing.assert_array_equal(x, y, strict=True)
        assert left[2].keys() == right[2].keys()
        for step, probes in left[2].items():
            for name, value in probes.items():
                np.testing.assert_array_equal(value, right[2][step][name], strict=True)


@pytest.mark.parametrize(("slots", "micro_batches"), [(1, 1), (3, 2)])
def test_fed_is_resident_bit_for_bit(small, runs_of, mapped, device, slots, micro_batches):
    study = small()
    runs = runs_of(study, *({"seed": 3 + n, "lr": 1e-2 * (n + 1)} for n in range(slots)))
    options = {"micro_batches": micro_batches}
    resident, _ = life(study, runs, mapped(), device, fed=False, **options)
    fed, _ = life(study, runs, mapped(), device, fed=True, **options)
    assert_same(fed, resident)
    assert any((fed[-1][0] != resident[-2][0]).flat), "the control: other steps have other losses"


class Fed:
    """A feed, and beside it what the order of the data says that it must hand out."""

    def __init__(self, tokens, device, *, slots, share=(0, 4)):
        self.tokens, self.share = torch.from_numpy(tokens.astype(np.int64)), share
        self.feed = Feed(
            as_tensor(tokens), slots=slots, batch=4, context=6, share=share, most_steps=5,
            device=device,
        )  # fmt: skip
        self.seeds, self.steps = [0] * slots, [0] * slots

    def load(self, slots, seeds):
        self.feed.load(slots, seeds)
        for slot, seed in zip(slots, seeds, strict=True):
            self.seeds[slot], self.steps[slot] = seed, 0

    def set_steps(self, slot, steps_done):
        self.feed.set_steps(slot, steps_done)
        self.steps[slot] = steps_done

    def keep(self, slots):
        self.feed.keep(slots)
        self.seeds, self.steps = ([x[slot] for slot in slots] for x in (self.seeds, self.steps))

    def require_right(self, steps):
        """The next steps, each in two micro-batches."""
        self.feed.send(steps)
        begin, count = self.share
        for n in range(steps):
            cursor = torch.tensor([n], device=self.feed.turn.device)
            first_1KB = data_order.reference(
                torch.tensor(self.seeds), torch.tensor([self.steps]), tokens=len(self.tokens),
                batch=4, context=6,
            )  # fmt: skip
            own_KB = first_1KB[0, :, begin : begin + count]
            for first, part_KB in ((0, own_KB[:, :1]), (1, own_KB[:, 1:])):
                got = fused.take(
                    self.feed.window_SKBT, cursor, self.feed.turn,
                    sequences=(first, part_KB.shape[1]),
                )  # fmt: skip
                want = data_order.gather(self.tokens, part_KB, context=6)
                for mine, theirs in zip(got, want, strict=True):
                    assert mine.tolist() == theirs.flatten(1).tolist()
            self.steps = [step + 1 for step in self.steps]
        self.feed.release()


def through_changes(fed, *, slots):
    """Runs enter at different steps, one is resumed, slots are dropped."""
    last = slots - 1
    fed.load(range(slots), [3 + n for n in range(slots)])
    fed.require_right(5)
    fed.load([last], [11])
    fed.require_right(1)
    fed.load([0], [7])
    fed.set_steps(0, 40)
    fed.require_right(3)
    if last:
        fed.keep([last, 0])
        fed.require_right(5)
        fed.load([1], [5])
        fed.require_right(2)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("share", [(0, 4), (2, 2)])
def test_what_is_fed_is_what_the_order_says(mapped, device, slots, dtype, share):
    """Of a whole step and of a rank's share, over the ends of epochs."""
    tokens = mapped(dtype)
    if dtype != np.uint8:
        # Ids that take all the bits, the lowest among them.
        tokens = np.flip(np.iinfo(np.int32 if dtype == np.uint32 else dtype).max - tokens)
        tokens = np.ascontiguousarray(tokens.astype(dtype))
    through_changes(Fed(tokens, device, slots=slots, share=share), slots=slots)


@pytest.mark.parametrize("name", ["load", "set_steps", "keep"])
def test_control_a_feed_that_misses_something_is_seen(mapped, device, monkeypatch, name):
    honest = Feed.keep
    # A smaller buffer is needed whatever slots it is of.
    deaf = {"keep": lambda self, slots: honest(self, range(len(slots)))}
    monkeypatch.setattr(Feed, name, deaf.get(name, lambda self, *heard: None))
    with pytest.raises(AssertionError):
        through_changes(Fed(mapped(), device, slots=3), slots=3)


def test_the_next_block_spares_what_this_one_reads(mapped, device):
    """One half is filled while the other may still be read."""
    fed = Fed(mapped(), device, slots=2).feed
    fed.load([0, 1], [3, 4])
    for _ in range(3):
        before, half = fed.window_SKBT.cpu().clone(), int(fed.turn)
        fed.send(2)
        assert int(fed.turn) == 1 - half
        for place, same in ((half, True), (1 - half, False)):
            mine, theirs = (x.cpu().long().chunk(2)[place] for x in (before, fed.window_SKBT))
            assert torch.equal(mine, theirs) == same


def test_a_plain_step_reads_the_host_too(small, runs_of, mapped, device):
    """Without the fused step nothing is fed: the reference gathers for itself."""
    study = small()
    runs = runs_of(study, {"seed": 5})
    found = []
    for place in (torch.device("cpu"), device):
        stack = Stack(
            runs[0].architecture, slots=1, traits=StackTraits.of(study, methods=["he"]),
            train_S=as_tensor(mapped()).to(place), device=device, fused=False,
        )  # fmt: skip
        stack.load(0, runs[0])
        found.append(stack.train(2).read())
    assert_same(found[:1], found[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_fed_is_resident_on_a_gpu(study_of, runs_of, mapped, slots, micro_batches):
    """Captured, with copies on a stream of their own; a long life, so that a race would show.

    In bfloat16, whose kernels have their sums in one order at this context.
    """
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    study = study_of(
        model={"width": 64, "depth": 2, "heads": 2, "context": 64},
        data={"source": "synthetic", "symbols": 16},
        training={"steps": 4000, "batch": 8, "lr": 1e-4},
    )
    runs = runs_of(study, *({"seed": 3 + n} for n in range(slots)))
    found = []
    for fed in (False, True):
        first, stack = life(
            study, runs, mapped(length=9000), torch.device("cuda"), fed=fed, capture=True,
            micro_batches=micro_batches, precision="bf16",
        )  # fmt: skip
        blocks, read = [], []
        # Always one block begun ahead of the one that is read.
        for _ in range(30):
            blocks.append(stack.train(MOST_STEPS))
            read += [block.read() for block in blocks[-2:-1]]
        found.append([*first, *read, blocks[-1].read()])
    assert_same(*found)
