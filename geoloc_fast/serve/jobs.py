"""Batches of photos: start, progress, cancel. They are kept in memory until an hour after they end."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from geoloc_fast.errors import BusyError
from geoloc_fast.serve.engine import Engine, Question

__all__ = ["Job", "Jobs"]

KEPT_S = 3600.0
_AHEAD = 32  # photos of one job that wait at once, so that others get their turn


@dataclass
class Job:
    """A batch of photos that is located in the background, and how far it has come."""

    id: str
    names: list[str]
    answers: list[dict[str, Any] | None]
    began: float = field(default_factory=time.time)
    ended: float | None = None
    state: str = "running"  # "done", "cancelled", "failed"
    problem: str | None = None

    def said(self) -> dict[str, Any]:
        done = sum(answer is not None for answer in self.answers)
        return {
            "id": self.id, "state": self.state, "photos": len(self.names), "done": done, "problem": self.problem,
            "answers": self.answers,
        }  # fmt: skip


class Jobs:
    """Args:
    engine: that answers.
    say: what is said of an answer, of its question, and of a name.
    most: jobs at once; more are refused with `BusyError`.
    """

    def __init__(self, engine: Engine, say: Callable[[Any, Question, str], dict[str, Any]], *, most: int = 16) -> None:
        self._engine = engine
        self._say = say
        self._most = most
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, names: Sequence[str], questions: Sequence[Question]) -> Job:
        with self._lock:
            for old in [job.id for job in self._jobs.values() if job.ended and time.time() - job.ended > KEPT_S]:
                del self._jobs[old]
            if sum(job.ended is None for job in self._jobs.values()) >= self._most:
                raise BusyError(f"{self._most} batches run already; try again later")
            job = Job(uuid.uuid4().hex, list(names), [None] * len(names))
            self._jobs[job.id] = job
        threading.Thread(target=self._run, args=(job, list(questions)), daemon=True, name="job").start()
        return job

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def remove(self, job_id: str) -> bool:
        """Cancels it if it runs, and forgets it with its answers."""
        with self._lock:
            job = self._jobs.pop(job_id, None)
        if job is None:
            return False
        if job.ended is None:
            job.state = "cancelled"
        return True

    def _run(self, job: Job, questions: list[Question]) -> None:
        waiting: list[tuple[int, Question, Future[Any]]] = []
        todo = list(enumerate(questions))[::-1]
        questions.clear()  # a photo is forgotten as it is answered
        try:
            while (todo or waiting) and job.state == "running":
                while todo and len(waiting) < _AHEAD:
                    try:
                        waiting.append((*todo[-1], self._engine.ask(todo[-1][1])))
                        todo.pop()
                    except BusyError:
                        break
                if not waiting:
                    time.sleep(0.05)
                    continue
                number, question, answer = waiting.pop(0)
                job.answers[number] = self._say(answer.result(), question, job.names[number])
            if job.state == "running":
                job.state = "done"
        except CancelledError:
            job.state = "cancelled"
        except Exception as error:
            job.state, job.problem = "failed", str(error)
        finally:
            for _, _, answer in waiting:
                answer.cancel()
            job.ended = time.time()
