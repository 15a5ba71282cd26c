"""Runs GPU work in a child process: where it crashes or hangs, another one goes on behind it."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

START_SECONDS = 120.0  # importing torch and starting the GPU
At = tuple[int, int]  # item, part of it; part -1 is its preparation


class Reporter:
    """What a child tells its parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begun(self, item: int, part: int) -> None:
        """Says what is in hand: what the parent takes to have failed if this is the last that it hears."""
        self._connection.send(("begun", (item, part)))

    def result(self, **found: Any) -> None:
        """Hands over the result of what is in hand."""
        self._connection.send(("result", found))

    def finished(self) -> None:
        """Says that nothing is left."""
        self._connection.send(("finished", None))


def supervised(
    target: Callable[..., None], arguments: tuple[Any, ...], deadline: float, silence: float
) -> Iterator[tuple[At, dict[str, Any]]]:
    """Goes through work in child processes.

    Args:
        target: Called as ``target(connection, start, *arguments)`` in a child; does what comes from ``start``
            (an item and a part) on, reports through a :class:`Reporter`.
        arguments: Its other arguments.
        deadline: On the clock of ``time.time``; a child that is at work a ``silence`` later is ended.
        silence: Seconds without a word after which a child counts as hanging.

    Yields:
        Item and part, and what was found; ``{"status": "failed: ..."}`` for what ended its process.

    Raises:
        RuntimeError: A child ended before it began with anything.
    """
    context = multiprocessing.get_context("spawn")
    start: At = (0, -1)
    while True:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(sender, start, *arguments), daemon=True)
        process.start()
        sender.close()
        at: At | None = None
        in_hand, why = False, ""
        try:
            while True:
                patience = silence if at is not None else START_SECONDS + silence
                if not receiver.poll(min(patience, max(1.0, deadline + silence - time.time()))):
                    why = f"no answer within {patience:.0f} s"
                    break
                try:
                    kind, found = receiver.recv()
                except (EOFError, OSError):
                    break
                if kind == "finished":
                    return
                if kind == "begun":
                    at, in_hand = found, True
                elif at is not None:
                    in_hand = False
                    yield at, found
        finally:
            _end(process, patient=not why)
            receiver.close()
        if at is None:
            raise RuntimeError(f"the process that measures ended before it began: {why or _exit(process.exitcode)}")
        if in_hand:
            yield at, {"status": f"failed: {why or _exit(process.exitcode)}"}
        start = (at[0] + 1, -1) if at[1] < 0 else (at[0], at[1] + 1)
        if time.time() > deadline:
            return


def broken(device: torch.device) -> str | None:
    """Says why the device no longer works, if so: an illegal access spoils all that the process does after it."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        return " ".join(str(error).split())[:200]
    return None


def leave() -> None:
    """Ends a process whose device is broken, without the clean-up that would fail."""
    os._exit(3)


def _exit(code: int | None) -> str:
    return f"the process ended with exit code {code}"


def _end(process: Any, patient: bool) -> None:
    """Waits for a child that is through, ends one that is not."""
    if patient:
        process.join(5.0)
    if process.is_alive():
        process.terminate()
        process.join(5.0)
    if process.is_alive():
        process.kill()
        process.join(5.0)
