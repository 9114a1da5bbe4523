"""Who is calling, and what they may ask for."""
