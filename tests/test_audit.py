"""The attacks on the modular scheme: exact against the patent profile, and what the hardened profile does to each."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mcfhe.errors import DecryptionError, MismatchError, ParameterError
from mcfhe.modular import audit
from mcfhe.modular.audit.fitting import chance_bits
from mcfhe.modular.audit.lattice_reduction import dimensions
from mcfhe.modular.audit.ratios import classes, rational
from mcfhe.modular.audit.tuples import Fractions, Near, Trials, search
from mcfhe.modular.crt import crt
from mcfhe.wire import Request, Response
from tests.audit_support import Case, real_images

ROOT = Path(__file__).parent.parent
PROFILES = ("patent", "hardened")
# What opens every image, and gives all positions too, in each profile. 'reaction' needs a client and has its own tests.
PIXELS = {
    "patent": {"ratio", "quotient", "position", "constant", "small-value", "lattice", "statistics"},
    "hardened": {"ratio", "constant", "small-value", "lattice", "statistics"},
}


@pytest.fixture(scope="module", params=PROFILES)
def default(request: pytest.FixtureRequest) -> Case:
    return Case.make(real_images(3), request.param)


@pytest.mark.parametrize("name", [n for n in audit.ATTACKS if n != "equality"])
def test_attack_is_exact_or_stopped(default: Case, name: str) -> None:
    if name == "lattice":
        pytest.importorskip("flint")
    profile = default.request.profile
    finding = default.attack(name)
    if name in PIXELS[profile]:
        assert default.whole(finding)
        assert all(image.unique for image in finding.images.values())
        assert default.all_positions(finding) or name == "quotient"
    else:
        assert finding.outcome == "inapplicable"
        assert not finding.images
        assert not finding.positions_found


def test_equality_shows_all_equal_pixels_and_is_stopped(default: Case) -> None:
    finding = default.attack("equality")
    if default.request.profile == "hardened":
        assert finding.outcome == "failed"
        return
    assert finding.structure == "equal pixels of 3/3 images"
    for index, image in enumerate(default.images):
        seen, pixels = classes(default.view(), index), image.reshape(-1)
        pairs = np.unique(np.stack([seen, pixels]), axis=1).shape[1]
        assert pairs == len(np.unique(seen)) == len(np.unique(pixels))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("lanes", "noise"), [(1, None), (1, 8), (4, 1), (4, 8), (64, None), (64, 8)])
def test_lanes_and_noise_change_nothing(profile: str, lanes: int, noise: int | None) -> None:
    case = Case.make(real_images(1), profile, lanes, limbs=5, noise=noise)
    for name in PIXELS[profile] - {"lattice"}:
        finding = case.attack(name)
        assert case.whole(finding), name
        assert case.all_positions(finding) or name == "quotient", name


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("lanes", "noise"), [(1, None), (4, 1), (16, 8), (64, None)])
def test_lattice_at_every_number_of_lanes(profile: str, lanes: int, noise: int | None) -> None:
    pytest.importorskip("flint")
    case = Case.make(real_images(1), profile, lanes, limbs=20, noise=noise)
    assert len(case.client.evaluation_key.moduli) >= 20
    finding = case.attack("lattice")
    assert case.whole(finding)
    assert case.all_positions(finding)


WIDE = {"lanes": 64, "limbs": 60, "scale_bits": 20, "amplification": 1 << 20, "modulus_bits": 11}


def test_noise_wider_than_a_limb_hides_limbs_and_not_tuples() -> None:
    """a = 2^20 with most noise: one limb of 11 bits tells nothing of its lanes, tuples of two and three do."""
    pytest.importorskip("flint")
    case = Case.make(real_images(1), "hardened", **WIDE)
    assert case.view().noise_span > max(case.client.evaluation_key.moduli)
    fewer = Case.make(real_images(1), "hardened", **{**WIDE, "lanes": 16})
    for name in ("constant", "small-value", "lattice", "statistics"):
        attacked = fewer if name in ("lattice", "statistics") else case  # the cost is that of dimension M, of M**2
        finding = attacked.attack(name)
        assert attacked.whole(finding), name
        assert attacked.all_positions(finding), name
    assert "64**3" in case.attack("small-value").detail
    assert "are not tried" in case.attack("ratio").detail


@pytest.mark.parametrize("noise", [None, 1 << 19])
def test_noise_wider_than_a_limb_in_the_patent_profile(noise: int | None) -> None:
    case = Case.make(real_images(2), "patent", noise=noise, **WIDE)
    for name in ("ratio", "position", "constant"):
        finding = case.attack(name)
        assert case.whole(finding), name
        assert case.all_positions(finding), name
    assert "too many" in case.attack("small-value").detail


def test_wrong_guesses_where_only_tuples_tell() -> None:
    case = Case.make(real_images(2), "hardened", **WIDE)
    known = case.known([(y, x) for y in range(4, 24, 2) for x in range(4, 24, 4)])
    wrong = known.copy()
    wrong[:, :, 4:10] = np.where(known[:, :, 4:10] < 0, known[:, :, 4:10], (known[:, :, 4:10] + 90) % 256)
    assert 0.2 < ((wrong != known).sum() / (known >= 0).sum()) < 0.4
    finding = audit.attack(lambda: audit.ATTACKS["constant"](case.view(wrong)))
    case.check(finding)
    assert case.whole(finding)


def test_more_requests_of_a_key_tell_more() -> None:
    """Lane positions stay while everything else is drawn anew: what one request leaves open, several settle."""
    images = real_images(6)
    case = Case.make(images[:1], "patent", 16, limbs=30, modulus_bits=10)
    alone = audit.run(case.server.spec, [case.request], attacks=["statistics"])
    assert not alone.recovered
    requests = [case.request, *(case.client.encrypt(image[None]) for image in images[1:])]
    (finding,) = audit.run(case.server.spec, requests, attacks=["statistics"]).findings
    assert sorted(finding.images) == list(range(6))
    assert all((finding.images[i].pixels == images[i].numpy()).all() for i in range(6))
    assert tuple(finding.positions) == case.client.secret_key.positions

    # PK of one image leaves lanes of 9-bit limbs that hold the same residue, in one limb surely; those of six do not.
    case = Case.make(images[:1], "patent", 64, limbs=20, modulus_bits=9, scale_bits=6)
    requests = [case.client.encrypt(image[None]) for image in images]
    truth = case.client.secret_key.positions
    for residues in (requests[0].ciphertext, requests[0].public_key):
        assert residues is not None
        residues[0, ..., (truth[0] + 1) % 64] = residues[0, ..., truth[0]]
    first, all_six = (
        audit.run(case.server.spec, requests[:number], attacks=["position"]).findings[0].positions for number in (1, 6)
    )
    assert first[0] is None
    assert all(w is None or w == t for w, t in zip(first, truth, strict=True))
    assert tuple(all_six) == truth


@pytest.mark.parametrize("profile", PROFILES)
def test_narrow_limbs_take_tuples_of_several(profile: str) -> None:
    case = Case.make(real_images(2), profile, 64, limbs=30, modulus_bits=10)
    finding = case.attack("small-value")
    assert finding.detail.startswith("M**k = 64**3" if profile == "patent" else ("M**k = 64**1", "M**k = 64**2"))
    assert case.whole(finding)
    assert case.all_positions(finding)
    assert case.whole(case.attack("statistics")) is (profile == "hardened")
    ratio = case.attack("ratio")
    assert case.whole(ratio)
    assert case.all_positions(ratio)


def only_lane(case: Case, lane: int) -> Request:
    """The request with nothing but one lane of every limb left, as if M were 1."""
    request = case.request
    assert request.public_key is not None
    return dataclasses.replace(
        request,
        ciphertext=request.ciphertext[..., lane :: request.lanes].contiguous(),
        public_key=request.public_key[..., lane :: request.lanes].contiguous(),
        lanes=1,
    )


@pytest.mark.parametrize("name", ["ratio", "quotient", "lattice"])
def test_any_lane_shows_the_image(name: str) -> None:
    if name == "lattice":
        pytest.importorskip("flint")
    case = Case.make(real_images(1), "patent", limbs=5)
    decoys = [m for m in range(4) if m not in case.client.secret_key.positions[:1]]
    for lane in decoys:
        view = audit.View.of(case.server.spec, [only_lane(case, lane)])
        # The attacks start at the widest limb; leave them the first, in which this lane is a decoy.
        view = dataclasses.replace(
            view, moduli=view.moduli[:1], ciphertext=view.ciphertext[:1], public_key=view.public_key[:1]
        )
        found = audit.ATTACKS[name](view).images
        assert (found[0].pixels == case.images[0]).all()


def test_ratio_needs_no_public_key() -> None:
    case = Case.make(real_images(1), "patent")
    noise = torch.stack([torch.randint(0, b, (4,)) for b in case.client.evaluation_key.moduli])
    case.request = dataclasses.replace(case.request, public_key=noise)
    finding = case.attack("ratio")
    assert case.whole(finding)
    assert case.all_positions(finding)
    assert case.attack("quotient").outcome == "failed"
    assert case.attack("position").outcome == "failed"


@pytest.mark.parametrize("profile", PROFILES)
def test_colour_images_and_a_table_that_is_not_one_to_one(profile: str) -> None:
    images = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    images[:, :, 2:5] = 77
    case = Case.make(images, profile, scale_bits=5)
    for name in PIXELS[profile] - {"lattice", "statistics", "constant"}:
        finding = case.attack(name)
        assert case.whole(finding), name
        assert not finding.images[0].unique
        assert "as far as the table tells" in finding.recovered(case.view())


def test_images_of_one_or_two_values_are_not_guessed() -> None:
    images = np.full((3, 1, 8, 8), 200, np.uint8)
    images[1, 0, :4] = 10
    images[2] = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    case = Case.make(torch.from_numpy(images), "patent")
    finding = case.attack("ratio")  # checks that what it claims is true
    assert 2 in finding.images
    assert 0 not in finding.images
    assert case.whole(case.attack("quotient"))
    black = Case.make(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "patent")
    for name in audit.ATTACKS:
        if name != "constant":
            black.attack(name)


@pytest.mark.parametrize("profile", PROFILES)
def test_wrong_guesses_among_known_pixels(profile: str) -> None:
    case = Case.make(real_images(3), profile)
    known = case.known([(0, 0), (14, 14), (13, 10), (20, 9), (9, 9)])
    known[0, 0, 14, 14] = (int(known[0, 0, 14, 14]) + 90) % 256
    known[2, 0, 0, 0] = 131
    finding = audit.ATTACKS["constant"](case.view(known))
    case.check(finding)
    assert case.whole(dataclasses.replace(finding, outcome="recovered"))
    wrong = np.full(case.images.shape, audit.UNKNOWN)
    wrong[:, :, 14, 14] = (case.images[:, :, 14, 14].astype(int) + 90) % 256
    assert audit.attack(lambda: audit.ATTACKS["constant"](case.view(wrong))).outcome == "failed"


@pytest.mark.parametrize("profile", PROFILES)
def test_one_image_known_opens_the_other_requests_of_its_key(profile: str) -> None:
    case = Case.make(real_images(1), profile)
    later = real_images(4)[1:]
    known = np.full((4, 1, 28, 28), audit.UNKNOWN)
    known[0] = case.images[0]
    report = audit.run(case.server.spec, [case.request, case.client.encrypt(later)], known=known, attacks=["constant"])
    (finding,) = report.findings
    assert sorted(finding.images) == [0, 1, 2, 3]
    assert all((finding.images[i + 1].pixels == later[i].numpy()).all() for i in range(3))


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_is_found_in_random_residues(profile: str) -> None:
    case = Case.make(real_images(2), profile)
    moduli = case.client.evaluation_key.moduli
    shape = tuple(case.request.ciphertext.shape[1:])
    generator = torch.Generator().manual_seed(8)
    case.request = dataclasses.replace(
        case.request,
        ciphertext=torch.stack([torch.randint(0, b, shape, generator=generator) for b in moduli]),
        public_key=None
        if profile == "hardened"
        else torch.stack([torch.randint(0, b, shape[-1:], generator=generator) for b in moduli]),
    )
    report = audit.run(case.server.spec, [case.request], known=case.known())
    assert not report.recovered, report.lines()


@pytest.mark.parametrize(("lanes", "redundancy"), [(1, 0), (4, 0), (5, 2), (16, 3)])
def test_reaction(lanes: int, redundancy: int) -> None:
    case = Case.make(real_images(2), "hardened", lanes, redundancy=redundancy)
    asked = 0

    def accepts(response: Response) -> bool:
        nonlocal asked
        asked += 1
        try:
            case.client.decrypt_integers(response)
        except DecryptionError:
            return False
        return True

    response = case.server.evaluate(case.request)
    finding = audit.attack(lambda: audit.reaction(case.view(), response, accepts))
    case.check(finding)
    assert case.whole(finding)
    assert case.all_positions(finding)
    assert asked <= len(finding.positions) * math.ceil(math.log2(lanes)) + redundancy // 2 + 1


def test_reaction_of_a_client_that_never_complains() -> None:
    case = Case.make(real_images(1), "patent")
    finding = audit.attack(lambda: audit.reaction(case.view(), case.server.evaluate(case.request), lambda _: True))
    assert finding.outcome == "failed"


def test_moduli_that_are_not_prime() -> None:
    basis = [(1 << 15) + 3, (1 << 16) - 1, 49 * 121 * 169, 19**5 * 23, 10**9 + 7, 10**9 + 9, 10**9 + 21, 10**9 + 33]
    case = Case.make(real_images(1), "patent", limbs=4, moduli=basis)
    for name in ("ratio", "quotient", "position", "constant", "small-value", "statistics"):
        assert case.whole(case.attack(name)), name


def test_rational_reconstruction() -> None:
    b, bound = 1073741789, 20000
    generator = np.random.default_rng(1)
    for _ in range(300):
        n, d = int(generator.integers(-bound, bound + 1)), int(generator.integers(1, bound + 1))
        common = math.gcd(n, d)
        assert rational(n * pow(d, -1, b) % b, b, bound) == (n // common, d // common)
    assert rational(0, b, bound) == (0, 1)
    hits = sum(rational(int(r), b, 500) is not None for r in generator.integers(0, b, 300))
    assert hits <= 3


@pytest.mark.parametrize(("lanes", "limbs"), [(1, 1), (5, 1), (5, 2), (4, 3), (3, 5)])
def test_search_keeps_exactly_the_small_tuples(lanes: int, limbs: int) -> None:
    moduli = [251, 509, 1021, 241, 239][:limbs]
    generator = np.random.default_rng(limbs)
    low, width = -300 if limbs > 1 else -20, 900 if limbs > 1 else 60
    values = generator.integers(low, low + width, 6)
    residues = [generator.integers(0, b, (lanes, 6)) for b in moduli]
    for rows, b in zip(residues, moduli, strict=True):
        rows[generator.integers(lanes)] = values % b
    expected = set()
    for lane in np.ndindex(*(lanes,) * limbs):
        rows = np.stack([r[m] for r, m in zip(residues, lane, strict=True)])
        lifted = crt(rows, moduli)
        product = math.prod(moduli)
        if all((int(v) - low) % product < width for v in lifted):
            expected.add(lane)
    count, found = search(Trials(moduli, residues, [Near((low,), width)] * 6), beyond=math.prod(moduli))
    assert count == limbs
    assert {tuple(int(m) for m in row) for row in found} == expected
    assert expected


def test_forms_against_the_definition() -> None:
    generator = np.random.default_rng(5)
    for modulus in (251, 1021, 251 * 241):
        values = np.arange(modulus) if modulus < 2000 else np.sort(generator.integers(0, modulus, 1500))
        for starts, span in (((-40, 3, 90), 12), ((0,), 1), ((modulus - 2, 5), 9), ((7, 9, 11), 400)):
            near = Near(starts, span)
            allowed = {(start + e) % modulus for start in starts for e in range(min(span, modulus))}
            for kind in (np.int64, object):
                found = near.fits(values.astype(kind), modulus)
                assert [int(v) for v in values[found]] == [int(v) for v in values if int(v) in allowed]
            assert near.density(modulus) == pytest.approx(len(allowed) / modulus)
        bound = math.isqrt(modulus // 3)
        fractions = {n * pow(d, -1, modulus) % modulus for n in range(-bound, bound + 1) for d in range(1, bound + 1)}
        for kind in (np.int64, object):
            found = Fractions(bound).fits(values.astype(kind), modulus)
            assert fractions & {int(v) for v in values} <= {int(v) for v in values[found]}
        if modulus < 2000:
            assert len(fractions) / modulus == pytest.approx(Fractions(bound).density(modulus), rel=0.2)
            assert found.sum() <= 1.5 * len(fractions)
    assert Fractions(30).density(1500) == 1.0  # not unique there


def test_search_gives_up_and_tolerates() -> None:
    moduli = [1021, 1019, 1013]
    generator = np.random.default_rng(2)
    residues = [generator.integers(0, b, (16, 20)) for b in moduli]
    truth = (3, 9, 12)
    for rows, lane, b in zip(residues, truth, moduli, strict=True):
        rows[lane] = generator.integers(0, 30, 20) % b
    values = [int(v) for v in crt(np.stack([r[m] for r, m in zip(residues, truth, strict=True)]), moduli)]
    forms = [Near((value,), 3) for value in values]
    for right in (20, 13):
        given = forms[:right] + [Near((value + 500,), 3) for value in values[right:]]
        count, found = search(Trials(moduli, residues, given), 0.5, beyond=math.prod(moduli))
        assert [tuple(row) for row in found.tolist()] == [truth]
        assert len(search(Trials(moduli, residues, given), 1.0)[1]) == (right == 20)
    assert count == 3
    wide = Trials(moduli, residues, [Near((0,), 1 << 40)] * 20)
    assert len(search(wide, most=1000)[1]) == 0
    assert wide.limbs_needed(10) is None
    assert Trials(moduli, residues, forms).limbs_needed(10) == 1


def test_chance_bits_bound_the_binomial_tail() -> None:
    for trials, p in ((10, 0.1), (40, 0.01), (7, 0.5)):
        for hits in range(trials + 1):
            tail = sum(math.comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(hits, trials + 1))
            assert chance_bits(hits, trials, p) <= -math.log2(tail) + 1e-9


def test_dimensions_grow_with_the_lanes_alone() -> None:
    for lanes in (4, 16, 64, 128):
        few = dimensions(lanes, 13.0, [30.0] * 4, 784)
        many = dimensions(lanes, 13.0, [30.0] * 40, 784)
        assert few is not None
        assert many is not None
        assert lanes < many[1] <= few[1] <= max(32, 1.5 * lanes)
    assert dimensions(64, 13.0, [30.0] * 8, 60) is None


def test_view_refuses_what_does_not_belong_together() -> None:
    case = Case.make(real_images(1), "patent")
    other = Case.make(real_images(1), "patent")
    with pytest.raises(MismatchError, match="key_id"):
        audit.run(case.server.spec, [case.request, other.request])
    with pytest.raises(MismatchError, match="program_id"):
        audit.run(dataclasses.replace(case.server.spec, program_id="ab" * 32), [case.request])
    with pytest.raises(ParameterError, match="known"):
        audit.run(case.server.spec, [case.request], known=np.zeros((1, 28, 28)))
    with pytest.raises(ParameterError, match="attack 'magic'"):
        audit.run(case.server.spec, [case.request], attacks=["magic"])
    with pytest.raises(ParameterError, match="requests"):
        audit.run(case.server.spec, [])


def test_modules_are_small() -> None:
    for path in (ROOT / "mcfhe" / "modular" / "audit").glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) < 300
