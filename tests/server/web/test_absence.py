"""What the page tells those who look elsewhere: by its title, and by notifications."""

from tests.server.running import wait_for
from tests.server.web.page_actions import card_of, look_away, submit, wait_status

NOTIFICATIONS = """
window.notified = [];
window.Notification = class extends Notification {
  constructor(title, options) {
    super(title, options);
    notified.push([title, options.body, this]);
  }
};
"""
"""The browser's own, which also writes down what it shows."""


def test_a_hidden_tab_says_when_it_is_done_and_notifies_who_asked_for_it(open_page, quick):
    page = open_page(quick, NOTIFICATIONS, permissions=["notifications"])
    page.click("#notify")
    page.locator(".toast").wait_for()
    assert page.get_attribute("#notify", "aria-pressed") == "true"
    submit(page, "slow to the end", num_inference_steps=20)
    other = page.context.new_page()  # of two hidden tabs one has the stream; the other polls
    other.goto(quick.url)
    for tab in (page, other):
        wait_status(card_of(tab, "slow to the end"), "in_progress")
    for tab in (page, other):
        look_away(tab)
    assert page.title().endswith("% · wan-tpu")
    for tab in (page, other):
        wait_for(lambda tab=tab: tab.title() == "Done · wan-tpu")
    assert page.evaluate("notified.map(([title, body]) => [title, body])") == [
        ["Your video is done", "slow to the end"]
    ]
    page.evaluate("notified[0][2].dispatchEvent(new Event('click'))")
    wait_for(lambda: page.is_visible("#viewer"))
    look_away(page, away=False)
    assert page.title() == "wan-tpu"
    page.keyboard.press("Escape")

    page.click("#notify")
    page.reload()
    assert page.get_attribute("#notify", "aria-pressed") == "false"
    failing = submit(page, "slow boom")
    look_away(page)
    wait_for(lambda: page.title() == "Failed · wan-tpu")
    wait_status(failing, "failed")
    assert page.evaluate("notified") == []
    page.fill("#prompt", "a second one")
    page.click("#submit")
    wait_for(lambda: page.title() == "Done · Failed · wan-tpu")


def test_who_is_not_allowed_to_notify_says_so(open_page, quick):
    page = open_page(quick)
    page.click("#notify")
    page.locator(".toast").wait_for()
    assert "does not let this page notify you" in page.inner_text(".toast")
    assert page.get_attribute("#notify", "aria-pressed") == "false"
