"""``mcfhe train`` and ``mcfhe compile``: from images to a program file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mcfhe.cli.common import (
    data_option,
    json_option,
    only_of_scheme,
    out_option,
    print_json,
    quiet_option,
    scheme_option,
    stdout,
)
from mcfhe.errors import ParameterError
from mcfhe.spec import DEFAULT_PROFILE, PROFILES

PRETRAINED_SEPARATOR = ":"


def _use_recipe(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """The recipe's values become the defaults of the other options."""
    if name is None:
        return
    from mcfhe.train.recipes import RECIPES

    if name not in RECIPES:
        raise ParameterError(f"--recipe {name!r}; choose one of {', '.join(RECIPES)}")
    context.default_map = dict(RECIPES[name])


@click.command()
@out_option("model (safetensors)")
@click.option(
    "--recipe",
    is_eager=True,
    expose_value=False,
    callback=_use_recipe,
    help="Defaults of a shipped model, for example lenet-mnist; other options still change them.",
)
@click.option(
    "--dataset",
    default="fashion-mnist",
    show_default=True,
    help="fashion-mnist, mnist, or a folder, tar or npz of your own.",
)
@click.option("--arch", default="lenet", show_default=True, help="An architecture of mcfhe.models.ARCHITECTURES.")
@click.option("--epochs", default=40, show_default=True, help="Passes over the training images.")
@click.option("--seed", default=0, show_default=True, help="Of weights, order and augmentation.")
@click.option("--lr", default=4e-3, show_default=True, help="Peak learning rate.")
@click.option("--batch-size", default=256, show_default=True, help="Images in a step.")
@click.option("--augment", default="shift", show_default=True, help="How images are changed: none, shift, affine, ...")
@click.option("--weight-decay", default=0.1, show_default=True, help="Decoupled weight decay.")
@click.option("--validation", default=0, show_default=True, help="Training images held out, scored every epoch.")
@click.option("--balance", is_flag=True, help="Weight classes by inverse frequency.")
@click.option("--activation", default="poly", show_default=True, help="poly or square.")
@click.option("--grid-bits", default=8, show_default=True, help="Snap weights to multiples of 2**-bits; 0: do not.")
@click.option("--label-smoothing", default=0.0, show_default=True, help="Share of a target spread over all classes.")
@click.option("--range-penalty", default=0.0, show_default=True, help="Weight of a loss on large activation inputs.")
@click.option("--precision", default="float32", show_default=True, help="float32, or bfloat16 for large convolutions.")
@click.option("--initial", type=click.Path(path_type=Path), help="Go on from this model, without batch norm.")
@click.option("--limit", type=int, help="Use only so many images of either split.")
@data_option
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for the training.")
@quiet_option
@json_option
def train(
    out: Path,
    dataset: str,
    arch: str,
    epochs: int,
    seed: int,
    lr: float,
    batch_size: int,
    augment: str,
    weight_decay: float,
    validation: int,
    balance: bool,
    activation: str,
    grid_bits: int,
    label_smoothing: float,
    range_penalty: float,
    precision: str,
    initial: Path | None,
    limit: int | None,
    data: Path | None,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a network with average pooling and polynomial activations (S1) and save its weights."""
    from mcfhe import models
    from mcfhe.train import train as fit

    if not out.parent.is_dir():  # before minutes of training, not after
        raise ParameterError(f"--out {out}: the folder {out.parent} is not there; create it first")
    result = fit(
        arch,
        dataset,
        epochs,
        seed,
        lr,
        batch_size,
        data,
        progress=not (quiet or as_json),
        augment=augment,
        weight_decay=weight_decay,
        validation=validation,
        balance=balance,
        activation=activation,
        grid_bits=grid_bits,
        limit=limit,
        device=device,
        label_smoothing=label_smoothing,
        range_penalty=range_penalty,
        precision=precision,
        initial=initial,
    )
    models.save(result.model, out, result.card)
    if as_json:
        print_json({"out": str(out), "test_accuracy": result.test_accuracy, "epochs": len(result.history)})
    else:
        stdout.print(f"{out}: {arch} on {dataset}, test accuracy {result.test_accuracy:.2%}", markup=False)


@click.command("compile")
@click.argument("model")
@out_option("program")
@click.option("--spec", type=click.Path(path_type=Path), help="Also write the client spec (JSON), for clients.")
@click.option("--scale-bits", default="8", show_default=True, help="log2 of the scale Delta, or auto: search for it.")
@click.option(
    "--passes", default="default", show_default=True, help="default, letter (the patent's plan) or names with commas."
)
@click.option("--weight-bits", metavar="LAYER=BITS", multiple=True, help="Scale of one layer; may be repeated.")
@click.option("--calibrate", metavar="DATASET", help="For auto: agree with the model on these images.")
@click.option(
    "--calibration-images", default=1000, show_default=True, type=click.IntRange(1), help="So many, also for --refresh."
)
@click.option("--split", default="train", show_default=True, help="Split of the calibration images: train or test.")
@click.option("--tolerance", default=0.001, show_default=True, help="For auto: share of labels that may differ.")
@data_option
@click.option("--amplification-bits", default="4", show_default=True, help="log2 of the amplification a, or auto.")
@click.option("--modulus-bits", default="30", show_default=True, help="Width of the clients' primes, or auto.")
@click.option("--guard-bits", default=32, show_default=True, help="Spare bits above the proved bound.")
@scheme_option("modular: fast, no semantic security; lattice: RNS-CKKS.")
@click.option("--precision-bits", default=12, show_default=True, help="lattice: noise stays below 2^-bits of a unit.")
@click.option("--degree", type=int, help="lattice: ring degree; by default the least that is wide enough.")
@click.option("--bounds", default="interval", show_default=True, help="interval, or quadratic: tighter, slower.")
@click.option(
    "--profile",
    default=DEFAULT_PROFILE,
    show_default=True,
    type=click.Choice(PROFILES),
    help="For auto and --refresh: whose limbs are counted.",
)
@click.option(
    "--refresh", metavar="DATASET", help="Cut into stages (client refresh); ranges at the cuts are of these images."
)
@click.option("--cut", "cuts", metavar="LAYER", multiple=True, help="With --refresh: cut after it; may be repeated.")
@click.option("--max-limbs", type=int, help="With --refresh: as few cuts as keep every stage within so many limbs.")
@click.option("--max-degree", type=int, help="With --refresh, lattice: the same for the ring degree.")
@json_option
def compile_(
    model: str,
    out: Path,
    spec: Path | None,
    scale_bits: str,
    passes: str,
    weight_bits: tuple[str, ...],
    calibrate: str | None,
    calibration_images: int,
    split: str,
    tolerance: float,
    data: Path | None,
    amplification_bits: str,
    modulus_bits: str,
    guard_bits: int,
    scheme: str,
    precision_bits: int,
    degree: int | None,
    bounds: str,
    profile: str,
    refresh: str | None,
    cuts: tuple[str, ...],
    max_limbs: int | None,
    max_degree: int | None,
    as_json: bool,
) -> None:
    """Turn a trained network into a program of exact integer steps, with orders, alignment and certificate (S5).

    MODEL is a file of `mcfhe train`, or ARCH:DATASET for shipped weights, for example lenet:fashion-mnist.
    """
    import mcfhe
    from mcfhe import datasets
    from mcfhe.container import write_file
    from mcfhe.lattice.program import LatticeProgram

    only_of_scheme("modular", scheme, "amplification_bits", "modulus_bits", "guard_bits", "tolerance", "profile")
    only_of_scheme("lattice", scheme, "precision_bits", "degree", "max_degree")
    network = load_model(model)
    card = network.mcfhe_metadata
    if refresh is None and (cuts or max_limbs is not None or max_degree is not None):
        raise ParameterError("--cut, --max-limbs and --max-degree belong to --refresh")

    def images(dataset: str) -> Any:
        return datasets.load(dataset, split, data, limit=calibration_images).images

    program = mcfhe.compile(
        network,
        input_shape=card.input_shape,
        mean=card.mean,
        std=card.std,
        scale_bits=_number(scale_bits),
        amplification_bits=_number(amplification_bits),
        modulus_bits=_number(modulus_bits),
        guard_bits=guard_bits,
        labels=card.labels,
        passes=passes if passes in ("letter", "default") else passes.split(","),
        weight_bits=dict(map(_layer_bits, weight_bits)) or None,
        calibration=None if calibrate is None else images(calibrate),
        tolerance=tolerance,
        progress=not as_json,
        scheme=scheme,
        precision_bits=precision_bits,
        degree=degree,
        bounds=bounds,
        profile=profile,
        for_refresh=refresh is not None and calibrate is None,
    )
    if refresh is not None:
        program = mcfhe.refresh(
            program, images(refresh), list(cuts) or "auto", max_limbs, profile, max_degree=max_degree
        )
    program.save(out)
    if spec is not None:
        write_file(spec, program.client_spec().to_json().encode())
    if as_json:
        print_json({"out": str(out), "program_id": program.program_id} | _facts(program))
        return
    if getattr(program, "search", None) is not None:
        stdout.print(str(program.search), markup=False)
    stdout.print(program.summary(), markup=False)
    if isinstance(program, mcfhe.Program):
        for name in program.client_spec().profiles:
            stdout.print(str(program.cost(name)), markup=False)
    elif isinstance(program, LatticeProgram):
        stdout.print(str(program.cost()), markup=False)
    stdout.print(f"{out}: program {program.program_id[:12]}", markup=False)


def _facts(program: Any) -> dict[str, Any]:
    """What --json says of a program of any kind."""
    if hasattr(program, "stages"):
        stages = [{"program_id": stage.program_id} | _facts(stage) for stage in program.stages]
        return {"scheme": program.scheme, "cuts": list(program.cuts), "stages": stages}
    if program.scheme == "lattice":
        plan = program.plan
        return {
            "degree": plan.degree,
            "limbs": plan.limbs,
            "modulus_bits": plan.modulus_bits,
            "slots": program.slots,
            "weight_bits": program.layer_bits,
            "cost": program.cost(timed=False).to_json(),
        }
    profiles, settings = program.client_spec().profiles, program.settings
    return {
        "required_bits": {name: profile.required_bits(settings.guard_bits) for name, profile in profiles.items()},
        "order": {name: [p.output_order.t, p.output_order.k] for name, p in profiles.items()},
        "scale_bits": settings.scale_bits,
        "amplification_bits": settings.amplification_bits,
        "modulus_bits": settings.modulus_bits,
        "weight_bits": settings.layer_bits,
        "cost": {name: program.cost(name, timed=False).to_json() for name in profiles},
        "tried": None if program.search is None else len(program.search.trials),
    }


def _number(text: str) -> int | str:
    """A whole number, or a word such as auto, which compile() knows or refuses."""
    return int(text) if text.isdecimal() else text


def _layer_bits(text: str) -> tuple[str, int]:
    layer, _, bits = text.rpartition("=")
    if not layer or not bits.isdecimal():
        raise ParameterError(f"--weight-bits {text!r}: write LAYER=BITS, for example conv1=10")
    return layer, int(bits)


def load_model(name: str) -> Any:
    """A model file, or shipped weights by ``ARCH:DATASET``."""
    from mcfhe import models

    if Path(name).exists() or PRETRAINED_SEPARATOR not in name:
        return models.load(name)
    arch, dataset = name.split(PRETRAINED_SEPARATOR, 1)
    shipped = models.available_pretrained()
    if dataset not in shipped.get(arch, ()):
        known = ", ".join(f"{a}:{d}" for a, sets in shipped.items() for d in sets)
        raise ParameterError(f"model {name!r}: no such file, and shipped weights are {known}")
    return models.ARCHITECTURES[arch](pretrained=dataset)
