"""The README's lines for one GPU report."""

from __future__ import annotations

from typing import Any

KERNELS = ("auto", "double", "int64", "int8")


def gpu_table(report: dict[str, Any]) -> list[str]:
    lines = [
        f"On one {report['device']} (driver {report['driver']}, torch {report['torch']}), medians.",
        "The floor of a layer is the slower of moving its bytes at the measured copy bandwidth and of its "
        "multiply-adds at the measured peak of the unit used;",
        "naive is one thread an output with `%`; cuBLAS is a double matrix product of the same multiply-adds:",
        "",
        "| layer | path | ms | of its floor | times naive | times cuBLAS |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in report["kernels"]:
        if row.get("path") in KERNELS and "naive_ratio" in row:
            lines.append(
                f"| {row['name']} | {row['path']} | {row['median']:.4f} ± {row['spread']:.4f} "
                f"| {row['fraction']:.0%} | {row['naive_ratio']:.1f} | {row['gemm_ratio']:.2f} |"
            )
    pooled = [row for row in report["kernels"] if "two_launches_ratio" in row]
    if pooled:
        lines += [
            "",
            "Bias, square and 2 x 2 sum pool in the convolution's launch, against a launch of its own for the pool:",
            "",
            "| layer | one launch, ms | of its floor | two launches, ms | ratio |",
            "|---|---:|---:|---:|---:|",
        ]
    for row in pooled:
        lines.append(
            f"| {row['name']} | {row['median']:.4f} ± {row['spread']:.4f} | {row['fraction']:.0%} "
            f"| {row['two_launches']:.4f} | {row['two_launches_ratio']:.2f} |"
        )
    lines += [
        "",
        "The demo network: the CUDA graph alone, a request from and to device memory, and one from and to host memory:",
        "",
        "| request | graph, ms | device, ms | host, ms | images/s on the device |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in report["network"]:
        if row["axis"] == "batch":
            replay = f"{row['replay']['median']:.4f}" if "replay" in row else ""
            lines.append(
                f"| {row['name']} | {replay} | {row['resident']['median']:.3f} | {row['staged']['median']:.3f} | "
                f"{row['images_per_second']:,.0f} |"
            )
    missed = [row for row in report["targets"] if not row["met"]]
    if missed:
        lines += ["", "Short of what was aimed at: "]
        lines[-1] += "; ".join(f"{r['name']} {r['measured']:.3g} (aim {r['target']:.3g})" for r in missed) + "."
    return lines
