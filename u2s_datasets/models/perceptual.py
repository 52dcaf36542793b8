"""Networks that compare pictures: LPIPS for pairs, Inception for sets.

Both need torchvision's world (the full environment). Their backbones are fetched by their own libraries on
first use, or read from a file that the settings name.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.models.base import SETTINGS, Adapter

PERCEPTUAL_INSTALL = "pip install 'u2s-datasets[perceptual]'"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Lpips(Adapter):
    """Learned perceptual distance (Zhang et al. 2018), version 0.1 of the package lpips.

    Attributes:
        net: the backbone; VGG-16 as the method was evaluated.
        weights: a state dict of torchvision's model of that name; fetched by torchvision if not given.
    """

    kind: Literal["lpips"] = "lpips"
    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    weights: str | None = None

    def load(self) -> Any:
        """The network, on the GPU where there is one.

        Raises:
            MissingExtra: lpips or torchvision is not installed.
            SetupError: the backbone can't be fetched or read.
        """
        try:
            import lpips
        except ImportError as error:
            raise MissingExtra("lpips", PERCEPTUAL_INSTALL) from error
        import torch

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it still uses torchvision's old argument
                network = lpips.LPIPS(net=self.net, pnet_rand=self.weights is not None, verbose=False)
            if self.weights is not None:
                _fill(network.net, torch.load(self.weights, weights_only=True))
        except (OSError, URLError, KeyError, RuntimeError) as error:
            raise SetupError(
                f"the backbone of LPIPS can't be had ({type(error).__name__}). Go online once, or give a "
                f"state dict of torchvision's {self.net} (setting lpips.weights)"
            ) from error
        return network.to("cuda" if torch.cuda.is_available() else "cpu")

    def distances(self, before: list[np.ndarray], after: list[np.ndarray]) -> list[float]:
        """The distance of each pair of pictures (HxWx3 uint8 RGB, both of one size): 0 for equal ones.

        Pairs of one size could share a batch, but pictures of a dataset seldom do: one pair at a time.
        """
        import torch

        with torch.inference_mode():
            pairs = zip(before, after, strict=True)
            return [float(self.loaded(self._tensor(a), self._tensor(b))) for a, b in pairs]

    def _tensor(self, image: np.ndarray) -> Any:
        import torch

        device = next(self.loaded.parameters()).device
        tensor = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].float()
        return tensor / 127.5 - 1


def _fill(network: Any, state: dict[str, Any]) -> None:
    """Puts torchvision's "features.N.*" into the slices of lpips, which keep the numbers."""
    names = {name: "features." + name.split(".", 1)[1] for name in network.state_dict()}
    network.load_state_dict({name: state[there] for name, there in names.items()})


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Inception(Adapter):
    """The Inception v3 of the original FID, as torch-fidelity carries it over from TensorFlow.

    Attributes:
        layer: which features; "2048" are those of the published FID and KID.
        weights: a state dict of torch-fidelity's extractor; fetched by it if not given.
        batch_size: the most pictures at a time.
    """

    kind: Literal["inception"] = "inception"
    layer: Literal["64", "192", "768", "2048"] = "2048"
    weights: str | None = None
    batch_size: int = Field(default=16, ge=1)

    def load(self) -> Any:
        """The feature extractor, on the GPU where there is one.

        Raises:
            MissingExtra: torch-fidelity is not installed.
            SetupError: its weights can't be fetched or read.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingExtra("torch-fidelity", PERCEPTUAL_INSTALL) from error
        import torch

        try:
            with contextlib.redirect_stderr(io.StringIO()):
                network = FeatureExtractorInceptionV3("inception", [self.layer], self.weights)
        except (OSError, URLError, RuntimeError) as error:
            raise SetupError(
                f"the weights of Inception v3 can't be had ({type(error).__name__}). Go online once, give a "
                "file (setting features.weights), or compare CLIP features (features.kind=clip)"
            ) from error
        return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def features(self, images: list[np.ndarray]) -> np.ndarray:
        """(n, d) float32 features of pictures (HxWx3 uint8 RGB), each resized to 299 x 299 first."""
        import torch

        device = next(self.loaded.parameters()).device
        rows: list[np.ndarray] = []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                some = [self._resized(image) for image in images[start : start + self.batch_size]]
                rows.append(self.loaded(torch.stack(some).to(device))[0].float().cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, int(self.layer)), np.float32)

    def _resized(self, image: np.ndarray) -> Any:
        """3x299x299 uint8. Pillow's bicubic with antialiasing, the recommendation of Parmar et al. 2022."""
        import torch
        from PIL import Image

        small = Image.fromarray(np.asarray(image)).resize((299, 299), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)
