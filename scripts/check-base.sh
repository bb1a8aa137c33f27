#!/usr/bin/env bash
# Checks that images can be Reef's base: all that Reef needs of debian:*-slim, and nothing more.
set -eu

usage() {
    cat <<'END'
Usage: scripts/check-base.sh IMAGE...

Prints what each image is in the respects that matter to Reef, and says what is wrong with it.
Given several, for example debian:trixie-slim and reef-base:trixie, it says where they differ.
Versions of packages may differ: they move with the archive.

Exit status 0 when every image will do and all are alike.
END
}

# Programs that may act as another user or group, of Debian's required packages. Reef's image
# takes that right from every one of them.
SETUID="chage chfn chsh expiry gpasswd mount newgrp passwd su umount unix_chkpwd "

main() {
    case ${1:---help} in
    --help | -h) usage && exit ;;
    -*) die "no such option: $1; see --help" ;;
    esac
    local image first=$1
    folder=$(mktemp --directory)
    trap 'rm -rf "$folder"' EXIT
    wrong=0
    for image in "$@"; do
        facts "$image" >"$folder/facts" || die "$image can't be run; pull it or make it first"
        printf '%s\n' "$image" && sed 's/^/  /' "$folder/facts"
        judge "$image"
        if [ "$image" = "$first" ]; then
            cp "$folder/facts" "$folder/first"
        else
            compare "$first" "$image"
        fi
    done
    [ "$wrong" -eq 0 ] || die "$wrong things are wrong"
    echo "good: $*"
}

facts() {
    docker run --rm --interactive --entrypoint sh "$1" -eu <<'END'
. /etc/os-release
echo "release: $ID $VERSION_CODENAME"
echo "architecture: $(dpkg --print-architecture)"
echo "sources: $(sed -n 's/^Suites: //p' /etc/apt/sources.list.d/*.sources | tr ' ' '\n' |
    sort | tr '\n' ' ')"
echo "signed by: $(sed -n 's/^Signed-By: //p' /etc/apt/sources.list.d/*.sources |
    sed 's/\.[pg]*$//' | sort -u | tr '\n' ' ')"
echo "setuid: $(find / -xdev -perm /6000 -type f | sed 's|.*/||' | sort | tr '\n' ' ')"
echo "certificate authorities: $(find /etc/ssl/certs /usr/local/share/ca-certificates -type f \
    2>/dev/null | wc -l)"
echo "manuals and translations: $(find /usr/share/man /usr/share/info /usr/share/locale -type f \
    ! -name locale.alias ! -path "*/info/dir" 2>/dev/null | wc -l)"
echo "package lists left: $(find /var/lib/apt/lists -type f -size +0 | wc -l)"
echo "users above 999: $(awk -F: '$3 > 999 && $3 < 65534' /etc/passwd | wc -l)"
echo "python already there: $(command -v python3 || echo none)"
echo "packages: $(dpkg-query --show --showformat '${Package}\n' | sort | tr '\n' ' ')"
apt-get update --quiet --quiet >/dev/null 2>&1 || true
echo "python offered: $(apt-cache show python3-minimal 2>/dev/null |
    sed -n 's/^Version: \([0-9]*\.[0-9]*\).*/\1/p' | head -n 1)"
END
}

judge() {
    expect "$1" 'release' 'debian trixie'
    expect "$1" 'sources' 'trixie trixie-security trixie-updates '
    expect "$1" 'signed by' '/usr/share/keyrings/debian-archive-keyring '
    expect "$1" 'setuid' "$SETUID"
    expect "$1" 'certificate authorities' 0
    expect "$1" 'manuals and translations' 0
    expect "$1" 'package lists left' 0
    expect "$1" 'users above 999' 0
    expect "$1" 'python already there' none
    expect "$1" 'python offered' 3.13
}

expect() {
    local image=$1 name=$2 wanted=$3 found
    found=$(sed -n "s/^$name: //p" "$folder/facts")
    [ "$found" = "$wanted" ] || complain "$image: $name is '$found', not '$wanted'"
}

compare() {
    diff "$folder/first" "$folder/facts" >"$folder/diff" ||
        complain "$1 and $2 differ:"$'\n'"$(cat "$folder/diff")"
}

complain() {
    printf 'wrong: %s\n' "$*" >&2
    wrong=$((wrong + 1))
}

die() {
    printf 'check-base: %s\n' "$*" >&2
    exit 1
}

main "$@"
