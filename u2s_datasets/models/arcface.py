"""ArcFace, the embedder of the paper's FaceSim, through the package uniface.

uniface pulls the GUI build of OpenCV and fetches its weights on first use, so it is an extra and never the
default; dlib's network works offline (`faces.DlibFaceEmbedder`). Similarities of the two networks are on
different scales and must not be compared with each other.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.models.base import SETTINGS, Adapter

ARCFACE_INSTALL = "pip install 'u2s-datasets[arcface]'"
AROUND = 0.5  # of a face's sides is shown around it to the landmark finder


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ArcFace(Adapter):
    """uniface's ArcFace (Deng et al. 2019): 512 numbers a face, aligned by RetinaFace's five landmarks.

    Attributes:
        network: "resnet" or the smaller "mobilenet".
        threshold: distance of unit vectors under which two faces count as one person. 1.1 is a cosine of 0.4.
    """

    kind: Literal["arcface"] = "arcface"
    network: Literal["resnet", "mobilenet"] = "resnet"
    threshold: float = Field(default=1.1, gt=0, lt=2)

    def load(self) -> Any:
        """The landmark finder and the recognition network.

        Raises:
            MissingExtra: uniface is not installed.
            SetupError: its weights can't be fetched.
        """
        try:
            from uniface.constants import ArcFaceWeights
            from uniface.detection import RetinaFace
            from uniface.recognition import ArcFace as Network
        except ImportError as error:
            raise MissingExtra("uniface", ARCFACE_INSTALL) from error
        chosen = {"resnet": ArcFaceWeights.RESNET, "mobilenet": ArcFaceWeights.MNET}[self.network]
        try:
            return RetinaFace(), Network(model_name=chosen)
        except (OSError, RuntimeError, ValueError) as error:
            raise SetupError(
                f"the weights of ArcFace can't be fetched ({type(error).__name__}); go online once, or use dlib"
            ) from error

    def embed(self, image: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
        """(n, 512) float32 unit vectors of the faces in `boxes` (x0, y0, x1, y1) of HxWx3 uint8 RGB."""
        bgr = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        rows = [self._one(bgr, box) for box in boxes]
        return np.stack(rows) if rows else np.zeros((0, 512), np.float32)

    def _one(self, bgr: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
        finder, network = self.loaded
        x0, y0, x1, y1 = box
        grow_x, grow_y = AROUND * (x1 - x0), AROUND * (y1 - y0)
        left, top = max(0, int(x0 - grow_x)), max(0, int(y0 - grow_y))
        part = np.ascontiguousarray(bgr[top : int(np.ceil(y1 + grow_y)), left : int(np.ceil(x1 + grow_x))])
        centre = np.array([(x0 + x1) / 2 - left, (y0 + y1) / 2 - top])
        found = finder.detect(part)
        if found:
            distances = [np.linalg.norm((face.bbox[:2] + face.bbox[2:4]) / 2 - centre) for face in found]
            landmarks = np.asarray(found[int(np.argmin(distances))].landmarks)
        else:
            landmarks = _usual_landmarks(centre, max(x1 - x0, y1 - y0))
        return np.asarray(network.get_normalized_embedding(part, landmarks), np.float32)


def _usual_landmarks(centre: np.ndarray, side: float) -> np.ndarray:
    """Eyes, nose and mouth corners (5x2) where a frontal face of that size has them.

    A face too blurred for the finder is still aligned, as someone who tries to recognise it would do.
    """
    offsets = np.array([[-0.18, -0.12], [0.18, -0.12], [0.0, 0.06], [-0.15, 0.22], [0.15, 0.22]])
    return (centre + offsets * side).astype(np.float32)
