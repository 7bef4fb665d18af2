"""The page to play with: its answers as functions, what it refuses, and its buttons in a real browser.

PUREVDM_DEMO_PNG=examples/app/demo.png python -m pytest -m slow tests/examples/app/test_demo.py    # writes the picture
"""

import base64
import contextlib
import http.client
import io
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import replace

import controls
import demo
import imagecodecs
import numpy as np
import playing
import presets
import pytest
import readers
import torch
from PIL import Image
from processes import ENV, ROOT, command, refused
from runs import Run, load
from tiny_codec import quick

from purevdm import codec, random, solvers, vdm
from purevdm.schedules import fixed_linear

KEY = random.key(3)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, such as Debian's package of that name")


@pytest.fixture(scope="module")
def small():
    """A model that has learned nothing, its parameters, and images that it drew."""
    model = vdm(quick, fixed_linear(-8.0, 4.0), (1, 8, 8), 256)
    params = model.init(random.key(0))
    return model, params, model.sample(params, random.key(1), 3, steps=5).to(torch.uint8)


# Answers


def test_bits_are_the_bound(small):
    """Their mean and its error, of the same noise; and their map and their parts add up to it."""
    model, params, x = small
    parts: list[float] = []
    found = playing.bits(model, params, x[0], KEY, 70, parts.append)
    copies = x[:1].expand(playing.GROUP, 1, 8, 8)
    each = [model.nll_bound(params, copies, random.fold_in(KEY, i)).total.double().mean() for i in range(5)]
    each = torch.stack(each) / (64 * math.log(2))
    assert found.draws == 80
    assert parts == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert found.mean == pytest.approx(each.mean().item(), rel=1e-5)
    assert found.error == pytest.approx(each.std().item() / math.sqrt(5), rel=1e-3)
    assert found.map.shape == (8, 8)
    assert found.map.mean().item() == pytest.approx(found.mean, rel=1e-5)
    assert sum(found.terms.values()) == pytest.approx(found.mean, rel=1e-5)
    noisy = []
    for i in range(5):
        seeds = model.seeds(random.fold_in(KEY, i), playing.GROUP)
        levels = model.gamma(params, seeds.t) > playing.NOISY
        noisy.append(model.terms(params, copies, seeds).diffusion[levels].double().sum((0, 1)) / playing.GROUP)
    torch.testing.assert_close(found.noisy, sum(noisy) / (5 * math.log(2)), rtol=1e-5, atol=0.0)


def test_the_error_of_bits_is_their_spread(small):
    """Over 60 keys. The spread is known to 1 / sqrt(2 * 59) of itself, the mean square of the errors better."""
    model, params, x = small
    found = [playing.bits(model, params, x[0], random.fold_in(KEY, i), 128) for i in range(60)]
    spread = torch.tensor([each.mean for each in found], dtype=torch.float64).std().item()
    error = math.sqrt(sum(each.error**2 for each in found) / 60)
    assert spread == pytest.approx(error, rel=4 * math.sqrt(1 / 118 + 1 / (60 * 14)))


def test_few_draws_have_no_error(small):
    with pytest.raises(ValueError, match=r"^draws: expected more than 16, got 16"):
        playing.bits(*small[:2], small[2][0], KEY, 16)


@pytest.mark.parametrize("name", playing.SOLVERS)
def test_samples_are_the_model_s_and_latents_lie_on_their_way(small, name):
    model, params, _ = small
    drawn = playing.sample(model, params, KEY, 2, 20, name, moments=4)
    whole = model.sample(params, KEY, 2, steps=20, solver=getattr(solvers, name)(), trajectory=True)
    assert drawn.steps == [0, 2, 8, 19]
    assert torch.equal(drawn.x, whole.x)
    assert torch.equal(drawn.latents, torch.stack([model.decoder.mode({}, whole.z[i]) for i in drawn.steps]))
    gamma = model.gamma(params, torch.ones(()))
    estimate = model.denoiser(params, n=2)(whole.z[0], gamma.expand(2)).x
    assert torch.equal(drawn.estimates[0], model.decoder.mode({}, estimate))


def test_samples_in_few_steps_and_by_no_solver(small):
    assert playing.sample(*small[:2], KEY, 1, 5, "ddim").steps == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"^solver: expected one of dpmpp_2m, ddim, ancestral, got 'euler'"):
        playing.sample(*small[:2], KEY, 1, 5, "euler")


def test_a_hole_is_filled_and_the_rest_stays(small):
    model, params, x = small
    hole = torch.zeros(1, 8, 8, dtype=torch.bool)
    hole[:, 2:6, 3:7] = True
    filled = playing.fill(model, params, x[0], hole, KEY, 3, 6, 2)
    assert filled.shape == (3, 1, 8, 8)
    assert (filled == x[0])[:, ~hole].all()
    assert not torch.equal(filled[0], filled[1])
    with pytest.raises(ValueError, match=r"^hole: expected some pixels, got none"):
        playing.fill(model, params, x[0], torch.zeros_like(hole), KEY, 3, 6, 2)


def test_a_file_decodes_and_is_as_large_as_it_is_said_to_be(small):
    model, params, x = small
    parts: list[float] = []
    packed = playing.pack(model, params, x, 5, parts.append)
    file = codec.encode(model, params, x, timesteps=5)
    assert packed.same
    assert torch.equal(codec.decode(model, params, file), x)
    assert packed.sizes["model"] == packed.info.size == len(file)
    assert parts[-1] == 1.0
    one_by_one = sum(len(imagecodecs.png_encode(image[0].numpy(), level=9)) for image in x)
    assert 0 < packed.sizes["PNG"] <= one_by_one
    assert {"model", "PNG", "JPEG XL"} <= packed.sizes.keys()


def test_what_does_not_decode_to_the_same_is_said(small, monkeypatch):
    model, params, x = small
    monkeypatch.setattr(playing.codec, "read", lambda *args, **options: iter([255 - x]))
    assert not playing.pack(model, params, x, 2).same


# Drawing


def test_a_brush_touches_what_it_passes():
    dot = playing.stroke(6, 9, (4.5, 2.5), (4.5, 2.5), 1)
    assert dot.nonzero() == (np.array([2]), np.array([4]))
    line = playing.stroke(6, 9, (0.5, 2.5), (8.5, 2.5), 1)
    assert line[2].all()
    assert line.sum() == 9
    wide, steep = (playing.stroke(6, 9, (1.0, 1.0), (7.0, 5.0), size) for size in (3, 1))
    assert (wide >= steep).all()
    assert wide.sum() > steep.sum() >= 6
    assert not playing.stroke(6, 9, (50.0, 50.0), (60.0, 50.0), 3).any()
    assert playing.stroke(6, 9, (-50.0, 2.5), (50.0, 2.5), 1)[2].all()


# Files


def png(x, **options):
    file = io.BytesIO()
    (x if isinstance(x, Image.Image) else Image.fromarray(x)).save(file, **({"format": "PNG"} | options))
    return file.getvalue()


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def read(content):
    x, said = playing.picture("x.png", content, 8, 8)
    assert x.shape == (1, 8, 8)
    assert x.dtype == torch.uint8
    return x[0].numpy(), said


def test_an_image_of_the_right_kind_is_taken_as_it_is():
    x, said = read(png(GREY))
    assert np.array_equal(x, GREY)
    assert said == "x.png, 8 x 8 pixels, taken as it is."


def test_what_is_done_to_an_image_is_said():
    large = np.kron(GREY, np.ones((3, 3), np.uint8))
    cases = {
        "it was shrunk to 8 x 8 pixels": large,
        "it was enlarged to 8 x 8 pixels": GREY[::2, ::2],
        "it was cropped to its centre, it was shrunk to 8 x 8 pixels": np.pad(large, ((0, 0), (12, 12))),
        "colours became grey": np.repeat(GREY[..., None], 3, 2),
    }
    for words, image in cases.items():
        x, said = read(png(image))
        assert said == f"x.png, {image.shape[1]} x {image.shape[0]} pixels: {words}."
        assert np.array_equal(x, np.kron(GREY[::2, ::2], np.ones((2, 2), np.uint8)) if "enlarged" in words else GREY)
    assert (read(png(np.tile(np.array([[10, 30], [40, 20]], np.uint8), (8, 8))))[0] == 25).all()  # a mean of what was there
    clear = np.stack([GREY, GREY, GREY, np.where(GREY < 100, 0, 255).astype(np.uint8)], -1)
    x, said = read(png(clear))
    assert "transparent parts became black, colours became grey" in said
    assert np.array_equal(x, np.where(GREY < 100, 0, GREY))


BAD = {
    "expected a PNG, JPEG, WEBP, GIF or BMP image, got something else": [
        b"",
        b"no image",
        png(GREY)[:20],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        png(GREY, format="TIFF"),
    ],
    "damaged": [png(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))[:2000]],
    "expected a file of at most 1 MB, got 1.2 MB": [bytes(1_200_000)],
    "expected at most 17 million pixels, got 5000 x 5000": [png(Image.new("1", (5000, 5000)))],
    "expected 8 bits a channel": [png(GREY.astype(np.uint16))],
    "expected one picture": [
        png(Image.fromarray(GREY), format="GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    ],
}


@pytest.mark.parametrize("words", BAD)
def test_other_files_are_refused(words):
    for content in BAD[words]:
        with pytest.raises(ValueError, match=f"^x.png: .*{words}|^x.png: {words}"):
            playing.picture("x.png", content, 8, 8)


# The program


@pytest.mark.parametrize("value", [None, "3", True, 0, 11, 2.5, math.nan, math.inf, [3], 10**400])
def test_numbers_of_the_page_are_whole(value):
    assert [controls.whole("n", good, 1, 10) for good in (1, 10, 3.0)] == [1, 10, 3]
    with pytest.raises(ValueError, match=r"^n: expected a whole number from 1 to 10, got "):
        controls.whole("n", value, 1, 10)


def test_ports_and_models_that_do_not_fit_are_refused(monkeypatch):
    for port in (0, -1, 2**16):
        assert refused("demo.py", "--port", port) == f"port: expected a whole number from 1 to 65535, got {port}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refused("demo.py", "--port", port).startswith(f"port: expected a free one, got {port}")
    digits, config = readers.digits(), presets.PRESETS["digits"][1]
    labelled = replace(config, model=replace(config.model, labels=True))
    colour = digits._replace(event_shape=(3, 8, 8), vocab_size=256)
    for data, own in ((digits, config), (colour, config), (digits._replace(vocab_size=256), labelled)):
        made = Run(own, data, data, None, {})
        monkeypatch.setattr(demo, "load", lambda *args, made=made, **options: made)
        assert refused("demo.py", "--port", port).startswith("checkpoint: expected a diffusion model of grey images")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The program as a user starts it: its address, its process, its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("cwd", "tmp", "home"):
        (folder / name).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in ENV.items() if name not in ("PYTEST_CURRENT_TEST", "OMP_NUM_THREADS")}
    env |= {"TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home"), "MPLCONFIGDIR": str(folder)}
    with (folder / "log").open("w") as log:
        options = dict(env=env, cwd=folder / "cwd", stdout=log, stderr=log)
        process = subprocess.Popen(command("demo.py", "--port", port), **options)
    address = f"http://127.0.0.1:{port}"
    try:
        while asked(address) is None:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield address, process, folder
    finally:
        process.kill()
        process.wait()


def asked(address, **options):
    """Gives the status of an answer, None where there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **options), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return None


def test_only_this_machine_is_answered_and_only_small_files_are_taken(served):
    address = served[0]
    assert asked(address) == 200
    assert asked(address, headers={"Host": "elsewhere.example"}) == 400
    assert asked(address.replace("127.0.0.1", "127.0.0.2")) is None
    # The length alone, and no body: the answer may end the connection before all of one is sent.
    with contextlib.closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)) as connection:
        connection.putrequest("POST", "/x")
        connection.putheader("Content-Length", str(playing.BYTES + 20_000))
        connection.endheaders()
        assert connection.getresponse().status == 413
    assert asked(f"{address}/x", data=b"few") != 413


# In a browser


@pytest.fixture(scope="module")
def visited(served):
    """The page in Chromium, with the addresses that it asked for and its errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        window = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        page = window.new_page(viewport=dict(width=1280, height=900))
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(served[0])
        page.get_by_role("button", name="Count the bits").wait_for(timeout=60_000)
        yield page
        window.close()


def pixels(page, name, last=False):
    """Reads a picture that the page shows, by the words that stand for it."""
    image = page.get_by_alt_text(name, exact=True).locator("visible=true")
    source = (image.last if last else image.first).get_attribute("src")
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


SKETCH = ".sketch img"


def sketch(page, number):
    """Reads a sketch: 0 is the image, 1 the one with a hole."""
    source = page.locator(SKETCH).nth(number).get_attribute("src")
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def opened(page, tab):
    """Opens a tab, and waits until the one before is gone."""
    page.get_by_role("tab", name=tab).click()
    panel = page.locator(".q-tab-panel:visible")
    soon(page, lambda: panel.count() == 1 and page.get_by_role("tab", name=tab).get_attribute("aria-selected") == "true")
    return panel


def pressed(page, tab, button):
    """Presses a tab's button, and waits for what it says at the end."""
    panel = opened(page, tab)
    said = panel.get_by_role("status")
    watch = "new MutationObserver(() => e.changed = true).observe(e, {childList: true, characterData: true, subtree: true})"
    said.evaluate(f"e => {{ e.changed = false; {watch} }}")  # it may still say what a press before did
    panel.get_by_role("button", name=button, exact=True).click()
    page.wait_for_function("e => e.changed && e.innerText", arg=said.element_handle(), timeout=60_000)
    return panel, said.inner_text()


def drag(page, number, start, end):
    """Draws on a sketch, from and to parts of its side."""
    box = page.locator(SKETCH).nth(number).bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=8)
    page.mouse.up()


def slide(page, name, part):
    """Sets a slider of the open tab to a part of its range."""
    track = page.locator(".q-tab-panel:visible").get_by_label(name, exact=True).locator(".q-slider__track-container")
    box = track.bounding_box()
    track.click(position=dict(x=min(part * box["width"], box["width"] - 1), y=box["height"] / 2))


def soon(page, holds):
    """Waits until something holds of the page."""
    for _ in range(200):
        if holds():
            return
        page.wait_for_timeout(50)
    assert holds()


@pytest.fixture(scope="module")
def shipped():
    return load(ROOT / "examples" / "app" / "fashion_mnist", "cpu", dataless=True)


@pytest.mark.slow
@browser
def test_bits_in_a_browser(visited, shipped):
    panel, said = pressed(visited, "Bits", "Count the bits")
    assert re.fullmatch(r"It took [0-9.]+ s\.", said)
    mean, error = map(float, re.search(r"([0-9.]+) ± ([0-9.]+) bits/dim", panel.inner_text()).groups())
    x = pixels(visited, "the image")
    assert np.array_equal(x, sketch(visited, 0))
    wanted = playing.bits(shipped.model, shipped.params, torch.from_numpy(x)[None], random.key(0), 128)
    assert mean == pytest.approx(wanted.mean, abs=2e-3)
    assert error == pytest.approx(wanted.error, abs=2e-3)
    for name in ("map of all bits", "map of the bits of shape"):
        assert pixels(visited, name).shape[0] > 300
    if "PUREVDM_DEMO_PNG" in os.environ:
        visited.mouse.move(0, 0)
        visited.wait_for_timeout(1000)
        shot = Image.open(io.BytesIO(visited.screenshot(full_page=True))).convert("RGB")
        shot.quantize(256).save(os.environ["PUREVDM_DEMO_PNG"], optimize=True)


@pytest.mark.slow
@browser
def test_samples_in_a_browser(visited, shipped):
    opened(visited, "Sample")
    visited.get_by_label("solver").click()
    visited.get_by_role("option", name="DDIM").click()
    pressed(visited, "Sample", "Sample")
    drawn = playing.sample(shipped.model, shipped.params, random.key(0), 6, 40, "ddim")
    x = visited.get_by_role("button", name="sample 2").locator("img").get_attribute("src")
    x = np.array(Image.open(io.BytesIO(base64.b64decode(x.partition(",")[2]))))
    assert np.abs(x - drawn.x[1, 0].double().numpy()).mean() < 2.0  # grey levels: other numbers of threads round otherwise
    assert pixels(visited, "estimates on the way").shape == (6 * 30, 9 * 30, 3)
    visited.get_by_role("button", name="the noisy latents").click()
    assert pixels(visited, "latents on the way").shape == (6 * 30, 9 * 30, 3)
    visited.get_by_role("button", name="sample 2").click()
    soon(visited, lambda: np.array_equal(sketch(visited, 0), x))


@pytest.mark.slow
@browser
def test_a_hole_in_a_browser(visited):
    opened(visited, "Fill in")
    visited.get_by_role("button", name="Close the hole").click()
    grey = sketch(visited, 0)
    soon(visited, lambda: np.array_equal(sketch(visited, 1), np.repeat(grey[..., None], 3, 2)))
    assert pressed(visited, "Fill in", "Fill it in")[1] == "hole: expected some pixels, got none; draw a hole first"
    drag(visited, 1, (0.3, 0.5), (0.7, 0.5))
    soon(visited, lambda: (sketch(visited, 1)[14, 9:19] == [220, 60, 60]).all())
    hole = (sketch(visited, 1) == [220, 60, 60]).all(-1)
    assert 40 < hole.sum() < 90  # 4 pixels wide and 11 to 15 long
    slide(visited, "fillings", 0.0)
    slide(visited, "steps", 1 / 3)
    soon(visited, lambda: visited.locator(".q-tab-panel:visible").get_by_text("steps: 20", exact=True).count() == 1)
    pressed(visited, "Fill in", "Fill it in")
    soon(visited, lambda: visited.get_by_alt_text("filling 1", exact=True).count() == 1)
    assert visited.get_by_alt_text("filling 2", exact=True).count() == 0
    filled = pixels(visited, "filling 1")
    assert np.array_equal(filled[~hole], grey[~hole])
    assert not np.array_equal(filled[hole], grey[hole])
    assert np.array_equal(pixels(visited, "the image with its hole"), sketch(visited, 1))


@pytest.mark.slow
@browser
def test_a_drawing_is_compressed_in_a_browser(visited):
    visited.get_by_role("button", name="Clear").click()
    soon(visited, lambda: not sketch(visited, 0).any())
    drag(visited, 0, (0.25, 0.25), (0.75, 0.75))
    soon(visited, lambda: sketch(visited, 0)[np.arange(7, 21), np.arange(7, 21)].all())
    x = sketch(visited, 0)
    assert set(np.unique(x)) == {0, 255}
    assert not x[20:, :8].any()
    drag(visited, 0, (1.05, 0.1), (0.8, 0.1))  # a brush that comes in from outside begins where it comes in
    soon(visited, lambda: sketch(visited, 0)[2, 24:27].all())
    assert not sketch(visited, 0)[5:18, 22:].any()
    x = sketch(visited, 0)
    panel, said = pressed(visited, "Compress", "Compress")
    assert said.startswith("It took")
    assert "decoded: the same image, bit for bit." in panel.inner_text()
    rows = [cells.split("\t") for cells in panel.locator("tr").all_inner_texts()]
    sizes = {name: int(size) for name, size, *_ in rows[1:]}
    assert sizes["as they are, a byte a pixel"] == 784
    assert sizes["PNG"] == len(imagecodecs.png_encode(x, level=9))
    parts = [size for name, size in sizes.items() if name.startswith("…")]
    assert abs(sum(parts) - sizes["the model's file"]) <= 1


@pytest.mark.slow
@browser
def test_bad_input_gets_a_message_in_a_browser(visited, tmp_path):
    before = sketch(visited, 0)
    files = {
        "words.png": b"no image at all",
        "large.png": bytes(1_200_000),
        "good.png": png(np.full((56, 56), 77, np.uint8)),
    }
    words = {
        "words.png": "words.png: expected a PNG, JPEG, WEBP, GIF or BMP image, got something else",
        "large.png": "file: expected at most 1 MB, got a larger one",
        "good.png": "good.png, 56 x 56 pixels: it was shrunk to 28 x 28 pixels.",
    }
    for name, content in files.items():
        assert np.array_equal(sketch(visited, 0), before)
        (tmp_path / name).write_bytes(content)
        visited.locator("input[type=file]").set_input_files(tmp_path / name)
        visited.get_by_text(words[name], exact=True).wait_for(timeout=30_000)
    soon(visited, lambda: (sketch(visited, 0) == 77).all())
    opened(visited, "Bits").get_by_label("seed").fill("")
    said = pressed(visited, "Bits", "Count the bits")[1]
    assert said == "seed: expected a whole number from 0 to 2147483647, got None"


@pytest.mark.slow
@browser
def test_nothing_comes_from_elsewhere_and_nothing_stays(visited, served):
    address, process, folder = served
    own = (address, address.replace("http", "ws"), f"blob:{address}", "data:")
    assert [url for url in visited.asked if not url.startswith(own)] == []
    assert visited.errors == []
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert "Traceback" not in (folder / "log").read_text()
    assert [path for name in ("cwd", "tmp", "home") for path in (folder / name).rglob("*") if not path.is_dir()] == []
