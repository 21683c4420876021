"""Images and videos on the page: chosen, dropped, pasted, shown, sent, refused, used again."""

import re
import shlex

import pytest

from server.keys import add_key
from tests.server.pictures import clip, create_with, large_picture, picture
from tests.server.running import SCRIPTED, RunningServer, wait_for
from tests.server.web.page_actions import card_of, notice, submit, wait_status
from wan_tpu.checkpoints.models import WAN_TINY_TI2V
from wan_tpu.media import digest_of

PNG = picture(5, (36, 64))
CLIP = clip(num_frames=9)
LIMIT = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With a model that takes text, an image or a video."""
    folder = tmp_path_factory.mktemp("inputs") / "data"
    found = RunningServer(folder, model=WAN_TINY_TI2V, engine=SCRIPTED, max_upload_bytes=LIMIT)
    yield found.wait_ready()
    found.stop()


def as_file(data, name, kind):
    return {"name": name, "mimeType": kind, "buffer": data}


IMAGE = as_file(PNG, "fox.png", "image/png")
VIDEO = as_file(CLIP, "fox.mp4", "video/mp4")


def choose(page, file, name="input_reference"):
    page.locator("#submit:enabled").wait_for()
    page.set_input_files(f"#{name}", file)


def hand_over(page, event, file, target="body"):
    """Drops or pastes a file, as far as a page can tell."""
    page.locator("#submit:enabled").wait_for()
    page.locator(target).evaluate(
        """(target, [event, {name, mimeType, bytes}]) => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes)], name, { type: mimeType }));
          const Kind = event === "paste" ? ClipboardEvent : DragEvent;
          const carried = event === "paste" ? { clipboardData: files } : { dataTransfer: files };
          target.dispatchEvent(new Kind(event, { bubbles: true, cancelable: true, ...carried }));
        }""",
        [event, {**file, "buffer": None, "bytes": list(file["buffer"])}],
    )


def request_of(server, card):
    return server.retrieve({"id": card.get_attribute("data-id")})["metadata"]["request"]


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_an_image_is_shown_and_sent(open_page, server, way):
    page = open_page(server)
    if way == "choose":
        choose(page, IMAGE)
    else:
        hand_over(page, way, IMAGE, "#prompt" if way == "paste" else ".gallery")
    shown = page.locator("#input_reference-image")
    wait_for(lambda: shown.evaluate("image => image.naturalWidth") == 64)
    assert page.locator("#input_reference-name").inner_text() == "fox.png"
    assert page.is_hidden("#strength-field")
    assert page.input_value("#size") == "", "as the image"
    card = submit(page, f"an image by {way}", num_inference_steps=2)
    wait_status(card, "completed")
    request = request_of(server, card)
    assert request["image"] == digest_of(PNG)
    facts = card.locator(".card-facts").first.inner_text()
    assert "160×96" in facts, "the size is the image's, not the model's own"
    page.click("#input_reference-remove")
    assert page.input_value("#size") == "128x128"
    card = submit(page, f"no image after {way}")
    assert "image" not in request_of(server, card)


def test_a_video_has_a_strength(open_page, server):
    page = open_page(server)
    hand_over(page, "drop", VIDEO, "#input_reference-drop")
    video = page.locator("#input_reference-video")
    wait_for(lambda: video.evaluate("v => v.readyState >= 2 && !v.paused"))
    assert page.input_value("#strength") == "0.8"
    assert page.input_value("#num_frames") == "", "as the video"
    page.fill("#strength", "2")
    page.fill("#prompt", "too strong")
    page.click("#submit")
    error = page.locator("#strength-error")
    error.wait_for()
    assert error.inner_text() == "Strength must be a number above 0 and at most 1, got '2'."
    page.fill("#strength", "0.6")
    card = submit(page, "a video", num_inference_steps=10)
    wait_status(card, "completed")
    request = request_of(server, card)
    assert (request["video"], request["strength"]) == (digest_of(CLIP), 0.6)
    assert request["num_frames"] == 9


def test_what_is_refused_stays_visible(open_page, server):
    page = open_page(server)
    error = page.locator("#input_reference-error")
    choose(page, as_file(large_picture(LIMIT + 1), "large.png", "image/png"))
    assert error.inner_text() == "The file has 201 kB; at most 200 kB are taken."
    choose(page, as_file(b"text", "fox.txt", "text/plain"))
    assert error.inner_text() == "This model takes an image or a video here."
    for data, words in (
        (b"not a picture at all", "PNG, JPEG, WebP"),
        (PNG[: len(PNG) // 2], ""),
        (picture(size=(3, 2000)), ""),
    ):
        choose(page, as_file(data, "fox.png", "image/png"))
        assert error.is_hidden()
        page.fill("#prompt", "refused")
        page.click("#submit")
        error.wait_for()
        assert words in error.inner_text()
        assert page.locator("#input_reference-name").inner_text() == "fox.png"
        page.click("#input_reference-remove")
    assert page.locator(".card", has_text="refused").count() == 0


def test_remix_and_extend(open_page, server):
    made = server.finish(server.create("the first part", seed=5, num_frames=9, guidance_scale=2))
    page = open_page(server)
    card_of(page, "the first part").get_by_role("button", name="Remix: ").click()
    video = page.locator("#input_reference-video")
    wait_for(lambda: video.evaluate("v => v.readyState >= 2"))
    assert page.input_value("#prompt") == "the first part"
    remix = submit(page, "a remix", num_inference_steps=4)
    wait_status(remix, "completed")
    found = server.retrieve({"id": remix.get_attribute("data-id")})
    assert found["remixed_from_video_id"] == made["id"]
    request = found["metadata"]["request"]
    assert (request["seed"], request["guidance_scale"], request["num_frames"]) == (5, 2, 9)
    assert request["num_inference_steps"] == 4

    card_of(page, "the first part").locator(".frame-open").click()
    page.click("#viewer-extend")
    assert page.input_value("#video-use") == "extend"
    assert page.is_hidden("#strength-field")
    page.fill("#seconds", "1")
    assert page.locator("#length-unit").inner_text() == "seconds more"
    assert page.locator("#length").inner_text() == "9 frames"
    longer = submit(page, "the second part", num_inference_steps=2)
    wait_status(longer, "completed")
    found = server.retrieve({"id": longer.get_attribute("data-id")})
    assert (found["seconds"], found["remixed_from_video_id"]) == ("2", made["id"])
    assert "· 2 s ·" in longer.locator(".card-facts").first.inner_text()
    longer.locator(".frame-open").click()
    facts = page.locator("#viewer-facts").inner_text()
    assert "17 frames, 2.1 s at 8 fps" in facts
    assert "a video of 9 frames, continued" in facts


def test_a_remix_can_be_undone(open_page, server):
    server.finish(server.create("to be remixed", seed=6))
    page = open_page(server)
    page.locator("#submit:enabled").wait_for()
    page.fill("#prompt", "my own words")
    card_of(page, "to be remixed").get_by_role("button", name="Remix: ").click()
    page.get_by_role("button", name="Undo").click()
    assert page.input_value("#prompt") == "my own words"
    assert page.is_visible("#input_reference-drop")
    assert page.input_value("#num_frames") == "17"
    card = submit(page, "my own words")
    assert "video" not in request_of(server, card)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_settings_come_back_with_what_it_was_made_from(open_page, server, kind):
    data = PNG if kind == "image" else CLIP
    fields = {} if kind == "image" else {"strength": 0.7}
    response = create_with(server, data, prompt=f"again with {kind}", seed=9, **fields)
    made = server.finish(response.json())
    page = open_page(server)
    card = card_of(page, made["prompt"])
    card.get_by_role("button", name="Use these settings").click()
    page.locator("#input_reference-given").wait_for()
    wait_for(lambda: page.locator(".toast").count() == 1)
    again = submit(page, f"and again with {kind}")
    wait_status(again, "completed")
    assert request_of(server, again) == made["metadata"]["request"]


def test_try_again_sends_the_image_again(open_page, server):
    made = server.finish(create_with(server, PNG, prompt="boom", num_inference_steps=3).json())
    page = open_page(server)
    card_of(page, "boom").get_by_role("button", name="Try again").click()
    wait_for(lambda: card_of(page, "boom").get_attribute("data-id") != made["id"])
    assert request_of(server, card_of(page, "boom")) == made["metadata"]["request"]


def test_the_curl_command_names_the_file(open_page, server):
    server.finish(create_with(server, PNG, prompt="it's an image").json())
    page = open_page(server, permissions=["clipboard-read", "clipboard-write"])
    card_of(page, "it's an image").get_by_role("button", name="Copy as curl").click()
    page.locator(".toast").wait_for()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert "prompt=it's an image" in words
    assert "input_reference=@image.png" in words
    assert not [word for word in words if "sha256" in word]


def test_a_video_that_is_gone_cannot_be_remixed(open_page, server):
    made = server.finish(server.create("soon gone"))
    page = open_page(server)
    card_of(page, "soon gone").get_by_role("button", name="Remix: ").click()
    page.locator("#input_reference-given").wait_for()
    server.client.delete(f"/v1/videos/{made['id']}")
    page.fill("#prompt", "a remix of nothing")
    page.click("#submit")
    error = page.locator("#input_reference-error")
    error.wait_for()
    assert re.match("There is no video", error.inner_text())


def test_behind_a_key(open_page, tmp_path):
    key = add_key(tmp_path / "keys", "reader")
    server = RunningServer(
        tmp_path / "data", model=WAN_TINY_TI2V, engine=SCRIPTED, api_keys_file=tmp_path / "keys"
    )
    try:
        server.client.headers["Authorization"] = f"Bearer {key}"
        page = open_page(server.wait_ready())
        page.fill("#key", key)
        page.keyboard.press("Enter")
        choose(page, IMAGE)
        card = submit(page, "an image", num_inference_steps=2)
        wait_status(card, "completed")
        page.click("#input_reference-remove")
        card.get_by_role("button", name="Use these settings").click()
        shown = page.locator("#input_reference-image")
        wait_for(lambda: shown.evaluate("image => image.naturalWidth") == 64)
        card.get_by_role("button", name="Extend").click()
        video = page.locator("#input_reference-video")
        wait_for(lambda: video.evaluate("v => v.readyState >= 2"))
        longer = submit(page, "longer", num_inference_steps=2)
        wait_status(longer, "completed")
        assert request_of(server, longer)["image"]
    finally:
        server.stop()


def test_a_model_of_text_offers_no_image(open_page, quick):
    made = quick.finish(quick.create("made of words", num_inference_steps=2))
    page = open_page(quick)
    page.locator("#submit:enabled").wait_for()
    assert page.locator("#input_reference-hint").inner_text() == "Drop, paste or choose a video"
    choose(page, IMAGE)
    assert page.locator("#input_reference-error").inner_text() == "This model takes a video here."
    card = card_of(page, made["prompt"])
    wait_status(card, "completed")
    assert card.get_by_role("button", name="Remix: ").is_visible()
    assert card.get_by_role("button", name="Extend: ").count() == 0
    assert notice(page, "submit").count() == 0
