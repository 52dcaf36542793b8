"""How alike two pictures, texts or sets of faces are: the formulas of one row, without any model."""

from __future__ import annotations

import numpy as np

from u2s_datasets.errors import MissingExtra

METRICS_INSTALL = "pip install 'u2s-datasets[metrics]'"
SMALLEST = 11  # the window of SSIM, in pixels


def ssim(before: np.ndarray, after: np.ndarray) -> float | None:
    """Structural similarity, -1 to 1, the mean over the channels.

    The settings of Wang et al. 2004: a Gaussian window of 1.5 pixels, K1 = 0.01, K2 = 0.03, population
    covariance. By scikit-image.

    Args:
        before: HxWx3 uint8 RGB.
        after: the other one.

    Returns:
        None where the sizes differ or a side is shorter than the window.

    Raises:
        MissingExtra: scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise MissingExtra("scikit-image", METRICS_INSTALL) from error
    if before.shape != after.shape or min(before.shape[:2]) < SMALLEST:
        return None
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(before, after, channel_axis=2, data_range=255, **options))


def text_similarity(before: str, after: str) -> float:
    """The token-set ratio of two texts, 0 to 1, whatever their case (rapidfuzz).

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz import fuzz
    except ImportError as error:
        raise MissingExtra("rapidfuzz", METRICS_INSTALL) from error
    return fuzz.token_set_ratio(before.casefold(), after.casefold()) / 100


def directional(
    before: np.ndarray, after: np.ndarray, text_before: np.ndarray, text_after: np.ndarray
) -> float | None:
    """Cosine of the change of the picture and the change of the text, -1 to 1 (Gal et al. 2022).

    All four are (d,) CLIP unit vectors. None where picture or text did not change.
    """
    picture = after.astype(np.float64) - before
    text = text_after.astype(np.float64) - text_before
    norms = np.linalg.norm(picture), np.linalg.norm(text)
    if min(norms) < 1e-6:
        return None
    return float(picture @ text / (norms[0] * norms[1]))


def nearest(faces: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) float64: of each of n faces the cosine similarity to the nearest of m others, m at least 1."""
    return cosines(faces, others).max(axis=1)


def cosines(faces: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) float64 cosine similarities of (n, d) and (m, d) descriptors."""
    a, b = (np.asarray(x, np.float64) for x in (faces, others))
    a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
    b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)
    return np.clip(a @ b.T, -1, 1)


def count_recognised(faces: np.ndarray, others: np.ndarray, threshold: float) -> int:
    """How many of (n, d) faces lie closer than `threshold` (Euclidean) to one of (m, d) others."""
    if not len(faces) or not len(others):
        return 0
    distances = np.linalg.norm(np.asarray(faces)[:, None] - np.asarray(others)[None], axis=2)
    return int((distances.min(axis=1) < threshold).sum())
