"""The door of model services: the Open Inference Protocol v2 over HTTP, as KServe, Triton and MLServer speak it.

    https://host/v2/models/NAME?batch_size=32&rate=10

What follows the question mark is for epsball and is not sent: batch_size (rows of a request), rate (requests a
second),
timeout (seconds), retries, budget (queries of an example), scores, layout, scale (255 where a service of whole numbers
takes images of 0 to 255 and x is in [0, 1]; 1 where x are whole numbers), input and output (names of tensors). A
bearer token is read from the environment variable EPSBALL_HTTP_TOKEN, and is in no message, log or record.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import torch

from epsball.common.checks import check_one_of, check_positive, check_whole
from epsball.common.errors import BadInput
from epsball.models.black_box import ALLOWED, BlackBox, Scores
from epsball.models.door import Asked, Loaded
from epsball.models.http_client import LOCAL, TOKEN, Client, shown
from epsball.models.http_tensors import (
    MOST_NUMBERS,
    TAKEN,
    TensorInfo,
    array_of,
    chosen,
    infos_of,
    labels_of,
    request_of,
)

WHERE = re.compile(r"(?P<prefix>.*)/v2(?P<path>/models/[^/]+(/versions/[^/]+)?)/?")
ROWS = 32
"""Rows of a request, where neither the address nor the service says how many."""
ROUNDED = 0.05
"""The sums of probabilities differ from 1 by less, also of ten classes with two digits."""
CHANNELS = (1, 3, 4)
"""Of images. The sides of an image are longer."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the query of an address says."""

    batch_size: int | None = None
    rate: float | None = None
    timeout: float = 60.0
    retries: int = 8
    budget: int | None = None
    scores: Scores | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    scale: int | None = None
    input: str | None = None
    output: str | None = None


@dataclass
class HttpService:
    """A model of a service, x (n, *shape) in numpy -> scores (n, classes), (n,) or labels (n,).

    Raises `BadInput` where the service fails for good, or answers with what is not one row of finite numbers for each
    example.
    """

    client: Client
    path: str
    input: TensorInfo
    output: TensorInfo | None = None
    binary: bool = False
    labels: bool = False
    _number: int = field(default=0, init=False, repr=False)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.asked(x)[1]

    def asked(self, x: np.ndarray) -> tuple[TensorInfo, np.ndarray]:
        """The output that was chosen, and its values."""
        self._number += 1
        body, header = request_of(x, self.input, self.output, self._number, binary=self.binary)
        found, raw = self.client.post(f"{self.path}/infer", body, header)
        tensors = infos_of(found, "outputs")
        if found.get("id", str(self._number)) not in (str(self._number), "", None):
            raise BadInput(
                "`model` must answer the request that it was sent, got another one's id; is a proxy in between?"
            )
        info = chosen(tensors, None if self.output is None else self.output.name, labels=self.labels)
        values = array_of(found, raw, info)
        if len(values) != len(x):
            raise BadInput(
                f"`model` must answer with one row per example, got {info} for {len(x)}; where it takes no batches, "
                "add ?batch_size=1 to the address"
            )
        return info, values.reshape(values.shape[:2]) if info.columns else values.reshape(len(values))


def open_http(asked: Asked) -> Loaded:
    """The black box of a model behind an address, https://host/v2/models/NAME, also with /versions/V and options.

    The service is asked for its metadata, and, where these say the shape of an example, about two examples of numbers,
    in both orders: are the answers in the order of the rows? The answers do not count as queries.

    Raises `BadInput` for an address that is none, a service that does not answer, has no such model, or has one whose
    input or output cannot be used.
    """
    base, path, options = parse_address(asked.spec)
    if asked.weights is not None:
        raise BadInput(f"`weights` must be left out with a service, which has its own, got {str(asked.weights)!r}")
    client = Client(base, timeout=options.timeout, retries=options.retries, rate=options.rate)
    metadata = client.get(path)
    if not client.exists(f"{path}/ready"):
        raise BadInput(f"`model` must be ready, but {base}{path}/ready says that it is not; wait until it is loaded")
    extensions, most = _server(client, path)
    taken, outputs, notes = _input(metadata, options), infos_of(metadata, "outputs"), []
    labels = options.scores == "labels"
    output = chosen(outputs, options.output, labels=labels) if outputs else None
    service = HttpService(client, path, taken, output, "binary_tensor_data" in extensions, labels)
    scale = _scale(taken, options.scale)
    batch_size, pad = _batch(taken, options.batch_size, most)
    layout = options.layout or _layout(taken)
    shape = _example(taken, layout) or asked.shape
    box = BlackBox(service, layout=layout, batch_size=batch_size, pad=pad, dtype="uint8" if scale == 255 else None)
    values = None
    if shape is not None:
        answered, values = _probe(box, service, shape)
        service.output = output or answered
    if service.output is None:
        raise BadInput(
            "`model` must list its outputs in its metadata, got none; add them there, or give the shape of x"
        )
    scores = options.scores or _scores(service.output, values)
    names = service.output.labels or labels_of(metadata)
    _check_names(names, service.output, scores)
    box = replace(
        box, scores=scores, budget=options.budget, classes=names if service.output.datatype == "BYTES" else None
    )
    if not metadata.get("inputs"):
        notes.append(f"its metadata list no inputs: {taken.name!r} is sent as {taken.datatype}")
    return Loaded(
        model=box,
        notes=(_summary(metadata, base, service, scores, box), *notes, *_warnings(base, taken, scale, values, scores)),
        label_names=names,
        shape=_example(taken, layout),
    )


def parse_address(spec: str) -> tuple[str, str, Options]:
    """The service, the path of the model, and the options of an address.

    >>> parse_address("https://host/v2/models/net?batch_size=8")[:2]
    ('https://host', '/v2/models/net')
    """
    try:
        parts = urlsplit(spec)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(
            f"`model` must be an address, got {shown(spec)!r}: {error}; as in https://host/v2/models/NAME"
        ) from None
    if parts.username is not None or parts.password is not None:
        raise BadInput(
            f"`model` must be an address without user and password, got one with them for {shown(spec)!r}; put a "
            f"bearer token into the environment variable {TOKEN}"
        )
    where = WHERE.fullmatch(parts.path)
    if parts.scheme not in ("http", "https") or not host or where is None or parts.fragment or not spec.isprintable():
        raise BadInput(
            f"`model` must be the address of a model of a service, got {shown(spec)!r}; as in "
            "https://host/v2/models/NAME"
        )
    return f"{parts.scheme}://{parts.netloc}{where['prefix']}", f"/v2{where['path']}", _options(parts.query)


def _options(query: str) -> Options:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=100):
        known = list(Options.__dataclass_fields__)
        if name not in known:
            key = repr(name) if f"{name}=" in query else "one without a value"
            raise BadInput(
                f"`model` options must be among {', '.join(known)}, got {key}; where that is a token, put it into the "
                f"environment variable {TOKEN}"
            )
        if name in found:
            raise BadInput(f"`model` option {name} must be given once, got it twice")
        found[name] = value
    for name, kind in {
        "batch_size": int,
        "retries": int,
        "budget": int,
        "scale": int,
        "rate": float,
        "timeout": float,
    }.items():
        if name in found:
            try:
                found[name] = kind(found[name])
            except ValueError:
                raise BadInput(
                    f"`model` option {name} must be a number, got {found[name][:20]!r}; as in {name}=4"
                ) from None
    for name, least in (("batch_size", 1), ("retries", 0), ("budget", 1)):
        if name in found:
            check_whole(f"model option {name}", found[name], least)
    for name in ("rate", "timeout"):
        if name in found:
            check_positive(f"model option {name}", found[name], "requests a second" if name == "rate" else "seconds")
    for name in ("scores", "layout"):
        if name in found:
            check_one_of(f"model option {name}", found[name], ALLOWED[name])
    return Options(**found)


def _server(client: Client, path: str) -> tuple[list[Any], int]:
    """The extensions that the service offers, and its greatest batch of the model, 0 where it does not say."""
    try:
        server = client.get("/v2")
        extensions = server.get("extensions", []) if isinstance(server, dict) else []
        if not isinstance(extensions, list) or "model_configuration" not in extensions:
            return extensions if isinstance(extensions, list) else [], 0
        most = client.get(f"{path}/config").get("max_batch_size", 0)
    except (BadInput, AttributeError):  # optional parts of the protocol
        return [], 0
    return extensions, most if type(most) is int and most >= 0 else 0


def _input(metadata: Any, options: Options) -> TensorInfo:
    """The input of the model, or what `options` say of it where the metadata list none."""
    inputs = infos_of(metadata, "inputs")
    if not inputs and options.input is not None:
        return TensorInfo(options.input, "FP32", (-1,))
    found = [one for one in inputs if options.input in (None, one.name)]
    if len(found) != 1 or len(inputs) != 1:
        listed = ", ".join(map(str, inputs[:8])) or "none"
        raise BadInput(
            f"`model` must have one input, got {listed}; where its metadata list none, add ?input=NAME to the address"
        )
    if found[0].datatype not in TAKEN:
        raise BadInput(f"`model` must take one of {', '.join(TAKEN)}, got {found[0]}; export it with a float input")
    if math.prod(side for side in found[0].shape[1:] if side > 0) > MOST_NUMBERS or 0 in found[0].shape:
        raise BadInput(f"`model` must take examples of 1 to {MOST_NUMBERS:,} numbers, got {found[0]}")
    return found[0]


def _scale(taken: TensorInfo, wanted: int | None) -> int:
    """What x is multiplied by: 255 for images of whole numbers from 0 to 255."""
    if "INT" not in taken.datatype or taken.datatype == "UINT8":
        known = 255 if taken.datatype == "UINT8" else 1
        if wanted not in (None, known):
            raise BadInput(f"`model` option scale must be {known} for {taken}, got {wanted}; leave it out")
        return known
    if wanted not in (1, 255):
        got = "no option scale" if wanted is None else f"scale={wanted}"
        raise BadInput(
            f"`model` takes whole numbers, {taken}, and the address must say what they are, got {got}; add ?scale=255 "
            "to it where they are pixels of 0 to 255, so that x in [0, 1] is multiplied by 255, or ?scale=1 where x "
            "itself are whole numbers"
        )
    return wanted


def _batch(taken: TensorInfo, wanted: int | None, most: int) -> tuple[int, bool]:
    """The rows of a request, and whether it must have exactly as many."""
    fixed = taken.shape[0] if most == 0 else -1
    if fixed > 0:
        if wanted not in (None, fixed):
            raise BadInput(
                f"`model` option batch_size must be {fixed}, that of the service, got {wanted}; leave it out"
            )
        return fixed, True
    if wanted is not None and most and wanted > most:
        raise BadInput(
            f"`model` option batch_size must be at most {most}, that of the service, got {wanted}; leave it out"
        )
    return wanted or min(ROWS, most or ROWS), False


def _layout(taken: TensorInfo) -> Literal["nchw", "nhwc"]:
    last = len(taken.shape) == 4 and taken.shape[3] in CHANNELS and min(taken.shape[1:3]) > max(CHANNELS)
    return "nhwc" if last else "nchw"


def _example(taken: TensorInfo, layout: str) -> tuple[int, ...] | None:
    """The shape of an example with the channels first, where the service says all of it."""
    sides = taken.shape[1:]
    if not sides or -1 in sides:
        return None
    return (sides[-1], *sides[:-1]) if layout == "nhwc" and len(sides) == 3 else sides


def _probe(box: BlackBox, service: HttpService, shape: tuple[int, ...]) -> tuple[TensorInfo, np.ndarray]:
    """The output for a dark and a bright example, and its values; raise `BadInput` where rows come in another order."""
    seen: list[tuple[TensorInfo, np.ndarray]] = []

    def recorded(z: np.ndarray) -> np.ndarray:
        seen.append(service.asked(z))
        return np.zeros(len(z))

    ramp = torch.linspace(0, 1, math.prod(shape)).reshape(shape)
    x = torch.stack([ramp / 4, 1 - ramp / 2])
    asking = replace(box, function=recorded, memory=0)
    asking(x)
    calls = len(seen)
    asking(x.flip(0))
    parts = [values[: min(box.batch_size or 2, 2)] for _, values in seen]
    there, back = np.concatenate(parts[:calls]), np.concatenate(parts[calls:])
    if there.dtype.kind == "f" and np.abs(there - back).max() < 0.01 * np.abs(there[0] - there[1]).max():
        raise BadInput(
            "`model` must answer in the order of the rows, but two examples and the same two in the other order have "
            "the same answers; add ?batch_size=1 to the address"
        )
    return seen[0][0], there


def _scores(output: TensorInfo, values: np.ndarray | None) -> Scores:
    """What the numbers of an output are, by its datatype, two rows of it, and its name."""
    if not output.floating:
        return "labels"
    if values is not None and output.columns:
        return "probabilities" if _off_one(values) < ROUNDED else "logits"
    return "probabilities" if re.search("prob|softmax", output.name, re.IGNORECASE) else "logits"


def _off_one(values: np.ndarray) -> float:
    """By how much the sums of rows in [0, 1] differ from 1 at most; inf where a number is outside."""
    inside = bool(((values >= 0) & (values <= 1 + 1e-6)).all())
    return float(np.abs(values.sum(1) - 1).max()) if inside else math.inf


def _check_names(names: tuple[str, ...] | None, output: TensorInfo, scores: Scores) -> None:
    if names is not None and output.columns and output.shape[1] not in (-1, len(names)):
        raise BadInput(
            f"`model` must have a label for each class, got {len(names)} labels for {output}; mend its metadata"
        )
    if output.datatype == "BYTES" and names is None:
        raise BadInput(
            f"`model` must say which labels there are, got {output}, which are strings; list them in its metadata, "
            "under "
            '"parameters": {"labels": [...]}'
        )
    if output.floating == (scores == "labels"):
        raise BadInput(f"`model` option scores must fit the output, got {scores} for {output}; leave it out")


def _summary(metadata: Any, base: str, service: HttpService, scores: Scores, box: BlackBox) -> str:
    """One sentence: which service, which tensors, how they are understood."""
    assert service.output is not None
    platform = metadata.get("platform")
    of = f" ({platform[:40]})" if isinstance(platform, str) and platform.isprintable() and platform else ""
    rows = f"exactly {box.batch_size}" if box.pad else f"at most {box.batch_size}"
    layout = ", channels last" if box.layout == "nhwc" else ""
    return (
        f"service {base}{service.path}{of}: input {service.input}{layout}, output {service.output}, read as {scores}; "
        f"{rows} rows a request, numbers as {'bytes' if service.binary else 'JSON'}"
    )


def _warnings(base: str, taken: TensorInfo, scale: int, values: np.ndarray | None, scores: Scores) -> list[str]:
    """What a user should know of the way to the model."""
    notes = []
    if values is not None:
        notes.append("two made examples were sent twice, to see that answers come in the order of the rows")
    if base.startswith("http:") and urlsplit(base).hostname not in LOCAL:
        notes.append("http:// is not encrypted: examples and answers can be read on the way")
    if scale == 255:
        notes.append(
            "it takes whole numbers: x in [0, 1] is multiplied by 255 and rounded, by up to half a level, which "
            "counts as a part of the model; with storage 8bit the search stays among such images"
        )
    elif taken.datatype.startswith("INT"):
        notes.append("it takes whole numbers: x is rounded, with scale=1, which counts as a part of the model")
    if scores == "probabilities" and values is not None and values.ndim == 2 and _off_one(values) >= 1e-3:
        notes.append(
            f"its rows are in [0, 1], with sums up to {_off_one(values):.2g} from 1: they are read as probabilities "
            "that were rounded; with ?scores=logits they are logits"
        )
    if taken.datatype == "FP16":
        notes.append("it takes FP16: x is rounded to it, which counts as a part of the model")
    return notes
