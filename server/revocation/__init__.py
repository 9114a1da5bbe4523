"""From a revocation request to a revoked answer everywhere."""
