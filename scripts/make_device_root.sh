#!/usr/bin/env bash
# Makes the root folder of an emulated 64-bit ARM device for tests/devices/test_arm_device.py: Debian's adbd and sshd for
# arm64, and a static busybox for all else. 52 MB; this host's packages and their state stay as they are.
#   scripts/make_device_root.sh [FOLDER]     default: device-arm64 in edgeslim's cache folder
set -euo pipefail
root=$(realpath -m "${1:-${XDG_CACHE_HOME:-$HOME/.cache}/edgeslim/device-arm64}")
[ -e "$root/ready" ] && { echo "$root"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/etc/{apt.conf.d,preferences.d} "$work"/lib/lists/partial "$work"/archives/partial "$work/root"
: >"$work/status"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 2>/dev/null | sort -u | grep -v security | head -n 1 || true)
[ -n "$mirror" ] || { echo "this host's apt has no source of Debian bookworm, where the packages are from" >&2; exit 1; }
for suite in bookworm bookworm-backports; do
  echo "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror%/} $suite main"
done >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::Etc "$work/etc"; Dir::Etc::sourcelist "$work/sources.list"; Dir::Etc::sourceparts "-";
Dir::Etc::parts "$work/etc/apt.conf.d"; Dir::State "$work/lib"; Dir::State::status "$work/status";
Dir::Cache::archives "$work/archives"; Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Sandbox::User "root";
END
export APT_CONFIG=$work/apt.conf
apt-get update -qq
cd "$work/archives"
apt-get download -qq -t bookworm-backports adbd android-libbase android-libboringssl android-libcutils android-liblog
apt-get download -qq busybox-static libbrotli1 libc6 libgcc-s1 liblz4-1 libprotobuf32 libstdc++6 libsystemd0 libzstd1 \
  zlib1g liblzma5 libgcrypt20 libgpg-error0 libcap2 openssh-server libcrypt1 libssl3 libpam0g libaudit1 libcap-ng0 \
  libselinux1 libpcre2-8-0 libwrap0 libnsl2 libtirpc3 libkrb5-3 libgssapi-krb5-2 libcom-err2 libkeyutils1 libk5crypto3 \
  libkrb5support0
for package in *.deb; do dpkg -x "$package" "$work/root"; done
cd "$work/root"
mkdir -p data dev proc root run sys tmp
for name in '[' cat chmod cp cut date df echo env false grep head id kill ls mkdir mv ps rm rmdir sed sh sleep stat tail test \
  touch tr true uname wc; do ln -sf busybox "bin/$name"; done
printf 'root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n' >etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
printf 'root:*:19000:0:99999:7:::\n' >etc/shadow
touch ready
mkdir -p "$(dirname "$root")"
rm -rf "$root"
cp -a "$work/root" "$root.new"
mv "$root.new" "$root"
echo "$root"
