"""`/openapi.json` and `/docs`: the description of the API, and a page to try it.

FastAPI's own page loads its scripts from another site and holds one of its own. Here they are files
of a package, under a policy that lets nothing else run.
"""

import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

PACKAGE = "fastapi_offline"
"""Taken for its files alone."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Styles in attributes are what Swagger UI is made of; scripts are files."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>wan-tpu API</title>
<link rel="icon" href="/favicon.ico">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


def make_router(app: FastAPI) -> APIRouter:
    """The routes; the description is made, and encoded, when it is first asked for."""
    router = APIRouter()
    assets = StaticFiles(packages=[(PACKAGE, "static")])
    encoded: list[bytes] = []

    @router.get("/openapi.json")
    async def openapi() -> Response:
        if not encoded:
            encoded.append(json.dumps(describe(app)).encode())
        return Response(encoded[0], media_type="application/json")

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(PAGE, headers=HEADERS)

    @router.get("/docs/start.js")
    async def start() -> Response:
        return Response(START, media_type="text/javascript", headers=HEADERS)

    @router.get("/docs/{name}")
    async def asset(request: Request, name: str) -> Response:
        return await assets.get_response(name, request.scope)

    return router


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document.

    FastAPI adds its own errors (422), which are answered as 400 here, and takes the errors of a
    stream for streams.
    """
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, response in operation["responses"].items():
                if status >= "400":
                    (schema,) = response["content"].values()
                    response["content"] = {"application/json": schema}
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document
