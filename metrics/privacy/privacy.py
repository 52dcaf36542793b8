"""Privacy of edited images: can someone still be recognised, or something still be read?"""

import u2s_datasets.evaluation.module


class Privacy(u2s_datasets.evaluation.module.PairMetric):
    """Compares faces and texts of edited images with those of their originals. See the README of this folder.

    >>> import evaluate
    >>> import skimage.data
    >>> privacy = evaluate.load("metrics/privacy")
    >>> astronaut = skimage.data.astronaut()
    >>> found = privacy.compute(predictions=[astronaut], references=[astronaut], scores=["face_similarity"])
    >>> round(found["face_similarity"], 6), found["face_similarity_n"]
    (1.0, 1)
    """

    dimension = "privacy"
    defaults = u2s_datasets.evaluation.module.default_scores("privacy")
