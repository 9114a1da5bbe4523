"""HTTP: listeners, middleware and the only map from errors to answers."""
