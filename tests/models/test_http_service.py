"""Models behind HTTP: the same records as in the same process, whatever the service does on the way."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_service import FAILURES, Service, serving, tensor
from nets import batch

import epsball as eb
from epsball.common.errors import BadInput
from epsball.models import http_client
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked, Loaded
from epsball.models.http_service import parse_address
from epsball.problem.objective import SearchWarning

pytest.importorskip("httpx")

SHAPE = (2, 3, 3)
WEIGHT = np.random.default_rng(0).normal(size=(18, 4))
BALL = eb.Linf(eps=0.1, lo=0, hi=1)
OPTIONS = "?batch_size=4&timeout=20"


def logits(x: np.ndarray) -> np.ndarray:
    """The same to the bit in a batch of any size."""
    return (x.reshape(len(x), -1, 1).astype(np.float64) * WEIGHT).sum(1)


def softmax(x: np.ndarray) -> np.ndarray:
    z = np.exp(logits(x))
    return z / z.sum(1, keepdims=True)


def service(datatype: str = "FP64", *shape: int, **answers: Any) -> Service:
    """A service of the linear classifier; its outputs are `answers`, or else its logits."""
    outputs = {
        name: (answer, tensor(name, "INT64" if name == "label" else "FP64", -1, *([] if name == "label" else [4])))
        for name, answer in (answers or {"scores": logits}).items()
    }
    return Service(
        [tensor("x", datatype, *(shape or (-1, *SHAPE)))],
        [info for _, info in outputs.values()],
        {name: answer for name, (answer, _) in outputs.items()},
    )


def opened(address: str, **more: Any) -> tuple[Loaded, BlackBox]:
    from epsball.models.http_service import open_http

    loaded = open_http(Asked(spec=address, **more))
    assert isinstance(loaded.model, BlackBox)
    return loaded, loaded.model


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = batch(12, SHAPE)
    return x, torch.from_numpy(logits(x.numpy()).argmax(1))


def evaluated(box: BlackBox, **more: Any) -> eb.Evaluation:
    return eb.evaluate(box, data(), BALL, "square:steps=30", diagnose=0, convergence=0, **more)


@pytest.fixture(scope="module")
def known() -> eb.Evaluation:
    """The evaluation of the same classifier in this process."""
    found = evaluated(eb.BlackBox(logits))
    assert 0 < found.robust_accuracy < found.clean_accuracy
    return found


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 1e-4)
    monkeypatch.setattr(http_client, "LONGEST_WAIT", 1e-3)
    monkeypatch.delenv(http_client.TOKEN, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def test_a_service_has_the_records_of_the_model_itself(known: eb.Evaluation) -> None:
    with serving(made := service()) as address:
        loaded, box = opened(address + OPTIONS)
        before = len(made.shown)
        found = evaluated(box)
    assert found.records.equals(known.records)
    assert found.queries == known.queries
    assert box.total == sum(map(len, made.shown[before:]))
    assert max(map(len, made.shown)) == 4
    assert loaded.shape == SHAPE
    assert all("batch_size" not in path for path in made.paths)
    assert "read as logits" in loaded.notes[0]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 6))])
def test_failures_of_a_tenth_and_slowness_of_a_twentieth_change_no_record(known: eb.Evaluation, seed: int) -> None:
    with serving(made := service()) as address:
        made.random.seed(seed)
        _, box = opened(f"{address}?batch_size=2&timeout=0.3&retries=20")
        made.failing, made.slow = 0.1, 0.05
        found = evaluated(box)
    assert set(made.failures) == {*FAILURES, "slow"} or seed
    assert sum(made.failures.values()) > 5
    assert found.records.equals(known.records)
    assert found.queries == known.queries


def test_a_service_that_dies_in_the_middle_loses_nothing(tmp_path: Path, known: eb.Evaluation) -> None:
    run = {"run_dir": tmp_path / "run", "shard_size": 3}
    with serving(made := service()) as address:
        made.dead_after = 100
        _, box = opened(f"{address}?retries=2")
        with pytest.raises(BadInput, match=r"answered 503.*\(3 requests\).*--out \(`run_dir`\) resumes$"):
            evaluated(box, **run)
        made.dead_after = None
        _, box = opened(address)
        found = evaluated(box, **run)
    whole = evaluated(eb.BlackBox(logits), shard_size=3)
    assert found.records.equals(known.records)
    assert found.queries == whole.queries
    assert box.total < whole.queries  # what was finished is not asked again


def test_queries_of_an_example_end_with_the_budget() -> None:
    with serving(service()) as address:
        _, box = opened(f"{address}?budget=5")
        with pytest.warns(SearchWarning, match="budget of 5 queries ran out"):
            found = evaluated(box)
    assert found.exhausted
    assert box.budget == 5


# What a service takes and returns


def labels(x: np.ndarray) -> np.ndarray:
    return logits(x).argmax(1)


def test_outputs_are_understood_by_their_metadata_and_two_answers() -> None:
    cases: dict[str, tuple[dict[str, Any], str, str]] = {
        "probabilities": ({"label": labels, "probabilities": softmax}, "", "probabilities"),
        "unnamed probabilities": ({"out": softmax}, "", "probabilities"),
        "labels": ({"label": labels}, "", "labels"),
        "labels beside scores": ({"label": labels, "scores": logits}, "?scores=labels", "labels"),
        "chosen": ({"first": logits, "second": softmax}, "?output=second", "probabilities"),
        "one logit": ({"one": lambda x: logits(x)[:, :1]}, "", "logits"),
    }
    x, y = data()
    for name, (answers, options, scores) in cases.items():
        made = service(**answers)
        if name == "one logit":
            made.metadata["outputs"] = [tensor("one", "FP64", -1, 1)]
        with serving(made) as address:
            loaded, box = opened(address + options)
            assert box.scores == scores, name
            assert f"read as {scores}" in loaded.notes[0]
            found = box(x)
        if scores == "labels":
            assert torch.equal(found, y)
        elif name != "one logit":
            assert torch.equal(found.argmax(1), y)
        else:
            assert found.shape == (12,)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("binary", [True, False])
def test_numbers_arrive_in_the_datatype_of_the_service(datatype: str, binary: bool) -> None:
    made = service(datatype)
    made.server["extensions"] = ["binary_tensor_data"] if binary else []
    with serving(made) as address:
        _, box = opened(address)
        x, _ = data()
        found = box(x)
    kind = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}[datatype]
    assert np.array_equal(made.shown[-1], x.numpy().astype(kind))
    assert np.array_equal(found.numpy(), logits(x.numpy().astype(kind)))
    assert ("Inference-Header-Content-Length" in made.headers[-1]) == binary


def test_images_of_whole_numbers_are_rounded_and_that_is_said() -> None:
    with serving(made := service("UINT8", -1, 6, 5, 1)) as address:
        made.answers["scores"] = lambda x: x.reshape(len(x), -1)[:, :4].astype(np.float64)
        loaded, box = opened(address)
        assert loaded.shape == (1, 6, 5)
        assert any("multiplied by 255 and rounded" in note for note in loaded.notes)
        assert box(torch.full((1, 1, 6, 5), 0.3)).tolist() == [[76.0] * 4]
        with pytest.raises(BadInput, match="give the ball the box"):
            box(torch.full((1, 1, 6, 5), 1.3))
    with serving(made := service("INT64", -1, 4)) as address:
        made.answers["scores"] = lambda x: x.astype(np.float64)
        with pytest.raises(BadInput, match=r"takes whole numbers, 'x' \(INT64.* no option scale; add \?scale=255"):
            opened(address)
        with pytest.raises(BadInput, match=r"got scale=2; add"):
            opened(f"{address}?scale=2")
        loaded, box = opened(f"{address}?scale=1")
        assert box(torch.tensor([[0.4, 0.6, 7.2, -3.0]])).tolist() == [[0.0, 1.0, 7.0, -3.0]]
        assert any("x is rounded" in note for note in loaded.notes)


@pytest.mark.parametrize("datatype", ["INT32", "INT64"])
def test_pixels_in_a_wider_datatype_are_scaled_as_bytes_are(datatype: str) -> None:
    with serving(made := service(datatype, -1, *SHAPE)) as address:
        made.answers["scores"] = lambda x: logits(x / 255)
        loaded, box = opened(f"{address}?scale=255")
        x, y = data()
        assert torch.equal(box(x).argmax(1), y)
        assert np.array_equal(made.shown[-1], np.rint(x.numpy() * 255))
    assert any("multiplied by 255 and rounded" in note for note in loaded.notes)
    with serving(service("UINT8", -1, *SHAPE)) as address, pytest.raises(BadInput, match=r"must be 255 for .*UINT8"):
        opened(f"{address}?scale=1")


def test_probabilities_of_two_digits_are_probabilities() -> None:
    with serving(service(out=lambda x: softmax(x).round(2) * [1.02, 1, 1, 1])) as address:
        loaded, box = opened(address)
        assert box.scores == "probabilities"
        assert any("read as probabilities that were rounded" in note for note in loaded.notes)
        loaded, box = opened(f"{address}?scores=logits")
        assert box.scores == "logits"
        assert not any("rounded" in note for note in loaded.notes)


def test_a_fixed_batch_is_filled_up() -> None:
    with serving(made := service("FP64", 5, *SHAPE)) as address:
        _, box = opened(address)
        found = box(data()[0])
        with pytest.raises(BadInput, match="batch_size must be 5"):
            opened(f"{address}?batch_size=2")
    assert {len(x) for x in made.shown} == {5}
    assert np.array_equal(found.numpy(), logits(data()[0].numpy()))
    assert box.total == 12


def test_the_greatest_batch_of_a_configuration_is_kept_to() -> None:
    made = service()
    made.server["extensions"], made.config = ["model_configuration"], {"max_batch_size": 3}
    with serving(made) as address:
        _, box = opened(address)
        box(data()[0])
        with pytest.raises(BadInput, match="batch_size must be at most 3"):
            opened(f"{address}?batch_size=4")
    assert max(map(len, made.shown)) == 3


def test_names_of_classes_are_taken_from_the_metadata() -> None:
    made = service()
    made.metadata["parameters"] = {"labels": ["a", "b", "c", "d"]}
    with serving(made) as address:
        assert opened(address)[0].label_names == ("a", "b", "c", "d")
    made = service(label=lambda x: np.array(["a", "b", "c", "d"])[labels(x)])
    made.metadata["outputs"] = [tensor("label", "BYTES", -1, parameters={"labels": ["a", "b", "c", "d"]})]
    with serving(made) as address:
        loaded, box = opened(address)
        assert loaded.label_names == ("a", "b", "c", "d")
        assert torch.equal(box(data()[0]), data()[1])


def test_a_service_without_tensors_in_its_metadata_is_asked_for_an_output() -> None:
    made = service("FP32")
    made.metadata = {"name": "net"}
    with serving(made) as address:
        loaded, box = opened(f"{address}?input=x", shape=SHAPE)
        found = box(data()[0])
    assert "its metadata list no inputs: 'x' is sent as FP32" in loaded.notes
    assert np.array_equal(found.numpy(), logits(data()[0].numpy().astype(np.float32)))


def test_a_pickle_of_a_service_asks_again() -> None:
    with serving(service()) as address:
        _, box = opened(address)
        copy = pickle.loads(pickle.dumps(box))
        assert torch.equal(copy(data()[0]), box(data()[0]))


# The way there


def test_a_token_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(http_client.TOKEN, "sesame-42")
    caplog.set_level(logging.DEBUG)
    with serving(made := service()) as address:
        loaded, box = opened(address)
        evaluated(box, run_dir=tmp_path)
        kept = pickle.dumps(box)
        made.raw = lambda path: (401, {}, b"no")
        with pytest.raises(BadInput, match="answered 401") as refused:
            opened(address)
        made.raw = lambda path: (500, {}, b"no")
        with pytest.raises(BadInput) as failed:
            box(torch.zeros(1, *SHAPE))
    assert {headers["Authorization"] for headers in made.headers} == {"Bearer sesame-42"}
    said = f"{loaded}{box!r}{refused.value}{failed.value}{caplog.text}{kept}"
    files = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert "sesame" not in said
    assert b"sesame" not in files
    with pytest.raises(BadInput, match="must be an https:// address for EPSBALL_HTTP_TOKEN"):
        opened("http://model.example/v2/models/net")
    monkeypatch.setenv(http_client.TOKEN, "two\nlines")
    with pytest.raises(BadInput, match="must be a token of printable ASCII"):
        opened("https://127.0.0.1:1/v2/models/net")


def test_requests_keep_to_the_rate_and_to_what_the_service_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of its own: nothing here waits."""
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(http_client.time, "sleep", sleep)
    monkeypatch.setattr(http_client.time, "monotonic", lambda: now[0])
    answers = iter([(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}, b"")])
    with serving(made := service()) as address:
        _, box = opened(f"{address}?rate=4&batch_size=1")
        start, sent = now[0], len(made.paths)
        box(data()[0])
        assert now[0] - start == pytest.approx((len(made.paths) - sent) / 4)
        made.raw = lambda path: next(answers)
        slept.clear()
        with pytest.raises(BadInput, match=r"answered 503 .*asks to wait [\d,]+ s; when the service is back"):
            box(torch.ones(1, *SHAPE))
    assert max(slept) == 7.0


def test_waits_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(http_client, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(http_client, "LONGEST_WAIT", 6.0)
    monkeypatch.setattr(http_client.time, "sleep", slept.append)
    with serving(made := service()) as address:
        _, box = opened(f"{address}?retries=5")
        slept.clear()
        made.raw = lambda path: (502, {}, b"")
        with pytest.raises(BadInput, match=r"\(6 requests\)"):
            box(torch.ones(1, *SHAPE))
    assert all(longest / 2 <= wait <= longest for wait, longest in zip(slept, [1, 2, 4, 6, 6], strict=True))


# What is refused, in one sentence


def answer(**change: Any) -> Any:
    """An answer with another first output."""

    def changed(found: dict[str, Any]) -> dict[str, Any]:
        return found | {"outputs": [found["outputs"][0] | change]}

    return changed


BAD_ANSWERS: dict[str, tuple[Any, str]] = {
    "fewer rows": (answer(shape=[1, 4], data=[0.0] * 4), "one row per example, got 'scores' .* for 12"),
    "fewer numbers": (answer(data=[0.0] * 7), "as many numbers as its shape says, got .* and 7"),
    "no numbers": (answer(data=None), "as many numbers|numbers of its datatype"),
    "words": (answer(data=["a"] * 48), "numbers of its datatype"),
    "ragged": (answer(data=[[1.0], [1.0, 2.0]]), "numbers of its datatype"),
    "nan": (answer(data=[float("nan")] * 48), "finite numbers, got 'scores'"),
    "inf": (answer(data=[1e999] * 48), "finite numbers"),
    "huge whole numbers": (answer(datatype="INT64", data=[1 << 90] * 48), "numbers of its datatype|one of its outputs"),
    "huge shape": (answer(shape=[12, 1 << 39]), "as many numbers as its shape says"),
    "negative shape": (answer(shape=[-1, 4]), "as many numbers as its shape says"),
    "shape of words": (answer(shape=["a"]), "name, datatype and shape of its outputs"),
    "another datatype": (answer(datatype="TEXT"), "datatype of numpy's"),
    "another name": (answer(name="other"), "must name one of its outputs, got 'scores'"),
    "more sides": (answer(shape=[12, 2, 2]), r"an output \(n, classes\) or \(n,\)"),
    "no outputs": (lambda found: {}, "must name one of its outputs"),
    "a list": (lambda found: [1, 2], "list its outputs as the protocol v2 does, got \\[1, 2\\]"),
    "deep": (lambda found: json.loads("[" * 900 + "]" * 900), "JSON of a usual size"),
    "another id": (lambda found: found | {"id": "x"}, "another one's id"),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_an_answer_that_does_not_fit_is_one_sentence(kind: str) -> None:
    change, message = BAD_ANSWERS[kind]
    with serving(made := service()) as address:
        _, box = opened(address)
        made.change = change
        with pytest.raises(BadInput, match=message) as refused:
            box(data()[0])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


RAW: dict[str, tuple[int, dict[str, str], bytes, str]] = {
    "elsewhere": (
        307,
        {"Location": "https://me:secret@other.example/v2?key=secret"},
        b"",
        "https://other.example/v2 ",
    ),
    "unknown model": (404, {}, b'{"error": "no\\u001b[31m such model"}', r"answered 404: no \[31m such model"),
    "a page": (400, {}, b"<html>" + b"x" * 100_000, "answered 400: <html>x"),
    "forbidden": (403, {}, b"", "environment variable EPSBALL_HTTP_TOKEN, which is not set"),
    "no JSON": (200, {}, b"<html>", "what is no JSON"),
    "no unicode": (200, {}, b"\xff\xfe\xff", "what is no JSON"),
    "zipped": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(1 << 24)), "without compression"),
    "long": (200, {}, b" " * ((1 << 16) + 1), "at most 0 MiB"),
    "a negative length": (200, {"Inference-Header-Content-Length": "-3"}, b"{}", "for 2 bytes"),
    "a length beyond": (200, {"Inference-Header-Content-Length": "9" * 30}, b"{}", "for 2 bytes"),
    "busy": (503, {}, b"", r"answered 503 .*\(3 requests\)"),
}


@pytest.mark.parametrize("kind", RAW)
def test_a_response_that_is_no_answer_is_one_sentence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, headers, body, message = RAW[kind]
    monkeypatch.setattr(http_client, "MOST_ANSWER", 1 << 16)
    with serving(made := service()) as address:
        _, box = opened(f"{address}?retries=2")
        made.raw = lambda path: (status, headers, body)
        with pytest.raises(BadInput, match=message) as refused:
            box(torch.ones(1, *SHAPE))
        with pytest.raises(BadInput, match=message):
            opened(address)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_endless_answer_ends_with_the_time_of_a_request() -> None:
    """The service sends a byte now and then, each in time, for ever."""
    import socket
    import threading

    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not stop.wait(0.01):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    with pytest.raises(BadInput, match=r"did not answer in 0.2 s \(1 request\)"):
        opened(f"http://127.0.0.1:{listener.getsockname()[1]}/v2/models/net?timeout=0.2&retries=0")
    stop.set()
    thread.join()
    listener.close()


def test_nobody_at_the_address_is_one_sentence() -> None:
    with serving(service()) as address:
        pass
    with pytest.raises(BadInput, match=r"failed \(ConnectError: .*\(3 requests\)"):
        opened(address)


BAD_METADATA: dict[str, tuple[Any, str]] = {
    "two inputs": (
        {"inputs": [tensor("a", "FP32", -1, 4), tensor("b", "FP32", -1, 4)]},
        "must have one input, got 'a'",
    ),
    "no inputs": ({"inputs": []}, "add \\?input=NAME"),
    "words": ({"inputs": [tensor("a", "BYTES", -1, 4)]}, "must take one of FP16, FP32"),
    "huge": ({"inputs": [tensor("a", "FP32", -1, 1 << 20, 1 << 20)]}, "examples of 1 to 16,777,216 numbers"),
    "empty": ({"inputs": [tensor("a", "FP32", -1, 0)]}, "examples of 1 to"),
    "no shape": ({"inputs": [{"name": "a", "datatype": "FP32"}]}, "name, datatype and shape of its inputs"),
    "many sides": ({"inputs": [tensor("a", "FP32", *[1] * 9)]}, "name, datatype and shape of its inputs"),
    "half sides": ({"inputs": [tensor("a", "FP32") | {"shape": [1.5]}]}, "name, datatype and shape of its inputs"),
    "inputs of words": ({"inputs": "abc"}, "list its inputs as the protocol v2 does"),
    "two outputs": ({"outputs": [tensor("a", "FP32", -1, 4), tensor("b", "FP32", -1, 4)]}, "\\?output=NAME"),
    "an image": ({"outputs": [tensor("a", "FP32", -1, 4, 8, 8)]}, "must have one output of scores"),
    "strings": ({"outputs": [tensor("a", "BYTES", -1)]}, "which are strings; list them in its metadata"),
    "three labels": ({"parameters": {"labels": ["a", "b", "c"]}}, "got 3 labels for 'scores'"),
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_metadata_that_cannot_be_used_are_one_sentence(kind: str) -> None:
    change, message = BAD_METADATA[kind]
    made = service()
    made.metadata |= change
    if kind == "strings":
        made.answers = {"a": lambda x: np.array(["cat"] * len(x))}
    with serving(made) as address, pytest.raises(BadInput, match=message):
        opened(address)


JUNK = [None, True, -1, 0, 1 << 70, 1.5, float("nan"), "", "FP32", "x" * 999, [], [[]], {}, {"a": 1}, [None], [-1, 4]]


def spoilt(value: Any, seed: int) -> Any:
    """A copy of a JSON value in which one or two parts are junk, or are left out."""
    chance, found = random.Random(seed), json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 2)):
        place = {"": found}
        at: Any = ""
        while isinstance(place[at], dict | list) and place[at] and chance.random() < 0.8:
            place = place[at]
            at = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
        if at != "" and isinstance(place, dict) and chance.random() < 0.2:
            del place[at]
        elif at == "":
            found = chance.choice(JUNK)
        else:
            place[at] = chance.choice(JUNK)
    return found


@pytest.mark.parametrize("rounds", [25, pytest.param(1500, marks=pytest.mark.nightly)])
def test_no_answer_and_no_metadata_raise_anything_else(rounds: int) -> None:
    refused: list[str] = []
    with serving(made := service()) as address:
        _, box = opened(f"{address}?retries=0")
        made.server = {"name": "made", "extensions": ["model_configuration"]}
        made.config = {"max_batch_size": 4}
        sound = {"metadata": made.metadata, "server": made.server, "config": made.config}
        for seed in range(rounds):
            made.change = lambda answer, seed=seed: spoilt(answer, seed)
            try:
                box(torch.full((3, *SHAPE), seed / rounds))
            except BadInput as error:
                refused.append(str(error))
            made.change = lambda answer: answer
            part = list(sound)[seed % 3]
            setattr(made, part, spoilt(sound[part], seed))
            try:
                opened(f"{address}?retries=0")
            except BadInput as error:
                refused.append(str(error))
            setattr(made, part, sound[part])
    assert len(refused) > rounds / 2
    assert not any("\n" in message for message in refused)


def test_rows_in_another_order_are_noticed() -> None:
    def sorted_rows(x: np.ndarray) -> np.ndarray:
        found = logits(x)
        return found[np.argsort(found[:, 0])]

    with serving(service(scores=sorted_rows)) as address:
        with pytest.raises(BadInput, match=r"in the order of the rows.*batch_size=1 to the address"):
            opened(address)
        opened(f"{address}?batch_size=1")


def test_a_redirect_names_an_address_that_works() -> None:
    with serving(service()) as there, serving(made := service()) as address:
        made.raw = lambda path: (301, {"Location": there + path.removeprefix("/v2/models/net")}, b"")
        with pytest.raises(BadInput, match="where that is the service, name its address") as refused:
            opened(address)
        assert f"redirects to {there} (301)" in str(refused.value)
        opened(there)


def test_a_model_that_takes_one_row_at_a_time_is_asked_so() -> None:
    with serving(service(scores=lambda x: logits(x[:1]))) as address:
        with pytest.raises(BadInput, match=r"one row per example, .*add \?batch_size=1 to the address"):
            opened(address)
        _, box = opened(f"{address}?batch_size=1")
        assert torch.equal(box(data()[0]).argmax(1), data()[1])


def test_a_model_that_is_not_ready_is_refused() -> None:
    with serving(made := service()) as address:
        made.raw = lambda path: (400, {}, b"{}") if path.endswith("/ready") else None
        with pytest.raises(BadInput, match=r"ready, but .*/ready says that it is not"):
            opened(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://host/v1/models/net:predict", "must be the address of a model of a service"),
        ("https://host/v2/models/", "must be the address"),
        ("ftp://host/v2/models/net", "must be the address"),
        ("https:///v2/models/net", "must be the address"),
        ("https://host:99999/v2/models/net", "must be an address, got"),
        ("https://[::1/v2/models/net", "must be an address, got"),
        ("https://me:sesame@host/v2/models/net", "without user and password.*EPSBALL_HTTP_TOKEN"),
        ("https://host/v2/models/net?token=sesame", "must be among batch_size, .*got 'token'"),
        ("https://host/v2/models/net?sesame", "got one without a value"),
        ("https://host/v2/models/net?rate=0", "model option rate` must be > 0"),
        ("https://host/v2/models/net?rate=nan", "model option rate` must be > 0"),
        ("https://host/v2/models/net?batch_size=0", "model option batch_size` must be a whole number >= 1"),
        ("https://host/v2/models/net?batch_size=x", "must be a number, got 'x'"),
        ("https://host/v2/models/net?retries=1&retries=2", "retries must be given once"),
        ("https://host/v2/models/net?scores=logit", "did you mean 'logits'"),
    ],
)
def test_an_address_that_is_none_is_one_sentence_without_secrets(address: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        parse_address(address)
    assert "sesame" not in str(refused.value)


def test_weights_are_refused() -> None:
    with pytest.raises(BadInput, match="`weights` must be left out with a service"):
        opened("https://host/v2/models/net", weights=Path("w.pt"))


def test_a_version_of_a_model_is_part_of_the_path() -> None:
    base, path, options = parse_address("http://host:8000/gate/v2/models/net/versions/3?output=a&timeout=2.5")
    assert (base, path) == ("http://host:8000/gate", "/v2/models/net/versions/3")
    assert (options.output, options.timeout) == ("a", 2.5)
