"""Encoded bytes to upright pixels and back.

A `Photo` travels through the transforms as the bytes it came with and decodes on demand, once. What leaves
is either the same compressed pixels without metadata (`published`) or one new encoding in which everything
outside the edited area decodes to the source's pixels (`with_pixels`). File names never travel.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from u2s_datasets import image_metadata as metadata
from u2s_datasets.embedded import EXIF_ERRORS
from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_limits import FORMATS, MAX_PIXELS, check_file, check_length, check_opened, read_file
from u2s_datasets.jpeg_coefficients import frame_of
from u2s_datasets.jpeg_file import JPEG, JpegFile, strip_jpeg
from u2s_datasets.jpeg_splice import bounds, splice, touched_blocks
from u2s_datasets.pillow import coloured, eight_bit, lossless, orientation, quiet, upright

STRIPPABLE = ("JPEG", "PNG", "WEBP")  # their compressed pixels can stay
FAITHFUL_GRID = 128  # points on the shorter side of an edit at which its encoding is compared with it
# RuntimeError is libavif's. A warning is one where the user has made errors of them.
DECODE_ERRORS = (*EXIF_ERRORS, MemoryError, EOFError, AssertionError, RuntimeError, Warning)


class Photo:
    """One image of a row: its encoded bytes, its format and, on demand, its upright pixels.

    Attributes:
        data: the encoded file.
        format: Pillow's name of the format, such as "JPEG".
        size: width and height in pixels as they are stored, before turning.
        metadata: the kinds of metadata found beside the pixels (see `image_metadata.find_metadata`).
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS):
        """Reads the header.

        Raises:
            UnreadableImage: empty, unknown format, or more than `max_pixels` pixels.
        """
        if not data:
            raise UnreadableImage("the image is empty")
        check_length(data)
        self.data = data
        self._jpeg = _jpeg(data)
        if self._jpeg is None or len(self._jpeg.exif_blocks) > 1:
            check_file(data)
        size = self._jpeg.size if self._jpeg else None
        turn = self._jpeg.orientation if self._jpeg else None
        if self._jpeg and size and turn:
            # Pillow would say the same, and take most of the time of a row that is only carried.
            self.format, self.size, self.metadata = "JPEG", size, self._jpeg.metadata
            self._orientation, frames = turn, 1
        else:
            with quiet():
                image = self._open()
                # An MPO is a JPEG with more pictures behind it; only the first is inspected, and leaves.
                self.format = "JPEG" if image.format == "MPO" else image.format or ""
                self.size, self.metadata = image.size, metadata.find_metadata(data, image)
                frames = getattr(image, "n_frames", 1) if self.format == "WEBP" else 1
                self._orientation = orientation(image)
        if self.size[0] * self.size[1] > max_pixels:
            raise UnreadableImage(f"the image has more than {max_pixels} pixels")
        # What has to be turned or has frames behind the first one can't leave as it is.
        self._needs_encoding = self._orientation != 1 or frames > 1

    @classmethod
    def of(cls, value: Any, max_pixels: int = MAX_PIXELS) -> Photo:
        """The photo behind anything an image column can hold.

        Args:
            max_pixels: images with more pixels count as unreadable.
            value: a Photo (or the error it failed with), encoded bytes, a path or URL, `{"bytes": ..., "path": ...}`, a Pillow image
                or an array (HxW or HxWx3 or HxWx4 uint8, RGB).

        Raises:
            UnreadableImage: nothing there, not readable, or too large.
        """
        if isinstance(value, Photo):
            return value
        if isinstance(value, UnreadableImage):
            raise value
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise UnreadableImage("the row has no image")
        if isinstance(value, (bytes, bytearray)):
            return cls(bytes(value), max_pixels)
        if isinstance(value, (str, os.PathLike)):
            return cls(read_file(os.fspath(value)), max_pixels)
        if isinstance(value, Image.Image):
            return cls._of_pillow(value, max_pixels)
        try:
            array = np.asarray(value)
            image = Image.fromarray(array) if array.ndim in (2, 3) else None
        except (TypeError, ValueError) as error:
            raise UnreadableImage("the value is not an image") from error
        if image is None:
            raise UnreadableImage("the value is not an image")
        return cls._of_pillow(image, max_pixels)

    @classmethod
    def _of_pillow(cls, image: Image.Image, max_pixels: int) -> Photo:
        # A decoded image has lost its file: it is kept without loss, and judged by what `info` still says.
        if isinstance(getattr(image, "u2s_data", None), bytes):
            return cls(image.u2s_data, max_pixels)  # type: ignore[attr-defined]
        try:
            photo = cls(lossless(upright(image, orientation(image))), max_pixels)
        except DECODE_ERRORS as error:
            raise UnreadableImage("the image is damaged or cut short") from error
        photo.metadata = metadata.info_findings(image.info)
        return photo

    def _open(self) -> Image.Image:
        try:
            with quiet():
                image = Image.open(io.BytesIO(self.data), formats=FORMATS)
            check_opened(image)
            return image
        except UnidentifiedImageError as error:
            raise UnreadableImage("the file is not an image of a known format") from error
        except Image.DecompressionBombError as error:
            raise UnreadableImage("the image has too many pixels") from error
        except DECODE_ERRORS as error:
            raise UnreadableImage("the image is damaged or cut short") from error

    @functools.cached_property
    def image(self) -> Image.Image:
        """The first frame, decoded and upright, in its own mode; a palette as RGB or RGBA.

        Raises:
            UnreadableImage: the data are damaged or cut short.
        """
        image = self._open()
        try:
            image.load()
            if self.format != "TIFF":  # Pillow turns a TIFF while loading it
                image = upright(image, self._orientation)
            return coloured(image)
        except DECODE_ERRORS as error:
            raise UnreadableImage("the image is damaged or cut short") from error

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """HxWx3 uint8 RGB of the upright first frame; transparency is ignored, 16 bits are cut to 8."""
        image = eight_bit(self.image)
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        pixels.flags.writeable = False
        return pixels

    @property
    def views(self) -> list[np.ndarray]:
        """What has to be inspected: the pixels, and how other viewers may show them.

        Transparency can hide a picture from a viewer that ignores it, and the other way round, so such an
        image is also laid on white and on black; a dark 16-bit image is also shown stretched.
        """
        views = [self.pixels]
        if self.has_alpha:
            rgba = self.image.convert("RGBA")
            for colour in ("white", "black"):
                paper = Image.new("RGBA", rgba.size, colour)
                views.append(np.asarray(Image.alpha_composite(paper, rgba).convert("RGB")))
        elif self.image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"):
            stretched = ImageOps.autocontrast(eight_bit(self.image, stretch=True).convert("L"))
            views.append(np.asarray(stretched.convert("RGB")))
        return views

    @functools.cached_property
    def has_alpha(self) -> bool:
        """Whether some pixel is not opaque."""
        image = self.image
        if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
            return False
        return bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)

    def seed(self, run_seed: int) -> int:
        """A seed from the run's seed and the upright pixels: 0 to 2**63 - 1, the same in every process."""
        digest = hashlib.blake2b(self._content, digest_size=8, key=str(run_seed).encode())
        return int.from_bytes(digest.digest(), "little") >> 1

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded file, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @functools.cached_property
    def _content(self) -> bytes:
        digest = hashlib.blake2b(struct.pack("<II", *self.pixels.shape[:2]), digest_size=32)
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.digest()

    def published(self) -> Photo:
        """The untouched image as it may leave: same pixels, upright, one frame, no metadata.

        A JPEG, PNG or WebP keeps its compressed pixels; what needs turning, has several frames or is of
        another format is encoded again without loss.
        """
        if self.format != "JPEG":
            self.image  # a file cut short must not leave; a JPEG's stripper walks to its end
        if self.format in STRIPPABLE and not self._needs_encoding:
            try:
                stripped = self._stripped()
                # Of a damaged scan libjpeg makes something else when other bytes stand behind it.
                if "trailing data" not in self.metadata or np.array_equal(stripped.pixels, self.pixels):
                    return stripped
            except (ValueError, struct.error, IndexError):
                pass  # an odd structure that Pillow tolerates: encode what it saw
        return Photo(lossless(self.image, webp=self.format == "WEBP"))

    def _stripped(self) -> Photo:
        """This photo with its metadata taken out of the file; what may still be there is looked for again."""
        if self.format != "JPEG":
            strip = metadata.strip_png if self.format == "PNG" else metadata.strip_webp
            return Photo(strip(self.data))
        if self._jpeg is None:
            raise ValueError("not a well-formed JPEG")
        # Its header is known: opening it again would cost half of carrying a row.
        photo = object.__new__(Photo)
        photo._jpeg = strip_jpeg(self._jpeg)
        photo.data, photo.metadata = photo._jpeg.data, photo._jpeg.metadata
        photo.format, photo.size, photo._orientation, photo._needs_encoding = "JPEG", self.size, 1, False
        return photo

    @functools.cached_property
    def _spliceable(self) -> Photo | None:
        # Grey and RGB only: a CMYK edit would have to be separated with a profile.
        if self.format != "JPEG" or self.image.mode not in ("L", "RGB") or self._needs_encoding:
            return None
        clean = self.published()
        return clean if clean.format == "JPEG" and frame_of(clean.data) else None

    def editable_area(self, mask: np.ndarray) -> np.ndarray:
        """HxW bool: where `with_pixels` may change pixels for an edit inside `mask` (HxW bool).

        For a JPEG that is the coded blocks which the mask touches and a rim of a pixel, else the mask.
        """
        frame = frame_of(self._spliceable.data) if self._spliceable else None
        return touched_blocks(mask, frame.factors) if frame and mask.any() else mask

    def with_pixels(self, edited: np.ndarray, mask: np.ndarray) -> Photo:
        """Encodes an edit. Outside `editable_area(mask)` it decodes to the source's pixels.

        Args:
            edited: HxWx3 uint8 RGB, upright, of the source's size.
            mask: HxW bool, where `edited` differs from the source.

        Returns:
            A JPEG for a JPEG where its blocks can be replaced; WebP without loss for a WebP; else PNG.
        """
        if self._spliceable is not None and not mask.all():
            data = splice(self._spliceable.data, edited, mask)
            if data is not None and self._is_faithful(photo := Photo(data), edited, mask):
                return photo
        image = Image.fromarray(edited)
        if self.has_alpha:
            # An edited pixel is shown as it was verified, so it becomes opaque.
            alpha = np.asarray(self.image.convert("RGBA"))[..., 3]
            image = Image.fromarray(np.dstack([edited, np.where(mask, np.uint8(255), alpha)]))
        elif self.image.mode in ("1", "L") and (edited == edited[..., :1]).all():
            image = image.convert("L")
        return Photo(lossless(image, webp=self.format == "WEBP"))

    def _is_faithful(self, spliced: Photo, edited: np.ndarray, mask: np.ndarray) -> bool:
        if spliced.pixels.shape != edited.shape or self.changed_outside(spliced, mask):
            return False
        rows, columns = bounds(mask)
        # A codec that went wrong shows everywhere: a grid of points is enough.
        step = max(1, min(rows.stop - rows.start, columns.stop - columns.start) // FAITHFUL_GRID)
        grid = (slice(rows.start, rows.stop, step), slice(columns.start, columns.stop, step))
        inside = mask[grid]
        error = np.abs(spliced.pixels[grid][inside].astype(np.int16) - edited[grid][inside])
        return bool(error.mean() < 16) if inside.any() else True

    def changed_outside(self, edited: Photo, mask: np.ndarray) -> float:
        """The share, 0 to 1, of the pixels outside `editable_area(mask)` that differ in `edited`, of the same size."""
        editable = self.editable_area(mask)
        outside = mask.size - int(np.count_nonzero(editable))
        rows, columns = bounds(editable)
        changed = 0
        # Around the smallest rectangle whole slabs are compared, which is quick where nothing differs.
        for area in (
            (slice(0, rows.start), slice(None)),
            (slice(rows.stop, None), slice(None)),
            (rows, slice(0, columns.start)),
            (rows, slice(columns.stop, None)),
        ):
            if not np.array_equal(self.pixels[area], edited.pixels[area]):
                changed += int(np.count_nonzero((self.pixels[area] != edited.pixels[area]).any(axis=2)))
        differs = self.pixels[rows, columns] != edited.pixels[rows, columns]
        differs_at = differs[..., 0] | differs[..., 1] | differs[..., 2]
        changed += int(np.count_nonzero(differs_at & ~editable[rows, columns]))
        return changed / outside if outside else 0.0

    def as_pillow(self) -> Image.Image:
        """A lazily decoded Pillow image that `datasets` stores with exactly these bytes.

        Its `save` in its own format writes the bytes it came from, so a JPEG is not encoded a second time.
        """
        image = self._open()
        image.filename = ""  # type: ignore[attr-defined]
        image.u2s_data = self.data  # type: ignore[attr-defined]
        image.save = functools.partial(_save, image, self.data)  # type: ignore[method-assign]
        return image

    def as_row(self) -> dict[str, Any]:
        """The value of an `Image` column: the bytes and no path."""
        return {"bytes": self.data, "path": None}


def _jpeg(data: bytes) -> JpegFile | None:
    """A well-formed JPEG cut up; None for any other file."""
    try:
        return JpegFile(data) if data.startswith(JPEG) else None
    except (ValueError, IndexError):
        return None


def _save(image: Image.Image, data: bytes, fp: Any, format: str | None = None, **options: Any) -> None:
    if (format in (None, image.format) and not options) and not isinstance(fp, (str, os.PathLike)):
        fp.write(data)
    else:
        Image.Image.save(image, fp, format=format, **options)
