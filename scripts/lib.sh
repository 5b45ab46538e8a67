# Shared by ./hearth and ./test: the Rust toolchain and Debian packages.
# shellcheck shell=bash

require_cargo() {
  if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  if ! command -v cargo >/dev/null; then
    echo "error: cargo (the Rust toolchain) is not installed, so Hearth cannot be built." >&2
    echo "Install it with rustup (https://rustup.rs) and run this again." >&2
    exit 69
  fi
}

# missing_packages GROUP... : names of packages from scripts/packages that are not installed.
missing_packages() {
  local group name _ missing=()
  command -v dpkg-query >/dev/null || return 0
  while read -r group name _; do
    case " $* " in *" $group "*) ;; *) continue ;; esac
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" != installed ]; then
      missing+=("$name")
    fi
  done <scripts/packages
  echo "${missing[*]}"
}

can_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null; }
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# install_packages NAME... : installs without starting the services that packages bring along
# (Debian's etcd would take the store's port).
install_packages() {
  local policy=/usr/sbin/policy-rc.d made= status=0
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    made=1
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq || status=$?
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 || status=$?
  if [ -n "$made" ]; then as_root rm -f "$policy"; fi
  if [ "$status" != 0 ]; then
    echo "error: apt-get could not install: $*" >&2
    echo "Look at its messages above; when the package index is out of reach, check the network and run this again." >&2
    return "$status"
  fi
}

# The tiny image's kernel is fetched as a package: a machine without a package index needs one first.
need_package_index() {
  if command -v apt-cache >/dev/null && [ -z "$(apt-cache depends linux-image-cloud-amd64 2>/dev/null)" ] && can_install; then
    as_root apt-get update -qq || echo "the package index cannot be fetched; making the tiny image may fail" >&2
  fi
}
