# shellcheck shell=bash
# The named checks. Each says ok, warn, bad or -- (does not apply), and why, and how to mend it.

CHECKS="architecture distribution headers secure_boot pci_device usb_device usb_speed driver_present
driver_built driver_loaded node permissions aspm sleep holder docker compose rootless privileged pi5
space"

# Docker needs it for the image, its base, and the builder's layers.
IMAGE_MIB=3000
MBITS_PER_S_OF_USB3=5000
# What TensorFlow Lite needs, as /proc/cpuinfo calls it: the instructions of x86-64-v2.
X86_64_V2="cx16 popcnt sse4_1 sse4_2 ssse3"
# Older ones answer the system call clone3 with "not permitted", and today's C library then starts
# no thread; but for runc 1.0.0-rc93 and newer, which some distributions gave them.
DOCKER_WITH_THREADS=20.10.10

run_checks() {
    local name
    bad=0
    for name in $CHECKS; do
        "check_$name"
    done
}

# For install: stops where a check is bad.
check_quietly() {
    local said
    bad=0
    said=$("check_$1" 2>&1)
    [[ $said != bad* ]] || stop "${said#bad *  }"
}

tell() {
    local verdict=$1 name=$2 reason=$3
    shift 3
    printf '%-4s  %-14s  %s\n' "$verdict" "${name//_/ }" "$reason"
    while [ $# -gt 0 ]; do
        printf '%22s  remedy: %s\n' '' "$1"
        shift
    done
    [ "$verdict" != bad ] || bad=$((bad + 1))
}

ok() { tell ok "$@"; }
warn() { tell warn "$@"; }
bad() { tell bad "$@"; }
skip() { tell -- "$@"; }

check_architecture() {
    local flag
    case $machine in
    aarch64) ok architecture "arm64" ;;
    x86_64)
        for flag in $X86_64_V2; do
            grep --quiet --word-regexp "$flag" "$root/proc/cpuinfo" || {
                bad architecture "x86-64 without $flag: TensorFlow Lite needs x86-64-v2" \
                    "in a virtual machine, choose the CPU type 'host' or 'x86-64-v2', not kvm64 or qemu64"
                return
            }
        done
        ok architecture "x86-64-v2 or better"
        ;;
    *) bad architecture "$machine: Reef runs on x86-64 and arm64" "use a 64-bit system" ;;
    esac
}

check_distribution() {
    case $os:$os_version in
    debian:12 | debian:13 | ubuntu:22.04 | ubuntu:24.04) ok distribution "${os_name:-$os $os_version}" ;;
    raspbian:*) bad distribution "32-bit Raspberry Pi OS" "install the 64-bit Raspberry Pi OS" ;;
    *)
        if has apt-get; then
            warn distribution "${os_name:-unknown}: it has apt, but was not tried"
        else
            bad distribution "${os_name:-unknown}: it has no apt" \
                "install by hand what docs/host-setup.md lists for it"
        fi
        ;;
    esac
}

check_headers() {
    [ "$pcie" = yes ] || { skip headers "$kernel; needed for M.2 and PCIe only" && return; }
    ! is_container || { skip headers "the driver is the host's, not this container's" && return; }
    if has_headers; then
        ok headers "of $kernel"
    elif [ -n "$(driver_module '')" ]; then
        warn headers "of $kernel are missing: DKMS can't build the driver again" "sudo apt-get install $(headers_package)"
    else
        bad headers "of $kernel are missing" "sudo apt-get install $(headers_package)" \
            "if there is no such package: sudo apt-get install $(kernel_package) $(headers_followup), and start the computer again"
    fi
}

check_secure_boot() {
    case $(secure_boot) in
    yes)
        if [ "$pcie" = no ]; then
            ok secure_boot "on; USB needs no driver"
        elif key_is_enrolled; then
            ok secure_boot "on, and DKMS' key is enrolled"
        elif [ -z "$(driver_module dkms)" ] && [ -n "$(driver_module '')" ]; then
            ok secure_boot "on; the driver is not DKMS'"
        else
            bad secure_boot "on, and the key that DKMS signs with is not enrolled: the driver won't load" \
                "${ENROL[@]}"
        fi
        ;;
    no) ok secure_boot "off" ;;
    *) ok secure_boot "none here" ;;
    esac
}

check_pci_device() {
    if [ -n "$(held_cards)" ]; then
        bad pci_device "$(held_cards | paste --serial --delimiters ' ')" "${HELD_REMEDIES[@]}"
    elif [ "${#cards[@]}" -gt 0 ]; then
        ok pci_device "1ac1:089a at ${cards[*]}"
    elif [ "$pcie" = yes ]; then
        bad pci_device "no 1ac1:089a on the PCI bus" "$(pci_remedy)"
    else
        skip pci_device "none"
    fi
}

# Cards that another driver has, as vfio-pci has them for a virtual machine.
held_cards() {
    local card driver
    for card in "${cards[@]}"; do
        driver=$(basename "$(readlink "$root/sys/bus/pci/devices/$card/driver")")
        case $driver in
        '' | apex) ;;
        *) echo "$card is held by the driver $driver;" ;;
        esac
    done
}

HELD_REMEDIES=(
    "vfio-pci, pci-stub and pciback hold it for a virtual machine: run Reef in that one, or take the card from it and start this host again"
    "any other: echo ADDRESS | sudo tee /sys/bus/pci/devices/ADDRESS/driver/unbind; then: $INSTALL_DRIVER"
)

pci_remedy() {
    if is_container; then
        echo "this is a container: set the host up, then pass /dev/apex_0 on (docs/host-setup.md, LXC)"
    elif [ -n "$virtual" ] && [ "$virtual" != none ]; then
        echo "this is a virtual machine ($virtual): pass the PCI device on to it (docs/host-setup.md)"
    elif is_pi5; then
        echo "see the check 'pi5'; then reseat the card and its ribbon cable, and start again"
    else
        echo "switch the computer off, reseat the card; its slot must carry PCIe (keys A+E, B+M), a dual card needs two lanes"
    fi
}

check_usb_device() {
    if [ "${#sticks[@]}" -gt 0 ]; then
        ok usb_device "$(of_each_stick idVendor):$(of_each_stick idProduct) at ${sticks[*]}"
    elif [ "$usb" = yes ]; then
        bad usb_device "no 1a6e:089a or 18d1:9302 on USB" "$(usb_remedy)"
    else
        skip usb_device "none"
    fi
}

usb_remedy() {
    if [ -n "$virtual" ] && [ "$virtual" != none ]; then
        echo "this is a guest ($virtual): pass the USB port on to it, not the device: its id changes (docs/host-setup.md)"
    else
        echo "plug the stick in; another port, cable or a powered hub if it is"
    fi
}

of_each_stick() {
    local stick all=''
    for stick in "${sticks[@]}"; do all+=${all:+,}$(content "/sys/bus/usb/devices/$stick/$1"); done
    echo "$all"
}

check_usb_speed() {
    local stick speed
    [ "${#sticks[@]}" -gt 0 ] || { skip usb_speed "no stick" && return; }
    for stick in "${sticks[@]}"; do
        speed=$(content "/sys/bus/usb/devices/$stick/speed")
        if [ "${speed%%.*}" -ge "$MBITS_PER_S_OF_USB3" ] 2>/dev/null; then
            ok usb_speed "$stick: $speed Mbit/s"
        else
            warn usb_speed "$stick: ${speed:-?} Mbit/s: several times slower than on USB 3" \
                "use a blue or SS port and the cable that came with the stick"
        fi
    done
}

driver_matters() {
    if [ "$pcie" = no ]; then
        skip "$1" "needed for M.2 and PCIe only"
    elif [ "${#cards[@]}" -gt 0 ] && [ "$(held_cards | wc -l)" -eq "${#cards[@]}" ]; then
        skip "$1" "another driver holds the card"
    else
        return 0
    fi
    return 1
}

check_driver_present() {
    driver_matters driver_present || return 0
    if [ -n "$(dkms_versions)" ]; then
        ok driver_present "gasket $(dkms_versions | paste --serial --delimiters ' ') in DKMS"
    elif [ -n "$(driver_module '')" ] || driver_loaded; then
        ok driver_present "part of this kernel, not in DKMS"
    else
        bad driver_present "no driver for the card" "$(driver_remedy)"
    fi
}

driver_remedy() {
    if is_container; then echo "on the host: $INSTALL_DRIVER"; else echo "$INSTALL_DRIVER"; fi
}

check_driver_built() {
    driver_matters driver_built || return 0
    if [ -n "$(driver_module '')" ]; then
        ok driver_built "for $kernel"
    elif driver_loaded; then
        ok driver_built "it is loaded"
    else
        bad driver_built "not for $kernel" "$(built_remedy)"
    fi
}

built_remedy() {
    local version
    version=$(dkms_versions | tail -n 1)
    case $version in
    '') driver_remedy ;;
    "${DRIVER#*/}") echo "sudo dkms install $DRIVER -k $kernel; its log: /var/lib/dkms/$DRIVER/build/make.log" ;;
    *) old_driver_remedy "$version" ;;
    esac
}

check_driver_loaded() {
    driver_matters driver_loaded || return 0
    if driver_loaded; then
        ok driver_loaded "version $(content /sys/module/apex/version)"
    else
        bad driver_loaded "apex is not loaded" "$(driver_remedy)" \
            "if it is installed: sudo modprobe apex; sudo dmesg | tail tells why not ('Key was rejected': Secure Boot)"
    fi
}

check_node() {
    local nodes
    driver_matters node || return 0
    nodes=$(apex_nodes | paste --serial --delimiters ' ')
    if [ -n "$nodes" ] && [ "$(wc -w <<<"$nodes")" -lt "${#cards[@]}" ]; then
        bad node "${#cards[@]} cards, but only $nodes" "${NODE_REMEDIES[@]}"
    elif [ -n "$nodes" ]; then
        ok node "$nodes"
    elif [ -n "$(no_nodes)" ]; then
        bad node "no device node: $(no_nodes)" \
            "remove it, and pass the node on while the host has it: Docker's --volume makes a folder where there is none, LXC's create=file an empty file"
    elif is_container; then
        bad node "no /dev/apex_0 in this container" "pass it on from the host (docs/host-setup.md, LXC)"
    else
        bad node "no /dev/apex_0: the driver doesn't drive a card" "${NODE_REMEDIES[@]}"
    fi
}

# What is called like a node and is none.
no_nodes() {
    local path
    for path in "$root"/dev/apex_*; do
        if [ -c "$path" ]; then
            continue
        elif [ -d "$path" ]; then
            echo "${path#"$root"} is a folder"
        elif [ -e "$path" ]; then
            echo "${path#"$root"} is a file"
        fi
    done | paste --serial --delimiters ' '
}

NODE_REMEDIES=(
    "sudo dmesg | grep -e apex -e gasket tells why (-524 or -110 on a Raspberry Pi: see the check 'pi5')"
    "echo 1 | sudo tee /sys/bus/pci/devices/ADDRESS/remove /sys/bus/pci/rescan; or switch the computer off and on"
)

check_permissions() {
    local node nodes='' wrong=''
    for node in $(apex_nodes); do nodes+=" $node"; done
    for node in "${sticks[@]}"; do nodes+=" $(stick_node "$node")"; done
    [ -n "$nodes" ] || { skip permissions "no node" && return; }
    for node in $nodes; do
        case $(stat --format '%G %a' "$root$node" 2>/dev/null) in
        root\ * | '' | *[0-5]? ) wrong+=" $node" ;;
        esac
    done
    if [ -z "$wrong" ]; then
        for node in $nodes; do
            ok permissions "$node: group $(stat --format '%G, mode %a' "$root$node")"
        done
    else
        bad permissions "no group but root may open$wrong" \
            "sudo host-setup/host-setup.sh install; then plug the stick in again, or restart"
    fi
}

check_aspm() {
    local card state
    [ "${#cards[@]}" -gt 0 ] || { skip aspm "no card" && return; }
    for card in "${cards[@]}"; do
        state=$(content "/sys/bus/pci/devices/$card/link/l1_aspm")
        if [ "$state" = 1 ]; then
            warn aspm "the link of $card may sleep (ASPM L1), which some boards don't survive" \
                "if the card vanishes or answers with HIB errors: pcie_aspm=off on the kernel's command line"
        else
            ok aspm "the link of $card does not sleep"
        fi
    done
}

check_sleep() {
    local device path value wrong='' seen=no
    for device in "${cards[@]/#/pci/devices/}" "${sticks[@]/#/usb/devices/}"; do
        path=/sys/bus/$device
        seen=yes
        value=$(content "$path/power/control")
        [ -z "$value" ] || [ "$value" = on ] || wrong+=" $path/power/control is '$value'"
        value=$(content "$path/d3cold_allowed")
        [ -z "$value" ] || [ "$value" = 0 ] || wrong+=" $path/d3cold_allowed is '$value'"
    done
    [ "$seen" = yes ] || { skip sleep "no device" && return; }
    if [ -z "$wrong" ]; then
        ok sleep "no device is ever put to sleep"
    else
        warn sleep "a device may be put to sleep:$wrong" "sudo host-setup/host-setup.sh install"
    fi
}

check_holder() {
    local node pid found='' known=yes
    for node in $(apex_nodes); do
        [ "$(content "/sys/class/apex/${node##*/}/is_device_owned")" = 1 ] || continue
        pid=$(content "/sys/class/apex/${node##*/}/device_owner")
        found+=" $node: pid $pid ($(program "$pid"));"
        is_reef "$pid" || known=no
    done
    for node in "${sticks[@]}"; do
        for pid in $(who_has_open "$(stick_node "$node")"); do
            found+=" $(stick_node "$node"): pid $pid ($(program "$pid"));"
            is_reef "$pid" || known=no
        done
    done
    if [ -z "$found" ]; then
        ok holder "no other program holds a device$([ "$(id -u)" -eq 0 ] || echo ' (for USB, only root can tell)')"
    elif [ "$known" = yes ]; then
        ok holder "Reef holds$found"
    else
        warn holder "in use:$found a device serves one program at a time" \
            "end that program before Reef starts, or let it ask Reef over HTTP"
    fi
}

program() { tr '\0' ' ' <"$root/proc/$1/cmdline" 2>/dev/null | cut -c1-60 | sed 's/ *$//'; }

is_reef() { [[ $(program "$1") == *app.devices.worker* ]]; }

who_has_open() {
    find "$root"/proc/[0-9]*/fd -maxdepth 1 -lname "$1" 2>/dev/null |
        sed "s|^$root/proc/||; s|/.*||" | sort --unique || true
}

check_docker() {
    local version
    [ "$docker_there" = yes ] || {
        bad docker "none here" "sudo apt-get install docker.io docker-compose"
        return
    }
    read_docker
    version=${docker_says%%|*}
    [ -n "$version" ] || {
        bad docker "the engine doesn't answer" "sudo systemctl start docker; and: sudo usermod --append --groups docker \$USER"
        return
    }
    if [ "$(newest "$version" "$DOCKER_WITH_THREADS")" = "$version" ]; then
        ok docker "$version"
    elif [ "$(newest "$version" 20.10)" = "$version" ]; then
        warn docker "$version: before $DOCKER_WITH_THREADS, containers of today's Debian may not be let start threads" \
            "if the container ends with 'can't start a thread': install a newer Docker, or runc 1.0.0-rc93 with libseccomp 2.5"
    else
        bad docker "$version; Reef needs 20.10 or newer" "install a newer Docker"
    fi
}

# The newer of two versions.
newest() { printf '%s\n' "$@" | sort --version-sort | tail -n 1; }

# Version and security options; nothing where no engine answers.
read_docker() { docker_says=$(docker info --format '{{.ServerVersion}}|{{.SecurityOptions}}' 2>/dev/null || true); }

check_compose() {
    local version
    [ "$docker_there" = yes ] || { skip compose "no Docker" && return; }
    version=$(docker compose version --short 2>/dev/null || docker-compose version --short 2>/dev/null || true)
    case ${version#v} in
    '') bad compose "none here" "sudo apt-get install docker-compose" ;;
    1.29* | 2* | [3-9]*) ok compose "${version#v}" ;;
    *) bad compose "$version; Reef needs 1.29, or 2" "install a newer Compose" ;;
    esac
}

check_rootless() {
    [ -n "${docker_says-}" ] || { skip rootless "no Docker" && return; }
    case $docker_says in
    *rootless*) bad rootless "Docker runs without root: the device's group is lost in it, and so are the rules on devices" \
        "run Reef's container with the system's Docker: docker context use default" ;;
    *userns*) warn rootless "Docker maps users (userns-remap): the device's group is not the same in it" \
        "add to the service in compose.yaml: userns_mode: host" ;;
    *) ok rootless "Docker has its full rights" ;;
    esac
}

check_privileged() {
    local found ids
    [ -n "${docker_says-}" ] || { skip privileged "no Docker" && return; }
    ids=$(docker container ls --quiet 2>/dev/null || true)
    # shellcheck disable=SC2086 # a list
    found=$([ -z "$ids" ] || docker container inspect --format '{{if .HostConfig.Privileged}}{{.Name}}{{end}}' \
        $ids 2>/dev/null | grep . | paste --serial --delimiters ' ' || true)
    if [ -n "$found" ]; then
        warn privileged "$found: the driver lets a privileged container take a card that another holds" \
            "run it with 'devices:' and a group instead, if it uses the Edge TPU"
    else
        ok privileged "no container is"
    fi
}

check_pi5() {
    local config cmdline missing=()
    is_pi5 || { skip pi5 "not a Raspberry Pi 5" && return; }
    [ "$pcie" = yes ] || { ok pi5 "USB needs no boot settings" && return; }
    config=$(content /boot/firmware/config.txt)
    cmdline=$(content /boot/firmware/cmdline.txt)
    grep --quiet --extended-regexp '^dtparam=pciex1(=on)?(,|$)' <<<"$config" || missing+=("dtparam=pciex1")
    [ "$(getconf PAGESIZE)" = 4096 ] || grep --quiet '^kernel=kernel8.img' <<<"$config" || missing+=("kernel=kernel8.img")
    grep --quiet '^dtoverlay=pciex1-compat-pi5,no-mip' <<<"$config" || missing+=("dtoverlay=pciex1-compat-pi5,no-mip")
    grep --quiet '^dtoverlay=pcie-32bit-dma-pi5' <<<"$config" || missing+=("dtoverlay=pcie-32bit-dma-pi5")
    if [ "${#missing[@]}" -gt 0 ]; then
        bad pi5 "lines are missing in /boot/firmware/config.txt" "add, and start again: ${missing[*]}"
    elif [ "$(getconf PAGESIZE)" != 4096 ]; then
        bad pi5 "the kernel that runs has pages of $(getconf PAGESIZE) bytes, the driver needs 4096" "start the computer again"
    elif ! grep --quiet 'pcie_aspm=off' <<<"$cmdline"; then
        warn pi5 "pcie_aspm=off is missing in /boot/firmware/cmdline.txt" "add it to that one line, and start again"
    else
        ok pi5 "PCIe, 4 KiB pages and MSI are set"
    fi
}

check_space() {
    local folder=$root/var/lib/docker free
    [ -d "$folder" ] || folder=$root/var/lib
    free=$(df --output=avail --block-size=1M "$folder" 2>/dev/null | tail -n 1 | tr -d ' ')
    if [ "${free:-0}" -ge "$IMAGE_MIB" ]; then
        ok space "$free MiB for the image"
    else
        bad space "${free:-no} MiB free in ${folder#"$root"}, the image's build takes $IMAGE_MIB" "docker system prune, or a larger disk"
    fi
}

# The last line: a file that was cut off lacks it.
checks_whole=yes
