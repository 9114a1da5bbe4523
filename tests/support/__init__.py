"""What several tests share: a software CA, CSRs, a running certmill."""
