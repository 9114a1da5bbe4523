"""The database: the truth about every certificate."""
