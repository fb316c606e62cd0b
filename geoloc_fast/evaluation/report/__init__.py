"""`report.html`: what came of an evaluation, on one self-contained page that opens with the network off."""

from geoloc_fast.evaluation.report.page import write_report
from geoloc_fast.evaluation.report.pictures import CityPictures, ManifestPictures, Pictures

__all__ = ["CityPictures", "ManifestPictures", "Pictures", "write_report"]
