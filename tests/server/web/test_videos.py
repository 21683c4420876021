"""Making, watching, playing, cancelling and deleting videos on the page, with the real engine."""

import json
import shlex

import pytest

from tests.server.running import wait_for
from tests.server.web.page_actions import (
    card_of,
    focused,
    frame_at,
    red_centre,
    submit,
    wait_status,
)

SLOW_STEPS = 600


def test_a_video_is_made_before_the_readers_eyes_and_plays(open_page, tiny):
    page = open_page(tiny)
    prompt = "a red circle moving right on a black background"
    card = submit(page, prompt, seed=1, num_inference_steps=600)
    seen = set()

    def watch():  # in one look: between two the page may have gone on
        status, *texts = card.evaluate(
            """card => [card.dataset.status, card.querySelector(".frame-stage")?.textContent,
                card.querySelector(".frame-detail")?.textContent]"""
        )
        if status == "in_progress":
            seen.add(tuple(texts))
        return status == "completed"

    wait_for(watch)
    steps = {text for stage, text in seen if stage == "Denoising"}
    assert len(steps) >= 3, seen
    assert all(text.endswith("of 600") for text in steps)

    small = card.locator("video")  # what was just made plays by itself, once or twice
    wait_for(lambda: small.evaluate("v => v.currentTime") > 0)
    card.locator(".frame-open").click()
    video = page.locator("#viewer-video")
    wait_for(lambda: video.evaluate("v => !v.paused && v.readyState >= 2"))
    moved = video.evaluate("v => v.currentTime")
    wait_for(lambda: video.evaluate("v => v.currentTime") != moved)
    duration = video.evaluate("v => v.duration")
    assert duration == pytest.approx(17 / 8, abs=0.05)
    first, last = frame_at(video, 0.01), frame_at(video, duration - 0.05)
    assert first.shape == (64, 64, 3)
    assert red_centre(last) - red_centre(first) > 10, "it does not move right"
    assert video.evaluate("v => getComputedStyle(v).imageRendering") == "pixelated"
    facts = page.locator("#viewer-facts").inner_text()
    assert "64 × 64" in facts
    assert "17 frames, 2.1 s at 8 fps" in facts
    page.keyboard.press("Escape")
    wait_for(lambda: not page.is_visible("#viewer"))


def test_the_pointer_scrubs_through_a_video(open_page, tiny):
    tiny.finish(tiny.create("a blue square moving right on a gray background"))
    page = open_page(tiny)
    frame = card_of(page, "a blue square moving right on a gray background").locator(".frame-open")
    frame.scroll_into_view_if_needed()
    sheet = frame.locator(".frame-sheet")
    box = frame.bounding_box()
    assert sheet.is_hidden()
    places = []
    for share in (0.02, 0.98):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        wait_for(sheet.is_visible)
        places.append(sheet.evaluate("s => s.style.backgroundPosition"))
    assert places[0] == "0px 0px"
    assert places[1] != places[0]
    assert sheet.bounding_box()["width"] == pytest.approx(box["width"], abs=1)
    page.mouse.move(0, 0)
    wait_for(sheet.is_hidden)


def test_cancel_a_running_and_a_queued_video(open_page, tiny):
    page = open_page(tiny)
    running = submit(
        page, "a red square moving up on a gray background", num_inference_steps=SLOW_STEPS
    )
    wait_status(running, "in_progress")
    queued = submit(page, "a blue circle moving up on a gray background")
    assert queued.locator(".row-place").inner_text() == "1"
    queued.get_by_role("button", name="Cancel").click()
    wait_status(queued, "failed")
    running.get_by_role("button", name="Cancel").click()
    wait_status(running, "failed")
    for card in (running, queued):
        assert card.locator(".frame-failure").inner_text().strip() == "Cancelled"
        video = tiny.retrieve({"id": card.get_attribute("data-id")})
        assert video["error"]["code"] == "cancelled"


def test_try_again_makes_the_same_request(open_page, tiny):
    page = open_page(tiny)
    prompt = "a purple circle moving left on a navy background"
    first = submit(page, prompt, seed=77, num_inference_steps=SLOW_STEPS)
    first_id = first.get_attribute("data-id")
    first.get_by_role("button", name="Cancel").click()
    wait_status(first, "failed")
    first.get_by_role("button", name="Try again").click()
    wait_for(lambda: card_of(page, prompt).get_attribute("data-id") != first_id)
    again = card_of(page, prompt)
    again.get_by_role("button", name="Cancel").click()
    requests = [
        tiny.retrieve({"id": id})["metadata"]["request"]
        for id in (first_id, again.get_attribute("data-id"))
    ]
    assert requests[0] == requests[1]
    assert requests[0]["seed"] == 77


def test_delete_can_be_undone_until_it_is_done(open_page, tiny):
    video = tiny.create("a green circle moving up on a navy background")
    tiny.finish(video)
    page = open_page(tiny)
    card = card_of(page, video["prompt"])
    card.get_by_role("button", name="Delete").click()
    wait_for(lambda: page.locator(f'[data-id="{video["id"]}"]').count() == 0)
    page.get_by_role("button", name="Undo").click()
    card.wait_for()
    assert tiny.retrieve(video)["status"] == "completed"

    card.get_by_role("button", name="Delete").click()
    page.locator(".toast").wait_for()
    page.locator(".toast").wait_for(state="detached")  # the time to undo it is over
    wait_for(lambda: tiny.client.get(f"/v1/videos/{video['id']}").status_code == 404)


def test_leaving_the_page_completes_a_deletion(open_page, tiny):
    video = tiny.create("a green square moving up on a navy background")
    tiny.finish(video)
    page = open_page(tiny)
    card_of(page, video["prompt"]).get_by_role("button", name="Delete").click()
    page.locator(".toast").wait_for()
    page.goto("about:blank")
    wait_for(lambda: tiny.client.get(f"/v1/videos/{video['id']}").status_code == 404)


def test_download_has_a_name_and_the_bytes_of_the_service(open_page, tiny):
    video = tiny.create("a white square moving left on a black background")
    tiny.finish(video)
    page = open_page(tiny)
    link = card_of(page, video["prompt"]).get_by_role("link", name="Download")
    wait_for(lambda: link.get_attribute("href"))
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename.endswith(".mp4")
    content = tiny.client.get(f"/v1/videos/{video['id']}/content").content
    assert download.value.path().read_bytes() == content
    assert content.index(b"moov") < content.index(b"mdat")  # plays before all of it is there
    assert b"avc1" in content


def test_settings_go_back_into_the_form_and_can_be_taken_out(open_page, tiny):
    video = tiny.create(
        "a yellow circle moving down on a gray background",
        seed=2**63 - 1,
        guidance_scale=2.5,
        num_inference_steps=3,
    )
    tiny.finish(video)
    page = open_page(tiny)
    page.fill("#prompt", "something of my own")
    card_of(page, video["prompt"]).get_by_role("button", name="Use these settings").click()
    assert page.input_value("#prompt") == video["prompt"]
    assert page.input_value("#guidance_scale") == "2.5"
    assert page.input_value("#num_inference_steps") == "3"
    assert page.input_value("#seed") == str(2**63 - 1)  # to the digit
    page.click("#submit")
    again = card_of(page, video["prompt"])
    wait_for(lambda: again.get_attribute("data-id") != video["id"])
    request = tiny.retrieve({"id": again.get_attribute("data-id")})["metadata"]["request"]
    assert request == video["metadata"]["request"]
    page.get_by_role("button", name="Undo").click()
    assert page.input_value("#prompt") == "something of my own"


def test_the_copied_curl_command_makes_the_same_request(open_page, tiny):
    prompt = 'a red circle\'s path, "right" on a $black `background`\\'
    video = tiny.create(prompt, seed=5, num_inference_steps=2)
    tiny.finish(video)
    page = open_page(tiny, permissions=["clipboard-read", "clipboard-write"])
    card_of(page, prompt).get_by_role("button", name="Copy as curl").click()
    page.locator(".toast").wait_for()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[:2] == ["curl", f"{tiny.url}/v1/videos"]
    body = json.loads(words[words.index("-d") + 1])
    again = tiny.create(**body)
    assert again["metadata"]["request"] == video["metadata"]["request"]
    assert again["prompt"] == prompt


def test_a_job_made_elsewhere_appears(open_page, tiny):
    page = open_page(tiny)
    submit(page, "a white triangle moving up on a black background", num_inference_steps=300)
    elsewhere = tiny.create("a white triangle moving down on a black background")
    wait_status(card_of(page, elsewhere["prompt"]), "completed")


def test_with_reduced_motion_nothing_plays_by_itself(open_page, tiny):
    page = open_page(tiny, reduced_motion="reduce")
    card = submit(page, "a yellow circle moving up on a black background")
    wait_status(card, "completed")
    wait_for(lambda: card.locator("video").get_attribute("poster"))
    card.locator(".frame-open").click()
    video = page.locator("#viewer-video")
    wait_for(lambda: video.evaluate("v => v.readyState") >= 1)
    assert video.evaluate("v => v.paused")
    assert card.locator("video").evaluate("v => v.paused && !v.src")


def test_the_keyboard_alone_submits_opens_and_deletes(open_page, tiny):
    page = open_page(tiny)
    page.locator("#submit:enabled").wait_for()
    page.keyboard.press("/")
    assert focused(page) == "prompt"
    prompt = "a purple square moving up on a black background"
    page.keyboard.type(prompt)
    page.keyboard.press("Control+Enter")
    card = card_of(page, prompt)
    wait_status(card, "completed")

    order = []
    for _ in range(30):
        page.keyboard.press("Tab")
        order.append(focused(page) or page.evaluate("document.activeElement.classList[0]"))
        outline = page.evaluate(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, parseFloat(outlineWidth)])"
            "(getComputedStyle(document.activeElement))"
        )
        assert outline[0] != "none", order
        assert outline[1] >= 1, order
        if order[-1] == "frame-open":
            break
    basics = ["input_reference", None, "size", "seconds", "seed", "new-seed", "variations", "fast"]
    if page.is_visible("#lora"):  # other tests of this server may have put adapters there
        basics.append("lora")
    assert order[: len(basics) + 1] == [*basics, None]  # the shape has no id, nor has "Advanced"
    past_the_form = order[order.index("submit") + 1 :]
    assert past_the_form in (["frame-open"], ["search", "kind", "shape-kind", "frame-open"]), order

    page.keyboard.press("Enter")
    wait_for(lambda: page.is_visible("#viewer"))
    page.keyboard.press("Escape")
    wait_for(lambda: not page.is_visible("#viewer"))
    assert page.evaluate("document.activeElement.classList[0]") == "frame-open"
    page.keyboard.press("Delete")
    wait_for(lambda: page.locator(".card", has_text=prompt).count() == 0)
    assert page.evaluate("document.activeElement !== document.body")
