"""Where the kernels are tested, and memory that shows what was never written."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The GPU, or the CPU with Triton's interpreter where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request, device) -> torch.dtype:
    """Of the operands of a product; bfloat16 is skipped aloud without a GPU."""
    if request.param == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers")
    return request.param


@pytest.fixture
def gpu() -> torch.device:
    """The GPU; the test is skipped aloud without one."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return torch.device("cuda")


@pytest.fixture
def poisoned_empty(monkeypatch):
    """What `torch.empty` and its like hand out is NaN (or the largest integer) until written."""

    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            if out.dtype == torch.bool:
                return out.fill_(True)
            return out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).max)

        return made

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    tensor_new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(tensor_new_empty))
