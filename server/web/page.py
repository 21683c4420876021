"""Serves the page: `/` and the files that it loads from `/web/`."""

import os
import pathlib

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB = pathlib.Path(__file__).parent / "static"
INDEX, ICON = "index.html", "icon.svg"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Only our own files run, and no text becomes markup: prompts of others are shown on the page."""

PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
}


class PageFiles(StaticFiles):
    """The files of the page; browsers ask each time whether theirs is still the right one."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See `StaticFiles`; the page itself has one address."""
        if path == INDEX and scope["path"] != "/":
            raise HTTPException(404)
        return await super().get_response(path, scope)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """See `StaticFiles`."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(PAGE_HEADERS)
        return response


files = PageFiles(directory=WEB)
router = APIRouter()


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return await files.get_response(INDEX, request.scope)


@router.get("/favicon.ico")
async def icon(request: Request) -> Response:
    """The icon, for browsers that ask for it by the old name."""
    return await files.get_response(ICON, request.scope)
