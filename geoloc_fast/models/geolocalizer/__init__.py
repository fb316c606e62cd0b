"""The model of the main paper: one strip a place, fused of its satellite image and street view. Begin with `model`."""
