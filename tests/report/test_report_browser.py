"""The report in a browser: it makes no request, logs no error, and can be read by everyone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browser import Visit, faint, nameless, overflows, visiting
from torch import nn

import epsball as eb
from epsball.data.arrays import from_arrays
from epsball.report.html import write_comparison, write_report
from epsball.report.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

N = 10_000
EVIL = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ten thousand images under a linear model, most of which are broken; one class has a name that is markup."""
    x = torch.rand(N, 1, 12, 12, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(10, 144, generator=torch.Generator().manual_seed(1)) / 12)
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
        y = net(x).argmax(1)
    y[::9] = (y[::9] + 1) % 10
    path = tmp_path_factory.mktemp("browser") / "run"
    ball = eb.Linf(eps=8 / 255, lo=0, hi=1)
    attacks = ("uniform-noise", "fgsm", "pgd:steps=5")
    eb.evaluate(
        net, from_arrays(x, y, lo=0, hi=1, name="drawn"), ball, attacks, eps=[0.01, 8 / 255], run_dir=path, diagnose=16
    )
    config = json.loads((path / "config.json").read_text())
    del config["checksum"]
    config["data"]["class_names"] = [EVIL, "</script>", *(f"class {i}" for i in range(2, 10))]
    (path / "config.json").write_text(json.dumps(config))
    write_report(path)
    return Run.load(path)


@pytest.fixture(scope="module")
def pages(run: Run) -> dict[str, Path]:
    """A report, and a comparison."""
    both = write_comparison([run.path, run.path], run.path / "comparison.html")
    return {"report": run.path / "report.html", "comparison": both}


def opened(seen: Visit, page: Path) -> None:
    seen.page.goto(page.as_uri())
    seen.page.locator(".chart:not(:has(svg))").first.wait_for(state="detached")


def test_a_report_of_ten_thousand_examples_is_one_small_file_that_makes_no_request(
    chromium: Browser, pages: dict[str, Path], run: Run
) -> None:
    write_report(run.path)
    assert pages["report"].stat().st_size < 8e6
    with visiting(chromium, pages["report"].as_uri()) as seen:
        opened(seen, pages["report"])
        seen.page.mouse.wheel(0, 20_000)
        seen.page.locator("#more").click()
        assert seen.requests == [pages["report"].as_uri()]
        assert seen.complaints == []
        broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
        assert seen.page.evaluate(broken) == 0


@pytest.mark.parametrize(
    ("which", "scheme", "width"),
    [
        ("report", "light", 360),
        ("report", "light", 1280),
        ("report", "dark", 360),
        ("report", "dark", 1280),
        ("comparison", "light", 360),
        ("comparison", "dark", 1280),
    ],
)
def test_the_pages_can_be_read_light_and_dark_narrow_and_wide(
    chromium: Browser, pages: dict[str, Path], which: str, scheme, width: int
) -> None:
    with visiting(chromium, pages[which].as_uri(), width=width, scheme=scheme) as seen:
        opened(seen, pages[which])
        seen.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert faint(seen.page) == []
        assert nameless(seen.page) == []
        assert overflows(seen.page) <= 0
        assert seen.complaints == []


def test_the_figures_on_the_page_are_the_evaluations(chromium: Browser, pages: dict[str, Path], run: Run) -> None:
    with visiting(chromium, pages["report"].as_uri()) as seen:
        opened(seen, pages["report"])
        assert f"Robust accuracy {100 * run.found.robust_accuracy:.2f} %" in seen.page.locator(".result").inner_text()
        drawn = seen.page.evaluate("document.getElementById('curve').data.at(-1).y")
        assert drawn == pytest.approx([run.found.clean_accuracy, *(share for _, share in run.found.curve)])
        rows = seen.page.locator("table.stages tbody tr").all_inner_texts()
        assert len(rows) == 7
        for row, text in zip(run.stages, rows[1:], strict=True):
            cells = [cell.strip() for cell in text.split("\t")]
            assert cells[2:5] == [f"{row.stage.attacked:,}", f"{row.stage.fooled:,}", f"{row.robust:,}"]


def test_figures_follow_the_colour_scheme_from_light_to_dark(chromium: Browser, pages: dict[str, Path]) -> None:
    from playwright.sync_api import expect

    ink = "getComputedStyle(document.querySelector('#curve .xtick text')).fill"
    with visiting(chromium, pages["report"].as_uri()) as seen:
        opened(seen, pages["report"])
        light = seen.page.evaluate(ink)
        seen.page.emulate_media(color_scheme="dark")
        text = seen.page.locator("#curve .xtick text").first
        expect(text).not_to_have_css("fill", light)
        assert faint(seen.page) == []


def test_the_gallery_is_filtered_from_the_keyboard(chromium: Browser, pages: dict[str, Path]) -> None:
    with visiting(chromium, pages["report"].as_uri()) as seen:
        opened(seen, pages["report"])
        cards = seen.page.locator(".gallery > li:visible")
        assert cards.count() == 12
        seen.page.locator("#class-filter").focus()
        seen.page.keyboard.press("ArrowDown")
        chosen = seen.page.locator("#class-filter option:checked")
        count = int(re.findall(r"\((\d+)\)$", chosen.inner_text())[0])
        assert cards.count() == count > 0
        assert set(cards.evaluate_all("all => all.map(card => card.dataset.label)")) == {chosen.get_attribute("value")}
        assert seen.page.locator("#shown").inner_text() == f"{count} of 60 shown"
        seen.page.keyboard.press("ArrowUp")
        assert cards.count() == 12
        seen.page.locator("#more").press("Enter")
        assert cards.count() == 60
        assert seen.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("example")


def test_markup_in_a_class_name_is_text_and_the_policy_stops_a_script_that_is_not_its_own(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    with visiting(chromium, pages["report"].as_uri()) as seen:
        opened(seen, pages["report"])
        assert seen.page.title() == "run: robustness report"
        assert seen.page.locator("img[src=x]").count() == 0
        heads = seen.page.locator(".matrix thead th").all_inner_texts()
        assert heads[1:3] == [EVIL, "</script>"]
        seen.page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.owned = true'}))"
        )
        seen.page.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://example.com/x.png'}))")
        assert seen.page.evaluate("window.owned") is None
        assert len(seen.complaints) == 2
        assert all("Content Security Policy" in message for message in seen.complaints)
        assert seen.refused == []  # the policy stopped it before a request


def test_on_paper_everything_is_open_and_light(chromium: Browser, pages: dict[str, Path]) -> None:
    with visiting(chromium, pages["report"].as_uri(), scheme="dark") as seen:
        opened(seen, pages["report"])
        seen.page.evaluate(
            """() => addEventListener("beforeprint", () => {
              window.open_ = document.querySelectorAll("details[open]").length;
              window.ink = getComputedStyle(document.body).color;
              window.drawn = getComputedStyle(document.querySelector("#curve .xtick text")).fill;
            })"""
        )
        paper = seen.page.pdf(format="A4")
        assert paper.startswith(b"%PDF")
        assert seen.page.evaluate("window.open_") >= 3
        assert seen.page.evaluate("window.ink") == seen.page.evaluate("window.drawn") == "rgb(27, 31, 36)"
        assert seen.page.locator("details[open]").count() == 0
        assert seen.complaints == []
