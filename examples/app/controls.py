"""What demo.py's page is made of: sliders, pictures, sketches, and buttons whose answers are computed beside the page."""

import asyncio
import base64
import io
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import playing
import programs
from matplotlib.figure import Figure
from nicegui import events, ui
from PIL import Image
from torch import Tensor

SIDE = 280  # of a sketch, in pixels of the screen
POOL = ThreadPoolExecutor(1)  # one answer at a time
SEEDS = 2**31 - 1
ending: list[bool] = []


class StoppedError(Exception):
    """The program ends, or the visitor leaves, while an answer is computed."""


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Reads a whole number, as what a page sends may be anything."""
    if type(value) not in (int, float) or not low <= value <= high or value != int(value):
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {value!r}")
    return int(value)


def wrong(label: ui.label, error: Exception) -> None:
    """Says what went wrong. A fault of the program, which no user can mend, is shown on the terminal."""
    if programs.expected(error):
        label.set_text(programs.message(error))
    else:
        traceback.print_exception(error, file=sys.stderr)
        label.set_text(f"The program has a fault, which its terminal shows: {programs.message(error)}")


class Number:
    """A slider of whole numbers, whose label says its value."""

    def __init__(self, name: str, low: int, high: int, value: int, step: int = 1, note: str = ""):
        self.name, self.limits = name, (low, high)
        with ui.column().classes("gap-0").style("width: 260px; max-width: 100%"):
            text = ui.label()
            self.slider = ui.slider(min=low, max=high, value=value, step=step).props(f'aria-label="{name}"')
            text.bind_text_from(self.slider, "value", lambda value: f"{name}{note}: {value}")

    def __call__(self) -> int:
        return whole(self.name, self.slider.value, *self.limits)


def seeds() -> Callable[[], int]:
    """Makes a field for the seed of what is random."""
    field = ui.number("seed", value=0, precision=0).props("dense outlined").style("width: 140px")
    return lambda: whole("seed", field.value, 0, SEEDS)


def note(text: str) -> ui.label:
    return ui.label(text).classes("text-sm text-gray-700")


def status() -> ui.label:
    return note("").props('role="status"')


def row(gap: int = 8) -> ui.row:
    return ui.row().classes(f"w-full items-start gap-x-{gap} gap-y-2")


def small_button(label: str, press: Callable[[], None]) -> None:
    ui.button(label, on_click=press).props("no-caps outline dense padding='4px 8px'")


def url(image: np.ndarray | Tensor, zoom: int = 1) -> str:
    """Writes an image, uint8 (height, width) or (height, width, 3), as an address that holds it."""
    picture, buffer = Image.fromarray(np.asarray(image)), io.BytesIO()
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat(values: Tensor) -> str:
    """Draws a map with its scale, bits in a pixel."""
    figure, buffer = Figure(figsize=(3.4, 2.8), layout="constrained"), io.BytesIO()
    axes = figure.subplots()
    image = axes.imshow(values.numpy(), cmap="magma", vmin=0)
    axes.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="bits in a pixel")
    figure.savefig(buffer, dpi=180)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shown(source: str, name: str, width: int, caption: str = "", smooth: bool = False) -> None:
    """Shows a picture, at most as wide as the page, with what it is."""
    with ui.column().classes("gap-1").style(f"width: {width}px; max-width: 100%"):
        look = "width: 100%" if smooth else "width: 100%; image-rendering: pixelated"
        picture = f'<img src="{source}" alt="{name}" style="{look}">'
        ui.html(picture, sanitize=False).classes("w-full")
        if caption:
            note(caption)


def choices(images: Tensor, name: str, width: int, take: Callable[[Tensor], None]) -> None:
    """Shows images, (n, 1, height, width), of which one may be taken by a click."""
    with ui.row().classes("gap-1"):
        for i, x in enumerate(images[:, 0]):
            look = f"width: {width}px; image-rendering: pixelated; cursor: pointer"
            button = ui.image(url(x)).props(f'no-spinner no-transition alt="{name} {i + 1}" role=button tabindex=0')
            button.style(look).on("click", partial(take, x)).on("keydown.enter", partial(take, x))


def table(heads: list[str], rows: list[tuple[str, ...]]) -> None:
    columns = [dict(name=head, label=head, field=head, align="left") for head in heads]
    ui.table(columns=columns, rows=[dict(zip(heads, row, strict=True)) for row in rows]).props("flat dense wrap-cells")


class Sketch:
    """A square of the screen to draw on with a brush."""

    def __init__(self, look: Callable[[], np.ndarray], paint: Callable[[np.ndarray], None], thickness: Callable[[], int]):
        self.look, self.paint, self.thickness = look, paint, thickness
        self.last: tuple[float, float] | None = None
        form = f"width: {SIDE}px; height: {SIDE}px; image-rendering: pixelated; touch-action: none; cursor: crosshair"
        self.view = ui.interactive_image().classes("sketch").style(form)
        self.view.on("pointerdown", self.moved, js_handler="(e) => emit(e.offsetX, e.offsetY)")
        self.view.on("pointermove", self.moved, js_handler="(e) => e.buttons && emit(e.offsetX, e.offsetY)")
        for event in ("pointerup", "pointerleave"):
            self.view.on(event, self.lifted, args=[])
        self.draw()

    def lifted(self) -> None:
        self.last = None

    def moved(self, event: events.GenericEventArguments) -> None:
        height, width = self.look().shape[:2]
        x, y = (float(value) / SIDE for value in event.args)
        point = (x * width, y * height)
        self.paint(playing.stroke(height, width, self.last or point, point, self.thickness()))
        self.last = point
        self.draw()

    def draw(self) -> None:
        self.view.set_source(url(self.look()))


def answer(label: str, ask: Callable[[], Callable[..., Any]], show: Callable[[Any], None]) -> None:
    """Makes a button. ``ask`` reads the page, and returns what to compute, which takes ``progress``; ``show`` draws the
    result. A line below says how long it took, or what went wrong."""
    part, client = [0.0], ui.context.client

    def check() -> None:
        if ending or client.is_deleted:
            raise StoppedError

    def progress(done: float) -> None:
        check()
        part[0] = done

    def look() -> None:
        if part[0] > 0.0:
            bar.props(remove="indeterminate").set_value(part[0])

    async def press() -> None:
        for change in (button.disable, below.clear, partial(said.set_text, ""), looks.activate):
            change()
        bar.props("indeterminate").set_visibility(True)
        started = time.perf_counter()
        try:
            result = await asyncio.get_running_loop().run_in_executor(POOL, partial(ask(), progress=progress))
            check()
            with below:
                show(result)
            said.set_text(f"It took {time.perf_counter() - started:.1f} s.")
        except StoppedError:
            return
        except Exception as error:
            wrong(said, error)
        looks.deactivate()
        bar.set_visibility(False)
        button.enable()
        part[0] = 0.0

    button = ui.button(label, on_click=press).props("no-caps")
    bar = ui.linear_progress(value=0.0, show_value=False).props("instant-feedback")
    bar.set_visibility(False)
    looks = ui.timer(0.2, look, active=False)
    said = status()
    below = ui.column().classes("w-full gap-4")
