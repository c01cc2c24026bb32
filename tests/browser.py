"""A browser for tests: Debian's chromium, driven by Playwright, that blocks and records requests to other hosts.

`chromium` is a fixture of conftest.py; tests that need it skip, with the reason, where there is no browser.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
HELP = "needs a browser: apt-get install chromium, or set EPSBALL_CHROMIUM to one"


@dataclass
class Visit:
    """A page, the addresses it requested, those that were blocked, and its errors and warnings."""

    page: Page
    requests: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser, one for a test process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'epsball[dev]'")
    path = os.environ.get("EPSBALL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(HELP)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visiting(
    browser: Browser,
    own: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    **more: Any,
) -> Iterator[Visit]:
    """An empty page in a window of its own that may load what begins with `own`; all else is blocked and recorded.

    `more` are further options of Playwright's `new_context`, such as reduced_motion="reduce".
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, service_workers="block", **more
    )
    context.set_default_timeout(20_000)
    seen = Visit(context.new_page())

    def let(route: Any) -> None:
        address = route.request.url
        seen.requests.append(address)
        if address.startswith(own):
            route.continue_()
        else:
            seen.refused.append(address)
            route.abort()

    context.route("**/*", let)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on(
        "console",
        lambda message: seen.complaints.append(message.text) if message.type in ("error", "warning") else None,
    )
    try:
        yield seen
    finally:
        context.close()


def faint(page: Page) -> list[str]:
    """Texts whose contrast is below WCAG 2.2 AA (1.4.3): 4.5, or 3 where they are large."""
    return page.evaluate(FAINT)


def nameless(page: Page) -> list[str]:
    """Controls and images without an accessible name (WCAG 2.2, 1.1.1 and 4.1.2), and ids that are there twice."""
    return page.evaluate(NAMELESS)


def overflows(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


FAINT = """() => {
  const brush = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true}), known = {};
  const parsed = text => {  // any colour that CSS knows, as red, green, blue (0 to 255) and opacity
    if (!known[text]) {
      brush.clearRect(0, 0, 1, 1);
      brush.fillStyle = text;
      brush.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
      known[text] = [r, g, b, a / 255];
    }
    return [...known[text]];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parsed(getComputedStyle(at).backgroundColor));
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark")
      && matchMedia("(prefers-color-scheme: dark)").matches;
    return layers.reverse().reduce((under, top) => over(top, under), dark ? [18, 18, 18, 1] : [255, 255, 255, 1]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!own || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName) || !box.width || !box.height
        || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (box.width <= 1 && box.height <= 1) continue;
    const svg = element instanceof SVGElement, back = behind(element);
    const text = parsed(svg ? style.fill : style.color);
    if (svg) text[3] *= Number(style.fillOpacity);
    const [one, two] = [light(over(text, back)), light(back)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (one + .05) / (two + .05);
    if (contrast < (large ? 3 : 4.5)) {
      const text = element.textContent.trim().slice(0, 40);
      found.push(`${contrast.toFixed(2)} <${element.tagName.toLowerCase()}> ${text}`);
    }
  }
  return found;
}"""

NAMELESS = """() => {
  const found = [];
  const named = element => (element.getAttribute("aria-label") || "").trim()
    || (element.getAttribute("aria-labelledby") || "").split(" ")
      .some(id => document.getElementById(id)?.textContent.trim())
    || [...(element.labels || [])].some(label => label.textContent.trim());
  for (const element of document.querySelectorAll("input:not([type=hidden]), select, textarea, output[id]")) {
    if (!named(element)) found.push(`<${element.tagName.toLowerCase()} id="${element.id}"> has no label`);
  }
  for (const element of document.querySelectorAll("button, a[href], summary")) {
    if (!named(element) && !element.textContent.trim()) found.push(`<${element.tagName.toLowerCase()}> has no text`);
  }
  for (const element of document.querySelectorAll("img")) {
    if (!element.hasAttribute("alt")) found.push("<img> has no alt text");
  }
  for (const element of document.querySelectorAll("canvas, [role=img]")) {
    if (!named(element) && !element.closest("[aria-hidden=true]")) {
      found.push(`<${element.tagName.toLowerCase()}> has no name`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
  for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) found.push(`id ${id} is there twice`);
  return found;
}"""
