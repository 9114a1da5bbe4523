"""Sections of the settings that have more to them than numbers; `server/config.py` puts them together."""
