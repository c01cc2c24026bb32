"""The page in a browser: what it shows is what the library computes, no foreign request, accessibility."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from browser import Visit, faint, nameless, overflows, visiting
from nets import linear
from PIL import Image
from serving import exhibit, judged, pictures, serving, trained

from epsball import FGSM, PGD, Linf
from epsball.evaluation.point_storage import levels
from epsball.serve.images import png

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROW = 4


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(exhibit(*trained(), data=judged())) as at:
        yield at


def answered(page: Page, **asked: Any) -> None:
    """Wait until the page shows the answer to a request with these values."""
    page.wait_for_function(
        """wanted => {
          const shown = document.body.dataset.answered && JSON.parse(document.body.dataset.answered);
          return shown && Object.entries(wanted).every(([name, value]) => (shown[name] ?? null) === value);
        }""",
        arg=asked,
    )


def opened(seen: Visit, address: str, **state: Any) -> Page:
    seen.page.goto(address + "#" + "&".join(f"{name}={value}" for name, value in state.items()))
    answered(seen.page)
    seen.page.wait_for_selector("#thumbnails img", state="attached")
    for closed in seen.page.query_selector_all("details:not([open]) > summary"):
        closed.click()
    return seen.page


def quiet(seen: Visit, address: str) -> None:
    """No request went to another machine, and the browser logged no error."""
    assert seen.refused == []
    assert seen.complaints == []
    assert all(request.startswith(address) for request in seen.requests)


def read(page: Page, model: int, column: int) -> list[float]:
    """The probabilities on the page, before (1) or after (2)."""
    cells = page.locator(f"article[data-model='{model}'] tbody tr td:nth-of-type({column}) span").all_inner_texts()
    return [float(text.removesuffix(" %")) / 100 for text in cells]


def test_the_numbers_on_the_page_are_the_librarys(chromium: Browser, address: str):
    data, models = judged(), trained()
    x, y, ids = data.x[ROW : ROW + 1], data.y[ROW : ROW + 1], data.ids[ROW : ROW + 1]
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW)
        for name, attack in (("fgsm", FGSM()), ("pgd:steps=20", PGD(steps=20))):
            page.select_option("#attack", name)
            for eps in (0.0, 0.1, 0.25):
                page.fill("#eps-number", str(eps))
                answered(page, eps=eps, attack=name, row=ROW)
                for number, model in enumerate(models):
                    x_adv = attack(model, x, y, Linf(eps=eps, lo=0, hi=1), ids=ids)
                    with torch.no_grad():
                        before, after = (model(z).softmax(1)[0].tolist() for z in (x, x_adv))
                    assert read(page, number, 1) == pytest.approx(before, abs=1e-4)
                    assert read(page, number, 2) == pytest.approx(after, abs=1e-4)
                    fooled = int(np.argmax(after)) != int(y)
                    article = page.locator(f"article[data-model='{number}']")
                    assert article.get_attribute("data-fooled") == str(fooled).lower()
                    assert article.locator(".sentence").inner_text().startswith("Fooled" if fooled else "Still correct")
        quiet(seen, address)


def test_the_slider_follows_a_mouse_and_a_keyboard_and_the_page_ends_at_the_last_radius(
    chromium: Browser, address: str
):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW, eps=0.1)
        box = page.locator("#eps").bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 5, middle)
        page.mouse.down()
        for share in range(1, 30):
            page.mouse.move(box["x"] + box["width"] * share / 40, middle)
        page.mouse.up()
        dragged = float(page.input_value("#eps-number"))
        assert 0.1 < dragged < 0.3
        answered(page, eps=dragged)
        for key, grows in (("ArrowRight", True), ("PageUp", True), ("ArrowLeft", False), ("End", True)):
            before = float(page.input_value("#eps-number"))
            page.press("#eps", key)
            after = float(page.input_value("#eps-number"))
            assert (after > before) is grows
            answered(page, eps=after)
        assert after == 0.5  # half of the box
        page.press("#eps", "Home")
        answered(page, eps=0)
        quiet(seen, address)


def test_a_burst_of_moves_makes_two_requests_at_most(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW)
        before = len([request for request in seen.requests if request.endswith("/api/attack")])
        page.evaluate("""() => {
          const slider = document.getElementById("eps");
          for (let step = 1; step <= 50; step++) {
            slider.value = 4 * step;
            slider.dispatchEvent(new Event("input", {bubbles: true}));
          }
        }""")
        answered(page, eps=float(page.input_value("#eps-number")))
        asked = [request for request in seen.requests if request.endswith("/api/attack")][before:]
        assert len(asked) <= 2


DRAG = """async count => {
  const slider = document.getElementById("eps");
  performance.clearMeasures("drag");
  for (let move = 0; move < count; move++) {
    const shown = new Promise(resolve => {
      const watch = new MutationObserver(() => { watch.disconnect(); resolve(); });
      watch.observe(document.body, {attributes: true, attributeFilter: ["data-answered"]});
    });
    slider.value = 100 + (10 * move) % 250;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
    await shown;
    await new Promise(requestAnimationFrame);
  }
  return performance.getEntriesByName("drag").map(entry => entry.duration);
}"""


def test_a_drag_makes_one_request_and_one_picture_a_move(chromium: Browser, address: str):
    # Times depend on the machine: they are printed (pytest -s), with the processor time of the server and of every
    # process of the browser; what is held is that a move does nothing twice and loads nothing else.
    processes = chromium.new_browser_cdp_session()

    def used() -> float:
        found = processes.send("SystemInfo.getProcessInfo")["processInfo"]
        return time.process_time() + sum(process["cpuTime"] for process in found)

    moves = 40
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW)
        page.evaluate(DRAG, moves // 2)  # warm up
        before, start = len(seen.requests), used()
        took = page.evaluate(DRAG, moves)
        cost = 1000 * (used() - start) / moves
        asked = [request.removeprefix(address) for request in seen.requests[before:] if request.startswith(address)]
        assert len(took) == moves
        assert asked == ["api/attack"] * moves
    print(f"a drag: {cost:.0f} ms of processor time, {float(np.median(took)):.0f} ms from the hand to the picture")


def test_an_attack_is_stepped_through_with_the_arrow_keys(chromium: Browser, address: str):
    data, model = judged(), trained()[0]
    x, y, ids = data.x[ROW : ROW + 1], data.y[ROW : ROW + 1], data.ids[ROW : ROW + 1]
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW, eps=0.02, attack="pgd:steps=20")
        assert page.locator("#iterates").is_hidden()
        page.check("#stepping")
        answered(page, iterate=0)
        for step in (1, 2, 3):
            page.press("#iterate", "ArrowRight")
            answered(page, iterate=step)
            assert page.inner_text("#iterate-shown") == f"{step} of 20"
            x_adv = PGD(steps=step)(model, x, y, Linf(eps=0.02, lo=0, hi=1), ids=ids)
            with torch.no_grad():
                assert read(page, 0, 2) == pytest.approx(model(x_adv).softmax(1)[0].tolist(), abs=1e-4)
        assert page.locator("article[data-model='0'] .way svg").is_visible()
        page.select_option("#attack", "fgsm")
        answered(page, attack="fgsm", iterate=None)
        assert page.locator("#stepping").is_hidden()
        quiet(seen, address)


def test_a_link_shows_what_was_shown(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address)
        page.select_option("#norm", "l2")
        page.select_option("#attack", "deepfool")
        page.select_option("#target", "7")
        page.select_option("#made_on", "1")
        page.fill("#eps-number", "1.5")
        page.fill("#seed", "3")
        page.locator("#thumbnails input").nth(9).check(force=True)
        wanted = {"norm": "l2", "attack": "deepfool", "target": 7, "made_on": 1, "eps": 1.5, "seed": 3, "row": 9}
        answered(page, **wanted)
        page.wait_for_function("() => location.hash.includes('row=9')")
        shown = [read(page, number, 2) for number in (0, 1)]
        link = page.url
        page.goto("about:blank")
        page.goto(link)
        answered(page, **wanted)
        assert [read(page, number, 2) for number in (0, 1)] == shown
        page.evaluate("location.hash = '#row=2&norm=nonsense&attack=nonsense&eps=-3&target=99&row=1e9'")
        answered(page, row=2, norm="linf", attack="fgsm", eps=0.1, target=None)
        quiet(seen, address)


def test_images_are_chosen_with_the_arrow_keys(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=0)
        page.focus("#thumbnails input")
        page.keyboard.press("ArrowRight")
        answered(page, row=1)
        page.select_option("#filter", "3")
        page.wait_for_function("() => document.querySelectorAll('#thumbnails [aria-label$=\"labelled 3\"]').length > 5")
        assert page.locator("#thumbnails input:not([aria-label$='labelled 3'])").count() == 0
        page.select_option("#filter", "")
        page.click("#later")
        page.wait_for_selector("#thumbnails input[value='24']", state="attached")
        assert page.inner_text("#shown").startswith("25 to 48 of")


def test_clicks_faster_than_answers_leave_the_page_at_the_last_examples(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=0)
        count = len(judged())
        page.evaluate("() => { for (let click = 0; click < 50; click++) document.getElementById('later').click(); }")
        first = 1 + 24 * ((count - 1) // 24)
        page.wait_for_function(
            f"() => document.getElementById('shown').textContent.startsWith('{first} to {count} of')"
        )
        assert page.locator("#thumbnails input").count() == count - first + 1
        assert page.locator("#later").is_disabled()
        quiet(seen, address)


def test_a_target_is_named_and_marked_before_it_is_reached(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW, eps=0.01, target=3)
        article = page.locator("article[data-model='1']")
        assert article.locator(".sentence").inner_text().startswith("Not at its goal, 3: ")
        assert article.locator("tr.wrong").get_attribute("data-class") == "3"
        assert "╍ 3, its goal" in article.locator(".line .legend").inner_text()


def test_waiting_for_a_slow_answer_is_shown(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW)
        assert page.get_attribute("#models", "aria-busy") is None
        page.evaluate("""() => {
          const real = window.fetch;
          window.fetch = async (...asked) => { await new Promise(go => { window.go = go; }); return real(...asked); };
        }""")
        page.fill("#eps-number", "0.2")
        page.wait_for_selector("#models[aria-busy='true']")
        page.evaluate("window.go()")
        answered(page, eps=0.2)
        assert page.get_attribute("#models", "aria-busy") is None


def test_an_upload_is_shown_and_attacked_and_a_bad_one_gets_a_message(chromium: Browser, address: str, tmp_path: Path):
    data = judged()
    pixels = np.kron((data.x[ROW, 0] * 255).round().byte().numpy(), np.ones((4, 4), np.uint8))
    (tmp_path / "digit.png").write_bytes(png(pixels))
    (tmp_path / "no.png").write_bytes(b"<html>no image</html>")
    (tmp_path / "large.png").write_bytes(bytes((4 << 20) + 1))
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=0)
        page.set_input_files("#upload", tmp_path / "digit.png")
        answered(page, row=None)
        assert "resized from 32x32 to 8x8" in page.inner_text("#uploaded")
        assert page.inner_text("#image-now") == "uploaded"
        predicted = int(np.argmax(read(page, 0, 1)))
        assert predicted == int(data.y[ROW])
        page.fill("#eps-number", "0.3")
        answered(page, row=None, eps=0.3)
        for name, message in (("no.png", "PNG or JPEG"), ("large.png", "at most 4 MB")):
            page.set_input_files("#upload", tmp_path / name)
            page.wait_for_function("text => document.getElementById('error').textContent.includes(text)", arg=message)
            assert page.locator("#error").is_visible()
            assert page.get_attribute("#error", "role") == "alert"
        assert faint(page) == []
        page.locator("#thumbnails input").nth(2).check(force=True)
        answered(page, row=2)
        assert page.locator("#error").is_hidden()
        assert seen.refused == []
        assert all("400" in complaint for complaint in seen.complaints)  # chromium logs the refused upload itself


def test_the_downloaded_png_is_the_one_whose_prediction_is_shown(chromium: Browser, address: str, tmp_path: Path):
    data, model = judged(), trained()[1]
    with visiting(chromium, address, accept_downloads=True) as seen:
        page = opened(seen, address, row=ROW, eps=0.3)
        article = page.locator("article[data-model='1']")
        with page.expect_download() as download:
            article.locator("button").dblclick()
        download.value.save_as(tmp_path / "adversarial.png")
        page.wait_for_function("() => document.querySelectorAll('.kept')[1].textContent")
        note = article.locator(".kept").inner_text()
        z = torch.from_numpy(levels(0, 1, "float32")[np.asarray(Image.open(tmp_path / "adversarial.png"))])[None, None]
        x_adv = FGSM()(model, data.x[ROW : ROW + 1], data.y[ROW : ROW + 1], Linf(eps=0.3, lo=0, hi=1))
        assert (z - x_adv).abs().max() <= 1.0001 / 255
        with torch.no_grad():
            share = model(z).softmax(1)[0]
        fooled = int(share.argmax()) != int(data.y[ROW])
        assert note.startswith(f"The file {'still fools' if fooled else 'does not fool'}: {int(share.argmax())}, ")
        shown = re.search(r"([\d.]+) %", note)
        assert shown is not None
        assert float(shown[1]) / 100 == pytest.approx(float(share.max()), abs=1e-4)
        assert sum(request.endswith("/api/file") for request in seen.requests) == 1
        quiet(seen, address)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_readable_narrow_and_wide_light_and_dark(
    chromium: Browser, address: str, width: int, scheme: Literal["light", "dark"]
):
    with visiting(chromium, address, width=width, scheme=scheme, reduced_motion="reduce") as seen:
        page = opened(seen, address, row=ROW, eps=0.3, attack="pgd:steps=20", iterate=5)
        page.evaluate("document.getElementById('error').hidden = false")
        page.evaluate("document.getElementById('error').textContent = 'a message'")
        assert faint(page) == []
        assert nameless(page) == []
        assert overflows(page) == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        moving = """() => [...document.querySelectorAll("*")].filter(element => {
          const style = getComputedStyle(element);
          return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0;
        }).length"""
        assert page.evaluate(moving) == 0
        small = """() => [...document.querySelectorAll("body *")].filter(element =>
          [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
          && element.checkVisibility() && parseFloat(getComputedStyle(element).fontSize) < 12).length"""
        assert page.evaluate(small) == 0
        quiet(seen, address)


def test_every_control_can_be_reached_with_the_tab_key_and_shows_its_focus(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW, attack="pgd:steps=20", iterate=2)
        reached, unseen = set(), []
        page.evaluate("document.body.focus()")
        for _ in range(40):
            page.keyboard.press("Tab")
            at, outline = page.evaluate("""() => {
              const here = document.activeElement;
              const marked = here.type === "radio" ? here.nextElementSibling : here;
              return [here.id || here.name || here.textContent, getComputedStyle(marked).outlineStyle];
            }""")
            reached.add(at)
            unseen += [at] if outline == "none" and at not in ("", None) and "epsball" not in at else []
        wanted = {"eps", "eps-number", "iterate", "norm", "attack", "target", "made_on", "seed", "stepping", "upload"}
        assert wanted <= reached
        assert {"filter", "label", "row", "later"} <= reached
        assert [text for text in reached if text and text.startswith("Download")]
        assert unseen == []


def test_a_screen_reader_hears_the_result_and_finds_the_charts_in_words(chromium: Browser, address: str):
    with visiting(chromium, address) as seen:
        page = opened(seen, address, row=ROW, eps=0.1)
        page.wait_for_function("() => document.getElementById('spoken').textContent.includes('Radius 0.1')")
        spoken = page.inner_text("#spoken")
        assert "model 0: " in spoken
        assert "model 1: " in spoken
        assert page.get_attribute("#spoken", "aria-live") == "polite"
        assert (page.get_attribute("article[data-model='0'] .line svg", "aria-label") or "").startswith("Logits from")
        assert page.get_attribute("#eps", "aria-valuetext") == "0.1 units of the data"
        here = page.locator("article[data-model='0'] .line line.here").get_attribute("data-here")
        assert float(here or "nan") == pytest.approx(0.1, rel=1e-3)


def test_names_with_markup_are_shown_and_never_run(chromium: Browser):
    names = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "plain")
    data = replace(pictures((3, 12, 9), classes=3), label_names=names, name="<b>data</b>")
    shown = exhibit(linear((3, 12, 9), 3).float(), data=data)
    with serving(shown) as address, visiting(chromium, address) as seen:
        dialogs: list[str] = []
        seen.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page = opened(seen, address, row=1)
        rows = page.locator("tbody th").all_inner_texts()
        assert rows == list(names)
        assert "<b>data</b>" in page.inner_text("#subject")
        assert page.locator("#made_on").is_hidden()  # one model
        assert page.evaluate("document.querySelector('.original').naturalWidth") == 9
        assert dialogs == []
        quiet(seen, address)


def test_one_logit_has_two_bars(chromium: Browser):
    shown = exhibit(linear((6, 6), 1, squeeze=True).float(), data=pictures((6, 6), classes=2))
    with serving(shown) as address, visiting(chromium, address) as seen:
        page = opened(seen, address, row=1, eps=0.02)
        assert len(read(page, 0, 2)) == 2
        assert sum(read(page, 0, 2)) == pytest.approx(1, abs=1e-4)
        quiet(seen, address)


def test_of_many_classes_the_page_shows_ten_and_the_label_among_them(chromium: Browser):
    shown = exhibit(linear((1, 8, 8), 100).float(), data=pictures((1, 8, 8), classes=100))
    with serving(shown) as address, visiting(chromium, address) as seen:
        page = opened(seen, address, row=1, eps=0.05)
        numbers = [int(text) for text in page.locator("tbody th").all_inner_texts()]
        assert len(numbers) == 10
        assert int(shown.examples.y[1]) in numbers
        quiet(seen, address)


def test_a_server_that_has_stopped_is_reported(chromium: Browser):
    with serving(exhibit(linear((1, 8, 8), 10).float())) as address:
        context = visiting(chromium, address)
        seen = context.__enter__()
        opened(seen, address, row=1)
    try:
        seen.page.fill("#eps-number", "0.2")
        seen.page.wait_for_function("() => document.getElementById('error').textContent.includes('still running')")
    finally:
        context.__exit__(None, None, None)


def test_another_page_can_neither_read_nor_send_requests(chromium: Browser, address: str):
    # A page of another origin on this machine: the browser's own rules and the server's refusal together.
    with serving(exhibit(linear((1, 8, 8), 10).float())) as other:
        context = chromium.new_context()
        try:
            page = context.new_page()
            page.route("**/blank", lambda route: route.fulfill(body="<p>blank</p>", content_type="text/html"))
            page.goto(other + "blank")
            tried = page.evaluate(
                """async address => {
                  const found = [];
                  for (const mode of ["cors", "no-cors"]) for (const [path, method] of
                      [["api/about", "GET"], ["api/attack", "POST"], ["api/upload", "POST"]]) {
                    try {
                      const body = method === "POST" ? "{}" : undefined;
                      const answer = await fetch(address + path, {mode, method, body});
                      found.push([mode, path, answer.status, (await answer.text()).length]);
                    } catch { found.push([mode, path, null, 0]); }
                  }
                  return found;
                }""",
                address,
            )
        finally:
            context.close()
    assert len(tried) == 6
    assert all(length == 0 for *_, length in tried), json.dumps(tried)
