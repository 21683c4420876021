"""Few steps, noise levels and adapters in the form, in what it sends, and in what a video says."""

import pytest

from tests.server.http.test_adapters import put
from tests.server.running import SCRIPTED, RunningServer
from tests.server.web.page_actions import card_of, submit

FOX, BEAR = "fox.safetensors", "bear.safetensors"
LONG = "long-" + "name-" * 20 + ".safetensors"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One with two adapters, and one that cannot be used."""
    root = tmp_path_factory.mktemp("shortcuts")
    folder = root / "adapters"
    folder.mkdir()
    put(folder / FOX, trigger_phrase="f0x", description="a fox of \u202epaper")
    put(folder / BEAR)
    put(folder / LONG)
    (folder / "bad.safetensors").write_bytes(b"no tensors at all")
    found = RunningServer(root / "data", engine=SCRIPTED, adapters=folder)
    yield found.wait_ready()
    found.stop()


def request_of(server, card):
    return server.retrieve({"id": card.get_attribute("data-id")})["metadata"]["request"]


def facts(page):
    names, values = (page.locator(f"#viewer-facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def open_video(page, server, prompt):
    card = card_of(page, prompt)
    server.finish({"id": card.get_attribute("data-id")})
    card.locator(".frame-open").click()
    page.locator("#viewer[open]").wait_for()


def test_a_preset_decides_what_it_was_distilled_to(page, server):
    assert page.locator("#fast option").all_inner_texts() == ["All 12 steps", "wan-tiny in 4 steps"]
    page.click("#advanced summary")
    page.fill("#guidance_scale", "7")
    page.select_option("#fast", label="wan-tiny in 4 steps")
    assert page.inner_text("#fast-hint") == "4 steps without guidance"
    assert page.locator("#num_inference_steps").is_disabled()
    request = request_of(server, submit(page, "in a few steps"))
    assert (request["fast"], request["num_inference_steps"]) == ("wan-tiny-4", 4)
    assert request["guidance_scale"] == 1
    page.select_option("#fast", "")
    assert request_of(server, submit(page, "in all steps"))["guidance_scale"] == 7
    open_video(page, server, "in a few steps")
    said = facts(page)
    assert (said["Few steps"], said["Noise levels"]) == ("wan-tiny-4", "1, 0.9375, 0.8333, 0.625")
    page.click("#viewer-reuse")
    assert page.input_value("#fast") == "wan-tiny-4"
    again = request_of(server, submit(page, "in a few steps again", seed=request["seed"]))
    assert again == request


def test_noise_levels_of_ones_own(page, server):
    page.click("#advanced summary")
    page.fill("#num_inference_steps", "9")
    page.fill("#sigmas", "1, 0.75, 0.5")
    page.select_option("#scheduler", "renoise")
    request = request_of(server, submit(page, "by levels"))
    assert (request["sigmas"], request["scheduler"]) == ([1, 0.75, 0.5], "renoise")
    page.fill("#sigmas", "1, 2")
    page.click("#submit")
    page.locator("#sigmas-error").wait_for()
    assert page.inner_text("#sigmas-error").startswith("Noise levels must be numbers that fall")
    page.click("#reset")
    card = card_of(page, "by levels")
    server.finish({"id": card.get_attribute("data-id")})
    card.get_by_role("button", name="Use these settings").click()
    assert page.input_value("#sigmas") == "1,0.75,0.5"


def test_adapters_are_chosen_weighed_and_taken_away(page, server):
    """Red when a choice is not sent, or not restored."""
    options = page.locator("#lora option").all_inner_texts()
    bad = "bad.safetensors (cannot be used)"
    assert options == ["Add an adapter\u2026", bad, BEAR, FOX, LONG]
    assert page.locator("#lora option", has_text=bad).is_disabled()
    for name in (FOX, BEAR, BEAR):
        page.select_option("#lora", name)
    rows = page.locator(".lora")
    assert rows.locator(".lora-name").all_inner_texts() == [FOX, BEAR, BEAR]
    assert rows.nth(0).locator(".lora-text").inner_text() == (
        "a fox of paper\nSay \u201cf0x\u201d in the prompt."
    )
    assert not rows.nth(0).locator(".lora-expert").is_visible()  # of two experts alone
    rows.nth(0).get_by_role("spinbutton").fill("0.8")
    rows.nth(2).get_by_role("button").click()
    expected = [{"name": FOX, "strength": 0.8}, {"name": BEAR, "strength": 1}]
    request = request_of(server, submit(page, "with two adapters"))
    assert request["lora"] == expected
    rows.nth(1).get_by_role("button").click()
    rows.nth(0).get_by_role("button").click()
    assert "lora" not in request_of(server, submit(page, "with none"))
    open_video(page, server, "with two adapters")
    assert facts(page)["Adapters"] == f"{FOX} \u00d7 0.8, {BEAR}"
    page.click("#viewer-reuse")
    assert rows.count() == 2
    assert request_of(server, submit(page, "again with both"))["lora"] == expected
    page.get_by_role("button", name="Undo").first.click()
    assert rows.count() == 0


def test_a_long_name_has_no_room_and_makes_none(page):
    page.select_option("#lora", LONG)
    assert page.locator(".lora-remove").is_visible()
    assert (
        page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('#side'))") == 0
    )


def test_a_remix_keeps_and_drops_them(page, server):
    page.select_option("#lora", FOX)
    page.select_option("#fast", "wan-tiny-4")
    card = submit(page, "the first one")
    server.finish({"id": card.get_attribute("data-id")})
    card_of(page, "the first one").get_by_role("button", name="Remix").click()
    request = request_of(server, submit(page, "made anew"))
    assert (request["fast"], len(request["lora"])) == ("wan-tiny-4", 1)
    page.locator(".lora").get_by_role("button").click()
    page.select_option("#fast", "")
    request = request_of(server, submit(page, "made anew plainly"))
    assert not {"fast", "lora", "sigmas"} & request.keys()


def tell(page, **changes):
    """Has the page hear of another model than there is."""

    def change(route):
        answer = route.fetch()
        models = answer.json()
        models["data"][0] |= changes
        route.fulfill(response=answer, json=models)

    page.route("**/v1/models", change)
    page.reload()
    page.locator("#submit:enabled").wait_for()


def test_what_the_model_has_not_is_not_there(page):
    tell(page, adapters=[], presets=[], step_caches=[])
    page.click("#advanced summary")
    assert page.is_visible("#sigmas")
    for name in ("fast", "lora", "step_cache"):
        assert not page.is_visible(f"#{name}-field")


def test_of_two_experts_one_can_be_chosen(page, server):
    """The server has a model of one, and says so beside the field."""
    tell(page, experts=2)
    page.select_option("#lora", FOX)
    page.locator(".lora-expert").select_option("low noise")
    page.fill("#prompt", "for low noise")
    page.click("#submit")
    page.locator("#lora-error").wait_for()
    assert "names the expert low" in page.inner_text("#lora-error")
    page.locator(".lora-strength").fill("")
    page.locator(".lora-strength").press_sequentially("1e")
    page.click("#submit")
    assert page.inner_text("#lora-error") == "This is not a number."
