#!/bin/sh
# Ask certmill for a certificate with curl: issue.sh PROFILE REQUEST.csr CERTIFICATE.pem
#
# CERTMILL_CLIENT_URL, _CERTIFICATE, _KEY and _CA say where and as whom. Exit code 0: here it is; 1: refused, the
# problem stands on standard error; 75: try later, with the same command.
set -eu
usage="usage: issue.sh PROFILE REQUEST.csr CERTIFICATE.pem"
profile=${1:?$usage} csr=${2:?$usage} out=${3:?$usage}

# One key for one certificate. It is kept until the certificate is here, so that whoever runs this again after
# whatever happened gets the same certificate, never a second one.
key=$out.idempotency-key
[ -s "$key" ] || cat /proc/sys/kernel/random/uuid >"$key"

for attempt in 1 2 3 4 5 6; do
  answer=$(curl -sS --max-time 40 \
    --cert "$CERTMILL_CLIENT_CERTIFICATE" --key "$CERTMILL_CLIENT_KEY" --cacert "$CERTMILL_CLIENT_CA" \
    -H 'Content-Type: application/pkcs10' -H "Idempotency-Key: $(cat "$key")" --data-binary "@$csr" \
    -o "$out.part" -w '%{http_code} %header{retry-after}' \
    "$CERTMILL_CLIENT_URL/v1/certificates?profile=$profile") || answer='000 '
  case ${answer%% *} in
    201) mv "$out.part" "$out"; rm "$key"; exit 0 ;;
    000 | 429 | 502 | 503 | 504) pause=${answer#* }; sleep "${pause:-$attempt}" ;; # as long as certmill asks for
    *) cat "$out.part" >&2; rm -f "$out.part"; exit 1 ;;
  esac
done
exit 75
