#!/usr/bin/env bash
# Which Edge TPUs this computer has, and the files that hand them to containers.
set -eu

MARK='# Written by scripts/devices.sh, anew each time; without this line, the file is yours and stays.'
RECORD='# .env has from it: '
ENV_MARK='# Written by scripts/devices.sh; a line that you change is yours and stays.'
CDI_KIND=reef.dev/edgetpu
CDI_FILE=/etc/cdi/reef.json
USB_RULES=/etc/udev/rules.d/99-reef-usb.rules
GROUP=apex

usage() {
    cat <<END
Usage: scripts/devices.sh list | compose | told | cdi | refresh | remove

  list     says where this computer has an Edge TPU, one a line
  compose  writes compose.devices.yaml: every /dev/apex_* node, and the USB bus where there is a
           stick or the host is set up for one; and .env, which names it and the groups
  told     whether that is up to date: exit status 0
  cdi      writes $CDI_FILE, so that Docker 25 and newer and Podman take
           --device $CDI_KIND=all
  refresh  for the unit reef-devices.service: cdi and compose, where they were set up; restarts
           reef.service where what it gets has changed
  remove   takes away what 'compose' wrote

In .env it adds what is missing. What you changed there stays; so does your COMPOSE_FILE.
END
}

main() {
    cd "$(dirname "$0")/.."
    # shellcheck source=scripts/lib/compose.sh
    . scripts/lib/compose.sh
    dry=no
    root=${HOST_ROOT:-} # a tree that stands in for the host's, for tests
    case ${1:---help} in
    list | compose | told | cdi | refresh | remove) "do_$1" ;;
    --help | -h) usage ;;
    *) die "no such command: $1; see --help" ;;
    esac
}

# ------------------------------------------------------------------ what there is

do_list() {
    local folder
    for folder in "$root"/sys/bus/pci/devices/*; do
        [ "$(ids "$folder" vendor device)" != 0x1ac1:0x089a ] || echo "PCIe ${folder##*/}"
    done
    for folder in $(sticks); do
        echo "USB ${folder##*/}"
    done
}

sticks() {
    local folder
    for folder in "$root"/sys/bus/usb/devices/*; do
        case $(ids "$folder" idVendor idProduct) in
        1a6e:089a | 18d1:9302) echo "$folder" ;;
        esac
    done
}

ids() {
    [ ! -r "$1/$2" ] || [ ! -r "$1/$3" ] || printf '%s:%s' "$(cat "$1/$2")" "$(cat "$1/$3")"
}

# The nodes of cards, without the root.
apex_nodes() {
    local node
    for node in "$root"/dev/apex_*; do
        [ ! -c "$node" ] || echo "${node#"$root"}"
    done
}

# The node of a stick: its numbers are three digits long.
stick_node() { printf '/dev/bus/usb/%03d/%03d' "$(cat "$1/busnum")" "$(cat "$1/devnum")"; }

# The group of a node, as a number; nothing where that is root, which is no group for a container.
group_of() {
    local gid
    gid=$(stat --format %g "$root$1" 2>/dev/null || echo 0)
    [ "$gid" -eq 0 ] || echo "$gid"
}

group_named() { sed -n "s/^$1:[^:]*:\([0-9]*\):.*/\1/p" "$root/etc/group" 2>/dev/null || true; }

# ------------------------------------------------------------------ compose.devices.yaml and .env

do_compose() {
    local nodes apex_gid='' usb_gid='' usb=no stick node text
    nodes=$(apex_nodes)
    for node in $nodes; do apex_gid=${apex_gid:-$(group_of "$node")}; done
    if [ -d "$root/dev/bus/usb" ]; then
        [ ! -e "$root$USB_RULES" ] || { usb=yes usb_gid=$(group_named "$GROUP"); }
        for stick in $(sticks); do
            usb=yes
            usb_gid=${usb_gid:-$(group_of "$(stick_node "$stick")")}
        done
    fi
    warn_of_root "$nodes" "$apex_gid" "$usb" "$usb_gid"
    # On a computer that never had any, nothing is written; but Compose needs what .env names.
    [ -n "$nodes" ] || [ "$usb" = yes ] || [ -e compose.devices.yaml ] || is_named || return 0
    if [ -e compose.devices.yaml ] && ! is_ours; then
        say "compose.devices.yaml is yours; it stays as it is"
        return
    fi
    # The .env first: what it is found to hold is compared with what the old file says.
    node=$(update_env "COMPOSE_FILE=$(compose_files):compose.devices.yaml" ${apex_gid:+"REEF_APEX_GID=$apex_gid"} \
        ${usb_gid:+"REEF_USB_GID=$usb_gid"})
    text=$(overlay "$nodes" "$apex_gid" "$usb" "$usb_gid" "$node")
    put compose.devices.yaml "$text"
}

is_named() { [[ ${COMPOSE_FILE-$(dotenv_get COMPOSE_FILE "$(dotenv_read .env)")} == *compose.devices.yaml* ]]; }

do_told() {
    dry=yes
    do_compose
}

is_ours() { head -n 1 compose.devices.yaml | cmp --silent - <(echo "$MARK"); }

overlay() {
    local nodes=$1 apex_gid=$2 usb=$3 usb_gid=$4 written=$5 node
    local -a lines
    echo "$MARK"
    mapfile -t lines <<<"$written"
    printf "$RECORD%s\\n" "${lines[@]}"
    echo 'services:'
    if [ -z "$nodes" ] && [ "$usb" = no ]; then
        echo '  reef: {}'
        return
    fi
    echo '  reef:'
    if [ -n "$nodes" ]; then
        echo '    devices:'
        for node in $nodes; do echo "      - $root$node:$node"; done
    fi
    if [ "$usb" = yes ]; then
        printf '    volumes:\n      - %s/dev/bus/usb:/dev/bus/usb\n' "$root"
        printf '    device_cgroup_rules:\n      - "c 189:* rmw"\n'
    fi
    [ "$usb" = yes ] || usb_gid=''
    [ -n "$apex_gid$usb_gid" ] || return 0
    echo '    group_add:'
    [ -z "$apex_gid" ] || echo "      - \"\${REEF_APEX_GID:-$apex_gid}\""
    [ -z "$usb_gid" ] || [ "$usb_gid" = "$apex_gid" ] || echo "      - \"\${REEF_USB_GID:-$usb_gid}\""
}

warn_of_root() {
    local remedy='run: sudo host-setup/host-setup.sh install'
    [ -z "$1" ] || [ -n "$2" ] || say "/dev/apex_* are root's alone, so Reef can't open them; $remedy"
    [ "$3" = no ] || [ -n "$4" ] || say "the USB stick is root's alone, so Reef can't open it; $remedy"
}

# Puts NAME=VALUE lines into .env; prints those that stand there because of us.
update_env() {
    local line name now text before set
    set=$(dotenv_read .env) || exit 1
    before=$(lines_of .env)
    text=$before
    for line in "$@"; do
        name=${line%%=*}
        now=$(dotenv_get "$name" "$set")
        if ! grep --quiet "^$name=" <<<"$set"; then
            grep --quiet --fixed-strings --line-regexp "$ENV_MARK" <<<"$text" ||
                text+=${text:+$'\n\n'}$ENV_MARK
            text+=$'\n'$line
        elif was_written "$name=$now"; then
            text=${text//"$name=$now"/"$line"}
        else
            [ "$name=$now" = "$line" ] || kept "$name" "$now"
            continue
        fi
        echo "$line"
    done
    # A card that is gone for now: its group stays ours.
    while read -r line; do
        [[ " $* " == *" ${line%%=*}="* ]] || ! grep --quiet --line-regexp -e "$line" <<<"$text" ||
            echo "$line"
    done < <(recorded)
    [ "$text" = "$before" ] || put .env "$text"
}

# A file as Linux has it: editors of Windows end lines with a carriage return too, and put a mark
# before the first.
lines_of() { [ ! -e "$1" ] || sed $'s/\r$//; 1s/^\xef\xbb\xbf//' "$1"; }

recorded() { sed -n "s/^$RECORD//p" compose.devices.yaml 2>/dev/null || true; }

kept() {
    case $1:$2 in
    COMPOSE_FILE:*compose.devices.yaml*) ;;
    COMPOSE_FILE:*) say "your COMPOSE_FILE stays: $2 (with :compose.devices.yaml behind it, it follows the devices)" ;;
    *) say "your $1 stays: $2" ;;
    esac
}

was_written() { recorded | grep --quiet --fixed-strings --line-regexp -e "$1"; }

do_remove() {
    local line text
    if [ -e compose.devices.yaml ] && ! is_ours; then
        say "compose.devices.yaml is yours; it stays"
        return
    fi
    if [ -e .env ]; then
        text=$(lines_of .env)
        while read -r line; do
            text=$(grep --invert-match --fixed-strings --line-regexp -e "$line" <<<"$text" || true)
        done < <(recorded)
        text=$(grep --invert-match --fixed-strings --line-regexp -e "$ENV_MARK" <<<"$text" || true)
        if [ -n "$text" ]; then put .env "$text"; else remove .env; fi
    fi
    remove compose.devices.yaml
}

remove() { [ ! -e "$1" ] || { rm "$1" && say "removed $PWD/$1"; }; }

# Writes a file of this folder, for whom the folder belongs to; one that is there keeps its owner.
put() {
    local new=no
    if [ -e "$1" ]; then
        [ "$(cat "$1")" != "$2" ] || return 0
    else
        new=yes
    fi
    [ "$dry" = no ] || exit 1
    printf '%s\n' "$2" >"$1"
    [ "$new" = no ] || [ "$(id -u)" -ne 0 ] || chown --reference=. "$1"
    say "wrote $PWD/$1"
}

# ------------------------------------------------------------------ CDI

# Compose needs no CDI; it is for `docker run`, Podman and Kubernetes. A stick's firmware gives it
# another number, so the stick is found again only once this was written anew.
do_cdi() {
    local node stick text names='' all=''
    text=''
    for node in $(apex_nodes); do
        text+=$(cdi_device "${node##*/}" "$(cdi_node "$node")"),$'\n'
        all+=${all:+, }$(cdi_node "$node") names+=${names:+,}${node##*/}
    done
    for stick in $(sticks); do
        node=$(stick_node "$stick")
        text+=$(cdi_device "usb-${stick##*/}" "$(cdi_node "$node")"),$'\n'
        all+=${all:+, }$(cdi_node "$node") names+=${names:+,}usb-${stick##*/}
    done
    # With none, `all` must still be a name: a container then starts, and serves on the CPU.
    text+="    {\"name\": \"all\", \"containerEdits\": {\"deviceNodes\": [$all], \"env\": [\"EDGETPU_DEVICES=${names:-none}\"]}}"
    mkdir -p "$root${CDI_FILE%/*}"
    text=$(printf '{\n  "cdiVersion": "0.5.0",\n  "kind": "%s",\n  "devices": [\n%s\n  ]\n}\n' "$CDI_KIND" "$text")
    if [ ! -e "$root$CDI_FILE" ] || [ "$(cat "$root$CDI_FILE")" != "$text" ]; then
        printf '%s\n' "$text" >"$root$CDI_FILE.new"
        mv "$root$CDI_FILE.new" "$root$CDI_FILE"
        say "wrote $CDI_FILE: $CDI_KIND=all is ${names:-no Edge TPU}"
    fi
}

cdi_device() { printf '    {"name": "%s", "containerEdits": {"deviceNodes": [%s]}}' "$1" "$2"; }

cdi_node() { printf '{"path": "%s"}' "$1"; }

# ------------------------------------------------------------------ for the units

do_refresh() {
    local before=''
    [ ! -e "$root$CDI_FILE" ] || do_cdi
    [ -e "$root/etc/systemd/system/reef.service" ] || return 0
    [ ! -e compose.devices.yaml ] || before=$(cat compose.devices.yaml)
    do_compose
    [ -e compose.devices.yaml ] && [ "$(cat compose.devices.yaml)" != "$before" ] || return 0
    say "the devices have changed, so reef.service is started again, if it runs"
    systemctl --no-block try-restart reef.service
}

say() { printf 'devices: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

main "$@"
