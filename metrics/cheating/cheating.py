"""Cheating: were the originals merely copied?"""

import u2s_datasets.evaluation.module


class Cheating(u2s_datasets.evaluation.module.PairMetric):
    """Compares pixels and looks of edited images with those of their originals. See the README of this folder.

    >>> import evaluate
    >>> import skimage.data
    >>> cheating = evaluate.load("metrics/cheating")
    >>> coffee = skimage.data.coffee()
    >>> cheating.compute(predictions=[coffee], references=[coffee], scores=["ssim"])["ssim"]
    1.0
    """

    dimension = "cheating"
    defaults = u2s_datasets.evaluation.module.default_scores("cheating")
