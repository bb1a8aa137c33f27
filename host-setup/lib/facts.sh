# shellcheck shell=bash
# What this host is, read once. `root` is a tree that stands in for the host's.

GROUP=apex
INSTALL_DRIVER="sudo host-setup/host-setup.sh install --pcie"
FOLDER=$(cd "$HERE/.." && pwd)
STATE=/var/lib/reef-host-setup
APEX_RULES=/etc/udev/rules.d/99-reef-apex.rules
USB_RULES=/etc/udev/rules.d/99-reef-usb.rules
DEVICES_RULES=/etc/udev/rules.d/99-reef-devices.rules
UNITS=/etc/systemd/system
RUNTIME_FOLDER=/usr/local/lib

read_facts() {
    local line
    machine=$(uname -m)
    kernel=$(uname -r)
    os=$(os_release ID)
    os_version=$(os_release VERSION_ID)
    os_name=$(os_release PRETTY_NAME)
    board=$(content /proc/device-tree/model | tr -d '\0')
    virtual=$(systemd-detect-virt 2>/dev/null || true)
    modules=$root/lib/modules/$kernel
    cards=() sticks=()
    while read -r line; do
        case $line in
        PCIe*) cards+=("${line#PCIe }") ;;
        USB*) sticks+=("${line#USB }") ;;
        esac
    done < <("$FOLDER/scripts/devices.sh" list)
    docker_there=no
    ! command -v docker >/dev/null || docker_there=yes
}

os_release() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" "$root/etc/os-release" 2>/dev/null || true; }

has() { command -v "$1" >/dev/null; }

has_group() { grep --quiet "^$1:" "$root/etc/group" 2>/dev/null; }

# The content of a file, or nothing.
content() { cat "$root$1" 2>/dev/null || true; }

is_pi5() { [[ $board == "Raspberry Pi 5"* || $board == "Raspberry Pi Compute Module 5"* ]]; }

is_container() { case $virtual in lxc | lxc-libvirt | docker | podman | systemd-nspawn) ;; *) return 1 ;; esac }

# Yes, no, or nothing where there is no Secure Boot to be on. The variable's last byte tells.
secure_boot() {
    local file
    for file in "$root"/sys/firmware/efi/efivars/SecureBoot-*; do
        [ -r "$file" ] || continue
        case $(od --address-radix=n --format=u1 --skip-bytes=4 "$file" | tr -d ' ') in
        1) echo yes ;;
        *) echo no ;;
        esac
    done
}

# The package that has the running kernel's headers, and the one that keeps them up to date.
headers_package() {
    case $kernel in
    *-pve) echo "proxmox-headers-$kernel" ;;
    *) echo "linux-headers-$kernel" ;;
    esac
}

headers_followup() {
    case $kernel in
    *-pve) echo proxmox-default-headers ;;
    *) echo "linux-headers-$(flavour)" ;;
    esac
}

kernel_package() {
    case $kernel in
    *-pve) echo proxmox-default-kernel ;;
    *) echo "linux-image-$(flavour)" ;;
    esac
}

# Of the kernel, as its packages are called: amd64, cloud-amd64, generic, raspi, rpi-2712.
flavour() {
    case $kernel in
    *-cloud-*) echo "cloud-${kernel##*-}" ;;
    *-rpi-*) echo "rpi-${kernel##*-}" ;;
    *) echo "${kernel##*-}" ;;
    esac
}

has_headers() { [ -e "$modules/build/Makefile" ]; }

# How DKMS and the kernel see the driver: any of Google's, of the distribution's or ours.
driver_module() { find "$modules" -name 'apex.ko*' -path "*$1*" 2>/dev/null | head -n 1; }

dkms_versions() {
    local folder
    for folder in "$root"/var/lib/dkms/gasket/*/; do
        [ ! -d "$folder/source/." ] || basename "$folder"
    done
}

driver_loaded() { [ -d "$root/sys/module/apex" ]; }

apex_nodes() {
    local node
    for node in "$root"/dev/apex_*; do
        [ ! -c "$node" ] || echo "${node#"$root"}"
    done
}

stick_node() {
    printf '/dev/bus/usb/%03d/%03d' "$(content "/sys/bus/usb/devices/$1/busnum")" \
        "$(content "/sys/bus/usb/devices/$1/devnum")"
}

say() { printf 'host-setup: %s\n' "$*" >&2; }

# Before anything was changed: why, and what to do about it.
stop() {
    say "stopped before anything was changed: $1"
    [ $# -lt 2 ] || printf '  remedy: %s\n' "${@:2}" >&2
    exit "$STATUS_STOPPED"
}

# The last line: a file that was cut off lacks it.
facts_whole=yes
