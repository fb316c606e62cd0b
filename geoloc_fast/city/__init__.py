"""A synthetic city: satellite image, street panorama and crowd photo of the same places.

Everything is generated from a seed, so that the whole system can be trained, tested and shown without
any published data set. Results on it say nothing about real cities, and must be labelled synthetic.

Knows manifests and images, no model. Begin with `views`; `scene` is what is drawn, `write` makes folders of it.
"""

from geoloc_fast.city.render import CLASSES
from geoloc_fast.city.scene import City
from geoloc_fast.city.styles import STYLES
from geoloc_fast.city.views import CROWD, TIDY, Capture, CityViews, make_city

__all__ = ["CLASSES", "CROWD", "STYLES", "TIDY", "Capture", "City", "CityViews", "make_city"]
