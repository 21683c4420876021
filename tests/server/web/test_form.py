"""The form: shapes and seconds before pixels and frames, variations, how long it will take."""

import pytest

from tests.server.running import SCRIPTED, RunningServer, wait_for
from tests.server.web.page_actions import card_of, focused, notice, submit

SIZES = "640x352x5,832x480x5"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that compiles two wide sizes, and has room for three waiting jobs."""
    folder = tmp_path_factory.mktemp("form") / "data"
    found = RunningServer(
        folder, engine=SCRIPTED, warm_up=SIZES, max_queued_jobs=3, max_work=100_000
    )
    yield found.wait_ready()
    found.stop()


def request_of(server, card):
    video = server.retrieve({"id": card.get_attribute("data-id")})
    return video["size"], video["metadata"]["request"]


def shape(page, name):
    page.get_by_role("radio", name=name, exact=True).check()
    return page.locator("#size option").all_inner_texts()


def test_a_shape_has_the_sizes_that_the_model_makes(page, server):
    assert shape(page, "1:1") == ["64 × 64", "480 × 480", "624 × 624"]
    assert page.input_value("#size") == "64x64"  # about as many pixels as the model's own
    assert shape(page, "16:9") == ["80 × 48", "640 × 352", "832 × 480"]
    assert shape(page, "9:16") == ["48 × 80", "352 × 640", "480 × 832"]
    page.select_option("#size", "352x640")
    card = submit(page, "a tall one", num_inference_steps=1)
    assert request_of(server, card)[0] == "352x640"
    server.finish({"id": card.get_attribute("data-id")})
    shape(page, "16:9")
    card_of(page, "a tall one").get_by_role("button", name="Use these settings").click()
    assert page.get_by_role("radio", name="9:16").is_checked()
    assert page.input_value("#size") == "352x640"
    page.get_by_role("button", name="Undo").click()
    assert page.get_by_role("radio", name="16:9").is_checked()


def test_seconds_become_frames_and_frames_seconds(page, server):
    assert page.input_value("#seconds") == "2"
    assert page.inner_text("#length") == "17 frames"
    page.fill("#seconds", "1.2")
    assert page.inner_text("#length") == "9 frames, 1 s"
    page.click("#advanced summary")
    assert page.input_value("#num_frames") == "9"
    page.fill("#fps", "16")  # the seconds are what was asked for
    assert page.input_value("#num_frames") == "21"
    page.fill("#num_frames", "33")
    assert page.input_value("#seconds") == "2"
    page.fill("#fps", "8")  # the frames are, now
    assert page.input_value("#seconds") == "4"
    page.click("#reset")
    page.fill("#seconds", "1.5")
    _, request = request_of(server, submit(page, "short", num_inference_steps=1))
    assert request["num_frames"] == 13
    page.fill("#seconds", "1000000")
    page.click("#submit")
    page.locator("#seconds-error").wait_for()
    assert focused(page) == "seconds"


def made(server):
    videos = server.client.get("/v1/videos?limit=100").json()["data"]
    return [video for video in videos if video["prompt"] == "three of a kind"]


def test_variations_have_consecutive_seeds_and_are_taken_together(page, server):
    running = server.create("slow and long", num_inference_steps=200)
    server.wait_until(running, "in_progress")
    waiting = server.create("slow, too", num_inference_steps=200)
    page.fill("#prompt", "three of a kind")
    page.fill("#seed", str(2**53))  # which no JavaScript number can count on from
    page.fill("#variations", "11")
    page.click("#submit")
    page.locator("#variations-error").wait_for()
    page.fill("#variations", "4")
    page.click("#submit")
    wait_for(lambda: "no more than 3 jobs may wait" in page.inner_text("#variations-error"))
    page.fill("#variations", "3")
    assert page.inner_text("#submit-text") == "Generate 3 variations"
    page.click("#submit")
    refusal = notice(page, "submit")
    refusal.wait_for()
    assert "queue is full: 1 jobs wait, and n asks for 3" in refusal.inner_text()
    assert not made(server)
    server.client.post(f"/v1/videos/{waiting['id']}/cancel")
    refusal.get_by_role("button", name="Try again").click()
    wait_for(lambda: len(made(server)) == 3)
    refusal.wait_for(state="detached")
    seeds = [video["metadata"]["request"]["seed"] for video in made(server)]
    assert seeds == [2**53 + i for i in (2, 1, 0)]
    wait_for(lambda: page.locator(".row", has_text="three of a kind").count() == 3)
    server.client.post(f"/v1/videos/{running['id']}/cancel")


def test_how_long_it_will_take_is_said_before_it_is_asked_for(page, server):
    words = page.evaluate(
        """async () => {
          const { forecast } = await import("/web/words.js");
          const known = { each: 40, number: 1, ahead: 0, wait: 0, isCompiled: true };
          return [
            forecast(known),
            forecast({ ...known, number: 4 }),
            forecast({ ...known, number: 2, ahead: 3, wait: 220 }),
            forecast({ ...known, ahead: 1, wait: null }),
            forecast({ ...known, each: null }),
            forecast({ ...known, each: null, ahead: 2, isCompiled: false }),
          ];
        }"""
    )
    assert words == [
        "About 40 s.",
        "About 40 s each, 3 min for all 4.",
        "About 40 s each, 80 s for all 2, after 3 others: done in about 5 min.",
        "About 40 s, after one other.",
        "",
        "After 2 others. The first of a size or length is compiled first, which takes longer.",
    ]
    server.finish(server.create("to learn from", num_inference_steps=500))
    estimate = page.locator("#estimate")
    page.reload()
    wait_for(lambda: "About" in estimate.inner_text())
    seconds = """async number => {
      const { duration } = await import("/web/words.js");
      document.querySelector("#num_inference_steps").value = number;
      document.querySelector("#prompt").dispatchEvent(new Event("input", { bubbles: true }));
      return document.querySelector("#estimate").textContent;
    }"""
    few, many = page.evaluate(seconds, 500), page.evaluate(seconds, 500_000)
    assert few.endswith(" s.")
    assert many.endswith(("min.", "h."))
    page.select_option("#fast", "wan-tiny-4")  # 4 evaluations, of which 500 guided steps take 1000
    assert page.evaluate(seconds, 500) == "About 0.1 s."
    shape(page, "4:3")
    assert "compiled first" in estimate.inner_text()
