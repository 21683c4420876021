"""Results: found by shape, pinned, compared two by two, and drawn anew only where they changed."""

import pytest

from tests.server.running import SCRIPTED, RunningServer, wait_for
from tests.server.web.page_actions import card_of, focused

JOBS = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With videos of three shapes, some of them behind a page full of cancelled ones."""
    folder = tmp_path_factory.mktemp("gallery") / "data"
    found = RunningServer(folder, engine=SCRIPTED, max_work=1000).wait_ready()
    short = {"num_inference_steps": 1}
    old = [
        found.create("a tall one", size="48x80", num_frames=33, seed=1, **short),
        found.create("a wide one", size="80x48", seed=2, **short),
    ]
    for video in old:
        found.finish(video)
    cancelled = [found.create("slow", num_inference_steps=100)]
    cancelled += [found.create("cancelled", seed=i) for i in range(JOBS)]
    for video in reversed(cancelled):
        found.client.post(f"/v1/videos/{video['id']}/cancel")
    for i in range(3):
        found.finish(found.create(f"one of many {i}", **short))
    yield found
    found.stop()


@pytest.fixture
def page(open_page, server):
    page = open_page(server)
    card_of(page, "one of many 2")
    return page


def shown(page):
    return page.locator(".card-prompt").all_inner_texts()


def press(page, prompt, name):
    card_of(page, prompt).get_by_role("button", name=f"{name}: ").click()


def test_results_are_found_by_their_shape(page):
    page.select_option("#shape-kind", "tall")
    wait_for(lambda: shown(page) == ["a tall one"])  # which is on the list's second page
    page.select_option("#shape-kind", "wide")
    assert shown(page) == ["a wide one"]
    page.select_option("#kind", "failed")
    assert page.is_visible("#no-match")
    page.click("#show-all")
    page.select_option("#kind", "running")
    assert page.is_visible("#no-match")


def test_what_is_pinned_comes_first_and_is_remembered(page, server):
    page.fill("#search", "a tall")
    wait_for(lambda: shown(page) == ["a tall one"])
    press(page, "a tall one", "Pin")
    assert "download what you want for longer" in page.inner_text(".toast")
    page.fill("#search", "")
    assert shown(page)[:2] == ["a tall one", "one of many 2"]
    card_of(page, "one of many 0").locator(".frame-open").click()
    page.click("#viewer-pin")
    assert page.inner_text("#viewer-pin") == "Unpin"
    page.keyboard.press("Escape")
    other_tab = page.context.new_page()
    other_tab.goto(server.url)
    first = ["one of many 0", "a tall one", "one of many 2"]
    wait_for(lambda: shown(other_tab)[:3] == first)  # also what is far down the list
    assert shown(page)[:3] == first
    press(other_tab, first[0], "Unpin")
    wait_for(lambda: shown(page)[0] == "a tall one")
    page.select_option("#kind", "pinned")
    assert shown(page) == ["a tall one"]
    page.select_option("#kind", "all")
    other_tab.click("#older")  # goes on where the list ended, not at what was pinned
    older = "(button => (button.click(), button.hidden))(document.querySelector('#older'))"
    wait_for(lambda: other_tab.evaluate(older))
    assert len(shown(other_tab)) == JOBS + 6  # each once
    page.evaluate("localStorage.setItem('pinned', '[\"video_00000000000000000000000000000000\"]')")
    page.reload()
    wait_for(lambda: page.evaluate("localStorage.getItem('pinned')") == "[]")


TOGETHER = """() => {
  const [left, right] = ["left", "right"].map((side) => document.querySelector(`#compare-${side}`));
  return [left.currentTime, right.currentTime, left.paused && right.paused];
}"""


def test_two_are_compared_and_run_as_one(page):
    press(page, "one of many 2", "Compare")
    assert page.inner_text("#compare-bar").startswith("Choose a video to compare with one of many")
    page.click("#compare-stop")
    assert page.is_hidden("#compare-bar")
    press(page, "one of many 2", "Compare")
    page.fill("#search", "a tall")
    wait_for(lambda: shown(page) == ["a tall one"])
    card_of(page, "a tall one").locator(".frame-open").click()
    page.click("#viewer-compare")
    page.locator("#compare").wait_for()
    assert focused(page) == "compare-play"
    wait_for(lambda: page.inner_text("#compare-play") == "Pause")  # it plays by itself
    wait_for(lambda: min(page.evaluate(TOGETHER)[:2]) > 0.3)
    left, right, _ = page.evaluate(TOGETHER)
    assert abs(left - right) < 0.5  # of a machine with other things to do
    page.keyboard.press("Space")
    wait_for(lambda: page.evaluate(TOGETHER)[2])
    page.locator("#compare-seek").fill("1")
    assert page.evaluate(TOGETHER) == [1, 1, True]
    page.locator("#compare-play").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(TOGETHER) == [1.125, 1.125, True]  # a frame, of eight a second
    page.keyboard.press("ArrowLeft")
    page.locator("#compare-seek").fill("3")  # past the end of the one: it rests at its last frame
    left, right, _ = page.evaluate(TOGETHER)
    assert (left, right) == (pytest.approx(17 / 8 - 1 / 16, abs=0.05), 3)
    assert page.inner_text("#compare-time").startswith("3.00 of 4.1")
    rows = [row.split("\t") for row in page.inner_text("#compare-facts").split("\n")]
    assert ["64 × 64", "Size", "48 × 80"] in rows
    assert ["17", "Frames", "33"] in rows
    assert "Steps" not in [name for _, name, _ in rows]
    page.keyboard.press("Space")  # plays on to the end, and begins anew
    wait_for(lambda: page.evaluate(TOGETHER)[1] < 3)
    page.set_viewport_size({"width": 390, "height": 844})
    box = page.locator("#compare").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.keyboard.press("Escape")
    wait_for(lambda: not page.is_visible("#compare"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # with all the tools
    # The dialog is hidden before the browser says that it closed, which takes the videos out.
    wait_for(lambda: page.evaluate("document.querySelector('#compare-left').src") == "")


def test_an_event_draws_nothing_but_its_own_card(page, server):
    running = server.create("slow and seen", num_inference_steps=1000)
    waiting = [server.create(f"waits {i}") for i in range(20)]
    page.reload()
    card = page.locator(f'.card[data-id="{running["id"]}"]')
    card.wait_for()
    page.click("#queue-more")
    page.evaluate(
        """() => {
          window.touched = new Map();
          const count = (records) => {
            for (const { target } of records) {
              const element = target.nodeType === Node.ELEMENT_NODE ? target : target.parentElement;
              const id = element?.closest("[data-id]")?.dataset.id ?? element?.closest("[id]")?.id;
              touched.set(id, (touched.get(id) ?? 0) + 1);
            }
          };
          const all = { subtree: true, childList: true, attributes: true, characterData: true };
          new MutationObserver(count).observe(document.querySelector("main"), all);
        }"""
    )
    step = card.locator(".frame-detail").first
    before = step.inner_text()
    wait_for(lambda: page.evaluate(f"touched.get('{running['id']}') ?? 0") > 20)
    assert step.inner_text() != before
    touched = page.evaluate("[...touched.keys()]")
    own = {running["id"], "estimate"} | {video["id"] for video in waiting}  # these say until when
    assert set(touched) <= own
    server.client.delete(f"/v1/videos/{running['id']}")
