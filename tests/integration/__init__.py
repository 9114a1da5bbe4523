"""Real tokens, databases, sockets and clients."""
