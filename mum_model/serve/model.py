"""One version of an encoder, as kserve serves it."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput

from mum_model.serve.batching import Batcher, OverloadedError, QueueLimits
from mum_model.serve.contract import DATATYPES, Contract, RequestError, printable
from mum_model.serve.encoder import OnnxEncoder
from mum_model.serve.metrics import ERRORS, REQUEST_IMAGES, STAGE_SECONDS
from mum_model.serve.reconstruction import Reconstruction, Reconstructor, with_hidden_grey


class EncoderModel(Model):
    """An encoder behind its queue.

    Attributes:
        version: Of the model.
        contract: What it takes and gives.
        digest: SHA-256 of its graph.
    """

    def __init__(
        self,
        name: str,
        version: str,
        encoder: OnnxEncoder,
        reconstructor: Reconstructor | None,
        executor: ThreadPoolExecutor,
        limits: QueueLimits,
        max_pixels: int,
    ):
        """Wrap an encoder; it is ready after `load`.

        Args:
            name: Model name in the URLs.
            version: Version in the URLs.
            encoder: The open encoder.
            reconstructor: The whole model, where it was exported too.
            executor: Of one thread, see `Batcher`.
            limits: What may wait.
            max_pixels: Largest N * H * W of a request.
        """
        super().__init__(name)
        self.version, self.contract, self.digest = version, encoder.contract, encoder.digest
        self._encoder = encoder
        images = self.contract.images.name
        self._batcher = Batcher(lambda inputs, outputs: encoder(inputs[images], outputs), executor, limits)
        self._reconstructor = reconstructor
        # A scene is computed alone: its views attend to each other.
        self._scenes = Batcher(reconstructor, executor, replace(limits, batch_images=1)) if reconstructor else None
        self._max_pixels = max_pixels

    def load(self) -> bool:
        """Run one image through each graph, so that the first request does not pay for it; then be ready."""
        side = 2 * self.contract.patch_size
        pixels = np.zeros((1, side, side, 3), np.uint8)
        self._encoder(self.contract.input_of(pixels))
        if self._reconstructor:
            self._reconstructor({"pixels": pixels, "visible": np.zeros((1, 1), np.int64)}, None)
        self.ready = True
        return self.ready

    def start(self) -> None:
        """Nothing: kserve's own would call a model ready that is not."""

    def get_input_types(self) -> list[dict[str, Any]]:
        """Name, type and shape of the input, for the metadata endpoint."""
        return [self.contract.images.metadata]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Names, types and shapes of the outputs, for the metadata endpoint."""
        return [output.metadata for output in self.contract.outputs]

    async def features(self, images: np.ndarray, outputs: list[str] | None) -> dict[str, np.ndarray]:
        """Features of images, when it is their turn.

        Args:
            images: As the contract says.
            outputs: Names of the wanted ones; all when None.

        Returns:
            By name, float32.

        Raises:
            RequestError: The images are too large, or there is no such output.
            OverloadedError: Too much is waiting already.
        """
        self.contract.require_pixels(images.shape, self._max_pixels)
        self.contract.require_outputs(outputs or [])
        REQUEST_IMAGES.observe(len(images))
        return await self._batcher({self.contract.images.name: images}, outputs)

    @property
    def reconstructs(self) -> bool:
        """Whether the whole model is served too."""
        return self._scenes is not None

    async def reconstruct(self, views: np.ndarray, visible: np.ndarray) -> Reconstruction:
        """What the whole model makes of partly hidden views of one scene, when it is their turn.

        Args:
            views: RGB uint8 `[S, H, W, 3]`; H and W are multiples of the patch size.
            visible: Indices of the patches that it sees of each, int64 `[S, K]`.

        Raises:
            OverloadedError: Too much is waiting already.
        """
        assert self._scenes is not None
        REQUEST_IMAGES.observe(len(views))
        answer = await self._scenes({"pixels": views, "visible": visible}, ["reconstruction"])
        seen = with_hidden_grey(views, visible, self.contract.patch_size)
        return Reconstruction(views, visible, seen, answer["reconstruction"])

    def require_sides(self, height: int, width: int, images: int = 1) -> None:
        """Check that so many images of these sides can be computed at once, before they are made.

        Raises:
            RequestError: They are too large.
        """
        sizes = {"N": images, 3: 3, "H": height, "W": width}
        self.contract.require_pixels([sizes[size] for size in self.contract.images.shape], self._max_pixels)

    async def predict(
        self,
        payload: InferRequest | dict[str, Any],
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """Answer one inference request.

        Args:
            payload: The request; a dictionary when it came by the protocol's version 1, which is refused.
            headers: Not used.
            response_headers: Not used.

        Returns:
            The wanted outputs; binary over gRPC, as asked over REST.

        Raises:
            InvalidInput: The request breaks the contract: HTTP 400, gRPC INVALID_ARGUMENT.
            OverloadedError: Too much is waiting already.
        """
        with counted_errors():
            with STAGE_SECONDS.labels("check").time():
                images, outputs = self._checked(payload)
            features = await self.features(images, outputs)
            with STAGE_SECONDS.labels("answer").time():
                return self._response(payload, features)

    def _checked(self, payload: InferRequest | dict[str, Any]) -> tuple[np.ndarray, list[str] | None]:
        """Images and names of the wanted outputs, once all of the request has been judged."""
        if not isinstance(payload, InferRequest):
            raise RequestError("format", f"expected the Open Inference Protocol v2: POST /v2/models/{self.name}/infer")
        self.contract.require_input([given.name for given in payload.inputs])
        (given,) = payload.inputs
        self.contract.require_tensor(given.datatype, given.shape)
        self.contract.require_pixels(given.shape, self._max_pixels)
        images = _as_array(given, self.contract)
        self.contract.require_values(images)
        if payload.request_outputs is None:
            return images, None
        outputs = [output.name for output in payload.request_outputs]
        self.contract.require_outputs(outputs)
        return images, outputs

    def _response(self, request: InferRequest, features: dict[str, np.ndarray]) -> InferResponse:
        outputs = []
        for name, array in features.items():
            output = InferOutput(name, list(array.shape), DATATYPES["float32"])
            output.set_data_from_numpy(array)  # as bytes; kserve makes JSON of them where the request wants that
            outputs.append(output)
        return InferResponse(
            response_id=printable(request.id or str(uuid.uuid4())),
            model_name=self.name,
            model_version=self.version,
            infer_outputs=outputs,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )


@contextmanager
def counted_errors() -> Iterator[None]:
    """Count what goes wrong, and hand refusals to kserve as its own."""
    try:
        yield
    except RequestError as error:
        ERRORS.labels(error.problem).inc()
        raise InvalidInput(str(error)) from error
    except OverloadedError:
        ERRORS.labels("overloaded").inc()
        raise
    except Exception:
        ERRORS.labels("internal").inc()
        raise


def _as_array(given: InferInput, contract: Contract) -> np.ndarray:
    try:
        return given.as_numpy()
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"{contract.expected} and as many numbers as its shape {list(given.shape)} says"
        raise RequestError("size", f"{problem}, got other data: {error}") from error
