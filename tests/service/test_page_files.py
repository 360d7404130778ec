"""What of the web page is served and how, what it says, and its modules under node."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mcfhe
from mcfhe.service.page import PAGE_PATHS
from mcfhe.wording import SECURITY_LINE
from tests.service.support import Live, assert_refused

ROOT = Path(__file__).parent.parent.parent
WEB = ROOT / "mcfhe" / "service" / "web"
TOKENS = ("first-token-of-the-file", "second-token-of-the-file")
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


def test_every_file_is_served_and_nothing_else(live: Live) -> None:
    files = {f"/page/{path.name}" for path in WEB.iterdir() if path.suffix in TYPES and path.name != "index.html"}
    assert files | {"/", "/page/samples.json"} == PAGE_PATHS
    for path in PAGE_PATHS:
        answer = live.http.get(path)
        name = "index.html" if path == "/" else path.rpartition("/")[2]
        if name.endswith(".json"):
            assert answer.headers["content-type"] == "application/json"
        else:
            expected = (WEB / name).read_bytes().replace(b"{{SECURITY_LINE}}", SECURITY_LINE.encode())
            assert answer.content == expected
            assert answer.headers["content-type"].partition(";")[0] == TYPES[Path(name).suffix]
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
        for known in (answer.headers["etag"], f'"other", W/{answer.headers["etag"]}'):
            again = live.http.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
        assert live.http.get(path, headers={"if-none-match": '"other"'}).content == answer.content
        assert live.http.head(path).status_code == 200
    for path in ("/page/", "/page/package.json", "/page/../page.py", "/page/%2e%2e/page.py", "/index.html"):
        assert_refused(live.http.get(path), 404)
    assert_refused(live.http.post("/"), 405)


def test_policy_lets_in_nothing_inline_or_from_elsewhere(live: Live) -> None:
    policy = dict(part.split(" ", 1) for part in live.http.get("/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == policy["worker-src"] == "'self'"
    assert not any("unsafe" in value or "*" in value for value in policy.values())
    for path in WEB.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z]", re.sub(r"(?m)//? .*$|^ \*.*$", "", text)), path.name
        assert "innerHTML" not in text, path.name
        assert "Storage" not in text, path.name
    html = (WEB / "index.html").read_text("utf-8")
    assert not re.search(r"\son[a-z]+=|<style|\sstyle=|<script(?![^>]*\ssrc=)", html)


def test_page_needs_no_token_and_its_samples_are_the_shipped_ones() -> None:
    with Live(tokens=TOKENS) as live:
        assert live.http.get("/").status_code == 200
        samples = live.http.get("/page/samples.json").json()
        assert_refused(live.http.get("/page/other.js"), 401)
    shipped = mcfhe.datasets.load("fashion-mnist-sample", "test")
    assert [entry["name"] for entry in samples["images"]] == list(shipped.class_names)
    assert (samples["height"], samples["width"]) == tuple(shipped.images.shape[2:])


def test_words_on_security_are_those_of_the_page_on_it(live: Live) -> None:
    html = " ".join(live.http.get("/").text.split())
    security = " ".join((ROOT / "SECURITY.md").read_text("utf-8").split())
    assert SECURITY_LINE in html
    for words in (
        "reads the pixels off the true lanes, which betray themselves",
        "reads the pixels off any lane, true or decoy",
        "a new key for every request",
        "images that must stay private from the server",
    ):
        assert words in html, words
        assert words in security, words
    shown = html + "".join((WEB / name).read_text("utf-8") for name in ("app.js", "view.js"))
    assert not re.search(r"\b(secure|securely|unbreakable|cannot)\b|[0-9]+-bit", shown, re.IGNORECASE)


def test_package_data_has_the_page() -> None:
    # By the patterns of pyproject.toml alone: what git or an earlier build knows does not count.
    code = """
import setuptools
d = setuptools.Distribution()
d.parse_config_files()
d.include_package_data = False
command = d.get_command_obj("build_py")
command.ensure_finalized()
print(*(name for package, _, _, names in command.data_files if package == "mcfhe.service" for name in names))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    packed = {f"/page/{name.rpartition('/')[2]}" for name in done.stdout.split() if name.startswith("web/")}
    assert packed == PAGE_PATHS - {"/", "/page/samples.json"} | {"/page/index.html"}


def test_modules_against_the_vectors_under_node() -> None:
    node = shutil.which("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout if node else ""
    if not version or int(version[1:].split(".")[0]) < 20:
        pytest.skip(f"needs node 20 or newer, found {version.strip() or 'none'}")
    done = subprocess.run([str(node), "--test", "tests/page/"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"pass [1-9][0-9]", done.stdout)
