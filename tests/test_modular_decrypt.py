"""Decryption, correction of damaged limbs, and exact scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.errors import DecryptionError
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.decrypt import correct, decrypt_integers, to_scores, true_lanes
from mcfhe.modular.params import draw_primes

GUARD_BITS = 32


def primes(count: int, bits: int = 30) -> tuple[int, ...]:
    return tuple(
        itertools.islice(
            draw_primes(RandomStream(count.to_bytes(16, "big") + bits.to_bytes(16, "big")), bits, 2), count
        )
    )


def residues_of(values: Sequence[int], moduli: Sequence[int]) -> np.ndarray:
    return np.array([[v % b for v in values] for b in moduli], np.int64)


def largest_bound(moduli: Sequence[int], needed: int, guard_bits: int = GUARD_BITS) -> int:
    """The largest bound with product of the ``needed`` smallest > 2 * bound * 2**guard."""
    return (math.prod(sorted(moduli)[:needed]) - 1) // (2 << guard_bits)


def below(bound: int, rng: np.random.Generator) -> int:
    """Some integer in -bound..bound, ends included now and then."""
    if rng.integers(4) == 0:
        return int(rng.choice([-1, 1])) * bound
    return int.from_bytes(rng.bytes(bound.bit_length() // 8 + 9), "little") % (2 * bound + 1) - bound


class TestTrueLanes:
    def test_takes_the_position_of_each_limb(self) -> None:
        residues = np.arange(3 * 2 * 8).reshape(3, 2, 8)
        picked = true_lanes(residues, (1, 3, 0), 4)
        assert picked.shape == (3, 2, 2)
        for p, w in enumerate((1, 3, 0)):
            for image in range(2):
                assert np.array_equal(picked[p, :, image], residues[p, :, image * 4 + w])


class TestScores:
    def test_nine_thousand_bits(self) -> None:
        value, denominator = 3**5676, 16**8 << 8950
        assert 9000 > value.bit_length() > 8990
        scores = to_scores([[value, -value, 0, 1]], denominator, 4)
        assert scores.dtype == np.float64
        assert scores.tolist() == [
            [float(Fraction(value, denominator)), -float(Fraction(value, denominator)), 0.0, 0.0]
        ]

    @settings(deadline=None)
    @given(st.integers(-(2**400), 2**400), st.integers(0, 40), st.integers(0, 1200), st.sampled_from([1, 3, 10, 16]))
    def test_correctly_rounded(self, value: int, t: int, k: int, amplification: int) -> None:
        """The float is nearest to the exact quotient, ties to even; checked with exact fractions."""
        denominator = amplification**t << k
        score = float(to_scores([[value]], denominator, 1)[0, 0])
        exact = Fraction(value, denominator)
        error = abs(Fraction(score) - exact)
        for neighbour in (math.nextafter(score, math.inf), math.nextafter(score, -math.inf)):
            gap = abs(Fraction(neighbour) - exact)
            assert error < gap or (error == gap and score.hex().split("p")[0][-1] in "02468ace.")

    def test_ties_to_even_and_overflow(self) -> None:
        assert to_scores([[2**53 + 1, 2**53 + 3, 2**2000, -(2**2000)]], 1, 4).tolist() == [
            [2.0**53, 2.0**53 + 4, math.inf, -math.inf]
        ]

    def test_shape_of_nothing(self) -> None:
        assert to_scores([], 16, 10).shape == (0, 10)


class TestCorrect:
    @pytest.mark.parametrize("redundancy", [0, 1, 2, 3, 4, 5])
    @pytest.mark.parametrize("needed", [1, 2, 5])
    def test_every_pattern_within_the_redundancy(self, needed: int, redundancy: int) -> None:
        rng = np.random.default_rng(needed * 10 + redundancy)
        moduli = primes(needed + redundancy)
        bound = max(0, largest_bound(moduli, needed))
        for missing in range(redundancy + 1):
            for wrong in range((redundancy - missing) // 2 + 1):
                for _ in range(4):
                    order = rng.permutation(len(moduli))
                    kept, damaged = sorted(order[missing:].tolist()), order[missing : missing + wrong].tolist()
                    values = [below(bound, rng) if bound else 0 for _ in range(5)]
                    residues = residues_of(values, moduli)
                    for p in damaged:
                        hit = rng.random(5) < 0.6
                        hit[rng.integers(5)] = True
                        residues[p, hit] = (residues[p, hit] + rng.integers(1, moduli[p])) % moduli[p]
                    found, located = correct(residues[kept], [moduli[p] for p in kept], bound, needed)
                    assert found == values
                    assert [kept[i] for i in located] == sorted(damaged)

    @pytest.mark.parametrize("guard_bits", [0, 32])
    @pytest.mark.parametrize("side", ["largest", "smallest"])
    def test_moduli_of_very_different_sizes(self, side: str, guard_bits: int) -> None:
        """Damage in the largest limbs outweighs rational reconstruction alone; erasing large limbs finds it."""
        small, large = primes(8, 10), primes(4, 31)
        moduli = tuple(sorted(small + large))
        needed, wrong = 8, 2
        bound = largest_bound(moduli, needed, guard_bits)
        assert bound > 0
        damaged = range(len(moduli) - wrong, len(moduli)) if side == "largest" else range(wrong)
        rng = np.random.default_rng(3)
        for _ in range(20):
            values = [below(bound, rng) for _ in range(3)]
            residues = residues_of(values, moduli)
            for p in damaged:
                residues[p] = (residues[p] + rng.integers(1, moduli[p], 3)) % moduli[p]
            found, located = correct(residues, moduli, bound, needed)
            assert found == values
            assert located == list(damaged)

    def test_without_guard_every_pair_of_values_and_limbs(self) -> None:
        """Tiny basis, bound as large as it may be: all values, all single damages, exhaustively."""
        moduli, needed = (7, 11, 13, 17), 2
        bound = largest_bound(moduli, needed, 0)
        for value in range(-bound, bound + 1):
            clean = residues_of([value], moduli)
            for p, b in enumerate(moduli):
                for shift in range(1, b):
                    residues = clean.copy()
                    residues[p, 0] = (residues[p, 0] + shift) % b
                    assert correct(residues, moduli, bound, needed) == ([value], [p])

    def test_adversary_moves_towards_another_value(self) -> None:
        """The damaged limbs all agree on another value within the bound, in every score: as misleading as it gets."""
        rng = np.random.default_rng(7)
        moduli, needed, wrong = primes(12), 6, 3
        bound = largest_bound(moduli, needed)
        for _ in range(10):
            values, others = ([below(bound, rng) for _ in range(4)] for _ in range(2))
            residues, lie = residues_of(values, moduli), residues_of(others, moduli)
            damaged = sorted(rng.permutation(12)[:wrong].tolist())
            residues[damaged] = lie[damaged]
            assert correct(residues, moduli, bound, needed) == (values, damaged)

    def test_adversary_beyond_the_redundancy_with_most_limbs(self) -> None:
        """No decoder can tell when most limbs lie consistently: the lie is what the residues say."""
        moduli, needed = primes(8), 4
        values, others = [5, -6], [70, 80]
        residues, lie = residues_of(values, moduli), residues_of(others, moduli)
        residues[:6] = lie[:6]
        assert correct(residues, moduli, largest_bound(moduli, needed), needed) == (others, [6, 7])

    @pytest.mark.parametrize("redundancy", [0, 1, 2, 3, 4])
    def test_one_more_than_can_be_corrected_is_always_refused(self, redundancy: int) -> None:
        """2**guard > max(b): one damaged limb more than (r + 1) // 2 allows is still detected for certain."""
        rng = np.random.default_rng(redundancy)
        moduli, needed = primes(4 + redundancy), 4
        bound = largest_bound(moduli, needed)
        wrong = redundancy // 2 + 1
        for _ in range(30):
            values = [below(bound, rng) for _ in range(3)]
            residues = residues_of(values, moduli)
            for p in rng.permutation(len(moduli))[:wrong].tolist():
                residues[p, rng.integers(3)] += 1
            with pytest.raises(DecryptionError, match="no label is returned"):
                correct(residues % np.array(moduli)[:, None], moduli, bound, needed)

    def test_damage_in_different_limbs_of_different_scores_adds_up(self) -> None:
        """Each score alone could be corrected; together they name more limbs than the redundancy spares."""
        moduli, needed = primes(6), 4
        bound = largest_bound(moduli, needed)
        residues = residues_of([1, 2, 3], moduli)
        residues[0, 0] += 5
        assert correct(residues, moduli, bound, needed) == ([1, 2, 3], [0])
        residues[1, 2] += 5
        with pytest.raises(DecryptionError):
            correct(residues, moduli, bound, needed)

    def test_random_damage_everywhere_is_refused(self) -> None:
        moduli, needed = primes(10), 6
        residues = RandomStream.from_os().uniform_residues(moduli, (5,))
        with pytest.raises(DecryptionError):
            correct(residues, moduli, largest_bound(moduli, needed), needed)

    def test_too_few_limbs(self) -> None:
        moduli = primes(5)
        with pytest.raises(DecryptionError, match="only 3 usable limbs arrived and 4 are needed"):
            correct(residues_of([1], moduli[:3]), moduli[:3], 9, 4)

    def test_just_outside_the_bound(self) -> None:
        moduli = primes(4)
        bound = largest_bound(moduli, 4)
        assert correct(residues_of([bound, -bound], moduli), moduli, bound, 4) == ([bound, -bound], [])
        for value in (bound + 1, -bound - 1):
            with pytest.raises(DecryptionError):
                correct(residues_of([0, value], moduli), moduli, bound, 4)

    def test_bound_of_zero(self) -> None:
        moduli = primes(4)
        residues = residues_of([0, 0], moduli)
        residues[2, 1] = 9
        assert correct(residues, moduli, 0, 2) == ([0, 0], [2])

    def test_three_hundred_limbs(self) -> None:
        rng = np.random.default_rng(11)
        moduli, needed = primes(300), 280
        bound = largest_bound(moduli, needed)
        values = [below(bound, rng) for _ in range(10)]
        residues = residues_of(values, moduli)
        damaged = sorted(rng.permutation(300)[:10].tolist())
        for p in damaged:
            residues[p] = rng.integers(0, moduli[p], 10)
        assert correct(residues, moduli, bound, needed) == (values, damaged)

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_composite_and_uneven_moduli(self, data: st.DataObject) -> None:
        pool = [4, 9, 25, 7, 121, 13, 17 * 19, 2**16 + 1, 2**30 - 35, 2**31 - 1]
        moduli = data.draw(st.lists(st.sampled_from(pool), min_size=2, unique=True))
        redundancy = data.draw(st.integers(0, len(moduli) - 1))
        bound = largest_bound(moduli, len(moduli) - redundancy, 0)
        values = data.draw(st.lists(st.integers(-bound, bound), min_size=1, max_size=4))
        missing = data.draw(st.integers(0, redundancy))
        order = data.draw(st.permutations(range(len(moduli))))
        kept = sorted(order[missing:])
        damaged = order[missing : missing + data.draw(st.integers(0, (redundancy - missing) // 2))]
        residues = residues_of(values, moduli)
        for p in damaged:
            residues[p] = data.draw(st.lists(st.integers(0, moduli[p] - 1), min_size=len(values), max_size=len(values)))
        found, located = correct(residues[kept], [moduli[p] for p in kept], bound, len(moduli) - redundancy)
        assert found == values
        assert {kept[i] for i in located} <= set(damaged)


class TestDecryptIntegers:
    LANES, LABELS, BATCH, REDUNDANCY = 3, 4, 2, 3

    def setup_method(self) -> None:
        rng = np.random.default_rng(17)
        self.moduli = primes(8)
        self.bound = largest_bound(self.moduli, 5)
        self.positions = tuple(rng.integers(0, self.LANES, 8).tolist())
        self.values = [[below(self.bound, rng) for _ in range(self.LABELS)] for _ in range(self.BATCH)]
        shape = (self.LABELS, self.BATCH, self.LANES)
        residues = RandomStream.from_os().uniform_residues(self.moduli, shape)
        for p, (b, w) in enumerate(zip(self.moduli, self.positions, strict=True)):
            residues[p, :, :, w] = np.array([[v % b for v in row] for row in self.values]).T
        self.residues = residues.reshape(8, self.LABELS, -1)

    def decrypt(self, residues: np.ndarray, limbs: Sequence[int] = range(8)) -> list[list[int]]:
        return decrypt_integers(
            residues,
            list(limbs),
            moduli=self.moduli,
            positions=self.positions,
            lanes=self.LANES,
            redundancy=self.REDUNDANCY,
            bound=self.bound,
        )

    def test_clean(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.decrypt(self.residues) == self.values
        assert caplog.text == ""

    def test_missing_and_damaged(self, caplog: pytest.LogCaptureFixture) -> None:
        kept = [0, 1, 2, 4, 5, 6, 7]
        self.residues[6] = 0
        assert self.decrypt(self.residues[kept], kept) == self.values
        assert "1 of 8 limbs missing, 1 damaged and corrected" in caplog.text

    @pytest.mark.parametrize("value", [-1, -(2**63), 2**31, 2**63 - 1])
    @pytest.mark.parametrize("lane", range(3))
    def test_out_of_range_counts_as_missing_in_any_lane(self, value: int, lane: int) -> None:
        self.residues[2, 1, lane] = value
        self.residues[5, 0, 3 + lane] = value
        self.residues[7, 3, lane] = value
        assert self.decrypt(self.residues) == self.values
        self.residues[0, 0, lane] = value
        with pytest.raises(DecryptionError, match="only 4 usable limbs arrived and 5 are needed"):
            self.decrypt(self.residues)

    def test_damage_in_decoys_changes_nothing(self) -> None:
        for p, w in enumerate(self.positions):
            lanes = self.residues[p].reshape(self.LABELS, self.BATCH, self.LANES)
            for decoy in set(range(self.LANES)) - {w}:
                lanes[:, :, decoy] = 0
        assert self.decrypt(self.residues) == self.values

    def test_no_limbs(self) -> None:
        with pytest.raises(DecryptionError, match="only 0 usable"):
            self.decrypt(self.residues[:0], [])

    def test_messages_show_no_position(self) -> None:
        self.positions = (2,) * 8
        with pytest.raises(DecryptionError) as caught:
            self.decrypt(RandomStream.from_os().uniform_residues(self.moduli, (self.LABELS, self.BATCH * self.LANES)))
        assert "position" not in str(caught.value)
        assert "lane" not in str(caught.value)
