"""The page of a fleet: its slices, and several models that come and go."""

import pytest

from tests.server.running import wait_for
from tests.server.shown_fleet import RunningFleet
from tests.server.web.page_actions import card_of, look_away, notice, submit
from tests.server.web.test_layout import CONTRAST

TINY, TI2V = "wan-tiny", "wan-tiny-ti2v"
A, B = ("a", TINY, "ready"), ("b", TI2V, "ready")
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A server whose slices and models are what a test says."""
    server = RunningFleet(tmp_path_factory.mktemp("fleet") / "data", max_work=1000)
    yield server.wait_ready()
    server.stop()


@pytest.fixture
def page(open_page, fleet):
    """The page with two slices, each of a model of its own."""
    fleet.show(A, B)
    page = open_page(fleet)
    page.locator("#submit:enabled").wait_for()
    return page


def look_again(page):
    """Has the page ask for slices now, and not in a few seconds: it does when it comes in sight."""
    look_away(page)
    look_away(page, away=False)


def show(page, fleet, *slices, **models):
    fleet.show(*slices, **models)
    look_again(page)


def options(page, name):
    return page.locator(f"#{name} option").all_inner_texts()


def asked(page, path):
    """Counts the requests of a page to a path from now on."""
    found = []
    page.on("request", lambda request: found.append(request.url) if path in request.url else None)
    return found


def slices(page):
    """Of each slice that is shown: name, state, since, facts, words."""
    rows = page.locator("#slice-rows > li").all()
    return [tuple(row.locator("p").all_text_contents()) for row in rows]


def test_slices_are_shown_and_looked_at_again(page, fleet, open_page):
    button = page.locator("#open-slices")
    wait_for(lambda: button.inner_text() == "2 slices")
    assert not page.is_visible("#slices")
    button.focus()
    page.keyboard.press("Enter")
    assert page.is_visible("#slices")
    assert button.get_attribute("aria-expanded") == "true"
    panel = page.get_by_role("region", name="Slices")
    assert panel.get_by_role("listitem").count() == 2
    assert slices(page)[0] == ("a", "Ready", "for 5 min", "wan-tiny · sp=4 ring", "")
    first = page.locator("#slice-rows > li").first.element_handle()
    show(page, fleet, ("a", TINY, "busy"), B, ("c", TI2V, "broken", "no chip <b>answers</b>"))
    wait_for(lambda: button.inner_text() == "3 slices, 1 broken")
    assert [row[1] for row in slices(page)] == ["Busy", "Ready", "Broken"]
    assert slices(page)[2][4] == "no chip <b>answers</b>"
    assert first.evaluate("row => row.isConnected"), "the row was made anew"
    show(page, fleet, ("b", TI2V, "loading", "weights"))
    wait_for(lambda: button.inner_text() == "1 slice, loading")
    assert slices(page) == [("b", "Loading", "for 5 min", TI2V, "weights")]
    page.reload()
    page.locator("#slice-rows > li").wait_for()  # it is open as before
    button.click()
    assert not page.is_visible("#slices")


def test_slices_are_not_asked_for_while_nobody_looks(page, fleet):
    page.clock.install()
    page.reload()
    page.locator("#open-slices:visible").wait_for()
    look_away(page)
    page.clock.run_for(1_000)
    found = asked(page, "/v1/slices")
    page.clock.run_for(60_000)
    assert not found
    with page.expect_request("**/v1/slices"):
        look_away(page, away=False)


def test_a_server_with_its_own_slice_is_asked_once(open_page, quick):
    page = open_page(quick)
    page.clock.install()
    page.goto("about:blank")
    found, failed = asked(page, "/v1/slices"), []
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    with page.expect_response("**/v1/slices") as answer:
        page.goto(quick.url)
    assert answer.value.status == 404
    page.locator("#submit:enabled").wait_for()
    page.clock.run_for(60_000)
    assert len(found) == 1
    assert failed == [f"{quick.url}/v1/slices"]
    for name in ("open-slices", "slices", "model-field"):
        assert not page.is_visible(f"#{name}")


def test_the_form_follows_the_model(page, fleet):
    fleet.show(A, B, models={TINY: ["80x48"], TI2V: ["256x128"]})
    page.reload()
    wait_for(lambda: options(page, "model") == [TINY, TI2V])
    assert page.input_value("#model") == TINY
    assert options(page, "size") == ["64 × 64"]
    presets = options(page, "fast")
    assert "image" not in page.inner_text("#input_reference-hint")
    page.fill("#prompt", "what I wrote")
    page.select_option("#model", TI2V)
    assert options(page, "size") == ["128 × 128", "192 × 192"]
    assert page.input_value("#size") == "128x128"
    assert "an image or a video" in page.inner_text("#input_reference-hint")
    assert options(page, "fast") != presets
    assert page.input_value("#prompt") == "what I wrote"
    made = submit(page, "a fox of the second", num_inference_steps=2)
    video = fleet.retrieve({"id": made.get_attribute("data-id")})
    assert (video["model"], video["size"]) == (TI2V, "128x128")
    page.reload()
    wait_for(lambda: page.input_value("#model") == TI2V)  # it is remembered


def test_models_come_and_go(page, fleet):
    page.select_option("#model", TI2V)
    page.fill("#seconds", "1")
    show(page, fleet, A)
    hint = page.locator("#model-hint")
    wait_for(lambda: hint.is_visible() and hint.inner_text() == f"{TI2V} is not served now.")
    assert page.input_value("#model") == TINY
    assert page.input_value("#seconds") == "2"
    show(page, fleet, A, B)
    wait_for(lambda: options(page, "model") == [TINY, TI2V])
    assert page.input_value("#model") == TINY  # nobody has chosen another one
    assert not hint.is_visible()

    show(page, fleet)
    wait_for(lambda: "No slice serves a model now" in notice(page, "models").inner_text())
    page.fill("#prompt", "patience")
    assert page.is_disabled("#submit")
    show(page, fleet, A)
    page.locator("#submit:enabled").wait_for()
    assert notice(page, "models").count() == 0
    assert page.input_value("#prompt") == "patience"
    assert not page.is_visible("#model-field")


def test_a_fleet_that_has_no_slice_yet(open_page, fleet):
    fleet.show()
    page = open_page(fleet)
    notice(page, "models").wait_for()
    wait_for(lambda: page.inner_text("#open-slices") == "No slices")
    assert page.is_disabled("#submit")
    page.fill("#prompt", "early")
    assert not page.is_visible("#shapes")
    show(page, fleet, A)
    page.locator("#submit:enabled").wait_for()
    assert page.is_visible("#shapes")
    assert (page.input_value("#prompt"), page.input_value("#size")) == ("early", "64x64")


def test_a_stored_choice_that_is_gone_is_said_once(page, fleet):
    page.select_option("#model", TI2V)
    page.goto("about:blank")  # where the page stays open it may see that itself, and say it before
    fleet.show(A)
    page.goto(fleet.url)
    wait_for(lambda: page.inner_text("#model-hint") == f"{TI2V} is not served now.")
    assert page.input_value("#model") == TINY
    page.reload()
    page.locator("#submit:enabled").wait_for()
    assert not page.is_visible("#model-field")


def test_what_another_slice_compiles_changes_no_field(page, fleet):
    page.fill("#seconds", "1")
    page.fill("#seed", "7")
    show(page, fleet, A, B, ("c", "wan-tiny-i2v", "ready"), models={TINY: ["80x48"], TI2V: []})
    first = "import('/web/served.js').then((module) => module.served.model.sizes[0])"
    wait_for(lambda: page.evaluate(first) == "80x48")
    assert (page.input_value("#seconds"), page.input_value("#seed")) == ("1", "7")
    page.get_by_role("radio", name="16:9").check()
    assert "80 × 48" in options(page, "size")


def test_videos_of_other_models_keep_working(page, fleet):
    first = fleet.finish(fleet.create("of the first", model=TINY, seed=7, num_inference_steps=3))
    boom = fleet.finish(fleet.create("boom of the second", model=TI2V))
    page.reload()
    card = card_of(page, "of the first")
    page.select_option("#model", TI2V)
    page.fill("#prompt", "mine")
    card.get_by_role("button", name="Use these settings").click()
    assert page.input_value("#model") == TINY
    assert page.input_value("#num_inference_steps") == "3"
    page.get_by_role("button", name="Undo").click()
    assert (page.input_value("#model"), page.input_value("#prompt")) == (TI2V, "mine")
    assert page.input_value("#size") == "128x128"
    card.get_by_role("button", name="Remix").click()
    wait_for(lambda: page.input_value("#model") == TINY)
    card.get_by_role("button", name="Extend").click()
    wait_for(lambda: page.input_value("#model") == TI2V)  # which alone can
    assert page.input_value("#seed") == "7"

    page.select_option("#model", TINY)
    with page.expect_response(lambda answer: answer.request.method == "POST") as answer:
        card_of(page, boom["prompt"]).get_by_role("button", name="Try again").click()
    assert answer.value.json()["model"] == TI2V

    show(page, fleet, A)
    wait_for(lambda: not page.is_visible("#model-field"))
    assert not card.get_by_role("button", name="Extend").is_visible()
    page.locator(f'.card[data-id="{boom["id"]}"] [data-action="retry"]').click()
    owner = f"retry {boom['id']}"
    wait_for(lambda: "there is no model" in notice(page, owner).inner_text().lower())
    assert "deleted" not in notice(page, owner).inner_text()
    assert first["model"] == TINY


def test_only_what_needs_the_same_slices_is_waited_for(page, fleet):
    running = fleet.create("slow and long", model=TINY, num_inference_steps=1000)
    show(page, fleet, ("a", TINY, "busy"), ("b", TI2V, "busy"))
    estimate = page.locator("#estimate")
    wait_for(lambda: "after one other" in estimate.inner_text().lower())
    page.select_option("#model", TI2V)
    assert "after" not in estimate.inner_text().lower()
    page.select_option("#model", TINY)
    assert "after one other" in estimate.inner_text().lower()
    fleet.wait_until(running, "in_progress")
    show(page, fleet, ("a", TINY, "busy"), ("c", TINY, "ready"))
    wait_for(lambda: "after" not in estimate.inner_text().lower())
    fleet.client.post(f"/v1/videos/{running['id']}/cancel")


def test_a_phone_shows_slices_without_sideways_scrolling(open_page, fleet):
    rows = [(f"v6e-8-slice-{i}", TI2V, "broken", "o" * 200) for i in range(12)]
    fleet.show(A, *rows)
    page = open_page(fleet, **PHONE)
    page.locator("#open-slices:visible").tap()
    wait_for(lambda: len(slices(page)) == 13)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    top = page.locator(".top").evaluate("e => e.scrollWidth - e.clientWidth")
    assert top <= 0
    cut_off = page.locator("#open-slices").evaluate("e => e.scrollWidth - e.clientWidth")
    assert cut_off <= 0
    assert page.locator("#slice-rows").get_attribute("tabindex") == "0"  # keys can scroll it
    assert page.locator("#prompt").bounding_box()["y"] < PHONE["viewport"]["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_slices_are_legible_in_both_themes(open_page, fleet, scheme):
    fleet.show(("a", TINY, "broken", "no chip answers"))
    page = open_page(fleet, color_scheme=scheme)
    page.locator("#open-slices:visible").click()
    texts = ["#open-slices", ".slice-name", ".slice-state", ".slice-since", ".slice-words"]
    assert {k: v for k, v in page.evaluate(CONTRAST, texts).items() if v < 4.5} == {}
