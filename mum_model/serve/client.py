"""A server's encoder as if it were here: sends image files, waits where the server asks to, and reads the features."""

import io
import json
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from mum_model.errors import UserError
from mum_model.serve.features import ImageFeatures, read_npz
from mum_model.serve.preprocess import ImageError

NPZ = "application/x-npz"
OUTPUTS = ("cls", "patch_tokens")
PATIENCE = 120.0
"""Seconds that a server may keep saying that it is overloaded."""

TIMEOUT = 60.0
"""Seconds for an answer."""


class ServedEncoder:
    """An encoder behind `mum serve`."""

    def __init__(self, url: str, name: str):
        """Point at a model.

        Args:
            url: Of the server, for instance `http://localhost:8080`.
            name: Of the model, or `name:version`.
        """
        self._url, self._name = url.rstrip("/"), name

    def __call__(self, path: Path, size: int | None) -> ImageFeatures:
        """Features of an image file; the server decodes and resizes it.

        Args:
            path: The file.
            size: Shorter side in pixels; None keeps the image's own.

        Returns:
            CLS and patch tokens.

        Raises:
            ImageError: The file cannot be opened, or the server refuses it.
            UserError: The server cannot be reached, has no such model, or fails.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: cannot be opened: {error.strerror}") from error
        query = {"outputs": ",".join(OUTPUTS), "size": "full" if size is None else size}
        url = f"{self._url}/v2/models/{quote(self._name)}/images?{urlencode(query)}"
        headers = {"Accept": NPZ, "Content-Type": "application/octet-stream"}
        answer = self._answer(Request(url, data, headers), path)
        (features,) = read_npz(io.BytesIO(answer))
        return ImageFeatures(str(path), features.grid, features.outputs)

    def _answer(self, request: Request, path: Path) -> bytes:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                with urlopen(request, timeout=TIMEOUT) as answer:
                    return answer.read()
            except HTTPError as error:
                if error.code != 503 or time.monotonic() > give_up:
                    raise self._refusal(error, path) from error
                time.sleep(float(error.headers.get("Retry-After", 1)))
            except (URLError, HTTPException, OSError) as error:
                raise UserError(f"{self._url}: no answer ({error}); is `mum serve` running there?") from error

    def _refusal(self, error: HTTPError, path: Path) -> UserError:
        reason = _reason(error.read())
        if error.code in (400, 413):
            return ImageError(f"{path}: {reason}")
        return UserError(f"{self._url}: HTTP {error.code} for model '{self._name}': {reason}")


def _reason(body: bytes) -> Any:
    try:
        return json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
