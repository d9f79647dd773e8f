"""The page in a real browser: it loads nothing, complains of nothing, and fits a phone."""

import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from harmonic_jax.report import Images, write_page
from harmonic_jax.report.palette import DARK, LIGHT
from tests.report.tables import studied, tables
from tests.report.test_page import gray_image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# The page is looked at from outside, in a frame as wide as a phone, with everything opened.
PROBE = """<!doctype html><title>probe</title>
<iframe src="consistency.html" style="width:360px;height:700px;border:0"></iframe>
<iframe src="control.html" style="width:360px;height:700px;border:0"></iframe>
<pre></pre><script>
window.onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    for (const part of page.querySelectorAll("details")) part.open = true;
    const ground = () => frame.contentWindow.getComputedStyle(page.body).backgroundColor;
    const count = (query, is_seen) => [...page.querySelectorAll(query)].filter(is_seen).length;
    const shown = () => count(".shots figure", figure => figure.offsetWidth);
    const result = {width: root.clientWidth, scrollWidth: root.scrollWidth,
      charts: count("section svg", svg => svg.getBoundingClientRect().height > 20),
      ground: {}, shown: [shown()]};
    for (const theme of page.querySelectorAll("input")) {
      theme.click();
      result.ground[theme.id] = ground();
    }
    const choice = page.getElementById("class");
    if (choice) {
      result.filter = choice.offsetWidth > 0;
      choice.value = choice.options[1].value;
      choice.dispatchEvent(new Event("change"));
      result.shown.push(shown());
    }
    return result;
  });
  document.querySelector("pre").textContent = JSON.stringify(found);
};
</script>"""
CONTROL = (
    '<!doctype html><p style="width:900px">wide</p><img src="http://elsewhere.example/pixel.png">'
    "<script>console.error('seen')</script>"
)


def rgb(color: str) -> str:
    return f"rgb({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})"


@contextlib.contextmanager
def requests_to(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Serves a folder under any host name; gives the port, and the addresses asked for."""
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"http://{self.headers['Host']}{self.path}")
            super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_in_a_browser(tmp_path: Path) -> None:
    browser = next((path for path in map(shutil.which, NAMES) if path), None)
    if browser is None:
        pytest.skip("needs a browser: chromium, as a package of most systems")
    case, report = studied(*tables())
    write_page(tmp_path, case, report, Images(gray_image), pngs=False)
    (tmp_path / "probe.html").write_text(PROBE)
    (tmp_path / "control.html").write_text(CONTROL)
    with requests_to(tmp_path) as (port, requests):
        done = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking",
                f"--host-resolver-rules=MAP *.example 127.0.0.1:{port}, MAP * ~NOTFOUND",
                "--dump-dom", "http://here.example/probe.html",
            ],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    (text,) = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    page, control = json.loads(unescape(text))

    # The control shows that the probe sees what it looks for.
    assert control["scrollWidth"] > control["width"]
    assert "http://elsewhere.example/pixel.png" in requests
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert any("control.html" in line for line in complaints)

    assert page["width"] in range(340, 361)  # a scroll bar of its own takes some
    assert page["scrollWidth"] == page["width"]
    expected = {"probe.html", "consistency.html", "control.html", "favicon.ico"}
    assert {r for r in requests if "elsewhere" not in r} <= {
        f"http://here.example/{e}" for e in expected
    }
    assert not [line for line in complaints if "control.html" not in line]
    assert page["charts"] > 20
    assert page["ground"]["light"] == rgb(LIGHT["paper"])
    assert page["ground"]["dark"] == rgb(DARK["paper"])
    assert page["filter"]
    assert 0 < page["shown"][1] < page["shown"][0]
