"""Synthetic cities: satellite image, street panorama and crowd photo of the same places.

Everything is generated from a seed, so that the whole system can be trained, tested and shown without a published
data set. Results on synthetic cities say nothing about real cities, and must be labelled synthetic.

This room may use manifests and images, but no model. Begin with `views`, which makes places and their images. `scene`
lays out a city, `render` draws it, and `write` writes cities to folders.
"""

from geoloc_fast.city.render import CLASSES
from geoloc_fast.city.scene import City
from geoloc_fast.city.styles import STYLES
from geoloc_fast.city.views import CROWD, TIDY, Capture, CityViews, make_city

__all__ = ["CLASSES", "CROWD", "STYLES", "TIDY", "Capture", "City", "CityViews", "make_city"]
