"""How the page looks and reads: phone, dark and light, names, what the browser enforces."""

import re

import pytest

from server.engine.failure import Failure
from tests.server.running import wait_for
from tests.server.web.page_actions import card_of

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
LONG = "an " + "extraordinarily" * 20 + " long word"
ARABIC = "دائرة حمراء تتحرك إلى اليمين"
TURNED = "invoice \u202etxt.exe"
"""Reads "invoice exe.txt" where the sign in it is obeyed."""

SHARING = """
navigator.canShare = ({ files }) => files.length > 0;
navigator.share = async ({ files: [file] }) => {
  if (!window.late) throw (window.late = new DOMException("too late", "NotAllowedError"));
  window.shared = [file.name, file.type, file.size];
};
"""
"""What phones have, where the first click has been too long ago."""


@pytest.fixture(scope="module")
def filled(quick):
    """A server with a finished and a failed video, and some whose prompts are hard to show."""
    for prompt in ("a finished one", "boom", ARABIC, TURNED, LONG):
        quick.finish(quick.create(prompt))
    return quick


def overflow(page):
    """Pixels that stick out to the right of the window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_a_phone_needs_no_sideways_scrolling(open_page, filled):
    page = open_page(filled, **PHONE, script=SHARING)
    card = card_of(page, LONG)
    assert overflow(page) <= 0
    assert card.bounding_box()["y"] < PHONE["viewport"]["height"] * 0.6, "the form hides the videos"
    page.tap("#advanced summary")
    assert overflow(page) <= 0
    page.tap("#submit")  # without a prompt: the error is shown
    page.locator("#prompt-error").wait_for()
    assert overflow(page) <= 0
    page.tap("#basics summary")
    page.fill("#seed", "a lot")
    page.fill("#prompt", "with an error in a field that is folded away")
    page.tap("#basics summary")
    page.tap("#submit")
    page.locator("#seed-error").wait_for()
    card.locator(".frame-open").tap()
    wait_for(lambda: page.is_visible("#viewer"))
    assert overflow(page) <= 0
    for name in ("viewer-download", "viewer-share"):  # beside each other, below the video
        box = page.locator(f"#{name}").bounding_box()
        assert box["y"] + box["height"] <= PHONE["viewport"]["height"]
    page.tap("#viewer-share")
    page.locator(".toast").get_by_role("button", name="Share").tap()  # loading it took too long
    wait_for(lambda: page.evaluate("window.shared"))
    content = filled.client.get(f"/v1/videos/{card.get_attribute('data-id')}/content").content
    name, media_type, size = page.evaluate("shared")
    assert name.endswith(".mp4")
    assert (media_type, size) == ("video/mp4", len(content))
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


def test_prompts_are_shown_in_their_own_direction_and_whole_on_demand(open_page, filled):
    page = open_page(filled)
    direction = "e => getComputedStyle(e).direction"
    arabic = card_of(page, ARABIC).locator(".card-prompt")
    assert arabic.evaluate(direction) == "rtl"
    card = page.locator(".card", has_text="invoice")
    prompt = card.locator(".card-prompt")
    assert prompt.evaluate(direction) == "ltr"
    assert prompt.inner_text() == "invoice txt.exe"  # as it would be read by a program
    assert "\u202e" not in card.evaluate("e => e.outerHTML")
    card.get_by_role("button", name="Use these settings").click()
    assert page.input_value("#prompt") == TURNED  # and what is sent is what was written
    page.fill("#prompt", ARABIC)
    assert page.locator("#prompt").evaluate(direction) == "rtl"

    long = card_of(page, LONG)
    prompt, more = long.locator(".card-prompt"), long.locator(".card-more")
    hidden = "e => e.scrollHeight - e.clientHeight"
    assert prompt.evaluate(hidden) > 20
    more.click()
    assert prompt.evaluate(hidden) == 0
    assert more.get_attribute("aria-expanded") == "true"
    more.click()
    assert prompt.evaluate(hidden) > 20
    assert card_of(page, "a finished one").locator(".card-more").is_hidden()


def test_a_card_says_how_long_it_is_kept_and_a_failed_one_has_an_id(open_page, filled):
    page = open_page(filled, permissions=["clipboard-read", "clipboard-write"])
    kept = card_of(page, "a finished one").locator(".card-kept")
    assert kept.inner_text().endswith("kept 24 h")
    assert "Kept until" in kept.get_attribute("title")
    failed = card_of(page, "boom")
    assert failed.locator(".card-kept").is_hidden()
    assert "Something went wrong inside the service" in failed.inner_text()
    assert not re.search(r"\blog\b", failed.inner_text())
    failed.get_by_role("button", name="Copy the id").click()
    page.locator(".toast").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == failed.get_attribute("data-id")


def test_failures_of_every_code_have_words(open_page, filled):
    page = open_page(filled)
    codes = [code.value for code in Failure]
    errors = [{"code": code, "message": "the engine said; its log says more"} for code in codes]
    errors += [
        {"code": "bad_numbers", "message": "the model gave NaN"},
        {"code": "of_tomorrow", "message": "the moon is in the way; the server's log says more"},
        {"code": "of_tomorrow", "message": ""},
        None,
    ]
    words = page.evaluate(
        """async errors => {
          const { failure } = await import("/web/words.js");
          return errors.map(failure);
        }""",
        errors,
    )
    by_code = dict(zip([*codes, "bad_numbers", "tomorrow", "silent", "none"], words, strict=True))
    assert by_code["bad_numbers"]["title"] == "No picture"
    assert by_code["tomorrow"] == {"title": "Failed", "text": "The moon is in the way."}
    assert by_code["invalid_request"]["text"] == "The engine said."  # about what was asked for
    for code, each in by_code.items():
        assert each["title"], code
        assert len(each["text"]) > 10 or code == "cancelled", code
        assert "log" not in each["text"], code


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
    ".card-facts", ".failure-title", ".failure-text", ".gallery-count", ".card-kept",
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
