"""The page for people, at `/page`: photos in, colours and matches out, nothing from anywhere else."""

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Response

from mum_model.serve.models import Models

FILES = {"/page": "index.html", "/page/page.js": "page.js", "/page/page.css": "page.css"}
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_route(models: Models) -> APIRouter:
    """The page with its style and its script, and the models that it can offer."""
    router = APIRouter(include_in_schema=False)
    for url, name in FILES.items():
        router.add_api_route(url, _sender(Path(__file__).with_name(name)), methods=["GET"])

    @router.get("/page/models")
    async def page_models() -> list[dict[str, str | bool]]:
        """Every model and version by name, and whether it reconstructs."""
        return [{"name": name, "reconstructs": model.reconstructs} for name, model in models.models.items()]

    return router


def _sender(path: Path) -> Callable[[], Response]:
    content = path.read_bytes()

    def send() -> Response:
        return Response(content, media_type=TYPES[path.suffix], headers=HEADERS)

    return send
