"""`/docs` in a real browser: under its own policy, with nothing to load but from this server."""

import json


def test_a_call_can_be_tried_and_nothing_comes_from_elsewhere(open_page, quick):
    page = open_page(quick)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{quick.url}/docs")
    page.get_by_text("/v1/videos/{video_id}/cancel").wait_for()
    page.locator("#operations-models-listModels").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    answer = page.locator(".live-responses-table .highlight-code code").first
    answer.wait_for()
    assert json.loads(answer.text_content())["data"][0]["id"] == "wan-tiny"
    assert all(url.startswith((quick.url, "data:", "blob:")) for url in asked), asked
