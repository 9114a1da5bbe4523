"""What a client has used of its limits, and what it will need."""
