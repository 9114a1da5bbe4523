"""What certmill says about each certificate: signed, published, kept fresh, compared with the database."""
