"""Shared by tests and benchmarks: tolerances, input makers, poisoned outputs, forced backends.

This room may use the operators. Begin with `tolerance`.
"""

from geoloc_fast.ops.choose import force_backend, force_isa, observe_calls
from geoloc_fast.testing.inputs import arrow_image, available_isas, random_strips
from geoloc_fast.testing.poison import poisoned_outputs
from geoloc_fast.testing.tolerance import TOLERANCE, assert_close

__all__ = [
    "TOLERANCE",
    "arrow_image",
    "assert_close",
    "available_isas",
    "force_backend",
    "force_isa",
    "observe_calls",
    "poisoned_outputs",
    "random_strips",
]
