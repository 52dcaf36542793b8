"""Two images in, the scores of quality out."""

import json
import math
from pathlib import Path

import evaluate
import numpy as np


def score(edited: np.ndarray, original: np.ndarray, caption: str) -> str:
    """The scores of an edited image (HxWx3 uint8 RGB) and its original as JSON; undefined ones are null."""
    metric = evaluate.load(str(Path(__file__).with_name("quality.py")))
    found = metric.compute(
        predictions=[edited], references=[original], captions=[caption], scores=["clip_score", "clip_ratio"]
    )
    return json.dumps({key: None if math.isnan(value) else value for key, value in found.items()}, indent=2)


if __name__ == "__main__":
    import gradio as gr

    images = [gr.Image(label="Edited"), gr.Image(label="Original"), gr.Textbox(label="Public caption")]
    gr.Interface(score, images, gr.Code(label="Scores", language="json"), title="u2s/quality").launch()
