"""One primitive: a signature over a TBS, from whichever HSM session is free."""
