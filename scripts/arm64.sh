#!/usr/bin/env bash
# Tries Reef for arm64 on a computer of another kind, under QEMU's user emulation.
set -eu

SUITE=trixie
PYTHON=3.13 # of that release
PORT=5964
READY_S=600 # emulation is slow
RUN=(/usr/bin/env PYTHONPATH=/opt/reef PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
    "REEF_PORT=$PORT" REEF_RUN_DIR=/tmp/reef REEF_CPU_THREADS=1 REEF_DEADLINE_S=60)

usage() {
    cat <<END
Usage: scripts/arm64.sh [--help]

Shows two things, as root, on Debian:

  every package of requirements/run.txt has a wheel for arm64, of the locked bytes
  the arm64 program answers a picture: Debian $SUITE for arm64 with its Python and those
  wheels, in a folder, under qemu-user-static

Needed: mmdebstrap, qemu-user-static, binfmt-support and arch-test. It takes some minutes. The
folder goes again at the end; what it registers with binfmt_misc stays until the next start.
END
}

main() {
    case ${1-} in
    '') ;;
    --help | -h) usage && exit ;;
    *) die "no such option: $1; see --help" ;;
    esac
    cd "$(dirname "$0")/.."
    [ "$(id -u)" -eq 0 ] || die "it needs root: sudo scripts/arm64.sh"
    for tool in mmdebstrap qemu-aarch64-static update-binfmts arch-test; do
        command -v "$tool" >/dev/null ||
            die "$tool is missing: apt-get install mmdebstrap qemu-user-static binfmt-support arch-test"
    done
    server=
    folder=$(mktemp --directory)
    trap clean_up EXIT
    get_wheels
    make_root
    answer
}

get_wheels() {
    say "the wheels"
    local -a platforms=()
    for glibc in 2_17 2_24 2_26 2_27 2_28 2_31 2_34 2_35 2_39; do
        platforms+=(--platform "manylinux_${glibc}_aarch64")
    done
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
        --only-binary :all: --implementation cp --python-version "$PYTHON" "${platforms[@]}" \
        --platform manylinux2014_aarch64 --target "$folder/packages" -r requirements/run.txt
    say "$(find "$folder/packages" -name '*.dist-info' | wc -l) packages, each with a wheel for arm64"
}

make_root() {
    say "Debian $SUITE for arm64"
    mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    update-binfmts --enable qemu-aarch64 2>/dev/null
    # shellcheck disable=SC2016 # apt replaces $(SITE)
    archive=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)
    # Unpacked and not set up: nothing of Debian's runs but Python.
    mmdebstrap --arch=arm64 --variant=extract --include=base-files,python3,libstdc++6,coreutils --quiet \
        --keyring=/usr/share/keyrings/debian-archive-keyring.gpg "$SUITE" "$folder/root" "$archive"
    mkdir -p "$folder/root"/{proc,dev,tmp,opt/reef} "$folder/root/usr/local/lib/python$PYTHON"
    mv "$folder/packages" "$folder/root/usr/local/lib/python$PYTHON/dist-packages"
    cp -r app models "$folder/root/opt/reef/"
    mount --bind /proc "$folder/root/proc"
    mount --bind /dev "$folder/root/dev" # and no /sys: it tells of another kind of processor
    say "$(inside python3 -c 'import platform; print(platform.machine(), platform.python_version())')"
}

answer() {
    chroot "$folder/root" "${RUN[@]}" python3 -m app serve >"$folder/log" 2>&1 &
    server=$!
    say "waiting until the server is ready"
    for _ in $(seq "$READY_S"); do
        sleep 1
        kill -0 "$server" 2>/dev/null || break
        ! curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/ready" || break
    done
    curl --silent --show-error --fail --max-time 60 -F image=@models/selftest_person.jpg \
        "http://127.0.0.1:$PORT/predict" || { tail -n 20 "$folder/log" >&2 && die "no answer"; }
    echo
    grep Detected "$folder/log" >&2
}

inside() { chroot "$folder/root" "${RUN[@]}" "$@"; }

clean_up() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    umount "$folder/root/proc" "$folder/root/dev" 2>/dev/null || true
    mountpoint -q "$folder/root/dev" || mountpoint -q "$folder/root/proc" || rm -rf "$folder"
}

say() { echo "arm64: $*" >&2; }

die() {
    echo "arm64.sh: $*" >&2
    exit 1
}

main "$@"
