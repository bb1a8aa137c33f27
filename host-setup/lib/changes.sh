# shellcheck shell=bash
# Everything that is changed, with a record in $STATE/undo of how it is taken back.

changing=no
work=''

# A folder for what is tried out; it goes with the script.
work_folder() { [ -n "$work" ] || work=$(mktemp --directory); }

clean_up() {
    local status=$?
    [ -z "$work" ] || rm -rf "$work"
    if [ "$changing" = yes ] && [ "$status" -ne 0 ]; then
        say "a change failed; the lines above say why. Done, and taken back by 'uninstall':"
        sed 's/^/    * /; s/|/ /g' "$root$STATE/undo" >&2 2>/dev/null || echo '    nothing' >&2
        exit "$STATUS_FAILED"
    fi
}

may_change() {
    [ "$(id -u)" -eq 0 ] || [ "$dry_run" = yes ] || [ -n "$root" ] || stop "only root may change this host" "sudo host-setup/host-setup.sh $1"
}

run() {
    printf '+ %s\n' "$*" >&2
    "$@"
}

record() {
    mkdir -p "$root$STATE"
    grep --quiet --fixed-strings --line-regexp "$1" "$root$STATE/undo" 2>/dev/null || echo "$1" >>"$root$STATE/undo"
}

# ------------------------------------------------------------------ files

# The files of ours that are not as they should be: TEMPLATE:DESTINATION.
files_to_write() {
    local pair
    while read -r pair; do
        [ "$(content "${pair#*:}")" = "$(rendered "${pair%%:*}")" ] || echo "$pair"
    done < <(files_wanted)
}

files_wanted() {
    [ "$pcie" = no ] || echo "udev/99-reef-apex.rules:$APEX_RULES"
    [ "$usb" = no ] || echo "udev/99-reef-usb.rules:$USB_RULES"
    [ "$cdi$service" = nono ] || echo "udev/99-reef-devices.rules:$DEVICES_RULES"
    [ "$cdi$service" = nono ] || echo "systemd/reef-devices.service:$UNITS/reef-devices.service"
    [ "$service" = no ] || echo "systemd/reef.service:$UNITS/reef.service"
}

rendered() { sed "s|@FOLDER@|$FOLDER|g" "$HERE/$1"; }

put_file() {
    local template=$1 file=$2
    make_folder "${file%/*}"
    if [ -e "$root$file" ]; then
        if ! grep --quiet --line-regexp -e "file|$file" -e "saved|$file" "$root$STATE/undo" 2>/dev/null; then
            mkdir -p "$root$STATE/saved${file%/*}"
            cp --preserve "$root$file" "$root$STATE/saved$file"
            record "saved|$file"
        fi
    else
        record "file|$file"
    fi
    printf '+ write %s\n' "$file" >&2
    rendered "$template" >"$root$file.new"
    chmod 644 "$root$file.new"
    mv "$root$file.new" "$root$file"
}

# A folder and those above it that are missing.
make_folder() {
    [ ! -d "$root$1" ] || return 0
    make_folder "${1%/*}"
    mkdir "$root$1"
    record "folder|$1"
}

# ------------------------------------------------------------------ the steps of install

# Downloads before anything is installed: where that fails, nothing was changed.
preflight_packages() {
    has apt-get || stop "${packages[*]} must be installed, and there is no apt here" "install them by hand"
    work_folder
    mkdir -p "$work/archives/partial"
    say "fetching ${packages[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends --download-only \
        -o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User=root "${packages[@]}" >"$work/apt.log" 2>&1 || {
        tail -n 4 "$work/apt.log" >&2
        stop "${packages[*]} can't be fetched" "sudo apt-get update; look at the network and at /etc/apt/sources.list*"
    }
}

install_packages() {
    local new
    [ "${#packages[@]}" -gt 0 ] || return 0
    new=$(apt-get install --simulate --no-install-recommends "${packages[@]}" | sed -n 's/^Inst \([^ ]*\).*/\1/p' | paste --serial --delimiters ' ')
    record "packages|$new"
    run env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends \
        -o Dir::Cache::archives="$work/archives" "${packages[@]}" >&2
}

# Adds those that are not installed to `packages`.
want_packages() {
    local name
    for name in "$@"; do
        [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || packages+=("$name")
    done
}

install_group() {
    has_group "$GROUP" || {
        run groupadd ${root:+--prefix "$root"} --system "$GROUP"
        record "group|$GROUP"
    }
}

verify_rules() {
    udevadm verify --help >/dev/null 2>&1 || return 0 # systemd 254 and newer have it
    udevadm verify --resolve-names=never "$HERE"/udev/*.rules >/dev/null ||
        stop "udev does not take the rules in host-setup/udev" "report this, with 'udevadm --version'"
}

install_rules() {
    local pair
    while read -r pair; do
        put_file "${pair%%:*}" "${pair#*:}"
    done < <(files_to_write)
    apply_rules
}

# Lets the rules act on what is there already.
apply_rules() {
    [ -S "$root/run/udev/control" ] || return 0
    run udevadm control --reload
    run udevadm trigger --subsystem-match=apex
    run udevadm trigger --subsystem-match=pci --attr-match=vendor=0x1ac1
    run udevadm trigger --subsystem-match=usb --attr-match=idVendor=1a6e
    run udevadm trigger --subsystem-match=usb --attr-match=idVendor=18d1
    run udevadm settle --timeout=30
}

install_units() {
    run systemctl daemon-reload
    if [ "$cdi" = yes ]; then
        make_folder /etc/cdi
        [ -e "$root/etc/cdi/reef.json" ] || record "file|/etc/cdi/reef.json"
        run "$FOLDER/scripts/devices.sh" cdi
        say "Docker before 28 takes CDI devices once /etc/docker/daemon.json has: \"features\": {\"cdi\": true}"
    fi
    [ "$service" = yes ] || return 0
    systemctl is-enabled --quiet reef.service 2>/dev/null || {
        record "unit|reef.service"
        run systemctl enable reef.service
    }
    if docker image inspect "$(image_name)" >/dev/null 2>&1; then
        run systemctl restart --no-block reef.service
    else
        say "build the image with 'make image', then start it: sudo systemctl start reef"
    fi
}

image_name() {
    local name
    name=$(sed -n 's/^REEF_IMAGE=//p' "$FOLDER/.env" 2>/dev/null | tail -n 1)
    echo "${name:-reef:local}"
}

install_files() {
    record "compose|$FOLDER"
    run "$FOLDER/scripts/devices.sh" compose
}

compose_is_told() { "$FOLDER/scripts/devices.sh" told 2>/dev/null; }

# ------------------------------------------------------------------ libedgetpu, for `make run`

runtime_is_there() { [ -e "$root$RUNTIME_FOLDER/libedgetpu.so.1.0" ]; }

preflight_runtime() {
    want_packages libusb-1.0-0
    ! runtime_is_there || return 0
    python=$FOLDER/.venv/bin/python
    [ -x "$python" ] || python=python3
    if "$python" -c 'import yaml' 2>/dev/null; then fetch_runtime; else want_packages python3 python3-yaml; fi
}

fetch_runtime() {
    work_folder
    "$python" -B "$FOLDER/scripts/fetch.py" --into "$work/runtime" --mirror "${EDGETPU_MIRROR:-}" \
        --variant "${LIBEDGETPU_VARIANT:-std}" --sha256 "${LIBEDGETPU_SHA256:-}" >"$work/fetch.log" 2>&1 ||
        { tail -n 2 "$work/fetch.log" >&2 && stop "libedgetpu is not what it should be" "see the lines above"; }
    [ -e "$work/runtime/lib/libedgetpu.so.1.0" ] || {
        grep libedgetpu "$work/fetch.log" >&2 || true
        stop "libedgetpu can't be fetched" "look at the network, or name a mirror: EDGETPU_MIRROR=URL"
    }
}

install_runtime() {
    local file
    if ! runtime_is_there; then
        [ -e "$work/runtime" ] || fetch_runtime
        for file in libedgetpu.so.1.0 libedgetpu.so.1; do
            record "file|$RUNTIME_FOLDER/$file"
        done
        record "ldconfig|"
        run install -D --mode 644 "$work/runtime/lib/libedgetpu.so.1.0" "$root$RUNTIME_FOLDER/libedgetpu.so.1.0"
        run ln --symbolic --force libedgetpu.so.1.0 "$root$RUNTIME_FOLDER/libedgetpu.so.1"
        run ldconfig ${root:+-r "$root"}
    fi
    if [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] && ! id -nG "$SUDO_USER" | grep --quiet --word-regexp "$GROUP"; then
        run usermod --append --groups "$GROUP" "$SUDO_USER"
        record "member|$SUDO_USER"
        say "$SUDO_USER may use the Edge TPU after the next login"
    fi
}

# ------------------------------------------------------------------ taking it back

undo_all() {
    local kind what left=''
    while IFS='|' read -r kind what; do
        # One that fails keeps nothing else from being taken back.
        undo "$kind" "$what" || left="$kind|$what"$'\n'$left
    done < <(tac "$root$STATE/undo")
    if [ -n "$left" ]; then
        printf '%s' "$left" >"$root$STATE/undo"
        exit "$STATUS_FAILED"
    fi
    rm -rf "$root$STATE"
    [ ! -d "$root/run/systemd/system" ] || run systemctl daemon-reload
    apply_rules
}

undo() {
    local kind=$1 what=$2
    case $kind in
    file) run rm -f "$root$what" ;;
    saved) run cp --preserve "$root$STATE/saved$what" "$root$what" ;;
    folder) run rmdir --ignore-fail-on-non-empty "$root$what" ;;
    group) ! has_group "$what" || run groupdel ${root:+--prefix "$root"} "$what" ;;
    member) run gpasswd --delete "$what" "$GROUP" ;;
    unit) run systemctl disable --now "$what" ;;
    compose) run "$what/scripts/devices.sh" remove ;;
    ldconfig) run ldconfig ${root:+-r "$root"} ;;
    dkms) remove_driver "$what" ;;
    packages) remove_packages "$what" ;;
    *) say "no way back is known for '$kind $what'" ;;
    esac
}

# Only where nothing else has come to need them.
remove_packages() {
    local also
    # shellcheck disable=SC2086 # a list
    also=$(apt-get purge --simulate $1 2>/dev/null | sed -n 's/^Purg \([^ ]*\).*/\1/p' | grep --invert-match --line-regexp --fixed-strings --file <(tr ' ' '\n' <<<"$1") || true)
    if [ -n "$also" ]; then
        say "these packages stay, because others need them by now: $1"
    else
        # shellcheck disable=SC2086 # a list
        run env DEBIAN_FRONTEND=noninteractive apt-get purge --yes --quiet --quiet $1 >&2
    fi
}

# The last line: a file that was cut off lacks it.
changes_whole=yes
