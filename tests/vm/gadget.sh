#!/usr/bin/env bash
# In the virtual machine: a USB stick of these ids, plugged into the virtual controller dummy_hcd.
# Plugged in again with other ids, it is what a Coral becomes when its firmware is loaded.
set -eu

usage() {
    cat <<END
Usage: tests/vm/gadget.sh VENDOR PRODUCT | out

Prints the folder of the stick in /sys/bus/usb/devices.
END
}

GADGET=/sys/kernel/config/usb_gadget/stick
APPEARS_S=60

main() {
    case ${1:---help} in
    --help | -h) usage ;;
    out) pull_out ;;
    *) plug_in "$1" "${2:?"the product's id"}" ;;
    esac
}

plug_in() {
    modprobe dummy_hcd
    modprobe libcomposite
    mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
    pull_out
    mkdir -p "$GADGET/configs/c.1" "$GADGET/functions/acm.0"
    echo "0x$1" >"$GADGET/idVendor"
    echo "0x$2" >"$GADGET/idProduct"
    [ -e "$GADGET/configs/c.1/acm.0" ] || ln -s "$GADGET/functions/acm.0" "$GADGET/configs/c.1"
    local udc
    udc=$(ls /sys/class/udc)
    echo "${udc%% *}" >"$GADGET/UDC"
    wait_for "$1" "$2"
}

pull_out() { [ ! -s "$GADGET/UDC" ] || [ -z "$(cat "$GADGET/UDC")" ] || echo >"$GADGET/UDC"; }

wait_for() {
    local folder
    for _ in $(seq $((APPEARS_S * 5))); do
        for folder in /sys/bus/usb/devices/*; do
            [ "$(cat "$folder/idVendor" "$folder/idProduct" 2>/dev/null | tr -d '\n')" = "$1$2" ] || continue
            udevadm settle
            echo "$folder"
            return
        done
        sleep 0.2
    done
    echo "gadget: no such stick appeared" >&2
    exit 1
}

main "$@"
