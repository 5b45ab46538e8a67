#!/usr/bin/env bash
# Builds the tiny guest image from Debian packages, without root: build.sh OUT.qcow2
# What is inside and what it promises stands in README.md.
set -euo pipefail

readonly HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly FAT_MIB=32                 # boot partition; the kernel and the initramfs take about 18 MiB of it
readonly DISK_MIB=512               # virtual size; the part behind the boot partition becomes /data at first boot
readonly MAX_IMAGE_MIB=40
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000} LC_ALL=C TZ=UTC

# What the guest needs of the kernel's modules; their dependencies are found.
readonly MODULES=(virtio_pci virtio_blk virtio_net virtio-rng button evdev isofs nls_iso8859-1)
# What the SSH server needs, libraries included.
readonly SSH_PACKAGES=(dropbear-bin libc6 libcrypt1 libtomcrypt1 libtommath1 libgmp10 zlib1g)

die() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

need() { # command, package, why
  command -v "$1" >/dev/null || die "\`$1\` is missing ($3). Install it: apt-get install $2"
}

check_tools() {
  need apt-get apt "it fetches the guest's packages; this script needs Debian or a derivative"
  need dpkg-deb dpkg "it unpacks the packages"
  need cpio cpio "it packs the initramfs"
  need gzip gzip "it compresses the initramfs"
  need mformat mtools "it makes the FAT boot partition"
  need mcopy mtools "it fills the FAT boot partition"
  need syslinux "syslinux mtools" "it makes the disk bootable"
  need qemu-img qemu-utils "it writes the qcow2 file"
  [ -r "$MBR" ] || die "$MBR is missing (boot code of the disk). Install it: apt-get install syslinux-common"
}

# The kernel's real package: the meta package depends on the current version.
kernel_package() {
  local name
  name=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-[0-9]/ {print $2; exit}')
  [ -n "$name" ] || die "apt knows no package behind \`linux-image-cloud-amd64\` (the guest's kernel). Run: apt-get update"
  printf '%s\n' "$name"
}

fetch() { # package... ; into $TMP/debs, unpacked into $TMP/pkg
  local package
  mkdir -p "$TMP/debs" "$TMP/pkg"
  for package in "$@"; do
    # As root apt would like to drop to its own user, who cannot write here.
    (cd "$TMP/debs" && apt-get -q -q -o APT::Sandbox::User=root download "$package") >"$TMP/apt.log" 2>&1 ||
      die "cannot download the package \`$package\`: $(tail -n 1 "$TMP/apt.log"). Check the network and run: apt-get update"
  done
  for package in "$TMP"/debs/*.deb; do dpkg-deb -x "$package" "$TMP/pkg"; done
}

# Prints the wanted modules and what they depend on, in loading order.
modules_in_order() { # kernel version
  local base=$TMP/pkg/lib/modules/$1 wanted
  "$TMP/pkg/bin/busybox" depmod -b "$TMP/pkg" "$1" || die "cannot compute the kernel modules' dependencies"
  for wanted in "${MODULES[@]}"; do
    awk -v want="/$wanted.ko" '
      { split($1, self, ":"); deps[self[1]] = ""; for (i = NF; i > 1; i--) deps[self[1]] = deps[self[1]] " " $i }
      function visit(m,   part, n, i) { if (m in seen) return; seen[m] = 1
        n = split(deps[m], part, " "); for (i = 1; i <= n; i++) visit(part[i]); print m }
      END { for (m in deps) if (substr(m, length(m) - length(want) + 1) == want) { visit(m); found = 1 }
        exit !found }' "$base/modules.dep" ||
      die "the kernel package has no module \`$wanted\`; has it been built in? Check $base/modules.builtin"
  done | awk '!seen[$0]++'
}

make_root() { # kernel version
  local root=$TMP/root base=$TMP/pkg/lib/modules/$1 module library
  mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,data,root,lib/modules,lib64,usr/sbin,usr/lib/dropbear,etc/dropbear}
  cp -R "$HERE/rootfs/." "$root/"
  find "$root" -type f \( -name 'rc*' -o -name init -o -name '*.sh' -o -path '*/acpi/*' -o -name udhcpc \) -exec chmod 755 {} +
  cp "$TMP/pkg/bin/busybox" "$root/bin/busybox"
  local applet
  for applet in $("$TMP/pkg/bin/busybox" --list); do
    [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
  done
  while read -r module; do
    cp "$base/$module" "$root/lib/modules/"
    printf '%s\n' "${module##*/}"
  done < <(modules_in_order "$1") >"$root/lib/modules/order"
  [ -s "$root/lib/modules/order" ] || die "no kernel module was found"
  cp "$TMP/pkg/usr/sbin/dropbear" "$root/usr/sbin/"
  # Not in /lib: the static busybox would load pieces of this libc for its name lookups, and crash.
  for library in libc.so.6 libcrypt.so.1 libz.so.1 libtomcrypt.so.1 libtommath.so.1 libgmp.so.10; do
    cp -L "$(find "$TMP/pkg" -name "$library" | head -n 1)" "$root/usr/lib/dropbear/$library" || die "no \`$library\` in the packages"
  done
  cp -L "$(find "$TMP/pkg" -name ld-linux-x86-64.so.2 | head -n 1)" "$root/lib64/"
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  (cd "$root" && find . -print0 | sort -z | cpio --quiet --null --reproducible -o -H newc -R 0:0) | gzip -9n >"$TMP/initrd"
}

le32() { printf '%b' "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"; }

# MBR with boot code and one active FAT partition at 1 MiB; the guest adds the second one.
make_disk() {
  local disk=$TMP/disk.raw fat
  truncate -s "${DISK_MIB}M" "$disk"
  fat=$disk@@1M
  dd if="$MBR" of="$disk" bs=440 count=1 conv=notrunc status=none
  { printf '\x80\xfe\xff\xff\x0e\xfe\xff\xff'; le32 2048; le32 $((FAT_MIB * 2048)); } |
    dd of="$disk" bs=1 seek=446 conv=notrunc status=none
  printf '\x55\xaa' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none
  export MTOOLS_SKIP_CHECK=1
  mformat -i "$fat" -T $((FAT_MIB * 2048)) -h 255 -s 63 -H 2048 -N 48454152 -v TINY ::
  mcopy -i "$fat" -m "$TMP/kernel" ::/kernel
  mcopy -i "$fat" -m "$TMP/initrd" ::/initrd
  mcopy -i "$fat" "$HERE/syslinux.cfg" ::/syslinux.cfg
  syslinux --install --offset $((1024 * 1024)) "$disk" || die "syslinux could not make the disk bootable"
}

main() {
  [ $# -eq 1 ] || die "usage: build.sh OUT.qcow2"
  readonly OUT=$1 MBR=/usr/lib/SYSLINUX/mbr.bin
  check_tools
  TMP=$(mktemp -d "${TMPDIR:-/tmp}/hearth-tiny.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
  local package version size
  package=$(kernel_package)
  fetch "$package" busybox-static "${SSH_PACKAGES[@]}"
  version=${package#linux-image-}
  cp "$TMP/pkg/boot/vmlinuz-$version" "$TMP/kernel"
  make_root "$version"
  touch -d "@$SOURCE_DATE_EPOCH" "$TMP/kernel" "$TMP/initrd"
  make_disk
  mkdir -p "$(dirname "$OUT")"
  qemu-img convert -c -O qcow2 "$TMP/disk.raw" "$OUT.part"
  size=$(stat -c %s "$OUT.part")
  if [ "$size" -gt $((MAX_IMAGE_MIB * 1024 * 1024)) ]; then
    rm -f "$OUT.part"
    die "the image has $size bytes, more than $MAX_IMAGE_MIB MiB"
  fi
  mv "$OUT.part" "$OUT"
  printf '%s: kernel %s, initramfs %s bytes, image %s bytes\n' "$OUT" "$version" "$(stat -c %s "$TMP/initrd")" "$size"
}

main "$@"
