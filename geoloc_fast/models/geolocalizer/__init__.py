"""The main paper's model: one strip per place, fused from its satellite image and street view. Begin with `model`."""
