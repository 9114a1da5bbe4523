"""CA keys and the hierarchy they form."""
