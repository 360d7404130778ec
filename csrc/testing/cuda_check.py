"""Compiles every CUDA source without a GPU and reads what ptxas says of the kernels.

    python csrc/testing/cuda_check.py --report build/reports/cuda-check.json

Every .cu file is compiled for sm_80, sm_90 and as PTX; every CUDA op (`*_op.cpp`) as the extension would compile it,
against the installed torch, CPU build or not. Nothing is linked. A spill or a stack frame in any kernel fails the
check. nvcc is looked for in $CUDA_HOME, $CUDA_PATH, on PATH and under /usr/local/cuda*; to have none is an error unless
MCFHE_ALLOW_NO_NVCC=1. Results are kept in build/cuda-check until a source changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1]
ROOT = CSRC.parent
CACHE = ROOT / "build" / "cuda-check"
ARCHITECTURES = ("80", "90")
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden,-Wall"]
OP_FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-DUSE_CUDA"]
OP_MACROS = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030A0000"]


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel for one architecture; of PTX and of host files only that they compile."""

    file: str
    arch: str
    kernel: str | None
    registers: int | None
    spills: int | None  # bytes stored
    stack: int | None  # bytes
    shared: int | None  # bytes, static


class CheckError(RuntimeError):
    """The check cannot pass; the message says why."""


def find_nvcc() -> Path | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes]
    if found := shutil.which("nvcc"):
        candidates.append(Path(found))
    candidates += [path / "bin" / "nvcc" for path in sorted(Path("/usr/local").glob("cuda*"), reverse=True)]
    return next((path.resolve() for path in candidates if path.is_file()), None)


def demangle(names: Sequence[str]) -> dict[str, str]:
    """Readable kernel names, without namespaces and parameters; the mangled ones where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    readable = {}
    for name, full in zip(names, done.stdout.splitlines(), strict=True):
        short = re.sub(r"\(anonymous namespace\)::|\b\w+::|^void ", "", full)
        readable[name] = re.sub(r">\(.*$", ">", short) if ">(" in short else short.split("(", 1)[0]
    return readable


def parse_ptxas(text: str, file: str) -> list[Kernel]:
    """The kernels in the output of nvcc -Xptxas -v."""
    found: list[tuple[str, str, dict[str, int]]] = []
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for '(sm_\w+)'", line):
            found.append((entry[1], entry[2], {}))
        elif not found:
            continue
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # A called function that was not inlined has properties of its own; the worst counts.
            values = found[-1][2]
            values["stack"] = max(values.get("stack", 0), int(frame[1]))
            values["spills"] = max(values.get("spills", 0), int(frame[2]), int(frame[3]))
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[-1][2].update(registers=int(used[1]), shared=int(shared[1]) if shared else 0)
    names = demangle(sorted({name for name, _, _ in found}))
    return [
        Kernel(file, arch, names[name], v.get("registers"), v.get("spills"), v.get("stack"), v.get("shared"))
        for name, arch, v in found
    ]


def failures(kernels: Iterable[Kernel]) -> list[str]:
    """One line for every kernel that spills, has a stack frame, or of which ptxas said nothing."""
    lines = []
    for k in kernels:
        if k.kernel is None:
            continue
        if k.registers is None or k.spills is None or k.stack is None:
            lines.append(f"{k.file}: {k.kernel} for {k.arch}: no resource usage in the compiler's output")
        elif k.spills or k.stack:
            lines.append(f"{k.file}: {k.kernel} for {k.arch}: {k.spills} bytes spilled, {k.stack} bytes of stack")
    return lines


def _cached(key: Sequence[object], command: Sequence[str], what: str) -> str:
    """The command's standard error; run once for a key."""
    digest = hashlib.sha256("\0".join(map(str, [*key, *command])).encode()).hexdigest()[:24]
    path = CACHE / f"{digest}.log"
    if path.exists():
        return path.read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CheckError(f"{what} does not compile:\n  {' '.join(command)}\n{done.stderr}{done.stdout}")
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(done.stderr + done.stdout)
    partial.rename(path)
    return path.read_text()


def _stamp() -> str:
    headers = sorted(path for suffix in ("*.h", "*.cuh") for path in CSRC.rglob(suffix) if "simt" not in path.parts)
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in headers)).hexdigest()


def cuda_sources() -> list[Path]:
    folders = (CSRC / "cuda", CSRC / "testing" / "baseline", CSRC / "testing" / "bench")
    return [source for folder in folders for source in sorted(folder.glob("*.cu"))]


def op_sources() -> list[Path]:
    return sorted((CSRC / "cuda").glob("*_op.cpp"))


def check_kernels(nvcc: Path, source: Path, version: str, stamp: str) -> list[Kernel]:
    """Compiles one .cu file for every architecture and as PTX."""
    name = str(source.relative_to(ROOT))
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    targets.append(f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
    command = [str(nvcc), *NVCC_FLAGS, *targets, "-Xptxas", "-v", f"-I{CSRC}", "-c", str(source), "-o", os.devnull]
    text = _cached([version, stamp, source.read_bytes()], command, name)
    kernels = parse_ptxas(text, name)
    ptx = Kernel(name, f"compute_{ARCHITECTURES[-1]}", None, None, None, None, None)
    return [*sorted(kernels, key=lambda k: (k.arch, k.kernel or "")), ptx]


def check_op(source: Path, includes: Sequence[str], compiler: str, stamp: str) -> Kernel:
    name = str(source.relative_to(ROOT))
    flags = [*OP_FLAGS, *OP_MACROS, *(f"-isystem{path}" for path in includes), f"-I{CSRC}"]
    command = [compiler, *flags, "-c", str(source), "-o", os.devnull]
    _cached([stamp, source.read_bytes()], command, name)
    return Kernel(name, "host", None, None, None, None, None)


def toolkit_include(nvcc: Path) -> str:
    """The toolkit's headers, by nvcc's own account: what is on PATH may be a wrapper elsewhere."""
    command = [str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if top := re.search(r"^#\$ TOP=(.+)$", done.stderr + done.stdout, re.MULTILINE):
        return str(Path(top[1].strip()).resolve() / "include")
    return str(nvcc.parents[1] / "include")


def torch_includes() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return list(include_paths())


def run(jobs: int) -> tuple[list[Kernel], str]:
    """All kernels and files, and the compiler's version line."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise CheckError(
            "no nvcc in $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda*; install the CUDA toolkit, or set "
            "MCFHE_ALLOW_NO_NVCC=1 to leave the CUDA sources unchecked"
        )
    version = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
    release = next((line.strip() for line in version.splitlines() if "release" in line), version.strip())
    includes = [*torch_includes(), toolkit_include(nvcc)]
    compiler = os.environ.get("CXX", "g++")
    stamp = _stamp()
    with ThreadPoolExecutor(jobs) as pool:
        kernels = pool.map(lambda source: check_kernels(nvcc, source, version, stamp), cuda_sources())
        ops = pool.map(lambda source: check_op(source, includes, compiler, stamp), op_sources())
        return [*(k for group in kernels for k in group), *ops], release


def write_report(path: Path, report: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.rename(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the CUDA sources and check registers, spills and stack.")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "reports" / "cuda-check.json")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    report: dict[str, object] = {"name": "cuda-check", "ok": False, "nvcc": None, "files": [], "failures": []}
    started = time.time()
    try:
        if find_nvcc() is None and os.environ.get("MCFHE_ALLOW_NO_NVCC") == "1":
            print("cuda-check: no nvcc here and MCFHE_ALLOW_NO_NVCC=1: the CUDA sources were not compiled")
            report |= {"ok": True, "skipped": "no nvcc"}
        else:
            kernels, release = run(options.jobs)
            bad = failures(kernels)
            report |= {"ok": not bad, "nvcc": release, "files": [asdict(k) for k in kernels], "failures": bad}
            for k in kernels:
                usage = (
                    "compiles" if k.kernel is None else f"{k.registers} registers, {k.spills} spilled, {k.stack} stack"
                )
                print(f"{k.file:44} {k.arch:11} {k.kernel or '':52} {usage}")
            for line in bad:
                print(f"cuda-check: {line}", file=sys.stderr)
    except CheckError as error:
        report["failures"] = [str(error)]
        print(f"cuda-check: {error}", file=sys.stderr)
    report["seconds"] = round(time.time() - started, 1)
    write_report(options.report, report)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
