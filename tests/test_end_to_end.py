"""The whole scheme: train or load, compile, encrypt, evaluate, decrypt, and compare every integer with the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mcfhe
from benchmarks import render_audit
from mcfhe.cli import run
from mcfhe.datasets import SAMPLE, Dataset
from mcfhe.train import train
from tests.dataset_support import data_folder


def classify(
    program: mcfhe.Program, client: mcfhe.Client, images: torch.Tensor, server: mcfhe.Server | None = None
) -> np.ndarray:
    """Labels decrypted from bytes that went there and back; every integer is checked on the way."""
    request, integers = client.encrypt(images, return_integers=True)
    server = server or mcfhe.Server(program)
    response = server.evaluate(mcfhe.Request.from_bytes(request.to_bytes()))
    decrypted = client.decrypt_integers(mcfhe.Response.from_bytes(response.to_bytes()))
    assert decrypted == program.evaluate_integers(integers, request.profile)
    return client.decrypt(response).argmax(dim=1).numpy()


def compile_trained(model: torch.nn.Module) -> mcfhe.Program:
    card = model.mcfhe_metadata
    return mcfhe.compile(
        model,
        input_shape=card.input_shape,
        mean=card.mean,
        std=card.std,
        labels=card.labels,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def fashion() -> tuple[mcfhe.Program, Dataset]:
    return compile_trained(mcfhe.models.lenet(pretrained="fashion-mnist")), mcfhe.datasets.load(
        SAMPLE, "test", limit=40
    )


@pytest.mark.parametrize("profile", ["patent", "hardened"])
@pytest.mark.parametrize("lanes", [1, 4, 7])
def test_fashion_mnist_labels_equal_the_quantised_network(
    fashion: tuple[mcfhe.Program, Dataset], profile: str, lanes: int
) -> None:
    program, sample = fashion
    client = mcfhe.Client.generate(program.client_spec(), lanes=lanes, profile=profile, noise=0)
    labels = classify(program, client, sample.images)
    assert labels.tolist() == np.asarray(program.evaluate_plain(sample.images)).argmax(axis=1).tolist()
    assert (labels == sample.labels.numpy()).mean() >= 0.8


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_the_largest_noise_is_exact_too(fashion: tuple[mcfhe.Program, Dataset], profile: str) -> None:
    program, sample = fashion
    noise = program.client_spec().profile(profile).max_noise
    client = mcfhe.Client.generate(program.client_spec(), profile=profile, noise=noise)
    classify(program, client, sample.images[:5])


@given(user_key=st.binary(min_size=1, max_size=40), pixels=st.integers(0, 255), lanes=st.integers(1, 6))
@settings(max_examples=8, deadline=None)
def test_any_key_and_constant_image(
    fashion: tuple[mcfhe.Program, Dataset], user_key: bytes, pixels: int, lanes: int
) -> None:
    program, _ = fashion
    client = mcfhe.Client.generate(program.client_spec(), lanes=lanes, user_key=user_key * 16)
    classify(program, client, torch.full((1, 1, 28, 28), pixels, dtype=torch.uint8))


def test_one_damaged_residue_is_refused(fashion: tuple[mcfhe.Program, Dataset]) -> None:
    program, sample = fashion
    client = mcfhe.Client.generate(program.client_spec())
    response = mcfhe.Server(program).evaluate(client.encrypt(sample.images[:2]))
    for limb, position in enumerate(client.secret_key.positions):
        residues = response.residues.clone()
        b = client.evaluation_key.moduli[limb]
        residues[limb, 3, client.secret_key.lanes + position] = (
            residues[limb, 3, client.secret_key.lanes + position] + 1
        ) % b
        damaged = mcfhe.Response.for_request(client.encrypt(sample.images[:2]), residues)
        with pytest.raises(mcfhe.McfheError, match="bound"):
            client.decrypt(damaged)


def test_redundancy_survives_a_lost_and_a_damaged_limb(fashion: tuple[mcfhe.Program, Dataset]) -> None:
    program, sample = fashion
    client = mcfhe.Client.generate(program.client_spec(), redundancy=3)
    request, integers = client.encrypt(sample.images[:3], return_integers=True)
    response = mcfhe.Server(program).evaluate(request)
    residues = response.residues[1:].clone()  # limb 0 is lost
    residues[4] = torch.randint(0, client.evaluation_key.moduli[5], residues[4].shape)  # limb 5 is garbage
    partial = mcfhe.Response.for_request(request, residues, limbs=tuple(range(1, len(client.evaluation_key.moduli))))
    assert client.decrypt_integers(partial) == program.evaluate_integers(integers, request.profile)


def test_a_key_for_a_smaller_program_is_refused(fashion: tuple[mcfhe.Program, Dataset]) -> None:
    program, sample = fashion
    client = mcfhe.Client.generate(program.client_spec(), profile="patent")
    request = client.encrypt(sample.images[:1])
    few = mcfhe.EvaluationKey(tuple(client.evaluation_key.moduli)[:5], 16, 256)
    small = mcfhe.Request(
        request.ciphertext[:5], request.public_key[:5], few, request.program_id, request.lanes, "patent"
    )
    with pytest.raises(mcfhe.errors.CapacityError, match=r"148|149|150"):
        mcfhe.Server(program).evaluate(small)
    for name, key in {
        "amplification is 8": mcfhe.EvaluationKey(tuple(client.evaluation_key.moduli), 8, 256),
        "scale is 128": mcfhe.EvaluationKey(tuple(client.evaluation_key.moduli), 16, 128),
    }.items():
        other = mcfhe.Request(request.ciphertext, request.public_key, key, request.program_id, request.lanes, "patent")
        with pytest.raises(mcfhe.McfheError, match=name):
            mcfhe.Server(program).evaluate(other)


def test_residues_out_of_range_are_refused(fashion: tuple[mcfhe.Program, Dataset]) -> None:
    program, sample = fashion
    client = mcfhe.Client.generate(program.client_spec())
    request = client.encrypt(sample.images[:1])
    request.ciphertext[2, 0, 5, 5, 1] = client.evaluation_key.moduli[2]
    with pytest.raises(mcfhe.McfheError, match="1 of"):
        mcfhe.Server(program).evaluate(request)


def test_a_program_survives_a_round_trip(fashion: tuple[mcfhe.Program, Dataset], tmp_path: Path) -> None:
    program, sample = fashion
    program.save(tmp_path / "p")
    loaded = mcfhe.load_program(tmp_path / "p")
    assert loaded.program_id == program.program_id
    client = mcfhe.Client.generate(program.client_spec(), noise=0)
    response = mcfhe.Server(loaded).evaluate(client.encrypt(sample.images[:2]))
    assert (
        client.decrypt(response).argmax(dim=1).tolist()
        == np.asarray(program.evaluate_plain(sample.images[:2])).argmax(axis=1).tolist()
    )


def test_more_images_than_a_tile_holds(fashion: tuple[mcfhe.Program, Dataset]) -> None:
    program, sample = fashion
    client = mcfhe.Client.generate(program.client_spec())
    request = client.encrypt(sample.images)
    whole = mcfhe.Server(program, tile_bytes=1 << 30).evaluate(request).residues
    assert torch.equal(mcfhe.Server(program, tile_bytes=1 << 18).evaluate(request).residues, whole)


def test_colour_images_through_a_residual_block() -> None:
    """Real CIFAR-10 images: three channels, a skip connection whose branches have different orders."""
    path = data_folder("cifar10/cifar10-jpeg.tar.xz")
    images = mcfhe.datasets.load(path, "test", limit=6)
    torch.manual_seed(3)
    model = mcfhe.models.resnet_tiny().eval()
    program = mcfhe.compile(model, input_shape=(3, 32, 32), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    for profile in ("patent", "hardened"):
        client = mcfhe.Client.generate(program.client_spec(), lanes=2, profile=profile)
        classify(program, client, images.images)


def test_chest_x_rays_train_and_classify_encrypted() -> None:
    path = data_folder("pneumoniamnist.npz")
    splits = mcfhe.datasets.load(path, "train"), mcfhe.datasets.load(path, "test")
    result = train("lenet", splits, epochs=3, seed=1, progress=False)
    assert result.test_accuracy > 0.7
    program = compile_trained(result.model)
    client = mcfhe.Client.generate(program.client_spec(), noise=0)
    images, truth = splits[1].images[:100], splits[1].labels[:100].numpy()
    labels = classify(program, client, images)
    plain = np.asarray(program.evaluate_plain(images)).argmax(axis=1)
    assert labels.tolist() == plain.tolist()
    assert (labels == truth).mean() > 0.6


def test_demo_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    assert run(["demo", "--images", "60", "--picture", str(picture), "--json", "--quiet"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["images"] == 60
    assert body["mismatches"] == 0
    assert body["encrypted_accuracy"] == body["quantised_accuracy"] > 0.8
    assert body["profile"] == "patent"
    beside = body["hardened"]
    assert (beside["profile"], beside["images"], beside["mismatches"]) == ("hardened", 60, 0)
    assert beside["encrypted_accuracy"] > 0.8
    committed = json.loads(render_audit.RESULTS.read_text("utf-8"))["attacks"]
    for run_of in (body, beside):
        found = {row["attack"]: row["outcome"] for row in run_of["audit"]["attacks"] if row["outcome"] != "skipped"}
        assert run_of["audit"]["images"] == 10
        assert found == {
            row["attack"]: row["outcome"]
            for row in committed
            if (row["set"], row["profile"]) == ("default", run_of["profile"]) and row["attack"] in found
        }
    assert beside["limbs"] < body["limbs"]
    assert beside["bytes_up"] < body["bytes_up"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_seven_activations_and_hundreds_of_limbs_stay_exact() -> None:
    """resnet7 on small images: orders of a^128, residual sums across degrees, integers of thousands of bits."""
    torch.manual_seed(0)
    model = mcfhe.models.resnet7(image_size=8).eval()
    program = mcfhe.compile(model, (3, 8, 8), 0.5, 0.25, scale_bits=14, amplification_bits=12, passes="default")
    client = mcfhe.Client.generate(program.client_spec(), lanes=2, profile="hardened")
    assert len(client.evaluation_key.moduli) > 200
    assert program.integer_program("hardened").output_order.t == 128
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    classify(program, client, images)
