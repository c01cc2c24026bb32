"""The columns that the tables of a run must have, and what its configuration must say. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import pyarrow as pa

WHOLE, REAL, TRUTH, TEXT = pa.int64(), pa.float64(), pa.bool_(), pa.string()
Status = Literal["robust", "fooled", "misclassified", "at-target", "invalid", "exhausted"]
STATUSES: tuple[Status, ...] = get_args(Status)
Columns = dict[str, pa.DataType | None]
"""Types by name; None is any."""
CLEAN: Columns = {"id": WHOLE, "label": WHOLE, "prediction": WHOLE, "confidence": REAL, "valid": TRUTH}
COST: Columns = {"forwards": WHOLE, "backwards": WHOLE}
ANSWER: Columns = {"adversarial_prediction": WHOLE, "adversarial_confidence": REAL}
STAGE: Columns = {"id": WHOLE, "fooled": TRUTH, "invalid": TRUTH, "exhausted": TRUTH, **COST, **ANSWER}
STAGE |= {"queries": WHOLE, "crc32": pa.uint32(), "x_adv": None, "x": None}
RECORDS: Columns = {"id": WHOLE, "label": WHOLE, "target": WHOLE, "clean_prediction": WHOLE, "clean_confidence": REAL}
RECORDS |= {"status": TEXT, "attack": TEXT, "eps": REAL, **ANSWER, "distance": None, "overflow_eps": REAL}
RECORDS |= {"exhausted_eps": REAL, **COST}
PROVED: Columns = {"certified": TRUTH, "certified_as_run": TRUTH, "certified_eps": REAL, "certified_margin": REAL}
PROVED |= {"certified_method": TEXT, "undecided": TEXT}
"""Columns of the records that are null where a run does not certify; runs of 0.2.0 have none of them."""
CERTIFY: Columns = STAGE | {"verified": TRUTH, "margin": REAL, "method": TEXT, "seconds": REAL, "reason": TEXT}
CERTIFY |= {"as_run": TRUTH, "rivals": None, "certificate": pa.binary()}
"""Columns of a stage that certifies, whose search may also come across adversarial examples."""
NEVER_NULL = {"id", "label", "prediction", "valid", "fooled", "invalid", "exhausted", "queries", "status", *COST}
NEVER_NULL |= {"verified", "margin", "as_run", "rivals"}

Rules = dict[str, Callable[[Any], bool]]
"""Whether a value fits, by the place of an entry: "data.n"."""
MOST_SHARDS = 100_000
MOST_NUMBERS = 1 << 28
"""Numbers of an example."""


def stage_columns(min_norm: bool) -> Columns:
    """The columns of a stage's table."""
    return STAGE | ({"distance": REAL} if min_norm else {})


def check_columns(table: pa.Table, columns: Columns) -> None:
    """Raise `ValueError` where a table does not have the columns that its file should."""
    for name, kind in columns.items():
        if name not in table.column_names:
            raise ValueError(f"no column {name}")
        if kind is not None and table[name].type != kind:
            raise ValueError(f"{name} is {table[name].type} and not {kind}")
        if name in NEVER_NULL and table[name].null_count:
            raise ValueError(f"{name} is null in {table[name].null_count} rows")


def check_records(table: pa.Table, config: dict[str, Any]) -> None:
    """Raise `ValueError` for records that no run writes."""
    distances = ("distance", *(config.get("norms") or ()))
    check_columns(table, RECORDS | dict.fromkeys(distances) | (PROVED if certifies(config) else {}))
    if certifies(config) and table["certified"].null_count:
        raise ValueError("certified is null in a run that certifies")
    for name in distances:
        if not (pa.types.is_floating(table[name].type) or pa.types.is_integer(table[name].type)):
            raise ValueError(f"{name} is {table[name].type} and no number")
    if len(table) > config["shard_size"]:
        raise ValueError(f"a shard has {len(table)} rows of at most {config['shard_size']}")
    if strange := set(table["status"].unique().to_pylist()) - set(STATUSES):
        raise ValueError(f"status is {strange.pop()!r}")


def certifies(config: Mapping[str, Any]) -> bool:
    """Whether the run with this configuration also proves examples robust."""
    return config.get("certify") is not None


def number_of_shards(config: Mapping[str, Any]) -> int:
    """How many shards a run with this configuration has."""
    return -(-config["data"]["n"] // config["shard_size"])


def check_config(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` where the configuration of a run lacks what every reader needs, or holds something else."""
    check_entries(config, RULES)
    check_entries(config, OPTIONAL, optional=True)
    if config["ball"]["norm"] not in (config.get("norms") or {config["ball"]["norm"]}):
        raise ValueError("its ball's norm is not among its norms")
    if number_of_shards(config) > MOST_SHARDS:
        raise ValueError(f"its data.n and shard_size make more than {MOST_SHARDS:,} shards")


def check_entries(config: Mapping[str, Any], rules: Rules, *, optional: bool = False) -> None:
    """Raise `ValueError` where an entry breaks its rule, or, unless they are `optional`, is not there."""
    for place, fits in rules.items():
        value: Any = config
        for name in place.split("."):
            known = isinstance(value, Mapping) and name in value
            if not known and not optional:
                raise ValueError(f"it has no {place}")
            value = value[name] if known else None
        if not (optional and value is None) and not fits(value):
            text = repr(value)
            raise ValueError(f"its {place} cannot be {text if len(text) <= 60 else text[:57] + '...'}")


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _named(value: Any) -> bool:
    return isinstance(value, str) and bool(value.split())


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shape(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) <= 8 and all(map(_whole(1, MOST_NUMBERS), value))
    return whole and math.prod(value) <= MOST_NUMBERS


def _stage(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_text(value.get(name)) for name in ("name", "attack"))
        and not {"/", "\\", "\0"} & set(value["name"])
        and isinstance(value.get("minimises"), bool)
        and "within" in value
        and _number_or_none(value["within"])
        and value.get("certifies") in (None, "bounds", "search")
    )


def _stages(value: Any) -> bool:
    return isinstance(value, list) and all(map(_stage, value))


def _storage(value: Any) -> bool:
    kinds = {"dtype": _text, "x_adv": _kind, "x": _kind, "lo": _number_or_none, "hi": _number_or_none}
    return (
        isinstance(value, dict)
        and set(value) <= set(kinds)
        and "dtype" in value
        and all(kinds[name](part) for name, part in value.items())
    )


def _kind(value: Any) -> bool:
    return value in ("float", "8bit")


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


RULES: Rules = {
    "data.n": _whole(0, 1 << 40),
    "data.shape": _shape,
    "data.dtype": lambda value: value in ("float16", "bfloat16", "float32", "float64"),
    "data.name": _text,
    "data.digest": _text,
    "data.labels": _text,
    "shard_size": _whole(1, 1 << 40),
    "stages": _stages,
    "radii": lambda value: isinstance(value, list) and bool(value),
    "ball.norm": _text,
    "ball.class": _named,
    "attacks": lambda value: isinstance(value, list),
    "min_norm": lambda value: isinstance(value, bool),
    "eot": _whole(1, 1 << 20),
    "seed": lambda value: isinstance(value, int),
    "model": _text,
    "source": _text_or_none,
    "target": _text_or_none,
}
"""What is read of every configuration, with the rule that its values keep."""
OPTIONAL: Rules = {
    "data.class_names": lambda value: _texts(value),
    "norms": lambda value: isinstance(value, dict) and all(map(_text, value.values())),
    "certify": lambda value: _number(value) and value >= 0,
    "protocol": lambda value: isinstance(value, list),
    "reaction": lambda value: isinstance(value, dict) and _texts(value.get("because", [])),
    "acceleration": lambda value: isinstance(value, dict),
    "batch_size_found": lambda value: isinstance(value, dict) and _text(value.get("why")),
    "storage": _storage,
}
"""What a run may leave out, or have none of."""
REPORTED: Rules = {
    "protocol": _texts,
    "storage": lambda value: _storage(value) and {"x_adv", "x"} <= set(value),
    "ball.eps": lambda value: True,
    "ball.lo": lambda value: True,
    "ball.hi": lambda value: True,
    "ball.mask": lambda value: True,
    "batch_size": _whole(1, 1 << 40),
    "machine": _text,
    "epsball": _text,
    "torch": _text,
    "success": lambda value: True,
}
"""What a report shows beside that."""
