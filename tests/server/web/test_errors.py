"""What the page says when something is wrong, and how it gets over it."""

import socket

import pytest

from tests.server.running import wait_for
from tests.server.web.page_actions import card_of, focused, notice, submit, wait_status


@pytest.mark.parametrize(
    ("field", "value", "name", "expected"),
    [
        ("num_frames", "18", "num_frames", "nearest: 17 or 21"),
        ("num_inference_steps", "0", "num_inference_steps", "Steps "),
        ("seed", "a lot", "seed", "Seed "),
        ("prompt", "   ", "prompt", "Say what the video shall show."),
    ],
)
def test_an_error_stands_beside_its_field(open_page, quick, field, value, name, expected):
    page = open_page(quick)
    page.locator("#submit:enabled").wait_for()
    page.click("#advanced summary")
    page.fill("#prompt", "a red circle")
    page.fill(f"#{field}", value)
    page.click("#advanced summary")  # closed: an error in it must open it
    page.click("#submit")
    error = page.locator(f"#{name}-error")
    error.wait_for()
    assert expected in error.inner_text()
    assert page.get_attribute(f"#{name}", "aria-invalid") == "true"
    assert f"{name}-error" in page.get_attribute(f"#{name}", "aria-describedby")
    assert focused(page) == name
    assert page.locator(".notice").count() == 0
    page.fill(f"#{name}", "1")
    assert error.is_hidden()
    assert page.get_attribute(f"#{name}", "aria-invalid") is None


def test_another_size_is_typed_and_refused_with_one_that_works(open_page, quick):
    page = open_page(quick)
    page.locator("#submit:enabled").wait_for()
    page.fill("#prompt", "a red circle")
    page.get_by_role("radio", name="Other").check()
    assert focused(page) == "custom_size"
    page.fill("#custom_size", "65x64")
    page.click("#submit")
    page.locator("#custom_size-error").wait_for()
    assert "nearest: 64 or 80" in page.inner_text("#custom_size-error")
    page.fill("#custom_size", "80x64")
    page.click("#submit")
    wait_status(card_of(page, "a red circle"), "completed")


def test_a_failed_job_says_why_and_offers_to_try_again(open_page, quick):
    page = open_page(quick)
    card = submit(page, "oom")
    wait_status(card, "failed")
    assert card.locator(".failure-title").inner_text() == "Out of memory"
    assert len(card.locator(".failure-text").inner_text()) > 10
    assert card.get_by_role("button", name="Try again").is_visible()


def test_a_full_queue_is_said_until_it_is_tried_again(open_page, start_server):
    server = start_server(max_queued_jobs=1).wait_ready()
    page = open_page(server)
    running = submit(page, "slow and long", num_inference_steps=60)
    wait_status(running, "in_progress")
    queued = submit(page, "slow, waiting")
    page.fill("#prompt", "one too many")
    page.click("#submit")
    refusal = notice(page, "submit")
    refusal.wait_for()
    assert "Try again in" in refusal.inner_text()
    assert page.input_value("#prompt") == "one too many"
    queued.get_by_role("button", name="Cancel").click()
    wait_status(queued, "failed")
    refusal.get_by_role("button", name="Try again").click()
    card_of(page, "one too many")
    refusal.wait_for(state="detached")


def test_the_page_gets_over_a_killed_server_by_itself(open_page, start_server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start_server(port=port).wait_ready()
    page = open_page(server)
    card = submit(page, "slow circle", num_inference_steps=20)
    wait_status(card, "in_progress")
    server.kill()
    page.locator('#service[data-state="offline"]').wait_for()
    assert page.inner_text("#service-text") == "Reconnecting"
    assert "Reconnecting" in notice(page, "connection").inner_text()
    wait_for(lambda: "Reconnecting" in card.inner_text())
    page.fill("#prompt", "written meanwhile")
    page.click("#submit")  # nothing answers: it is said, and nothing is lost
    notice(page, "submit").wait_for()
    server.start()
    page.locator('#service[data-state="ready"]').wait_for()
    notice(page, "connection").wait_for(state="detached")
    wait_status(card, "completed")
    assert page.input_value("#prompt") == "written meanwhile"
    notice(page, "submit").get_by_role("button", name="Try again").click()
    wait_status(card_of(page, "written meanwhile"), "completed")
    assert page.locator(".card").count() == 2  # sent twice, made once
    assert page.locator(".notice").count() == 0


def test_a_page_that_found_nobody_starts_when_somebody_comes(open_page, quick):
    page = open_page(quick)
    for path in ("**/v1/**", "**/readyz"):
        page.route(path, lambda route: route.abort())
    page.reload()
    page.locator('#service[data-state="offline"]').wait_for()
    assert page.is_disabled("#submit")
    page.fill("#prompt", "written before there are models")
    for path in ("**/v1/**", "**/readyz"):
        page.unroute(path)
    page.locator("#submit:enabled").wait_for()
    page.locator('#service[data-state="ready"]').wait_for()
    page.locator(".skeleton").first.wait_for(state="detached")
    assert page.input_value("#prompt") == "written before there are models"


def test_a_refusal_outlives_what_is_said_of_the_service(open_page, start_server):
    no_chip = {"SCRIPTED_ENGINE_CANNOT_START": "no chip answers"}
    server = start_server(environment=no_chip, max_queued_jobs=1)
    page = open_page(server)
    state = notice(page, "connection")
    state.wait_for()
    assert "waits in line" in state.inner_text()
    assert "status 1" not in state.inner_text()  # that is for those who run it
    row = submit(page, "a patient one")
    page.fill("#prompt", "one too many")
    page.click("#submit")
    refusal = notice(page, "submit")
    refusal.wait_for()
    for _ in range(2):
        with page.expect_response("**/readyz"):
            pass
    assert "queue is full" in refusal.inner_text()
    assert state.is_visible()

    path = f"/v1/videos/{row.get_attribute('data-id')}"

    def come_too_late(route):
        server.client.delete(path)
        route.continue_()

    page.route(f"**{path}/cancel", come_too_late)
    row.get_by_role("button", name="Cancel").click()
    wait_for(lambda: page.locator(".notice").count() == 3)
    assert "may have been deleted" in page.locator(".notice").last.inner_text()
    assert "queue is full" in refusal.inner_text()
    refusal.get_by_role("button", name="Dismiss").click()
    refusal.wait_for(state="detached")
    assert page.locator(".notice").count() == 2


def test_a_lost_answer_makes_no_second_job(open_page, quick):
    page = open_page(quick)
    page.locator("#submit:enabled").wait_for()
    page.fill("#prompt", "only one of these")

    def lose_answer(route):
        if route.request.method != "POST":
            return route.continue_()
        route.fetch()  # the service gets it; the answer is lost on the way
        return route.abort()

    page.route("**/v1/videos", lose_answer)
    page.click("#submit")
    notice(page, "submit").wait_for()
    page.unroute("**/v1/videos")
    page.locator("#submit:enabled").click()
    wait_status(card_of(page, "only one of these"), "completed")
    prompts = [video["prompt"] for video in quick.client.get("/v1/videos?limit=100").json()["data"]]
    assert prompts.count("only one of these") == 1


def test_a_deleted_video_leaves_the_page(open_page, quick):
    video = quick.create("to be deleted elsewhere")
    quick.finish(video)
    page = open_page(quick)
    card_of(page, video["prompt"])
    quick.client.delete(f"/v1/videos/{video['id']}")
    submit(page, "another one")
    wait_for(lambda: page.locator(f'[data-id="{video["id"]}"]').count() == 0)
