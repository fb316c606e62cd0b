"""Workers that are actors of Ray, on the machines of a static cluster. The only module that imports it.

A cluster is joined through the machine this runs on, which belongs to it, and not through Ray's proxy for clients from
outside. Calls are never tried again by Ray: that would hide a loss, and the deadline is the caller's.
"""

from __future__ import annotations

import logging
import os
import socket
from concurrent.futures import Future
from typing import Any

from geoloc_fast.cluster.executor import Host
from geoloc_fast.errors import ClusterError, WorkerLostError

__all__ = ["LABEL", "RayExecutor", "imported", "joined", "knock"]

LABEL = "geoloc-fast"  # of machines: `cluster start --label west` gives geoloc-fast=west
_KNOCK_S = 3.0


def imported() -> Any:
    """The module; ClusterError if it is not installed."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a call after the end starts a cluster of its own
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"Ray is not installed ({error}); pip install 'geoloc_fast[cluster]' brings it") from error
    return ray


def joined(host: str, port: int) -> Any:
    """The module, in the cluster of this head. ClusterError in one line if that cannot be."""
    ray, address = imported(), f"{host}:{port}"
    if ray.is_initialized():
        if ray.get_runtime_context().gcs_address != address:
            raise ClusterError(f"ray://{address}: this program is in the cluster of another head already")
        return ray
    knock(host, port)
    try:
        ray.init(address, namespace="geoloc_fast", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises what comes up
        text = " ".join(str(error).split())
        raise ClusterError(
            f"ray://{address}: cannot be joined ({type(error).__name__}: {text:.200}); this machine must belong to the "
            "cluster (`geoloc-fast cluster start --join`) and have its token (~/.ray/auth_token)"
        ) from error
    return ray


def knock(host: str, port: int) -> None:
    """ClusterError if nothing answers: Ray itself would try for half a minute."""
    try:
        socket.create_connection((host, port), _KNOCK_S).close()
    except OSError as error:
        raise ClusterError(
            f"ray://{host}:{port}: nothing answers there ({error}); start a head with `geoloc-fast cluster start`"
        ) from error


class RayWorker:
    """An actor, which Ray starts again when it is lost."""

    def __init__(self, ray: Any, name: str, actor: Any) -> None:
        self.name = name
        self._ray, self.actor = ray, actor

    def call(self, method: str, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        lost = (self._ray.exceptions.RayActorError, self._ray.exceptions.ActorUnavailableError)
        if not self._ray.is_initialized():
            future.set_exception(WorkerLostError(f"{self.name}: this program has left the cluster"))
            return future

        def done(answered: Future[Any]) -> None:
            error = answered.exception()
            if error is None:
                future.set_result(answered.result())
            elif isinstance(error, lost):
                text = " ".join(str(error).split())
                future.set_exception(WorkerLostError(f"{self.name}: {text:.160}"))
            else:
                cause = getattr(error, "cause", None)
                future.set_exception(cause if isinstance(cause, Exception) else error)

        try:
            asked = self.actor.call.remote(method, args).future()
            future.asked = asked  # type: ignore[attr-defined]  # Ray forgets an answer that nobody holds
            asked.add_done_callback(done)
        except lost as error:
            future.set_exception(WorkerLostError(f"{self.name}: {error}"))
        return future

    def stop(self) -> None:
        self._ray.kill(self.actor, no_restart=True)


class RayExecutor:
    """Actors of the cluster that this machine belongs to."""

    def __init__(self, host: str, port: int) -> None:
        self._mine = not imported().is_initialized()
        self._ray = joined(host, port)
        self._started: list[RayWorker] = []

    @property
    def workers(self) -> int:
        """A worker for every GPU, or where there is none for every CPU."""
        there = self._ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) or there.get("CPU", 1)))

    def start(
        self, name: str, make: str, *args: Any, threads: int = 1, cpus: float = 0, gpus: float = 0,
        label: str | None = None,
    ) -> RayWorker:  # fmt: skip
        options: dict[str, Any] = {"label_selector": {LABEL: label}} if label else {"scheduling_strategy": "SPREAD"}
        actor = (
            self._ray.remote(Host)
            .options(name=name, max_restarts=-1, max_task_retries=0, num_cpus=cpus, num_gpus=gpus, **options)
            .remote(make, args, threads)
        )
        worker = RayWorker(self._ray, name, actor)
        self._started.append(worker)
        return worker

    def close(self) -> None:
        """Its actors end, and this program leaves the cluster if it joined it here."""
        while self._started:
            self._started.pop().stop()
        if self._mine:
            self._ray.shutdown()
