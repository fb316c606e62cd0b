"""Pages that open offline: the report of an evaluation (`page`), and answers to photos (`located`).

Begin with `located`. `page` needs bokeh, and is imported only where it is written.
"""

from geoloc_fast.evaluation.report.located import write_located
from geoloc_fast.evaluation.report.pictures import ManifestPictures, PhotoPictures, Pictures

__all__ = ["ManifestPictures", "PhotoPictures", "Pictures", "write_located"]
