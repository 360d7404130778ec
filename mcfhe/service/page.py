"""The web page at ``/``: fixed files, read once, and sample images. Nothing here sees a key or an image of a user."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mcfhe import datasets
from mcfhe.wording import SECURITY_LINE

# By name, not by what the folder holds, and with their types, which the machine's own table may have otherwise.
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = (
    "api.js",
    "app.js",
    "bytes.js",
    "container.js",
    "decrypt.js",
    "draw.js",
    "encrypt.js",
    "errors.js",
    "icon.svg",
    "image.js",
    "keys.js",
    "layout.css",
    "messages.js",
    "modular.js",
    "primes.js",
    "random.js",
    "spec.js",
    "style.css",
    "vault.js",
    "view.js",
    "worker.js",
)
PAGE_PATHS = frozenset({"/", "/page/samples.json", *(f"/page/{name}" for name in _FILES)})

# Scripts, styles and connections of this origin only, nothing inline, no frame around the page.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # The names carry no version: a browser asks each time and mostly hears 304.
    "cache-control": "no-cache",
}


async def page(http: Request) -> Response:
    """One file of the page, or 304 if the browser has it."""
    content, media_type, tag = _content(http.scope["path"])
    headers = {**_HEADERS, "etag": tag}
    if tag in (known.strip().removeprefix("W/") for known in http.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def routes() -> list[Route]:
    """A route for each of :data:`PAGE_PATHS`."""
    return [Route(path, page, include_in_schema=False) for path in sorted(PAGE_PATHS)]


@functools.cache
def _content(path: str) -> tuple[bytes, str, str]:
    """Bytes, media type and ETag of one of :data:`PAGE_PATHS`."""
    if path == "/page/samples.json":
        data, media_type = _samples(), "application/json"
    else:
        name = "index.html" if path == "/" else path.removeprefix("/page/")
        data = (resources.files("mcfhe.service") / "web" / name).read_bytes()
        media_type = _TYPES[name[name.rindex(".") :]]
    if path == "/":
        data = data.replace(b"{{SECURITY_LINE}}", html.escape(SECURITY_LINE).encode())
    return data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _samples() -> bytes:
    """The first shipped test image of every class: names and base64 of the grey pixels, row by row."""
    sample = datasets.load(datasets.SAMPLE, "test")
    labels = sample.labels.tolist()
    first = [labels.index(label) for label in range(len(sample.class_names))]
    _, height, width = sample.images.shape[1:]
    body = {
        "source": "Fashion-MNIST test images",
        "height": height,
        "width": width,
        "images": [
            {
                "name": sample.class_names[label],
                "pixels": base64.b64encode(sample.images[index].numpy().tobytes()).decode(),
            }
            for label, index in enumerate(first)
        ],
    }
    return json.dumps(body).encode()
