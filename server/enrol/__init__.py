"""Enrolment protocols. They translate to and from the issuing service, and do nothing else."""
