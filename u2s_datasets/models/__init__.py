"""Adapters to models, the only folder that touches their libraries. A new model is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, InstanceOf

from u2s_datasets.models.arcface import ArcFace
from u2s_datasets.models.base import Adapter, ChatModel, Detector, Editor, FaceEmbedder
from u2s_datasets.models.chat import TransformersChat
from u2s_datasets.models.clip import Clip
from u2s_datasets.models.codes import OpenCvCodes
from u2s_datasets.models.editors.flow_edit import FlowEdit
from u2s_datasets.models.editors.free_prompt import FreePrompt
from u2s_datasets.models.editors.instruct import InstructEditor
from u2s_datasets.models.editors.instruct_pix2pix import InstructPix2Pix
from u2s_datasets.models.editors.redact import Redactor
from u2s_datasets.models.endpoint import EndpointChat
from u2s_datasets.models.faces import CenterFace, DlibFaceEmbedder
from u2s_datasets.models.perceptual import Inception, Lpips
from u2s_datasets.models.text import RapidOcr

# In settings, `kind` names the class. In Python, an instance of any other Adapter is taken as it is.
if TYPE_CHECKING:
    AnyDetector = Detector
    AnyFaceEmbedder = FaceEmbedder
    AnyEditor = Editor
    AnyChat = ChatModel
    AnyClip = Clip
    AnyLpips = Lpips
    AnyFeatures = Clip | Inception
else:
    AnyDetector = (
        Annotated[CenterFace | RapidOcr | OpenCvCodes, Field(discriminator="kind")] | InstanceOf[Adapter]
    )
    AnyEditor = (
        Annotated[
            Redactor | FlowEdit | InstructPix2Pix | InstructEditor | FreePrompt, Field(discriminator="kind")
        ]
        | InstanceOf[Adapter]
    )
    AnyFaceEmbedder = Annotated[DlibFaceEmbedder | ArcFace, Field(discriminator="kind")] | InstanceOf[Adapter]
    AnyChat = Annotated[TransformersChat | EndpointChat, Field(discriminator="kind")] | InstanceOf[Adapter]
    AnyClip = Clip | InstanceOf[Adapter]
    AnyLpips = Lpips | InstanceOf[Adapter]
    AnyFeatures = Annotated[Inception | Clip, Field(discriminator="kind")] | InstanceOf[Adapter]
