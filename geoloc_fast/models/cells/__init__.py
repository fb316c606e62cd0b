"""The cell model: a code per cell of a continent, from learned prototypes and aerial images. Begin with `model`."""

from geoloc_fast.models.cells.calibrate import Calibration, fit_kappa
from geoloc_fast.models.cells.model import CellGeolocalizer, CellsConfig
from geoloc_fast.models.cells.prototypes import Prototypes
from geoloc_fast.models.cells.salad import Salad, transport

__all__ = ["Calibration", "CellGeolocalizer", "CellsConfig", "Prototypes", "Salad", "fit_kappa", "transport"]
