"""The built-in profiles, and variations of them."""

from server.issuance.profile_files import built_in_files

BUILT_IN = {file.profile.name: file.profile for file in built_in_files()}
TLS_SERVER, TLS_CLIENT, OCSP_RESPONDER = BUILT_IN["tls-server"], BUILT_IN["tls-client"], BUILT_IN["ocsp-responder"]
OFFERED = tuple(profile for profile in BUILT_IN.values() if not profile.internal)
