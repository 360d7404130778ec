"""Builds mcfhe._C: CPU kernels always, CUDA kernels when torch has CUDA and nvcc is there.

MCFHE_WITH_CUDA=1 insists on CUDA and fails loudly where it is impossible, =0 leaves it out. TORCH_CUDA_ARCH_LIST and
MAX_JOBS mean what they mean to torch; both get a default here.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # stable ABI of torch 2.11: runs on that and every later release
PY_LIMITED_API = "0x030A0000"
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def with_cuda() -> bool:
    possible = bool(torch.version.cuda) and CUDA_HOME is not None
    wish = os.environ.get("MCFHE_WITH_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"MCFHE_WITH_CUDA={wish!r}: use 0, 1 or leave it unset")
    if wish == "1" and not possible:
        raise SystemExit(
            f"MCFHE_WITH_CUDA=1 but torch {torch.__version__} was built "
            f"{'with CUDA ' + torch.version.cuda if torch.version.cuda else 'without CUDA'} and nvcc was "
            f"{'found in ' + CUDA_HOME if CUDA_HOME else 'not found'}; install both or unset the variable"
        )
    return possible and wish != "0"


def relative(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def extension() -> CppExtension:
    cuda = with_cuda()
    sources = relative("*.cpp") + relative("cpu/*.cpp")
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), ("Py_LIMITED_API", PY_LIMITED_API)]
    host = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"]
    # Refusals name their source line: without the folder in which somebody built the wheel.
    host.append(f"-ffile-prefix-map={ROOT.resolve()}/=")
    flags = {"cxx": host}
    if cuda:
        sources += relative("cuda/*.cpp") + relative("cuda/*.cu")
        macros.append(("USE_CUDA", None))
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
        flags["nvcc"] = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"]
    kind = CUDAExtension if cuda else CppExtension
    return kind(
        "mcfhe._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args=flags,
        py_limited_api=True,
    )


os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
