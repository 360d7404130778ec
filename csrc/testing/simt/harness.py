"""Builds the SIMT harness and talks to it.

The harness is the package's .cu sources compiled as C++ for the CPU together with an emulation of the CUDA execution
model (include/, *.cpp). It is built twice: `address`, under AddressSanitizer and UndefinedBehaviorSanitizer, and
`race`, with every memory access checked against what other threads did to the same word. `Driver` keeps one such
program running and sends it launches; a kernel that does something wrong raises SimtError.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1]
ROOT = CSRC.parent
VARIANTS = ("address", "race")

Int64Array = npt.NDArray[np.int64]

_COMMON = [
    *("-std=c++20", "-O1", "-g1", "-DMCFHE_SIMT", "-fno-strict-aliasing", "-ffp-contract=off"),
    "-Werror=conversion",  # a 64-bit index that narrows without a cast is an error
    *(f"-I{HERE / 'include'}", f"-I{CSRC}", f"-I{HERE}"),
]
_SANITIZE = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "race": ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-DSIMT_RACE"],
}
# Kernels of the race build call __tsan_* hooks, which memory.cpp defines; the harness itself does not.
_KERNEL = {"address": [], "race": ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]}


class SimtError(AssertionError):
    """A kernel did something that the CUDA execution model forbids, or a sanitizer stopped it."""


def compiler() -> str:
    """GCC, for its thread-sanitizer hooks: $MCFHE_SIMT_CXX, or g++."""
    return os.environ.get("MCFHE_SIMT_CXX", "g++")


def compiler_available() -> bool:
    return shutil.which(compiler()) is not None


def kernel_sources() -> list[Path]:
    """The .cu files under test: the package's and the benchmark baseline."""
    return sorted((CSRC / "cuda").glob("*.cu")) + sorted((CSRC / "testing" / "baseline").glob("*.cu"))


def global_functions() -> list[str]:
    """Names of all ``__global__`` functions in the sources under test."""
    sources = [*kernel_sources(), *sorted((CSRC / "cuda").glob("*.cuh"))]
    pattern = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)")
    return sorted({name for path in sources for name in pattern.findall(path.read_text())})


def planted_names() -> list[str]:
    """Names of the planted mistakes, as the sources register them."""
    sources = sorted((HERE / "planted").glob("*.cu"))
    return sorted({name for path in sources for name in re.findall(r"^PLANTED\((\w+)", path.read_text(), re.MULTILINE)})


def _hash(parts: Sequence[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _compile(source: Path, flags: list[str], stamp: str, folder: Path) -> Path:
    target = folder / f"{source.name}-{_hash([stamp, source.read_bytes(), ' '.join(flags)])}.o"
    if not target.exists():
        for stale in folder.glob(f"{source.name}-*.o"):
            stale.unlink()
        kind = ["-x", "c++"] if source.suffix == ".cu" else []
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        command = [compiler(), *kind, *flags, "-c", str(source), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the SIMT harness does not compile: {' '.join(command)}\n{done.stderr}")
        partial.rename(target)
    return target


def build(variant: str, folder: Path | None = None, jobs: int | None = None) -> Path:
    """Builds the driver of one variant where its sources have changed since, and returns its path."""
    folder = (folder or ROOT / "build" / "simt") / variant
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted(path for suffix in ("*.h", "*.cuh") for path in CSRC.rglob(suffix) if "cpu" not in path.parts)
    stamp = _hash([part for path in headers for part in (str(path.relative_to(CSRC)), path.read_bytes())])
    host = [*_COMMON, *_SANITIZE[variant]]
    kernels = [*kernel_sources(), *sorted((HERE / "planted").glob("*.cu"))]
    work = [(path, [*host, *_KERNEL[variant]]) for path in kernels]
    work += [(path, host) for path in sorted([*HERE.glob("*.cpp"), *(HERE / "planted").glob("*.cpp")])]
    with ThreadPoolExecutor(jobs or min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(lambda item: _compile(item[0], item[1], stamp, folder), work))
    driver = folder / f"driver-{_hash([path.name for path in objects])}"
    if not driver.exists():
        for stale in folder.glob("driver-*"):
            stale.unlink()
        partial = folder / f"partial.{os.getpid()}"
        command = [compiler(), *_SANITIZE[variant], *map(str, objects), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the SIMT harness does not link: {' '.join(command)}\n{done.stderr}")
        partial.rename(driver)
    return driver


@dataclass(frozen=True)
class Sparse:
    """A buffer of `size` zeros except `entries`, for sizes that no machine could fill."""

    size: int
    entries: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """Numbers for the driver itself, not in device memory."""

    values: Sequence[int]


Buffer = Sequence[int] | Int64Array | Sparse | Host


def _pack(name: str, buffer: Buffer) -> tuple[str, bytes]:
    if isinstance(buffer, Sparse):
        pairs = [number for item in buffer.entries.items() for number in item]
        return f"{name}:sparse:{buffer.size}:{len(buffer.entries)}", np.array(pairs, dtype="<i8").tobytes()
    values = buffer.values if isinstance(buffer, Host) else buffer
    flat = np.ascontiguousarray(np.array(values, dtype="<i8")).reshape(-1)
    return f"{name}:{'host' if isinstance(buffer, Host) else 'dense'}:{flat.size}", flat.tobytes()


class Driver:
    """One running harness program of a variant; started on first use and again after a sanitizer stopped it."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.kernels_run: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def launch(self, op: str, numbers: Mapping[str, int | str], buffers: Mapping[str, Buffer | None]) -> Int64Array:
        """Runs one launch and returns its output as a flat array."""
        packed = [_pack(name, buffer) for name, buffer in buffers.items() if buffer is not None]
        words = [op, *(f"{key}={value}" for key, value in numbers.items())]
        if packed:
            words.append("buffers=" + ",".join(name for name, _ in packed))
        request = (" ".join(words) + "\n").encode() + b"".join(data for _, data in packed)
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            raise SimtError(self._post_mortem()) from None
        answer = process.stdout.readline().decode()
        if not answer:
            raise SimtError(self._post_mortem())
        if answer.startswith("error "):
            raise SimtError(answer[6:].strip())
        fields = dict(word.split("=", 1) for word in answer.split()[1:])
        self.kernels_run |= set(filter(None, fields["kernels"].split(",")))
        data = process.stdout.read(8 * int(fields["entries"]))
        return np.frombuffer(data, dtype="<i8").astype(np.int64)

    def close(self) -> None:
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(timeout=30)
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._errors is not None:
            self._errors.close()
        self._process = None
        self._errors = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
            # Fibers are left with their stacks full, and heap blocks stay for the next launch: leaks mean nothing here.
            options = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=0"}
            self._process = subprocess.Popen(
                [str(build(self.variant))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **options},
            )
        return self._process

    def _post_mortem(self) -> str:
        assert self._process is not None
        assert self._errors is not None
        code = self._process.wait(timeout=30)
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        self.close()
        lines = [line for line in text.splitlines() if "ERROR:" in line or "runtime error:" in line]
        return (lines[0] if lines else f"the driver ended with code {code}") + "\n" + text
