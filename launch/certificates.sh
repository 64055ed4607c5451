#!/usr/bin/env bash
# Certificates for mutual TLS: an authority, and for each host one that serves and connects. Needs openssl 1.1.1 or newer.
#
#   launch/certificates.sh ~/qubic-lab-tls 365 10.0.0.2 vm-2 laptop
#
# A later call with the same folder keeps the authority and adds hosts, or renews theirs. Each host gets authority.pem and
# its own pair, never authority.key: whoever has that can make certificates that every host believes.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 FOLDER DAYS HOST_NAME_OR_ADDRESS …" >&2; exit 2; }
folder=$1 days=$2
shift 2

umask 077 # keys are for their owner alone, from their first byte
mkdir -p "$folder"
cd "$folder"
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

if [ ! -e authority.pem ]; then
  # A configuration of our own: what the system's would add differs between distributions.
  openssl req -x509 "${new_key[@]}" -keyout authority.key -out authority.pem -days "$days" -config - <<'END'
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = Qubic Lab authority
[extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
END
fi

for host in "$@"; do
  kind=DNS
  [[ $host =~ ^[0-9.]+$ || $host == *:* ]] && kind=IP
  openssl req -new "${new_key[@]}" -keyout "$host.key" -subj "/CN=Qubic Lab host" -out "$host.request"
  openssl x509 -req -in "$host.request" -CA authority.pem -CAkey authority.key -days "$days" -out "$host.pem" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile - <<END
subjectAltName = $kind:$host
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
authorityKeyIdentifier = keyid
subjectKeyIdentifier = hash
END
  rm "$host.request"
done
