"""The modular basis, primes and the random stream."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import sympy
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.errors import CapacityError, ParameterError
from mcfhe.modular import csprng
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.params import Moduli, draw_primes, integer, is_prime

LARGEST = 2**31 - 1


class TestModuli:
    def test_is_an_immutable_tuple(self) -> None:
        moduli = Moduli([7, 2, 15])
        assert hash(moduli) == hash((7, 2, 15))
        assert moduli.product == 210
        assert moduli.bits == 8
        assert moduli.smallest_product(2) == 14
        assert torch.equal(moduli.as_tensor(), torch.tensor([7, 2, 15]))
        assert moduli.as_array().dtype == np.int64
        with pytest.raises(TypeError):
            moduli[0] = 3  # type: ignore[index]
        assert moduli == (7, 2, 15)

    @pytest.mark.parametrize("values", [(2,), (2, 9, 25), (LARGEST, 2), (4, 9, 35)])
    def test_accepts_edges(self, values: tuple[int, ...]) -> None:
        assert Moduli(values) == values

    @pytest.mark.parametrize(
        "values", [(), (1,), (0,), (-3,), (2**31,), (6, 35, 15), (7, 7), (2.0,), ("7",), (True, 3), (10**5000,)]
    )
    def test_refuses(self, values: tuple[object, ...]) -> None:
        with pytest.raises(ParameterError, match="moduli"):
            Moduli(values)

    @settings(deadline=None)
    @given(st.lists(st.integers(2, 400), min_size=1, max_size=6))
    def test_coprimality_agrees_with_pairs(self, values: list[int]) -> None:
        if all(math.gcd(a, b) == 1 for a, b in itertools.combinations(values, 2)):
            assert Moduli(values).product == math.prod(values)
        else:
            with pytest.raises(ParameterError, match="shares the factor"):
                Moduli(values)

    def test_coprime_to_amplification_and_scale(self) -> None:
        Moduli([2, 5]).require_coprime(9, 7)
        with pytest.raises(ParameterError, match="number 1 \\(6\\) shares the factor 2"):
            Moduli([5, 6]).require_coprime(1, 4)

    def test_capacity_names_both_bit_counts(self) -> None:
        moduli = Moduli([101, 103, 107])
        moduli.require_capacity(101 * 103 - 1, redundancy=1)
        with pytest.raises(CapacityError, match=r"hold 14 bits.*needs 14 bits"):
            moduli.require_capacity(101 * 103, redundancy=1)
        with pytest.raises(CapacityError):
            moduli.require_capacity(0, redundancy=3)

    def test_three_hundred_limbs(self) -> None:
        primes = list(itertools.islice(draw_primes(RandomStream.from_os(), 30, 2), 300))
        assert Moduli(primes).product == math.prod(primes)
        with pytest.raises(ParameterError, match="number 300"):
            Moduli([*primes, primes[150]])


class TestPrimes:
    @settings(deadline=None)
    @given(st.integers(-10, 2**32 - 1))
    def test_is_prime(self, n: int) -> None:
        assert is_prime(n) == sympy.isprime(n)

    @pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 61, 2047, 1373653, 3215031751, 4294967291, LARGEST, 2**32 - 1])
    def test_is_prime_at_known_traps(self, n: int) -> None:
        assert is_prime(n) == sympy.isprime(n)

    def test_is_prime_refuses_what_its_bases_do_not_cover(self) -> None:
        with pytest.raises(ParameterError):
            is_prime(2**32)

    @pytest.mark.parametrize("bits", [8, 12, 19, 20, 30, 31])
    def test_drawn_primes_are_distinct_and_of_the_width(self, bits: int) -> None:
        drawn = list(itertools.islice(draw_primes(RandomStream.from_os(), bits, 2), 20))
        assert len(set(drawn)) == 20
        assert all(sympy.isprime(p) and p.bit_length() == bits and type(p) is int for p in drawn)

    def test_narrow_width_yields_every_prime_once(self) -> None:
        expected = set(sympy.primerange(128, 256)) - {131}
        drawn = list(draw_primes(RandomStream.from_os(), 8, 2 * 131))
        assert len(drawn) == len(expected)
        assert set(drawn) == expected

    def test_wide_width_leaves_out_divisors(self) -> None:
        stream = bytes(32)
        first = next(draw_primes(RandomStream(stream), 30, 1))
        assert next(draw_primes(RandomStream(stream), 30, first)) != first


class TestRandomStream:
    def test_keystream_is_rfc_8439(self) -> None:
        # RFC 8439, appendix A.1, test vector 1: zero key, zero nonce, counter 0.
        expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        assert RandomStream(bytes(32)).random_bytes(32).tobytes().hex() == expected

    def test_from_key_is_hkdf(self) -> None:
        seed = HKDF(algorithm=hashes.SHA256(), length=32, salt=b"salt", info=b"info").derive(b"key")
        encryptor = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
        assert RandomStream.from_key(b"key", b"salt", b"info").random_bytes(100).tobytes() == encryptor.update(
            bytes(100)
        )

    def test_pieces_join_to_the_same_keystream(self) -> None:
        whole = RandomStream(bytes(32)).random_bytes(3_000_001)
        stream = RandomStream(bytes(32))
        parts = [stream.random_bytes(n) for n in (0, 1, 1_499_999, 1_500_001)]
        assert np.array_equal(whole, np.concatenate(parts))

    def test_takes_a_new_key_before_the_counter_wraps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(csprng, "_REKEY_BYTES", 64)
        stream = RandomStream(bytes(32))
        plain = RandomStream(bytes(32)).random_bytes(96)
        first, second = stream.random_bytes(64), stream.random_bytes(32)
        assert np.array_equal(first, plain[:64])
        assert np.array_equal(second, RandomStream(plain[64:].tobytes()).random_bytes(32))

    def test_system_streams_differ(self) -> None:
        assert RandomStream.from_os().random_bytes(16).tobytes() != RandomStream.from_os().random_bytes(16).tobytes()

    def test_is_neither_copied_nor_pickled_nor_shown(self) -> None:
        stream = RandomStream(b"canary" + bytes(26))
        for action in (copy.copy, pickle.dumps):
            with pytest.raises(TypeError):
                action(stream)
        assert "canary" not in repr(stream)

    def test_residues_against_a_plain_rejection_loop(self) -> None:
        """The order of draws is part of the format, so it is written down here a second time."""
        moduli, width = (2, 3, 2**31 - 1, 2**30 + 3), 7
        words = iter(np.frombuffer(RandomStream(bytes(range(32))).random_bytes(4 * 400).tobytes(), "<u4").tolist())
        masks = [(1 << (b - 1).bit_length()) - 1 for b in moduli]
        expected = [[next(words) & mask for _ in range(width)] for mask in masks]
        while bad := [(p, i) for p, b in enumerate(moduli) for i in range(width) if expected[p][i] >= b]:
            for p, i in bad:
                expected[p][i] = next(words) & masks[p]
        drawn = RandomStream(bytes(range(32))).uniform_residues(moduli, (width,))
        assert drawn.dtype == np.int64
        assert drawn.tolist() == expected

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.sampled_from([2, 3, 4, 255, 256, 257, 2**16, 2**30 + 3, 2**31 - 1, 2**32 - 1]), max_size=5),
        st.lists(st.integers(0, 5), max_size=3),
    )
    def test_residues_shape_and_range(self, moduli: list[int], shape: list[int]) -> None:
        drawn = RandomStream.from_os().uniform_residues(moduli, shape)
        assert drawn.shape == (len(moduli), *shape)
        for row, b in zip(drawn, moduli, strict=True):
            assert ((row >= 0) & (row < b)).all()

    @pytest.mark.parametrize("b", [2, 3, 5, 7, 11])
    def test_residues_are_uniform(self, b: int) -> None:
        draws = 60_000
        counts = Counter(RandomStream(bytes([b] * 32)).uniform_residues((b,), (draws,))[0].tolist())
        chi_square = sum((counts[v] - draws / b) ** 2 for v in range(b)) / (draws / b)
        assert chi_square < 40  # 10 degrees of freedom at most: p < 2e-5, and the seed is fixed

    @pytest.mark.parametrize("bound", [1, 2, 3, 1000, 2**32, 2**32 + 1, 2**63 - 1, 2**63])
    def test_uniform_below(self, bound: int) -> None:
        drawn = RandomStream.from_os().uniform_below(bound, (500, 2))
        assert drawn.shape == (500, 2)
        assert drawn.dtype == np.int64
        assert int(drawn.min()) >= 0
        assert int(drawn.max()) < bound
        assert bound == 1 or int(drawn.max()) >= bound // 2  # fails with probability 2^-1000 at most

    def test_refuses_bounds_out_of_range(self) -> None:
        stream = RandomStream.from_os()
        for bound in (0, -1, 2**63 + 1):
            with pytest.raises(ParameterError):
                stream.uniform_below(bound)
        for b in (1, 0, -5, 2**32):
            with pytest.raises(ParameterError):
                stream.uniform_residues((7, b), (2,))
        with pytest.raises(ParameterError, match="32 bytes"):
            RandomStream(b"short")


@pytest.mark.parametrize("value", [1.0, "3", None, True, np.bool_(True)])
def test_integer_refuses_other_types(value: object) -> None:
    with pytest.raises(ParameterError, match="lanes: an integer expected"):
        integer("lanes", value, 0, 9)


def test_integer_accepts_what_indexes() -> None:
    assert integer("lanes", np.int32(7), 0, 9) == 7
    assert type(integer("lanes", torch.tensor(7), 0, 9)) is int
