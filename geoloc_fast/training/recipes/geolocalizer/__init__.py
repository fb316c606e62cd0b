"""The geolocalizer: photos and places become strips that are matched over azimuth. Begin with `recipe`."""

from geoloc_fast.training.recipes.geolocalizer.recipe import GeolocalizerRecipe, evaluate_model, make_recipe
from geoloc_fast.training.recipes.geolocalizer.settings import Settings, read_settings

__all__ = ["GeolocalizerRecipe", "Settings", "evaluate_model", "make_recipe", "read_settings"]
