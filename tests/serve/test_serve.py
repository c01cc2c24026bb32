"""The page's server: its numbers are the library's, it keeps no state, and it refuses foreign requests."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import Broken, LabelOnly, RaisesAt, Wrapper, linear, mlp
from PIL import Image
from serving import exhibit, judged, pictures, trained
from starlette.testclient import TestClient
from torch import Tensor, nn

from epsball import BIM, FGSM, PGD, BadInput, Linf
from epsball.attacks.registry import parse
from epsball.balls.registry import BALLS
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.evaluation.point_storage import levels
from epsball.problem.objective import ModelWarning
from epsball.problem.outputs import two_columns
from epsball.serve import app as page
from epsball.serve.guard import HEADERS, MOST_BODY
from epsball.serve.images import MOST_BYTES, MOST_PIXELS, amplified, decode, png
from epsball.serve.menu import ATTACKS
from epsball.serve.server import listen

HERE = "http://127.0.0.1:8000"
EPS = (0.0, 0.1, 0.25)


def client(*models: nn.Module, data: Examples | None = None, **more: Any) -> TestClient:
    return TestClient(page.application(exhibit(*models, data=data)), base_url=HERE, **more)


def net(shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, seed: int = 0) -> nn.Module:
    return mlp(shape, classes, seed=seed).float()


def ask(served: TestClient, path: str = "/api/attack", **question: Any) -> dict[str, Any]:
    answer = served.post(path, json=question)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(served: TestClient, path: str = "/api/attack", **question: Any) -> str:
    answer = served.post(path, json=question)
    assert 400 <= answer.status_code < 500, answer.text
    return answer.json()["error"]


def file_of(picture: str) -> bytes:
    return base64.b64decode(picture.removeprefix("data:image/png;base64,"))


def probabilities(model: nn.Module, x: Tensor) -> list[float]:
    with torch.no_grad():
        return two_columns(model(x)).softmax(1)[0].tolist()


@pytest.fixture(scope="module")
def two() -> tuple[nn.Module, nn.Module]:
    return trained()


@pytest.fixture(scope="module")
def served(two: tuple[nn.Module, nn.Module]) -> TestClient:
    return client(*two, data=judged())


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("norm", list(BALLS))
def test_numbers_are_the_librarys_for_every_attack_in_every_norm(served: TestClient, two, norm: str, attack: str):
    chosen, data = parse(attack), judged()
    if norm not in chosen.norms():
        assert norm not in [*next(a for a in served.get("/api/about").json()["attacks"] if a["id"] == attack)["norms"]]
        assert "`norm` must be one of" in refused(served, norm=norm, attack=attack)
        return
    x, y, ids = data.x[3:4], data.y[3:4], data.ids[3:4]
    for eps in EPS if chosen.needs == "grad" else EPS[1:2]:
        eps *= {"linf": 1, "l2": 8, "l1": 40, "l0": 60}[norm]
        found = ask(served, row=3, norm=norm, eps=eps, attack=attack, seed=5)["models"]
        for model, column in zip(two, found, strict=True):
            ball = BALLS[norm](eps=eps, lo=0, hi=1)
            x_adv = chosen(model, x, y, ball, ids=ids, seed=5)
            assert column["before"]["probabilities"] == pytest.approx(probabilities(model, x), abs=1e-6)
            assert column["after"]["probabilities"] == pytest.approx(probabilities(model, x_adv), abs=1e-6)
            assert column["distance"] == pytest.approx(float(ball.norm(x_adv - x)), abs=1e-6)
            assert column["inside"]
            assert column["after"]["fooled"] == (int(model(x_adv).argmax()) != int(y))
            assert (column["after"]["margin"] > 0) == column["after"]["fooled"]


def test_a_targeted_attack_is_the_librarys_and_reaches_its_target(served: TestClient, two):
    data = judged()
    found = ask(served, row=3, eps=0.4, attack="pgd:steps=20", target=7)["models"]
    for model, column in zip(two, found, strict=True):
        x_adv = PGD(steps=20)(model, data.x[3:4], data.y[3:4], Linf(eps=0.4, lo=0, hi=1), target=7, ids=data.ids[3:4])
        assert column["after"]["probabilities"] == pytest.approx(probabilities(model, x_adv), abs=1e-6)
        assert column["after"]["fooled"] == (column["after"]["prediction"] == 7)
    assert any(column["after"]["fooled"] for column in found)


def test_an_adversarial_image_made_on_one_model_is_given_to_all_models(served: TestClient, two):
    data = judged()
    x_adv = FGSM()(two[1], data.x[3:4], data.y[3:4], Linf(eps=0.2, lo=0, hi=1))
    found = ask(served, row=3, eps=0.2, made_on=1)["models"]
    assert found[0]["adversarial"] == found[1]["adversarial"]
    for model, column in zip(two, found, strict=True):
        assert column["after"]["probabilities"] == pytest.approx(probabilities(model, x_adv), abs=1e-6)


def test_the_line_of_logits_goes_through_the_image_and_the_adversarial_image(served: TestClient):
    for norm, eps, reach in (("linf", 0.25, 0.5), ("l2", 1.0, 2.0)):
        for column in ask(served, row=4, norm=norm, eps=eps, points=41, reach=reach)["models"]:
            line = column["line"]
            assert line["here"] == pytest.approx(eps, rel=1e-4)
            at = [round(value, 6) for value in line["at"]]
            for wanted, outputs in ((0.0, column["before"]), (eps, column["after"])):
                found = [values[at.index(wanted)] for values in line["logits"]]
                assert found == pytest.approx(outputs["logits"], abs=1e-2)
    assert all(column["line"] is None for column in ask(served, row=4, eps=0.0, points=41)["models"])


def test_iterates_are_those_of_shorter_attacks_and_the_last_is_the_result(served: TestClient, two):
    data, ball = judged(), Linf(eps=0.02, lo=0, hi=1)
    found = ask(served, row=3, eps=0.02, attack="bim:steps=6", iterate=0)["models"]
    for number, model in enumerate(two):
        way = found[number]["path"]
        if any(point["margin"] > 0 for point in way):
            continue  # a shorter attack would stop there
        assert len(way) == 7
        for k in range(1, 7):
            x_adv = BIM(steps=k, step_size=0.25)(model, data.x[3:4], data.y[3:4], ball)
            column = ask(served, row=3, eps=0.02, attack="bim:steps=6", iterate=k)["models"][number]
            assert column["after"]["probabilities"] == pytest.approx(probabilities(model, x_adv), abs=1e-6)
            assert way[k]["distance"] == pytest.approx(column["distance"])
            assert way[k]["margin"] == pytest.approx(column["after"]["margin"], abs=1e-5)
        late = ask(served, row=3, eps=0.02, attack="bim:steps=6", iterate=600)["models"][number]
        assert late["after"]["probabilities"] == pytest.approx(probabilities(model, x_adv), abs=1e-6)
        break
    else:
        pytest.fail("both models were fooled, so that there was nothing to compare")


@pytest.mark.parametrize("attack", [text for text in ATTACKS if text not in ("fgsm", "uniform-noise", "sign-noise")])
def test_every_attack_with_steps_can_be_stepped_through(served: TestClient, attack: str):
    norm = parse(attack).norms()[0]
    column = ask(served, row=3, norm=norm, eps=0.5, attack=attack, iterate=3)["models"][0]
    assert len(column["path"]) > 1
    point = column["path"][min(3, len(column["path"]) - 1)]
    assert point["prediction"] == column["after"]["prediction"]
    assert point["distance"] == pytest.approx(column["distance"], abs=1e-6)


def test_the_png_is_rounded_towards_the_image_and_its_own_bytes_are_classified(served: TestClient, two):
    data, table = judged(), levels(0, 1, "float32")
    question = {"row": 3, "norm": "linf", "eps": 0.1, "attack": "fgsm"}
    for of, model in enumerate(two):
        answer = served.post("/api/file", json=question | {"of": of})
        assert answer.headers["content-type"] == "image/png"
        pixels = np.asarray(Image.open(BytesIO(answer.content)))
        z = torch.from_numpy(table[pixels])[None, None]
        x, x_adv = data.x[3:4], FGSM()(model, data.x[3:4], data.y[3:4], Linf(eps=0.1, lo=0, hi=1))
        assert (z - x_adv).abs().max() <= 1.0001 / 255
        found = ask(served, "/api/look", file=base64.b64encode(answer.content).decode(), question=question)
        for evaluator, column in zip(two, found["models"], strict=True):
            assert column["probabilities"] == pytest.approx(probabilities(evaluator, z), abs=1e-6)
            assert column["fooled"] == (column["prediction"] != int(data.y[3]))
        assert found["distance"] == pytest.approx(float((z - x).abs().max()))


def test_a_success_that_rounding_undoes_is_reported_as_undone():
    # One logit, +1 for each pixel above 100.4 levels: 8 bits cannot hold the step that crosses it.
    threshold = 100.4 / 255
    model = linear((1, 1, 1), 1).float()
    with torch.no_grad():
        model[1].weight.fill_(1000.0)
        model[1].bias.fill_(-1000.0 * threshold)
    data = from_arrays(np.full((1, 1, 1, 1), 100, np.uint8), [0], classes=2)
    served = client(model, data=data)
    question = {"row": 0, "eps": 0.5 / 255}
    assert ask(served, **question)["models"][0]["after"]["fooled"]
    file = served.post("/api/file", json=question).content
    found = ask(served, "/api/look", file=base64.b64encode(file).decode(), question=question)
    assert not found["models"][0]["fooled"]
    assert found["distance"] == 0
    assert found["inside"]


def test_an_uploaded_image_comes_back_as_the_models_see_it_and_is_attacked_as_a_row_is(served: TestClient, two):
    data = judged()
    pixels = (data.x[3, 0] * 255).round().byte().numpy()
    taken = served.post("/api/upload", content=png(pixels)).json()
    assert taken["notes"] == []
    x = torch.from_numpy(levels(0, 1, "float32")[pixels])[None, None]
    found = ask(served, png=taken["picture"].split(",")[1], eps=0.1)["models"]
    for model, column in zip(two, found, strict=True):
        predicted = int(model(x).argmax())
        assert column["label"] == predicted  # without a label the attack is against the model's prediction
        x_adv = FGSM()(model, x, predicted, Linf(eps=0.1, lo=0, hi=1))
        assert column["after"]["probabilities"] == pytest.approx(probabilities(model, x_adv), abs=1e-6)
    named = ask(served, png=taken["picture"].split(",")[1], label=7, eps=0.1)["models"]
    assert [column["label"] for column in named] == [7, 7]


def saved(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = BytesIO()
    image.save(out, format=kind, **more)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")


def long_text() -> bytes:
    """A small PNG with a compressed text that unpacks to 64 MB."""
    whole = png(np.zeros((8, 8), np.uint8))
    body = b"Comment\x00\x00" + zlib.compress(bytes(64 << 20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return whole[:33] + chunk + whole[33:]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "PNG or JPEG"),
    "text": (lambda: b"<script>alert(1)</script>", "PNG or JPEG"),
    "a GIF": (lambda: saved(Image.new("L", (8, 8)), "GIF"), "PNG or JPEG"),
    "a TIFF": (lambda: saved(Image.new("L", (8, 8)), "TIFF"), "PNG or JPEG"),
    "half a PNG": (lambda: png(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))[:2000], "PNG or JPEG"),
    "half a JPEG": (lambda: saved(Image.effect_noise((64, 64), 50), "JPEG")[:600], "PNG or JPEG"),
    "a flipped bit": (lambda: png(np.eye(8, dtype=np.uint8))[:-20] + bytes(20), "PNG or JPEG"),
    "too many pixels": (partial(bomb, 50_000, 50_000), "million pixels"),
    "just too many pixels": (partial(bomb, MOST_PIXELS // 4000 + 1, 4000), "million pixels"),
    "no pixels": (partial(bomb, 0, 8), "PNG or JPEG"),
    "an endless text": (long_text, "PNG or JPEG"),
    "too many bytes": (lambda: png(np.zeros((8, 8), np.uint8)) + bytes(MOST_BYTES), "at most 4 MB"),
    "16 bits": (lambda: saved(Image.fromarray(np.full((8, 8), 40_000, np.uint16))), "8 bits"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_a_bad_upload_is_refused_with_a_plain_message(served: TestClient, kind: str):
    make, message = BAD[kind]
    answer = served.post("/api/upload", content=make())
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert message in refused(served, png=base64.b64encode(make()).decode())  # also as a part of a request


def test_uploads_are_converted_to_the_models_shape_and_the_conversions_are_reported():
    grey, colour = (8, 8), (3, 8, 8)
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert decode(saved(red), grey).notes == ("made grey",)
    assert (decode(saved(red), grey).pixels == 76).all()  # ITU-R 601: .299 of red
    assert decode(saved(red), colour).notes == ()
    assert decode(saved(red), colour).pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert decode(saved(Image.new("L", (8, 8), 9)), colour).pixels.tolist() == np.full(colour, 9).tolist()
    wide = decode(saved(Image.new("L", (64, 16), 200)), (1, 8, 8))
    assert wide.pixels.shape == (1, 8, 8)
    assert wide.notes == ("cut to the middle", "resized from 64x16 to 8x8")
    assert (wide.pixels == 200).all()
    clear = decode(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), grey)
    assert (clear.pixels == 255).all()
    assert "laid on white where it is transparent" in clear.notes
    assert (decode(saved(Image.new("P", (8, 8), 1)), colour).pixels == decode(
        saved(Image.new("P", (8, 8), 1).convert("RGB")), colour
    ).pixels).all()  # fmt: skip
    assert (decode(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG"), grey).pixels < 8).all()
    assert decode(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), colour).notes == ("made RGB from CMYK",)
    assert decode(saved(Image.new("L", (8, 8))), colour).notes == ("its grey values used as red, green and blue",)
    lines = Image.fromarray(np.arange(64 * 64).reshape(64, 64) % 2 == 0)  # of one bit: resized it is grey
    assert decode(saved(lines), grey).pixels[2:6, 2:6].tolist() == pytest.approx(np.full((4, 4), 127), abs=2)
    assert (decode(saved(Image.new("1", (8, 8), 1)), grey).pixels == 255).all()
    assert decode(saved(Image.new("1", (8, 8), 1)), grey).notes == ()


def test_a_photograph_is_turned_upright():
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = decode(saved(image, "JPEG", exif=exif.tobytes(), quality=95), (8, 8)).pixels
    assert pixels[:3].max() < 60
    assert pixels[5:].min() > 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "",
        "0.0.0.0:8000",
        "[::1].evil.example",
        "localhost:x@evil.example",
        "localhost\n",
        "[::1",
        ":8000",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/about", "/static/page.js"])
def test_another_name_of_this_machine_is_refused_so_that_no_name_can_be_rebound(
    served: TestClient, host: str, path: str
):
    answer = served.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "this page is for its own machine" in answer.json()["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:9", "127.0.0.1:9000"])
def test_this_machines_own_names_are_accepted(served: TestClient, host: str):
    assert served.get("/api/about", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "https://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": HERE},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/attack", "/api/upload", "/api/file", "/api/look"])
def test_requests_of_another_page_are_refused(served: TestClient, path: str, headers: dict[str, str]):
    answer = served.post(path, json={"row": 0}, headers=headers)
    assert answer.status_code == 403
    assert "only its own page may ask" in answer.json()["error"]


def test_requests_of_its_own_page_and_of_programs_are_answered(served: TestClient):
    own = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert served.post("/api/attack", json={"row": 0}, headers=own).status_code == 200
    assert served.post("/api/attack", json={"row": 0}).status_code == 200
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    allowed = served.options("/api/attack", headers=asked)
    assert allowed.status_code == 403
    assert not [name for name in allowed.headers if name.startswith("access-control")]


def test_a_body_without_end_is_refused(served: TestClient):
    assert served.post("/api/upload", content=bytes(MOST_BODY + 1)).status_code == 413

    def endless() -> Any:
        for _ in range(MOST_BODY // 65536 + 2):
            yield bytes(65536)

    answer = served.post("/api/upload", content=endless())  # without a content length
    assert answer.status_code == 413
    assert "at most" in answer.json()["error"]


def test_the_body_of_an_answer_does_not_wait_for_its_head_to_be_acknowledged():
    # Without TCP_NODELAY each drag takes 40 ms more: the browser's delayed acknowledgement.
    async def is_set() -> int:
        place, loop = listen(0), asyncio.get_running_loop()
        found: asyncio.Future[int] = loop.create_future()

        class Asked(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                own = transport.get_extra_info("socket")
                found.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        async with await loop.create_server(Asked, sock=place):
            _, writer = await asyncio.open_connection(*place.getsockname())
            writer.close()
            await writer.wait_closed()
            return await found

    with ThreadPoolExecutor(1) as elsewhere:  # the browser's tests leave a loop running in this thread
        assert elsewhere.submit(lambda: asyncio.run(is_set())).result()


def test_every_answer_has_the_policy(served: TestClient):
    answers = [served.get(path) for path in ("/", "/static/page.js", "/api/about", "/api/nowhere", "/static/../app.py")]
    answers += [served.post("/api/attack", json={"eps": -1.0}), served.get("/", headers={"host": "evil.example"})]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 400, 421]


def test_no_address_but_its_own_is_in_what_is_served():
    files = [*page.STATIC.iterdir()]
    assert {file.suffix for file in files} == {".html", ".css", ".js"}
    for file in files:
        text = file.read_text()
        assert set(re.findall(r"[a-z]+://[^\"'`\s]*", text)) <= {"http://www.w3.org/2000/svg"}, file
        for risk in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", " style=", "onclick="):
            assert risk not in text, f"{risk} in {file}"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"eps": -0.1}, "`eps` must be >= 0, got -0.1"),
    ({"norm": "l3"}, "`norm` must be one of linf, l2, l1, l0, got 'l3'"),
    ({"attack": "pdg"}, "did you mean 'pgd'?"),
    ({"attack": "pgd:steps=0"}, "`steps` must be a whole number >= 1, got 0"),
    ({"attack": "pgd:steps=999999"}, "at most 20,000 steps"),
    ({"attack": "pgd:steps=2000,restarts=100"}, "at most 20,000 steps on this page, got 200,000"),
    ({"attack": "hopskipjump"}, "one that looks at logits"),
    ({"row": 360}, "`row` must be an example's, 0 to "),
    ({"row": -1}, "`row` must be an example's"),
    ({"label": 10}, "`label` must be a class, 0 to 9, got 10"),
    ({"target": -1}, "`target` must be a class"),
    ({"made_on": 2}, "`made_on` must be a model's number, 0 to 1, got 2"),
    ({"iterate": -1}, "`iterate` must be >= 0"),
    ({"points": 5000}, "`points` must be 0 to 201"),
    ({"points": 5, "reach": 0.0}, "`reach` must be > 0"),
    ({"png": "not base64!"}, "`png` must be a PNG file in base64"),
    ({"png": "bm90IGEgcG5n"}, "PNG or JPEG"),
]


@pytest.mark.parametrize(("question", "message"), WRONG, ids=[str(question) for question, _ in WRONG])
def test_a_wrong_request_is_answered_with_the_rule_the_value_and_the_remedy(
    served: TestClient, question: dict[str, Any], message: str
):
    assert message in refused(served, **question)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"eps": "much"}', b'{"colour": 1}', b'{"row": 1.5}'])
def test_a_malformed_request_is_refused_with_a_message(served: TestClient, body: bytes):
    answer = served.post("/api/attack", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]
    assert "see /api/openapi.json" in answer.json()["error"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_radii_that_are_no_numbers_are_refused(served: TestClient, number: str):
    answer = served.post("/api/attack", content=f'{{"eps": {number}}}', headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "eps" in answer.json()["error"] or "JSON" in answer.json()["error"]


def test_answers_do_not_depend_on_earlier_or_concurrent_requests(served: TestClient, two):
    questions = [{"row": row, "eps": 0.1, "attack": "pgd:steps=5", "seed": row} for row in range(8)]
    alone = [ask(served, **question) for question in questions]
    apps = [client(*two, data=judged()) for _ in questions]  # pydantic cannot make several at once
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda app, question: ask(app, **question), apps, questions))
    for after, before in zip(found, alone, strict=True):
        assert after["models"] == before["models"]


def test_the_models_are_unchanged_also_when_they_fail():
    model = mlp((1, 8, 8), 10, noisy=True).float().train()
    model[0].eval()
    weight = next(model.parameters())
    weight.requires_grad_(False)
    weight.grad = torch.ones_like(weight)

    def flags() -> list[object]:
        return [m.training for m in model.modules()] + [(p.requires_grad, p.grad) for p in model.parameters()]

    before = flags()
    failing = RaisesAt(model, 6)
    served = client(failing, raise_server_exceptions=False)
    answers = [served.post("/api/attack", json={"row": 0, "attack": "pgd:steps=20"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    assert answers[0].json() == {"error": "the model failed: RuntimeError: out of memory, says the test"}
    assert flags() == before
    assert failing.training


def test_one_logit_colour_images_and_classes_without_names_are_served():
    data = pictures((3, 9, 7), classes=2)
    model = linear((3, 9, 7), 1, squeeze=True).float()
    served = client(model, data=data)
    about = served.get("/api/about").json()
    assert about["classes"] == ["0", "1"]
    assert about["data"]["shape"] == [3, 9, 7]
    (column,) = ask(served, row=2, eps=0.1, points=11)["models"]
    x_adv = FGSM()(model, data.x[2:3], data.y[2:3], Linf(eps=0.1, lo=0, hi=1))
    assert column["after"]["probabilities"] == pytest.approx(probabilities(model, x_adv), abs=1e-6)
    image = Image.open(BytesIO(file_of(column["adversarial"])))
    assert (image.size, image.mode) == ((7, 9), "RGB")
    assert len(column["line"]["logits"]) == 2


def test_class_names_are_shown_where_the_data_have_them_and_numbers_where_not():
    data = replace(pictures((1, 8, 8), classes=3), label_names=("cat", "dog", "<b>"))
    names = client(net(classes=5), data=data).get("/api/about").json()["classes"]
    assert names == ["cat", "dog", "<b>", "3", "4"]


def test_logits_that_are_not_finite_are_null_and_count_as_no_success():
    served = client(Broken(net(), -1.0))
    (column,) = ask(served, row=0, points=5)["models"]
    assert column["before"]["logits"] == [None] * 10
    assert not column["after"]["fooled"]


def test_warnings_of_the_library_are_part_of_the_answer():
    class Softmax(Wrapper):
        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).softmax(1)

    with pytest.warns(ModelWarning, match="from the softmax at its end"):
        page = client(Softmax(net()))
    warned = ask(page, row=0)["warnings"]
    assert any("probabilities" in text for text in warned)


ODD = (
    "9" * 30,
    "-" + "9" * 30,
    "9" * 5000,
    "-1",
    "nan",
    "inf",
    "1e400",
    "1.5",
    "text",
    "",
    "\0",
    "[1]",
    "null",
    "\u0663",
)


@pytest.mark.parametrize("name", ["start", "count", "label"])
def test_odd_numbers_in_an_address_are_no_error_of_the_server(served: TestClient, name: str):
    for value in ODD:
        answer = served.get("/api/examples", params={name: value})
        assert answer.status_code in (200, 400, 422), (value, answer.text)
        assert answer.status_code == 200 or f"`{name}`" in answer.json()["error"]


@pytest.mark.parametrize(
    "name", ["row", "label", "eps", "target", "made_on", "iterate", "seed", "points", "reach", "attack", "norm", "png"]
)
def test_odd_values_in_a_question_are_no_error_of_the_server(served: TestClient, name: str):
    odd = (
        10**30,
        -(10**30),
        -1,
        2**63,
        1e308,
        -0.0,
        "nan",
        "text",
        "",
        [],
        {},
        True,
        None,
        "9" * 5000,
        "fgsm:steps=1e9",
    )
    for value in odd:
        answer = served.post("/api/attack", json={"row": 0, name: value})
        assert answer.status_code in (200, 400, 422), (value, answer.text)


def test_examples_are_paged_and_filtered(served: TestClient):
    data = judged()
    some = served.get("/api/examples?start=5&count=3").json()
    assert (some["total"], [one["row"] for one in some["examples"]]) == (len(data), [5, 6, 7])
    threes = served.get("/api/examples?label=3&count=100").json()
    assert threes["total"] == int((data.y == 3).sum())
    assert {one["label"] for one in threes["examples"]} == {3}
    shown = np.asarray(Image.open(BytesIO(file_of(some["examples"][0]["picture"]))))
    assert (shown == (data.x[5, 0] * 255).round().numpy()).all()
    assert served.get("/api/examples?count=101").status_code == 400
    assert served.get("/api/examples?start=x").status_code == 422
    assert served.get("/api/examples?start=9999").json()["examples"] == []


def test_pictures_amplify_the_perturbation_as_much_as_the_scale_allows():
    delta = np.float32([[0.1, -0.1], [0.0, 0.05]])
    pixels, factor = amplified(delta, 0.0, 1.0)
    assert factor == 5.0  # .1 in single precision is a little more
    assert pixels.tolist() == [[255, 0], [128, 191]]
    assert amplified(np.zeros((2, 2)), 0.0, 1.0)[1] == 1.0
    assert amplified(np.full((1, 1), 1e-9), -1.0, 1.0)[1] == pytest.approx(1e9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: exhibit(net((5,)), data=from_arrays(torch.zeros(1, 5), [0], lo=0, hi=1)), "must be images"),
        (lambda: exhibit(net((2, 4, 4)), data=pictures((2, 4, 4))), "must be images"),
        (lambda: exhibit(LabelOnly(net())), "must return logits"),
        (lambda: exhibit(net(), net(classes=11)), "must have the same classes"),
        (lambda: exhibit(net(classes=4)), "must have labels below the 4 classes"),
        (lambda: exhibit(), "at least one"),
        (lambda: replace(exhibit(net()), ball=Linf(eps=0.1)), "must be finite for the page"),
        (lambda: exhibit(net(), data=load_data("digits").rows(slice(0, 0))), "at least one example"),
    ],
)
def test_models_and_data_that_cannot_be_shown_are_refused_before_the_server_starts(
    change: Callable[[], object], message: str
):
    with pytest.raises(BadInput, match=message):
        change()


def test_the_api_is_described_without_a_request_to_another_host(served: TestClient):
    described = served.get("/api/openapi.json").json()
    assert {"/api/about", "/api/examples", "/api/attack", "/api/file", "/api/look", "/api/upload"} == set(
        described["paths"]
    )
    assert served.get("/docs").status_code == served.get("/redoc").status_code == 404
    assert json.dumps(described).count("http") == 0


def test_no_request_is_reported_to_an_installed_telemetry():
    # In a process of its own: a provider is set once and for all.
    pytest.importorskip("opentelemetry", reason="FastAPI came without OpenTelemetry, and has nothing to report to")
    code = """
import os, sys
os.environ |= {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
sys.path.insert(0, "tests")
from opentelemetry import metrics, trace
asked = []
class Tracers(trace.TracerProvider):
    def get_tracer(self, *names, **more):
        asked.append("tracer")
        return trace.NoOpTracer()
class Meters(metrics.MeterProvider):
    def get_meter(self, *names, **more):
        asked.append("meter")
        return metrics.NoOpMeter("none")
trace.set_tracer_provider(Tracers())
metrics.set_meter_provider(Meters())
from starlette.testclient import TestClient
from nets import mlp
from serving import exhibit
from epsball.serve.app import application
served = TestClient(application(exhibit(mlp((1, 8, 8), 10).float())), base_url="http://127.0.0.1")
assert served.post("/api/attack", json={"row": 0}).status_code == 200
assert served.get("/").status_code == 200
print("asked:", asked)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "asked: []", done.stderr


def test_the_files_of_the_page_are_in_the_package():
    assert {"index.html", "page.css", "page.js", "model.js"} <= {file.name for file in Path(page.STATIC).iterdir()}
