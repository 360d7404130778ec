"""The web page in headless Chromium against a real server: every class, integer and byte compared with Python's."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mcfhe
from mcfhe.modular.keys import SecretKey
from mcfhe.wire import Request, Response
from tests.service.browser import DONE, ELSEWHERE, chromium, classify, missing, open_page, save_lenet, serving
from tests.service.support import PROGRAM, Live

TOKENS = ("first-token-of-the-file", "second-token-of-the-file")


class Colour(nn.Module):
    """conv 3->2 3x3, square, linear on 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 2, 3), nn.Linear(72, 4)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return self.linear((y * y).flatten(1))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if reason := missing():
        pytest.skip(reason)
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)  # scores further apart than noise moves them, a thousandth
    colour = mcfhe.compile(Colour().eval(), (3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), labels=list("wxyz"))
    colour.save(folder / "colour.mcfhe")
    return [save_lenet(folder), folder / "colour.mcfhe"]


@pytest.fixture(scope="module")
def url(browser: Any, programs: list[Path]) -> Iterator[str]:
    with serving(*programs) as url:
        yield url


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, url: str) -> Iterator[Opened]:
    """opened(refusals=n): a page; afterwards its console must be clean but for n answers of 4xx and 5xx."""
    context = browser.new_context()
    context.set_default_timeout(30_000)  # for a machine that is busy
    said: list[str] = []
    allowed = 0

    def start(refusals: int = 0, ready: bool = True, address: str = url, **routes: Any) -> Any:
        nonlocal allowed
        allowed = refusals
        context.on("console", lambda line: said.append(f"{line.type}: {line.text}"))
        context.on("weberror", lambda error: said.append(f"uncaught: {error.error}"))
        for pattern, handler in routes.items():
            context.route(re.compile(pattern), handler)
        if ready:
            return open_page(context, address)
        page = context.new_page()
        page.goto(address)
        return page

    yield start
    context.close()
    answers = [line for line in said if "Failed to load resource: the server responded with a status of" in line]
    assert len(answers) == allowed
    assert [line for line in said if line not in answers] == []  # a violated content policy would be here


def input_pixels(page: Any) -> np.ndarray:
    """What the page's input canvas shows: uint8 [3, H, W]."""
    width, height, data = page.evaluate(
        """() => { const shown = document.getElementById("input");
        const copy = new OffscreenCanvas(shown.width, shown.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(shown, 0, 0);
        return [shown.width, shown.height, Array.from(copy.getImageData(0, 0, shown.width, shown.height).data)]; }"""
    )
    return np.array(data, np.uint8).reshape(height, width, 4)[..., :3].transpose(2, 0, 1)


def plain_label(program: mcfhe.Program, pixels: np.ndarray) -> str:
    scores = program.evaluate_plain(pixels[None, : program.input_shape[0]])
    return program.labels[int(scores.argmax())]


def test_samples_get_the_labels_of_plain_evaluation(opened: Opened, programs: list[Path]) -> None:
    page, program = opened(), mcfhe.load_program(programs[0])
    shipped = mcfhe.datasets.load("fashion-mnist-sample", "test")
    for label in (0, 4, 8, 9):
        page.click(f"#samples button:nth-child({label + 1})")
        assert page.inner_text("#label") == "–"  # no result of another image
        assert page.query_selector_all("#scores li") == []
        image = shipped.images[shipped.labels.tolist().index(label)].numpy()
        assert (input_pixels(page) == image).all()
        assert classify(page) == plain_label(program, image)
        rows = page.eval_on_selector_all("#scores li", "rows => rows.map(row => row.innerText.split(/\\s*\\n\\s*/))")
        values = [float(row[-1].replace("−", "-")) for row in rows]
        assert sorted(row[0] for row in rows) == sorted(program.labels)
        assert values == sorted(values, reverse=True)
        # Noise moves a score a little, and nothing else does.
        plain = dict(zip(program.labels, program.evaluate_plain(image[None])[0].tolist(), strict=True))
        assert all(abs(plain[row[0]] - value) < 0.5 for row, value in zip(rows, values, strict=True))
        assert len(page.query_selector_all("#tiles canvas")) == 12
    steps = page.inner_text("#steps")
    assert "Encrypt" in steps
    assert "Register" not in steps  # once a session


# Appended to the worker: what it holds and what it hands out, for the test to see.
SPY = """
self.spied = { produced: [], decrypted: [] };
const post = self.postMessage.bind(self);
self.postMessage = (message) => {
  if (message.value?.body) self.spied.produced.push(crypto.subtle.digest("SHA-256", message.value.body));
  if (message.value?.integers) self.spied.decrypted.push(message.value.integers);
  post(message);
};
self.spied.hash = async (index) => Array.from(new Uint8Array(await self.spied.produced[index]));
self.spied.key = () => Array.from(held.values()).at(-1).key;
"""


def spy(route: Any) -> None:
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.text() + SPY)


@pytest.mark.parametrize(("profile", "number"), [("hardened", 0), ("patent", 1)])
def test_exact_and_nothing_secret_leaves(opened: Opened, programs: list[Path], profile: str, number: int) -> None:
    page, program = opened(**{"/worker.js$": spy}), mcfhe.load_program(programs[number])
    page.select_option("#program", program.program_id)
    page.wait_for_selector("#run:enabled")
    sent, received = [], []
    page.on("request", lambda request: sent.append((request.url, request.headers, request.post_data_buffer or b"")))
    page.on("requestfinished", lambda request: received.append(request))
    page.click(f"label[for={profile}]")
    classify(page)
    (worker,) = page.workers
    key = worker.evaluate("self.spied.key()")
    secret = SecretKey(
        mcfhe.EvaluationKey(tuple(key["moduli"]), key["amplification"], key["scale"]),  # type: ignore[arg-type]
        tuple(key["positions"]),
        key["lanes"],
        key["profile"],
        key["noise"],
    )
    client = mcfhe.Client(program.client_spec(), secret)  # refuses a key that does not fit the program
    assert secret.profile == profile
    assert number or len(set(secret.positions)) > 1
    assert secret.noise == (0 if profile == "patent" else secret.amplification // 2)

    bodies = {address.rpartition("/")[2]: body for address, _, body in sent}
    assert [address.rpartition("/")[2] for address, _, _ in sent] == ["keys", "evaluate"]
    assert bodies["keys"] == secret.evaluation_key.to_bytes()
    assert hashlib.sha256(bodies["evaluate"]).digest() == bytes(worker.evaluate("self.spied.hash(0)"))
    request = Request.from_bytes(bodies["evaluate"], lambda _: secret.evaluation_key)
    # Nothing but a request made of public values: the same bytes come out of them alone.
    anew = Request(
        request.ciphertext,
        request.public_key,
        secret.evaluation_key,
        program.program_id,
        secret.lanes,
        profile,
        request.request_id,
    )
    assert anew.to_bytes(embed_key=False) == bodies["evaluate"]
    with page.expect_download() as download:
        page.click("#save")
    saved = Request.load(download.value.path())
    assert saved.to_bytes() == request.to_bytes()
    assert_no_positions(b"".join(bodies.values()) + repr([row[:2] for row in sent]).encode(), secret.positions)

    # The true lanes hold V of the image shown; program, Python's client and the page agree on every score.
    streams = request.ciphertext.numpy()
    true = np.stack([streams[limb, ..., position] for limb, position in enumerate(secret.positions)])
    values = mcfhe.modular.crt.crt(true, secret.moduli)
    channels, table = program.input_shape[0], program.client_spec().table
    plain = np.array(table, object)[np.arange(channels)[:, None, None], input_pixels(page)[:channels]]
    if profile == "patent":
        assert (values == plain * (secret.amplification * secret.scale)).all()
    else:
        noise = values - secret.amplification * plain
        assert set(noise.ravel()) == set(range(secret.noise))
    response = Response.from_bytes(received[-1].response().body())
    (decrypted,) = worker.evaluate("self.spied.decrypted")
    exact = client.decrypt_integers(response, request_id=request.request_id)
    assert exact == program.evaluate_integers(values[None], profile) == [[int(text) for text in decrypted]]
    # Decoys are not the true residues, and no two requests share them.
    assert (streams[0, ..., secret.positions[0] - 1] != streams[0, ..., secret.positions[0]]).mean() > 0.9
    classify(page)
    assert sent[-1][2] not in bodies.values()
    assert [address.rpartition("/")[2] for address, _, _ in sent] == ["keys", "evaluate", "evaluate"]
    page.click("#renew")
    page.wait_for_selector("#run:enabled")
    assert worker.evaluate("self.spied.key()")["moduli"] != key["moduli"]


def assert_no_positions(sent: bytes, positions: tuple[int, ...]) -> None:
    """Not in any width and order of bytes, whole or in part."""
    for start in range(0, len(positions) - 8, 4):
        part = positions[start : start + 8]
        for code in "BHIQ":
            assert struct.pack(f"<8{code}", *part) not in sent
            assert struct.pack(f">8{code}", *part) not in sent
        for separator in (",", ", ", " "):
            assert separator.join(map(str, part)).encode() not in sent
    assert b"positions" not in sent


def test_drawing_by_pointer_and_by_keyboard(opened: Opened) -> None:
    page = opened()
    page.click("label[for=from-pad]")
    assert page.is_disabled("#run")
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 180, steps=5)
    page.mouse.up()
    drawn = input_pixels(page)
    assert drawn.shape == (3, 28, 28)
    assert (drawn > 200).sum() > 3 * 10
    assert (drawn == 0).mean() > 0.5
    assert classify(page) != "–"
    assert len(page.query_selector_all("#scores li")) == 10
    page.click("#clear")
    assert page.is_disabled("#run")
    assert page.inner_text("#label") == "–"
    page.focus("#pad")
    page.keyboard.press("Space")
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    row = input_pixels(page)[0, 14]
    assert (row[14:18] > 200).all()
    assert row[:12].max() == row[22:].max() == 0
    page.focus("#run")
    page.keyboard.press("Enter")
    page.wait_for_selector(DONE)
    assert page.inner_text("#label") != "–"
    assert page.evaluate("document.activeElement.id") == "run"


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_files_are_taken_exactly_or_resized_as_told(opened: Opened) -> None:
    page = opened()
    page.click("label[for=from-file]")
    generator = np.random.default_rng(3)
    grey = generator.integers(0, 256, (28, 28), np.uint8)
    colour = generator.integers(0, 256, (28, 28, 3), np.uint8)
    large = generator.integers(0, 256, (56, 80, 3), np.uint8)
    means = large[:, 12:68].reshape(28, 2, 28, 2, 3).mean((1, 3)).round().astype(np.uint8)
    for array, expected, words in (
        (grey, grey, "taken pixel by pixel"),
        (colour, np.array(Image.fromarray(colour).convert("L")), "taken pixel by pixel, turned grey"),
        (large, np.array(Image.fromarray(means).convert("L")), "80 × 56 cropped at the centre and resized by area"),
    ):
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(array)})
        page.wait_for_selector("#run:enabled")
        assert words in page.inner_text("#input-note")
        assert (input_pixels(page) == expected).all()
    page.check("#invert")
    page.wait_for_selector("#run:enabled")
    assert (input_pixels(page) == 255 - expected).all()
    assert "inverted" in page.inner_text("#input-note")
    for content, words in (
        (b"GIF89a..", "neither PNG nor JPEG"),
        (png(grey)[:60], "damaged"),
        (png(np.zeros((1, 4097), np.uint8)), "4097 × 1"),
    ):
        page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": content})
        page.wait_for_selector("#failure:not([hidden])")
        assert words in page.inner_text("#failure")
        assert page.is_disabled("#run")


def test_another_program_of_three_channels(opened: Opened, programs: list[Path]) -> None:
    page, program = opened(), mcfhe.load_program(programs[1])
    assert len(page.query_selector_all("#program option")) == 2
    page.select_option("#program", program.program_id)
    page.wait_for_selector("#run:enabled")
    assert page.inner_text("#input-note").startswith("3 × 8 × 8")
    page.click("label[for=from-file]")
    array = np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(array)})
    page.wait_for_selector("#run:enabled")
    pixels = input_pixels(page)
    assert (pixels == array.transpose(2, 0, 1)).all()
    assert classify(page) == plain_label(program, pixels)


def damaged(blob: bytes, how: str) -> bytes:
    """A response with one residue changed in every lane, or one byte that the digest covers."""
    if how == "a byte":
        return blob[:-1] + bytes([blob[-1] ^ 1])
    at = len(blob) - 4 * 10 * 4  # the last limb's scores
    body = blob[:at] + struct.pack("<40I", *(r ^ 1 for r in struct.unpack("<40I", blob[at:])))
    digest = re.search(rb'"digest":"([0-9a-f]{64})"', body)
    assert digest
    zeroed = body.replace(digest[1], b"0" * 64)
    return body.replace(digest[1], hashlib.sha256(zeroed).hexdigest().encode())


@pytest.mark.parametrize(("how", "words"), [("a byte", "digest"), ("a residue", "outside the proved bound")])
def test_a_damaged_response_shows_no_label(opened: Opened, how: str, words: str) -> None:
    def corrupt(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=damaged(answer.body(), how))

    page = opened(**{"/evaluate$": corrupt})
    assert classify(page) == "–"
    assert words in page.inner_text("#failure")
    assert page.query_selector_all("#scores li") == []
    assert page.is_enabled("#run")


def test_busy_servers_and_expired_sessions(opened: Opened) -> None:
    answers = iter(
        [
            {"status": 429, "headers": {"retry-after": "1"}, "body": '{"error": "64 requests wait already"}\n'},
            {"status": 410, "body": '{"error": "not registered"}\n'},
        ]
    )
    seen: list[str] = []

    def refuse(route: Any) -> None:
        seen.append(page.inner_text("#status"))
        answer = next(answers, None)
        if answer is None:
            route.continue_()
        else:
            route.fulfill(**answer)

    page = opened(refusals=2)
    page.route("**/evaluate", refuse)
    assert classify(page) == "Ankle boot"
    assert "64 requests wait already" in seen[1]
    assert "Trying again in 1 s" in seen[1]
    assert "Register its primes again" in page.inner_text("#steps")


def test_a_refusal_is_one_line(opened: Opened) -> None:
    page = opened(refusals=1)
    page.route("**/evaluate", lambda route: route.fulfill(status=422, body='{"error": "moduli: <b>too</b> few"}\n'))
    assert classify(page) == "–"
    assert page.inner_text("#failure") == "Server: moduli: <b>too</b> few (status 422)"


def test_tokens_are_asked_for_and_kept_in_memory_only(opened: Opened) -> None:
    with Live(tokens=TOKENS) as live:
        page = opened(refusals=2, ready=False, address=live.url)
        page.wait_for_selector("#access:not([hidden])")
        assert page.inner_text("#failure") == "The server asks for a token."
        page.fill("#token", "wrong-token-of-the-file")
        page.keyboard.press("Enter")
        page.wait_for_selector("#failure:has-text('does not know this token')")
        page.fill("#token", TOKENS[0])
        page.click("#access button")
        page.wait_for_selector("#run:enabled")
        assert page.is_hidden("#access")
        assert classify(page) in PROGRAM.labels
        kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert TOKENS[0] not in kept


def test_an_unknown_scheme_is_named(opened: Opened, programs: list[Path]) -> None:
    def other(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=json.dumps({**answer.json(), "scheme": "lattice", "version": 2}))

    lenet, colour = (mcfhe.load_program(path).program_id for path in programs)
    page = opened(ready=False, **{f"{lenet}/spec$": other})
    page.wait_for_selector("#failure:not([hidden])")
    assert 'uses the scheme "lattice", which this page does not know' in page.inner_text("#failure")
    assert page.is_disabled("#run")
    page.select_option("#program", colour)
    page.wait_for_selector("#run:enabled")
    assert classify(page) in "wxyz"


def test_over_plain_http_from_elsewhere_it_says_what_is_missing(opened: Opened, url: str) -> None:
    page = opened(ready=False, address=url.replace("127.0.0.1", ELSEWHERE))
    page.wait_for_selector("#failure:not([hidden])")
    assert "crypto.subtle" in page.inner_text("#failure")
    assert "--tls-cert" in page.inner_text("#failure")
    assert page.is_disabled("#run")


# Texts whose contrast is below 4.5 (WCAG 2.2, 1.4.3); what is disabled is exempt.
FAINT = """() => {
  const channels = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (colour) => channels(colour).slice(0, 3)
    .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  const behind = (e) => {
    const colour = getComputedStyle(e).backgroundColor;
    return channels(colour)[3] === 0 && e.parentElement ? behind(e.parentElement) : colour;
  };
  const texts = Array.from(document.querySelectorAll("body *")).filter((e) =>
    e.checkVisibility() && !e.closest(":disabled") &&
    Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim()));
  return texts.map((e) => [light(getComputedStyle(e).color), light(behind(e)), e])
    .map(([x, y, e]) => [Math.max(x, y) / Math.min(x, y), e.outerHTML.slice(0, 80)])
    .filter(([ratio]) => !(ratio >= 4.5));
}"""


def test_fits_its_window_names_its_controls_and_can_be_read(opened: Opened) -> None:
    page = opened()
    classify(page)
    for width in (360, 820, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        for source in ("sample", "file", "pad"):
            page.click(f"label[for=from-{source}]")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # no colour on its way
            assert page.evaluate(FAINT) == []
    unnamed = page.eval_on_selector_all(
        "button, input, select, canvas[role], canvas[tabindex]",
        "all => all.filter(e => !(e.labels?.length || e.innerText || e.getAttribute('aria-label'))).map(e => e.id)",
    )
    assert unnamed == []
