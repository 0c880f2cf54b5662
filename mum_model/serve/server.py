"""The server: kserve's `Model` and `ModelServer` around ONNX Runtime.

Open Inference Protocol v2: https://github.com/kserve/open-inference-protocol.
"""

import asyncio
import logging
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import index
from pathlib import Path
from time import perf_counter
from typing import Any

import kserve.logging
import kserve.model_server
import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from omegaconf import DictConfig

from mum_model.errors import UserError
from mum_model.serve.contract import DATATYPES, Contract, RequestError
from mum_model.serve.encoder import OnnxEncoder
from mum_model.serve.metrics import ERRORS, REQUEST_IMAGES, STAGE_SECONDS

FLOAT_BYTES = 4
MESSAGE_OVERHEAD = 1 << 20
"""Bytes of a gRPC message beside the pixels, generously."""


def run(cfg: DictConfig) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered first. See `mum_model.serve.serve`."""
    for setting in ("http_port", "grpc_port"):
        _require_free(cfg.serve[setting], f"serve.{setting}")
    encoder = OnnxEncoder(Path(cfg.paths.export), cfg.serve.variant, cfg.machine.threads)
    model = EncoderModel(cfg.serve.name, encoder, cfg.serve.max_pixels)
    model.load()
    # kserve takes this limit from its own command line only; its 8 MB would refuse what max_pixels allows.
    limits = kserve.model_server.args
    limits.grpc_max_receive_message_length = cfg.serve.max_pixels * 3 * FLOAT_BYTES + MESSAGE_OVERHEAD
    limits.grpc_max_send_message_length = -1
    _configure_logging()
    server = ModelServer(http_port=cfg.serve.http_port, grpc_port=cfg.serve.grpc_port)
    server.dataplane = _ReadableDataPlane(server.registered_models, encoder.contract)
    server.model_repository_extension = _FixedRepository(server.registered_models)
    kserve.model_server.app.add_exception_handler(RequestValidationError, _answer_malformed(encoder.contract))
    server.start([model])


class EncoderModel(Model):
    """The encoder as kserve serves it."""

    def __init__(self, name: str, encoder: OnnxEncoder, max_pixels: int):
        """Wrap an encoder; it is ready after `load`.

        Args:
            name: Model name in the URLs.
            encoder: The open encoder.
            max_pixels: Largest N * H * W of a request.
        """
        super().__init__(name)
        self._encoder = encoder
        self._max_pixels = max_pixels
        # One request at a time: a session uses all cores for it, and two at once would only double the memory.
        self._turn = ThreadPoolExecutor(max_workers=1, thread_name_prefix="infer")

    def load(self) -> bool:
        """Run one image through the model, so that the first request does not pay for it; then be ready."""
        contract = self._encoder.contract
        side = 2 * contract.patch_size
        self._encoder(contract.input_of(np.zeros((1, side, side, 3), np.uint8)))
        self.ready = True
        return self.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        """Name, type and shape of the input, for the metadata endpoint."""
        return [self._encoder.contract.images.metadata]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Names, types and shapes of the outputs, for the metadata endpoint."""
        return [output.metadata for output in self._encoder.contract.outputs]

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
        """
        with _counted_errors():
            with STAGE_SECONDS.labels("check").time():
                images, wanted = self._checked(payload)
            REQUEST_IMAGES.observe(len(images))
            features = await self._infer(images, wanted)
            with STAGE_SECONDS.labels("answer").time():
                return self._response(payload, features)

    def _checked(self, payload: InferRequest | dict[str, Any]) -> tuple[np.ndarray, list[str] | None]:
        """Images and names of the wanted outputs, once all of the request has been judged."""
        contract = self._encoder.contract
        if not isinstance(payload, InferRequest):
            raise RequestError("format", f"expected the Open Inference Protocol v2: POST /v2/models/{self.name}/infer")
        contract.require_input([given.name for given in payload.inputs])
        (given,) = payload.inputs
        contract.require_tensor(given.datatype, given.shape)
        contract.require_pixels(given.shape, self._max_pixels)
        images = _as_array(given, contract)
        contract.require_values(images)
        if payload.request_outputs is None:
            return images, None
        wanted = [output.name for output in payload.request_outputs]
        contract.require_outputs(wanted)
        return images, wanted

    async def _infer(self, images: np.ndarray, wanted: list[str] | None) -> dict[str, np.ndarray]:
        asked = perf_counter()

        def infer() -> dict[str, np.ndarray]:
            STAGE_SECONDS.labels("wait").observe(perf_counter() - asked)
            with STAGE_SECONDS.labels("infer").time():
                return self._encoder(images, wanted)

        # Off the event loop, which goes on answering probes meanwhile.
        return await asyncio.get_running_loop().run_in_executor(self._turn, infer)

    def _response(self, request: InferRequest, features: dict[str, np.ndarray]) -> InferResponse:
        outputs = []
        for name, array in features.items():
            output = InferOutput(name, list(array.shape), DATATYPES["float32"])
            output.set_data_from_numpy(array)  # as bytes; kserve makes JSON of them where the request wants that
            outputs.append(output)
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )


class _ReadableDataPlane(DataPlane):
    """kserve's, with readiness that follows the model and refusals that say what was expected."""

    def __init__(self, model_registry: Any, contract: Contract):
        super().__init__(model_registry)
        self._contract = contract

    async def ready(self) -> bool:
        models = self.model_registry.get_models()
        return bool(models) and all([await model.healthy() for model in models.values()])

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        with _counted_errors():
            try:
                request, attributes = super().decode(*args, **kwargs)
                for given in request.inputs if isinstance(request, InferRequest) else ():
                    given.shape = list(map(index, given.shape))  # a body of bytes may say anything
                return request, attributes
            except (InvalidInput, LookupError, TypeError, ValueError, AttributeError) as error:
                # What kserve throws at a body whose parts are missing, of another type, or of another length.
                raise RequestError("format", f"{self._contract.expected}; got what cannot be read: {error}") from error


class _FixedRepository(ModelRepositoryExtension):
    """The server lives as long as its model: nobody unloads it by a request, which kserve would let anyone do."""

    async def load(self, model_name: str) -> None:
        raise InvalidInput(f"model '{model_name}': expected no request to load; the server loads its model at start")

    async def unload(self, model_name: str) -> None:
        raise InvalidInput(f"model '{model_name}': expected no request to unload; stop the server instead")


@contextmanager
def _counted_errors() -> Iterator[None]:
    """Count what goes wrong, and hand refusals to kserve as its own."""
    try:
        yield
    except RequestError as error:
        ERRORS.labels(error.problem).inc()
        raise InvalidInput(str(error)) from error
    except Exception:
        ERRORS.labels("internal").inc()
        raise


def _as_array(given: InferInput, contract: Contract) -> np.ndarray:
    try:
        return given.as_numpy()
    except (TypeError, ValueError) as error:
        problem = f"{contract.expected} and as many numbers as its shape {list(given.shape)} says"
        raise RequestError("size", f"{problem}, got other data: {error}") from error


def _answer_malformed(contract: Contract) -> Any:
    """A handler for JSON that is no inference request: kserve would answer 422 in a form of its own."""

    async def answer(_: Request, error: RequestValidationError) -> JSONResponse:
        ERRORS.labels("format").inc()
        # kserve reads a body as a request or else as bytes; why it is not bytes helps nobody.
        details = [detail for detail in error.errors() if "bytes" not in detail["loc"]]
        reasons = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details)
        return JSONResponse({"error": f"{contract.expected}; got no inference request: {reasons}"}, status_code=400)

    return answer


def _configure_logging() -> None:
    """Log as kserve does, less what `/metrics` tells better, and with one line for a refused request."""
    kserve.logging.configure_logging(kserve.logging.KSERVE_LOG_CONFIG)
    kserve.logging.trace_logger.setLevel(logging.WARNING)
    kserve.logging.logger.addFilter(_shorten_refusal)


def _shorten_refusal(record: logging.LogRecord) -> bool:
    """Take the traceback off the log of a wrong request: it shows nothing but this file."""
    if record.exc_info and isinstance(record.exc_info[1], InvalidInput | ModelNotFound):
        record.msg, record.args, record.exc_info = f"refused: {record.exc_info[1]}", None, None
    return True


def _require_free(port: int, setting: str) -> None:
    """Refuse a taken port now: gRPC would share it with another server and get every other request."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(f"{setting}={port}: cannot listen there ({error.strerror}); choose another port") from error
