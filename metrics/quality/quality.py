"""Quality of edited images: do they look real, and show what their public captions say?"""

import u2s_datasets.evaluation.module


class Quality(u2s_datasets.evaluation.module.PairMetric):
    """Compares edited images with their captions and with the set of originals. See the README of this folder.

    >>> import evaluate
    >>> quality = evaluate.load("metrics/quality")
    >>> row = {"caption_similarity": 0.25, "caption_similarity_before": 0.2}
    >>> quality.compute(predictions=[row], scores=["clip_score", "clip_ratio"])["clip_ratio"]
    1.25
    """

    dimension = "quality"
    defaults = u2s_datasets.evaluation.module.default_scores("quality")
