"""PKIX structures: bytes in, bytes out. No I/O, no asyncio, no clock of its own."""
