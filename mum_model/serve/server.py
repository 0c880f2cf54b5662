"""The server: kserve's `ModelServer` over the models, with the routes, limits and refusals that it lacks.

Open Inference Protocol v2: https://github.com/kserve/open-inference-protocol.
"""

import asyncio
import signal
import socket
from operator import index
from typing import Any

import kserve.model_server
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve import InferRequest, ModelServer
from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from omegaconf import DictConfig
from uvicorn.config import HTTP_PROTOCOLS

from mum_model.errors import UserError
from mum_model.serve.batching import OverloadedError
from mum_model.serve.connections import closing_idle
from mum_model.serve.contract import RequestError, printable
from mum_model.serve.door import Door
from mum_model.serve.images import images_route
from mum_model.serve.logs import configure_logging
from mum_model.serve.metrics import ERRORS
from mum_model.serve.model import counted_errors
from mum_model.serve.models import Models
from mum_model.serve.page import page_route
from mum_model.serve.scenes import scenes_route

FLOAT_BYTES = 4
MESSAGE_OVERHEAD = 1 << 20
"""Bytes of a gRPC message beside the pixels, generously."""


def run(cfg: DictConfig) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered first. See `mum_model.serve.serve`."""
    for setting in ("http_port", "grpc_port"):
        _require_free(cfg.serve[setting], f"serve.{setting}")
    configure_logging(refusals=(InvalidInput, ModelNotFound, NotImplementedError))
    models = Models(cfg)
    # kserve takes this limit from its own command line only; its 8 MB would refuse what max_pixels allows.
    limits = kserve.model_server.args
    limits.grpc_max_receive_message_length = cfg.serve.max_pixels * 3 * FLOAT_BYTES + MESSAGE_OVERHEAD
    limits.grpc_max_send_message_length = -1
    # Nor has it a setting for what uvicorn makes of a connection; uvicorn takes classes as well as their names.
    HTTP_PROTOCOLS["auto"] = closing_idle(cfg.serve.body_seconds, cfg.serve.answer_seconds)  # type: ignore[assignment]
    server = ModelServer(
        http_port=cfg.serve.http_port,
        grpc_port=cfg.serve.grpc_port,
        registered_models=models,
        grace_period=cfg.serve.drain_seconds,
    )
    server.dataplane = _ReadableDataPlane(models)
    server.model_repository_extension = _WatchedRepository(models)
    _extend(kserve.model_server.app, models, cfg)
    models.watch()
    server.servers.append(_linger(models, cfg.serve.linger_seconds))
    server.start(models.newest)


async def _linger(models: Models, seconds: float) -> None:
    """On SIGTERM, say "not ready" at once but go on answering for a while: load balancers need it to look away."""
    await asyncio.sleep(0)  # by now uvicorn has taken the signal
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    assert callable(stop)

    def on_sigterm(number: int, frame: Any) -> None:
        models.close()
        loop.call_soon_threadsafe(loop.call_later, seconds, stop, number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)


def _extend(app: FastAPI, models: Models, cfg: DictConfig) -> None:
    """Add what kserve lacks to its application."""
    app.include_router(images_route(models, cfg.serve.max_images, cfg.serve.max_file_pixels))
    app.include_router(scenes_route(models, cfg.serve.max_images, cfg.serve.max_file_pixels))
    app.include_router(page_route(models))
    app.add_exception_handler(RequestValidationError, _answer_malformed(models))
    app.add_exception_handler(OverloadedError, _answer_overloaded)
    app.add_middleware(
        Door,
        max_bytes=cfg.serve.max_request_bytes,
        max_held_bytes=cfg.serve.max_held_bytes,
        body_seconds=cfg.serve.body_seconds,
    )

    @app.post("/v2/repository/index", tags=["V2"])
    async def repository_index() -> list[dict[str, str]]:
        """Every model version that is served, and every folder that cannot be, with the reason."""
        served = [
            {"name": model.name, "version": model.version, "state": "READY", "reason": ""}
            for name, model in models.models.items()
            if ":" in name
        ]
        refused = [
            {"name": folder, "version": "", "state": "UNAVAILABLE", "reason": reason}
            for folder, reason in models.problems.items()
        ]
        return served + refused


class _ReadableDataPlane(DataPlane):
    """kserve's, with readiness that follows the models and refusals that say what was expected."""

    async def ready(self) -> bool:
        return self.model_registry.is_open

    def decode(self, *args: Any, model_name: str | None = None, **kwargs: Any) -> Any:
        with counted_errors():
            try:
                request, attributes = super().decode(*args, model_name=model_name, **kwargs)
                for given in request.inputs if isinstance(request, InferRequest) else ():
                    given.shape = list(map(index, given.shape))  # a body of bytes may say anything
                return request, attributes
            except (InvalidInput, LookupError, TypeError, ValueError, AttributeError) as error:
                # What kserve throws at a body whose parts are missing, of another type, or of another length.
                expected = _expected(self.model_registry, model_name)
                raise RequestError("format", f"{expected}; got what cannot be read: {error}") from error


class _WatchedRepository(ModelRepositoryExtension):
    """The server watches its folder: nobody loads or unloads by a request, which kserve would let anyone do."""

    async def load(self, model_name: str) -> None:
        raise InvalidInput(
            f"model '{model_name}': expected no request to load; the server watches its folder of models"
        )

    async def unload(self, model_name: str) -> None:
        raise InvalidInput(f"model '{model_name}': expected no request to unload; take it out of the folder of models")


def _expected(models: Models, model_name: str | None) -> str:
    model = models.get_model(model_name)
    return model.contract.expected if model else "expected the Open Inference Protocol v2"


def _answer_malformed(models: Models) -> Any:
    """A handler for JSON that is no inference request: kserve would answer 422 in a form of its own."""

    async def answer(request: Request, error: RequestValidationError) -> JSONResponse:
        ERRORS.labels("format").inc()
        # kserve reads a body as a request or else as bytes; why it is not bytes helps nobody.
        details = [detail for detail in error.errors() if "bytes" not in detail["loc"]]
        reasons = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details)
        expected = _expected(models, request.path_params.get("model_name"))
        return JSONResponse({"error": printable(f"{expected}; got no such request: {reasons}")}, status_code=400)

    return answer


async def _answer_overloaded(_: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": error.details}, status_code=503, headers={"Retry-After": str(error.retry_after)})


def _require_free(port: int, setting: str) -> None:
    """Refuse a taken port now: gRPC would share it with another server and get every other request."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(f"{setting}={port}: cannot listen there ({error.strerror}); choose another port") from error
