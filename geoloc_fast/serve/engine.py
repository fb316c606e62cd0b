"""Photos in, answers out, from any number of threads: what waits together is encoded together.

A few workers take what waits. Each takes the oldest question and all others that ask the same of the same index, up to
`BATCH`: they are decoded, encoded and searched in one go. Answers are those that each would get alone, to rounding.
Photos of many pixels, which a few bytes can claim to be, have a worker of their own and are answered one at a time: the
others do not wait for them, and memory is that of one.
New commits of an index are picked up between two questions; a question that is being answered keeps its snapshot.
"""

from __future__ import annotations

import copy
import threading
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
from geoloc_fast.locate.coarse_to_fine import CoarseAnswer, CoarseToFine
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.locator import Answer, Locator, usable_fov
from geoloc_fast.locate.together import Beside
from geoloc_fast.models.contract import Model, Photo, Text

__all__ = ["BATCH", "Engine", "Question", "Served"]

BATCH = 16
MANY_PIXELS = 16_000_000
REFRESH_S = 2.0


@dataclass(frozen=True)
class Served:
    """An index with the model it was built with.

    Attributes:
        beside: descriptions of the same places, for texts alone and beside photos.
        cells: it is an index of cells: those first, then the places of all other indexes within the best.
        sharpness: with `cells`: how places share a spot, as `CoarseToFine.fit` gives it; None: it was not fitted.
    """

    index: PlaceIndex
    model: Model
    confidence: Confidence | None = None
    beside: Beside | None = None
    cells: bool = False
    sharpness: float | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """What may be asked of it: "photo", "text", and "both" at once."""
        return (*self.model.query_input.takes, *(("text", "both") if self.beside else ()))


@dataclass(frozen=True)
class Question:
    """A photo, a description, or both, and what is asked of them.

    Attributes:
        photo: contents of the file; None: the question is a text.
        index: name of the index.
        text: a description of the place; beside a photo where the index takes both.
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
        beside = None if self.photo is None else self.text
        return self.index, self.photo is None, beside, self.within, self.candidates, self.least_probability


@dataclass(eq=False)
class _Waiting:
    question: Question
    answer: Future[Answer | CoarseAnswer] = field(default_factory=Future)


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
        self._large: deque[_Waiting] = deque()
        self._turn = threading.Condition()
        self._closed = threading.Event()
        self.batches: deque[int] = deque(maxlen=1000)
        """Sizes of the last batches."""
        threads = [threading.Thread(target=self._work, daemon=True, name=f"worker {n}") for n in range(workers)]
        threads.append(threading.Thread(target=self._work, args=(True,), daemon=True, name="large"))
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
        return len(self._waiting) + len(self._large)

    def ask(self, question: Question) -> Future[Answer | CoarseAnswer]:
        """The answer, when it comes. Cancelling it before its turn spares the work."""
        if question.index not in self.served:
            known = ", ".join(self.served)
            raise ValueError(f"index: expected one of {known}, got {question.index!r}")
        served = self.served[question.index]
        asked = "text" if question.photo is None else "photo" if question.text is None else "both"
        if asked not in served.takes:
            raise ValueError(f"index: {question.index} takes {' and '.join(served.takes)}, got {asked}")
        if question.fov_deg is not None and not usable_fov(question.fov_deg):
            raise ValueError(f"fov_deg: expected 10 to 150 degrees, got {question.fov_deg}")
        if not 1 <= question.candidates <= 64:
            raise ValueError(f"candidates: expected 1 to 64, got {question.candidates}")
        if not abs(question.roll_deg) <= 180:
            raise ValueError(f"roll_deg: expected -180 to 180 degrees, got {question.roll_deg}")
        waiting = _Waiting(question)
        lane = self._large if _pixels(question) > MANY_PIXELS else self._waiting
        with self._turn:
            if self._closed.is_set():
                raise BusyError("the service is stopping")
            if len(self) >= self.queue:
                raise BusyError(f"{self.queue} photos wait already; try again in a moment")
            lane.append(waiting)
            self._turn.notify_all()
        return waiting.answer

    def _take(self, large: bool) -> list[_Waiting]:
        """The oldest question and those like it; none when it is time to stop."""
        lane = self._large if large else self._waiting
        with self._turn:
            while not lane:
                if self._closed.is_set():
                    return []
                self._turn.wait()
            first = lane.popleft()
            alike = [one for one in lane if one.question.alike == first.question.alike]
            taken = [first, *alike[: 0 if large else BATCH - 1]]
            for one in taken[1:]:
                lane.remove(one)
        return taken

    def _work(self, large: bool = False) -> None:
        torch.set_num_threads(1)  # workers side by side are faster than threads inside each
        while taken := self._take(large):
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

    def _answers(self, questions: Sequence[Question]) -> Sequence[Answer | CoarseAnswer]:
        first = questions[0]
        served = self.served[first.index]
        shown = [Text(str(one.text)) if one.photo is None else _upright(one) for one in questions]
        if served.cells:
            return self._from_cells(served, first, shown)
        options: dict[str, Any] = {"within": first.within, "least_probability": first.least_probability}
        asked: dict[str, Any] = {"candidates": first.candidates, "batch": len(shown)}
        if first.photo is not None or served.beside is None:
            locator = Locator(served.index, served.model, confidence=served.confidence, beside=served.beside, **options)
            return list(locator.locate(shown, text=None if first.photo is None else first.text, **asked))
        words = served.beside
        found = list(Locator(words.index, words.model, **options).locate(shown, **asked))
        return [replace(one, candidates=tuple(map(words.in_photos, one.candidates))) for one in found]

    def _from_cells(self, served: Served, first: Question, shown: Sequence[Any]) -> list[CoarseAnswer]:
        if first.within is not None:
            raise ValueError(f"region: expected none with the cells of {first.index}")
        fine = [
            Locator(one.index, one.model, confidence=one.confidence)
            for one in self.served.values()
            if not one.cells and "photo" in one.takes
        ]
        finder = CoarseToFine(Locator(served.index, served.model), fine, sharpness=served.sharpness)
        return list(finder.locate(shown, candidates=first.candidates))

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_S):
            for name, served in list(self.served.items()):
                try:
                    newer = copy.copy(served.index)  # whoever answers from the old snapshot keeps it to the end
                    beside = served.beside
                    words = None if beside is None else copy.copy(beside.index)
                    changed = [one.refresh() for one in (newer, words) if isinstance(one, PlaceIndex)]
                    if not any(changed):
                        continue
                    if beside is not None and words is not None:
                        beside = Beside(words, beside.model, newer, ratio=beside.ratio)
                    self.served[name] = replace(served, index=newer, beside=beside)
                except (GeolocError, OSError):
                    continue  # a writer is at it, or the disk fails: the snapshot that is open stays good


def _pixels(question: Question) -> int:
    """What the photo claims to have, undecoded."""
    if question.photo is None:
        return 0
    try:
        header = read_header(question.photo, "photo")
    except ImageError:
        return 0  # the locator says what is wrong with it
    return header.height * header.width


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
