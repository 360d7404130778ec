"""docs/page.png: the web page after a real run, one Fashion-MNIST image through `mcfhe serve` and headless Chromium.

python -m benchmarks.page_screenshot [--out docs/page.png] [--width 1440] [--dark]; needs mcfhe[serve,browser] and a
Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.service.browser import chromium, classify, missing, open_page, save_lenet, serving


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"))
    parser.add_argument("--width", type=int, default=1440, help="of the window, pixels")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    if reason := missing():
        print(f"page_screenshot: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, serving(save_lenet(Path(folder))) as url, chromium() as browser:
        context = browser.new_context(
            viewport={"width": arguments.width, "height": 900}, color_scheme="dark" if arguments.dark else "light"
        )
        page = open_page(context, url)
        classify(page)  # the first run draws the key and warms both sides up
        label = classify(page)
        page.screenshot(path=arguments.out, full_page=True)
    print(f"{arguments.out}: {label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
