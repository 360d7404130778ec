"""Makes the vectors in this folder: ``python -m tests.vectors.make_vectors``. Same code, same bytes.

Keys follow from a user key; the decoys, noise and request ids, otherwise drawn by the operating system, come from a
fixed keystream here and only here. Only the program's weights depend on torch (its import), and they are exact
in the committed file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from torch import nn

import mcfhe
from mcfhe.modular import encrypt, keys
from mcfhe.modular.csprng import RandomStream

HERE = Path(__file__).parent
USER_KEY = bytes(range(32))
SALT = b"mcfhe vectors v1"
LANES = 3


class Recorded(RandomStream):
    """A stream that keeps what it gave out, for implementations that want to draw the same."""

    made: ClassVar[dict[bytes, Recorded]] = {}  # by purpose

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed)
        self.given = bytearray()

    @classmethod
    def from_key(cls, key: bytes, salt: bytes, info: bytes) -> Recorded:
        stream = super().from_key(key, salt, info)
        assert isinstance(stream, Recorded)
        cls.made[info.split(b"/")[3]] = stream
        return stream

    def random_bytes(self, size: int) -> np.ndarray:
        out = super().random_bytes(size)
        self.given += out.tobytes()
        return out


class Tiny(nn.Module):
    """conv 1->2 2x2, square, linear 18->3 on 4x4 images; weights are multiples of 1/16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 2, 2), nn.Linear(18, 3)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                values = (torch.arange(parameter.numel()) * 7 + number) % 31 - 15
                parameter.copy_(values.reshape(parameter.shape) / 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        scores: torch.Tensor = self.linear(torch.flatten(y * y, 1))
        return scores


def make(folder: Path) -> None:
    """Write every vector into ``folder``."""
    program = mcfhe.compile(
        Tiny().eval(), (1, 4, 4), mean=0.5, std=0.5, scale_bits=4, amplification_bits=4, labels=("cat", "dog", "ship")
    )
    program.save(folder / "program.mcfhe")
    (folder / "spec.json").write_text(program.client_spec().to_json())
    images = (np.arange(32, dtype=np.uint8) * 37 + 11).reshape(2, 1, 4, 4)
    server, cases = mcfhe.Server(program), {}
    for profile in ("patent", "hardened"):
        with mock.patch.object(keys, "RandomStream", Recorded):
            client = mcfhe.Client.generate(
                program.client_spec(), LANES, profile, redundancy=1, user_key=USER_KEY, salt=SALT
            )
        stream = Recorded.from_key(USER_KEY, SALT, b"mcfhe/test-vectors/1/" + profile.encode())
        request_id = hashlib.sha256(profile.encode()).hexdigest()[:32]
        with mock.patch.object(encrypt.RandomStream, "from_os", return_value=stream):
            request, integers = client.encrypt(images, return_integers=True)
        object.__setattr__(request, "request_id", request_id)
        response = server.evaluate(request)
        files = {
            "evaluation-key": client.evaluation_key.to_bytes(),
            "request": request.to_bytes(),
            "keyed-request": request.to_bytes(embed_key=False),
            "response": response.to_bytes(),
        }
        for name, data in files.items():
            (folder / f"{profile}.{name}").write_bytes(data)
        drawn = {"moduli": b"moduli", "positions": b"positions", "encrypt": profile.encode()}
        cases[profile] = _describe(client, integers, client.decrypt_integers(response), request_id) | {
            "scores": client.decrypt(response).tolist(),
            "random_hex": {name: Recorded.made[purpose].given.hex() for name, purpose in drawn.items()},
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
    body = {
        "format": "mcfhe/test-vectors",
        "version": 1,
        "program_id": program.program_id,
        "spec_sha256": program.client_spec().digest(),
        "user_key_hex": USER_KEY.hex(),
        "salt_hex": SALT.hex(),
        "images": images.tolist(),
        "profiles": cases,
    }
    (folder / "vectors.json").write_text(json.dumps(body, indent=1) + "\n")


def _describe(client: mcfhe.Client, integers: Any, scores: list[list[int]], request_id: str) -> dict[str, Any]:
    key, order = client.secret_key, client.profile.output_order
    return {
        "key_id": key.key_id,
        "request_id": request_id,
        "moduli": list(key.moduli),
        "positions": list(key.positions),
        "lanes": key.lanes,
        "noise": key.noise,
        "redundancy": key.redundancy,
        "amplification": key.amplification,
        "scale": key.scale,
        "input_integers": [[str(v) for v in image.ravel()] for image in integers],
        "output_order": [order.t, order.k],
        "score_integers": [[str(v) for v in row] for row in scores],
    }


if __name__ == "__main__":
    make(HERE)
