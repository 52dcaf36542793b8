"""Pixels as Pillow holds them: turned upright, cut to eight bits, encoded without loss."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from u2s_datasets.embedded import EXIF_ERRORS, ORIENTATION, clean_icc
from u2s_datasets.image_metadata import strip_png, strip_webp

WEBP_SIDE = 16_383  # pixels, the format's limit
_filters = threading.RLock()
# It writes the values of EXIF tags into its log at DEBUG.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.INFO)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow, which warns of corrupt EXIF and of large sizes; both are judged here.

    Filters of warnings are global, so one thread at a time: open and read headers inside, decode outside.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it can't be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except EXIF_ERRORS:
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info.pop("exif", None)
    return turned


def coloured(image: Image.Image) -> Image.Image:
    """An image with a palette as RGB, or RGBA where it says what is transparent; any other as it is.

    Kept as a palette, colours that no pixel has would leave with it, and numbers beyond its end would show something
    else in a file that is written anew.
    """
    if image.mode not in ("P", "PA"):
        return image
    if image.info.get("transparency") == b"":
        del image.info["transparency"]
    plain = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    plain.info.pop("transparency", None)
    return plain


def eight_bit(image: Image.Image, stretch: bool = False) -> Image.Image:
    """Integer and float modes as L: 16 bits lose their low byte, or the full range is stretched."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if not (stretch or image.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0):
        return Image.fromarray((values // 256).astype(np.uint8))
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    stretched = (values.astype(np.float64).clip(low, high) - low) / ((high - low) or 1.0) * 255
    return Image.fromarray(np.nan_to_num(stretched).astype(np.uint8))


def lossless(image: Image.Image, webp: bool = False) -> bytes:
    """Encodes pixels and transparency without loss and without anything else."""
    image = coloured(image)
    image = image if image.mode in ("1", "L", "LA", "RGB", "RGBA", "I;16") else _to_plain(image)
    image = image.copy()
    keep = {key: image.info[key] for key in ("transparency",) if key in image.info}
    icc = clean_icc(image.info.get("icc_profile") or b"")
    image.info.clear()
    image.info.update(keep)
    buffer = io.BytesIO()
    if webp and max(image.size) <= WEBP_SIDE:
        rgb = image.convert("RGBA" if "A" in image.getbands() or keep else "RGB")
        rgb.save(buffer, "WEBP", lossless=True, exact=True, method=1, quality=50, icc_profile=icc or None)
        return strip_webp(buffer.getvalue())
    image.save(buffer, "PNG", compress_level=3)
    return strip_png(buffer.getvalue())


def _to_plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    if image.mode in ("La", "RGBa"):
        return image.convert("RGBA")
    return eight_bit(image).convert("RGB")
