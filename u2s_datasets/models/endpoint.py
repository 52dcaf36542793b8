"""Chat models behind an OpenAI-compatible server: vLLM, TGI, `transformers serve`, hosted providers.

Requests run side by side up to a limit; the server batches them. A request that fails for a passing reason
(429, 5xx, time-out, cut connection) is sent again after a growing pause. One that fails for good gives None,
which the transforms take for "could not be asked", never for an answer.
"""

from __future__ import annotations

import base64
import io
import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import SETTINGS, Adapter, Conversation

logger = logging.getLogger(__name__)

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
REFUSED = {301, 302, 303, 307, 308, 401, 403, 404}  # a redirect would carry the pictures elsewhere
UNPROCESSABLE = {400, 422}


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class EndpointChat(Adapter):
    """A model on a server.

    The token comes from the environment variable HF_TOKEN, or from where `hf auth login` keeps it. It is no
    setting, so that it can't reach a settings file, a log or a card.

    Attributes:
        model: the model's name on the server.
        base_url: of the server, such as "http://localhost:8000/v1"; null asks the Hub's inference providers.
        provider: of the Hub, where base_url is null.
        concurrency: the most requests at a time.
        timeout: of one request, in seconds.
        retries: further tries of a request that fails for a passing reason.
        pause: before the first further try, in seconds; it doubles each time, with a random share.
        image_side: images are reduced to this longest side, in pixels; 0 leaves them.
        json_schema: sends the schema of the answer for the server to enforce; switch it off for servers that
            refuse it.
    """

    kind: Literal["endpoint"] = "endpoint"
    model: str
    base_url: str | None = None
    provider: str = "auto"
    concurrency: int = Field(default=16, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    retries: int = Field(default=5, ge=0)
    pause: float = Field(default=1.0, ge=0)
    image_side: int = Field(default=896, ge=0)
    json_schema: bool = True

    def __post_init__(self) -> None:
        """Refuses an address that no request can reach, or that holds a secret.

        Raises:
            ValueError: no http or https, or a user name or password in it.
        """
        if self.base_url is not None:
            parts = urlsplit(self.base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                raise ValueError(
                    "base_url is such as http://localhost:8000/v1, without user name or password"
                )

    def load(self) -> Any:
        """The client.

        A server of one's own is asked directly: the Hub's client refuses every request in offline mode, and
        would follow a redirect with the pictures in hand.
        """
        if self.base_url:
            import httpx2

            return httpx2.Client(
                timeout=self.timeout,
                follow_redirects=False,
                limits=httpx2.Limits(max_connections=self.concurrency),  # 100 otherwise
            )
        from huggingface_hub import InferenceClient

        return InferenceClient(model=self.model, provider=self.provider, timeout=self.timeout)  # type: ignore[arg-type]

    def free(self, loaded: Any) -> None:
        """Closes the connections to a server of one's own."""
        if self.base_url:
            loaded.close()

    def generate(
        self,
        conversations: list[Conversation],
        max_new_tokens: int = 512,
        schema: dict[str, Any] | None = None,
    ) -> list[str | None]:
        """The answer to each conversation at temperature 0, None where the server gave none.

        Args:
            conversations: see `Conversation`; images are HxWx3 uint8 RGB arrays, sent as data URLs.
            max_new_tokens: length of an answer.
            schema: a JSON schema that the server is asked to enforce.

        Raises:
            SetupError: the server refuses the token or does not know the model, or there is none to ask.
        """
        self._check()
        with ThreadPoolExecutor(min(self.concurrency, max(1, len(conversations)))) as pool:
            return list(pool.map(lambda talk: self._ask(talk, max_new_tokens, schema), conversations))

    def _check(self) -> None:
        """Stops the run over what would fail for every row, instead of withholding them all."""
        from huggingface_hub import get_token, is_offline_mode

        if self.base_url is None and (is_offline_mode() or not get_token()):
            raise SetupError(
                "inference providers need the network and a token: unset HF_HUB_OFFLINE and set HF_TOKEN, "
                "or set base_url to a server of your own"
            )

    def _ask(self, talk: Conversation, max_new_tokens: int, schema: dict[str, Any] | None) -> str | None:
        options: dict[str, Any] = {}
        if schema and self.json_schema:
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema},
            }
        messages = [self._message(message) for message in talk]
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            answer, again = self._once(messages, max_new_tokens, options)
            if not again:
                return answer
        return None

    def _once(
        self, messages: list[dict[str, Any]], max_new_tokens: int, options: dict[str, Any]
    ) -> tuple[str | None, bool]:
        """One request: its answer, and whether it is worth another try."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError

        try:
            content, status = self._post(messages, max_new_tokens, options), 200
        except HfHubHTTPError as error:
            content, status = None, error.response.status_code if error.response is not None else 0
        except _Refused as error:
            content, status = None, error.status
        except (InferenceTimeoutError, HTTPError, OSError) as error:
            logger.info("a request failed: %s", type(error).__name__)
            return None, True
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            logger.info("the server's answer can't be read: %s", type(error).__name__)
            return None, True
        if status == 200:
            return (content, False) if isinstance(content, str) else (None, True)
        if status in REFUSED:
            raise SetupError(
                f"the server answers {status} for the model {self.model!r}; check base_url, model and HF_TOKEN"
            )
        logger.info("the server answered %s", status)
        if status in UNPROCESSABLE and options.pop("response_format", None):
            # It may not know schemas; the parser checks the answer anyway.
            return self._once(messages, max_new_tokens, options)
        return None, status in PASSING

    def _post(self, messages: list[dict[str, Any]], max_new_tokens: int, options: dict[str, Any]) -> Any:
        if not self.base_url:
            out = self.loaded.chat_completion(messages, max_tokens=max_new_tokens, temperature=0.0, **options)
            return out.choices[0].message.content
        from huggingface_hub import get_token

        token = get_token()
        response = self.loaded.post(
            self.base_url.rstrip("/") + "/chat/completions",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            json={
                "model": self.model,
                "messages": messages,
                "max_tokens": max_new_tokens,
                "temperature": 0.0,
                **options,
            },
        )
        if response.status_code != 200:
            raise _Refused(response.status_code)
        return response.json()["choices"][0]["message"]["content"]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        parts = []
        for part in message["content"]:
            if part["type"] == "image":
                part = {"type": "image_url", "image_url": {"url": self._data_url(part["image"])}}
            parts.append(part)
        if all(part["type"] == "text" for part in parts):
            return {"role": message["role"], "content": "\n".join(part["text"] for part in parts)}
        return {"role": message["role"], "content": parts}

    def _data_url(self, pixels: np.ndarray) -> str:
        from PIL import Image

        image = Image.fromarray(np.asarray(pixels))
        if self.image_side:
            image.thumbnail((self.image_side, self.image_side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class _Refused(Exception):
    """The server answered with another status than 200."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status
