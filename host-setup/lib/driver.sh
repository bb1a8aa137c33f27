# shellcheck shell=bash
# The driver of cards on M.2 and PCIe: gasket and apex, through DKMS, so that it comes along with
# every new kernel.

# Google's last commit. Our patches make it build on Linux 6.12 and newer, and leave it as it is on
# older ones; what they patch is known to the byte.
COMMIT=5815ee3908a46a415aac616ac7b9aedcb98a504c
SOURCE_URL=https://github.com/google/gasket-driver/archive/$COMMIT.tar.gz
PATCHES_VERSION=reef1
DRIVER=gasket/${COMMIT:0:7}-$PATCHES_VERSION

MOK_KEYS=(/var/lib/dkms/mok.pub /var/lib/shim-signed/mok/MOK.der) # Debian's, Ubuntu's
ENROL=(
    "1. make the key: sudo apt-get install dkms openssl mokutil; then sudo dkms generate_mok (Ubuntu: sudo update-secureboot-policy --new-key; Debian 12: the command in docs/host-setup.md)"
    "2. sudo mokutil --import /var/lib/dkms/mok.pub (Ubuntu: /var/lib/shim-signed/mok/MOK.der); choose a password for once"
    "3. start the computer again; on the blue screen: Enroll MOK, Continue, Yes, that password, Reboot"
    "4. run this again. Or switch Secure Boot off in the firmware's setup"
)

key_is_enrolled() {
    local key
    for key in "${MOK_KEYS[@]}"; do
        [ -e "$root$key" ] || continue
        [[ $(mokutil --test-key "$root$key" 2>&1) != *"already enrolled"* ]] || return 0
    done
    return 1
}

old_driver_remedy() {
    if [ "$(dpkg-query --show --showformat '${db:Status-Status}' gasket-dkms 2>/dev/null)" = installed ]; then
        echo "sudo apt-get purge gasket-dkms; then: $INSTALL_DRIVER"
    else
        echo "sudo dkms remove gasket/$1 --all; then: $INSTALL_DRIVER"
    fi
}

# ------------------------------------------------------------------ before anything is changed

preflight_driver() {
    local version
    ! is_container || stop "this is a container, and drivers are the host's" "$(driver_remedy)"
    [ -z "$(held_cards)" ] || stop "$(held_cards | paste --serial --delimiters ' ')" "${HELD_REMEDIES[@]}"
    # One that is built for this kernel stays, whoever made it.
    if [ -n "$(driver_module '')" ] && [ -z "$source" ]; then return; fi
    for version in $(dkms_versions); do
        case $version in
        *-"$PATCHES_VERSION" | own-*) ;;
        *) stop "an old driver, gasket/$version, is in DKMS and is not built for $kernel" "$(old_driver_remedy "$version")" ;;
        esac
    done
    driver_wanted=yes
    if [ "$(secure_boot)" = yes ] && ! key_is_enrolled; then
        stop "Secure Boot is on, and the key that DKMS signs the driver with is not enrolled" "${ENROL[@]}"
    fi
    preflight_headers
    want_packages dkms openssl patch
    [[ ! ${source:-$SOURCE_URL} =~ ^https?:// ]] || has curl || has wget || want_packages curl
    get_source
    apply_patches
    # DKMS and what it needs may have to come first; then it is tried once they are there.
    [ "${#packages[@]}" -gt 0 ] || try_build
}

preflight_headers() {
    local name
    ! has_headers || return 0
    name=$(headers_package)
    if has apt-cache && [ -n "$(apt-cache --quiet=2 show "$name" 2>/dev/null)" ]; then
        packages+=("$name" "$(headers_followup)") # the second brings those of later kernels
    else
        stop "the headers of the running kernel $kernel are missing, and apt has no $name" \
            "sudo apt-get update; if that is not enough, the kernel is older than the archive's:" \
            "sudo apt-get install $(kernel_package) $(headers_followup), and start the computer again"
    fi
}

get_source() {
    work_folder
    mkdir "$work/fetched" "$work/gasket"
    if [[ ! ${source:-$SOURCE_URL} =~ ^https?:// ]]; then
        [ -d "$source" ] || stop "--driver-source: there is no folder $source" "name the folder that has gasket_core.c, or the one above it"
        cp -r "$source/." "$work/fetched"
    else
        say "fetching the driver's source from ${source:-$SOURCE_URL}"
        download "${source:-$SOURCE_URL}" "$work/source.tar.gz" ||
            stop "the driver's source can't be fetched from ${source:-$SOURCE_URL}" \
                "look at the network; or fetch it elsewhere, unpack it, and name the folder: --driver-source DIR"
        tar --extract --gzip --file "$work/source.tar.gz" --directory "$work/fetched" ||
            stop "what came from ${source:-$SOURCE_URL} is no .tar.gz" "name the folder of its source: --driver-source DIR"
    fi
    find_sources
    if (cd "$work/gasket" && sha256sum --check --quiet --strict "$HERE/driver/gasket.sha256" >/dev/null 2>&1); then
        say "the driver's source is commit ${COMMIT:0:7}, every byte of it"
    elif [ -z "$source" ]; then
        stop "what came from $SOURCE_URL is not the commit that it should be" "try again; report it, if that stays"
    else
        DRIVER=gasket/own-$(cat "$work"/gasket/* | sha256sum | cut -c1-7)
        say "the driver's source is your own ($DRIVER), not commit ${COMMIT:0:7}"
    fi
}

# The sources are in the folder named, or in one below.
find_sources() {
    local file
    file=$(find "$work/fetched" -name gasket_core.c | head -n 1)
    [ -n "$file" ] || stop "there is no gasket_core.c in ${source:-$SOURCE_URL}" "name the folder of the driver's source"
    find "${file%/*}" -maxdepth 1 -type f \( -name '*.[ch]' -o -name Makefile -o -name Kconfig \) -exec cp {} "$work/gasket" \;
}

download() {
    if has curl; then
        curl --fail --silent --show-error --location --max-time 120 --output "$2" "$1"
    else
        wget --quiet --timeout 60 --tries 2 --output-document "$2" "$1"
    fi
}

# A patch whose cause ('Mends: ') is not in the source is not needed: somebody has mended it.
apply_patches() {
    local patch cause
    for patch in "$HERE"/driver/patches/*.patch; do
        cause=$(sed -n 's/^Mends: //p' "$patch")
        cat "$work"/gasket/*.c | grep --quiet --fixed-strings "$cause" || continue
        has patch || continue # it comes with the packages; see try_build
        (cd "$work/gasket" && patch --quiet --strip 1 --forward --fuzz 0 <"$patch") >"$work/patch.log" 2>&1 || {
            (cd "$work/gasket" && patch --dry-run --quiet --strip 1 --reverse --fuzz 0 <"$patch") >/dev/null 2>&1 && continue
            cat "$work/patch.log" >&2
            stop "${patch##*/} does not fit this source of the driver" "use the pinned one: leave --driver-source out"
        }
    done
    sed "s|@VERSION@|${DRIVER#*/}|" "$HERE/driver/dkms.conf" >"$work/gasket/dkms.conf"
}

# For the kernel that runs, in a folder that goes again.
try_build() {
    say "building the driver for $kernel, to see that it can be"
    cp -r "$work/gasket" "$work/tried"
    make -C "$modules/build" M="$work/tried" modules >"$work/build.log" 2>&1 || {
        grep --max-count 5 -e 'error' -e '\*\*\*' "$work/build.log" >&2 || tail -n 5 "$work/build.log" >&2
        build_failed
    }
}

build_failed() {
    if [ "$changing" = yes ]; then
        say "the driver does not build for $kernel; only packages were installed"
        exit "$STATUS_FAILED"
    fi
    stop "the driver does not build for $kernel" "see whether there is a newer Reef; a kernel of the distribution's own always works"
}

# ------------------------------------------------------------------ the change

install_driver() {
    local folder=/usr/src/${DRIVER%/*}-${DRIVER#*/} old
    [ -e "$work/tried" ] || { apply_patches && try_build; }
    old=$(content /sys/module/gasket/srcversion)
    record "dkms|$DRIVER"
    printf '+ write %s\n' "$folder" >&2
    rm -rf "$root$folder"
    mkdir -p "$root$folder"
    cp "$work"/gasket/* "$root$folder"
    run dkms install "$DRIVER" -k "$kernel" >&2
    if [ -n "$old" ]; then
        say "another gasket is loaded, which can't be unloaded: start the computer again to use the new one"
    else
        run modprobe apex || {
            say "it is installed, but the kernel doesn't load it; sudo dmesg | tail says why"
            exit "$STATUS_FAILED"
        }
    fi
}

remove_driver() {
    [ ! -e "$root/var/lib/dkms/$1" ] || run dkms remove "$1" --all >&2
    run rm -rf "$root/usr/src/${1%/*}-${1#*/}"
}

# The last line: a file that was cut off lacks it.
driver_whole=yes
