"""Small worlds that need no download: their data, and the factories of the bundled models."""
