"""Memory: measurement, prediction, plans and caps."""
