"""Pictures as a classifier's model takes them: decoded when they are asked for, augmented, prepared."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

# RandAugment 2/9/0.5: two operations at level 9 of 10, the level drawn with this deviation.
OPERATIONS, LEVEL, DEVIATION, LEVELS = 2, 9.0, 0.5, 100


class Pictures(Protocol):
    """Pictures by number, decoded when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> np.ndarray:
        """HxWx3 uint8 RGB."""


class Prepared:
    """What a `DataLoader` asks for by (number of the draw, row): the prepared picture and its label."""

    def __init__(
        self, images: Pictures, labels: np.ndarray, processor: Any, side: int, seed: int, augments: bool
    ):
        self.images, self.labels, self.processor, self.side = images, labels, processor, side
        self.seed, self.augments = seed, augments

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Any, Any]:
        number, row = draw
        image = self.images[row]
        if self.augments:
            image = _augmented(image, self.side, self.seed, number)
        return prepared(self.processor, [image])[0], self.labels[row]


def _augmented(image: np.ndarray, side: int, seed: int, number: int) -> np.ndarray:
    """RandAugment (Cubuk et al. 2020) on the image reduced to about the model's size, which it costs less on."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    picture = Image.fromarray(np.asarray(image))
    scale = side / min(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    draw = np.random.default_rng([seed, number])
    level = round(np.clip(draw.normal(LEVEL, DEVIATION), 0, 10) * LEVELS / 10)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(draw.integers(2**31)))
        augment = v2.RandAugment(OPERATIONS, level, LEVELS + 1, v2.InterpolationMode.BILINEAR)
        return np.asarray(augment(picture))


def prepared(processor: Any, images: list[np.ndarray]) -> Any:
    """(n, 3, h, w) float32 tensor of pictures (HxWx3 uint8 RGB), by the model's image processor."""
    from PIL import Image

    # From Pillow: an array of three rows would be taken for one whose channels come first.
    pictures = [Image.fromarray(np.asarray(image)) for image in images]
    return processor(images=pictures, return_tensors="pt")["pixel_values"]
