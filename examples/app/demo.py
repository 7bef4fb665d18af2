"""A page to play with a trained model of small grey images, in a browser on this machine (extra "demo").

    python examples/app/demo.py                        # the shipped model of Fashion-MNIST, at http://127.0.0.1:8080
    python examples/app/demo.py runs/mine --port 8081  # a run of train.py, or an exported model

Draw an image, pick an example or upload a file. The page says how many bits it costs and where they lie, draws samples, fills
in what you cut out of the image, and writes it into a file beside PNG and JPEG XL. Examples are images of the test set where
the data are there (--path), and samples of the model otherwise. The page answers this machine only, loads nothing from
elsewhere, and keeps nothing. Ctrl-C ends it.
"""

import asyncio
import base64
import io
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import playing
import programs
import torch
import tyro
from matplotlib.figure import Figure
from nicegui import app, events, ui
from pictures import tiles
from PIL import Image
from runs import Run, load
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from torch import Tensor

from purevdm import random
from purevdm.training.data import batch

SIDE = 280  # of a sketch, in pixels of the screen
SOLVERS = {
    "dpmpp_2m": "DPM-Solver++(2M): two steps together, good in few",
    "ddim": "DDIM: one step at a time, without noise",
    "ancestral": "ancestral: the paper's, with new noise at each step",
}
POOL = ThreadPoolExecutor(1)  # one answer at a time
ENDING = False


@dataclass
class Arguments:
    checkpoint: Annotated[Path, tyro.conf.Positional] = Path(__file__).parent / "fashion_mnist"
    """A run's folder, or an exported model's: of grey images, without classes."""
    path: str | None = None
    """Where the data are, if not where they were in training."""
    port: int = 8080
    """Of this machine, 127.0.0.1."""
    seed: int = 0
    """Of the examples that are samples of the model."""


class Stopped(Exception):
    """The program ends while an answer is computed."""


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", args.port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"port: expected a free one, got {args.port} ({error})") from None
    run = load(args.checkpoint, "cpu", dataless=args.path is None, **({} if args.path is None else {"data.path": args.path}))
    shape, levels = run.train.event_shape, run.train.vocab_size
    if len(shape) != 3 or shape[0] != 1 or levels != 256 or max(shape) > 64 or run.config.model.labels:
        kind = "a model of grey images with 256 levels, at most 64 x 64 pixels, without classes"
        raise ValueError(f"checkpoint: expected {kind}, got events {shape} of {levels} values")
    if run.config.model.kind != "vdm":
        raise ValueError(f"checkpoint: expected a diffusion model, got one of the kind {run.config.model.kind!r}")
    if run.test.size:
        images = batch(run.test, np.arange(min(8, run.test.size)))[0].to(torch.uint8)
    else:
        print("drawing examples, as no data are there", flush=True)
        images = run.model.sample(run.params, random.key(args.seed), 8, steps=50).to(torch.uint8)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.middleware("http")(bounded)
    app.on_shutdown(end)
    print(f"http://127.0.0.1:{args.port} (Ctrl-C ends it)", flush=True)
    options = dict(title="purevdm", favicon="🎲", reload=False, show=False, show_welcome_message=False)
    ui.run(partial(page, run, images), host="127.0.0.1", port=args.port, **options)


async def bounded(request: Any, call_next: Callable) -> Any:
    """Refuses to receive more than a file of the size that is allowed."""
    size = request.headers.get("content-length")
    if request.method not in ("GET", "HEAD") and (size is None or int(size) > playing.BYTES + 10_000):
        return PlainTextResponse(f"expected at most {playing.BYTES} bytes", 413)
    return await call_next(request)


def end() -> None:
    global ENDING
    ENDING = True


# Parts of the page


def url(image: np.ndarray | Tensor, zoom: int = 1) -> str:
    """Writes an image, uint8 (height, width) or (height, width, 3), as an address that holds it."""
    picture, buffer = Image.fromarray(np.asarray(image)), io.BytesIO()
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shown(source: str, alt: str, width: int, caption: str = "") -> None:
    """Shows a picture, at most as wide as the page, with what it is."""
    with ui.column().classes("gap-1").style(f"width: {width}px; max-width: 100%"):
        ui.html(f'<img src="{source}" alt="{alt}" style="width: 100%; image-rendering: pixelated">', sanitize=False).classes(
            "w-full"
        )
        if caption:
            ui.label(caption).classes("text-sm text-gray-700")


def heat(values: Tensor) -> str:
    """Draws a map with its scale, bits in a pixel."""
    figure = Figure(figsize=(3.4, 2.9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values.numpy(), cmap="magma", vmin=0)
    axes.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="bits in a pixel", shrink=0.9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def slider(label: str, low: int, high: int, value: int) -> Any:
    """Makes a slider of whole numbers whose label says its value."""
    with ui.column().classes("gap-0").style("width: 260px; max-width: 100%"):
        text = ui.label()
        made = ui.slider(min=low, max=high, value=value).props(f'aria-label="{label}"')
        text.bind_text_from(made, "value", lambda value: f"{label}: {value}")
    return made


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Reads a whole number of the page, which may hold anything."""
    if not isinstance(value, int | float) or value != value or int(value) != value or not low <= value <= high:
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {value!r}")
    return int(value)


def answer(label: str, ask: Callable[[], Callable[..., Any]], show: Callable[[Any], None]) -> None:
    """Makes a button. ``ask`` reads the page and returns what to compute, which takes ``progress``; ``show`` draws the
    result. What goes wrong is said below."""

    async def press() -> None:
        button.disable()
        below.clear()
        said.set_text("")
        started, done = time.perf_counter(), [0.0]

        def progress(part: float) -> None:
            done[0] = part
            if ENDING:
                raise Stopped

        ticking.activate()
        bar.set_visibility(True)
        look[0] = lambda: bar.set_value(done[0])
        try:
            call = partial(ask(), progress=progress)
            result = await asyncio.get_running_loop().run_in_executor(POOL, call)
            with below:
                show(result)
            said.set_text(f"It took {time.perf_counter() - started:.1f} s.")
        except Stopped:
            pass
        except Exception as error:
            wrong(said, error)
        finally:
            ticking.deactivate()
            bar.set_visibility(False)
            bar.set_value(0.0)
            button.enable()

    look: list[Callable[[], None]] = [lambda: None]
    button = ui.button(label, on_click=press).props("no-caps")
    bar = ui.linear_progress(value=0.0, show_value=False).props("instant-feedback").classes("w-full")
    bar.set_visibility(False)
    ticking = ui.timer(0.2, lambda: look[0](), active=False)
    said = ui.label().classes("text-sm text-gray-700").props('role="status"')
    below = ui.column().classes("w-full gap-4")


def wrong(label: ui.label, error: Exception) -> None:
    """Says what went wrong. What no user can mend is said on the terminal, too."""
    if programs.expected(error):
        label.set_text(programs.message(error))
    else:
        traceback.print_exception(error, file=sys.stderr)
        label.set_text(f"The program has a fault, which its terminal shows: {programs.message(error)}")


class Sketch:
    """A square of the screen to draw on, with a brush."""

    def __init__(self, paint: Callable[[np.ndarray], None], look: Callable[[], np.ndarray], thickness: Callable[[], float]):
        self.paint, self.look, self.thickness, self.last = paint, look, thickness, (0.0, 0.0)
        self.view = ui.interactive_image().style(
            f"width: {SIDE}px; height: {SIDE}px; image-rendering: pixelated; touch-action: none; cursor: crosshair"
        )
        self.view.on("pointerdown", partial(self.moved, True), js_handler="(e) => emit(e.offsetX, e.offsetY)")
        self.view.on("pointermove", partial(self.moved, False), js_handler="(e) => e.buttons && emit(e.offsetX, e.offsetY)")
        self.draw()

    def moved(self, begins: bool, event: events.GenericEventArguments) -> None:
        height, width = self.look().shape[:2]
        x, y = (float(value) / SIDE for value in event.args)
        point = (x * width, y * height)
        self.paint(playing.stroke(height, width, point if begins else self.last, point, self.thickness()))
        self.last = point
        self.draw()

    def draw(self) -> None:
        self.view.set_source(url(self.look()))


# The page


def page(run: Run, examples: Tensor) -> None:
    """Builds the page of one visitor, with an image of its own."""
    height, width = examples.shape[-2:]
    image, hole = examples[0, 0].numpy().copy(), np.zeros((height, width), bool)
    hole[height // 3 : height * 2 // 3, width // 3 : width * 2 // 3] = True

    def take(x: Tensor | np.ndarray) -> None:
        image[...] = np.asarray(x)
        redraw()

    def redraw() -> None:
        for sketch in sketches:
            sketch.draw()

    def now() -> Tensor:
        return torch.from_numpy(image.copy())[None]

    def cut() -> np.ndarray:
        """Gives the image with its hole in red."""
        return np.where(hole[..., None], np.array([220, 60, 60], np.uint8), image[..., None])

    ui.query("body").style("background: #f6f6f4")
    with ui.column().classes("w-full mx-auto gap-2").style("max-width: 1180px"):
        ui.label("Play with a diffusion model").classes("text-2xl font-medium")
        name = run.train.name.removesuffix(" train")
        ui.label(
            f"It was trained on {name}: grey images of {width} x {height} pixels. All is computed on this machine, on the CPU."
        ).classes("text-gray-700")
        with ui.row().classes("w-full items-start gap-4"):
            with ui.card().classes("gap-2").style("width: 320px; max-width: 100%"):
                ui.label("Your image").classes("text-lg font-medium")
                ui.label("Draw on it, pick an example, or upload a file.").classes("text-sm text-gray-700")
                first = Sketch(lambda touched: paint(touched), lambda: image, lambda: brush.value)
                grey = slider("grey, from 0 (black) to 255 (white)", 0, 255, 255)
                brush = slider("brush, pixels", 1, 6, 2)
                with ui.row().classes("gap-2"):
                    ui.button("Clear", on_click=lambda: take(np.zeros_like(image))).props(
                        "no-caps outline dense padding=4px"
                    )
                    ui.button("Invert", on_click=lambda: take(255 - image)).props("no-caps outline dense padding=4px")
                kind = "images of the test set" if run.test.size else "samples of the model"
                ui.label(f"Examples: {kind}").classes("text-sm text-gray-700")
                with ui.row().classes("gap-1"):
                    for i, x in enumerate(examples[:, 0]):
                        thumb = ui.image(url(x)).props(f'no-spinner no-transition alt="example {i + 1}" role=button')
                        thumb.style("width: 64px; image-rendering: pixelated; cursor: pointer").on("click", partial(take, x))
                told = ui.label().classes("text-sm text-gray-700").props('role="status"')
                uploads(told, take, height, width)
            with ui.card().classes("grow").style("flex-basis: 380px; min-width: 0; max-width: 100%"):
                with ui.tabs().props("no-caps align=left dense").classes("w-full") as tabs:
                    names = [ui.tab(name) for name in ("Bits", "Sample", "Fill in", "Compress")]
                with ui.tab_panels(tabs, value=names[0], keep_alive=True).classes("w-full"):
                    with ui.tab_panel(names[0]).classes("px-0"):
                        of_bits(run, now)
                    with ui.tab_panel(names[1]).classes("px-0"):
                        of_samples(run, take)
                    with ui.tab_panel(names[2]).classes("px-0"):
                        second = of_holes(run, now, hole, cut)
                    with ui.tab_panel(names[3]).classes("px-0"):
                        of_files(run, now, examples)
    sketches = [first, second]

    def paint(touched: np.ndarray) -> None:
        image[touched] = whole("grey", grey.value, 0, 255)
        second.draw()


def uploads(told: ui.label, take: Callable[[Tensor], None], height: int, width: int) -> None:
    """Makes the place for a file."""

    async def received(event: events.UploadEventArguments) -> None:
        try:
            x, said = playing.picture(event.file.name[:80], await event.file.read(), height, width)
            take(x[0])
            told.set_text(said)
        except Exception as error:
            wrong(told, error)
        place.reset()

    def rejected() -> None:
        told.set_text(f"file: expected one of at most {playing.BYTES / 1e6:g} MB, got a larger one")

    options = dict(auto_upload=True, max_file_size=playing.BYTES, on_upload=received, on_rejected=rejected)
    place = ui.upload(label="Upload an image, at most 1 MB", **options).props("flat bordered hide-upload-btn")
    place.classes("w-full").style("max-height: 100px")


def of_bits(run: Run, now: Callable[[], Tensor]) -> None:
    ui.markdown(
        "How many bits would a lossless compressor built from the model spend on your image? The **bound** says: at most so "
        "many on average. It is a mean over random noise levels and noise, so it has a standard error, which falls as the "
        "root of the number of draws."
    )
    draws = slider("draws of noise", 32, 512, 128).props("step=16")
    seed = seed_of()

    def ask() -> Callable[..., Any]:
        x, key = now(), random.key(whole("seed", seed.value, 0, 2**31 - 1))
        n = whole("draws", draws.value, 32, 512)
        return lambda progress: (x, playing.bits(run.model, run.params, x, key, n, progress))

    def show(found: tuple[Tensor, playing.Bits]) -> None:
        x, bits = found
        ui.label(f"{bits.mean:.3f} ± {bits.error:.3f} bits/dim").classes("text-2xl").props('data-answer="bits"')
        total = bits.mean * x.numel()
        ui.label(
            f"bits per pixel: {total:.0f} bits, or {total / 8:.0f} bytes, for all {x.numel()} pixels. "
            "Without a model a pixel costs 8 bits."
        )
        with ui.row().classes("gap-4"):
            shown(url(x[0], 10), "the image", 220, "the image")
            shown(
                heat(bits.map), "map of all bits", 290, "where the bits lie: edges and textures cost, flat parts are cheap"
            )
            shown(
                heat(bits.noisy),
                "map of the bits of shape",
                290,
                "of these, the bits spent while noise still hides all but shapes: what surprises here is out of place",
            )
        means = {
            "diffusion": "to follow the noise's way back to the image, step by step",
            "recon": "reconstruction: to round the last latent to whole grey levels",
            "prior": "what of the image is left in the noisiest latent",
        }
        rows = [dict(part=part, bits=f"{value:.4f}", what=means[part]) for part, value in bits.terms.items()]
        table([("part", "part"), ("bits", "bits/dim"), ("what", "what it pays for")], rows)

    answer("Count the bits", ask, show)


def seed_of() -> Any:
    return ui.number("seed", value=0, precision=0).props("dense outlined").style("width: 140px")


def table(columns: list[tuple[str, str]], rows: list[dict[str, str]]) -> None:
    heads = [dict(name=name, label=label, field=name, align="left") for name, label in columns]
    ui.table(columns=heads, rows=rows).props("flat dense wrap-cells").classes("w-full")


def of_samples(run: Run, take: Callable[[Tensor], None]) -> None:
    ui.markdown(
        "The model draws new images: it begins with noise, and in each step takes a little of it away. More steps follow the "
        "model more exactly. The same seed gives the same images."
    )
    with ui.row().classes("w-full gap-x-8 gap-y-2"):
        n, steps = slider("images", 1, 8, 6), slider("steps", 5, 100, 40)
        solver = ui.select(SOLVERS, value="dpmpp_2m", label="solver").props("dense outlined")
        solver.style("width: 420px; max-width: 100%")
        seed = seed_of()

    def ask() -> Callable[..., Any]:
        given = (random.key(whole("seed", seed.value, 0, 2**31 - 1)), whole("images", n.value, 1, 8))
        count = whole("steps", steps.value, 5, 100)
        return lambda progress: (
            count,
            playing.sample(run.model, run.params, *given, count, solver.value, progress=progress),
        )

    def show(found: tuple[int, playing.Drawn]) -> None:
        count, drawn = found
        ui.label("The samples; click one to make it your image.")
        with ui.row().classes("gap-2"):
            for i, x in enumerate(drawn.x[:, 0].to(torch.uint8)):
                sample = ui.image(url(x)).props(f'no-spinner no-transition alt="sample {i + 1}" role=button')
                sample.style("width: 112px; image-rendering: pixelated; cursor: pointer").on("click", partial(take, x))
        at = ", ".join(map(str, drawn.steps))
        ui.label(f"On the way, one line for each sample: after {at} of {count} steps, and at the end.")
        kinds = {"estimates": "what the network takes the image to be", "latents": "the noisy latent it sees"}
        choice = ui.toggle(kinds, value="estimates").props("no-caps dense flat")
        sources = {}
        for kind in kinds:
            strip = torch.cat([getattr(drawn, kind), drawn.x[None]]).transpose(0, 1)
            sources[kind] = url(tiles(strip.flatten(0, 1), 256, strip.shape[1]), 3)
        for kind, source in sources.items():
            with ui.element("div").classes("w-full") as box:
                shown(source, f"{kind} on the way", 90 * (len(drawn.steps) + 1))
            box.bind_visibility_from(choice, "value", lambda value, kind=kind: value == kind)

    answer("Sample", ask, show)


def of_holes(run: Run, now: Callable[[], Tensor], hole: np.ndarray, cut: Callable[[], np.ndarray]) -> Sketch:
    ui.markdown(
        "Draw a hole, in red. The model draws what could be there, given the rest: each time another image. Each step is "
        "taken several times over, so that the filling comes to fit what is around it (RePaint)."
    )

    def paint(touched: np.ndarray) -> None:
        hole[touched] = True

    def clear() -> None:
        hole[...] = False
        sketch.draw()

    with ui.row().classes("w-full gap-x-8 gap-y-2 items-start"):
        with ui.column().classes("gap-2"):
            sketch = Sketch(paint, cut, lambda: brush.value)
            ui.button("Close the hole", on_click=clear).props("no-caps outline dense padding=4px")
        with ui.column().classes("gap-2"):
            brush = slider("brush, pixels", 1, 10, 4)
            n, steps, repeats = slider("fillings", 1, 4, 3), slider("steps", 10, 50, 25), slider("times each step", 1, 5, 3)
            seed = seed_of()

    def ask() -> Callable[..., Any]:
        x, there, key = now(), torch.from_numpy(hole.copy())[None], random.key(whole("seed", seed.value, 0, 2**31 - 1))
        numbers = (whole("fillings", n.value, 1, 4), whole("steps", steps.value, 10, 50))
        given = (x, there, key, *numbers, whole("times", repeats.value, 1, 5))
        return lambda progress: (cut(), playing.fill(run.model, run.params, *given, progress=progress))

    def show(found: tuple[np.ndarray, Tensor]) -> None:
        with ui.row().classes("gap-2"):
            shown(url(found[0], 8), "the image with its hole", 150, "given")
            for i, x in enumerate(found[1][:, 0].to(torch.uint8)):
                shown(url(x, 8), f"filling {i + 1}", 150, f"filling {i + 1}")

    answer("Fill it in", ask, show)
    return sketch


def of_files(run: Run, now: Callable[[], Tensor], examples: Tensor) -> None:
    ui.markdown(
        "The model as a lossless compressor, by **bits-back coding**. To choose among the latents that fit an image it reads "
        "random bits, and gets them back in decoding. The first image must be lent some; each later one reads those of the "
        "images before. So one image by itself makes a large file: put examples beside yours, and see the cost of each fall."
    )
    with ui.row().classes("w-full gap-x-8 gap-y-2"):
        n = slider("images in the file, yours and examples", 1, 8, 1)
        steps = slider("steps: fewer are faster, and cost more", 10, 50, 50)

    def ask() -> Callable[..., Any]:
        count = whole("images", n.value, 1, len(examples))
        x = torch.cat([now()[None], examples[: count - 1]])
        return lambda progress: (
            x,
            playing.pack(run.model, run.params, x, whole("steps", steps.value, 10, 50), progress),
        )

    def show(found: tuple[Tensor, playing.Packed]) -> None:
        x, packed = found
        info, each = packed.info, x[0].numel()
        initial, net = info.initial_bits / 8, (info.stack_bits - info.initial_bits) / 8
        names = {"model": "this model's file", "as pixels": "as they are, a byte for each pixel"}
        sizes = {"as pixels": float(x.numel())} | {name: packed.sizes[name] for name in packed.sizes if name != "model"}
        sizes |= {"model": packed.sizes["model"]}
        lines = {names.get(name, name): size for name, size in sizes.items()}
        lines |= {"  of which lent at the start, once for a file": initial, "  of which the images themselves": net}
        lines |= {"  of which the file's head and checksums": info.size - initial - net}
        rows = [
            dict(name=name, size=f"{size:.0f}", each=f"{size / len(x):.0f}", rate=f"{8 * size / (len(x) * each):.2f}")
            for name, size in lines.items()
        ]
        table([("name", "format"), ("size", "bytes"), ("each", "bytes an image"), ("rate", "bits/dim")], rows)
        same = "the same image" if len(x) == 1 else f"the same {len(x)} images"
        ui.label(f"Decoded: {same}, bit for bit." if packed.same else "Decoded: NOT what was encoded.").props(
            "data-answer=same"
        )
        best = min((name for name in packed.sizes if name != "model"), key=packed.sizes.get, default=None)
        if best is not None:
            gain = packed.sizes[best] / net
            ui.label(
                f"Of many images in one file, each costs what is in “the images themselves”: {net / len(x):.0f} bytes here, "
                f"against {packed.sizes[best] / len(x):.0f} by {best}, "
                + (f"{gain:.2f} times as many." if gain > 1 else "fewer.")
            )
        shown(url(tiles(x, 256, len(x)), 2), "the images in the file", 60 * len(x))

    answer("Compress", ask, show)


if __name__ == "__main__":
    main()
