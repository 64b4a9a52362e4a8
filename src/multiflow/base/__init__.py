"""What everything else rests on: values, errors, registries, files, order statistics; no methods, no models."""
