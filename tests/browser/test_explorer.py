"""The explorer in a real browser: by voila, and its curtain in JupyterLab."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pytest
from helpers import ROOT, portrait
from PIL import Image

from mcml.data.sets import image_set
from mcml.lab.explorer import Explorer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += [
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--disable-component-update",
    "--disable-quic",
    "--force-color-profile=srgb",
]
WAIT_MS = 40_000


def serve(tmp_path_factory, *command):
    """Yield a server's address once it answers; end it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("server")
    own = {"OMP_NUM_THREADS": "1", "HOME": str(home), "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    own |= {"MCML_RESULTS": str(home / "results"), "MCML_DATA": ""}
    with open(home / "log", "w") as log:
        words = [sys.executable, "-m", *command, f"--port={port}", "--no-browser"]
        server = subprocess.Popen(words, env=os.environ | own, stdout=log, stderr=log, cwd=home)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, (home / "log").read_text()
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The app as `make explore` serves it."""
    recipe = re.search(r"^explore:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.M)[1]
    words = [word for word in recipe.replace("\\\n", " ").split() if word.startswith("--Tag")]
    for address in serve(tmp_path_factory, "voila", str(ROOT / "notebooks" / "00_try_it.ipynb"), *words):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(WAIT_MS)
        page.goto(address, timeout=90_000)
        page.wait_for_selector(".curtain .line", timeout=WAIT_MS)
        page.wait_for_function("document.querySelector('.curtain img').naturalWidth > 0", timeout=WAIT_MS)
        yield page


def crop(page):
    """Return the stage's pixels right of its left 40 and below its labels, one for each of the picture's."""
    page.get_by_role("button", name="1 : 1").click()
    page.locator(".curtain .line").focus()
    for _ in range(12):
        page.keyboard.press("Shift+ArrowLeft")  # the line to the left edge: the decode alone
    box = page.locator(".curtain .stage").bounding_box()
    shot = page.screenshot(clip={name: round(value) for name, value in box.items()})
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))[30:, 40:]


def chosen(page, codec):
    """Choose a codec, step the slider back, and return the step when it is shown."""
    page.get_by_label("codec").select_option(codec)
    page.wait_for_function(
        f"document.querySelector('.curtain .tag + .tag').textContent.startsWith('{codec}')"
    )
    handle = page.locator(".noUi-handle")
    handle.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    place = round(float(handle.get_attribute("aria-valuenow")))
    step = Explorer(image_set("embedded").read("chelsea"), codec).place(place)
    page.get_by_text(f"{len(step.data):,} bytes").first.wait_for()  # the note follows the picture
    page.wait_for_function("[...document.querySelectorAll('.curtain img')].every((image) => image.complete)")
    return step


@pytest.mark.parametrize("codec", ["jpeg444", "scalar_fusion"])
def test_the_slider_shows_what_the_file_decodes_to(page, codec):
    step = chosen(page, codec)
    shown, expected = crop(page).astype(int), step.image[30:, 40:].astype(int)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= (codec == "scalar_fusion")  # networks: another thread, one level


def test_the_curtain_is_dragged_and_zoomed_to_pixels(page):
    stage, line = page.locator(".curtain .stage"), page.locator(".curtain .line")
    page.get_by_role("button", name="whole").click()
    box, grip = stage.bounding_box(), line.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(grip["x"] + grip["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], y, steps=4)
    page.mouse.up()
    assert line.get_attribute("aria-valuenow") == "75"
    stage.focus()
    for _ in range(4):
        page.keyboard.press("+")
    assert page.locator(".curtain .zoom").inner_text() == "zoom 6 : 1"
    shot = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB"))
    part = shot[100:160, 60:120].astype(int)
    assert (np.diff(part, axis=1).any((0, 2)).sum()) <= 10  # columns of pixels, each six wide


def test_a_photograph_of_one_s_own_is_shown_and_a_bad_file_is_told(page):
    def give(name, content):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="your own").click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})

    give("bad.png", b"no picture")
    page.get_by_text("bad.png: not an image that can be read here").wait_for(timeout=WAIT_MS)
    buffer = io.BytesIO()
    Image.fromarray(portrait()).save(buffer, "PNG")
    give("own.png", buffer.getvalue())
    page.wait_for_function("document.querySelector('.curtain img').naturalWidth == 160", timeout=WAIT_MS)
    assert page.get_by_label("picture", exact=True).input_value() == "own.png"
    page.get_by_role("button", name="colour bias").click()
    page.wait_for_selector(".curtain .mark:not([hidden])", timeout=WAIT_MS)
    page.get_by_label("picture", exact=True).select_option("chelsea")
    page.wait_for_function("document.querySelector('.curtain img').naturalWidth == 451", timeout=WAIT_MS)
    page.wait_for_selector(".curtain .mark", state="hidden")  # it was a place in another picture


def test_the_page_begins_with_the_explorer_and_not_with_versions(page):
    assert not page.get_by_text("python 3").first.is_visible()


def test_the_curtain_works_in_jupyterlab(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    code = "import numpy as np\nfrom mcml.lab.curtain import Curtain, lossless\n"
    code += "image = np.tile(np.uint8([[[9, 99, 199], [200, 10, 10]]]), (160, 80, 1))\n"
    code += "Curtain(before=lossless(image), after=lossless(255 - image))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "curtain.ipynb")
    options = ["--ServerApp.token=", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}"]
    for address in serve(tmp_path_factory, "jupyterlab", *options):
        assert urllib.request.urlopen(address, timeout=30).status == 200
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/lab/tree/curtain.ipynb", timeout=WAIT_MS)
        page.get_by_text("| Idle").first.wait_for(timeout=WAIT_MS)  # the status line: its kernel answers
        line, cell = page.locator(".curtain .line").first, page.locator(".jp-Cell .cm-content").first
        end = time.monotonic() + WAIT_MS / 1000
        while not line.is_visible():  # a busy JupyterLab loses keys while it starts
            assert time.monotonic() < end, page.inner_text("body")
            cell.click(timeout=WAIT_MS)
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(5000)
        shot = page.locator(".curtain .stage")
        page.wait_for_function("document.querySelector('.curtain img').naturalWidth == 160", timeout=WAIT_MS)
        pixels = np.asarray(Image.open(io.BytesIO(shot.screenshot())).convert("RGB")).reshape(-1, 3)
        seen = {tuple(map(int, pixel)) for pixel in pixels}
        assert {(9, 99, 199), (200, 10, 10), (246, 156, 56), (55, 245, 245)} <= seen
