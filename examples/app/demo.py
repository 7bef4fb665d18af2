"""A page to play with a trained model of small grey images, in a browser on this machine (extra "demo").

    python examples/app/demo.py                        # the shipped model of Fashion-MNIST, at http://127.0.0.1:8080
    python examples/app/demo.py runs/mine --port 8081  # a run of train.py, or an exported model

Draw an image, pick an example or upload a file. The page says how many bits it costs and where they lie, draws samples,
fills in what you cut out of the image, and writes it into a file beside PNG and JPEG XL. Examples are images of the test
set where the data are there (--path), and samples of the model otherwise. The page answers this machine only, loads nothing
from elsewhere, and keeps nothing. Ctrl-C ends it.
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")  # which tqdm reads when it is imported
    if importlib.util.find_spec("nicegui") is None:
        sys.exit("demo.py needs the package nicegui: pip install -c .ci/constraints.txt '.[demo]'")

import controls
import numpy as np
import playing
import programs
import torch
import tyro
from controls import Number, Sketch, answer, note, row, shown, small_button, table
from nicegui import app, events, ui
from pictures import tiles
from runs import Run, load
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from torch import Tensor

from purevdm import random
from purevdm.training.data import batch

SOLVERS = {
    "dpmpp_2m": "DPM-Solver++(2M): looks at two steps, good in few",
    "ddim": "DDIM: looks at one step, without new noise",
    "ancestral": "ancestral: the paper's, with new noise in each step",
}


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


@programs.program
def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)  # several wait for one another where the machine is busy, on work as small as this
    controls.whole("port", args.port, 1, 2**16 - 1)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", args.port))
        except OSError as error:
            raise ValueError(f"port: expected a free one, got {args.port} ({error.strerror})") from None
    run = load(args.checkpoint, "cpu", dataless=args.path is None, **{"data.path": args.path})
    shape, levels, form = run.train.event_shape, run.train.vocab_size, run.config.model
    if len(shape) != 3 or shape[0] != 1 or levels != 256 or max(shape) > 64 or form.labels or form.kind != "vdm":
        wanted = "a diffusion model of grey images of 256 levels, at most 64 x 64, without classes"
        raise ValueError(f"checkpoint: expected {wanted}, got a {form.kind} of {shape}, {levels} values")
    if run.test.size:
        examples = batch(run.test, np.arange(min(8, run.test.size)))[0].to(torch.uint8)
    else:
        print("drawing examples from the model, as no data are there", flush=True)
        examples = run.model.sample(run.params, random.key(args.seed), 8, steps=50).to(torch.uint8)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.middleware("http")(bounded)
    app.on_shutdown(lambda: controls.ending.append(True))
    print(f"http://127.0.0.1:{args.port} (Ctrl-C ends it)", flush=True)
    options = dict(
        title="purevdm", favicon="🎲", reload=False, show=False, show_welcome_message=False, reconnect_timeout=10.0
    )
    ui.run(partial(page, run, examples), host="127.0.0.1", port=args.port, **options)


async def bounded(request: Any, call_next: Callable[..., Any]) -> Any:
    """Refuses to receive more than a file of the size that is allowed."""
    size = request.headers.get("content-length")
    if request.method not in ("GET", "HEAD") and (size is None or int(size) > playing.BYTES + 10_000):
        return PlainTextResponse(f"expected at most {playing.BYTES} bytes", 413)
    return await call_next(request)


def page(run: Run, examples: Tensor) -> None:
    """Builds the page of one visitor, with an image of its own."""
    height, width = examples.shape[-2:]
    image, sketches = examples[0, 0].numpy().copy(), []

    def change(x: Tensor | np.ndarray, where: Any = ...) -> None:
        image[where] = x
        for sketch in sketches:
            sketch.draw()

    def now() -> Tensor:
        return torch.from_numpy(image.copy())[None]

    ui.query("body").style("background: #f6f6f4")
    ui.add_css(".q-uploader__list, .q-uploader__subtitle { display: none }")
    with ui.column().classes("w-full mx-auto gap-2").style("max-width: 1180px"):
        ui.label("Play with a diffusion model").classes("text-2xl font-medium")
        data = run.train.name.removesuffix(" train")
        note(f"Trained on {data}: grey images of {width} x {height} pixels. All is computed on this machine, by the CPU.")
        with row(4):
            with ui.card().classes("gap-2").style("flex: 1 1 312px; max-width: 100%"):
                ui.label("Your image").classes("text-lg font-medium")
                note("Draw on it, pick an example, or upload a file.")
                sketches.append(Sketch(lambda: image, lambda touched: change(grey(), touched), lambda: brush()))
                grey, brush = Number("grey", 0, 255, 255, note=", 0 black to 255 white"), Number("brush, pixels", 1, 6, 2)
                with row(2):
                    small_button("Clear", lambda: change(0))
                    small_button("Invert", lambda: change(255 - image))
                note(f"Examples: {'images of the test set' if run.test.size else 'samples of the model'}")
                controls.choices(examples, "example", 64, change)
                upload(change, height, width)
            with ui.card().style("flex: 999 1 380px; min-width: 0; max-width: 100%"):
                with ui.tabs().props("no-caps align=left dense").classes("w-full") as tabs:
                    names = [ui.tab(name) for name in ("Bits", "Sample", "Fill in", "Compress")]
                with ui.tab_panels(tabs, value=names[0], animated=False, keep_alive=True).classes("w-full"):
                    of_each = (
                        (of_bits, now),
                        (of_samples, change),
                        (of_holes, now, image, sketches),
                        (of_files, now, examples),
                    )
                    for name, (build, *given) in zip(names, of_each, strict=True):
                        with ui.tab_panel(name).classes("px-0 gap-4"):
                            build(run, *given)


def upload(change: Callable[[Tensor], None], height: int, width: int) -> None:
    """Makes the place for a file."""

    async def received(event: events.UploadEventArguments) -> None:
        try:
            x, changes = playing.picture(event.file.name[:80], await event.file.read(), height, width)
            change(x[0])
            said.set_text(changes)
        except Exception as error:
            controls.wrong(said, error)
        place.reset()

    most = f"at most {playing.BYTES / 1e6:g} MB"
    options = dict(auto_upload=True, max_file_size=playing.BYTES, on_upload=received)
    refuse = lambda: said.set_text(f"file: expected {most}, got a larger one")  # noqa: E731
    place = ui.upload(label=f"Upload an image, {most}", on_rejected=refuse, **options).props("flat").classes("w-full")
    said = controls.status()


def of_bits(run: Run, now: Callable[[], Tensor]) -> None:
    ui.label(
        "How many bits would a lossless compressor built from the model spend on your image? On average no more than the "
        "bound below. The bound is a mean over random noise, so it has a standard error: four times the draws halve it."
    )
    with row():
        draws, seed = Number("draws of noise", 32, 512, 128, step=16), controls.seeds()

    def ask() -> Callable[..., Any]:
        x, given = now(), (random.key(seed()), draws())
        return lambda progress: (x, playing.bits(run.model, run.params, x, *given, progress))

    def show(found: tuple[Tensor, playing.Bits]) -> None:
        x, bits = found
        total = bits.mean * x.numel()
        ui.label(f"{bits.mean:.3f} ± {bits.error:.3f} bits/dim").classes("text-2xl")
        ui.label(f"Bits per pixel: in all {total:.0f} bits, or {total / 8:.0f} bytes. Stored plainly, a pixel takes 8 bits.")
        with row(4):
            shown(controls.url(x[0]), "the image", 200, "the image")
            every = "where the bits lie: texture costs, plain areas are cheap"
            shown(controls.heat(bits.map), "map of all bits", 276, every, smooth=True)
            above = "the part spent on what much noise leaves to see, the shape: it is large where the shape surprises"
            shown(controls.heat(bits.noisy), "map of the bits of shape", 276, above, smooth=True)
        means = {
            "recon": "reconstruction: rounding the last latent, almost without noise, to whole grey levels",
            "prior": "prior: what the latent with most noise still tells of the image",
            "diffusion": "diffusion: all steps between, where the network predicts the image from a noisy latent",
        }
        table(["part of the bound", "bits/dim"], [(means[name], f"{value:.4f}") for name, value in bits.terms.items()])

    answer("Count the bits", ask, show)


def of_samples(run: Run, change: Callable[[Tensor], None]) -> None:
    ui.label(
        "The model draws new images. It starts from noise, and each step takes some of it away; with more steps the images "
        "are nearer to what the model learned. The same seed gives the same images."
    )
    with row():
        n, steps = Number("images", 1, 8, 6), Number("steps", 5, 100, 40)
        solver = ui.select(SOLVERS, value="dpmpp_2m", label="solver").props("dense outlined")
        solver.style("width: 400px; max-width: 100%")
        seed = controls.seeds()

    def ask() -> Callable[..., Any]:
        given = (random.key(seed()), n(), steps(), solver.value)
        return lambda progress: (given[2], playing.sample(run.model, run.params, *given, progress=progress))

    def show(found: tuple[int, playing.Drawn]) -> None:
        count, drawn = found
        ui.label("Samples. Click one to make it your image.")
        controls.choices(drawn.x.to(torch.uint8), "sample", 110, change)
        ui.label(f"How they came about: at steps {', '.join(str(i + 1) for i in drawn.steps)} of {count}, and at the end.")
        kinds = {"estimates": "what the network takes the image to be", "latents": "the noisy latents that it is given"}
        choice = ui.toggle(kinds, value="estimates").props("no-caps dense flat wrap")
        for kind in kinds:
            strip = torch.cat([getattr(drawn, kind), drawn.x[None]]).transpose(0, 1)
            with ui.element("div").classes("w-full") as box:
                shown(
                    controls.url(tiles(strip.flatten(0, 1), 256, strip.shape[1])), f"{kind} on the way", 84 * strip.shape[1]
                )
            box.bind_visibility_from(choice, "value", lambda value, kind=kind: value == kind)

    answer("Sample", ask, show)


def of_holes(run: Run, now: Callable[[], Tensor], image: np.ndarray, sketches: list[Sketch]) -> None:
    ui.label(
        "Draw a hole, in red. The model draws what could be there, given the rest. Each step is taken several times, so "
        "that the filling comes to fit what is around it (RePaint)."
    )
    hole, red = np.zeros(image.shape, bool), np.array([220, 60, 60], np.uint8)
    hole[tuple(slice(side // 3, side * 2 // 3) for side in image.shape)] = True

    def cut() -> np.ndarray:
        return np.where(hole[..., None], red, image[..., None])

    def close() -> None:
        hole[...] = False
        sketches[-1].draw()

    with row():
        with ui.column().classes("gap-2"):
            sketches.append(Sketch(cut, lambda touched: np.copyto(hole, True, where=touched), lambda: brush()))
            small_button("Close the hole", close)
        with ui.column().classes("gap-2"):
            brush, n = Number("brush, pixels", 1, 10, 4), Number("fillings", 1, 4, 3)
            steps, repeats = Number("steps", 10, 40, 25), Number("times that each is taken", 1, 4, 3)
            seed = controls.seeds()

    def ask() -> Callable[..., Any]:
        given = (now(), torch.from_numpy(hole.copy())[None], random.key(seed()), n(), steps(), repeats())
        before = cut()
        return lambda progress: (before, playing.fill(run.model, run.params, *given, progress))

    def show(found: tuple[np.ndarray, Tensor]) -> None:
        with row(2):
            shown(controls.url(found[0]), "the image with its hole", 150, "given")
            for i, x in enumerate(found[1][:, 0].to(torch.uint8)):
                shown(controls.url(x), f"filling {i + 1}", 150, f"filling {i + 1}")

    answer("Fill it in", ask, show)


def of_files(run: Run, now: Callable[[], Tensor], examples: Tensor) -> None:
    ui.label(
        "The model as a lossless compressor, by bits-back coding. To pick an image's latents the coder uses up bits that "
        "are already in the file; decoding gives them back. For the first image there are none yet, so a file starts with "
        "random bits. This is why one image by itself makes a large file. Put examples beside it, and each costs less."
    )
    with row():
        n = Number("images in the file", 1, 4, 1, note=", yours first")
        steps = Number("steps", 10, 50, 50, note=" (fewer: faster, larger file)")

    def ask() -> Callable[..., Any]:
        others = [x for x in examples if not torch.equal(x, now())]
        x, given = torch.stack([now(), *others])[: n()], steps()
        return lambda progress: (x, playing.pack(run.model, run.params, x, given, progress))

    def show(found: tuple[Tensor, playing.Packed]) -> None:
        x, packed = found
        initial, whole = packed.info.initial_bits / 8, packed.info.size
        net = packed.info.stack_bits / 8 - initial
        peers = {name: size for name, size in packed.sizes.items() if name != "model"}
        sizes = {"as they are, a byte a pixel": x.numel(), **peers, "the model's file": whole}
        sizes |= {
            "… its images": net,
            "… its random bits, once a file": initial,
            "… its head and checksums": whole - net - initial,
        }
        lines = [
            (name, *(f"{size / n:.0f}" for n in (1, len(x))), f"{8 * size / x.numel():.2f}") for name, size in sizes.items()
        ]
        table(["format", "bytes", "bytes an image", "bits/dim"], lines)
        same = "the same image" if len(x) == 1 else f"the same {len(x)} images"
        ui.label(
            f"The model's file was decoded: {same}, bit for bit." if packed.same else "DECODED TO OTHER IMAGES: a fault."
        )
        best = min(peers, key=peers.get, default="")
        if best:
            than = f"{net / len(x):.0f} bytes, where {best} takes {peers[best] / len(x):.0f}"
            ui.label(f"In a file of many such images, which share random bits and head, one would cost about {than}.")
        shown(controls.url(tiles(x, 256, len(x))), "the images in the file", 60 * len(x))

    answer("Compress", ask, show)


if __name__ == "__main__":
    main()
