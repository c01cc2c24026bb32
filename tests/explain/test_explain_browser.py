"""The page that `epsball explain` writes, in a browser: it makes no request, and can be read by everyone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import faint, nameless, overflows, visiting

import epsball as eb
from epsball.cli.explain import write_overview
from epsball.data.load import load_data
from epsball.explain.hypotheses import HYPOTHESES
from epsball.explain.inputs import halves
from epsball.explain.runner import Answer, Case, answers
from epsball.models.registry import build
from epsball.report import plots

if TYPE_CHECKING:
    from playwright.sync_api import Browser

QUICK = ("linearity", "conditioning", "rubbish", "l1")
MISSING = "growth"
EVIL = "<img src=x onerror=\"document.title='owned'\">"


@dataclass(frozen=True)
class Stub:
    """A finding of one sentence."""

    sentence: str

    def summary(self) -> dict[str, Any]:
        return {"sentence": self.sentence}

    def to_json(self) -> str:
        return "{}"


def draw_stub(path: Path) -> None:
    figure = plots.page(12.6, 4.4, title="A figure", note="small print")
    plots.panel(figure.subplots(), title="A panel", x="eps", y="share")
    plots.save(figure, path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick analyses as they are, one that was not measured, and stubs of the others."""
    train, data = halves(load_data("digits", first=300))
    model = build("small-mlp", data.shape, data.classes, seed=0)
    case = Case(model=model, data=data, train=train, ball=eb.Linf(eps=0.1, lo=0, hi=1))
    found = {name: Answer(name, Stub(f"Said of {name}: 19.2 %."), "", 0.0) for name in HYPOTHESES}
    found[MISSING] = Answer(MISSING, None, f"no images {EVIL}", 0.0)
    out = tmp_path_factory.mktemp("explain")
    for name in set(found) - {*QUICK, MISSING}:
        draw_stub(out / f"{name}.png")
    found |= {one.name: one for one in answers(case, QUICK, out=out)}
    write_overview(list(found.values()), [("model", EVIL), ("ball", "linf:0.1")], out)
    return out / "index.html"


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 360), ("light", 1280), ("dark", 1280)])
def test_every_hypothesis_and_its_answer_can_be_read(chromium: Browser, page: Path, scheme, width: int):
    with visiting(chromium, page.as_uri(), width=width, scheme=scheme) as seen:
        seen.page.goto(page.as_uri())
        for name, hypothesis in HYPOTHESES.items():
            section = seen.page.locator(f"#{name}")
            assert section.get_by_role("heading").inner_text() == hypothesis.title
            assert section.get_by_text(hypothesis.claim, exact=True).is_visible()
            if name == MISSING:
                assert f"Not measured: no images {EVIL}" in section.inner_text()
                continue
            sentence = section.locator(".result")
            assert sentence.is_visible()
            assert re.search(r"\d", sentence.inner_text())
            picture = section.get_by_role("img")
            assert picture.is_visible()
            assert picture.get_attribute("alt") == f"{hypothesis.title}: {sentence.inner_text()}"
            assert picture.evaluate("image => image.naturalWidth") > 1000
        assert faint(seen.page) == []
        assert nameless(seen.page) == []
        assert overflows(seen.page) <= 0
        assert seen.requests == [page.as_uri()]
        assert seen.complaints == []
        assert seen.page.title() == "Why there are adversarial examples"


def test_figures_are_reached_by_keyboard_and_links(chromium: Browser, page: Path):
    with visiting(chromium, page.as_uri(), width=360, reduced_motion="reduce") as seen:
        seen.page.goto(page.as_uri())
        links = seen.page.locator("nav a")
        assert links.count() == len(HYPOTHESES)
        links.last.press("Enter")
        assert seen.page.evaluate("location.hash") == f"#{list(HYPOTHESES)[-1]}"
        figure = seen.page.locator("#training figure")
        assert figure.evaluate("box => box.scrollWidth > box.clientWidth")  # wider than the window, in a box of its own
        figure.focus()
        seen.page.keyboard.press("ArrowRight")
        moved = """box => new Promise(done => {
          const look = () => box.scrollLeft > 0 ? done(true) : requestAnimationFrame(look);
          look();
        })"""
        assert figure.evaluate(moved)
        assert seen.complaints == []
