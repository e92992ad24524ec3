"""Models that leave this project and models that come from others."""
