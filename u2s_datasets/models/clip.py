"""CLIP: pictures and texts as points that lie close together where one describes the other.

Embeddings are L2-normalised, so a dot product is the cosine similarity. Texts are cut at the model's own
length (77 tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import SETTINGS, Adapter


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Clip(Adapter):
    """A CLIP model of transformers (Radford et al. 2021).

    Attributes:
        model: repository or folder; the ViT-L/14 with which the method was evaluated by default.
        revision: its branch, tag or commit.
        batch_size: the most pictures or texts at a time.
    """

    kind: Literal["clip"] = "clip"
    model: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    batch_size: int = Field(default=32, ge=1)

    def load(self) -> Any:
        """The processor and the model, on the GPU where there is one.

        Raises:
            SetupError: the model can't be loaded.
        """
        import torch
        import transformers

        options: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        try:
            processor = transformers.AutoProcessor.from_pretrained(self.model, **options)
            model = transformers.CLIPModel.from_pretrained(self.model, **options)
        except (OSError, ValueError) as error:
            raise SetupError(
                f"the CLIP model {self.model!r} can't be loaded ({type(error).__name__}). "
                "Go online once, or give a folder that holds it (setting clip.model)"
            ) from error
        return processor, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def images(self, images: list[np.ndarray]) -> np.ndarray:
        """(n, d) float32 unit vectors of pictures (HxWx3 uint8 RGB)."""

        def encode(some: list[Any]) -> Any:
            processor, model = self.loaded
            inputs = processor.image_processor(images=some, return_tensors="pt")
            return model.get_image_features(inputs["pixel_values"].to(model.device))

        from PIL import Image

        # From Pillow: an array of three rows would be taken for one whose channels come first.
        return self._embed([Image.fromarray(np.asarray(image)) for image in images], encode)

    def texts(self, texts: list[str]) -> np.ndarray:
        """(n, d) float32 unit vectors of texts."""

        def encode(some: list[str]) -> Any:
            processor, model = self.loaded
            limit = model.config.text_config.max_position_embeddings
            inputs = processor.tokenizer(
                some, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            mask = inputs["attention_mask"].to(model.device)
            return model.get_text_features(inputs["input_ids"].to(model.device), attention_mask=mask)

        return self._embed(texts, encode)

    def features(self, images: list[np.ndarray]) -> np.ndarray:
        """`images`, as the features of FID and KID ("CLIP-FID", Kynkäänniemi et al. 2023)."""
        return self.images(images)

    def _embed(self, values: list[Any], encode: Callable[[list[Any]], Any]) -> np.ndarray:
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(values), self.batch_size):
                found = encode(values[start : start + self.batch_size]).pooler_output.float()
                rows.append(torch.nn.functional.normalize(found, dim=-1).cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
