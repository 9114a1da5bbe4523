"""Steps 2 and 3 of issuing: from what was asked to the bytes that will be signed; bulk work in other processes."""
