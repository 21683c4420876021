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


def enter_key(page, key):
    page.locator("#key-dialog").wait_for()
    page.fill("#key", key)
    page.keyboard.press("Enter")


def test_the_key_is_asked_for_kept_for_the_tab_and_sent_with_media(open_page, keyed):
    server, key = keyed
    page = open_page(server, permissions=["clipboard-read", "clipboard-write"])
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
    assert video.evaluate("v => v.src").startswith("blob:")
    red_centre(frame_at(video, 1))
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
    card_of(page, PROMPT)
    assert not page.is_visible("#key-dialog")
    assert key not in page.url
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"
    page.click("#open-key")
    assert "another one can take its place" in page.inner_text("#key-text")
    page.keyboard.press("Escape")
    assert page.locator(".notice").count() == 0  # the key that is there goes on serving
    other_tab = page.context.new_page()
    other_tab.goto(server.url)
    other_tab.locator("#key-dialog").wait_for()
    page.click("#open-key")
    page.get_by_role("button", name="Forget the key").click()
    wait_for(lambda: "asks for a key" in page.inner_text("#key-text"))


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
