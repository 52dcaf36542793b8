"""Adapters to models, the only folder that touches their libraries. A new model is a file and a line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from u2s_datasets.models.codes import OpenCvCodes
from u2s_datasets.models.editors.redact import Redactor
from u2s_datasets.models.faces import CenterFace, DlibFaceEmbedder
from u2s_datasets.models.text import RapidOcr

# In settings, `kind` names the class.
AnyDetector = Annotated[CenterFace | RapidOcr | OpenCvCodes, Field(discriminator="kind")]
AnyFaceEmbedder = DlibFaceEmbedder
AnyEditor = Redactor
