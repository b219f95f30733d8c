"""The page in a real browser: what is laid out and painted, not what is written."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluate import main as evaluate
from pipelines.report import main

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: one of {NAMES}")
WIDTH, HEIGHT = 1280, 4000
# asks the browser where things came to be, once everything is loaded
MEASURE = """<script>addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] };
  const all = (q, f) => [...document.querySelectorAll(q)].map(f);
  const found = document.createElement("pre");
  found.id = "measured";
  found.textContent = JSON.stringify({
    lines: all("svg polyline", e => [...box(e), getComputedStyle(e).stroke]),
    images: all("img", e => [...box(e), e.naturalWidth]),
    meters: all(".meter", box),
    headings: all("h2", e => e.textContent),
    overflow: document.documentElement.scrollWidth - innerWidth,
  });
  document.body.append(found);
})</script>"""


def browse(page: Path, profile: Path, *words: str) -> str:
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
        f"--window-size={WIDTH},{HEIGHT}", *words, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def page(tiny_run: Path, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with curves, evaluated on its own folder and on a named set, as a page."""
    folder = tmp_path_factory.mktemp("browsed") / "tiny"
    shutil.copytree(tiny_run, folder)
    data = tmp_path_factory.mktemp("data")
    (data / "scenes").symlink_to(scenes_root)
    words = ["--checkpoint", str(folder), "--max-images", "2", "--quiet", "--object-threshold", "0"]
    assert evaluate([*words, "--stages", "segmentation"]) == 0
    named = ["--data-root", str(data), "--dataset", "scenes", "--stages", "segmentation"]
    assert evaluate([*words, *named]) == 0
    assert main([str(folder), "--num-panels", "1"]) == 0
    return folder / "report.html"


def test_curves_panels_and_tables_are_painted(page: Path, tmp_path: Path) -> None:
    measuring = tmp_path / "measuring.html"
    measuring.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    dom = browse(measuring, tmp_path / "profile", "--dump-dom")
    match = re.search(r'<pre id="measured">(.*?)</pre>', dom, flags=re.S)
    assert match, dom[-500:]
    found: dict[str, Any] = json.loads(unescape(match.group(1)))
    assert len(found["lines"]) >= 6
    for _, _, width, _, stroke in found["lines"]:
        assert width > 200
        assert re.match(r"rgb\(\d+, \d+, \d+\)", stroke)
    falling = [line for line in found["lines"] if line[3] > 50]
    assert len(falling) >= 3
    assert len(found["images"]) == 4
    for _, _, width, height, natural in found["images"]:
        assert natural > 500
        assert width > 500
        assert height > 50
    assert all(width > 100 for _, _, width, _ in found["meters"])
    assert {"Training", "Pictures", "Classes", "scenes, percent"} <= set(found["headings"])
    assert found["overflow"] <= 0


def test_what_is_painted_has_the_colours_of_curves_and_pictures(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == WIDTH
    # --series-0 of the light page, as thick lines paint it
    blue = np.abs(pixels - [0x2A, 0x6F, 0xB0]).sum(-1) < 12
    assert blue.sum() > 500
    colours = {tuple(colour) for colour in pixels[::7, ::7].reshape(-1, 3) // 16}
    assert len(colours) > 100
