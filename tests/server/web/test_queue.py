"""Many videos: what waits is a short list, what is done comes first, and both can be found."""

import pytest

from tests.server.running import SCRIPTED, RunningServer, wait_for
from tests.server.web.page_actions import card_of, focused, notice, wait_status

FINISHED, WAITING = 30, 101  # with those that wait, the results begin on the list's second page


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A server with a long queue behind a slow job, and results before them."""
    server = RunningServer(tmp_path_factory.mktemp("crowded"), engine=SCRIPTED, max_work=1000)
    server.wait_ready()
    finished = [server.create(f"video number {i}", num_inference_steps=1) for i in range(FINISHED)]
    finished.append(server.create("boom"))
    for video in finished:
        server.finish(video)
    running = server.create("slow and long", num_inference_steps=1000)
    for i in range(WAITING):
        server.create(f"waiting number {i}", seed=i)
    server.wait_until(running, "in_progress")
    yield server
    server.stop()


def prompts(page, part):
    return page.locator(f"{part}-prompt").all_inner_texts()


def waiting(server):
    """(prompt, seed) of what waits, the next one first."""
    videos, after = [], ""
    while True:
        page = server.client.get(f"/v1/videos?limit=100{after}").json()
        videos += page["data"]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    queued = [video for video in videos if video["status"] == "queued"]
    return [(each["prompt"], each["metadata"]["request"]["seed"]) for each in reversed(queued)]


def test_results_come_first_however_many_wait(open_page, crowded):
    page = open_page(crowded)
    card_of(page, "slow and long")
    newest = [f"video number {i}" for i in reversed(range(FINISHED))]
    assert prompts(page, ".card") == ["slow and long", "boom", *newest][:24]
    assert prompts(page, ".row") == [f"waiting number {i}" for i in range(3)]
    card, queue = page.locator(".card").first, page.locator("#queue")
    assert card.bounding_box()["y"] < queue.bounding_box()["y"] < 800
    assert page.inner_text("#queue-count") == str(WAITING)
    page.click("#queue-more")
    assert prompts(page, ".row") == [f"waiting number {i}" for i in range(WAITING)]
    places = page.locator(".row-place").all_inner_texts()
    assert places == [str(i + 1) for i in range(WAITING)]
    page.click("#queue-more")
    assert page.locator(".row").count() == 3
    page.set_viewport_size({"width": 320, "height": 700})
    assert card.bounding_box()["y"] < 700
    last = page.locator(".card").last
    assert last.bounding_box()["y"] < queue.bounding_box()["y"]
    page.click("#waiting")
    wait_for(lambda: 0 <= queue.bounding_box()["y"] < 700)
    prompt = page.locator(".row-prompt").first
    line = prompt.bounding_box()["height"]
    prompt.evaluate("e => { e.textContent = 'a very long prompt '.repeat(9); }")
    assert prompt.bounding_box()["height"] == line
    prompt.click()
    assert prompt.bounding_box()["height"] > 2 * line

    page.click("#older")
    wait_for(lambda: page.locator(".card").count() == FINISHED + 2)
    assert prompts(page, ".card") == ["slow and long", "boom", *newest]
    assert page.is_hidden("#older")


def test_videos_are_found_by_their_prompt_and_their_end(open_page, crowded):
    page = open_page(crowded)
    card_of(page, "slow and long")
    page.fill("#search", "number VIDEO 2")
    found = [f"video number {i}" for i in (29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 12, 2)]
    assert prompts(page, ".card") == found  # also what was not shown before
    assert page.inner_text("#gallery-count") == f"12 of {FINISHED + 2}"
    page.locator(".frame-open").first.click()
    page.keyboard.press("ArrowRight")
    wait_for(lambda: page.inner_text("#viewer-prompt") == "video number 28")
    page.keyboard.press("Escape")
    page.fill("#search", "")
    page.select_option("#kind", "failed")
    assert prompts(page, ".card") == ["boom"]
    page.fill("#search", "no such thing")
    page.locator("#no-match").wait_for()
    page.click("#show-all")
    assert page.locator(".card").count() == 24
    assert page.input_value("#search") == ""


def test_cancelling_one_that_waits_goes_on_to_the_next(open_page, crowded):
    page = open_page(crowded)
    first, second, *rest = waiting(crowded)
    row = card_of(page, second[0])
    row.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Delete")
    wait_status(row, "failed")  # a card now, among the results
    assert page.evaluate("document.activeElement.dataset.action") == "cancel"
    assert waiting(crowded) == [first, *rest]


def test_all_that_waits_is_cancelled_at_once_and_can_be_brought_back(open_page, crowded):
    page = open_page(crowded)
    card_of(page, "slow and long")
    before = waiting(crowded)
    refused = []

    def refuse_once(route):
        if route.request.method != "DELETE" or len(refused) == 1:
            return route.fallback()
        refused.append(route.request.url)
        return route.abort()

    page.route("**/v1/videos/video_*", refuse_once)
    page.click("#queue-cancel")
    assert f"{len(before)} waiting videos" in page.inner_text("#ask")
    assert focused(page) == "ask-no"
    page.keyboard.press("Escape")
    wait_for(lambda: not page.is_visible("#ask"))
    page.click("#queue-cancel")
    page.click("#ask-no")
    assert waiting(crowded) == before
    page.click("#queue-cancel")
    page.click("#ask-yes")
    refusal = notice(page, "cancel all")
    refusal.wait_for()
    assert waiting(crowded) == before
    assert page.inner_text("#queue-count") == str(len(before))
    refusal.get_by_role("button", name="Try again").click()
    page.locator(".toast").wait_for()
    assert "waiting videos cancelled" in page.inner_text(".toast")
    assert waiting(crowded) == []
    assert page.is_hidden("#queue")
    assert page.locator(".card").first.get_attribute("data-status") == "in_progress"
    assert focused(page) == "notices"  # the button is gone: the keyboard goes on from here
    page.get_by_role("button", name="Undo").click()
    wait_for(lambda: waiting(crowded) == before)
    wait_for(lambda: page.inner_text("#queue-count") == str(len(before)))
