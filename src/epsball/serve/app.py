"""The page and its API: JSON in, JSON out; a question that cannot be answered gets {"error": why} and a 4xx."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.serve.answers import Answers
from epsball.serve.exhibit import Exhibit
from epsball.serve.guard import Application, Guard
from epsball.serve.images import decode, looks, png, url
from epsball.serve.menu import menu
from epsball.serve.questions import File, Looking, Question, Whole

STATIC = Path(__file__).parent / "static"
MOST_THUMBNAILS = 100
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI can report requests to OpenTelemetry, also because of a variable in the environment; versions before that
could not, and take no notice of this."""


class Told(JSONResponse):
    """An answer as it is, without FastAPI looking at every number; null for numbers that are not finite."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except ValueError:  # JSON has no NaN and no infinity
            return super().render(finite(content))


def finite(value: Any) -> Any:
    """The value with null for each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def application(exhibit: Exhibit) -> Application:
    """The page about an exhibit, as an ASGI application.

    GET /api/about says what there is, GET /api/examples?start&count&label lists images; POST /api/attack (a `Question`)
    attacks one, POST /api/file gives the adversarial image as PNG, POST /api/look says whether such a file still fools,
    POST /api/upload takes a PNG or JPEG as its body; /api/openapi.json describes them.
    """
    app = FastAPI(
        title="epsball",
        version=__version__,
        docs_url=None,  # pages that load scripts from other machines
        redoc_url=None,
        openapi_url="/api/openapi.json",
        telemetry=NO_TELEMETRY,
    )
    desk, data = Answers(exhibit), exhibit.examples

    @app.exception_handler(BadInput)
    async def refused(_: Request, error: BadInput) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    async def mistyped(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return JSONResponse({"error": f"`{name}`: {first['msg']}; see /api/openapi.json"}, status_code=422)

    @app.exception_handler(HTTPException)
    async def not_there(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:  # the terminal gets the traceback
        return JSONResponse({"error": f"the model failed: {type(error).__name__}: {error}"}, status_code=500)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        """The models, the data, the norms with their scales, the attacks, and the ball to begin with."""
        shown = [{"name": shown.name, "origin": shown.origin} for shown in exhibit.models]
        known = {"name": data.name, "count": len(data), "shape": exhibit.shape, "lo": exhibit.lo, "hi": exhibit.hi}
        ball = {"norm": exhibit.ball.name, "eps": float(exhibit.ball.eps)}
        about = {"version": __version__, "models": shown, "data": known, "ball": ball}
        return about | {"classes": exhibit.label_names} | menu(exhibit)

    @app.get("/api/examples")
    def examples(start: Whole = 0, count: Whole = 24, label: Whole | None = None) -> dict[str, Any]:
        """Images from the `start`-th on, at most `count`, of one class if `label` says so; with the total number."""
        if start < 0 or not 1 <= count <= MOST_THUMBNAILS:
            raise BadInput(f"`start` must be >= 0 and `count` 1 to {MOST_THUMBNAILS}, got {start} and {count}")
        rows = range(len(data)) if label is None else (data.y == label).nonzero()[:, 0].tolist()
        listed = [{"row": row, "label": int(data.y[row]), "picture": thumbnail(row)} for row in rows[start:][:count]]
        return {"total": len(rows), "start": start, "examples": listed}

    def thumbnail(row: int) -> str:
        return url(png(looks(data.x[row].cpu().numpy(), exhibit.lo, exhibit.hi)))

    @app.post("/api/upload")
    async def upload(request: Request) -> dict[str, Any]:
        """The PNG or JPEG of the body in the models' size and colours, as a PNG in base64, and what was done to it."""
        taken = decode(await request.body(), exhibit.shape)
        return {"picture": url(png(taken.pixels)), "notes": taken.notes}

    @app.post("/api/attack")
    def attack(question: Question) -> Told:
        """Pictures, logits and probabilities before and after, for each model."""
        return Told(desk.answer(question))

    @app.post("/api/file", response_class=Response)
    def file(question: File) -> Response:
        """The adversarial image as a PNG file, 8 bits a value, each rounded towards the image."""
        plain = Question(**question.model_dump(exclude={"of"}))
        named = {"content-disposition": 'attachment; filename="adversarial.png"'}
        return Response(desk.file(plain, question.of), media_type="image/png", headers=named)

    @app.post("/api/look")
    def look(looking: Looking) -> Told:
        """Whether a PNG file still fools: each model's answer to what its bytes decode to."""
        return Told(desk.look(looking))

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return Guard(app)  # pyright: ignore[reportArgumentType] - starlette's types and ASGI's are the same
