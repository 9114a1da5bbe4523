"""Tests; nothing imports them."""
