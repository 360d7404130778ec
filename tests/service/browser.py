"""A headless Chromium on the page, and a `mcfhe serve` process for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A name that is not localhost: browsers give pages from there less over plain http.
ELSEWHERE = "elsewhere.test"
DONE = "#scores li, #failure:not([hidden])"


def find_chromium() -> str | None:
    """Chromium's path: $MCFHE_CHROMIUM, otherwise one of its usual names."""
    named = os.environ.get("MCFHE_CHROMIUM")
    names = (named,) if named else ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def missing() -> str | None:
    """Why the page cannot be driven here; None if it can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "no playwright: pip install 'mcfhe[browser]'"
    return None if find_chromium() else "no Chromium: install it or name it in MCFHE_CHROMIUM"


@contextmanager
def chromium() -> Iterator[Any]:
    """A playwright Browser."""
    from playwright.sync_api import sync_playwright

    arguments = [f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
    if os.name == "posix" and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to run as root with it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        yield browser
        browser.close()


@contextmanager
def serving(*arguments: object) -> Iterator[str]:
    """The URL of a `mcfhe serve` process on a free port, ended afterwards."""
    command = [sys.executable, "-m", "mcfhe", "serve", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.communicate(timeout=20)


def save_lenet(folder: Path) -> Path:
    """The program of the shipped LeNet, compiled with the defaults."""
    import mcfhe

    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    program = mcfhe.compile(model, card.input_shape, mean=card.mean, std=card.std, labels=card.labels)  # type: ignore[union-attr,arg-type]
    program.save(folder / "lenet.mcfhe")
    return folder / "lenet.mcfhe"


def open_page(context: Any, url: str) -> Any:
    """A page that is ready to classify."""
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#run:enabled")
    return page


def classify(page: Any) -> str:
    """Click, wait, and return the label; a dash if it was refused."""
    page.click("#run")
    page.wait_for_selector(DONE)
    return str(page.inner_text("#label"))
