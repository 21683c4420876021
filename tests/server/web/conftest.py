"""Chromium, real and headless, and pages in it whose errors fail the test."""

import importlib.util
import shutil

import pytest

from server.keys import add_key
from tests.requirements import require
from tests.server.running import PATIENCE_SECONDS, RunningServer

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="package")  # not session: its event loop is in the way of asyncio.run
def chromium():
    """The browser."""
    program = shutil.which("chromium")
    require(program, "the page's tests need Chromium: apt-get install -y chromium")
    require(importlib.util.find_spec("playwright"), "the page's tests need: pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens the page of a server in a fresh profile; any error in its scripts fails the test.

    `script` runs before those of the page, for what this browser has not.
    """
    contexts, problems = [], []

    def hear(message):
        if "Content Security Policy" in message.text or "Trusted" in message.text:
            problems.append(message.text)

    def open_page(server, script=None, **options):
        context = chromium.new_context(**{"viewport": DESKTOP, "locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"{error}\n{error.stack}"))
        page.on("console", hear)
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """(server, key): the real engine behind an API key, with room for one waiting job."""
    folder = tmp_path_factory.mktemp("keyed")
    key = add_key(folder / "keys", "reader")
    server = RunningServer(
        folder / "data", api_keys_file=folder / "keys", max_queued_jobs_per_key=1, max_work=100
    )
    yield server.wait_ready(), key
    server.stop()


@pytest.fixture
def page(open_page, server):
    """The page of the module's server, ready to submit."""
    page = open_page(server)
    page.locator("#submit:enabled").wait_for()
    return page
