"""Photos of a place in, what the model makes of them when parts are hidden out: `.../models/{model}/reconstruct`."""

import asyncio
import base64
from typing import Annotated, Any

import cv2
import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from kserve.errors import ModelNotFound

from mum_model.serve.contract import RequestError
from mum_model.serve.images import Named, decoded, image_files
from mum_model.serve.metrics import STAGE_SECONDS
from mum_model.serve.model import EncoderModel, counted_errors
from mum_model.serve.models import Models
from mum_model.serve.preprocess import fill, target_sides
from mum_model.serve.reconstruction import Reconstruction, draw_visible

PNG = "image/png"


def scenes_route(models: Models, max_images: int, max_file_pixels: int) -> APIRouter:
    """The route.

    Args:
        models: What is served.
        max_images: Files of one request.
        max_file_pixels: Of a file; more is refused from its header alone.

    Returns:
        A router to include.
    """
    router = APIRouter(tags=["images"])

    @router.post("/v2/models/{model_name}/reconstruct", response_class=Response)
    async def reconstruct_images(
        request: Request,
        model_name: str,
        size: Annotated[int, Query(ge=1, le=1 << 14, description="Shorter side of the views in pixels.")] = 224,
        mask_ratio: Annotated[float, Query(gt=0, lt=1, description="Share of the patches that is hidden.")] = 0.75,
        seed: Annotated[int, Query(ge=0, lt=1 << 32, description="Decides which patches are hidden.")] = 0,
    ) -> Response:
        """Views of one scene, partly hidden, and what the whole model makes of the rest.

        A body that is one image, or a form of files. All views get the shape of the first; of others their middle is
        used. The answer is JSON with PNG files in Base64, or with `Accept: image/png` one picture: a column a view,
        rows of what it is, what the model saw of it, what it made of it.
        """
        model = models.get_model(model_name)
        if model is None:
            raise ModelNotFound(model_name)
        with counted_errors():
            if not model.reconstructs:
                raise RequestError(
                    "name",
                    f"model '{model_name}' is an encoder alone; `mum export export.reconstruction=true` adds the rest",
                )
            files = await image_files(request, max_images)
            views = await asyncio.to_thread(_views, model, files, size, max_file_pixels)
            patches = views[0, ..., 0].size // model.contract.patch_size**2
            visible = draw_visible(len(views), patches, mask_ratio, seed)
            result = await model.reconstruct(views, visible)
            with STAGE_SECONDS.labels("answer").time():
                return await asyncio.to_thread(_response, model, files, result, request.headers.get("accept", ""))

    return router


def _views(model: EncoderModel, files: list[Named], size: int, max_file_pixels: int) -> np.ndarray:
    """Views of one shape, RGB uint8 `[S, H, W, 3]`; no more than one file is decoded at a time."""
    with STAGE_SECONDS.labels("decode").time():
        first = decoded(files[0], max_file_pixels)
        height, width = target_sides(first.shape[0], first.shape[1], size, model.contract.patch_size)
        model.require_sides(height, width, len(files))
        views = [fill(first, height, width)]
        views += [fill(decoded(file, max_file_pixels), height, width) for file in files[1:]]
        return np.stack(views)


def _response(model: EncoderModel, files: list[Named], result: Reconstruction, accept: str) -> Response:
    headers = {"x-model-version": model.version}
    if PNG in accept:
        return Response(_png(result.picture), media_type=PNG, headers=headers)
    patch = model.contract.patch_size
    _, height, width, _ = result.views.shape
    answer = {
        "model_name": model.name,
        "model_version": model.version,
        "patch_size": patch,
        "rows": height // patch,
        "columns": width // patch,
        "views": [
            {
                "name": name,
                "visible": visible,
                "input": _base64(view),
                "seen": _base64(seen),
                "reconstruction": _base64(whole),
            }
            for (name, _), visible, view, seen, whole in zip(
                files, result.visible, result.views, result.seen, result.whole, strict=True
            )
        ],
    }
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json", headers=headers)


def _png(image: np.ndarray) -> bytes:
    encoded: Any = cv2.imencode(".png", image[..., ::-1])[1]
    return encoded.tobytes()


def _base64(image: np.ndarray) -> str:
    return base64.b64encode(_png(image)).decode()
