"""Utility of edited images: what models that were trained on them still get right."""

import datasets
import evaluate

import u2s_datasets.evaluation.module
import u2s_datasets.evaluation.utility


class Utility(evaluate.Metric):
    """Compares what a model said with what is true. See the README of this folder.

    >>> import evaluate
    >>> utility = evaluate.load("metrics/utility")
    >>> utility.compute(predictions=[3, 1, 2], references=[3, 1, 1], scores=["top1_accuracy"])["top1_accuracy_n"]
    3
    """

    def _info(self):
        text, whole = datasets.Value("string"), datasets.Value("int64")
        texts = datasets.List(text)
        options = ((text, texts), (text, text), (whole, whole))
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=u2s_datasets.evaluation.module.CITATION,
            inputs_description=u2s_datasets.evaluation.utility.utility.__doc__,
            features=[datasets.Features({"predictions": a, "references": b}) for a, b in options],
        )

    def _compute(self, predictions, references, scores=None, confidence=None):
        return u2s_datasets.evaluation.utility.utility(predictions, references, scores, confidence)
