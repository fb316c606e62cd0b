"""Photos in, answers out, from any number of threads: what waits together is encoded together.

A few workers take what waits. Each takes the oldest question and all others that ask the same of the same index, up to
`BATCH`: they are decoded, encoded and searched in one go. Answers are those that each would get alone, to rounding.
New commits of an index are picked up between two questions; a question that is being answered keeps its snapshot.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch

from geoloc_fast.errors import BusyError, GeolocError, ImageError
from geoloc_fast.geo.regions import Region
from geoloc_fast.images.decode import decode_image, read_header
from geoloc_fast.images.exif import parse_exif
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.locator import Answer, Locator, usable_fov
from geoloc_fast.models.contract import Model, Photo, Text

__all__ = ["BATCH", "Engine", "Question", "Served"]

BATCH = 16
REFRESH_S = 2.0


@dataclass(frozen=True)
class Served:
    """An index with the model it was built with."""

    index: PlaceIndex
    model: Model
    confidence: Confidence | None = None


@dataclass(frozen=True)
class Question:
    """A photo or a description, and what is asked of it.

    Attributes:
        photo: contents of the file; None: the question is a text.
        index: name of the index.
        text: a description of the place.
        fov_deg: horizontal field of view; None: what the file says, else what the model assumes.
        roll_deg: the photo is turned by so much clockwise first, to be upright.
        within: this region only.
        candidates: at most so many.
        least_probability: below it the answer is "unknown"; None: what the model's confidence says.
    """

    photo: bytes | None
    index: str
    text: str | None = None
    fov_deg: float | None = None
    roll_deg: float = 0.0
    within: Region | None = None
    candidates: int = 5
    least_probability: float | None = None

    @property
    def alike(self) -> tuple[Any, ...]:
        """What questions that are answered together share."""
        return self.index, self.text is None, self.within, self.candidates, self.least_probability


@dataclass
class _Waiting:
    question: Question
    answer: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Engine:
    """Answers questions. `close` it, or use it in a `with`.

    Args:
        served: indexes by the name they are asked for by.
        workers: threads that answer; each computes on one thread of its own.
        queue: questions that may wait; more are refused with `BusyError`.
    """

    def __init__(self, served: Mapping[str, Served], *, workers: int = 2, queue: int = 256) -> None:
        if not served:
            raise ValueError("served: expected at least one index, got none")
        self.served = dict(served)
        self.queue = queue
        self._waiting: deque[_Waiting] = deque()
        self._turn = threading.Condition()
        self._closed = threading.Event()
        self.batches: deque[int] = deque(maxlen=1000)
        """Sizes of the last batches."""
        threads = [threading.Thread(target=self._work, daemon=True, name=f"worker {n}") for n in range(workers)]
        threads.append(threading.Thread(target=self._refresh, daemon=True, name="refresh"))
        self._threads = threads
        for thread in threads:
            thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Answers what waits, then stops."""
        self._closed.set()
        with self._turn:
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._waiting)

    def ask(self, question: Question) -> Future[Answer]:
        """The answer, when it comes. Cancelling it before its turn spares the work."""
        if question.index not in self.served:
            known = ", ".join(self.served)
            raise ValueError(f"index: expected one of {known}, got {question.index!r}")
        if question.fov_deg is not None and not usable_fov(question.fov_deg):
            raise ValueError(f"fov_deg: expected 10 to 150 degrees, got {question.fov_deg}")
        if not 1 <= question.candidates <= 64:
            raise ValueError(f"candidates: expected 1 to 64, got {question.candidates}")
        if not abs(question.roll_deg) <= 180:
            raise ValueError(f"roll_deg: expected -180 to 180 degrees, got {question.roll_deg}")
        waiting = _Waiting(question)
        with self._turn:
            if self._closed.is_set():
                raise BusyError("the service is stopping")
            if len(self._waiting) >= self.queue:
                raise BusyError(f"{self.queue} photos wait already; try again in a moment")
            self._waiting.append(waiting)
            self._turn.notify()
        return waiting.answer

    def _take(self) -> list[_Waiting]:
        """The oldest question and those like it; none when it is time to stop."""
        with self._turn:
            while not self._waiting:
                if self._closed.is_set():
                    return []
                self._turn.wait()
            first = self._waiting.popleft()
            taken, left = [first], deque[_Waiting]()
            while self._waiting and len(taken) < BATCH:
                other = self._waiting.popleft()
                (taken if other.question.alike == first.question.alike else left).append(other)
            left.extend(self._waiting)
            self._waiting = left
            if left:
                self._turn.notify()
        return taken

    def _work(self) -> None:
        torch.set_num_threads(1)  # workers side by side are faster than threads inside each
        while taken := self._take():
            asked = [one for one in taken if one.answer.set_running_or_notify_cancel()]
            if not asked:
                continue
            self.batches.append(len(asked))
            try:
                answers = self._answers([one.question for one in asked])
            except BaseException as error:
                for one in asked:
                    one.answer.set_exception(error)
                continue
            for one, answer in zip(asked, answers, strict=True):
                one.answer.set_result(answer)

    def _answers(self, questions: Sequence[Question]) -> list[Answer]:
        first = questions[0]
        served = self.served[first.index]
        locator = Locator(
            served.index, served.model, confidence=served.confidence, within=first.within,
            least_probability=first.least_probability,
        )  # fmt: skip
        shown = [Text(one.text) if one.text is not None else _upright(one) for one in questions]
        return list(locator.locate(shown, candidates=first.candidates, batch=len(shown)))

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_S):
            for name, served in list(self.served.items()):
                try:
                    newer = copy.copy(served.index)  # whoever answers from the old snapshot keeps it to the end
                    if newer.refresh():
                        self.served[name] = replace(served, index=newer)
                except (GeolocError, OSError):
                    continue  # a writer is at it, or the disk fails: the snapshot that is open stays good


def _upright(question: Question) -> Photo:
    assert question.photo is not None
    if not question.roll_deg:
        return Photo(question.photo, question.fov_deg)
    try:
        header = read_header(question.photo, "photo")
        image = decode_image(question.photo, "photo", at_least=(1, 2048))
    except ImageError:
        return Photo(question.photo, question.fov_deg)  # the locator says what is wrong with it
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -question.roll_deg, 1.0)
    image = np.asarray(cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE))
    fov = question.fov_deg
    if fov is None:
        said = parse_exif(header.exif, (header.height, header.width)).fov_deg
        fov = said if said is not None and usable_fov(said) else None
    return Photo(image, fov)
