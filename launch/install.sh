#!/usr/bin/env bash
# Makes a service of the checkout in /opt/qubic-lab on this host, as root: users, units, settings, and on the first host
# Redis and PostgreSQL. What is there already keeps its secrets. docs/three-vms.md says what comes before and after.
#
#   launch/install.sh first vm-1 10.0.0.10               # coordinator, collector, dashboard, Redis, PostgreSQL
#   launch/install.sh other vm-2 10.0.0.20 10.0.0.10     # a node of the coordinator at 10.0.0.10
#
# With several coordinators all of them are named, and those hosts get the coordinator's units, too:
#
#   launch/install.sh first vm-1 10.0.0.10 10.0.0.10,10.0.0.20   # PostgreSQL also for the coordinator at 10.0.0.20
#   launch/install.sh other vm-2 10.0.0.20 10.0.0.10,10.0.0.20
#
# With DESTDIR it only writes the files, below that folder.
set -euo pipefail
usage() { echo "usage: $0 first NAME ADDRESS [COORDINATORS] | other NAME ADDRESS COORDINATORS" >&2; exit 2; }
role=${1:-} name=${2:-} address=${3:-} coordinators=${4:-${3:-}}
case $role-$# in first-3 | first-4 | other-4) ;; *) usage ;; esac
first=${coordinators%%,*}
case ",$coordinators," in *",$address,"*) coordinates=yes ;; *) coordinates= ;; esac
case $role,$coordinators in first,*,*) shared=yes ;; *) shared= ;; esac
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
umask 022

secret() { od -An -tx1 -N32 /dev/urandom | tr -d ' \n'; }
run() { [ -n "$root" ] || "$@"; }  # what changes more than files
put() { install -D -m "$1" "$here/$2" "$root/$3"; }

# Writes a file of secrets once: mode 0600, read by systemd as root.
settings() {
  local file=$root/etc/qubic-lab/$1.env
  [ -e "$file" ] && return
  sed -e "s|@NAME@|$name|g; s|@ADDRESS@|$address|g; s|@FIRST@|$first|g; s|@HEALTH@|$health|g" \
    -e "s|@REDIS_PASSWORD@|$redis|g; s|@DATABASE_PASSWORD@|$database|g; s|@DATABASE@|${where//&/\\&}|g" \
    -e "s|@COORDINATORS@|${coordinators//,/:5001,}:5001|g" \
    -e "s|@RANK@|$((${name##*-} - 1))|g; s|@INTERFACE@|$interface|g" "$here/etc/qubic-lab/$1.env" |
    install -D -m 600 /dev/stdin "$file"
}

redis=$(secret) database=$(secret) health=
interface=$(ip -o -4 address show 2>/dev/null | awk -v a="$address" 'index($4, a "/") == 1 {print $2}')
units=(qubic-node.service qubic-pipeline.service)
if [ -n "$coordinates" ]; then
  units+=(qubic-orchestrator.service qubic-orchestrator.socket)
else
  health="--health-port 5000"  # where a coordinator is, it has that port
fi
[ "$role" = other ] || units+=(qubic-collector.service qubic-dashboard.service)
where=127.0.0.1:5432/qubic_lab  # of the database
if [ -n "$shared" ]; then
  tls=/etc/qubic-lab/tls
  where="$address:5432/qubic_lab?sslmode=verify-full&sslrootcert=$tls/authority.pem&sslcert=$tls/host.pem&sslkey=$tls/host.key"
fi

put 644 etc/sysusers.d/qubic-lab.conf etc/sysusers.d/qubic-lab.conf
put 644 etc/sysctl.d/60-qubic-lab.conf etc/sysctl.d/60-qubic-lab.conf
run systemd-sysusers
run sysctl --quiet --system
put 644 systemd/qubic-.service.d/common.conf etc/systemd/system/qubic-.service.d/common.conf
for unit in "${units[@]}"; do put 644 "systemd/$unit" "etc/systemd/system/$unit"; done
for each in host node pipeline; do settings "$each"; done
run install -d -m 750 -g qubic-tls /etc/qubic-lab/tls

if [ -n "$coordinates" ]; then
  install -d -m 755 "$root/etc/systemd/system/qubic-orchestrator.socket.d"
  printf '[Socket]\nListenStream=\nListenStream=%s:5000\n' "$address" |
    install -m 644 /dev/stdin "$root/etc/systemd/system/qubic-orchestrator.socket.d/address.conf"
  run install -d -m 700 -o qubic-lab /var/lib/qubic-lab /var/lib/qubic-lab/models
fi
if [ "$role" = first ]; then
  [ -e "$root/etc/qubic-lab/coordinator.env" ] && fresh= || fresh=yes
  for each in coordinator collector dashboard; do settings "$each"; done
  for each in redis-server.service.d postgresql@.service.d; do
    put 644 "systemd/$each/qubic-lab.conf" "etc/systemd/system/$each/qubic-lab.conf"
  done
  sed "s|ADDRESS|$address|" "$here/etc/redis/qubic-lab.conf" |
    install -D -m 644 /dev/stdin "$root/etc/redis/qubic-lab.conf"
  if [ -n "$fresh" ]; then  # Redis keeps the password's hash alone
    hash=$(printf %s "$redis" | sha256sum | cut -d' ' -f1)
    sed "s|@HASH@|$hash|" "$here/etc/redis/qubic-lab.acl" | install -m 640 /dev/stdin "$root/etc/redis/qubic-lab.acl"
    run chgrp redis /etc/redis/qubic-lab.acl
    run runuser -u postgres -- psql --quiet --set=ON_ERROR_STOP=1 <<SQL
CREATE ROLE qubic_lab LOGIN PASSWORD '$database';
CREATE DATABASE qubic_lab OWNER qubic_lab;
SQL
  fi
  put 644 "etc/postgresql/${shared:+shared-}qubic-lab.conf" etc/postgresql/qubic-lab.conf
  if [ -n "$shared" ]; then
    sed -i "s|@ADDRESS@|$address|" "$root/etc/postgresql/qubic-lab.conf"
    { cat "$here/etc/postgresql/qubic-lab.hba"
      for each in ${coordinators//,/ }; do
        echo "hostssl qubic_lab qubic_lab $each/32 scram-sha-256 clientcert=verify-ca"
      done; } | install -m 644 /dev/stdin "$root/etc/postgresql/qubic-lab.hba"
    run usermod --append --groups qubic-tls postgres  # reads the key of the host's certificate
  fi
  for folder in "$root"/etc/postgresql/*/main/conf.d; do
    [ ! -d "$folder" ] || ln -sf ../../../qubic-lab.conf "$folder/qubic-lab.conf"
  done
fi
run systemctl daemon-reload
