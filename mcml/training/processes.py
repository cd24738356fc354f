"""The processes of a training run: one alone or many by torchrun, and the signals that end them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def make_fabric(precision: str = "32") -> Any:
    """Return a launched Fabric: every process that torchrun started, else this one alone."""
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError:  # the `lightning` package carries it under its own name
        from lightning.fabric import Fabric

    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list instead of dying; nothing in other threads."""
    caught: list[int] = []
    try:
        old = {
            s: signal.signal(s, lambda number, _: caught.append(number))
            for s in (signal.SIGTERM, signal.SIGINT)
        }
    except ValueError:  # not the main thread
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
