"""Ray for a run: one that runs already, one at an address, or one that is started here and stopped again."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from epsball.common.errors import BadInput

PATIENCE = 5.0
"""Seconds in which the host of an address must take a connection: Ray itself tries for more than a minute."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
RUNNING = "auto"
"""The address that stands for the cluster that was started on this machine."""


@contextmanager
def cluster(workers: int, gpus: float, address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to a cluster for so many workers with so many `gpus` each.

    That is the one that the caller has initialised, else the one at `address` (or in RAY_ADDRESS), else one on this
    machine, which is stopped at the end. Raises `BadInput` where Ray is not installed, the address is that of no
    cluster, or this machine does not have the GPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise BadInput(
            f"`workers` need Ray, which is not installed ({error}); write pip install 'epsball[ray]', or leave "
            "`workers` out"
        ) from error
    if ray.is_initialized():
        _check_gpus(ray, gpus, here=False)
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if address is None:
        _check_threads(workers)
        options = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        options["_node_ip_address"] = "127.0.0.1"
    else:
        _check_answers(ray, address)
    try:
        ray.init(**options, configure_logging=True, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, ImportError, SystemExit) as error:  # Ray exits where it gives up
        raise _refused(address, error) from error
    try:
        _check_gpus(ray, gpus, here=address is None)
        yield ray
    finally:
        ray.shutdown()


def here(ray: Any) -> Any:
    """The strategy that puts an actor on the driver's own node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _check_answers(ray: Any, address: str) -> None:
    """Raise `BadInput` where nothing listens at an address such as ray://head:10001 or 10.0.0.1:6379."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if address == RUNNING or not port.isdigit():
        return
    if host in LOOPBACK and "://" not in address:  # Ray then goes by the address of this machine
        host = ray.util.get_node_ip_address()
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _refused(address, error) from error


def _refused(address: str | None, error: BaseException) -> BadInput:
    why = " ".join(str(error).split())[:300]
    if address is None:
        return BadInput(f"`workers` need Ray, which does not start here ({type(error).__name__}: {why})")
    return BadInput(
        f"`ray` must be the address of a running cluster, got {address!r}: {why}; `ray status` on a node of it tells"
    )


def _check_gpus(ray: Any, gpus: float, *, here: bool) -> None:
    """Raise `BadInput` where this machine has too few GPUs; warn where no node of a cluster has as many now."""
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most >= gpus:
        return
    if here:
        raise BadInput(f"`gpus_per_worker` must be at most the GPUs of this machine, {most:g}, got {gpus:g}")
    warnings.warn(f"no node of the Ray cluster has {gpus:g} GPUs now: the run waits until one has", stacklevel=6)


def _check_threads(workers: int) -> None:
    """Warn where the workers would have more threads than the machine has processors."""
    threads, processors = torch.get_num_threads(), os.cpu_count() or 1
    if threads > 1 and workers * threads > processors:
        warnings.warn(
            f"{workers} workers with {threads} threads each share {processors} processors, and are slow: set "
            f"OMP_NUM_THREADS={max(processors // workers, 1)} before the start. A run keeps the number of threads that "
            "it was begun with only by that; another number may round differently",
            stacklevel=6,
        )
