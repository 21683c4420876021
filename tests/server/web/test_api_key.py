"""The page of a service that asks for an API key."""

from tests.server.running import wait_for
from tests.server.web.page_actions import (
    card_of,
    frame_at,
    notice,
    red_centre,
    submit,
    wait_status,
)

PROMPT = "a red circle moving right on a black background"


BLOBS = """
window.blobs = new Map();
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (blob) => {
  const url = createObjectURL.call(URL, blob);
  blobs.set(url, blob.type);
  return url;
};
URL.revokeObjectURL = (url) => (blobs.delete(url), revokeObjectURL.call(URL, url));
"""
"""Counts what the page holds in memory: `blobs`, address -> media type."""


def enter_key(page, key, *, keep=False):
    page.locator("#key-dialog").wait_for()
    page.fill("#key", key)
    page.set_checked("#key-keep", keep)
    page.keyboard.press("Enter")


def test_the_key_is_asked_for_kept_for_the_tab_and_sent_with_media(open_page, keyed):
    server, key = keyed
    page = open_page(server, BLOBS, permissions=["clipboard-read", "clipboard-write"])
    parts = []

    def hear(response):
        if "variant=video" in response.url:
            parts.append((response.url, response.status))

    page.on("response", hear)
    enter_key(page, "wt-wrong")
    page.locator("#key-error").wait_for()
    assert page.inner_text("#key-error") == "The service does not know this key."
    enter_key(page, key)
    page.locator("#empty").wait_for()
    assert "No videos yet" in page.inner_text("#empty")

    card = submit(page, PROMPT, seed=1)
    wait_status(card, "completed")
    card.locator(".frame-open").click()
    video = page.locator("#viewer-video")
    wait_for(lambda: video.evaluate("v => v.readyState >= 2 && v.currentTime > 0"))
    assert video.evaluate("v => v.src").startswith(server.url)
    assert key not in video.evaluate("v => v.src")
    assert video.evaluate("v => v.seekable.end(0)") == video.evaluate("v => v.duration")
    red_centre(frame_at(video, 1))
    assert "video/mp4" not in page.evaluate("[...blobs.values()]")
    assert parts  # which the player asked for, and got
    assert {status for _, status in parts} == {206}
    cookies = page.context.cookies
    (ticket,) = cookies(f"{server.url}/v1/videos/{card.get_attribute('data-id')}/content")
    assert (ticket["httpOnly"], ticket["sameSite"]) == (True, "Strict")
    assert cookies([server.url, f"{server.url}/v1/videos/video_{32 * '0'}/content"]) == []
    page.click("#viewer-curl")
    page.locator(".toast").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    assert key not in command
    assert "$WAN_TPU_API_KEY" in command
    with page.expect_download() as download:
        page.click("#viewer-download")
    assert download.value.path().read_bytes()[4:8] == b"ftyp"
    page.keyboard.press("Escape")

    page.reload()
    card = card_of(page, PROMPT)
    assert not page.is_visible("#key-dialog")
    wait_for(lambda: page.evaluate("[...blobs.values()]") == ["image/webp"])
    card.locator(".frame-open").click()
    wait_for(lambda: video.evaluate("v => v.readyState >= 2"))
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 400, "height": 300})  # what nobody sees is given back
    page.evaluate("document.body.style.paddingTop = '3000px'")
    wait_for(lambda: page.evaluate("blobs.size") == 0)
    page.evaluate("document.body.style.paddingTop = 0")
    wait_for(lambda: "image/webp" in page.evaluate("[...blobs.values()]"))
    assert key not in page.url
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"
    page.click("#open-key")
    assert "another one can take its place" in page.inner_text("#key-text")
    page.keyboard.press("Escape")
    assert page.locator(".notice").count() == 0  # the key that is there goes on serving
    other_tab = page.context.new_page()
    other_tab.goto(server.url)
    other_tab.locator("#key-dialog").wait_for()
    enter_key(other_tab, key, keep=True)
    other_tab.locator("#submit:enabled").wait_for()
    third_tab = page.context.new_page()
    third_tab.goto(server.url)  # kept on the device: it is not asked for again
    third_tab.locator("#submit:enabled").wait_for()
    third_tab.click("#open-key")
    assert "kept on this device" in third_tab.inner_text("#key-text")
    assert third_tab.is_checked("#key-keep")
    third_tab.get_by_role("button", name="Forget the key").click()
    wait_for(lambda: "asks for a key" in third_tab.inner_text("#key-text"))
    assert third_tab.evaluate("JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"


def test_password_managers_know_the_key_when_they_see_it(open_page, keyed):
    page = open_page(keyed[0])
    page.locator("#key-dialog").wait_for()
    fields = page.evaluate(
        """[...document.querySelector("#key-form").elements]
          .filter((field) => field.autocomplete)
          .map((field) => [field.type, field.autocomplete])"""
    )
    assert fields == [["text", "username"], ["password", "current-password"]]


def test_where_storage_is_blocked_the_key_holds_until_the_page_is_closed(open_page, keyed):
    server, key = keyed
    block = """
    for (const storage of ["localStorage", "sessionStorage"])
      Object.defineProperty(window, storage, { get() { throw new DOMException("no"); } });
    """
    page = open_page(server, block)
    enter_key(page, key, keep=True)
    page.locator("#submit:enabled").wait_for()


def test_who_has_no_key_now_can_enter_it_later(open_page, keyed):
    server, key = keyed
    page = open_page(server)
    page.locator("#key-dialog").wait_for()
    page.keyboard.press("Escape")
    notice(page, "key").get_by_role("button", name="Enter the key").click()
    enter_key(page, key)
    page.locator("#submit:enabled").wait_for()
    notice(page, "key").wait_for(state="detached")


def test_a_keys_own_limit_is_said(open_page, keyed):
    server, key = keyed
    page = open_page(server)
    enter_key(page, key)
    first = submit(page, "a red square moving left on a black background", num_inference_steps=800)
    wait_status(first, "in_progress")
    second = submit(page, "a red square moving up on a black background")
    page.fill("#prompt", "a red square moving down on a black background")
    page.click("#submit")
    notice(page, "submit").wait_for()
    assert "Try again" in notice(page, "submit").inner_text()
    for card in (second, first):
        card.get_by_role("button", name="Cancel").click()
        wait_status(card, "failed")
