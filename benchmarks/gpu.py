"""Timings on a CUDA device: ``make bench-gpu``, or ``python -m benchmarks.gpu`` where mcfhe is built already.

Builds the launchers with their options, checks every path against the naive kernel, the CPU ops and the CPU engine,
then times and writes one JSON, by default benchmarks/results/gpu-DEVICE.json. Times are in milliseconds, medians with
half the distance between the quartiles; kernels with a cold second-level cache. A wrong residue or any other error ends
its case, is written under ``failed`` and makes the exit status 1. ``--dry-run`` lists the work and needs no device.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_native, gpu_plan
from mcfhe.demo.modular import PUBLISHED_MS

Job = tuple[str, Callable[[], None]]

RESULTS = Path(__file__).parent / "results"
FORMAT = 1
BUDGET = 420.0  # seconds, building included
# Beside which the numbers stand: name, milliseconds, images, hardware as published.
PUBLISHED = (
    {"name": "RT-HCNN, one MNIST image", "ms": PUBLISHED_MS["evaluate"], "images": 1, "device": "RTX 3090"},
    {"name": "HCNN, MNIST", "ms": 5160.0, "images": 8192, "device": "as published"},
)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def driver() -> str | None:
    """The driver's version, where nvidia-smi tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None


def environment(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached on an H100 or H200: [{name, target, measured, met}]; nothing for rows not measured."""
    found: list[dict[str, Any]] = []

    def add(name: str, target: float, measured: float | None, at_least: bool = True) -> None:
        if measured is not None:
            met = measured >= target if at_least else measured <= target
            found.append({"name": name, "target": target, "measured": measured, "met": met})

    for title in ("conv2, L = 8, S = 4096", "wide, L = 16, S = 4"):
        row = next((r for r in report["kernels"] if r["name"] == title and r["path"] == "auto"), {})
        add(f"{title}: share of its floor", 0.6, row.get("fraction"))
        add(f"{title}: times the naive kernel", 5.0, row.get("naive_ratio"))
    batches = [r for r in report["network"] if r["axis"] == "batch"]
    for row in batches:
        if row["batch"] == 1:
            add("one image, graph replay, ms", 0.06, row.get("replay", {}).get("median"), at_least=False)
            add("one image, upload and download, ms", 0.2, row["staged"]["median"], at_least=False)
    if batches:
        best = max(batches, key=lambda r: r["images_per_second"])
        goal = 200_000 * 32 / (best["limbs"] * best["lanes"])
        add("images a second at the best batch, device-resident", goal, best["images_per_second"])
    for row in report["lattice"]:
        name = "lattice scheme, full batch, ms an image"
        add(f"{name}, device-resident", 0.05, row["ms_per_image"], at_least=False)
        add(f"{name}, as received", 0.05, row["ms_per_image_received"], at_least=False)
    return found


def measure(budget: float, started: float, out: Path | None) -> tuple[dict[str, Any], Path]:
    """Everything in the plan's order until the budget is spent; what is left out is named in ``skipped``.

    The file is written anew after every case, so that a run that is cut off leaves what it had.
    """
    from benchmarks import gpu_kernels, gpu_lattice, gpu_network
    from benchmarks.gpu_timing import Clock, measure_ceilings

    device = torch.device("cuda", torch.cuda.current_device())
    report: dict[str, Any] = {"format": FORMAT, **environment(device)}
    path = out or RESULTS / f"gpu-{slug(report['device'])}.json"
    report["ceilings"] = {}
    report["parameters"] = {
        "modulus_bits": gpu_plan.MODULUS_BITS,
        "weight_limit": gpu_plan.WEIGHT_LIMIT,
        "small_weight_limit": gpu_plan.SMALL_WEIGHT_LIMIT,
        "residue_bytes": gpu_plan.ENTRY,
    }
    report |= {"kernels": [], "network": [], "lattice": [], "skipped": [], "failed": [], "published": PUBLISHED}

    write(report, path)  # what a build or a first case that never ends leaves

    stand = gpu_kernels.Stand(Clock(device), device)
    jobs: list[Job] = []
    for network in gpu_plan.network_cases():
        jobs.append((network.title, lambda c=network: report["network"].append(gpu_network.row(stand, c))))
    batches = len(gpu_plan.BATCHES)
    lattice: Job = (
        gpu_plan.LATTICE_NETWORK,
        lambda: report["lattice"].append(gpu_network.lattice_row(stand, gpu_network.lattice_program())),
    )
    check = ("correctness of the demo network", lambda: gpu_network.check(stand))
    try:
        native = gpu_native.Native.load(gpu_native.build(report["capability"].replace(".", "")))
        ceilings = measure_ceilings(native, stand.clock, device)
    except (Exception, SystemExit) as error:  # the networks need nothing of it
        failed(report, "the launchers with their options", error)
        work([check, *jobs[:batches], lattice, *jobs[batches:]], report, path, budget, started)
        return report, path
    bench = gpu_kernels.Bench(stand.clock, device, native, ceilings)
    report["ceilings"] = {"copy_bytes_per_second": ceilings.copy_bytes, "products_per_second": ceilings.products}
    kernels: list[Job] = [
        (case.title, lambda c=case: report["kernels"].extend(gpu_kernels.conv_rows(bench, c)))
        for case in gpu_plan.conv_cases()
    ]
    kernels.append(("pointwise", lambda: report["kernels"].extend(gpu_kernels.pointwise_rows(bench))))
    kernels += [
        (f"lattice ops, {case.title}", lambda c=case: report["kernels"].extend(gpu_lattice.rows(bench, c)))
        for case in gpu_plan.lattice_cases()
    ]
    work([check, *jobs[:batches], lattice, *kernels, *jobs[batches:]], report, path, budget, started)
    return report, path


def failed(report: dict[str, Any], name: str, error: BaseException) -> None:
    report["failed"].append({"name": name, "error": f"{type(error).__name__}: {error}"})


def work(jobs: Sequence[Job], report: dict[str, Any], path: Path, budget: float, started: float) -> None:
    """Every job whatever the others meet, until the budget is spent, the device broken or the user impatient."""
    end = False
    for name, job in jobs:
        if end or time.monotonic() - started > budget:
            report["skipped"].append(name)
            continue
        try:
            try:
                job()
            except Exception as error:
                failed(report, name, error)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:  # of a context in which a kernel failed: it can do nothing more
            failed(report, f"after {name} the device", error)
            end = True
        except KeyboardInterrupt as error:
            failed(report, name, error)
            end = True
        report |= {"targets": targets(report), "seconds": round(time.monotonic() - started, 1)}
        write(report, path)
        print(f"{report['seconds']:6.1f} s  {name}", file=sys.stderr, flush=True)
    report |= {"targets": targets(report), "seconds": round(time.monotonic() - started, 1)}
    write(report, path)


def table(report: dict[str, Any]) -> list[str]:
    """The report in lines for a terminal."""
    lines = [f"{report['device']}, driver {report['driver']}, torch {report['torch']}, CUDA {report['cuda']}"]
    if ceilings := report["ceilings"]:
        products = ", ".join(f"{unit} {rate / 1e12:.2f} T" for unit, rate in ceilings["products_per_second"].items())
        lines.append(f"copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s; multiply-adds a second: {products}")
    lines += [
        f"{'kernel':34} {'path':26} {'ms':>9} {'of floor':>9} {'x naive':>8} {'x cuBLAS':>8}",
    ]
    for r in report["kernels"]:
        if "refused" in r:
            lines.append(f"{r['name']:34} {r['path']:26} refused: {r['refused']}")
            continue
        ratios = (f"{r[key]:8.2f}" if key in r else " " * 8 for key in ("naive_ratio", "gemm_ratio"))
        line = f"{r['name']:34} {r['path']:26} {r['median']:9.4f} {r['fraction']:9.2f} {' '.join(ratios)}"
        if "two_launches_ratio" in r:
            line += f"  {r['two_launches_ratio']:.2f} x two launches"
        lines.append(line.rstrip())
    lines.append(f"{'network':44} {'replay ms':>10} {'device ms':>10} {'host ms':>10} {'images/s':>10}")
    for r in report["network"]:
        replay = f"{r['replay']['median']:10.4f}" if "replay" in r else " " * 10
        lines.append(
            f"{r['axis']:6} {r['name']:37} {replay} {r['resident']['median']:10.4f} {r['staged']['median']:10.4f} "
            f"{r['images_per_second']:10.0f}"
        )
    for r in report["lattice"]:
        lines.append(
            f"{r['name']}: {r['resident']['median']:.1f} ms on the device, {r['received']['median']:.1f} as received, "
            f"of which upload and expansion of seeds take {r['expansion']['median']:.1f}"
        )
    for r in report["targets"]:
        verdict = "met" if r["met"] else "MISSED"
        lines.append(f"{r['name']:52} target {r['target']:10.2f}  measured {r['measured']:12.4f}  {verdict}")
    lines += [f"FAILED {r['name']}: {r['error']}" for r in report["failed"]]
    if report["skipped"]:
        lines.append("not measured for want of time: " + "; ".join(report["skipped"]))
    return lines


def write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.rename(path)


def dry_run() -> int:
    """The plan and what there is to build it with; 1 if something is missing that no device would supply."""
    print("\n".join(gpu_plan.describe()))
    missing = [path for path in gpu_native.sources() if not path.is_file()]
    nvcc = gpu_native.find_nvcc()
    print(f"{len(gpu_native.sources())} CUDA sources, nvcc: {nvcc or 'none'}")
    print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    return int(bool(missing) or not gpu_native.sources())


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON to write (default: benchmarks/results/gpu-DEVICE.json)")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no new row is begun")
    parser.add_argument("--dry-run", action="store_true", help="list the work; needs no device")
    options = parser.parse_args(arguments)
    if not options.budget > 0:
        parser.error("--budget must be positive")
    if options.dry_run:
        return dry_run()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no CUDA device; --dry-run lists what would be measured", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end from outside comes with its table, too
    report, path = measure(options.budget, started, options.out)
    print("\n".join([*table(report), f"{report['seconds']} s, written to {path}"]))
    return int(bool(report["failed"]))


if __name__ == "__main__":
    sys.exit(main())
