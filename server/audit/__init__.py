"""The audit log: written in the transaction of the act, or the act does not happen."""
