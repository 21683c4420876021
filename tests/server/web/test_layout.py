"""How the page looks and reads: phone, dark and light, names, what the browser enforces."""

import pytest

from tests.server.running import wait_for
from tests.server.web.page_actions import card_of

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
LONG = "an " + "extraordinarily" * 20 + " long word"


@pytest.fixture(scope="module")
def filled(quick):
    """A server with a finished, a failed and a very long video."""
    for prompt in ("a finished one", "boom", LONG):
        quick.finish(quick.create(prompt))
    return quick


def overflow(page):
    """Pixels that stick out to the right of the window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_a_phone_needs_no_sideways_scrolling(open_page, filled):
    page = open_page(filled, **PHONE)
    card_of(page, "a finished one")
    assert overflow(page) <= 0
    page.tap("#advanced summary")
    assert overflow(page) <= 0
    page.tap("#submit")  # without a prompt: the error is shown
    page.locator("#prompt-error").wait_for()
    assert overflow(page) <= 0
    card_of(page, LONG).locator(".frame-open").tap()
    wait_for(lambda: page.is_visible("#viewer"))
    assert overflow(page) <= 0
    assert (
        page.evaluate("(v => v.scrollWidth - v.clientWidth)(document.querySelector('#viewer'))")
        <= 0
    )
    page.tap("#viewer-close")
    small = page.evaluate(
        """[...document.querySelectorAll("button, a, input, select, textarea")]
          .filter((e) => e.checkVisibility() && !e.matches(".skip-link, .text-button"))
          .map((e) => [e.id || e.className, e.getBoundingClientRect()])
          .filter(([, box]) => Math.min(box.width, box.height) < 40)
          .map(([name]) => name)"""
    )
    assert small == [], "too small for a finger"


CONTRAST = """(selectors) => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (channels(color)[3] !== 0) return color;
    }
  };
  return Object.fromEntries(selectors.map((selector) => {
    const e = document.querySelector(selector);
    const pair = [luminance(getComputedStyle(e).color), luminance(background(e))].sort();
    const [low, high] = pair[0] < pair[1] ? pair : pair.reverse();
    return [selector, (high + 0.05) / (low + 0.05)];
  }));
}"""
TEXTS = [
    "body", ".unit", "#service-text", ".text-button", "#submit", "#prompt-error", ".card-prompt",
    ".card-facts", ".failure-title", ".failure-text", ".gallery-count",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_themes(open_page, filled, scheme):
    page = open_page(filled, color_scheme=scheme)
    card_of(page, "boom")
    page.click("#submit")
    page.locator("#prompt-error").wait_for()
    page.mouse.move(0, 0)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 20)"
    assert dark == (scheme == "dark")
    weak = {k: round(v, 1) for k, v in page.evaluate(CONTRAST, TEXTS).items() if v < 4.5}
    assert weak == {}


def test_the_chosen_theme_is_remembered(open_page, filled):
    page = open_page(filled, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    page.click("#theme")
    assert "dark" in page.get_attribute("#theme", "aria-label")
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark
    page.click("#theme")  # back to what the system says
    assert page.evaluate(background) == light


def test_everything_has_a_name_and_ids_are_unique(open_page, filled):
    page = open_page(filled)
    card_of(page, "a finished one")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, a, input, select, textarea, progress, dialog")]
          .filter((e) => !e.closest("[hidden]"))
          .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim() ||
                           e.getAttribute("aria-labelledby")))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    twice = page.evaluate(
        """(ids => ids.filter((id, i) => ids.indexOf(id) !== i))
           ([...document.querySelectorAll("[id]")].map((e) => e.id))"""
    )
    assert twice == []
    assert page.locator('[role="status"][aria-live="polite"]').count() == 1


def test_progress_is_said_to_screen_readers(open_page, quick):
    page = open_page(quick)
    page.locator("#submit:enabled").wait_for()
    page.evaluate(
        """() => {
          window.said = [];
          const live = document.querySelector("#live");
          const observer = new MutationObserver(() => said.push(live.textContent));
          observer.observe(live, { childList: true });
        }"""
    )
    page.fill("#prompt", "slow words")
    page.keyboard.press("Control+Enter")
    wait_for(lambda: "Finished: slow words" in page.evaluate("said"))
    said = page.evaluate("said")
    assert said[0] == "Queued: slow words"
    assert "Denoising" in said
    assert len(said) < 10, "it talks too much"


def test_shortcuts_are_documented_and_escape_closes(open_page, filled):
    page = open_page(filled)
    card_of(page, "a finished one")
    page.keyboard.press("?")
    page.locator("#help").wait_for()
    assert "Generate" in page.inner_text("#help")
    page.keyboard.press("Escape")
    wait_for(lambda: not page.is_visible("#help"))
    page.focus("#prompt")
    page.keyboard.type("what? a/b")
    assert page.input_value("#prompt") == "what? a/b"
    assert not page.is_visible("#help")


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(open_page, filled):
    page = open_page(filled)
    card_of(page, "a finished one")
    inline = page.evaluate(
        """document.querySelectorAll("[style], style, script:not([src]), [onclick]").length
           - document.querySelectorAll(".grid[style]").length"""
    )
    assert inline == 0  # the grid's shape is set through the CSSOM, which the policy allows
    hosts = page.evaluate(
        "[...new Set(performance.getEntriesByType('resource').map((e) => new URL(e.name).origin))]"
    )
    assert hosts == [filled.url]
    assert "script-src 'self'" in filled.client.get("/").headers["content-security-policy"]


def test_events_are_read_whatever_their_chunks(open_page, quick):
    page = open_page(quick)
    stream = (
        'event: video\r\ndata: {"a":\r\ndata: 1}\r\n\r\n: ping\n\ndata: é\n\ndata:x\r\rdata: lost'
    )
    events = page.evaluate(
        """async ([stream, size]) => {
          const { readEvents } = await import("/web/sse.js");
          const bytes = new TextEncoder().encode(stream);
          const body = new ReadableStream({ start(controller) {
            for (let i = 0; i < bytes.length; i += size)
              controller.enqueue(bytes.slice(i, i + size));
            controller.close();
          } });
          const events = [];
          for await (const { event, data } of readEvents(body)) events.push([event, data]);
          return events;
        }""",
        [stream, 1],
    )
    assert events == [["video", '{"a":\n1}'], ["message", "é"], ["message", "x"]]


def test_older_videos_are_loaded_on_demand(open_page, start_server):
    server = start_server().wait_ready()
    videos = [server.create(f"video number {i}") for i in range(30)]
    server.finish(videos[-1])
    page = open_page(server)
    card_of(page, "video number 29")
    assert page.locator(".card").count() == 24
    page.click("#older")
    wait_for(lambda: page.locator(".card").count() == 30)
    assert page.is_hidden("#older")
    prompts = page.locator(".card-prompt").all_inner_texts()
    assert prompts == [f"video number {i}" for i in reversed(range(30))]
