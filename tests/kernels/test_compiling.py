"""Compiling ahead, on any machine: the compiler for sm_90 is real, the driver is not."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
import triton

REPOSITORY = Path(__file__).parents[2]

PRELUDE = """
import json
import sys
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from wesar_sweep.kernels.fused import compiling

loaded, launched = [], []

class Hopper:
    class utils:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232_448})

        @staticmethod
        def load_binary(name, *rest):
            loaded.append(name)
            return 1, 2, 0, 0, 1024

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("meta"))
    launcher_cls = staticmethod(lambda source, metadata: lambda *arguments: launched.append(1))

triton.runtime.driver.set_active(Hopper())
meta = torch.device("meta")
compile_ahead = lambda step: compiling.compile_ahead(step, device=meta)
"""


@pytest.fixture
def compiled(tmp_path):
    """Run a script without the interpreter and with an empty cache; what it tells at the end."""

    def run(script):
        file = tmp_path / "script.py"  # A kernel's source must lie in a file.
        file.write_text(PRELUDE + textwrap.dedent(script))
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, file],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment
            | {
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
                "TRITON_CACHE_DIR": str(tmp_path / "cache"),
            },
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_kernels_are_compiled_and_loaded_and_none_is_launched(compiled):
    told = compiled("""
        from wesar_sweep.kernels.fused import rms_norm

        compiling.prepare()
        x, gain = torch.empty(3, 64, 32, device=meta), torch.empty(3, 32, device=meta)

        def step():
            for _ in range(3):
                x_sum, normed, rstd = rms_norm.forward(x, gain)
                parts = torch.empty(3, rms_norm.partial_sums(*x.shape), 32, device=meta)
                rms_norm.backward(normed, x_sum, rstd, gain, partial_KBD=parts)
                rms_norm.sum_partials(parts)

        interval = sys.getswitchinterval()
        count = compile_ahead(step)
        ahead = len(loaded), len(launched)
        again = compile_ahead(step)
        step()
        print(json.dumps({
            "count": count, "ahead": ahead, "again": again, "loaded": len(loaded),
            "launched": len(launched), "restored": interval == sys.getswitchinterval(),
        }))
    """)
    assert told == {
        "count": 3, "ahead": [3, 0], "again": 0, "loaded": 3, "launched": 9, "restored": True,
    }  # fmt: skip


def test_a_kernel_that_does_not_compile_fails_at_its_launch(compiled):
    """And does not keep the others from being compiled, nor leaves launches out for ever."""
    told = compiled("""
        @triton.jit
        def _bad(x):
            tl.store(x, tl.arange(0, 3))

        @triton.jit
        def _good(x):
            tl.store(x, 1.0)

        x = torch.empty(16, device=meta)
        compile_ahead(lambda: (_bad[(1,)](x), _good[(1,)](x)))
        ahead = list(loaded)
        try:
            _bad[(1,)](x)
            failed = "not at all"
        except triton.CompilationError as error:
            failed = str(error)
        try:
            compile_ahead(lambda: 1 // 0)
        except ZeroDivisionError:
            pass
        _good[(1,)](x)
        print(json.dumps({"ahead": ahead, "failed": failed, "launched": len(launched)}))
    """)
    assert told["ahead"] == ["_good"]
    assert "power of 2" in told["failed"]
    assert told["launched"] == 1


def test_groups_of_matrices_share_the_kernels_of_the_optimizer(compiled):
    """One for each length of row, whatever the number of matrices, and one for all Ks above 1."""
    told = compiled("""
        from wesar_sweep.config.run import Architecture
        from wesar_sweep.training.stack import Stack, StackTraits

        a = Architecture(
            width=64, depth=2, heads=2, context=64, ffn="gelu", ffn_width=256, position="rope",
            tied=False, qk_norm=False, batch=2, vocabulary=256,
        )
        traits = StackTraits(
            forms=frozenset({"scalar"}), scaled_embed=False, embed_norm=False, z_loss=False
        )
        found = []
        for slots in (2, 5):
            stack = Stack(
                a, slots=slots, traits=traits, train_S=torch.empty(9999, dtype=torch.uint8,
                device=meta), precision="bf16", fused=True, capture=False,
            )
            loaded.clear()
            compile_ahead(stack._fused._use_every_kernel)
            found.append([name for name in loaded if name in ("_sums", "_matrices", "_update")])
        print(json.dumps(found))
    """)
    assert sorted(told[0]) == ["_matrices", "_sums", "_sums", "_update", "_update"]
    assert told[1] == []


LAUNCHER = """
#include <Python.h>
static PyObject *launch(PyObject *self, PyObject *args) { return PyLong_FromLong(%d); }
static PyMethodDef methods[] = {{"launch", launch, METH_VARARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "launcher_of_a_test", NULL, -1, methods};
PyMODINIT_FUNC PyInit_launcher_of_a_test(void) {
    PyObject *made = PyModule_Create(&module);
    PyModule_AddFunctions(made, methods);
    return made;
}
"""
"""As Triton up to 3.6 makes one for each kernel, all of one name."""


@pytest.fixture
def load_launcher(tmp_path):
    """Load launcher 1 or 2; each says its number."""
    include = Path(sysconfig.get_paths()["include"])
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not (include / "Python.h").exists():
        pytest.skip("needs a C compiler and Python's headers")
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "launcher.c").write_text(LAUNCHER % number)
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-I{include}", "launcher.c", "-o", "launcher.so"],
            cwd=folder,
            check=True,
        )

    def load(number):
        path = tmp_path / str(number) / "launcher.so"
        spec = importlib.util.spec_from_file_location("launcher_of_a_test", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("launcher_of_a_test", None)


def test_launchers_loaded_again_do_not_take_each_others_place(load_launcher):
    from wesar_sweep.kernels.fused import compiling

    for number in (1, 2):
        load_launcher(number)
    # The control: loaded again, the two are one object, which says what was loaded last.
    first, second = load_launcher(1), load_launcher(2)
    assert first is second and first.launch() == 2
    with compiling._modules_apart():
        first, second = load_launcher(1), load_launcher(2)
    assert (first.launch(), second.launch()) == (1, 2)
    assert load_launcher(1) is load_launcher(2), "outside, Python is as it was"


def test_an_ordinary_extension_is_imported_as_ever(monkeypatch):
    from wesar_sweep.kernels.fused import compiling

    names = ("_xxtestfuzz", "audioop", "_ctypes_test", "_testbuffer", "_testclinic", "xxlimited")
    name = next(n for n in names if n not in sys.modules and importlib.util.find_spec(n))
    with compiling._modules_apart():
        module = importlib.import_module(name)
    assert sys.modules[name] is module


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="only without a GPU")
def test_the_interpreter_has_nothing_to_compile():
    from wesar_sweep.kernels.fused import compiling

    compiling.prepare()
    assert compiling._preparation is None
    assert compiling.compile_ahead(lambda: 1 // 0, device=torch.device("cpu")) == 0
