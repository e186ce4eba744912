"""Without a GPU, Triton's kernels run in its interpreter: set before anything imports them."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
