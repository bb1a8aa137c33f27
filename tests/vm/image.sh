#!/usr/bin/env bash
# Makes a virtual machine's disk with Debian 13: its own kernel, systemd, udev, DKMS, a compiler,
# Docker, and the virtual card's module, so that tests need no network.
set -eu

SUITE=trixie
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
DISK_MIB=4096
PACKAGES="systemd-sysv udev dbus kmod procps passwd initramfs-tools zstd
linux-image-amd64 linux-headers-amd64 dkms openssl patch make gcc
docker.io docker-cli docker-compose iptables busybox-static"

# Never used here, and half of the kernel's modules.
UNUSED="gpu media infiniband net/wireless net/ethernet"

usage() {
    cat <<END
Usage: tests/vm/image.sh FOLDER

Writes root.img, vmlinuz and initrd.img into FOLDER, with mmdebstrap and mke2fs, as root. What is
there already, made by this same script, is kept.
END
}

main() {
    case ${1:---help} in
    --help | -h) usage && exit ;;
    -*) die "no such option: $1; see --help" ;;
    esac
    local folder=$1 script
    script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
    here=${script%/*}
    recipe=$(cat "$script" "$here/agent.sh" "$here"/card/* | sha256sum | cut -d' ' -f1)
    [ "$(cat "$folder/recipe" 2>/dev/null)" != "$recipe" ] || return 0
    [ "$(id -u)" -eq 0 ] || die "only root can make it: sudo $0 $folder"
    for program in mmdebstrap mke2fs; do
        command -v "$program" >/dev/null || die "$program is missing: apt-get install mmdebstrap e2fsprogs"
    done
    make_image "$folder"
}

make_image() {
    local folder=$1
    mkdir -p "$folder"
    rm -f "$folder/recipe"
    work=$(mktemp --directory --tmpdir="$folder")
    chmod 755 "$work"
    trap 'rm -rf "$work"' EXIT
    say "Debian $SUITE with its kernel, DKMS and Docker; some minutes"
    essential >"$work/essential"
    hook >"$work/hook"
    chmod +x "$work/essential" "$work/hook"
    exclusions >"$work/dpkg"
    # shellcheck disable=SC2086 # a list
    mmdebstrap --variant=minbase --quiet --keyring="$KEYRING" --include="$(echo $PACKAGES | tr ' ' ,)" \
        --dpkgopt="$work/dpkg" --aptopt='Acquire::Languages "none"' \
        --essential-hook="$work/essential" \
        --customize-hook="$work/hook" "$SUITE" "$work/root"
    cp "$work"/root/boot/vmlinuz-* "$folder/vmlinuz"
    cp "$work"/root/boot/initrd.img-* "$folder/initrd.img"
    rm -f "$folder/root.img"
    mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$work/root" "$folder/root.img" "${DISK_MIB}M"
    echo "$recipe" >"$folder/recipe"
    say "$folder/root.img: $(du --block-size=1M "$folder/root.img" | cut -f1) MiB, Linux $(ls "$work/root/lib/modules")"
}

exclusions() {
    local name
    printf '%s\n' force-unsafe-io 'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/man/*' 'path-exclude=/usr/share/locale/*'
    for name in $UNUSED; do echo "path-exclude=/usr/lib/modules/*/kernel/drivers/$name/*"; done
    echo 'path-exclude=/usr/lib/modules/*/kernel/sound/*'
}

# Before there is a kernel: its first RAM disk gets what this machine needs, and no more.
essential() {
    cat <<END
#!/bin/sh
mkdir -p "\$1/etc/initramfs-tools/conf.d"
echo MODULES=list >"\$1/etc/initramfs-tools/conf.d/reef"
END
}

# What is done in the new system; $1 is its root. Docker is started by whoever needs it.
hook() {
    cat <<END
#!/bin/sh
set -eu
install -m 755 "$here/agent.sh" "\$1/usr/local/sbin/reef-test-agent"
cat >"\$1/etc/systemd/system/reef-test-agent.service" <<UNIT
[Service]
ExecStart=/usr/local/sbin/reef-test-agent
Restart=always
[Install]
WantedBy=multi-user.target
UNIT
printf 'virtio_blk\nvirtio_pci\next4\n' >>"\$1/etc/initramfs-tools/modules"
chroot "\$1" update-initramfs -u
kernel=\$(ls "\$1/lib/modules")
cp -r "$here/card" "\$1/tmp/card"
chroot "\$1" make --silent -C "/lib/modules/\$kernel/build" M=/tmp/card modules
install -D -m 644 "\$1/tmp/card/virtual_card.ko" "\$1/lib/modules/\$kernel/extra/virtual_card.ko"
chroot "\$1" depmod "\$kernel"
rm -r "\$1/tmp/card"
chroot "\$1" systemctl enable --quiet reef-test-agent.service
chroot "\$1" systemctl disable --quiet docker.service docker.socket containerd.service
chroot "\$1" systemctl mask --quiet apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
echo reef-test >"\$1/etc/hostname"
echo '127.0.0.1 localhost reef-test' >"\$1/etc/hosts"
echo '/dev/vda / ext4 rw 0 0' >"\$1/etc/fstab"
mkdir -p "\$1/etc/docker"
echo '{"features": {"cdi": true}, "bridge": "none", "iptables": false, "ip6tables": false}' >"\$1/etc/docker/daemon.json"
rm -rf "\$1"/var/lib/apt/lists/* "\$1"/var/cache/apt/*
END
}

say() { printf 'vm image: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

main "$@"
