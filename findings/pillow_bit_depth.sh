#!/usr/bin/env bash
# Pillow 13.0.0 opens pictures of more than 8 bits a channel in some formats as 8-bit ones, without a word: a 16-bit RGB PPM, a
# 12-bit RGB JPEG 2000. A likelihood of such data is one of other data. The bit depth has to be read from the file's own header.
# Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q pillow==13.0.0 numpy imagecodecs
cd "$here"
"$here/venv/bin/python" - <<'PY'
import imagecodecs
import numpy as np
import PIL
from PIL import Image

values = (2000 + np.arange(4 * 4 * 3, dtype=np.uint16)).reshape(4, 4, 3)  # of 12 bits
open("deep.ppm", "wb").write(b"P6 4 4 4095\n" + values.astype(">u2").tobytes())
open("deep.jp2", "wb").write(imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=12))
print("Pillow", PIL.__version__, "imagecodecs", imagecodecs.__version__)
for name in ("deep.ppm", "deep.jp2"):
    image = Image.open(name)
    found = np.asarray(image)
    print(f"{name}: mode {image.mode}, {found.dtype}, {len(np.unique(found))} of {len(np.unique(values))} values left")
    assert image.mode == "RGB" and found.dtype == np.uint8, "the behaviour changed"
    assert len(np.unique(found)) < len(np.unique(values)), "the behaviour changed"
PY
