"""Image files in, features out: `POST /v2/models/{model}/images`, for whoever has photos and no tensors."""

import asyncio
import io
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from kserve.errors import ModelNotFound
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from mum_model.serve.contract import RequestError
from mum_model.serve.features import ImageFeatures, write_npz
from mum_model.serve.metrics import STAGE_SECONDS
from mum_model.serve.model import EncoderModel, counted_errors
from mum_model.serve.models import Models
from mum_model.serve.preprocess import ImageError, decode, resize, target_sides

NPZ = "application/x-npz"

Size = Annotated[int, Field(ge=1, le=1 << 14)] | Literal["full"]

Named = tuple[str, bytes]
"""A file's name and content."""

MultiPartParser.spool_max_size = 1 << 62  # files stay in memory, which the door has bounded; the server writes no file


def images_route(models: Models, max_images: int, max_file_pixels: int) -> APIRouter:
    """The route.

    Args:
        models: What is served.
        max_images: Files of one request.
        max_file_pixels: Of a file; more is refused from its header alone.

    Returns:
        A router to include.
    """
    router = APIRouter(tags=["images"])

    @router.post("/v2/models/{model_name}/images", response_class=Response)
    async def embed_images(
        request: Request,
        model_name: str,
        size: Annotated[Size, Query(description="Shorter side in pixels, or `full` for the image's own.")] = 224,
        outputs: Annotated[str, Query(description="Names of outputs, separated by commas.")] = "cls",
    ) -> Response:
        """Features of image files: a body that is one image, or a form with any number of files.

        The answer is JSON, or with `Accept: application/x-npz` what `mum embed` writes.
        """
        model = models.get_model(model_name)
        if model is None:
            raise ModelNotFound(model_name)
        wanted, side = outputs.split(","), None if size == "full" else size
        with counted_errors():
            model.contract.require_outputs(wanted)
            files = await image_files(request, max_images)
            features = await _all(_features(model, file, side, wanted, max_file_pixels) for file in files)
            with STAGE_SECONDS.labels("answer").time():
                return _response(model, features, wanted, request.headers.get("accept", ""))

    return router


async def image_files(request: Request, max_images: int) -> list[Named]:
    """The files of a request: its body, or those of its form.

    Raises:
        RequestError: There are none or too many, or the form is damaged.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return [("the request's body", await request.body())]
    try:
        form = await MultiPartParser(request.headers, request.stream(), max_files=max_images).parse()
    except MultiPartException as error:
        raise RequestError("format", f"expected a form of at most {max_images} files: {error.message}") from error
    except (KeyError, ValueError, AssertionError) as error:
        raise RequestError("format", f"expected a form of files; its encoding is damaged: {error}") from error
    files = [(field, value) for field, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise RequestError("format", "expected image files: `-F file=@photo.jpg`, or an image as the body")
    return [(file.filename or field, await file.read()) for field, file in files]


async def _all(tasks: Any) -> list[ImageFeatures]:
    """All answers; the first failure ends the request, and what it still has waiting is for nobody."""
    try:
        async with asyncio.TaskGroup() as group:
            started = [group.create_task(task) for task in tasks]
    except* Exception as failures:
        failure = failures.exceptions[0]
    else:
        return [task.result() for task in started]
    raise failure


async def _features(
    model: EncoderModel, file: Named, size: int | None, outputs: list[str], max_file_pixels: int
) -> ImageFeatures:
    pixels = await asyncio.to_thread(_decoded, model, file, size, max_file_pixels)
    features = await model.features(model.contract.input_of(pixels[np.newaxis]), outputs)
    patch = model.contract.patch_size
    grid = (pixels.shape[0] // patch, pixels.shape[1] // patch)
    return ImageFeatures(file[0], grid, {name: array[0] for name, array in features.items()})


def _decoded(model: EncoderModel, file: Named, size: int | None, max_file_pixels: int) -> np.ndarray:
    patch = model.contract.patch_size
    with STAGE_SECONDS.labels("decode").time():
        image = decoded(file, max_file_pixels)
        model.require_sides(*target_sides(image.shape[0], image.shape[1], size, patch))
        return resize(image, patch, size)


def decoded(file: Named, max_file_pixels: int) -> np.ndarray:
    """RGB uint8 `[H, W, 3]` of an image file.

    Raises:
        RequestError: It cannot be used.
    """
    name, data = file
    try:
        return decode(data, name, max_file_pixels)
    except ImageError as error:
        raise RequestError("image", str(error)) from error


def _response(model: EncoderModel, features: list[ImageFeatures], outputs: list[str], accept: str) -> Response:
    headers = {"x-model-version": model.version}
    if NPZ in accept:
        buffer = io.BytesIO()
        write_npz(buffer, features)
        return Response(buffer.getvalue(), media_type=NPZ, headers=headers)
    answer = {
        "model_name": model.name,
        "model_version": model.version,
        "patch_size": model.contract.patch_size,
        "images": [
            {"name": one.name, "rows": one.grid[0], "columns": one.grid[1], **{o: one.outputs[o] for o in outputs}}
            for one in features
        ],
    }
    return Response(
        orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json", headers=headers
    )
