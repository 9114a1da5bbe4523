"""What a release is accepted by."""
