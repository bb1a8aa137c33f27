#!/usr/bin/env bash
# Makes a host ready to hand its Edge TPUs to Reef's container, and takes that back again.
#
# Read it, run `host-setup.sh check`, then `sudo host-setup.sh install --dry-run`, then without.
set -eu

usage() {
    cat <<END
Usage: host-setup/host-setup.sh [check | install | uninstall] [OPTION...]

  check      says what this host has and lacks for an Edge TPU; changes nothing (the default)
  install    makes the host ready: driver (M.2 and PCIe), udev rules, group, and what Docker
             Compose is told. Says what it will do, and asks
  uninstall  takes back what install did

Without --pcie and --usb, install goes by the Edge TPUs that are there.

  --pcie     for a card on M.2 or PCIe, whether it is seen or not
  --usb      for a stick on USB, whether it is plugged in or not
  --service  also reef.service: Reef starts with the computer
  --cdi      also a CDI specification, for Docker 25 and newer and Podman:
             --device reef.dev/edgetpu=all
  --runtime  also libedgetpu on the host, for 'make run'
  --driver-source DIR|URL
             the driver's source from there (a folder, or a .tar.gz), instead of the pinned
             commit from GitHub
  --dry-run  say what would be done, and do nothing
  --yes      do not ask
  --help     this text

Exit status:
  0  done; or nothing keeps this host from using its Edge TPU
  1  check: something does, the lines that begin with 'bad' say what and how to mend it
  2  wrong usage
  3  install or uninstall stopped before it changed anything; the last lines say why
  4  a change failed; what was done before it is listed, and 'uninstall' takes it back
  5  you said no
END
}

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=host-setup/lib/facts.sh
. "$HERE/lib/facts.sh"
# shellcheck source=host-setup/lib/checks.sh
. "$HERE/lib/checks.sh"
# shellcheck source=host-setup/lib/changes.sh
. "$HERE/lib/changes.sh"
# shellcheck source=host-setup/lib/driver.sh
. "$HERE/lib/driver.sh"

STATUS_BAD=1
STATUS_USAGE=2
STATUS_STOPPED=3
STATUS_FAILED=4
STATUS_NO=5

main() {
    local command=check
    pcie=no usb=no service=no cdi=no runtime=no source='' dry_run=no yes=no
    root=${HOST_ROOT:-} # a tree that stands in for the host's, for tests
    while [ $# -gt 0 ]; do
        case $1 in
        check | install | uninstall) command=$1 ;;
        --pcie) pcie=yes ;;
        --usb) usb=yes ;;
        --service) service=yes ;;
        --cdi) cdi=yes ;;
        --runtime) runtime=yes ;;
        --driver-source)
            [ $# -gt 1 ] || wrong_usage "--driver-source takes a folder or a URL"
            source=$2
            shift
            ;;
        --dry-run) dry_run=yes ;;
        --yes | -y) yes=yes ;;
        --help | -h) usage && exit ;;
        *) wrong_usage "no such command or option: $1" ;;
        esac
        shift
    done
    # shellcheck disable=SC2154 # each file's last line says so
    [ "${facts_whole-}${checks_whole-}${changes_whole-}${driver_whole-}" = yesyesyesyes ] || {
        echo "host-setup: files in $HERE/lib are missing or cut off; get them again" >&2
        exit "$STATUS_STOPPED"
    }
    trap clean_up EXIT
    read_facts
    "do_$command"
}

wrong_usage() {
    say "$1; see --help"
    exit "$STATUS_USAGE"
}

# ------------------------------------------------------------------ check

do_check() {
    [ "$pcie$usb" != nono ] || what_is_there
    run_checks
    if [ "$bad" -gt 0 ]; then
        say "$bad of these keep this host from using its Edge TPU"
        exit "$STATUS_BAD"
    fi
    if [ "$pcie$usb" = nono ]; then
        say "no Edge TPU is seen on PCIe or USB: Reef serves on the CPU"
    else
        say "nothing keeps this host from using its Edge TPU"
    fi
}

# An Edge TPU may be set up for and be gone: then it is still looked for.
what_is_there() {
    [ "${#cards[@]}" -eq 0 ] || pcie=yes
    [ "${#sticks[@]}" -eq 0 ] || usb=yes
    if [ "$pcie$usb" = nono ]; then
        [ ! -e "$root$APEX_RULES" ] || pcie=yes
        [ ! -e "$root$USB_RULES" ] || usb=yes
    fi
}

# ------------------------------------------------------------------ install

do_install() {
    [ "$pcie$usb" != nono ] || what_is_there
    [ "$pcie$usb" != nono ] || stop "no Edge TPU is seen on PCIe or USB" \
        "plug it in and look with: host-setup.sh check; or name what will come: --pcie, --usb"
    may_change install
    preflight
    show_plan
    if [ "${#plan[@]}" -eq 0 ]; then
        say "nothing to do: this host is set up already"
        return
    fi
    [ "$dry_run" = no ] || return 0
    ask
    changing=yes
    install_packages
    [ "$driver_wanted" = no ] || install_driver
    install_group
    install_rules
    [ "$runtime" = no ] || install_runtime
    [ "$cdi$service" = nono ] || install_units
    install_files
    changing=no
    say "done. 'host-setup.sh check' shows what there is; 'sudo host-setup.sh uninstall' takes it back"
    [ "$service" = yes ] || say "start Reef with: make up"
}

# Everything that can say no, before anything is changed.
preflight() {
    local name
    for name in architecture distribution; do
        check_quietly "$name"
    done
    driver_wanted=no
    packages=()
    [ "$pcie" = no ] || preflight_driver
    [ "$runtime" = no ] || preflight_runtime
    [ "$service" = no ] || [ "$docker_there" = yes ] || stop "there is no Docker here for --service" \
        "sudo apt-get install docker.io docker-compose"
    [ "${#packages[@]}" -eq 0 ] || preflight_packages
    verify_rules
}

# What is going to be changed, a line each; empty when nothing is.
show_plan() {
    local name
    plan=()
    [ "${#packages[@]}" -eq 0 ] || plan+=("install the packages ${packages[*]} (undo: apt-get purge)")
    if [ "$driver_wanted" = yes ]; then
        plan+=("build the driver $DRIVER for $kernel through DKMS and load it (undo: dkms remove $DRIVER --all)")
    fi
    has_group "$GROUP" || plan+=("add the system group $GROUP (undo: groupdel $GROUP)")
    while read -r name; do
        plan+=("write ${name#*:} (undo: what was there comes back)")
    done < <(files_to_write)
    if [ "$service" = yes ] && ! systemctl is-enabled --quiet reef.service 2>/dev/null; then
        plan+=("enable reef.service (undo: systemctl disable reef.service)")
    fi
    [ "$runtime" = no ] || runtime_is_there || plan+=("put libedgetpu into $RUNTIME_FOLDER (undo: rm)")
    compose_is_told || plan+=("tell Docker Compose in $FOLDER/.env and compose.devices.yaml")
    [ "${#plan[@]}" -eq 0 ] || printf '  %s\n' "This will be done:" "${plan[@]/#/  * }"
    [ "$dry_run" = no ] || say "nothing was changed: --dry-run"
}

ask() {
    local answer=''
    [ "$yes" = no ] || return 0
    [ -t 0 ] || stop "there is nobody to ask" "say --yes"
    read -r -p 'Go on? [y/N] ' answer || true
    case $answer in
    y | Y | yes) ;;
    *)
        say "nothing was changed"
        exit "$STATUS_NO"
        ;;
    esac
}

# ------------------------------------------------------------------ uninstall

do_uninstall() {
    may_change uninstall
    if [ ! -e "$root$STATE/undo" ]; then
        say "there is nothing to take back"
        return
    fi
    printf '  %s\n' "This will be taken back:"
    tac "$root$STATE/undo" | sed 's/^/    * /; s/|/ /g'
    if [ "$dry_run" = yes ]; then
        say "nothing was changed: --dry-run"
        return
    fi
    ask
    changing=yes
    undo_all
    changing=no
    say "done. A driver that is loaded stays until the next start of the computer"
}

main "$@"
