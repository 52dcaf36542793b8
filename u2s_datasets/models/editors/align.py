"""Whether an edit still lies on its source, pixel on pixel.

Some editors move the whole picture by a few pixels, which no eye sees and every box, mask and label feels.
Phase correlation (Kuglin and Hines 1975) finds such a shift: the inverse transform of the normalised cross-power
spectrum has its peak there. It finds no change of scale and no rotation.
"""

from __future__ import annotations

import numpy as np

FAR = 1  # pixels: a shift up to here stays
CLEAR = 2.0  # how many times the peak must stand above the place of no shift to count as a shift


def shift_of(image: np.ndarray, source: np.ndarray) -> tuple[int, int]:
    """By how many pixels (down, right) an image is moved against its source; (0, 0) where that is not clear.

    Args:
        image: HxWx3 uint8.
        source: likewise, of the same size.

    >>> photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    >>> shift_of(np.roll(photo, (3, -5), (0, 1)), photo)
    (3, -5)
    """
    height, width = source.shape[:2]
    window = np.outer(np.hanning(height), np.hanning(width))
    one, other = (np.fft.rfft2(_grey(each) * window) for each in (image, source))
    cross = one * other.conj()
    surface = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), (height, width))
    at = np.unravel_index(np.argmax(surface), surface.shape)
    down, right = ((int(v) + n // 2) % n - n // 2 for v, n in zip(at, surface.shape, strict=True))
    # An edit keeps much of its source in place; without a peak that stands out, nothing is known to have moved.
    still = surface[np.ix_((-1, 0, 1), (-1, 0, 1))].max()
    noise = surface.std() * np.sqrt(2 * np.log(surface.size))
    if surface.max() < CLEAR * max(still, noise):
        return 0, 0
    return down, right


def aligned(image: np.ndarray, source: np.ndarray) -> np.ndarray | None:
    """The image moved back onto its source; None where it is moved and can't be brought back.

    Args:
        image: HxWx3 uint8, the edit.
        source: likewise, of the same size.
    """
    down, right = shift_of(image, source)
    if max(abs(down), abs(right)) <= FAR:
        return image
    rows = np.clip(np.arange(image.shape[0]) + down, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(image.shape[1]) + right, 0, image.shape[1] - 1)
    moved = image[rows][:, columns]
    return moved if max(map(abs, shift_of(moved, source))) <= FAR else None


def _grey(pixels: np.ndarray) -> np.ndarray:
    grey = pixels.mean(axis=2)
    return grey - grey.mean()
