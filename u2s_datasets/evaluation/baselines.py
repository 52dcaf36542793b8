"""What a user gets without this toolkit: blur and pixelation at the strength that other tools use by default.

Strengths after the command line of deface 1.5.0: boxes grow by 30 % on each side; blur is a box filter of half
the grown box in each direction, inside an ellipse; mosaic has cells of 20 pixels. They are applied to every
region of the run, text and codes too, which those tools do not look for.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from u2s_datasets.errors import UsageError
from u2s_datasets.schema import FACE, Region

GROWTH = 0.3
BLUR = 0.5  # of the grown box
CELL = 20  # pixels
ORIGINALS = "originals"
NAMES = (ORIGINALS, "blur", "pixelate")


def check_baselines(names: list[str]) -> list[str]:
    """The names, if they are known.

    Raises:
        UsageError: an unknown one.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"unknown baseline {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    return names


def baseline(name: str, pixels: np.ndarray, regions: list[Region], strength: float = 1.0) -> np.ndarray:
    """The image as a baseline leaves it, HxWx3 uint8 RGB.

    Args:
        name: one of `NAMES`.
        pixels: HxWx3 uint8 RGB of the original.
        regions: what to hide.
        strength: factor on the width of the blur or of the cells.
    """
    image = Image.fromarray(np.asarray(pixels))
    for region in regions if name != ORIGINALS else []:
        box = _grown(region, image.size)
        part = image.crop(box)
        if part.width < 1 or part.height < 1:
            continue
        hidden = _blurred(part, strength) if name == "blur" else _pixelated(part, strength)
        image.paste(hidden, box[:2], _ellipse(part.size) if region.kind == FACE and name == "blur" else None)
    return np.asarray(image)


def _grown(region: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = region.box
    dx, dy = GROWTH * (x1 - x0), GROWTH * (y1 - y0)
    left, top = max(0, round(x0 - dx)), max(0, round(y0 - dy))
    return left, top, min(size[0], round(x1 + dx)), min(size[1], round(y1 + dy))


def _blurred(part: Image.Image, strength: float) -> Image.Image:
    # A box filter of w pixels has a radius of (w - 1) / 2.
    radii = [max(0.0, (side * BLUR * strength - 1) / 2) for side in part.size]
    return part.filter(ImageFilter.BoxBlur((radii[0], radii[1])))


def _pixelated(part: Image.Image, strength: float) -> Image.Image:
    cell = max(1, round(CELL * strength))
    small = part.resize((-(-part.width // cell), -(-part.height // cell)), Image.Resampling.BOX)
    return small.resize(part.size, Image.Resampling.NEAREST)


def _ellipse(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
    return mask
