"""The page in a real browser at a phone's width: nothing overflows, every figure is drawn, no errors."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from drawn_results import gains_frame

from fastwi.report.__main__ import main
from fastwi.report.heatmap import draw_heatmap
from fastwi.sealed import seal_directory, sealed_yaml

WIDTHS = [360, 1200]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWEEP = """
experiment: {after: 2}
axes: {experiment.k: [1, 4], experiment.s: [2, 8]}
sweep: {name: a-sweep-with-a-rather-long-name-that-does-not-fit-a-phone, parents: 0..5, children: 6}
"""
# Lives in a copy of the page alone: the title is what --dump-dom lets one read.
PROBE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const wide = document.documentElement.scrollWidth, view = innerWidth;
  const dead = [...document.images].filter(i => !i.naturalWidth).length;
  const pictures = document.querySelectorAll("figure img").length;
  const asked = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length;
  document.title = `wide=${wide} view=${view} dead=${dead} pictures=${pictures} asked=${asked}`;
});
</script>"""


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


@pytest.fixture
def results(tmp_path, seed) -> Path:
    """A results directory with two figures."""
    frame = gains_frame(np.random.default_rng(seed), gain=1.0, after=(-2.0, -3.0), cells=((1, 2), (4, 8)))
    frame.write_parquet(tmp_path / "gains.parquet")
    (tmp_path / "sweep.yaml").write_text(sealed_yaml(SWEEP))
    draw_heatmap(frame, tmp_path / "heatmap.png", "digits")
    draw_heatmap(frame, tmp_path / "curves.png", "digits")
    about = {"dataset": {"name": "digits", "sha256": {"train": "0123456789abcdef" * 4}}}
    seal_directory(tmp_path, about, os.listdir(tmp_path))
    return tmp_path


def rendered(browser: str, page: Path) -> tuple[list[dict[str, int]], str]:
    """What the probe in the page says at each of `WIDTHS`, and what the browser's console says."""
    # Frames of exactly these widths, in one browser: a headless one's window has a least width of its own.
    frame = page.with_name("frame.html")
    frames = "".join(f'<iframe src="{page.name}" width="{width}" height="800"></iframe>' for width in WIDTHS)
    titles = (
        "<script>onload = () => { document.title = Array.from(frames, f => f.document.title).join(';'); };</script>"
    )
    frame.write_text(f"<body>{frames}{titles}")
    profile = page.with_name("profile")
    run = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--allow-file-access-from-files", f"--user-data-dir={profile}", "--enable-logging=stderr",
         "--window-size=1300,900", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=1200, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(wide=.*?)</title>", run.stdout)
    assert title is not None, run.stdout[-2000:] + run.stderr
    found = [dict(re.findall(r"(\w+)=(\d+)", part)) for part in title[1].split(";")]
    console = "\n".join(line for line in run.stderr.splitlines() if "CONSOLE" in line)
    return [{name: int(value) for name, value in each.items()} for each in found], console


@pytest.mark.chromium
def test_the_page_in_a_browser(browser, results):
    assert main([str(results)]) == 0
    html = (results / "report.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in html
    # The page forbids scripts; its copy with the probe must allow one.
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    page = results / "probed.html"
    page.write_text(html.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    found, console = rendered(browser, page)
    assert console == ""
    assert [each["view"] for each in found] == WIDTHS
    for each in found:
        assert each["wide"] <= each["view"]
        assert each["pictures"] == 2
        assert (each["dead"], each["asked"]) == (0, 0)
