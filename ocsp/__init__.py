"""The OCSP responder: keyless workers that serve pre-signed responses."""
