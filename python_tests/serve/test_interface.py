"""The service against its own description of itself: requests made of the schema, and what may come of them."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402
from served_town import FakePictures, Running, make_served  # noqa: E402

from geoloc_fast.serve.app import Service  # noqa: E402
from geoloc_fast.serve.cases import Cases  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def ask(operation: Any, mode: Any, there: dict[str, str], said: Counter[tuple[str, int]]) -> None:
    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def every(case: Any) -> None:
        for name in there.keys() & (case.path_parameters or {}).keys():  # else most lead to nothing
            case.path_parameters[name] = there[name]
        # What is refused may well fit the schema, which does not say that bytes have to be a photo. And in a form a
        # number is text like any other: what does not fit its schema fits on the way.
        form = case.media_type == "multipart/form-data"
        excluded = [positive_data_acceptance, *([negative_data_rejection] if form else [])]
        answer = case.call_and_validate(excluded_checks=excluded)
        said[operation.label, answer.status_code] += 1

    with suppress(Unsatisfiable):  # where nothing is asked, nothing can be asked wrongly
        every()


def test_every_answer_is_one_that_the_schema_names(tmp_path: Path) -> None:
    """No error of the service's own; no status, kind of content or body that is not described; nothing wrong taken."""
    served = make_served(tmp_path / "town.index", 60)
    running = Running(Service({"town": served}, cases=tmp_path / "cases", pictures={"town": FakePictures()}))
    cases = Cases(tmp_path / "cases")
    said: Counter[tuple[str, int]] = Counter()
    try:
        for found in schemathesis.openapi.from_url(f"{running.url}/v1/openapi.json").get_all_operations():
            operation, there = found.ok(), {"case_id": cases.create("there").id, "index": "town"}
            ask(operation, schemathesis.GenerationMode.NEGATIVE, {}, said)
            ask(operation, schemathesis.GenerationMode.POSITIVE, there, said)
    finally:
        running.close()
    assert len({label for label, _ in said}) >= 20
    assert {status for _, status in said} >= {200, 201, 204, 404, 422}
