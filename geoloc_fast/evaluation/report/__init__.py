"""Pages that open with the network off: what came of an evaluation (`page`, which needs bokeh and is imported by
whoever writes it), and answers to photos (`located`)."""

from geoloc_fast.evaluation.report.located import write_located
from geoloc_fast.evaluation.report.pictures import ManifestPictures, PhotoPictures, Pictures

__all__ = ["ManifestPictures", "PhotoPictures", "Pictures", "write_located"]
