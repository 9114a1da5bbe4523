"""From a checked request to a durable certificate."""
