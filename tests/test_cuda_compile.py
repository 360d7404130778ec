"""The compile check of the CUDA sources, csrc/testing/cuda_check.py: its parser, its verdicts, a cheap real run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "csrc" / "testing"))

import cuda_check

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5mcfhe4cuda12_GLOBAL__N_16kernelILi4EEEvPl' for 'sm_80'
ptxas info    : Function properties for _ZN5mcfhe4cuda12_GLOBAL__N_16kernelILi4EEEvPl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 12 bytes smem, 440 bytes cmem[0]
ptxas info    : Compile time = 4.1 ms
ptxas info    : Compiling entry function '_ZN5mcfhe4cuda5otherEPlS1_' for 'sm_90'
ptxas info    : Function properties for _ZN5mcfhe4cuda5otherEPlS1_
    48 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 48 bytes cumulative stack size
ptxas info    : Function properties for __internal_called_function
    96 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""

needs_nvcc = pytest.mark.skipif(
    cuda_check.find_nvcc() is None, reason="no nvcc in $CUDA_HOME, PATH or /usr/local/cuda*"
)


def test_parse_ptxas() -> None:
    clean, spilling = cuda_check.parse_ptxas(PTXAS, "a.cu")
    assert (clean.file, clean.arch, clean.registers, clean.spills, clean.stack, clean.shared) == (
        "a.cu",
        "sm_80",
        40,
        0,
        0,
        12,
    )
    assert clean.kernel in ("kernel<4>", "_ZN5mcfhe4cuda12_GLOBAL__N_16kernelILi4EEEvPl")
    assert (spilling.arch, spilling.registers, spilling.spills, spilling.stack, spilling.shared) == (
        "sm_90",
        255,
        24,
        96,
        0,
    )


def test_parse_ptxas_of_nothing() -> None:
    assert cuda_check.parse_ptxas("nvcc warning : something\n", "a.cu") == []


def test_failures() -> None:
    kernels = cuda_check.parse_ptxas(PTXAS, "a.cu")
    (line,) = cuda_check.failures(kernels)
    assert "24 bytes spilled, 96 bytes of stack" in line
    assert "sm_90" in line
    silent = cuda_check.parse_ptxas("Compiling entry function 'k' for 'sm_90'", "a.cu")
    assert "no resource usage" in cuda_check.failures(silent)[0]
    ptx = cuda_check.Kernel("a.cu", "compute_90", None, None, None, None, None)
    assert cuda_check.failures([ptx]) == []


def without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_check, "find_nvcc", lambda: None)


def test_no_nvcc_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_nvcc(monkeypatch)
    monkeypatch.delenv("MCFHE_ALLOW_NO_NVCC", raising=False)
    report = tmp_path / "cuda-check.json"
    assert cuda_check.main(["--report", str(report)]) == 1
    assert "MCFHE_ALLOW_NO_NVCC=1" in capsys.readouterr().err
    assert json.loads(report.read_text())["ok"] is False


def test_no_nvcc_can_be_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_nvcc(monkeypatch)
    monkeypatch.setenv("MCFHE_ALLOW_NO_NVCC", "1")
    report = tmp_path / "cuda-check.json"
    assert cuda_check.main(["--report", str(report)]) == 0
    assert "not compiled" in capsys.readouterr().out
    assert json.loads(report.read_text())["skipped"] == "no nvcc"


def test_find_nvcc_prefers_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_check.find_nvcc() == nvcc.resolve()


@needs_nvcc
def test_a_package_kernel_compiles_for_every_architecture() -> None:
    nvcc = cuda_check.find_nvcc()
    assert nvcc is not None
    kernels = cuda_check.check_kernels(nvcc, cuda_check.CSRC / "cuda" / "weight_range.cu", "test", cuda_check._stamp())
    assert [k.arch for k in kernels] == ["sm_80", "sm_90", "compute_90"]
    assert [k.kernel for k in kernels[:2]] == ["weight_range_kernel"] * 2
    assert cuda_check.failures(kernels) == []


@needs_nvcc
def test_a_real_spill_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_check, "ROOT", tmp_path)
    monkeypatch.setattr(cuda_check, "CACHE", tmp_path / "cache")
    source = tmp_path / "spill.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spill(const double* x, double* y) {\n"
        "  double v[64];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];\n"
        "  for (int round = 0; round < 9; ++round) {\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + 1) % 64] + x[round];\n"
        "  }\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 64; ++i) y[i * 1024 + threadIdx.x] = v[i];\n"
        "}\n"
    )
    nvcc = cuda_check.find_nvcc()
    assert nvcc is not None
    kernels = cuda_check.check_kernels(nvcc, source, "test", "")
    assert len(cuda_check.failures(kernels)) == 2


@needs_nvcc
def test_a_source_that_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_check, "ROOT", tmp_path)
    monkeypatch.setattr(cuda_check, "CACHE", tmp_path / "cache")
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void broken( {\n")
    nvcc = cuda_check.find_nvcc()
    assert nvcc is not None
    with pytest.raises(cuda_check.CheckError, match=r"broken\.cu does not compile"):
        cuda_check.check_kernels(nvcc, source, "test", "")
