"""Predictions and references, a line each, in; the accuracy out."""

import json
from pathlib import Path

import evaluate


def score(predictions: str, references: str) -> str:
    """The top-1 accuracy of the lines of a text against those of another, as JSON."""
    metric = evaluate.load(str(Path(__file__).with_name("utility.py")))
    found = metric.compute(predictions=predictions.splitlines(), references=references.splitlines())
    return json.dumps(found, indent=2)


if __name__ == "__main__":
    import gradio as gr

    texts = [gr.Textbox(label="Predictions", lines=8), gr.Textbox(label="References", lines=8)]
    gr.Interface(score, texts, gr.Code(label="Scores", language="json"), title="u2s/utility").launch()
