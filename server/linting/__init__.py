"""pkilint on what is about to be signed: in processes of its own, for each certificate or once for each shape."""
