"""What a person does on the page and sees there, as functions."""

import numpy as np

from tests.server.running import wait_for


def submit(page, prompt, **fields):
    """Fills the form and presses Generate; the card, or line in the queue, of the new video.

    Found by its id: an older video may have the same prompt, and its card may come first.
    """
    page.locator("#submit:enabled").wait_for()
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        if not page.is_visible(f"#{name}"):
            page.click("#advanced summary")
        page.fill(f"#{name}", str(value))
    with page.expect_response(_is_a_new_video) as answer:
        page.click("#submit")
    made = answer.value.json()["id"]
    card = page.locator(f'.row[data-id="{made}"], .card[data-id="{made}"]').first
    card.wait_for()
    return card


def _is_a_new_video(response):
    return response.request.method == "POST" and "/v1/videos" in response.url and response.ok


def card_of(page, prompt):
    """The newest card with this prompt, or its line in the queue while it waits."""
    card = page.locator(".row, .card", has=page.get_by_text(prompt, exact=True)).first
    card.wait_for()
    return card


def notice(page, owner):
    """What the page says, and goes on saying, in the name of `owner`."""
    return page.locator(f'.notice[data-owner="{owner}"]')


def wait_status(card, status):
    wait_for(lambda: card.get_attribute("data-status") == status)


def look_away(page, *, away=True):
    """Hides the tab, or shows it again, as far as its page can tell: a headless one never is."""
    page.evaluate(
        """away => {
          Object.defineProperty(document, "hidden", { configurable: true, get: () => away });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        away,
    )


def frame_at(video, seconds):
    """The picture of a <video> at a time: `[height, width, 3]`, uint8."""
    shape_and_pixels = video.evaluate(
        """async (video, seconds) => {
          video.pause();
          if (video.currentTime !== seconds) {
            const seeked = new Promise((done) => { video.onseeked = done; });
            video.currentTime = seconds;
            await seeked;
          }
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
          const context = canvas.getContext("2d");
          context.drawImage(video, 0, 0);
          const image = context.getImageData(0, 0, canvas.width, canvas.height);
          return [canvas.height, canvas.width, [...image.data]];
        }""",
        seconds,
    )
    height, width, pixels = shape_and_pixels
    return np.array(pixels, np.uint8).reshape(height, width, 4)[..., :3]


def red_centre(frame):
    """Mean column of what is red."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    mask = (red > 120) & (green < 90) & (blue < 90)
    assert mask.sum() > 50, "nothing red in the picture"
    return float(np.nonzero(mask)[1].mean())


def focused(page):
    """Id of the element that the keyboard is on."""
    return page.evaluate("document.activeElement.id")
