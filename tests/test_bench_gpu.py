"""``python -m benchmarks.gpu`` without a device: plan, bindings against the C++ headers, logic on a stand-in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import compare, gpu, gpu_kernels, gpu_lattice, gpu_native, gpu_network, gpu_plan
from benchmarks.gpu_timing import Ceilings, Timing
from benchmarks.render_gpu import gpu_table
from mcfhe import ops
from mcfhe.engine import Engine
from mcfhe.engine.cuda_runner import CudaRunner
from mcfhe.lattice.server import LatticeServer
from mcfhe.lattice.wire import LatticeRequest, LatticeResponse
from tests.lattice.support import small_program
from tests.shapes import ConvShape
from tests.test_cuda_runner import HostRuntime

ROOT = Path(__file__).parent.parent
needs_no_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")


def enum(header: str, name: str) -> list[str]:
    """The enumerators of ``enum class name`` in a header, in order."""
    (body,) = re.findall(rf"enum class {name}[^{{]*\{{(.*?)\}};", (ROOT / "csrc" / header).read_text(), re.DOTALL)
    return re.findall(r"^\s*k(\w+),", body, re.MULTILINE)


def test_dry_run_needs_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for case in gpu_plan.conv_cases():
        assert case.title in out
    for lattice in gpu_plan.lattice_cases():
        assert lattice.title in out
    assert out.count("demo network") == len(gpu_plan.network_cases()) + 1
    assert gpu_plan.LATTICE_NETWORK in out


@needs_no_device
def test_no_device_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--budget", "0", "--dry-run"])


def test_it_runs_without_the_client() -> None:
    """A GPU machine may lack what only secret keys need."""
    code = (
        "import sys; sys.modules['cryptography'] = sys.modules['tenseal'] = sys.modules['zstandard'] = None\n"
        "import benchmarks.compare, benchmarks.gpu, benchmarks.gpu_kernels, benchmarks.gpu_network\n"
        "import benchmarks.gpu_lattice, tests.gpu.test_cuda_lattice_ops\n"
        "import tests.gpu.test_cuda_lattice; tests.gpu.test_cuda_lattice.compiled()\n"
        "import tests.gpu.conftest, tests.gpu.test_cuda_engine, tests.gpu.test_cuda_ops, tests.gpu.test_cuda_runtime\n"
        "benchmarks.gpu_network.program_of(28), benchmarks.gpu_network.lattice_program()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bindings_match_the_headers() -> None:
    for struct, expected in (("ConvParams", gpu_native.FIELDS), ("PoolParams", gpu_native.POOL_FIELDS)):
        (body,) = re.findall(rf"struct {struct} \{{(.*?)\}};", (ROOT / "csrc/kernels/params.h").read_text(), re.DOTALL)
        fields = [name.strip() for line in re.findall(r"int64_t ([^;]*);", body) for name in line.split(",")]
        assert tuple(fields) == expected
    for names, header, name in (
        (gpu_native.ARITHMETIC, "kernels/cuda_launch.h", "Arithmetic"),
        (gpu_native.TILES, "kernels/cuda_launch.h", "ConvTile"),
        (gpu_native.UNITS, "testing/bench/peaks.h", "Unit"),
    ):
        plain = [key.replace("-mid", "midsum") for key in names]
        assert plain == [key.lower() for key in enum(header, name)]
        assert list(names.values()) == list(range(len(names)))


def test_every_bound_symbol_is_exported() -> None:
    exported = set(
        re.findall(r"MCFHE_EXPORT .*?\b(mcfhe_bench_\w+)\(", (ROOT / "csrc/testing/bench/bindings.cu").read_text())
    )
    used = set(re.findall(r"library\.(mcfhe_bench_\w+)", (ROOT / "benchmarks/gpu_native.py").read_text()))
    assert used == exported


def test_the_work_is_counted_right() -> None:
    case = gpu_plan.ConvCase("conv2", ConvShape(8, 14, 14, 16, kernel=(5, 5), padding=(2, 2)), 8, 4096)
    assert case.macs == 16 * 196 * 8 * 25 * 8 * 4096
    assert case.bytes_moved == 8 * (8 * 8 * 196 * 4096 + 16 * 8 * 25 + 8 * 16 * 196 * 4096)
    assert case.taps == 200


def test_moduli_are_the_largest_primes() -> None:
    found = gpu_plan.moduli(16)
    assert len(set(found)) == 16
    assert found[0] == 2**30 - 35
    assert all(gpu_plan.is_prime(b) for b in found)
    assert gpu_plan.limbs_needed(prod(found)) == 17
    assert gpu_plan.limbs_needed(prod(found) - 1) == 16


def test_the_demo_has_the_limbs_of_the_plan() -> None:
    assert gpu_network.program_of(28).output_shape == (10,)


class Stopwatch:
    """Runs the work and reports a made-up time."""

    def time(self, work: Callable[[], object], cold: bool = True, seconds: float = 1.0) -> Timing:
        work()
        return Timing.of([2.0, 1.0, 3.0, 2.0])

    def wall(self, work: Callable[[], object], repeats: int = 1) -> Timing:
        return self.time(work)


class StandIn:
    """The native functions by CPU ops; ``wrong`` is a path that answers wrongly, ``refused`` one that does not."""

    def __init__(self, wrong: str = "", refused: str = "") -> None:
        self.wrong, self.refused = wrong, refused

    def conv2d(
        self,
        params: Any,
        tensors: Sequence[Tensor | None],
        y: Tensor,
        bounds: tuple[int, int],
        arithmetic: str = "auto",
        tile: str = "auto",
        linear: bool = False,
    ) -> None:
        if arithmetic == self.refused:
            raise RuntimeError("invalid argument")
        x, weight, bias, poly, moduli = tensors
        assert weight is not None
        assert bounds == (int(weight.abs().max()), int(weight.abs().flatten(1).sum(1).max()))
        sizes = ([1, 1], [params.padding_h, params.padding_w], [1, 1], 1)
        y.copy_(torch.ops.mcfhe.conv2d(x, weight, bias, poly, moduli, *sizes, None))
        if arithmetic == self.wrong:
            y.view(-1)[-1] += 1

    def conv2d_pool(
        self, params: Any, window: Any, tensors: Sequence[Tensor | None], y: Tensor, bounds: tuple[int, int]
    ) -> None:
        x, weight, bias, poly, factor, moduli = tensors
        whole = torch.empty(*y.shape[:2], params.out_h, params.out_w, y.shape[-1], dtype=torch.int64)
        self.conv2d(params, (x, weight, bias, poly, moduli), whole, bounds)
        y.copy_(torch.ops.mcfhe.sum_pool2d(whole, factor, moduli, list(window), list(window), [0, 0]))
        if self.wrong == "pool":
            y.view(-1)[-1] += 1

    def sum_pool2d(self, params: Any, x: Tensor, factor: Tensor, moduli: Tensor, y: Tensor) -> None:
        assert tuple(x.shape) == tuple(getattr(params, n) for n in ("limbs", "channels", "height", "width", "stream"))
        assert tuple(y.shape[2:4]) == (params.out_h, params.out_w)
        window, stride = ([getattr(params, f"{n}_{axis}") for axis in "hw"] for n in ("kernel", "stride"))
        y.copy_(torch.ops.mcfhe.sum_pool2d(x, factor, moduli, window, stride, [0, 0]))

    def conv2d_naive(self, params: Any, x: Tensor, weight: Tensor, moduli: Tensor, y: Tensor) -> None:
        bounds = (int(weight.abs().max()), int(weight.abs().flatten(1).sum(1).max()))
        self.conv2d(params, (x, weight, None, None, moduli), y, bounds, "naive")


def bench(native: StandIn) -> Any:
    ceilings = Ceilings(1e12, {"double": 1e12, "int64": 2e12, "int8": 1e14})
    return gpu_kernels.Bench(Stopwatch(), torch.device("cpu"), native, ceilings)  # type: ignore[arg-type]


CASE = gpu_plan.ConvCase("conv", ConvShape(2, 6, 7, 4, padding=(1, 1)), 2, 5)


def test_rows_of_a_layer() -> None:
    rows = {row["path"]: row for row in gpu_kernels.conv_rows(bench(StandIn(refused="int8")), CASE)}
    assert list(rows) == [*gpu_plan.PATHS, "auto, bias + square", "auto, bias + square + pool"]
    assert "refused" in rows["int8"]
    double = rows["double"]
    assert double["median"] == 2.0
    assert double["naive_ratio"] == 1.0
    assert double["floor"] == pytest.approx(max(CASE.bytes_moved / 1e12, CASE.macs / 1e12) * 1e3)
    assert rows["int64"]["floor"] <= double["floor"]
    pooled = rows["auto, bias + square + pool"]
    assert pooled["two_launches_ratio"] == 1.0
    assert pooled["macs"] == 2 * 5 * 4 * (3 * 3 * 4) * 18  # the last column is in no window
    assert pooled["bytes"] == 8 * (2 * 5 * (2 * 42 + 4 * 9) + 4 * 18)
    json.dumps(list(rows.values()))


@pytest.mark.parametrize("wrong", ["double", "int8", "naive", "pool"])
def test_a_wrong_residue_is_found(wrong: str) -> None:
    # on a single output the naive kernel's own check covers every entry
    case = gpu_plan.ConvCase("one", ConvShape(1, 3, 3, 1), 1, 1) if wrong == "naive" else CASE
    with pytest.raises(gpu_kernels.WrongResult, match=wrong):
        list(gpu_kernels.conv_rows(bench(StandIn(wrong=wrong)), case))


def test_pointwise_rows() -> None:
    rows = list(gpu_kernels.pointwise_rows(bench(StandIn()), limbs=2, stream=3))
    assert len(rows) == 5
    assert all(row["floor_of"] == "memory" for row in rows)


def test_lattice_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu_plan.LatticeCase(16, 2, 4)
    rows = {row["name"].split(",")[0]: row for row in gpu_lattice.rows(bench(StandIn()), case)}
    assert list(rows) == [
        "ntt",
        "inverse ntt",
        "tensor_square",
        "tensor_square + pool",
        "rescale",
        "relinearise",
        "expand_uniform",
    ]
    assert rows["expand_uniform"]["hashes"] == 2 * 4 * 16 // 8
    assert rows["ntt"]["butterflies"] == 2 * 4 * 8 * 4
    assert rows["relinearise"]["butterflies"] == 3 * 4 * 4 * 8 * 4
    assert rows["ntt"]["bytes"] == 2 * 8 * 2 * 4 * 16
    assert rows["rescale"]["bytes_per_second"] == pytest.approx(rows["rescale"]["bytes"] / 2e-3)
    json.dumps(list(rows.values()))
    relinearise = torch.ops.mcfhe.relinearise
    monkeypatch.setattr(torch.ops.mcfhe, "relinearise", lambda x, *rest: relinearise(x, *rest) + (x.shape[1] > 1))
    with pytest.raises(gpu_kernels.WrongResult, match="relinearise"):
        list(gpu_lattice.rows(bench(StandIn()), case))
    monkeypatch.undo()
    expand = ops.expand_uniform
    monkeypatch.setattr(gpu_lattice.ops, "expand_uniform", lambda seeds, *rest: expand(seeds, *rest) + len(seeds) // 2)
    with pytest.raises(gpu_kernels.WrongResult, match="expand_uniform"):
        gpu_lattice.expansion_row(bench(StandIn()), case)


def network_row(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def engine_of(image: int, graphs: bool) -> Engine:
        engine = Engine(gpu_network.program_of(image))
        evaluate, shape = engine._run_tile, engine.program.output_shape
        engine.runner = CudaRunner(evaluate, shape, engine.live_entries, HostRuntime())
        return engine

    monkeypatch.setattr(gpu_network, "engine_of", engine_of)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return gpu_network.row(bench(StandIn()), gpu_plan.NetworkCase("batch", limbs=2, lanes=2))


def test_lattice_network_row_refuses_what_differs_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    row = gpu_network.lattice_row(bench(StandIn()), program)
    assert row["ms_per_image"] == row["resident"]["median"] / program.slots
    assert json.loads(json.dumps(row)) == row
    evaluate, calls = LatticeServer.evaluate, iter(range(9))

    def wrong_at_first(server: LatticeServer, request: LatticeRequest) -> LatticeResponse:
        response = evaluate(server, request)
        response.residues[0, 0, 0] += next(calls) == 0
        return response

    monkeypatch.setattr(LatticeServer, "evaluate", wrong_at_first)
    with pytest.raises(gpu_kernels.WrongResult, match="lattice network"):
        gpu_network.lattice_row(bench(StandIn()), program)


def report(monkeypatch: pytest.MonkeyPatch, device: str = "Made-Up 100") -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": gpu.FORMAT,
        "device": device,
        "driver": "1",
        "torch": "2",
        "cuda": "13",
        "ceilings": {"copy_bytes_per_second": 1e12, "products_per_second": {"double": 1e12}},
        "kernels": list(gpu_kernels.conv_rows(bench(StandIn(refused="int8")), CASE)),
        "network": [network_row(monkeypatch)],
        "lattice": [gpu_network.lattice_row(bench(StandIn()), small_program())],
        "skipped": ["late"],
        "failed": [{"name": "bad", "error": "why"}],
    }
    found["kernels"][0]["name"] = "conv2, L = 8, S = 4096"
    found["targets"] = gpu.targets(found)
    return found


def test_targets_tables_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = report(monkeypatch)
    names = [row["name"] for row in made["targets"]]
    assert "conv2, L = 8, S = 4096: share of its floor" in names
    assert "one image, upload and download, ms" in names
    by_name = {row["name"]: row for row in made["targets"]}
    assert by_name["conv2, L = 8, S = 4096: times the naive kernel"]["met"] is False
    assert "lattice scheme, full batch, ms an image, as received" in names
    text = "\n".join(gpu.table(made))
    assert "n = 4096, L = 2, 2048 images: 2.0 ms on the device, 2.0 as received" in text
    assert "FAILED bad: why" in text
    assert "refused" in text
    assert "MISSED" in text
    assert "1.00 x two launches" in text
    lines = gpu_table(made)
    assert any(line.endswith("| 2.0000 | 1.00 |") for line in lines)
    assert any(line.startswith("| conv2, L = 8, S = 4096 | auto | 2.0000") for line in lines)
    assert "Short of what was aimed at" in lines[-1]
    gpu.write(made, tmp_path / "deep" / "a.json")
    assert json.loads((tmp_path / "deep" / "a.json").read_text())["device"] == "Made-Up 100"


def test_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = report(monkeypatch), report(monkeypatch, "Made-Up 200")
    b["kernels"] = b["kernels"][:1]
    b["kernels"][0]["median"] = 1.0
    for name, made in (("a", a), ("b", b)):
        gpu.write(made, tmp_path / f"{name}.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"S = 4096, auto +2\.0000 +1\.0000 +2\.00", out)
    assert re.search(r"double +2\.0000 +-", out)
    assert "79.5 ms for 1, 79.5000 each" in out
    assert "5160.0 ms for 8192, 0.6299 each" in out
    (tmp_path / "c.json").write_text("[]")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 1
    assert "c.json: not a report" in capsys.readouterr().err


def worked(monkeypatch: pytest.MonkeyPatch, path: Path, broken: str, **jobs: Callable[[], None]) -> dict[str, Any]:
    """What is written of some jobs, on a device that one of them breaks."""
    found = report(monkeypatch) | {"skipped": [], "failed": []}
    done: list[str] = []

    def synchronize() -> None:
        if broken in done:
            raise RuntimeError("an illegal memory access was encountered")

    def noted(name: str) -> None:
        done.append(name)
        jobs[name]()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    gpu.work([(name, lambda n=name: noted(n)) for name in jobs], found, path, 1e9, 0.0)
    read: dict[str, Any] = json.loads(path.read_text())
    assert gpu.table(read)
    return read | {"done": done}


def throw(error: BaseException) -> Callable[[], None]:
    def job() -> None:
        raise error

    return job


def test_an_error_of_any_kind_costs_its_own_case_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = worked(monkeypatch, tmp_path / "a.json", "", a=throw(ValueError("why")), b=lambda: None)
    assert made["done"] == ["a", "b"]
    assert made["failed"] == [{"name": "a", "error": "ValueError: why"}]
    assert made["skipped"] == []


def test_a_broken_device_and_an_interrupt_end_the_run_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = worked(monkeypatch, tmp_path / "a.json", "b", a=lambda: None, b=lambda: None, c=lambda: None)
    assert made["done"] == ["a", "b"]
    assert made["skipped"] == ["c"]
    assert [f["name"] for f in made["failed"]] == ["after b the device"]
    made = worked(monkeypatch, tmp_path / "b.json", "", a=throw(KeyboardInterrupt()), b=lambda: None)
    assert made["skipped"] == ["b"]
    assert made["kernels"]


def test_the_table_without_the_launchers_library(monkeypatch: pytest.MonkeyPatch) -> None:
    made = report(monkeypatch) | {"ceilings": {}, "kernels": []}
    assert any("Made-Up 100" in line for line in gpu.table(made))


def test_slug() -> None:
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_the_session_script_is_valid_shell() -> None:
    script = ROOT / "benchmarks" / "gpu_session.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert script.stat().st_mode & 0o111


PYTHON_OF_A_GPU_MACHINE = """#!/usr/bin/env bash
case "$*" in
*get_device_capability*) {probe} ;;
*build_ext*) echo building; exit {build} ;;
*benchmarks.gpu*) echo "{{}}" > "${{@: -1}}" ;;
esac
"""


@pytest.mark.parametrize(
    ("probe", "build", "code", "said"),
    [
        ("sleep 600", 0, 1, "torch sees no CUDA device, or does not say so within 1 s"),
        ("exit 1", 0, 1, "torch sees no CUDA device"),
        ("echo 9.0", 3, 3, "build    exit 3"),
        ("echo 9.0", 0, 124, "tests    not run: no time left"),
    ],
)
def test_the_session_ends_whatever_its_first_phases_do(
    tmp_path: Path, probe: str, build: int, code: int, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(PYTHON_OF_A_GPU_MACHINE.format(probe=probe, build=build))
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "OUT": str(tmp_path), "TOTAL": "60", "PROBE": "1"}
    script = [str(ROOT / "benchmarks" / "gpu_session.sh")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    # a build that succeeds is followed by benchmarks even where there is no time for tests
    assert (tmp_path / "gpu.json").is_file() == (code == 124)
